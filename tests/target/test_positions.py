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
