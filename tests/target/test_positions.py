"""Positions are those that transformers' own generate gives the model: every family, any media."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, Layout, layouts_of, prompt_inputs
from matrix import model_of
from torch import Tensor, nn

from mmspec.inputs import from_inputs
from mmspec.target.positions import prompt_positions


def cases() -> Iterator[tuple[str, Layout]]:
    for family in FAMILIES.values():
        for layout in layouts_of(family):
            if layout != "text" or family.name in ("llama", "paligemma", "qwen2_vl"):
                yield family.name, layout


@pytest.mark.parametrize(("family", "layout"), list(cases()))
def test_positions_are_those_of_transformers_generate(family: str, layout: Layout) -> None:
    """Of the prompt, and of the tokens behind it: each plane goes on by one a token."""
    model = model_of(family, "float64")
    inputs = prompt_inputs(FAMILIES[family], layout)
    prompt = from_inputs(inputs, model.config)
    seen: list[Tensor] = []

    def see(module: nn.Module, args: Any, told: dict[str, Any]) -> None:
        seen.append(told["position_ids"])

    hook = model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    finally:
        hook.remove()
    positions, offsets = prompt_positions(model, prompt)
    planes = positions.shape[0] if positions.ndim == 3 else 1
    first, *steps = (ids.reshape(-1, ids.shape[-1])[-planes:] for ids in seen)
    assert torch.equal(first, positions.reshape(planes, -1))
    for index, ids in enumerate(steps, start=prompt.num_tokens):
        assert ids[:, 0].tolist() == [index + offset for offset in offsets]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("layout", ["image_middle", "two_images", "video"])
def test_a_prompt_that_does_not_say_which_tokens_are_media_has_the_same(
    family: str, layout: Layout
) -> None:
    model = model_of(family, "float64")
    inputs = prompt_inputs(FAMILIES[family], layout)
    bare = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    assert len(bare) < len(inputs)
    told, found = (prompt_positions(model, from_inputs(i, model.config)) for i in (inputs, bare))
    assert torch.equal(found[0], told[0]) and found[1] == told[1]
