"""Inputs that are already processed: taken as they are, or refused with what is wrong."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig

from mmspec.errors import InputError
from mmspec.inputs import from_inputs

CONFIG = LlavaConfig(image_token_index=7)
IDS = torch.tensor([[1, 7, 7, 2]])
PIXELS = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_good_batch_of_one_is_taken_as_it_is(dtype: torch.dtype) -> None:
    pixels = PIXELS.to(dtype)
    inputs = {
        "input_ids": IDS.int(),
        "attention_mask": torch.ones(1, 4),
        "pixel_values": pixels,
        "position_ids": torch.arange(4)[None],
        "labels": IDS,
        "note": "no tensor",
    }
    prompt = from_inputs(inputs, CONFIG)
    assert prompt.token_ids.tolist() == [1, 7, 7, 2] and prompt.token_ids.dtype == torch.int64
    assert list(prompt.model_inputs) == ["pixel_values"]
    assert prompt.model_inputs["pixel_values"] is pixels
    assert [(span.start, span.stop) for span in prompt.media] == [(1, 3)]
    assert len(inputs) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, ["NoneType", "(1, seq)", "return_tensors='pt'"]),
        ({"input_ids": [[1]]}, ["list", "return_tensors='pt'"]),
        ({"input_ids": None, "prompt": "x"}, ["a record", "'prompt'", "mmspec.Request(prompt"]),
        ({"input_ids": IDS[0]}, ["(4,)", "(1, seq)"]),
        ({"input_ids": IDS.repeat(2, 1)}, ["(2, 4)", "one request at a time"]),
        ({"input_ids": IDS[:, :0]}, ["empty", "at least one token"]),
        ({"input_ids": IDS.float()}, ["float32", "integers"]),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, ["1 zeros of 4", "padding=False"]),
        ({"attention_mask": torch.ones(1, 3)}, ["(1, 3)", "(1, 4)"]),
        ({"position_ids": torch.tensor([[0, 1, 2, 4]])}, ["position_ids", "go up by one"]),
        ({"position_ids": torch.arange(3)[None]}, ["position_ids", "(1, 3)", "(1, 4)"]),
        ({"position_ids": torch.arange(4).expand(2, 4)}, ["(2, 4)", "expected the shape (1, 4)"]),
        ({"position_ids": torch.arange(4)}, ["position_ids", "(4,)", "(1, 4)"]),
        ({"position_ids": torch.zeros(3, 1, 3)}, ["(3, 1, 3)", "planes"]),
        ({"pixel_values": None}, ["2 image placeholder tokens", "no pixel values"]),
        (
            {"pixel_values": None, "input_features": torch.zeros(1, 4, 8)},
            ["2 image placeholder tokens", "no pixel values"],
        ),
        ({"input_ids": torch.tensor([[1, 2]])}, ["pixel_values", "no image", "[7]"]),
    ],
)
def test_bad_inputs_are_clear_errors(changes: dict[str, Tensor], words: list[str]) -> None:
    inputs = {"input_ids": IDS, "pixel_values": PIXELS, **changes}
    with pytest.raises(InputError) as caught:
        from_inputs(inputs, CONFIG)
    for word in words:
        assert word in str(caught.value)


def test_a_text_model_needs_ids_only() -> None:
    assert from_inputs({"input_ids": IDS}, LlamaConfig()).media == ()
