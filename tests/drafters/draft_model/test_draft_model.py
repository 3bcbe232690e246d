"""draft_model in the engine: what it drafts, what it keeps, what it never does."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import pytest
import torch
from draft_models import padded, stranger
from families import FAMILIES, prompt_inputs
from matrix import SAMPLINGS, model_of
from ragged import requests_of, target_of
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.draft_model.drafter import BoundDraftModel
from mmspec.drafters.draft_model.session import DraftModelSession
from mmspec.drafters.draft_model.wording import SharedWording
from mmspec.engine import Engine
from mmspec.errors import ConfigError, ModelError
from mmspec.kv import KVCache
from mmspec.requests import Request, Result
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.tower import TextTower

SAMPLED = {"temperature": 1.0, "top_k": 0}


def engine_of(
    family: str,
    draft: Any = None,
    *,
    max_nodes: int = 16,
    controller: str = "fixed",
    **options: Any,
) -> Engine:
    """The family's model with `draft` (itself, if None) as its drafter."""
    target = target_of(family)
    drafter = DraftModel(target if draft is None else draft, **{"min_confidence": 0.0, **options})
    return Engine(target, None, [drafter], controller=controller, max_nodes=max_nodes, max_rows=3)


def bound(engine: Engine) -> BoundDraftModel:
    drafter = engine.drafters[0]
    assert isinstance(drafter, BoundDraftModel)
    return drafter


def acceptance(results: Sequence[Result]) -> float:
    counts = [result.stats.by_drafter["draft_model"] for result in results]
    return sum(c.accepted for c in counts) / sum(c.proposed for c in counts)


def assert_plain(engine: Engine, requests: Sequence[Request], results: Sequence[Result]) -> None:
    for request, result in zip(requests, results, strict=True):
        assert result.tokens == engine.generate(request, speculate=False).tokens
    assert not bound(engine).cache.rows, "a session's row was not freed"


@cache
def small_context() -> LlamaForCausalLM:
    """The llama of the families, but made for 48 tokens: the same weights."""
    model = model_of("llama", "float64")
    config = LlamaConfig(**{**model.config.to_dict(), "max_position_embeddings": 48})
    other = LlamaForCausalLM._from_config(config, dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    return other.eval()


# LAW


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_as_its_own_drafter_is_always_right(family: str) -> None:
    """Without side branches every drafted token is accepted: under noise too, with images, in a
    ragged batch, and after every commit. Families are sampled and greedy in turn."""
    layouts = {
        "text": ["text"] * 3,
        "vision": ["image_middle", "text", "image_last"],
        "audio": ["audio", "text", "two_audio"],
    }[FAMILIES[family].kind]
    engine = engine_of(family, top_k=1)
    is_greedy = [*FAMILIES].index(family) % 2 == 0
    requests = requests_of(family, SAMPLINGS["greedy"] if is_greedy else SAMPLED, layouts)
    results = engine.generate(requests)
    assert acceptance(results) == 1.0
    assert all(result.stats.tokens_per_step > 4 for result in results)
    assert_plain(engine, requests, results)


@pytest.mark.parametrize("num_recent", [0, 8])
def test_a_draft_model_with_running_states_goes_back_where_its_wording_changes(
    num_recent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with another tokenizer, of whose ids the newest may turn out to be others. By states that
    are remembered, or by reading the text again: what is drafted is right after both."""
    right, make, read_anew = SharedWording.read, Target.new_cache, list[object]()

    def forgetful(self: SharedWording, tokens: Sequence[int]) -> int:
        return max(right(self, tokens) - 5, 0)

    def remembering(self: Target, **options: int) -> KVCache:
        return make(self, **{**options, "num_recent": num_recent})

    begin_again = DraftModelSession._begin_again

    def noted(self: DraftModelSession) -> None:
        read_anew.append(self)
        begin_again(self)

    monkeypatch.setattr(SharedWording, "read", forgetful)
    monkeypatch.setattr(Target, "new_cache", remembering)
    monkeypatch.setattr(DraftModelSession, "_begin_again", noted)
    engine = engine_of("lfm2", top_k=1, max_depth=4)
    results = engine.generate(requests_of("lfm2", SAMPLED, ["text"] * 3))
    assert acceptance(results) == 1.0
    assert bool(read_anew) == (num_recent == 0)


def test_with_side_branches_the_best_path_is_among_them() -> None:
    engine = engine_of("llama", top_k=3, max_depth=4, max_nodes=64)
    for sampling in (SAMPLINGS["greedy"], SAMPLED):
        results = engine.generate(requests_of("llama", sampling, ["text"] * 3))
        for result in results:  # a full depth at each step, but for the end of the text
            assert sum(n for length, n in result.stats.accepted_lengths.items() if length < 4) <= 1


def test_what_was_accepted_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chosen token's keys are computed once, on the way; only what no level reached is not."""
    engine, counted = engine_of("llama", top_k=1, max_depth=4), list[int]()
    right = Target.score

    def counting(self: Target, trees: Any, cache: KVCache, *args: Any, **options: Any) -> Any:
        if cache is bound(engine).cache:
            done = options["written"]
            counted.extend(t.num_nodes - old for t, old in zip(trees, done, strict=True))
        return right(self, trees, cache, *args, **options)

    monkeypatch.setattr(Target, "score", counting)
    result = engine.generate(requests_of("llama", SAMPLED, ["text"] * 3)[0])
    # A step of depth 4 computes node 0 and three nodes; the fourth node and the target's own token
    # come next: the first of them is caught up with, in the same forward as node 0.
    assert acceptance([result]) == 1.0
    assert max(counted) == 2 and sum(counted) <= len(result.tokens) + result.stats.steps * 2


def test_it_catches_up_after_many_steps_without_being_asked() -> None:
    engine = engine_of("llama", top_k=1, max_nodes=4)
    drafter = bound(engine)
    request = requests_of("llama", SAMPLED, ["text"] * 3)[0]
    tokens = [
        *request.prompt["input_ids"][0].tolist(),  # type: ignore[index,call-overload]
        *engine.generate(request, max_new_tokens=200, speculate=False).tokens,
    ]
    row = engine._row(replace(request, max_new_tokens=200), 0)
    sessions = [drafter.start(row.prompt, None, row.sampler.guide) for _ in range(2)]  # type: ignore[arg-type]
    for ends in ((41, 42), (43, 200), (120, 203), (204, 235)):
        texts = [tokens[:end] for end in ends]
        trees = drafter.propose_together(sessions, texts, 4)
        for tree, end in zip(trees, ends, strict=True):
            assert list(tree.tokens) == tokens[end - 1 : end + 4]
    for session in sessions:
        session.close()
    assert not drafter.cache.rows


@pytest.mark.parametrize("sampling", ["greedy", "t1"])
def test_past_its_context_the_oldest_tokens_leave(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text much longer than the draft model's context: no position beyond it is ever read,
    and what it drafts stays what the model would say of the newest text alone."""
    highest, right = [0], LlamaForCausalLM.forward

    @wraps(right)
    def watching(self: LlamaForCausalLM, *args: Any, **options: Any) -> Any:
        if self is small_context():
            highest[0] = max(highest[0], int(options["position_ids"].max()))
            columns = options["past_key_values"].flat_layers[0].plan.num_columns
            assert columns <= 48 + 8, "more keys than the context holds"
        return right(self, *args, **options)

    drafter = DraftModel(small_context(), top_k=1, max_depth=4, min_confidence=0.0)
    monkeypatch.setattr(LlamaForCausalLM, "forward", watching)
    monkeypatch.setattr(TextTower, "can_run", lambda _: False)  # which passes it by
    model = model_of("llama", "float64")
    engine = mmspec.load(
        model, config=Config(decode=DecodeConfig(controller="fixed")), drafter=drafter
    )
    requests = [
        Request(
            prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length),
            max_new_tokens=60,
            seed=1,
            **SAMPLINGS[sampling],
        )
        for length in (20, 90)
    ]
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    assert 40 <= highest[0] < 48
    assert results[0].stats.by_drafter["draft_model"].accepted > 0


def test_after_the_cut_it_says_what_a_fresh_reading_says() -> None:
    engine = engine_of("llama", small_context(), top_k=1, max_depth=3)
    drafter, model = bound(engine), small_context()
    tokens = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=120)["input_ids"][0].tolist()
    row = engine._row(Request({"input_ids": torch.tensor([tokens[:20]])}, temperature=0), 0)
    session = drafter.start(row.prompt, None, row.sampler.guide)  # type: ignore[arg-type]
    sizes = []
    for end in range(21, 119):
        tree = session.propose(tokens[:end], 3)
        size = drafter.cache.length(session.placement.row) + len(session.missing)
        assert size <= 48 - 3
        sizes.append(size)
        with torch.no_grad():
            fresh = model(torch.tensor([tokens[end - size : end]])).logits[0, -1]
        assert tree.tokens[1] == int(fresh.argmax()), f"after {end} tokens, {size} read"
    assert sum(b < a for a, b in pairwise(sizes)) >= 2, "nothing ever left"
    session.close()


def test_what_is_due_is_what_is_then_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt, of what was chosen while nobody asked, and anew where it has no room for all;
    but for the last few tokens, which a proposal reads by the way."""
    monkeypatch.setattr("mmspec.drafters.draft_model.session.CHUNK", 4)
    monkeypatch.setattr("mmspec.drafters.draft_model.drafter.CHUNK", 4)
    drafter, num_read, tokens = bound(engine_of("llama", small_context())), [0], [*range(3, 103)]
    prefill, score = Target.prefill, Target.score

    def prefilling(self: Target, prompt: Prompt, *args: Any, **options: Any) -> Any:
        num_read[0] += prompt.num_tokens
        return prefill(self, prompt, *args, **options)

    def scoring(self: Target, trees: Any, *args: Any, **options: Any) -> Any:
        num_read[0] += sum(tree.num_nodes for tree in trees)
        return score(self, trees, *args, **options)

    monkeypatch.setattr(Target, "prefill", prefilling)
    monkeypatch.setattr(Target, "score", scoring)
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=0)
    for length, later in ((9, (10, 24, 33, 90)), (38, (39, 60)), (80, (81, 96))):
        session = drafter.start(Prompt(torch.tensor(tokens[:length])), None, guide)  # type: ignore[arg-type]
        for end in later:
            due = session.preparation(end)
            num_read[0] = 0
            session.prepare(tokens[:end])
            assert due is not None and num_read[0] <= due.tokens <= num_read[0] + 4
            assert session.preparation(end) is None
            session.propose(tokens[:end], 3)
        session.close()


@pytest.mark.drafter_fails
def test_a_prompt_that_it_cannot_read_costs_one_row_its_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of("llama")
    requests = requests_of("llama", SAMPLED, ["text"] * 3)
    right = Target.prefill

    def failing(self: Target, prompt: Any, cache: KVCache, *args: Any, **options: Any) -> Any:
        if cache is bound(engine).cache and prompt.num_tokens == 17:
            raise RuntimeError("out of memory")
        return right(self, prompt, cache, *args, **options)

    monkeypatch.setattr(Target, "prefill", failing)
    results = engine.generate(requests)
    assert ["draft_model" in result.stats.by_drafter for result in results] == [True, False, True]
    assert_plain(engine, requests, results)


@pytest.mark.parametrize("size", [100, 120])
def test_padded_vocabularies_draft_what_both_have(size: int) -> None:
    """A draft model with more ids, or fewer, than the target: the same tokens else."""
    model = model_of("llama", "float64")
    drafter = padded(model, size)
    engine = engine_of("llama", drafter, top_k=1)
    requests = requests_of("llama", SAMPLED, ["text"] * 3)
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    if size > 112:
        assert acceptance(results) == 1.0
    else:  # ids from 100 on are never proposed, but chosen now and then
        assert 0.3 < acceptance(results) < 1.0


def test_an_unlikely_path_is_not_followed() -> None:
    """A level that is not worth it costs no forward."""
    counted = []
    for least in (0.0, 0.9):
        engine, calls = engine_of("llama", stranger(), min_confidence=least), [0]
        right = Target.score

        def counting(self: Any, trees: Any, cache: Any, *args: Any, **options: Any) -> Any:
            calls[0] += cache is bound(engine).cache  # noqa: B023
            return right(self, trees, cache, *args, **options)  # noqa: B023

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Target, "score", counting)
            engine.generate(requests_of("llama", SAMPLED, ["text"] * 3)[0])
        counted.append(calls[0])
    assert counted[1] < counted[0] / 3


def test_what_makes_no_sense_is_refused() -> None:
    model = model_of("llama", "float64")
    for options, told in (
        ({"images": "give"}, "images='give': LlamaForCausalLM is a text-only model"),
        ({"images": "maybe"}, "images='maybe': expected one of"),
        ({"thin_keep": 0.0}, "thin_keep=0.0"),
    ):
        with pytest.raises(ConfigError, match=told):
            DraftModel(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holds 48 tokens; expected at least 32 beside the tree"):
        DraftModel(small_context(), max_depth=20)
    with pytest.raises(ConfigError, match="images='caption': neither model can see"):
        engine_of("llama", images="caption")
    with pytest.raises(ModelError):
        from families import REFUSED

        DraftModel(REFUSED["falcon_alibi"].build(torch.float64))
