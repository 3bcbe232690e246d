"""Speculation changes no token: whatever the drafter, tree, budget, batch, image and family.

The default run covers every family with every kind of drafter, and every pair of options;
`make matrix` runs all cells. That plain decoding says what transformers says is the law of
integrations/test_transformers.py.
"""

from itertools import combinations, cycle, product
from typing import Any

import pytest
import torch
from adversary import Adversary
from families import FAMILIES, layouts_of, prompt_inputs
from families.text import text_shape, without_head_dim
from matrix import (
    BATCHES,
    COMPRESSED,
    CONTROLLERS,
    DRAFTERS,
    IN_TURN,
    LAYOUTS,
    REUSES,
    SAMPLINGS,
    Cell,
    covering_cells,
    engine_of,
    has_states,
    model_of,
    must_accept,
    run_cell,
)
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.requests import Request

_WATCHING = (*(f"compressed_{p}" for p in COMPRESSED if p != "window"), "cascade")


@pytest.mark.parametrize(
    ("cell", "choosing"), [*zip(covering_cells(), cycle(("host", "device")), strict=False)], ids=str
)
def test_speculative_tokens_are_the_plain_ones(cell: Cell, choosing: str) -> None:
    outcome = run_cell(cell, choosing=choosing)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    if must_accept(cell):
        assert outcome.accepted > 0, "no drafted token was accepted: this cell proves nothing"
    # Who chooses by queries has the newest tokens read anew, before which no state was kept here.
    is_kept = not (has_states(cell.family) and cell.drafter in _WATCHING)
    if cell.reuse == "chunks_and_prefixes" and is_kept:
        assert (outcome.reused > 0) == (cell.family != "paligemma"), f"{outcome.reused} reused"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_cells_have_each_family_with_every_kind_of_drafter_and_option(
    family: str,
) -> None:
    cells = [cell for cell in covering_cells() if cell.family == family]
    drafters = {cell.drafter for cell in cells}
    kinds = IN_TURN if "retrieval_dense" in drafters else IN_TURN[:-2]
    alone = {"adversary", "layer_skip"}
    if kinds is IN_TURN:
        alone |= {"prompt_lookup", "adversary+draft_same"}
    assert alone < drafters and all(drafters & {*kind} for kind in kinds)
    for number, axis in enumerate((SAMPLINGS, BATCHES, LAYOUTS[FAMILIES[family].kind]), start=1):
        assert {cell.options[number] for cell in cells} == {*axis}
    assert {cell.reuse for cell in cells} == {*REUSES}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_default_cells_have_every_pair_of_options(kind: str) -> None:
    """Of the drafters that most families have, met by the families of each kind together."""
    axes = (SAMPLINGS, BATCHES, LAYOUTS[kind], CONTROLLERS, REUSES)
    cells = [cell for cell in covering_cells() if FAMILIES[cell.family].kind == kind]
    drafters = {*DRAFTERS} - {drafter for drafters in IN_TURN for drafter in drafters}
    met = {pair for cell in cells for pair in combinations(enumerate(cell.options), 2)}
    wanted = (combinations(enumerate(options), 2) for options in product(drafters, *axes))
    assert {pair for pairs in wanted for pair in pairs} <= met


@pytest.mark.parametrize("drafter", [drafter for kind in IN_TURN for drafter in kind])
def test_the_default_cells_have_each_drafter_with_every_option(drafter: str) -> None:
    """Also those of which a family has one in turn; images or recordings count as one option."""
    cells = [cell for cell in covering_cells() if cell.drafter == drafter]
    assert {cell.sampling for cell in cells} == {*SAMPLINGS}
    assert {cell.batch for cell in cells} == {*BATCHES}
    assert {cell.reuse for cell in cells} == {*REUSES}
    assert {cell.layout == "text" for cell in cells} == {True, False}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "text"),
        ("gemma3_text", "text"),
        *product(("llava", "qwen2_5_vl"), ("text", "image_middle")),
    ],
)
def test_speculative_tokens_are_the_plain_ones_in_float32(
    family: str, layout: str, sampling: str
) -> None:
    """A batch from either layout on has all of them."""
    outcome = run_cell(Cell(family, "adversary", sampling, 3, layout, dtype="float32"))
    assert not outcome.mismatches, "; ".join(outcome.mismatches)


@pytest.mark.slow
@pytest.mark.parametrize("policy", COMPRESSED)
@pytest.mark.parametrize(
    ("family", "layout"),
    [("llama", "text"), ("gemma3_text", "text"), ("qwen2_5_vl", "image_middle")],
)
def test_compressed_kv_changes_no_token_behind_8k(policy: str, family: str, layout: Any) -> None:
    """A ragged batch of three long prompts by chunks, the view a sixteenth of the text."""
    drafter = CompressedKV(
        policy="window+snapkv" if policy == "composed" else policy,
        budget=400,
        recent=48,
        max_share=0.1,
        min_confidence=0.0,
    )
    config = Config(
        decode=DecodeConfig(max_nodes=16, controller="fixed", prefill_chunk=1024),
        cache=CacheConfig(prefix_bytes=0),
    )
    engine = mmspec.load(model_of(family, "float64"), config=config, drafter=drafter)
    requests = [
        Request(
            prompt_inputs(
                FAMILIES[family], layout, num_text_tokens=length, seed=length, repetitive=False
            ),
            max_new_tokens=80,
            seed=length,
            **SAMPLINGS["t1"],
        )
        for length in (7900, 5300, 8000)
    ]
    results = engine.generate(requests)
    for request, result in zip(requests, results, strict=True):
        assert result.tokens == engine.generate(request, speculate=False).tokens
        assert result.stats.by_drafter["compressed_kv"].accepted > 10


@pytest.mark.parametrize("max_nodes", [0, 1, 2, 5, 64])
def test_the_budget_changes_no_token(max_nodes: int) -> None:
    cell = Cell("qwen2_vl", "adversary", "t1", 3, "image_middle")
    outcome = run_cell(cell, max_nodes=max_nodes)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert (outcome.accepted > 0) == (max_nodes > 0)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        (family.name, layout)
        for family in FAMILIES.values()
        for layout in ("two_images", "video", "two_audio")
        if layout in layouts_of(family)
    ],
)
def test_several_images_videos_and_recordings_change_no_token(family: str, layout: str) -> None:
    inputs = prompt_inputs(FAMILIES[family], layout, num_text_tokens=30)  # type: ignore[arg-type]
    engine = engine_of(family, config=Config(), drafters=[PromptLookup()])
    options = {**SAMPLINGS["t1"], "max_new_tokens": 20, "seed": 5}
    speculative = engine.generate(inputs, **options)
    assert speculative.tokens == engine.generate(inputs, **options, speculate=False).tokens


def test_the_image_matters() -> None:
    """Without this, every image cell could pass on a model that never looks."""
    inputs = prompt_inputs(FAMILIES["llava"], "image_first", num_text_tokens=20)
    other = {**inputs, "pixel_values": torch.flip(inputs["pixel_values"], dims=(-1,))}
    engine = mmspec.load(model_of("llava", "float64"))
    first, second = (engine.generate(x, temperature=0, max_new_tokens=16) for x in (inputs, other))
    assert first.tokens != second.tokens


@pytest.mark.parametrize("choosing", ["host", "device"])
def test_positions_that_turn_with_the_length_turn_with_each_texts_own(choosing: str) -> None:
    """Phi's longrope: behind a length all of a forward's positions are turned otherwise, whichever
    text is so long, or would be by a draft."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 8, "long_factor": [9.0] * 8}
    torch.manual_seed(0)
    config = LlamaConfig(**text_shape(), rope_parameters={**rope, **factors})
    model = LlamaForCausalLM(config).double().eval()
    asked = [
        Request(
            prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=count, seed=count),
            max_new_tokens=16,
            temperature=0.0,
            ignore_eos=True,
            output_logits=True,
        )
        for count in (6, 20, 29, 33)
    ]
    decode = {"controller": "fixed", "choosing": choosing, "overlap": "always"}
    settings = [f"decode.{name}={value}" for name, value in decode.items()]
    engine = mmspec.load(model, drafter="none", overrides=settings)
    alone = [engine.generate(one, max_new_tokens=16) for one in asked]
    ids = [tuple(one.prompt["input_ids"][0].tolist()) for one in asked]  # type: ignore[call-overload,index]
    truths = {prompt: one.tokens for prompt, one in zip(ids, alone, strict=True)}
    drafting = mmspec.load(model, drafter=Adversary(truths, 112), overrides=settings)
    by_itself = [drafting.generate(one) for one in asked]
    assert sum(one.stats.steps for one in by_itself) < 4 * 15, "nothing was accepted"
    for found in (by_itself, engine.generate(asked), drafting.generate(asked)):
        for right, said in zip(alone, found, strict=True):
            assert said.tokens == right.tokens
            torch.testing.assert_close(said.logits, right.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("choosing", ["host", "device"])
def test_a_text_that_crosses_phis_border_is_generates_own(choosing: str) -> None:
    """There it computes all keys anew, as of a prompt. transformers 5.17 forgets the text there."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 8, "long_factor": [9.0] * 8}
    shape = {**without_head_dim(text_shape()), "original_max_position_embeddings": 32}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**shape, rope_parameters={**rope, **factors}))
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0 if weight.ndim == 2 else 1.0)  # that keys matter
    prompts = [
        prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=count, seed=count)
        for count in (6, 20, 29, 32, 33)
    ]
    said = []
    for prompt in prompts:
        text = prompt["input_ids"]
        last = text.shape[1] + 24
        for until in (min(33, last), last):
            if (left := until - text.shape[1]) > 0:
                options = {"max_new_tokens": left, "do_sample": False, "eos_token_id": None}
                text = model.generate(text, **options)
        said.append(text[0].tolist())
    ids = [tuple(p["input_ids"][0].tolist()) for p in prompts]
    expected = {one: tuple(text[len(one) :]) for one, text in zip(ids, said, strict=True)}
    settings = ["decode.controller=fixed", f"decode.choosing={choosing}", "decode.overlap=always"]
    for drafter in ("none", Adversary(expected, 112)):
        engine = mmspec.load(model, drafter=drafter, overrides=settings)
        found = engine.generate(
            [Request(p, temperature=0.0, max_new_tokens=24, ignore_eos=True) for p in prompts]
        )
        assert [one.tokens for one in found] == list(expected.values())
