"""Speculation changes no token: whatever the drafter, tree, budget, batch, image and family.

The default run covers every family with every drafter and every pair of options; `make matrix`
runs all cells.
"""

from typing import Any

import pytest
import torch
from families import FAMILIES, layouts_of, prompt_inputs
from matrix import (
    COMPRESSED,
    RETRIEVALS,
    SAMPLINGS,
    Cell,
    all_cells,
    covering_cells,
    model_of,
    must_accept,
    run_cell,
)

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.requests import Request

_GENERATED = {
    "text": ("text",),
    "vision": ("image_middle", "image_last"),
    "audio": ("audio", "two_audio"),
}
FLOAT32_FAMILIES = ("llama", "gemma3_text", "llava", "qwen2_5_vl")


@pytest.mark.parametrize("cell", covering_cells(), ids=str)
def test_speculative_tokens_are_the_plain_ones(cell: Cell) -> None:
    outcome = run_cell(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    if must_accept(cell):
        assert outcome.accepted > 0, "no drafted token was accepted: this cell proves nothing"
    if cell.reuse == "chunks_and_prefixes":
        assert (outcome.reused > 0) == (cell.family != "paligemma"), f"{outcome.reused} reused"


@pytest.mark.parametrize("drafter", RETRIEVALS)
def test_the_default_cells_have_each_source_of_retrieval_alone_and_batched_with_images(
    drafter: str,
) -> None:
    cells = [cell for cell in covering_cells() if cell.drafter == drafter]
    met = {(cell.batch, cell.layout == "text") for cell in cells}
    assert met == {(1, True), (1, False), (3, True), (3, False)}
    assert {cell.sampling for cell in cells} == set(SAMPLINGS)


@pytest.mark.parametrize(
    "cell",
    [
        cell
        for cell in all_cells("float32")
        if cell.family in FLOAT32_FAMILIES
        and cell.batch == 3
        and cell.drafter == "adversary"
        and cell.reuse == "none"
    ],
    ids=str,
)
def test_speculative_tokens_are_the_plain_ones_in_float32(cell: Cell) -> None:
    outcome = run_cell(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)


@pytest.mark.parametrize("drafter", [*(f"compressed_{name}" for name in COMPRESSED), "cascade"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("family", "layout"), [("llama", "text"), ("qwen2_vl", "image_middle")])
def test_every_policy_drafts_for_one_and_for_three(
    drafter: str, batch: int, family: str, layout: str
) -> None:
    outcome = run_cell(Cell(family, drafter, "t1", batch, layout))
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted >= 3 * batch


@pytest.mark.parametrize("drafter", ["eagle1", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("family", "layout"), [("llama", "text"), ("qwen2_vl", "image_middle")])
def test_every_kind_of_head_drafts_for_one_and_for_three(
    drafter: str, batch: int, family: str, layout: str
) -> None:
    outcome = run_cell(Cell(family, drafter, "t1", batch, layout, reuse="chunks_and_prefixes"))
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted >= 2 * batch


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
    [(family.name, layout) for family in FAMILIES.values() for layout in _GENERATED[family.kind]],
)
def test_greedy_tokens_are_those_of_transformers_generate(family: str, layout: str) -> None:
    model = model_of(family, "float64")
    inputs = prompt_inputs(FAMILIES[family], layout, num_text_tokens=30)  # type: ignore[arg-type]
    as_model = {
        name: value.double() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    expected = model.generate(**as_model, max_new_tokens=20, do_sample=False)
    engine = mmspec.load(model, config=Config(decode=DecodeConfig(max_nodes=16)))
    result = engine.generate(inputs, max_new_tokens=20, temperature=0.0)
    assert list(result.tokens) == expected[0, inputs["input_ids"].shape[1] :].tolist()


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
    engine = mmspec.load(model_of(family, "float64"))
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
