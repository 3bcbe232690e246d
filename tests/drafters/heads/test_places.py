"""Where the tokens of a text stand: as the target's own rule says of the longer text."""

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import model_of

from mmspec.drafters.heads import TextPlaces
from mmspec.inputs import from_inputs
from mmspec.target import Target


@pytest.mark.parametrize("layout", ["image_middle", "image_last", "text"])
def test_places_go_on_behind_a_prompt_as_the_targets_do(layout: str) -> None:
    model = model_of("qwen2_5_vl", "float64")
    inputs = prompt_inputs(FAMILIES["qwen2_5_vl"], layout)  # type: ignore[arg-type]
    ids = inputs["input_ids"]
    longer = torch.cat([ids, torch.full((1, 9), 5)], dim=1)
    types = (longer == model.config.image_token_id).long()
    expected, _ = model.model.get_rope_index(
        input_ids=longer, mm_token_type_ids=types, image_grid_thw=inputs.get("image_grid_thw")
    )
    prompt = from_inputs(inputs, model.config)
    places = TextPlaces.of(Target(model), prompt, planes=3)
    count = longer.shape[1]
    assert torch.equal(places.at(0, count), expected[:, 0])
    for first in range(count):
        assert torch.equal(places.at(first, count - first), expected[:, 0, first:])
    assert (places.num_uneven > 0) == (layout != "text") and places.num_uneven < ids.shape[1]
    last = torch.tensor(places.offsets) + count - 1
    assert torch.equal(last, expected[:, 0, -1])
    counted = TextPlaces.of(Target(model), prompt, planes=1)
    assert counted.offsets == (0,) and not counted.num_uneven
    assert torch.equal(counted.at(3, 4), torch.arange(3, 7)[None])


def test_a_head_of_planes_beside_a_target_that_counts_in_one() -> None:
    prompt = from_inputs(
        {"input_ids": torch.arange(3, 9)[None]}, model_of("llama", "float64").config
    )
    places = TextPlaces.of(Target(model_of("llama", "float64")), prompt, planes=3)
    assert torch.equal(places.at(1, 2), torch.arange(1, 3).expand(3, -1)) and not places.num_uneven
