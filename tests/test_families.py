"""The tiny models are what the exactness matrix stands on: sane, seeded, and alive.

Alive means that the greedy text depends on the image, on early context and on position; a model
that repeats one token would pass any comparison.
"""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from families import EOS_TOKEN, FAMILIES, REFUSED, Layout, layouts_of, prompt_inputs
from transformers import PreTrainedModel

ALL = FAMILIES | REFUSED
NUM_NEW_TOKENS = 8


def _cases() -> Iterator[tuple[str, Layout]]:
    for name, family in ALL.items():
        for layout in layouts_of(family):
            yield name, layout


CASES = list(_cases())
IMAGE_CASES = [(name, layout) for name, layout in CASES if layout != "text"]


@cache
def _model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return ALL[name].build(dtype)


def _inputs(name: str, layout: Layout) -> dict[str, torch.Tensor]:
    inputs = prompt_inputs(ALL[name], layout)
    return {
        key: value.double() if value.is_floating_point() else value for key, value in inputs.items()
    }


def _last_logits(name: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return _model(name)(**inputs).logits[0, -1]  # (vocab,)


@pytest.mark.parametrize("name", ALL)
def test_weights_are_the_same_at_every_build_and_dtype(name: str) -> None:
    torch.manual_seed(0)
    first = _model(name).state_dict()
    torch.manual_seed(1)
    second = ALL[name].build(torch.float64).state_dict()
    single = ALL[name].build(torch.float32).state_dict()
    assert first.keys() == second.keys() == single.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert torch.equal(value.float(), single[key].float()), key


@pytest.mark.parametrize("name", ALL)
def test_building_leaves_the_global_random_state_alone(name: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ALL[name].build(torch.float32)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_greedy_text_runs_and_moves(name: str, layout: Layout) -> None:
    inputs = _inputs(name, layout)
    prompt = inputs["input_ids"]
    assert EOS_TOKEN not in prompt
    assert _last_logits(name, inputs).std() > 1.0
    text = _model(name).generate(**inputs, max_new_tokens=NUM_NEW_TOKENS)[0, prompt.shape[1] :]
    assert len(text) == NUM_NEW_TOKENS
    assert len(set(text.tolist())) >= 3, f"hardly moves: {text.tolist()}"


@pytest.mark.parametrize(("name", "layout"), IMAGE_CASES)
def test_every_image_changes_the_last_logits(name: str, layout: Layout) -> None:
    inputs = _inputs(name, layout)
    plain = _last_logits(name, inputs)
    names = {
        "video": "pixel_values_videos",
        "audio": "input_features",
        "two_audio": "input_features",
    }
    pixels = names.get(layout, "pixel_values")
    num_images = 2 if layout in ("two_images", "two_audio") else 1
    axis = 1 if inputs[pixels].shape[0] == 1 else 0
    size = inputs[pixels].shape[axis] // num_images
    for index in range(num_images):
        changed = inputs[pixels].clone()
        changed.narrow(axis, index * size, size).neg_()
        difference = (_last_logits(name, inputs | {pixels: changed}) - plain).abs().max()
        assert difference > 1e-2, f"image {index} changes the logits by {difference:.1e} only"


@pytest.mark.parametrize("name", ALL)
def test_early_context_and_order_change_the_last_logits(name: str) -> None:
    inputs = _inputs(name, "text")
    plain = _last_logits(name, inputs)
    early = inputs["input_ids"].clone()
    # Two sliding layers of 8 reach back 14 tokens; everyone else sees the whole prompt.
    early[0, -14 if name == "mistral_sliding" else 1] += 1
    swapped = inputs["input_ids"].clone()
    swapped[0, -6:-4] = swapped[0, -6:-4].flip(0)
    assert not torch.equal(swapped, inputs["input_ids"])
    for changed in (early, swapped):
        assert (_last_logits(name, inputs | {"input_ids": changed}) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["qwen2_sliding", "mistral_sliding", "gemma2", "gemma3_text", "gpt_oss", "gemma3"]
)
def test_the_sliding_window_really_cuts(name: str) -> None:
    model = ALL[name].build(torch.float64)
    inputs = _inputs(name, "text")
    model.config.get_text_config().sliding_window = 4096
    with torch.no_grad():
        wide = model(**inputs, use_cache=False).logits[0, -1]
    assert (wide - _last_logits(name, inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "qwen2_vl"])
def test_repetitive_prompts_repeat_and_others_do_not(name: str) -> None:
    def repeats(repetitive: bool) -> int:
        tokens = prompt_inputs(ALL[name], "text", num_text_tokens=40, repetitive=repetitive)
        ids = tokens["input_ids"][0].tolist()
        assert len(ids) == 40
        grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
        return len(grams) - len(set(grams))

    assert repeats(True) > 10
    assert repeats(False) == 0


def test_layouts_a_family_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="takes text only"):
        prompt_inputs(FAMILIES["llama"], "image_first")
    with pytest.raises(ValueError, match="takes no video"):
        prompt_inputs(FAMILIES["llava"], "video")
