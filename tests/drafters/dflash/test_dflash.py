"""DFlash: a block is what transformers' own assistant drafts of it, its context is the target's own
states, texts are the target's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ragged
import torch
from asked import Asked
from dflash_heads import BLOCK, LAYERS, MASK, assistant, context_of, knowing, loaded, unfitted
from families import FAMILIES, prompt_inputs
from listener import native
from matrix import model_of
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import DFlashTokenCandidateGenerator

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.dflash import DFlash, DFlashHead
from mmspec.drafters.dflash.drafter import BoundDFlash
from mmspec.drafters.eagle import session as eagle_session
from mmspec.drafters.eagle.session import EagleSession
from mmspec.errors import ConfigError
from mmspec.requests import Request, Result
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.tree import TokenTree

CHAIN: dict[str, Any] = {"top_k": 1, "min_confidence": 0.0}
Firsts = dict[tuple[int, ...], int]
SLIDING, FULL = "sliding_attention", "full_attention"


def engine_of(drafter: DFlash, *, family: str = "llama", prefix: int = 0, **decode: Any) -> Any:
    config = Config(
        decode=DecodeConfig(**{"controller": "fixed", "max_nodes": 20, "max_rows": 3, **decode}),
        cache=CacheConfig(prefix_bytes=prefix),
    )
    return mmspec.load(model_of(family, "float64"), config=config, drafter=drafter)


def requests_of(sampling: str = "greedy", family: str = "llama", **shape: Any) -> list[Request]:
    shape = {"lengths": (30, 17, 23), "new": (16,) * 3} | shape
    return ragged.requests_of(family, sampling, first_seed=5, **shape)


def accepted(results: Sequence[Result]) -> int:
    return sum(result.stats.by_drafter["dflash"].accepted for result in results)


# ORACLE: transformers' assistant, and whole sequences


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_types": [FULL, FULL]},
        {"layer_types": [FULL, SLIDING], "sliding_window": 9},
        {"target_layer_ids": [1, 0, 0], "rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                                            "rope_theta": 5e5}},
    ],
)  # fmt: skip
def test_a_block_is_the_one_that_transformers_assistant_drafts(
    changes: dict[str, Any], tmp_path: Path, asked: list[Asked]
) -> None:
    model = model_of("llama", "float64")
    made = assistant(model, **changes)
    engine_of(DFlash(loaded(made, tmp_path), **CHAIN)).generate(requests_of())
    assert len(asked) > 20
    for _, _, text, _, tree in asked:
        assert tree.num_nodes == BLOCK
        assert list(tree.tokens) == drafted(model, made, text), f"at {len(text)} tokens"


@torch.no_grad()
def drafted(model: Any, made: Any, text: Sequence[int]) -> list[int]:
    """The last token of the text, and what transformers' own generator drafts behind it."""
    ids = torch.tensor([text])
    states = model(ids[:, :-1], output_hidden_states=True).hidden_states
    generator = DFlashTokenCandidateGenerator(
        made,
        model.get_input_embeddings(),
        model.get_output_embeddings(),
        GenerationConfig(max_length=len(text) + 2 * BLOCK),
    )
    # Some versions count the states that they ask for as hidden states, others as layers.
    asked_for = generator.model_kwargs_overrides["output_hidden_states"]
    layers = made.config.target_layer_ids
    given = {own: states[layer + 1] for own, layer in zip(asked_for, layers, strict=True)}
    places = {
        "position_ids": torch.arange(len(text))[None],
        "attention_mask": torch.ones(1, len(text), dtype=torch.long),
    }
    candidates, _ = generator.get_candidates(
        ids, places, SimpleNamespace(hidden_states=given), False, 0
    )
    return candidates[0, len(text) - 1 :].tolist()


@pytest.fixture
def firsts(monkeypatch: pytest.MonkeyPatch) -> Firsts:
    """By the text: where the context began that a block was drafted by."""
    right, found = BoundDFlash._block, Firsts()

    def noted(self: Any, placements: Any, texts: Any, depth: int) -> Tensor:
        for placement, text in zip(placements, texts, strict=True):
            found[tuple(text)] = placement.position_offsets[0]
        return right(self, placements, texts, depth)

    monkeypatch.setattr(BoundDFlash, "_block", noted)
    return found


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_step_with_little_room_has_the_beginning_of_the_same_block(
    nodes: int, asked: list[Asked], firsts: Firsts
) -> None:
    head = unfitted(model_of("llama", "float64"))
    _loud(head)
    engine_of(DFlash(head, **CHAIN), max_nodes=nodes).generate(requests_of())
    assert {one.tree.num_nodes for one in asked} == {1 + nodes}
    assert_asked(head, asked, firsts)


SHAPES: dict[str, dict[str, Any]] = {
    "whole": {},
    "mixed": {"layer_types": [SLIDING, FULL], "sliding_window": 7},
    "causal": {"is_causal": True},
    "sliding": {"layer_types": [SLIDING] * 2, "sliding_window": 7, "is_causal": False},
    "figures": {"attention_bias": True, "num_key_value_heads": 4},
    "vocabulary": {"draft_vocab_size": 40},
}


@pytest.mark.parametrize("sampling", ["greedy", "t1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_said_of_a_block_is_what_whole_sequences_say(
    shape: str, sampling: str, asked: list[Asked], firsts: Firsts
) -> None:
    model = model_of("llama", "float64")
    head = unfitted(model, **SHAPES[shape])
    _loud(head)
    if head.lm_head is not None:
        head.d2t.copy_(torch.arange(40) + 3)
    engine_of(DFlash(head, **CHAIN)).generate(requests_of(sampling))
    assert_asked(head, asked, firsts)


@pytest.mark.parametrize("prefix", [0, 2**20])
def test_long_texts_and_reused_beginnings_leave_a_context_that_begins_later(
    prefix: int, asked: list[Asked], firsts: Firsts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few tokens read on the way, so that prompts are read in chunks before."""
    monkeypatch.setattr(eagle_session, "CHUNK", 5)
    monkeypatch.setattr(eagle_session, "_READ_TOKENS", 7)
    block, held, window = BoundDFlash._block, list[int](), 4096 if prefix else 16

    def behind(self: BoundDFlash, placements: Sequence[Placement], *args: Any) -> Tensor:
        held.extend(self.cache.length(placement.row) for placement in placements)
        return block(self, placements, *args)

    monkeypatch.setattr(BoundDFlash, "_block", behind)
    model = model_of("llama", "float64")
    head = unfitted(model)
    _loud(head)
    engine = engine_of(DFlash(head, window=window, **CHAIN), prefix=prefix)
    for _ in range(1 + bool(prefix)):
        asked.clear()
        firsts.clear()
        results = engine.generate(requests_of(new=(40, 20, 30)))
    assert (results[0].stats.reused_tokens > 0) == bool(prefix)
    assert max(firsts.values()) > 10 and max(held) <= window
    assert_asked(head, asked, firsts)


def test_a_text_that_nobody_asked_about_is_read_when_somebody_does(
    asked: list[Asked], firsts: Firsts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five steps the drafter is asked at one."""
    right, calls = BoundDFlash.propose_together, [0]

    def together(self: Any, sessions: Any, texts: Any, budget: int) -> list[TokenTree]:
        calls[0] += 1
        if calls[0] % 5:
            return [TokenTree.root(tokens[-1]) for tokens in texts]
        return right(self, sessions, texts, budget)

    monkeypatch.setattr(BoundDFlash, "propose_together", together)
    head = unfitted(model_of("llama", "float64"))
    _loud(head)
    engine_of(DFlash(head, **CHAIN)).generate(requests_of(new=(30, 30, 30)))
    drafted = [one for one in asked if one.tree.num_nodes > 1]
    assert 10 < len(drafted) < len(asked) / 2
    assert_asked(head, drafted, firsts)


def assert_asked(head: DFlashHead, asked: Sequence[Asked], firsts: Firsts) -> None:
    model = model_of("llama", "float64")
    assert len(asked) >= 10
    assert len({one.tree.tokens[1:] for one in asked}) > 5, "it says the same of all texts"
    for one in asked:
        with torch.no_grad():
            states = model(torch.tensor([one.text[:-1]]), output_hidden_states=True).hidden_states
        assert_said(model, head, one, context_of(states)[0], firsts[tuple(one.text)])


@torch.no_grad()
def assert_said(model: Any, head: DFlashHead, asked: Asked, context: Tensor, first: int) -> None:
    """The chain is what whole sequences say best."""
    _, session, text, _, tree = asked
    assert isinstance(session, EagleSession)
    logits = whole(model, head, context, text[-1], first)
    scores = session.guide.warp(logits)
    if not session.guide.is_greedy:
        places = [len(text) + n for n in range(len(logits))]
        scores = scores + session.guide.noise_at(places, logits.shape[-1])
    best = tuple(scores.argmax(-1).tolist())
    assert tree.tokens[1:] == best[: min(asked.budget, BLOCK - 1)], f"at {len(text)} tokens"


def whole(model: Any, head: DFlashHead, context: Tensor, token: int, first: int) -> Tensor:
    """(block - 1, vocab) of a context (tokens, layers * hidden), of which the first are not known:
    as the paper writes it, keys of context and block side by side."""
    config, known = head.config, context.shape[0]
    features = head.hidden_norm(head.fc(context[first:]))
    embedding = model.get_input_embeddings().weight
    states = embedding[torch.tensor([token] + [MASK] * (config.block_size - 1))]
    places = torch.arange(first, known + config.block_size)
    rotation = head._rotary(places[None], states.dtype)
    for layer, reach, is_causal in zip(head.layers, config.reaches, config.is_causal, strict=True):
        own: Any = layer
        attention, count = own.self_attn, len(states)
        read = own.input_layernorm(states)
        joined = torch.cat([features, read]).unsqueeze(0)
        query, keys, values = (
            project(joined).unflatten(-1, (-1, config.block.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, keys = rotation(attention.q_norm(query)), rotation(attention.k_norm(keys))
        distance = places[-count:, None] - places[None]
        mask = torch.ones_like(distance, dtype=torch.bool)
        if is_causal:
            mask &= distance >= 0
        if reach.window is not None:
            mask &= distance < reach.window
        group = query.shape[1] // keys.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, -count:],
            keys.repeat_interleave(group, 1),
            values.repeat_interleave(group, 1),
            attn_mask=mask,
        )
        states = states + attention.o_proj(out.transpose(1, 2).flatten(-2)[0])
        states = states + own.mlp(own.post_attention_layernorm(states))
    if head.lm_head is None:
        return model.get_output_embeddings()(head.norm(states))[1:]
    logits = torch.full((count - 1, config.block.vocab_size), -torch.inf, dtype=states.dtype)
    for place, said in enumerate(head.lm_head(head.norm(states))[1:]):
        for token, logit in enumerate(said):
            logits[place, token + head.d2t[token]] = logit
    return logits


def _loud(head: DFlashHead) -> None:
    """So that what it says depends on the text."""
    draw = torch.Generator().manual_seed(3)
    for name, weight in head.named_parameters():
        if "norm" not in name:
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.3)


def test_figures_of_its_own_scale_its_embedding_and_its_logits(asked: list[Asked]) -> None:
    """The target's own softcap is not what it speaks by."""
    model = model_of("gemma2", "float64")
    assert model.config.final_logit_softcapping
    figures = {"mask_token_id": MASK, "target_layer_ids": list(LAYERS)}
    own = {"input_embedding_scale": 3.0, "output_multiplier": 0.5, "final_logit_softcapping": 2.0}
    plain, scaled = (
        DFlash(unfitted(model, dflash_config=one)).for_target(Target(model), None).head
        for one in (figures, figures | own)
    )
    states = torch.randn(1, 2, plain.config.block.hidden_size, dtype=torch.float64)
    raw = model.get_output_embeddings()(states)
    torch.testing.assert_close(plain.logits(states), raw)
    torch.testing.assert_close(scaled.logits(states), 2.0 * torch.tanh(raw * 0.5 / 2.0))
    ids, places = torch.tensor([[5, 6, 7]]), torch.arange(3)[None]
    heard = list[Tensor]()
    for head in (plain, scaled):
        head.module.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
        head.states(ids, places, _keys_alone, _keys_alone)
    torch.testing.assert_close(heard[1], 3.0 * heard[0])
    torch.testing.assert_close(heard[0], model.get_input_embeddings().weight[ids])


def _keys_alone(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    return query.transpose(1, 2)


# END TO END


def test_a_head_that_knows_the_text_is_accepted_in_long_runs(tmp_path: Path) -> None:
    requests = requests_of(lengths=(10,) * 4, layouts=("text",) * 4, new=(30,) * 4)
    plain = engine_of(DFlash(unfitted(model_of("llama", "float64")))).generate(
        requests, speculate=False
    )
    prompts = [one.prompt["input_ids"][0].tolist() for one in requests]  # type: ignore[index,call-overload]
    texts = [[*ids, *one.tokens] for ids, one in zip(prompts, plain, strict=True)]
    head = knowing(model_of("llama", "float64"), texts, tmp_path)
    for options, least in (({}, 4.0), (CHAIN, 4.0), ({"block": 3}, 2.0)):
        engine = engine_of(DFlash(head, **options))
        results = engine.generate(requests)
        assert [one.tokens for one in results] == [one.tokens for one in plain]
        steps = sum(len(one.tokens) / one.stats.tokens_per_step for one in results)
        assert sum(len(one.tokens) for one in results) / steps > least
    sampled = [replace(one, seed=row, temperature=0.05) for row, one in enumerate(requests)]
    for draw, verifier in (("coupled", "coupled"), ("sample", "speculative")):
        engine = engine_of(DFlash(head, draw=draw), verifier=verifier)  # type: ignore[arg-type]
        assert accepted(engine.generate(sampled)) > 20


@pytest.mark.parametrize("options", [{}, {"draw": "sample", "profile": (2, 1)}])
def test_a_reduced_vocabulary_drafts_its_own_tokens_alone(
    options: dict[str, Any], asked: list[Asked]
) -> None:
    head = unfitted(model_of("llama", "float64"), draft_vocab_size=40)
    head.d2t.copy_(torch.arange(40) + 3)
    verifier = "recursive" if options else "coupled"
    engine = engine_of(DFlash(head, min_confidence=0.0, **options), verifier=verifier)
    results = engine.generate(requests_of("t1"))
    own = set(range(3, 82, 2))
    drafted = [token for one in asked for token in one.tree.tokens[1:]]
    assert len(drafted) > 100 and set(drafted) <= own
    if not options:
        plain = engine.generate(requests_of("t1"), speculate=False)
        assert [one.tokens for one in results] == [one.tokens for one in plain]


def test_images_are_in_the_states_that_it_reads(asked: list[Asked]) -> None:
    """Positions count tokens one by one, whatever the target counts."""
    family = "qwen2_vl"
    model = model_of(family, "float64")
    head = unfitted(model)
    _loud(head)
    engine = engine_of(DFlash(head, **CHAIN), family=family)
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.0}
    layouts = ("image_first", "image_last")
    inputs = [prompt_inputs(FAMILIES[family], layout, num_text_tokens=20) for layout in layouts]  # type: ignore[arg-type]
    requests = [Request(ids, **options) for ids in inputs]
    results = engine.generate(requests)
    states = [native(family, one, two.tokens) for one, two in zip(requests, results, strict=True)]
    heard, prompts = list(asked), [ids["input_ids"][0].tolist() for ids in inputs]
    for ids, result in zip(inputs, results, strict=True):
        assert result.tokens == engine.generate(ids, **options, speculate=False).tokens
    for one in heard:
        row = next(n for n, ids in enumerate(prompts) if one.text[: len(ids)] == ids)
        assert_said(model, head, one, context_of(states[row])[: len(one.text) - 1], 0)
    assert len(heard) > 10


# LAW: what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 1}, {"block": BLOCK + 1}, {"top_k": 0}, {"min_confidence": 2.0}, {"draw": "best"},
        {"profile": (1, 0)}, {"profile": (1,) * BLOCK}, {"window": 3}, {"dtype": "int8"},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DFlash(unfitted(model_of("llama", "float64")), **wrong)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 12}, "hidden_size: 12"),
        ({"vocab_size": 7}, "vocab_size: 7"),
        ({"num_target_layers": 36}, "num_target_layers: 36"),
        ({"dflash_config": {"mask_token_id": MASK, "target_layer_ids": [1, 33]}}, "34"),
        ({"dflash_config": {"mask_token_id": MASK, "target_layer_ids": [-2]}}, "-1"),
        ({"dflash_config": {"mask_token_id": 112, "target_layer_ids": [0]}}, "mask_token_id"),
    ],
)
def test_a_head_of_another_target_is_refused(changes: dict[str, Any], told: str) -> None:
    model = model_of("llama", "float64")
    with pytest.raises(ConfigError, match=told):
        DFlash(unfitted(model, **changes)).for_target(Target(model), None)
