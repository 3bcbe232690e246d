"""compressed_kv in the engine: what it drafts from, what it keeps, what it never does."""

from collections.abc import Sequence
from typing import Any

import pytest
import ragged
import torch
from families import FAMILIES, prompt_inputs
from matrix import SAMPLINGS, model_of
from ragged import requests_of, target_of

import mmspec
from mmspec.build_drafters import build_compressed_kv
from mmspec.config import CompressedKVConfig
from mmspec.drafters.base import DrawingDrafter, WatchingDrafter
from mmspec.drafters.compressed_kv import BoundCompressedKV, CompressedKV
from mmspec.drafters.compressed_kv.session import CompressedKVSession
from mmspec.drafters.growing.together import grow
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.kv import KVView
from mmspec.kv.policies import Composed, SnapKV, TopKChunks, Window
from mmspec.requests import Request, Result
from mmspec.sweep import architectures
from mmspec.sweep.build import build
from mmspec.target import Target
from mmspec.tree import TokenTree

SAMPLED = {"temperature": 1.0, "top_k": 0}
WHOLE = {"budget": 4096, "recent": 64, "max_share": 1.0, "min_confidence": 0.0}
SMALL = {"budget": 12, "recent": 5, "max_share": 1.0, "min_confidence": 0.0}


def engine_of(
    family: str, *, max_nodes: int = 16, verifier: str = "coupled", **options: Any
) -> Engine:
    drafter = CompressedKV(**{**SMALL, **options})
    return ragged.engine_of(family, drafter, max_nodes=max_nodes, verifier=verifier)


def bound(engine: Engine) -> BoundCompressedKV:
    drafter = engine.drafters[0]
    assert isinstance(drafter, BoundCompressedKV)
    return drafter


def accepted(results: Sequence[Result]) -> int:
    return sum(result.stats.by_drafter["compressed_kv"].accepted for result in results)


def acceptance(results: Sequence[Result]) -> float:
    return accepted(results) / sum(r.stats.by_drafter["compressed_kv"].proposed for r in results)


def assert_plain(engine: Engine, requests: Sequence[Request], results: Sequence[Result]) -> None:
    plain = engine.generate(requests, speculate=False)
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    assert bound(engine).num_bytes == 0 and not bound(engine)._views, "a view was not freed"


# LAW


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_of_everything_drafts_what_the_target_says(family: str) -> None:
    """So keys, positions, masks and noise are right: with images and videos, windows and sinks, in
    a ragged batch, after each commit and each refresh. A policy has no choice here; a layer with a
    window is shown more than that. Families are sampled and greedy in turn."""
    layouts = ["text"] * 3
    if FAMILIES[family].kind == "vision":
        video = "video" if FAMILIES[family].takes_video else "two_images"
        layouts = ["image_middle", video, "image_last"]
    if FAMILIES[family].kind == "audio":
        layouts = ["audio", "text", "two_audio"]
    engine = engine_of(family, **WHOLE, policy="topk_chunks", max_depth=3)
    is_greedy = [*FAMILIES].index(family) % 2 == 0
    requests = requests_of(family, SAMPLINGS["greedy"] if is_greedy else SAMPLED, layouts)
    results = engine.generate(requests)
    assert acceptance(results) == 1.0
    assert all(result.stats.tokens_per_step > 3 for result in results)
    assert_plain(engine, requests, results)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_vl"])
def test_the_models_own_attention_runs_over_a_view_too(family: str) -> None:
    """Where the probe leaves it to the model, with masks: queries are logged all the same."""
    target = Target(
        model_of(family, "float64"),
        attention="model",
        mask_rule=target_of(family).mask_rule,
    )
    layouts = ["text", "image_middle" if family == "qwen2_vl" else "text", "text"]
    requests = requests_of(family, SAMPLED, layouts)
    for view in (WHOLE, SMALL):
        drafter = CompressedKV(policy="snapkv", max_depth=3, **view)
        engine = Engine(target, None, [drafter], controller="fixed", max_rows=3)
        results = engine.generate(requests)
        assert_plain(engine, requests, results)
        assert acceptance(results) == 1.0 if view is WHOLE else 0 < acceptance(results) < 1


@pytest.mark.parametrize("family", ["mistral_sliding", "gemma2"])
def test_a_window_sees_in_a_small_view_what_it_sees_in_the_text(family: str) -> None:
    """mistral: all layers have a window of 8, of which a view of 12 lacks nothing. gemma2: one of
    two layers."""
    results = engine_of(family, max_depth=3).generate(requests_of(family, SAMPLED, ["text"] * 3))
    assert acceptance(results) == 1.0 if family == "mistral_sliding" else acceptance(results) < 1.0


@pytest.mark.parametrize("verifier", ["speculative", "block", "recursive"])
def test_rules_that_divide_by_q_get_it(verifier: str) -> None:
    """From a view of everything q is the target's own distribution: nothing is ever rejected."""
    profile = (2, 1, 1) if verifier == "recursive" else ()
    options = {"draw": "sample", "max_depth": 3, "profile": profile, "verifier": verifier}
    engine = engine_of("qwen3", **WHOLE, **options)
    assert isinstance(engine.drafters[0], DrawingDrafter) and engine.drafters[0].draws
    requests = requests_of(
        "qwen3", SAMPLINGS["warped"] | {"repetition_penalty": None}, ["text"] * 3
    )
    results = engine.generate(requests)
    assert all(result.error is None for result in results)
    lengths = [n for r in results for n, count in r.stats.accepted_lengths.items() if count]
    assert max(lengths) == 3 and accepted(results) > 20
    short = sum(c for r in results for n, c in r.stats.accepted_lengths.items() if n < 3)
    assert short <= 3, "the texts' ends alone"
    small = engine_of("qwen3", **options)
    outcomes = small.generate(requests)
    assert all(r.error is None and r.stats.is_lossless for r in outcomes)
    assert acceptance(outcomes) < 1.0


# What it costs


def test_it_adds_a_tenth_of_the_targets_kv_at_most() -> None:
    """Counted in bytes, queries and all, at every proposal: three rows, one of them too short for a
    view. Freed rows count on both sides, as both keep their buffers until the last one ends."""
    engine = engine_of("llama", policy="snapkv", budget=1024, max_share=0.1, recent=16)
    right, added, held = BoundCompressedKV.propose_together, [0], [0]

    def watching(self: BoundCompressedKV, sessions: Any, texts: Any, budget: int) -> Any:
        made = right(self, sessions, texts, budget)
        cache = sessions[0].view.source
        committed = [
            layer.keys[: cache.length(row)].nbytes + layer.values[: cache.length(row)].nbytes
            for row in cache.rows
            for layer in cache.flat_layers
        ]
        held.append(max(sum(committed), held[-1]))
        added.append(self.num_bytes)
        assert added[-1] == sessions[0].view.num_bytes + cache.queries.num_bytes
        assert added[-1] <= 0.1 * held[-1]
        return made

    requests = [
        Request(prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=n), max_new_tokens=8)
        for n in (900, 100, 1500)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundCompressedKV, "propose_together", watching)
        results = engine.generate(requests)
    assert max(added) > 0.08 * max(held), "the bound is not what was tested"
    assert ["compressed_kv" in r.stats.by_drafter for r in results] == [True, False, True]
    assert_plain(engine, requests, results)


@pytest.mark.parametrize(
    ("draw", "profile", "sampling", "expected"),
    [
        ("coupled", (3, 2, 2), SAMPLINGS["greedy"], 9),  # nothing is drawn: no profile is followed
        ("sample", (), SAMPLINGS["greedy"], 9),
        ("sample", (3, 2, 2), SAMPLED, 10),
    ],
)
def test_behind_a_view_there_is_room_for_all_that_a_draft_writes(
    draw: str,
    profile: tuple[int, ...],
    sampling: dict[str, Any],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where others draw and a greedy request's tree is as wide as the best are."""
    shape = {"profile": profile, "top_k": 2, "width": 2, "max_depth": 5}
    engine = engine_of("llama", max_nodes=32, draw=draw, **shape)
    room, written = bound(engine).settings.size.room, list[int]()

    def watching(model: Any, cache: Any, growths: Any, *, cost: Any) -> None:
        grow(model, cache, growths, cost=cost)
        written.extend(growth.num_written for growth in growths)

    monkeypatch.setattr("mmspec.drafters.growing.trees.grow", watching)
    engine.generate(requests_of("llama", sampling, ["text"] * 3))
    assert max(written) == room == expected


def test_queries_are_kept_for_policies_that_ask() -> None:
    for policy, expected in (("window", 0), ("snapkv", 32), ("window+topk_chunks", 8)):
        engine = engine_of("llama", policy=policy)
        assert isinstance(engine.drafters[0], WatchingDrafter)
        assert engine._drafts.watched_queries == engine.drafters[0].watched_queries == expected
    assert Engine(target_of("llama"), None)._drafts.watched_queries == 0


def test_the_first_view_is_gathered_before_the_clock_of_a_proposal_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, order = engine_of("llama", max_depth=2), list[str]()
    refresh, propose = KVView._refresh, BoundCompressedKV.propose_together

    def refreshing(self: KVView, *args: Any) -> None:
        order.append("refresh")
        refresh(self, *args)

    def proposing(self: BoundCompressedKV, *args: Any) -> Any:
        order.append("propose")
        return propose(self, *args)

    monkeypatch.setattr(KVView, "_refresh", refreshing)
    monkeypatch.setattr(BoundCompressedKV, "propose_together", proposing)
    engine.generate(requests_of("llama", SAMPLED, ["text"] * 3)[0])
    assert order[:3] == ["refresh", "propose", "propose"] and order.count("refresh") > 1


def test_a_draft_is_one_forward_a_level_over_the_view_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of("llama", max_depth=4)
    seen, right = list[tuple[int, int]](), Target.score

    def counting(self: Target, trees: Any, cache: Any, *args: Any, **options: Any) -> Any:
        if isinstance(cache, KVView):
            done = options["written"]
            nodes = max(t.num_nodes - old for t, old in zip(trees, done, strict=True))
            seen.append((nodes, max(cache.length(row) for row in cache.rows)))
        return right(self, trees, cache, *args, **options)

    monkeypatch.setattr(Target, "score", counting)
    results = engine.generate(requests_of("llama", SAMPLED, ["text"] * 3))
    steps = max(result.stats.steps for result in results)
    assert len(seen) <= 4 * steps
    assert {nodes for nodes, _ in seen} == {1}
    assert max(length for _, length in seen) <= SMALL["budget"] + SMALL["recent"]


def test_another_forward_may_draft_in_the_targets_place() -> None:
    """What `forward` makes of the target runs over the view; the target's own score calls stay."""
    made = []

    class Louder:
        max_positions = None

        def __init__(self, target: Target) -> None:
            self.target, self.calls = target, 0

        def score(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return self.target.score(*args, **options)

    def forward(target: Target) -> Any:
        made.append(Louder(target))
        return made[-1]

    engine = engine_of("llama", forward=forward)
    requests = requests_of("llama", SAMPLED, ["text"] * 3)
    assert_plain(engine, requests, engine.generate(requests))
    assert made[0].calls > 10


# What goes wrong


def test_it_catches_up_after_many_steps_without_being_asked() -> None:
    engine = engine_of("mistral_sliding", max_depth=3)
    request = requests_of("mistral_sliding", SAMPLED, ["text"] * 3)[0]
    asked, right = [0], CompressedKVSession.propose
    propose = BoundCompressedKV.propose_together
    assert right is not None

    def seldom(self: BoundCompressedKV, sessions: Any, texts: Any, budget: int) -> Any:
        asked[0] += 1
        if asked[0] % 7 == 1:
            return propose(self, sessions, texts, budget)
        return [TokenTree.root(tokens[-1]) for tokens in texts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundCompressedKV, "propose_together", seldom)
        result = engine.generate(request, max_new_tokens=60)
    assert asked[0] > 20 and acceptance([result]) == 1.0
    assert_plain(engine, [Request(**{**vars(request), "max_new_tokens": 60})], [result])


def test_of_a_reused_prompt_the_watched_tokens_are_computed_again() -> None:
    """Their queries are looked at; the text is the plain one."""
    config = mmspec.load_config(
        None,
        {
            "drafter.name": "compressed_kv",
            "drafter.compressed_kv.policy": "snapkv",
            "drafter.compressed_kv.budget": 12,
            "drafter.compressed_kv.max_share": 1.0,
            "drafter.compressed_kv.min_confidence": 0.0,
            "decode.controller": "fixed",
        },
    )
    engine = mmspec.load(model_of("llama", "float64"), config=config)
    request = requests_of("llama", SAMPLED, ["text"] * 3)[0]
    first, second = engine.generate(request), engine.generate(request)
    assert second.stats.reused_tokens == second.stats.prompt_tokens - 32
    assert accepted([second]) == accepted([first]) > 0, "the same view, and the same drafts"
    assert first.tokens == second.tokens == engine.generate(request, speculate=False).tokens


# Confidence, settings


def test_what_makes_no_sense_is_refused() -> None:
    for options, expected in (
        ({"policy": "windows"}, "policy='windows': expected one, or several"),
        ({"policy": "window+nothing"}, "snapkv, topk_chunks, visual, window"),
        ({"budget": 4}, "budget=4: expected at least 8 tokens"),
        ({"recent": 0}, "recent=0"),
        ({"max_share": 0.0}, r"max_share=0.0: expected in \(0, 1\]"),
        ({"max_share": 1.5}, "max_share=1.5"),
        ({"width": 3, "top_k": 1}, "width=3"),
    ):
        with pytest.raises(ConfigError, match=expected):
            CompressedKV(**options)  # type: ignore[arg-type]
    CompressedKV(budget=8, recent=1, max_share=1.0)  # the least and the most


def test_policies_come_by_name_or_as_objects() -> None:
    assert CompressedKV(policy="window").policy == Window()
    assert CompressedKV(policy=SnapKV(kernel=3)).policy == SnapKV(kernel=3)
    both = CompressedKV(policy="window+topk_chunks").policy
    assert isinstance(both, Composed) and both.parts == (Window(), TopKChunks())


def test_the_defaults_are_the_configs() -> None:
    own, config = CompressedKV(), CompressedKVConfig()
    again = build_compressed_kv(config)
    assert vars(own) == vars(again)


def test_a_target_that_chooses_what_it_sees_is_refused() -> None:
    """A view shows no keys of its index."""
    (architecture,) = architectures(["deepseek_v32"])
    with pytest.raises(ConfigError, match="chooses by itself which tokens"):
        mmspec.load(build(architecture, torch.float64), drafter="compressed_kv")


@pytest.mark.parametrize(
    ("name", "why"), [("falcon", "it is off by"), ("deepseek_v3", "it keeps no keys")]
)
def test_a_target_whose_queries_say_nothing_is_refused(name: str, why: str) -> None:
    """Falcon asks for the name of its attention at each forward, and leaves the mask out by it;
    DeepSeek keeps latents."""
    (architecture,) = architectures([name])
    model = build(architecture, torch.float64)
    with pytest.raises(ConfigError, match=rf"queries of {type(model).__name__}.*{why}.*=window"):
        mmspec.load(model, drafter="compressed_kv")
    window = CompressedKV(policy="window", budget=8, max_share=1.0, min_confidence=0.0)
    engine = mmspec.load(model, drafter=window, overrides=["decode.controller=fixed"])
    prompt = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20)
    plain = engine.generate(prompt, speculate=False, max_new_tokens=12, temperature=0.0)
    assert engine.generate(prompt, max_new_tokens=12, temperature=0.0).tokens == plain.tokens
    native = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert native[0, 20:].tolist() == list(plain.tokens)
