"""Forms of images, videos and recordings: what the processors of all families make of them."""

import inspect
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.state import MediaKind

Form = dict[str, Tensor]
_SIDE = 28  # pixels of an image, where the model names no size
_FRAMES = 64  # of mel features, where the model names no number of positions
_MELS = (16, 128)  # of a frame, where the model names none
_SAMPLES = 120  # of sound in such a frame
_CHANNELS = 3


def forms(model: PreTrainedModel, kind: MediaKind, seed: int) -> Iterator[Form]:
    """Of one medium. Which of them the model takes is for the caller to find out; `seed` changes
    numbers, and sizes where they may differ."""
    noise = _Noise(model.dtype, seed)
    if kind == "audio":
        yield from _of_audio(model, noise)
        return
    sizes = _Sizes(getattr(model.config, "vision_config", None) or model.config)
    names = inspect.signature(model.forward).parameters.keys()
    seen = (
        _of_image(model, sizes, noise, seed) if kind == "image" else _of_video(sizes, noise, seed)
    )
    for form in seen:
        timed = {"video_second_per_grid": torch.tensor([1.0 + seed])}
        if "video_grid_thw" in form and timed.keys() <= names:
            yield {**form, **timed}
        yield form


class _Noise:
    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(seed + 1)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self._dtype)


class _Sizes:
    """What a vision tower says of its own."""

    def __init__(self, vision: object) -> None:
        self.patch = number(vision, "patch_size", 7)
        self.side = number(vision, "image_size", _SIDE)
        self.merge = number(vision, "spatial_merge_size", number(vision, "merge_size", 2))
        self.pool = number(vision, "pooling_kernel_size", 3)
        self.tiles = number(vision, "max_num_tiles", 0)
        depth = number(vision, "temporal_patch_size", number(vision, "patch_temporal", 1))
        self.depths = {depth, 1}  # frames that a patch spans


def _of_image(model: PreTrainedModel, sizes: _Sizes, noise: _Noise, seed: int) -> Iterator[Form]:
    side, patch = sizes.side, sizes.patch
    merged = {"image_merge_sizes": torch.tensor([sizes.merge])}
    for form in _on_grids("pixel_values", "image_grid_thw", sizes, noise, frames=1, seed=seed):
        yield {**form, **merged}
        yield form
        yield {"pixel_values": form["pixel_values"], "image_grid_hw": form["image_grid_thw"][:, 1:]}
    yield from _of_patches("pixel_values", "image_position_ids", sizes, noise, frames=1, seed=seed)
    size = torch.tensor([[side, side]])
    if sizes.tiles:  # of which the first is filled
        padding = torch.zeros(1, 1, sizes.tiles - 1, _CHANNELS, side, side, dtype=model.dtype)
        yield {
            "pixel_values": torch.cat([noise(1, 1, 1, _CHANNELS, side, side), padding], dim=2),
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": (torch.arange(sizes.tiles) < 1).long()[None, None],
        }
    if getattr(model.config, "image_grid_pinpoints", None):  # a base view and two tiles
        tall = torch.tensor([[2 * side, side] if seed else [side, 2 * side]])
        yield {"pixel_values": noise(1, 3, _CHANNELS, side, side), "image_sizes": tall}
    one, tiles = noise(1, _CHANNELS, side, side), noise(1, 2, _CHANNELS, side, side)
    yield {
        "image_pixel_values": tiles,
        "image_sizes": size,
        "image_attention_mask": torch.ones(1, 2, side // patch, side // patch).long(),
    }
    yield {"pixel_values": one, "pixel_mask": torch.ones(1, side, side).long()}
    yield {"pixel_values": one, "image_sizes": size}
    yield {"pixel_values": one, "high_res_pixel_values": noise(1, _CHANNELS, side, side)}
    yield {
        "pixel_values": one,
        "pixel_values_local": tiles[0],
        "num_local_patches": torch.tensor([2]),
    }
    yield {"pixel_values": one}
    yield {"pixel_values": one[None], "pixel_attention_mask": torch.ones(1, 1, side, side).long()}
    yield {"pixel_values": one[None]}
    yield {"pixel_values": tiles, "pixel_attention_mask": torch.ones(1, 2).bool()}
    yield {"pixel_values": tiles, "image_sizes": size}


def _of_video(sizes: _Sizes, noise: _Noise, seed: int) -> Iterator[Form]:
    name = "pixel_values_videos"
    merged = {"video_merge_sizes": torch.tensor([sizes.merge])}
    for frames in (2, 1):  # one alone where the model cannot tell several apart
        for form in _on_grids(name, "video_grid_thw", sizes, noise, frames=frames, seed=seed):
            yield {**form, **merged}
            yield form
    for form in _of_patches(name, "video_position_ids", sizes, noise, frames=2, seed=seed):
        yield {**form, "num_frames_per_video": torch.tensor([2])}
        yield form
    yield {name: noise(1, 4, _CHANNELS, sizes.side, sizes.side)}


def _on_grids(
    name: str, grid_name: str, sizes: _Sizes, noise: _Noise, *, frames: int, seed: int
) -> Iterator[Form]:
    """All patches in one row, and how many there are along time, height and width."""
    merge, patch = sizes.merge, sizes.patch
    for depth in sizes.depths:
        grid = torch.tensor([[frames, 2 * merge, (2 + seed) * merge]])
        count = int(grid.prod())
        yield {name: noise(count, _CHANNELS * depth * patch**2), grid_name: grid}
        if depth == 1:
            yield {name: noise(count, _CHANNELS, patch, patch), grid_name: grid}


def _of_patches(
    name: str, places_name: str, sizes: _Sizes, noise: _Noise, *, frames: int, seed: int
) -> Iterator[Form]:
    """A row of patches for each image or frame, with their places."""
    values = _CHANNELS * sizes.patch**2
    high, wide = 2 * sizes.pool, (2 + seed) * sizes.pool
    places = torch.tensor([(x, y) for y, x in product(range(high), range(wide))])
    for size in (values, values * sizes.pool**2):  # a patch, or what is pooled is one already
        yield {
            name: noise(frames, high * wide, size),
            places_name: places.expand(frames, -1, -1).clone(),
        }
    high, wide = 2 * sizes.merge, (2 + seed) * sizes.merge
    patches = noise(frames, high * wide, values)
    if frames == 1:
        shape = {"spatial_shapes": torch.tensor([[high, wide]])}
        yield {name: patches, **shape, "pixel_attention_mask": torch.ones(1, high * wide).long()}
        yield {name: patches}
    # Two views, or frames, of which every token pools four patches.
    half = sizes.side // sizes.patch // 2
    row = 2 * half
    pools = torch.arange(2 * row**2).view(2, half, 2, half, 2).transpose(2, 3).reshape(-1, 4)
    views = noise(2, row**2, values)
    if frames == 1:
        grids = {"image_grids": torch.tensor([[half] * 4]), "image_num_crops": torch.tensor([2])}
        yield {name: views, "image_token_pooling": pools, **grids}
    else:
        grids = {"video_grids": torch.tensor([[2, half, half]])}
        yield {name: views, "video_token_pooling": pools, **grids}


def _of_audio(model: PreTrainedModel, noise: _Noise) -> Iterator[Form]:
    audio = getattr(model.config, "audio_config", None)
    audio = audio or getattr(model.config, "encoder_config", None) or model.config
    names = (
        "num_mel_bins", "audio_embed_dim", "input_feat_size", "input_size", "feature_size",
        "input_dim",
    )  # fmt: skip
    named = next((n for n in (number(audio, name, 0) for name in names) if n), 0)
    frames = 2 * number(audio, "max_source_positions", number(audio, "n_window", _FRAMES // 2))
    for mels in (named,) if named else _MELS:
        mels *= number(audio, "num_stacked_frames", 1)
        yield from _of_frames(noise(1, mels, frames))
    wave = noise(1, _FRAMES * _SAMPLES)
    yield {"input_values": wave, "padding_mask": torch.ones(wave.shape).bool()}
    yield {"input_values": wave}
    yield {"input_values": wave[None]}


def _of_frames(features: Tensor) -> Iterator[Form]:
    """(1, mels, frames), or the other way round."""
    mask = torch.ones(1, features.shape[2], dtype=torch.bool)
    for one in (features, features.transpose(1, 2).contiguous()):
        yield {"input_features": one, "feature_attention_mask": mask.long()}
        yield {"input_features": one, "input_features_mask": mask.long()}
        yield {"input_features": one, "input_features_mask": mask}
        heard = torch.ones(1, _SAMPLES * mask.shape[1]).bool()
        yield {"input_features": one, "input_features_mask": mask, "padding_mask": heard}
        yield {"input_features": one}
    samples = torch.tensor([160 * features.shape[2]])
    yield {"input_features": features, "chunk_sample_lengths": samples}
    sizes = torch.tensor([8])
    yield {"audio_input_features": features.transpose(1, 2), "audio_embed_sizes": sizes}


def number(config: object, name: str, otherwise: int) -> int:
    """What a config says of itself, the first of several numbers; or `otherwise`."""
    value = getattr(config, name, None)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else otherwise
