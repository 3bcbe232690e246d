"""Items of media: each placeholder token is its own image's."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, Layout, prompt_inputs

from mmspec.encoders.media import MediaItem, join, split_media
from mmspec.inputs import from_inputs
from mmspec.state import MediaSpan, Prompt

VISION = [f.name for f in FAMILIES.values() if f.kind == "vision"]


def prompt_of(family: str, layout: Layout, seed: int = 0) -> Prompt:
    inputs = prompt_inputs(FAMILIES[family], layout, num_text_tokens=20, seed=seed)
    return from_inputs(inputs, FAMILIES[family].build(torch.float32).config)


@pytest.mark.parametrize("family", VISION)
def test_two_images_are_two_items_with_tensors_of_their_own(family: str) -> None:
    prompt = prompt_of(family, "two_images")
    media = split_media(prompt)
    assert media is not None
    items = media.items["image"]
    if family == "llava_onevision":  # its input says how many images there are: features differ
        assert len(items) == 1
        return
    assert len(items) == 2
    lengths = [span.stop - span.start for span in prompt.media]
    assert [item.num_tokens for item in items] == lengths
    assert items[0].digest != items[1].digest
    joined = join(items)
    assert set(joined) == set(items[0].tensors)
    assert all(torch.equal(joined[name], prompt.model_inputs[name]) for name in joined)


def test_the_same_image_has_the_same_digest_in_any_company() -> None:
    both = prompt_of("qwen2_vl", "two_images")
    media = split_media(both)
    assert media is not None
    first = media.items["image"][0]
    alone = Prompt(both.token_ids[: both.media[0].stop], dict(first.tensors), both.media[:1])
    single = split_media(alone)
    assert single is not None
    assert single.items["image"][0].digest == first.digest


@pytest.mark.parametrize("change", ["value", "dtype", "shape", "grid", "name"])
def test_a_digest_covers_all_that_an_encoder_reads(change: str) -> None:
    prompt = prompt_of("qwen2_vl", "image_first")
    inputs = {n: v for n, v in prompt.model_inputs.items() if n != "mm_token_type_ids"}
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    other = {
        "value": {**inputs, "pixel_values": pixels.index_fill(0, torch.tensor([3]), 0.5)},
        "dtype": {**inputs, "pixel_values": pixels.view(torch.int32)},
        "shape": {**inputs, "pixel_values": pixels.view(pixels.shape[0], -1, 2)},
        "grid": {**inputs, "image_grid_thw": grid[:, [0, 2, 1]]},
        "name": {"pixel_values": pixels, "image_grid_twh": grid},
    }[change]

    def digest(model_inputs: dict[str, torch.Tensor]) -> bytes:
        media = split_media(Prompt(prompt.token_ids, model_inputs, prompt.media))
        assert media is not None
        return media.items["image"][0].digest

    assert digest(dict(inputs)) == digest({n: v.clone() for n, v in inputs.items()})
    assert digest(other) != digest(dict(inputs))


def test_tiles_of_one_length_share_a_span_or_not() -> None:
    pixels = torch.randn(4, 3, 8, 8)

    def items(*spans: tuple[int, int]) -> list[tuple[int, int]]:
        media = tuple(MediaSpan("image", *span) for span in spans)
        split = split_media(
            Prompt(torch.zeros(60, dtype=torch.long), {"pixel_values": pixels}, media)
        )
        assert split is not None
        return [(item.start, item.stop) for item in split.items["image"]]

    assert items((0, 20)) == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert items((0, 15), (16, 21)) == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert items((0, 3), (4, 9), (10, 12), (20, 30)) == [(0, 3), (3, 8), (8, 10), (10, 20)]
    assert items((0, 13), (14, 21)) == [(0, 20)], "no telling whose token is whose"


def test_images_of_several_sizes_side_by_side_are_one_item() -> None:
    """Of 4 and 6 tokens, or of 5 each: what they have together does not tell."""

    def items(*sizes: tuple[int, int]) -> list[tuple[int, int]]:
        inputs = {"pixel_values": torch.randn(2, 3, 4, 8), "image_sizes": torch.tensor(sizes)}
        prompt = Prompt(torch.zeros(10, dtype=torch.long), inputs, (MediaSpan("image", 0, 10),))
        split = split_media(prompt)
        assert split is not None
        return [(item.start, item.stop) for item in split.items["image"]]

    assert items((4, 8), (4, 8)) == [(0, 5), (5, 10)]
    assert items((4, 4), (4, 8)) == [(0, 10)]


def test_of_as_many_images_as_tokens_each_has_its_own() -> None:
    """Llama 3.2 Vision: of whatever size, also side by side."""
    inputs = {
        "pixel_values": torch.randn(1, 2, 4, 3, 8, 8),
        "aspect_ratio_ids": torch.tensor([[1, 2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0, 0, 0], [1, 1, 0, 0]]]),
    }
    prompt = Prompt(torch.zeros(4, dtype=torch.long), inputs, (MediaSpan("image", 1, 3),))
    split = split_media(prompt)
    assert split is not None
    assert [(item.start, item.stop) for item in split.items["image"]] == [(0, 1), (1, 2)]


def test_an_image_a_span_has_its_tokens_whatever_its_share_of_the_patches() -> None:
    """HunYuan-VL: one token more a line, and two more an image."""
    grids = torch.tensor([[1, 4, 4], [1, 4, 8]])
    inputs = {"pixel_values": torch.randn(48, 6), "image_grid_thw": grids}
    spans = (MediaSpan("image", 0, 22), MediaSpan("image", 23, 61))
    split = split_media(Prompt(torch.zeros(61, dtype=torch.long), inputs, spans))
    assert split is not None
    assert [item.num_tokens for item in split.items["image"]] == [22, 38], "not 20 and 40"


def test_views_beside_images_are_of_no_image_by_their_place() -> None:
    """DeepSeek-OCR 2: two views of the first image and none of the second are as many as images."""
    inputs = {
        "pixel_values": torch.randn(2, 3, 8, 8),
        "num_local_patches": torch.tensor([2, 0]),
        "pixel_values_local": torch.randn(2, 3, 4, 4),
    }
    spans = (MediaSpan("image", 2, 12), MediaSpan("image", 14, 20))
    ids = torch.zeros(30, dtype=torch.long)
    views, plain = (
        split_media(Prompt(ids, {n: inputs[n] for n in names}, spans))
        for names in (inputs, ("pixel_values", "num_local_patches"))
    )
    assert views is not None and plain is not None
    assert [(item.start, item.stop) for item in views.items["image"]] == [(0, 16)]
    assert [(item.start, item.stop) for item in plain.items["image"]] == [(0, 10), (10, 16)]


def test_placeholders_are_counted_by_kind() -> None:
    media = split_media(
        Prompt(
            torch.zeros(30, dtype=torch.long),
            {"pixel_values": torch.zeros(2, 3, 4, 4), "pixel_values_videos": torch.zeros(1, 4)},
            (MediaSpan("image", 2, 6), MediaSpan("video", 8, 14), MediaSpan("image", 20, 24)),
        )
    )
    assert media is not None and media.num_items == 3
    assert media.placeholders(0, 30) == {"image": (0, 8), "video": (0, 6)}
    assert media.placeholders(4, 10) == {"image": (2, 4), "video": (0, 2)}
    assert media.placeholders(14, 20) == {}
    assert [item.start for item in media.needed("image", 2, 4)] == [0]
    assert [item.start for item in media.needed("image", 3, 5)] == [0, 4]


def test_inputs_without_placeholders_cannot_be_split() -> None:
    ids = torch.zeros(5, dtype=torch.long)
    assert split_media(Prompt(ids, {"pixel_values": torch.zeros(1, 3, 4, 4)})) is None
    text = split_media(Prompt(ids, {"token_type_ids": torch.zeros(1, 5, dtype=torch.long)}))
    assert text is not None and text.num_items == 0


def test_a_mask_of_frames_is_the_recordings_where_the_tokens_are_as_many() -> None:
    inputs = prompt_inputs(FAMILIES["qwen2_audio"], "audio", num_text_tokens=22)
    mask = inputs["feature_attention_mask"]
    prompt = from_inputs(inputs, FAMILIES["qwen2_audio"].build(torch.float32).config)
    assert mask.shape == (1, prompt.num_tokens), "else this proves nothing"
    media = split_media(prompt)
    assert media is not None
    assert "feature_attention_mask" in media.items["audio"][0].tensors


def test_a_mask_of_patches_is_the_images_where_the_tokens_are_as_many() -> None:
    """As LFM2-VL's, of an image in one tile: (tiles, patches)."""
    inputs = {
        "pixel_values": torch.rand(1, 16, 12),
        "pixel_attention_mask": torch.ones(1, 16).int(),
    }
    prompt = Prompt(torch.arange(16), inputs, (MediaSpan("image", 3, 7),))
    media = split_media(prompt)
    assert media is not None
    assert set(media.items["image"][0].tensors) == set(inputs)


def test_what_is_said_of_all_tiles_at_once_keeps_them_together() -> None:
    """As of rows of images (Idefics3): their axis is the second."""
    prompt = Prompt(torch.zeros(10, dtype=torch.long), {}, (MediaSpan("image", 1, 9),))
    for beside, num_items in ((torch.ones(1, 2), 2), (torch.ones(2), 1), (torch.ones(1, 3), 1)):
        inputs = {"pixel_values": torch.rand(1, 2, 3, 4, 4), "image_scales": beside}
        media = split_media(replace(prompt, model_inputs=inputs))
        assert media is not None and len(media.items["image"]) == num_items


def test_a_medium_of_one_number_has_a_digest_however_it_was_cut_out() -> None:
    """Its stride means nothing, and is kept: every second of two sizes, as of two sequences."""
    size = torch.tensor([5, 5])[::2]
    assert MediaItem("audio", 0, 5, {"sizes": size}).digest == (
        MediaItem("audio", 0, 5, {"sizes": torch.tensor([5])}).digest
    )
