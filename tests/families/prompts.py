"""Prompts of batch size one, as each family's real processor would lay them out."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .audio import (
    AUDIO_END_TOKEN,
    AUDIO_START_TOKEN,
    AUDIO_TOKEN,
    NUM_FRAMES,
    NUM_MELS,
    VOXTRAL_TOKENS,
)
from .family import BOS_TOKEN, EOS_TOKEN, Family
from .vision import (
    ANYRES_SIZES,
    FIRST_MEDIA_TOKEN,
    GLOBAL_IMAGE_TOKEN,
    IMAGE_SIZE,
    IMAGE_TOKEN,
    PATCH_SIZE,
    QWEN_MERGE_SIZE,
    QWEN_PATCH_SIZE,
    QWEN_TEMPORAL_PATCH_SIZE,
    VIDEO_TOKEN,
    VISION_END_TOKEN,
    VISION_START_TOKEN,
)

Layout = Literal[
    "text", "image_first", "image_middle", "image_last", "two_images", "video", "audio", "two_audio"
]

_SIDE = IMAGE_SIZE // PATCH_SIZE  # patches along one side of a fixed-size tower
_NUM_VIDEO_FRAMES = 4
_NUM_MLLAMA_TILES = 4
_PHRASE_LENGTHS = (5, 4, 6)
_QWEN_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@dataclass(frozen=True)
class _Media:
    """One image or video: its tokens in the prompt and what it adds to the model's inputs.

    Tensors of the same name from several media are concatenated along `axis`.
    """

    tokens: list[int]
    tensors: dict[str, torch.Tensor]
    axis: int = 0


def prompt_inputs(
    family: Family,
    layout: Layout,
    *,
    num_text_tokens: int = 24,
    seed: int = 0,
    repetitive: bool = True,
) -> dict[str, torch.Tensor]:
    """The keyword arguments of a native forward: `input_ids` (1, seq), pixels, grids, type ids.

    `num_text_tokens` counts the text with its BOS, not the placeholders and delimiters of media.
    With `repetitive` the text is made of a few phrases that come again, so that there is something
    to copy. EOS never appears. Floating tensors are float32: cast them to the model's dtype.
    The same seed gives the same text for all families and layouts.

    Raises ValueError where the family cannot take the layout.
    """
    _check_layout(family, layout)
    text = _text_tokens(num_text_tokens, seed, repetitive)
    generator = torch.Generator().manual_seed(seed + 1)

    def image(index: int, num_images: int = 1) -> _Media:
        return _IMAGES[family.name](generator, index, num_images)

    match layout:
        case "text":
            parts: list[list[int] | _Media] = [text]
        case "image_first":
            parts = [text[:1], image(0), text[1:]]
        case "image_middle":
            half = num_text_tokens // 2
            parts = [text[:half], image(0), text[half:]]
        case "image_last":
            parts = [text, image(0)]
        case "two_images":
            third = num_text_tokens // 3
            parts = [text[:third], image(0, 2), text[third:-third], image(1, 2), text[-third:]]
        case "audio":
            half = num_text_tokens // 2
            parts = [text[:half], _AUDIO[family.name](generator, 0), text[half:]]
        case "two_audio":
            third = num_text_tokens // 3
            first, second = (_AUDIO[family.name](generator, index) for index in range(2))
            parts = [text[:third], first, text[third:-third], second, text[-third:]]
        case "video":
            # A short question after a long video: in Qwen2.5-VL the largest position is then
            # inside the video, not at the last token.
            parts = [text[:-4], _VIDEOS[family.name](generator), text[-4:]]
    return _assemble(family, parts)


def _check_layout(family: Family, layout: Layout) -> None:
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; choose from {get_args(Layout)}")
    if layout == "video" and not family.takes_video:
        raise ValueError(f"{family.name} takes no video")
    if layout != "text" and family.kind == "text":
        raise ValueError(f"{family.name} takes text only, got layout {layout!r}")
    if layout not in layouts_of(family):
        raise ValueError(f"{family.name} takes {layouts_of(family)}, got layout {layout!r}")


def layouts_of(family: Family) -> tuple[Layout, ...]:
    """The layouts that the family takes."""
    everywhere: tuple[Layout, ...] = ("text",)
    if family.kind == "audio":
        return (*everywhere, "audio", "two_audio")
    if family.kind == "vision":
        images: tuple[Layout, ...] = ("image_first", "image_middle", "image_last", "two_images")
        return (*everywhere, *images, *(("video",) if family.takes_video else ()))
    return everywhere


def _text_tokens(num_tokens: int, seed: int, repetitive: bool) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    first = EOS_TOKEN + 1

    def draw(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    tokens = [BOS_TOKEN]
    if repetitive:
        phrases = [draw(first, FIRST_MEDIA_TOKEN, length) for length in _PHRASE_LENGTHS]
        tokens += phrases[0] + phrases[1]
        while len(tokens) < num_tokens:
            tokens += phrases[draw(0, len(phrases), 1)[0]]
    else:
        tokens += draw(first, FIRST_MEDIA_TOKEN, num_tokens)
    return tokens[:num_tokens]


def _assemble(family: Family, parts: list[list[int] | _Media]) -> dict[str, torch.Tensor]:
    tokens: list[int] = []
    pieces: dict[str, list[torch.Tensor]] = defaultdict(list)
    axis = 0
    for part in parts:
        if isinstance(part, _Media):
            tokens += part.tokens
            axis = part.axis
            for name, tensor in part.tensors.items():
                pieces[name].append(tensor)
        else:
            tokens += part
    input_ids = torch.tensor([tokens])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs |= {name: torch.cat(tensors, dim=axis) for name, tensors in pieces.items()}

    is_image = (input_ids == IMAGE_TOKEN).long()
    if family.name in _QWEN_FAMILIES:
        inputs["mm_token_type_ids"] = is_image + 2 * (input_ids == VIDEO_TOKEN).long()
    elif family.name == "gemma3":
        inputs["token_type_ids"] = is_image
    elif family.name == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(input_ids)  # all prefix: bidirectional
    elif family.name == "llava_onevision" and "pixel_values" in inputs:
        inputs["batch_num_images"] = torch.tensor([len(inputs["pixel_values"])])
    elif family.name == "mllama" and "pixel_values" in inputs:
        # A token sees the image before it; of its tiles only the first is filled.
        seen = is_image.cumsum(dim=1)  # (1, seq)
        num_images = inputs["pixel_values"].shape[1]
        mask = torch.zeros(*input_ids.shape, num_images, _NUM_MLLAMA_TILES, dtype=torch.long)
        for index in range(num_images):
            mask[..., index, 0] = (seen == index + 1).long()
        inputs["cross_attention_mask"] = mask
    return inputs


def _square_pixels(generator: torch.Generator, *leading: int) -> torch.Tensor:
    return torch.randn(*leading, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def _llava_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    return _Media([IMAGE_TOKEN] * _SIDE**2, {"pixel_values": _square_pixels(generator, 1)})


def _anyres_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    """A base view and two tiles, side by side (first image) or one above the other (second)."""
    height, width = ANYRES_SIZES[index]
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    num_tokens = _SIDE**2 + rows * (columns + 1)  # one newline after each row of the tiles
    return _Media(
        [IMAGE_TOKEN] * num_tokens,
        {
            "pixel_values": _square_pixels(generator, 1, 3),
            "image_sizes": torch.tensor([[height, width]]),
        },
    )


def _onevision_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    """Tiled when alone; among several images each is one view and a newline."""
    if num_images == 1:
        return _anyres_image(generator, index, num_images)
    return _Media(
        [IMAGE_TOKEN] * (_SIDE**2 + 1),
        {
            "pixel_values": _square_pixels(generator, 1, 1),
            "image_sizes": torch.tensor([ANYRES_SIZES[index]]),
        },
    )


def _onevision_video(generator: torch.Generator) -> _Media:
    num_tokens = _NUM_VIDEO_FRAMES * (_SIDE // 2) ** 2 + 1
    pixels = _square_pixels(generator, 1, _NUM_VIDEO_FRAMES)
    return _Media([VIDEO_TOKEN] * num_tokens, {"pixel_values_videos": pixels})


def _qwen_patches(generator: torch.Generator, grid: tuple[int, int, int]) -> torch.Tensor:
    num_patches = grid[0] * grid[1] * grid[2]
    return torch.randn(
        num_patches, 3 * QWEN_TEMPORAL_PATCH_SIZE * QWEN_PATCH_SIZE**2, generator=generator
    )


def _qwen_num_tokens(height: int, width: int) -> int:
    return height * width // QWEN_MERGE_SIZE**2


def _qwen_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    grid = ((1, 4, 6), (1, 6, 4))[index]
    placeholders = [IMAGE_TOKEN] * _qwen_num_tokens(*grid[1:])
    return _Media(
        [VISION_START_TOKEN, *placeholders, VISION_END_TOKEN],
        {"pixel_values": _qwen_patches(generator, grid), "image_grid_thw": torch.tensor([grid])},
    )


def _qwen_video(generator: torch.Generator) -> _Media:
    grid = (_NUM_VIDEO_FRAMES, 4, 4)
    placeholders = [VIDEO_TOKEN] * (grid[0] * _qwen_num_tokens(*grid[1:]))
    return _Media(
        [VISION_START_TOKEN, *placeholders, VISION_END_TOKEN],
        {
            "pixel_values_videos": _qwen_patches(generator, grid),
            "video_grid_thw": torch.tensor([grid]),
        },
    )


def _qwen2_5_video(generator: torch.Generator) -> _Media:
    video = _qwen_video(generator)
    return _Media(video.tokens, {**video.tensors, "second_per_grid_ts": torch.tensor([1.0])})


def _qwen3_video(generator: torch.Generator) -> _Media:
    """Each frame stands alone, after its time stamp as text."""
    video = _qwen_video(generator)
    frame = [VIDEO_TOKEN] * _qwen_num_tokens(4, 4)
    tokens: list[int] = []
    for index in range(_NUM_VIDEO_FRAMES):
        time_stamp = [EOS_TOKEN + 1 + index, EOS_TOKEN + 20]
        tokens += [*time_stamp, VISION_START_TOKEN, *frame, VISION_END_TOKEN]
    return _Media(tokens, video.tensors)


def _idefics_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    placeholders = [IMAGE_TOKEN] * (_SIDE // 2) ** 2
    return _Media(
        [VISION_START_TOKEN, GLOBAL_IMAGE_TOKEN, *placeholders, VISION_START_TOKEN],
        {
            "pixel_values": _square_pixels(generator, 1, 1),
            "pixel_attention_mask": torch.ones(1, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long),
        },
        axis=1,
    )


def _framed_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    """A pooled image between a start and an end token (InternVL, Gemma3)."""
    placeholders = [IMAGE_TOKEN] * (_SIDE // 2) ** 2
    return _Media(
        [VISION_START_TOKEN, *placeholders, VISION_END_TOKEN],
        {"pixel_values": _square_pixels(generator, 1)},
    )


def _mllama_image(generator: torch.Generator, index: int, num_images: int) -> _Media:
    """One token; the pixels fill one of four tiles and enter by cross-attention."""
    empty_tiles = torch.zeros(1, 1, _NUM_MLLAMA_TILES - 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    pixels = torch.cat([_square_pixels(generator, 1, 1, 1), empty_tiles], dim=2)
    return _Media(
        [IMAGE_TOKEN],
        {
            "pixel_values": pixels,
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0, 0, 0]]]),
        },
        axis=1,
    )


def _qwen2_audio(generator: torch.Generator, index: int) -> _Media:
    """Recordings of 32 and 21 mel frames; the second is padded."""
    frames = (NUM_FRAMES, 21)[index]
    mask = (torch.arange(NUM_FRAMES) < frames).long()[None]
    num_tokens = (((frames - 1) // 2 + 1) - 2) // 2 + 1
    return _Media(
        [AUDIO_START_TOKEN, *[AUDIO_TOKEN] * num_tokens, AUDIO_END_TOKEN],
        {"input_features": _mels(generator) * mask[:, None], "feature_attention_mask": mask},
    )


def _voxtral_audio(generator: torch.Generator, index: int) -> _Media:
    """One chunk of full length, then a recording of two."""
    chunks = 1 + index
    mels = torch.cat([_mels(generator) for _ in range(chunks)])
    placeholders = [AUDIO_TOKEN] * (VOXTRAL_TOKENS * chunks)
    return _Media([AUDIO_START_TOKEN, *placeholders], {"input_features": mels})


def _mels(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(1, NUM_MELS, NUM_FRAMES, generator=generator)


_AUDIO: dict[str, Callable[[torch.Generator, int], _Media]] = {
    "qwen2_audio": _qwen2_audio,
    "voxtral": _voxtral_audio,
}

_IMAGES: dict[str, Callable[[torch.Generator, int, int], _Media]] = {
    "llava": _llava_image,
    "llava_next": _anyres_image,
    "llava_onevision": _onevision_image,
    "qwen2_vl": _qwen_image,
    "qwen2_5_vl": _qwen_image,
    "qwen3_vl": _qwen_image,
    "qwen3_5": _qwen_image,
    "smolvlm": _idefics_image,
    "idefics3": _idefics_image,
    "internvl": _framed_image,
    "paligemma": _llava_image,
    "gemma3": _framed_image,
    "mllama": _mllama_image,
}

_VIDEOS: dict[str, Callable[[torch.Generator], _Media]] = {
    "llava_onevision": _onevision_video,
    "qwen2_vl": _qwen_video,
    "qwen2_5_vl": _qwen2_5_video,
    "qwen3_vl": _qwen3_video,
    "qwen3_5": _qwen3_video,
}
