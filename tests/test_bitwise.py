"""Bitwise mode: in low precision too, speculation changes no token and no bit of a logit."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import DRAFTERS, Cell, letters, model_of, must_accept, run_cell

import mmspec
import mmspec.attention.interface
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError, ModelError
from mmspec.requests import Request
from mmspec.target import Target
from mmspec.target.bits import differing_node, reason_against
from mmspec.target.probe import probe

_PLACES = (("llama", "text"), ("qwen2_sliding", "text"), ("qwen2_5_vl", "image_middle"))
_REUSES = ("none", "chunks", "chunks_and_prefixes")


def _cells(dtype: Any, *, is_whole: bool) -> list[Cell]:
    """Each drafter alone and in a batch, greedy and sampled; of those, every drafter once."""
    cells = []
    for number, drafter in enumerate(DRAFTERS):
        own = [*product((1, 3), ("greedy", "t1"), _PLACES)]
        chosen = own if is_whole else [own[(number * 5 + 7) % len(own)]]
        for batch, sampling, (family, layout) in chosen:
            reuse = _REUSES[(number + batch) % 3]
            cells.append(
                Cell(
                    family, drafter, sampling, batch, layout,
                    reuse=reuse, dtype=dtype, exactness="bitwise",
                )
            )  # fmt: skip
    return cells


def _accepted(cell: Cell) -> int:
    """How many drafted tokens; none of the text's differs."""
    outcome = run_cell(cell, max_nodes=9)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    return outcome.accepted


@pytest.mark.parametrize("cell", _cells("bfloat16", is_whole=False), ids=str)
def test_no_bit_differs_from_plain_decoding(cell: Cell) -> None:
    accepted = _accepted(cell)
    assert accepted or not must_accept(cell), "no draft was accepted: this cell proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_no_bit_differs_in_the_whole_matrix(drafter: str, dtype: str) -> None:
    """A drafter that guesses may guess all of one short text wrong, not all texts."""
    cells = [cell for cell in _cells(dtype, is_whole=True) if cell.drafter == drafter]
    accepted = [_accepted(cell) for cell in cells]
    assert any(accepted) or not must_accept(cells[0])


def engine_of(
    exactness: str,
    family: str = "llama",
    *,
    prefix_bytes: int = 0,
    drafter: Any = "none",
    **options: Any,
) -> Engine:
    config = Config(
        decode=DecodeConfig(exactness=exactness, max_nodes=9, max_rows=3, **options),
        cache=CacheConfig(prefix_bytes=prefix_bytes),
    )
    return mmspec.load(model_of(family, "bfloat16"), letters(), config=config, drafter=drafter)


def request_of(
    seed: int, num_tokens: int = 40, layout: Any = "text", family: str = "llama"
) -> Request:
    inputs = prompt_inputs(FAMILIES[family], layout, num_text_tokens=num_tokens, seed=seed)
    return Request(inputs, max_new_tokens=12, temperature=0.0, output_logits=True)


def test_standard_mode_does_differ() -> None:
    """Without this, the cells above could pass in any mode."""
    requests = [request_of(0), request_of(1), request_of(2)]
    drafter = PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)
    for exactness, is_same in (("standard", False), ("bitwise", True)):
        engine = engine_of(exactness, drafter=drafter, controller="fixed")
        plain, drafted = (engine.generate(requests, speculate=how) for how in (False, True))
        assert sum(len(result.stats.by_drafter) for result in drafted) > 0
        pairs = [(a.logits, b.logits) for a, b in zip(plain, drafted, strict=True)]
        assert (
            all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None) == is_same
        )


def test_what_is_reused_is_whole_chunks_and_changes_no_bit() -> None:
    engine = engine_of("bitwise", prefix_bytes=2**24, prefill_chunk=16)
    fresh = engine_of("bitwise", prefill_chunk=16).generate(request_of(0, 60))
    assert fresh.logits is not None
    longer = request_of(0, 60)
    ids = longer.prompt["input_ids"]  # type: ignore[index,call-overload]
    shorter = replace(longer, prompt={"input_ids": ids[:, :40]})
    engine.generate(shorter)
    for reused in (32, 48):
        again = engine.generate(longer)
        assert again.stats.reused_tokens == reused
        assert again.tokens == fresh.tokens and torch.equal(fresh.logits, again.logits)  # type: ignore[arg-type]


def test_images_are_prefilled_in_one_piece_and_not_reused() -> None:
    engine = engine_of("bitwise", "qwen2_5_vl", prefix_bytes=2**24, prefill_chunk=16)
    request = request_of(0, 40, "image_middle", "qwen2_5_vl")
    first, again = engine.generate(request), engine.generate(request)
    assert (again.stats.reused_tokens, again.stats.reused_media) == (0, 0)
    assert torch.equal(first.logits, again.logits)  # type: ignore[arg-type]


def test_a_standard_engine_leaves_nothing_to_a_bitwise_one() -> None:
    standard, bitwise = (
        engine_of(name, prefix_bytes=2**24, prefill_chunk=16) for name in ("standard", "bitwise")
    )
    bitwise.share_cache(standard)
    standard.generate(request_of(0))
    assert bitwise.generate(request_of(0)).stats.reused_tokens == 0
    assert bitwise.generate(request_of(0)).stats.reused_tokens == 32
    assert standard.generate(request_of(0)).stats.reused_tokens > 32


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(ModelError, match="mixture of experts"):
        engine_of("bitwise", "qwen3_moe")


def test_a_models_own_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention=auto"):
        engine_of("bitwise", attention="model")


def test_an_unknown_exactness_is_named() -> None:
    with pytest.raises(ConfigError, match="standard, bitwise"):
        engine_of("exact")


def test_a_model_whose_rows_meet_is_refused() -> None:
    """As a library would that sums up a row by the others beside it."""
    model = FAMILIES["llama"].build(torch.bfloat16)
    norm = model.model.norm

    def meet(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 2.0**-6 * output[:, -1:].mean()

    norm.register_forward_hook(meet)
    config = Config(decode=DecodeConfig(exactness="bitwise", max_nodes=9, max_rows=3))
    with pytest.raises(ModelError, match="gives node 1 of row 0 other bits than"):
        mmspec.load(model, letters(), config=config)


@pytest.mark.parametrize("place", [(0, 9), (2, 0), (1, 4)])
def test_a_model_that_rounds_otherwise_at_one_place_is_refused(place: tuple[int, int]) -> None:
    """As a library would that splits some tiles of a product and not others."""
    model = FAMILIES["llama"].build(torch.bfloat16)

    def split(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if output.shape[:2] == (3, 10):
            output[place] = torch.nextafter(output[place], torch.zeros_like(output[place]))
        return output

    model.model.layers[0].mlp.down_proj.register_forward_hook(split)
    config = Config(decode=DecodeConfig(exactness="bitwise", max_nodes=9, max_rows=3))
    with pytest.raises(ModelError, match=rf"gives node {place[1]} of row {place[0]} other bits"):
        mmspec.load(model, letters(), config=config)


def test_positions_that_a_neighbour_changes_are_refused() -> None:
    model = FAMILIES["llama"].build(torch.bfloat16)
    target = probe(model)[0]
    assert reason_against(target) is None
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    model.config.rope_parameters = rope
    why = reason_against(target)
    assert why is not None and "longer than 32 tokens" in why
    rope["original_max_position_embeddings"] = model.config.max_position_embeddings
    assert reason_against(target) is None  # no text is as long


def test_experts_are_found_by_their_module_too() -> None:
    model = FAMILIES["llama"].build(torch.bfloat16)
    model.model.layers[0].mlp.experts = torch.nn.Linear(2, 2)
    why = reason_against(probe(model)[0])
    assert why is not None and "mixture of experts" in why


def test_a_layer_that_asks_for_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmspec.attention.interface, "_is_understood", lambda *_: False)
    with pytest.raises(ModelError, match=r"^\w+ of layer 0 asks its attention for more") as told:
        engine_of("bitwise")
    assert str(told.value).count("is not possible here") == 1


def test_a_large_shape_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(decode=DecodeConfig(exactness="bitwise", max_nodes=64, max_rows=2))
    mmspec.load(model_of("llama", "bfloat16"), letters(), config=config, drafter="none")
    assert "2 rows of 65 nodes" in caplog.text and "decode.max_rows" in caplog.text


def test_weights_whose_kernels_round_by_the_step_are_refused() -> None:
    model = FAMILIES["llama"].build(torch.bfloat16)
    target = probe(model)[0]
    model.is_quantized = True
    for settings, is_refused in (({"load_in_8bit": True}, True), ({"load_in_4bit": True}, False)):
        model.config.quantization_config = settings
        why = reason_against(target)
        assert (why is not None and "quantised" in why) == is_refused


def test_a_model_of_few_positions_is_tried_within_them() -> None:
    model: Any = FAMILIES["gpt2"].build(torch.float32)
    model.config.max_position_embeddings = 48
    table = model.transformer.wpe
    table.weight = torch.nn.Parameter(table.weight[:48].clone())
    assert differing_node(Target(model, attention="tree"), rows=2, nodes=6) is None
