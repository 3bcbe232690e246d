"""cascade in the engine: who verifies what, what is handed on, what is taken back."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ragged
import torch
from adversary import Adversary
from matrix import SAMPLINGS, model_of
from medusa_heads import unfitted
from ragged import target_of

import mmspec
from mmspec.drafters import base
from mmspec.drafters.base import (
    Drafter,
    DrafterForTarget,
    DrawingDrafter,
    LearningDrafter,
    RevisableSession,
)
from mmspec.drafters.cascade import BoundCascade, Cascade
from mmspec.drafters.cascade.run import Run
from mmspec.drafters.cascade.session import CascadeSession
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.kv import KVView
from mmspec.requests import Request, Result
from mmspec.state import Preparation, Taps
from mmspec.target import Target

SAMPLED = {"temperature": 1.0, "top_k": 0}
WHOLE = {"budget": 4096, "recent": 64, "max_share": 1.0, "min_confidence": 0.0}
SMALL = {"budget": 12, "recent": 5, "max_share": 1.0, "min_confidence": 0.0}


def eager_lookup() -> PromptLookup:
    return PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)


def engine_of(
    family: str,
    view: dict[str, Any],
    lower: Drafter | DrafterForTarget | None = None,
    *,
    verifier: str = "coupled",
    **options: Any,
) -> Engine:
    cascade = Cascade(lower or eager_lookup(), CompressedKV(**view), **{"max_depth": 8, **options})
    return ragged.engine_of(family, cascade, verifier=verifier)


def requests_of(family: str, sampling: Any = SAMPLED, layout: str = "text") -> list[Request]:
    return ragged.requests_of(family, sampling, (layout, "text", layout), new=(36, 32, 28))


def assert_plain(engine: Engine, requests: Sequence[Request], results: Sequence[Result]) -> None:
    plain = engine.generate(requests, speculate=False)
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    cascade = engine.drafters[0]
    assert isinstance(cascade, BoundCascade) and cascade.middle.num_bytes == 0


def acceptance(results: Sequence[Result]) -> float:
    counts = [result.stats.by_drafter["cascade"] for result in results]
    return sum(count.accepted for count in counts) / sum(count.proposed for count in counts)


def truths_of(family: str, requests: Sequence[Request]) -> dict[tuple[int, ...], tuple[int, ...]]:
    plain = Engine(target_of(family), None)
    return {
        tuple(r.prompt["input_ids"][0].tolist()): plain.generate(r).tokens  # type: ignore[index,call-overload]
        for r in requests
    }


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "text"),
        ("gemma3_text", "text"),
        ("qwen2_vl", "image_middle"),
        ("llava", "image_last"),
    ],
)
def test_over_a_view_of_everything_all_that_is_handed_on_is_accepted(
    family: str, layout: str
) -> None:
    """So the accepted path of each lower tree lies right behind the view, side branches gone."""
    engine = engine_of(family, WHOLE)
    for sampling in (SAMPLINGS["greedy"], SAMPLED):
        requests = requests_of(family, sampling, layout)
        results = engine.generate(requests)
        assert acceptance(results) == 1.0
    assert_plain(engine, requests, results)


def test_a_right_lower_level_saves_forwards_over_the_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lower level that knows the text: one forward verifies several of its tokens."""
    requests = requests_of("llama")
    forwards, right = {"view": 0, "target": 0}, Target.score

    def counting(self: Target, trees: Any, cache: Any, *args: Any, **options: Any) -> Any:
        forwards["view" if isinstance(cache, KVView) else "target"] += 1
        return right(self, trees, cache, *args, **options)

    knowing = Adversary(truths_of("llama", requests), 112)
    monkeypatch.setattr(Target, "score", counting)
    results = engine_of("llama", WHOLE, knowing).generate(requests)
    assert acceptance(results) == 1.0
    tokens = max(len(result.tokens) for result in results)
    alone = tokens - tokens // 9  # of the view alone: one a token that is handed on
    assert forwards["target"] < tokens / 2 and forwards["view"] < 0.8 * alone


def test_a_proposal_takes_as_many_forwards_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lower level says nothing each of them brings one token."""
    engine = engine_of("llama", WHOLE, PromptLookup(min_match=31), max_forwards=3)
    right, lengths = BoundCascade.propose_together, list[int]()

    def watching(self: BoundCascade, *args: Any) -> Any:
        made = right(self, *args)
        lengths.extend(tree.num_nodes - 1 for tree in made)
        return made

    monkeypatch.setattr(BoundCascade, "propose_together", watching)
    engine.generate(requests_of("llama"))
    assert max(lengths) == 3


@pytest.mark.parametrize("lower", ["prompt_lookup", "draft_model", "medusa"])
def test_any_drafter_may_stand_below(lower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """draft_model and medusa cannot take back: they are asked once a proposal, medusa by the state
    that the target came to."""
    target = target_of("llama")
    below: dict[str, Callable[[], Drafter | DrafterForTarget]] = {
        "prompt_lookup": eager_lookup,
        "draft_model": lambda: DraftModel(target),
        "medusa": lambda: Medusa(unfitted(target.model)),
    }
    right, asked_about_drafts = BoundCascade._lower_trees, set[bool]()

    def watching(self: BoundCascade, runs: Sequence[Run]) -> Any:
        asked_about_drafts.update(bool(run.children) for run in runs if run.may_ask)
        return right(self, runs)

    monkeypatch.setattr(BoundCascade, "_lower_trees", watching)
    engine = engine_of("llama", SMALL, below[lower]())
    requests = requests_of("llama")
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    assert acceptance(results) > 0
    assert asked_about_drafts == ({False, True} if lower == "prompt_lookup" else {False})


# What a drafter or its session may be and a cascade is not, and why.
NOT_A_CASCADE = {
    "DrafterForTarget": "it is bound already",
    "TextDrafter": "its view is the device's",
    "RevisableSession": "nothing stands above it",
}


def test_whatever_a_drafter_may_be_a_cascade_is() -> None:
    """A kind that it has no answer to is one that its levels are not asked about."""
    (cascade,) = engine_of("llama", SMALL, Retrieval()).drafters
    assert isinstance(cascade, BoundCascade)
    session = CascadeSession(cascade, None, None)  # type: ignore[arg-type]  # opened by nobody
    kinds = {
        name: kind
        for name, kind in vars(base).items()
        if getattr(kind, "__module__", "") == base.__name__
        and getattr(kind, "_is_runtime_protocol", False)
    }
    assert len(kinds) > len(NOT_A_CASCADE)
    missing = [
        name
        for name, kind in kinds.items()
        if not (isinstance(cascade, kind) or isinstance(session, kind))
    ]
    assert sorted(missing) == sorted(NOT_A_CASCADE)


def test_the_graphs_of_both_levels_are_its_own_and_are_freed() -> None:
    (cascade,) = engine_of("llama", SMALL).drafters
    assert isinstance(cascade, BoundCascade) and not cascade.recorded
    freed, lower = list[str](), vars(cascade.lower)
    lower |= {"recorded": ["lower"], "free_recorded": lambda: freed.append("lower")}
    middle: Any = SimpleNamespace(recorded=["middle"], free_recorded=lambda: freed.append("middle"))
    cascade.middle = middle
    assert cascade.recorded == ["middle", "lower"]
    cascade.free_recorded()
    assert freed == ["middle", "lower"]


@pytest.mark.parametrize("below", [Preparation(steps=1.0), None])
@pytest.mark.parametrize("over", [Preparation(steps=2.0), None])
def test_both_levels_are_prepared_and_closed(
    below: Preparation | None, over: Preparation | None
) -> None:
    """Also where one of them fails to."""
    (cascade,) = engine_of("llama", SMALL).drafters
    told = list[str]()

    def level(name: str, due: Preparation | None) -> Any:
        def close() -> None:
            told.append(f"{name} closed")
            raise RuntimeError(name)

        def prepare(tokens: Sequence[int]) -> None:
            told.append(f"{name} prepared")

        named = {"propose": print, "observe": print, "close": close, "prepare": prepare}
        return SimpleNamespace(**named, preparation=lambda length: due)

    lower, middle = level("lower", below), level("middle", over)
    session = CascadeSession(cascade, lower, middle)  # type: ignore[arg-type]
    steps = [due.steps for due in (below, over) if due is not None]
    due = session.preparation(9)
    assert (None if due is None else due.steps) == (sum(steps) if steps else None)
    session.prepare([1])
    with pytest.raises(RuntimeError):
        session.close()
    assert told == ["lower prepared", "middle prepared", "lower closed", "middle closed"]
    unprepared = SimpleNamespace(propose=print, observe=print, close=print)
    session = CascadeSession(cascade, unprepared, middle)  # type: ignore[arg-type]
    session.prepare([1])
    assert session.preparation(9) is over


def test_what_a_forward_over_the_view_gives_is_learnt() -> None:
    """Of a proposal without one nothing."""
    (cascade,) = engine_of("llama", SMALL).drafters
    session: Any = CascadeSession(cascade, None, None)  # type: ignore[arg-type]
    given = []
    for forwards, tokens in ((0, 0), (2, 12), (1, 0)):
        session.ran(SimpleNamespace(num_forwards=forwards, children=[None] * tokens))
        given.append(session._tokens_per_forward)
    assert given == [1.0, pytest.approx(2.0), pytest.approx(1.6)]


def test_the_lower_level_learns_finished_texts_and_forgets_them() -> None:
    engine, requests = engine_of("llama", SMALL, Retrieval()), requests_of("llama")
    cascade = engine.drafters[0]
    assert isinstance(cascade, BoundCascade) and isinstance(cascade, LearningDrafter)
    generated = cascade.lower.sources["generated"]  # type: ignore[attr-defined]
    engine.generate([replace(request, namespace="a") for request in requests])
    assert len(generated.store) == len(requests)
    engine.clear_cache("a")
    assert len(generated.store) == 0


def test_a_lower_level_that_takes_back_is_told_the_targets_states() -> None:
    """After each step, whatever it was told on the way: a dense look-up asks by them."""
    engine = engine_of("llama", SMALL, Retrieval())
    cascade, seen = engine.drafters[0], list[bool]()
    assert isinstance(cascade, BoundCascade)
    cascade.lower.taps = cascade.taps = Taps(frozenset({1}))  # type: ignore[attr-defined]
    right = BoundCascade.propose_together

    def watching(self: BoundCascade, own: Any, texts: Any, budget: int) -> Any:
        seen.extend(1 in session.lower._hidden for session in own)
        return right(self, own, texts, budget)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundCascade, "propose_together", watching)
        results = engine.generate(requests_of("llama"))
    assert acceptance(results) > 0 and all(seen)


def test_the_lower_level_sees_the_requests_own_text_again_after_each_proposal() -> None:
    """Its index is the one of a session that never saw a draft."""
    engine = engine_of("llama", SMALL)
    right, sessions = BoundCascade.propose_together, dict[int, Any]()

    def watching(self: BoundCascade, own: Any, texts: Any, budget: int) -> Any:
        made = right(self, own, texts, budget)
        for session, text in zip(own, texts, strict=True):
            assert isinstance(session.lower, RevisableSession)
            assert session.lower._text.index.tokens == list(text)
            sessions[id(session)] = session.lower
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundCascade, "propose_together", watching)
        engine.generate(requests_of("llama"))
    assert len(sessions) == 3
    assert any(session._copier._calibration._seen for session in sessions.values())


@pytest.mark.parametrize("verifier", ["speculative", "block"])
def test_under_rules_that_need_q_it_is_a_chain_drawn_from_the_middle_levels_q(
    verifier: str,
) -> None:
    """Over a view of everything that q is the target's: nothing is rejected. Its length looks at no
    token; the lower level, right or wrong, only saves forwards."""
    drawn = {"draw": "sample"}
    engine = engine_of("qwen3", {**WHOLE, **drawn}, verifier=verifier, max_depth=4)
    assert isinstance(engine.drafters[0], DrawingDrafter) and engine.drafters[0].draws
    right, trees = BoundCascade.propose_together, list[Any]()

    def watching(self: BoundCascade, *args: Any) -> Any:
        trees.extend(made := right(self, *args))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundCascade, "propose_together", watching)
        results = engine.generate(requests_of("qwen3"))
    assert all(result.error is None for result in results)
    assert all(tree.is_chain for tree in trees)
    assert sum(tree.num_nodes != 5 for tree in trees) <= 3, "the texts' ends alone"
    for tree in trees:
        sums = torch.ones(tree.num_nodes)
        sums[-1] = 0.0
        torch.testing.assert_close(tree.q.sum(dim=1), sums)
    short = sum(c for r in results for n, c in r.stats.accepted_lengths.items() if n < 4)
    assert short <= 3, "the texts' ends alone"
    small = engine_of("qwen3", {**SMALL, **drawn}, verifier=verifier)
    outcomes = small.generate(requests_of("qwen3"))
    assert all(result.error is None for result in outcomes) and acceptance(outcomes) < 1.0


def test_the_drawn_chain_does_not_depend_on_the_lower_level() -> None:
    """Same seed, same draws, whatever is proposed below: so they are exact draws from q."""
    texts = []
    for lower in (eager_lookup(), PromptLookup(min_match=31), DraftModel(target_of("llama"))):
        engine = engine_of(
            "llama", {**SMALL, "draw": "sample"}, lower, verifier="speculative", max_depth=4
        )
        texts.append([result.tokens for result in engine.generate(requests_of("llama"))])
    assert texts[0] == texts[1] == texts[2]


def test_of_a_text_too_short_for_a_view_the_lower_trees_are_handed_on() -> None:
    engine = engine_of("llama", {"max_share": 0.1, "min_confidence": 0.0})
    requests = requests_of("llama", SAMPLINGS["greedy"])
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    assert all(set(result.stats.by_drafter) <= {"prompt_lookup"} for result in results)
    assert sum(r.stats.by_drafter["prompt_lookup"].accepted for r in results) > 0


@pytest.mark.drafter_fails
def test_a_lower_level_that_fails_costs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("llama", SMALL)
    requests, calls = requests_of("llama"), [0]
    session = type(eager_lookup().start(engine.prepare(requests[0]).prompt, None, None))  # type: ignore[arg-type]
    right = session.query

    def failing(self: Any, tokens: Any) -> Any:
        calls[0] += 1
        if calls[0] >= 9:
            raise RuntimeError("broken")
        return right(self, tokens)

    monkeypatch.setattr(session, "query", failing)
    assert_plain(engine, requests, engine.generate(requests))
    assert 9 < calls[0] <= 9 + len(requests), "for each row alone once more, and then no more"


@pytest.mark.drafter_fails
def test_where_the_middle_level_cannot_begin_the_lower_one_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, requests = engine_of("llama", SMALL), requests_of("llama")
    (cascade,) = engine.drafters
    assert isinstance(cascade, BoundCascade)
    begun, closed = list[Any](), list[Any]()
    lower = type(eager_lookup().start(engine.prepare(requests[0]).prompt, None, None))  # type: ignore[arg-type]
    right = cascade.lower.start

    def start(*args: Any) -> Any:
        begun.append(right(*args))
        return begun[-1]

    def failing(*args: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(cascade.lower, "start", start)
    monkeypatch.setattr(cascade.middle, "start", failing)
    monkeypatch.setattr(lower, "close", lambda session: closed.append(session))
    assert_plain(engine, requests, engine.generate(requests))
    assert begun and closed == begun


@pytest.mark.drafter_fails
def test_a_row_is_taken_back_also_where_another_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a view of everything all is accepted, unless a row's last draft is left in its view."""
    engine, requests = engine_of("llama", WHOLE), requests_of("llama")
    take_back, failed = Run.take_back, list[int]()

    def fails_once(run: Run) -> None:
        take_back(run)
        if not failed:
            failed.append(run.placement.row)
            raise RuntimeError("broken")

    monkeypatch.setattr(Run, "take_back", fails_once)
    results = engine.generate(requests)
    assert failed and acceptance(results) == 1.0
    assert_plain(engine, requests, results)


def test_it_is_built_from_a_config() -> None:
    config = mmspec.load_config(
        "cascade", ["drafter.compressed_kv.max_share=1", "decode.controller=fixed"]
    )
    engine = mmspec.load(model_of("llama", "float64"), config=config)
    request = requests_of("llama")[0]
    assert engine.generate(request).tokens == engine.generate(request, speculate=False).tokens
    for options, expected in (
        (["drafter.cascade.lower=compressed_kv"], "lower='compressed_kv': expected one of"),
        (["drafter.cascade.max_depth=0"], "max_depth=0: expected at least 1"),
        (["drafter.cascade.max_forwards=0"], "max_forwards=0"),
        (["drafter.cascade.lower_nodes=0"], "lower_nodes=0"),
    ):
        with pytest.raises(ConfigError, match=expected):
            mmspec.load(model_of("llama", "float64"), config="cascade", overrides=options)
    Cascade(eager_lookup(), max_depth=1, max_forwards=1, lower_nodes=1)
    for lower, expected in (
        (CompressedKV(), "lower=compressed_kv: expected one cheaper"),
        (LayerSkip(), "lower=layer_skip: expected one that reads no KV"),
    ):
        with pytest.raises(ConfigError, match=expected):
            Cascade(lower)
    whole: Any = Adversary({}, 112)
    whole.taps = Taps(frozenset({1}), whole_prompt=True)
    with pytest.raises(ConfigError, match="reads the target's states of every token"):
        engine_of("llama", SMALL, whole)
