"""layer_skip: the target's text, drafted by fewer of its layers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers import CONFIG_MAPPING

import mmspec
from mmspec.drafters.growing.trees import GrowingTrees
from mmspec.drafters.layer_skip import BoundLayerSkip, LayerSkip
from mmspec.drafters.layer_skip.session import LayerSkipSession
from mmspec.engine import Engine
from mmspec.errors import ConfigError, ModelError
from mmspec.requests import Request
from mmspec.state import Verdict
from mmspec.sweep import architectures
from mmspec.sweep.build import build
from mmspec.target import Target
from mmspec.tree import TokenTree

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "top_k": 0},
}


def deep_model(layers: int = 6, *, idle: tuple[int, ...] = ()) -> Any:
    """A random Llama in float64; the layers `idle` add nothing, so that nothing misses them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
        for index in idle:
            model.model.layers[index].self_attn.o_proj.weight.zero_()
            model.model.layers[index].mlp.down_proj.weight.zero_()
    return model


def engine_of(model: Any, drafter: Any, **overrides: object) -> Engine:
    settings = {"decode.controller": "fixed", "cache.prefix_bytes": 0, **overrides}
    return mmspec.load(model, drafter=drafter, overrides=settings)


def prompts(count: int) -> list[Request]:
    ids = torch.arange(3, 90)
    return [
        Request(
            {"input_ids": ids[index * 7 : 20 + index * 11][None]}, max_new_tokens=40, seed=index
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rough_weights_leave_the_text_the_plain_one(sampling: str) -> None:
    model = deep_model()
    drafter = LayerSkip(
        weights="int8", min_confidence=0.0, max_depth=3, top_k=2, trial_tokens=6, trial_every=2
    )
    engine = engine_of(model, drafter)
    drafted = engine.generate(prompts(3), **SAMPLINGS[sampling])
    plain = engine.generate(prompts(3), speculate=False, **SAMPLINGS[sampling])
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    assert all(r.stats.by_drafter["layer_skip"].proposed for r in drafted)


def test_layers_that_add_nothing_are_not_missed() -> None:
    model = deep_model(6, idle=(2, 4))
    engine = engine_of(model, LayerSkip(layers=(2, 4), min_confidence=0.0, max_depth=4))
    result = engine.generate(prompts(1)[0], temperature=1.0, top_k=0)
    count = result.stats.by_drafter["layer_skip"]
    assert count.accepted == count.proposed > 20


@pytest.mark.parametrize("family", ["gemma4_text", "hy_v4"])
def test_what_later_layers_read_of_earlier_ones_is_there(family: str) -> None:
    """Gemma 4: keys, of layers that stay. HY-V4: which tokens an index has chosen."""
    if family not in CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    model = build(*architectures([family]), torch.float64)
    engine = engine_of(model, LayerSkip(trial_tokens=4, trial_every=2, min_confidence=0.0))
    result = engine.generate(prompts(1)[0], temperature=0.0)
    assert result.stats.by_drafter["layer_skip"].proposed > 20
    assert result.tokens == engine.generate(prompts(1)[0], speculate=False, temperature=0.0).tokens
    lending = {"gemma4_text": "0, 1", "hy_v4": "0"}[family]
    with pytest.raises(ConfigError, match=rf"layers: got \[0\], .* of \[{lending}\]: leave"):
        engine_of(model, LayerSkip(layers=(0,)))


def test_the_search_finds_the_layers_that_add_nothing() -> None:
    model = deep_model(8, idle=(2, 5, 6))
    drafter = LayerSkip(
        skip=3 / 8, min_confidence=0.0, max_depth=2, trial_tokens=16, trial_every=1, trials=60
    )
    engine = engine_of(model, drafter)
    bound = engine.drafters[0]
    assert isinstance(bound, BoundLayerSkip)
    before = bound.skipped
    for seed in range(3):
        engine.generate(prompts(1)[0], max_new_tokens=100, seed=seed, temperature=1.0, top_k=0)
    assert before != frozenset({2, 5, 6})
    assert bound.skipped == frozenset({2, 5, 6})


def test_a_draft_counts_for_the_layers_that_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another request's trial has changed the best ones meanwhile. Its tokens count as
    far as the target has said something of them."""
    drafter = LayerSkip(skip=1 / 6, min_confidence=0.0, trial_every=1000)
    engine = engine_of(deep_model(), drafter)
    bound = engine.drafters[0]
    assert isinstance(bound, BoundLayerSkip) and bound.search is not None
    search, used = bound.search, bound.skipped
    told, expected = (
        list[tuple[frozenset[int], int, int]](),
        list[tuple[frozenset[int], int, int]](),
    )
    grown, observe = GrowingTrees.grown, LayerSkipSession.observe

    def meanwhile(*args: Any, **options: Any) -> Any:
        search.best = other
        return grown(*args, **options)

    def learn(skipped: frozenset[int], matched: int, tested: int) -> None:
        told.append((skipped, matched, tested))
        search.best = used

    def observing(self: LayerSkipSession, tree: TokenTree, verdict: Verdict, scores: Any) -> None:
        matched = len(verdict.path) - 1
        expected.append((used, matched, min(matched + 1, tree.num_nodes - 1)))
        observe(self, tree, verdict, scores)

    search.learn(other := frozenset({1}), 0, 1)
    assert bound.skipped == used != other
    monkeypatch.setattr(search, "learn", learn)
    monkeypatch.setattr(GrowingTrees, "grown", meanwhile)
    monkeypatch.setattr(LayerSkipSession, "observe", observing)
    engine.generate(prompts(1)[0], max_new_tokens=20, temperature=0.0)
    assert told == expected
    assert {0, 1} <= {matched for _, matched, _ in told}, "neither all nor nothing"


def test_trials_are_of_the_newest_tokens_now_and_then_and_come_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = LayerSkip(trials=3, trial_every=2, trial_tokens=6, min_confidence=0.0, max_depth=1)
    engine = engine_of(deep_model(), settings)
    bound, request, events = engine.drafters[0], prompts(1)[0], ""
    assert isinstance(bound, BoundLayerSkip)
    num_prompt = request.prompt["input_ids"].shape[1]  # type: ignore[index,call-overload]
    matched, propose = bound._matched, BoundLayerSkip.propose_together

    def trying(session: Any, tokens: Sequence[int], skipped: frozenset[int]) -> int:
        nonlocal events
        events += "t"
        assert session.trial(len(tokens)) == (len(tokens) - 1 - 6, None), "the newest"
        assert session.trial(num_prompt + 6) == (num_prompt - 1, None)
        assert session.trial(num_prompt + 5) is None, "the prompt's were not chosen"
        return matched(session, tokens, skipped)

    def proposing(self: BoundLayerSkip, *args: Any) -> Any:
        nonlocal events
        events += "p"
        return propose(self, *args)

    bound._matched = trying  # type: ignore[method-assign]
    monkeypatch.setattr(BoundLayerSkip, "propose_together", proposing)
    engine.generate(request, temperature=1.0, top_k=0)
    assert "tpptppt" in events and events.count("t") == 3 and not bound.is_searching


def test_a_trial_leaves_every_key_as_it_was() -> None:
    model = deep_model()
    engine = engine_of(model, LayerSkip(trial_tokens=6, trial_every=1, min_confidence=0.0))
    bound = engine.drafters[0]
    assert isinstance(bound, BoundLayerSkip)
    checked = 0
    original = bound._matched

    def compared(session: Any, *given: Any) -> int:
        nonlocal checked
        row = session.placement.row
        before = session.cache.read(row, 0, session.cache.length(row))
        matched = original(session, *given)
        after = session.cache.read(row, 0, session.cache.length(row))
        for old, new in zip(before, after, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
        checked += 1
        return matched

    bound._matched = compared  # type: ignore[method-assign]
    result = engine.generate(prompts(1)[0], temperature=0.0)
    assert checked >= 3 and result.stats.by_drafter["layer_skip"].proposed


@pytest.mark.parametrize("family", ["llama", "qwen3_5", "lfm2"])
def test_a_trial_of_all_layers_says_what_was_chosen(family: str) -> None:
    """Its tokens, their noise, and the running state that it begins with are those of the text."""
    engine = engine_of(
        FAMILIES[family].build(torch.float64),
        LayerSkip(trial_tokens=5, trial_every=1, min_confidence=0.0),
    )
    bound = engine.drafters[0]
    assert isinstance(bound, BoundLayerSkip)
    original, told = bound._matched, list[int]()

    def tried(session: Any, tokens: Sequence[int], skipped: frozenset[int]) -> int:
        states, row = session.cache.states, session.placement.row
        before = None if states is None else states.held(row)
        matched = original(session, tokens, frozenset() if len(told) % 2 else skipped)
        assert states is None or states.held(row) is before
        told.append(matched)
        return matched

    bound._matched = tried  # type: ignore[method-assign]
    sampled: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 34}
    plain = engine.generate(prompts(1)[0], **sampled, speculate=False)
    result = engine.generate(prompts(1)[0], **sampled)
    assert result.tokens == plain.tokens
    assert len(told) >= 4 and all(matched == 5 for matched in told[1::2])
    assert any(matched < 5 for matched in told[::2]), "layers hardly matter: this proves nothing"


@pytest.mark.drafter_fails
def test_a_failed_trial_costs_the_drafter_and_not_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = deep_model()
    engine = engine_of(model, LayerSkip(trial_tokens=6, trial_every=1, min_confidence=0.0))
    bound = engine.drafters[0]
    assert isinstance(bound, BoundLayerSkip)
    plain = engine.generate(prompts(1)[0], temperature=0.0, speculate=False)
    original = bound.model.score

    def score(trees: Any, *args: Any, **kwargs: Any) -> Any:
        scores = original(trees, *args, **kwargs)  # keys are written before it fails
        if trees[0].num_nodes == 6:
            raise RuntimeError("out of memory")
        return scores

    monkeypatch.setattr(bound.model, "score", score)
    result = engine.generate(prompts(1)[0], temperature=0.0)
    assert result.tokens == plain.tokens


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"drafter.layer_skip.skip=1.5"):
        LayerSkip(skip=1.5)
    with pytest.raises(ConfigError, match="int3"):
        LayerSkip(weights="int3")  # type: ignore[arg-type]
    target = Target(deep_model(2))
    with pytest.raises(ConfigError, match="layers 0 to 1, not all"):
        LayerSkip(layers=(0, 1)).for_target(target, None)
    for beyond in (2, 7):
        with pytest.raises(ConfigError, match="layers 0 to 1"):
            LayerSkip(layers=(beyond,)).for_target(target, None)
    assert LayerSkip(layers=(0,)).for_target(target, None).skipped == {0}
    with pytest.raises(ConfigError, match="no layer to spare"):
        LayerSkip().for_target(Target(deep_model(1)), None)
    lending = deep_model(2)
    lending.model.layers[1].self_attn.store_full_length_kv = True
    with pytest.raises(ConfigError, match="no layer to spare"):
        LayerSkip().for_target(Target(lending), None)
    with pytest.raises(ConfigError, match="layer_skip does not"):
        engine_of(deep_model(2), LayerSkip(), **{"decode.verifier": "speculative"})
    model = deep_model(2)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="take another drafter"):
        LayerSkip().for_target(Target(model), None)
