"""Which row's are the pixels, frames and sounds of a batch: the row's whose placeholders they fill,
in the order of the batch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.errors import InputError
from mmspec.inputs.prepared import AUDIO_FEATURES
from mmspec.inputs.spans import placeholder_ids
from mmspec.state import MediaKind, MediaSpan

_BY_ROW = ("idefics2", "idefics3", "smolvlm")  # their pixels are (batch, images, ...)
_RATIOS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")  # of Mllama's images
_PIXELS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("pixel_values", "image_pixel_values"),
    "video": ("pixel_values_videos",),
    "audio": AUDIO_FEATURES,
}
_SIZES = ("image_sizes", "spatial_shapes", "image_position_ids")  # what says if images are alike
_GRIDS: dict[MediaKind, str] = {"image": "image_grid_thw", "video": "video_grid_thw"}
_BESIDE: dict[MediaKind, tuple[str, ...]] = {  # (media, ...) each, beside the pixels
    "image": (
        "image_sizes",
        "image_attention_mask",
        "pixel_attention_mask",
        "pixel_mask",
        "spatial_shapes",
        "image_position_ids",
        "image_merge_sizes",
    ),
    "video": ("second_per_grid_ts", "image_sizes_videos", "video_merge_sizes"),
    "audio": (
        "feature_attention_mask",
        "input_features_mask",
        "padding_mask",
        "audio_embed_sizes",
        "audio_attention_mask",
    ),
}

_Parts = list[dict[str, Tensor]]  # of each row


def media_of_rows(
    tokens: Sequence[Tensor],
    spans: Sequence[tuple[MediaSpan, ...]],
    model_inputs: Mapping[str, object],
    config: PreTrainedConfig,
    repeats: int,
) -> Iterator[tuple[_Parts, set[str]]]:
    """The rows' own images, videos, then audio: (inputs of each row, names that are done with)."""
    for kind, names in _PIXELS.items():
        name = next((n for n in names if isinstance(model_inputs.get(n), Tensor)), None)
        if name == "pixel_values" and isinstance(model_inputs.get("aspect_ratio_ids"), Tensor):
            yield _beside_tokens(model_inputs)
            continue
        if name is None or len(tokens) == 1:
            continue  # one row: all is its own
        runs = [[s.stop - s.start for s in row if s.kind == kind] for row in spans]
        once = {n: v[::repeats] for n, v in model_inputs.items() if isinstance(v, Tensor)}
        wanted = placeholders_of_rows(kind, tokens, config)
        parts, taken = _raw(kind, name, wanted[::repeats], runs[::repeats], once, config)
        yield [part for part in parts for _ in range(repeats)], taken


def placeholders_of_rows(
    kind: MediaKind, tokens: Sequence[Tensor], config: PreTrainedConfig
) -> list[int]:
    """Each row's placeholders."""
    kinds: tuple[MediaKind, ...] = ("video", "image") if kind == "video" else (kind,)
    counts = [0] * len(tokens)
    for own in kinds:  # some families put an image's in a video's place
        ids = placeholder_ids(config, own)
        counts = [sum(int((row == one).sum()) for one in ids) for row in tokens]
        if any(counts):
            break
    return counts


def _beside_tokens(model_inputs: Mapping[str, object]) -> tuple[_Parts, set[str]]:
    """Of images that are read beside the tokens (Mllama), (batch, images, ...): those behind a
    row's own have no aspect ratio."""
    tensors = {
        name: value for name in _RATIOS if isinstance(value := model_inputs.get(name), Tensor)
    }
    counts = (tensors["aspect_ratio_ids"] > 0).sum(dim=1).tolist()
    parts = [
        {name: value[row : row + 1, :count] for name, value in tensors.items()} if count else {}
        for row, count in enumerate(counts)
    ]
    return parts, set(tensors)


def _raw(
    kind: MediaKind,
    pixels_name: str,
    wanted: Sequence[int],
    runs: Sequence[Sequence[int]],
    model_inputs: Mapping[str, object],
    config: PreTrainedConfig,
) -> tuple[_Parts, set[str]]:
    """From pixels: of the rows, of patches with a grid a medium, or of one medium after another."""
    pixels = model_inputs[pixels_name]
    assert isinstance(pixels, Tensor)
    beside = {
        name: value
        for name in (_GRIDS.get(kind, ""), *_BESIDE[kind])
        if isinstance(value := model_inputs.get(name), Tensor)
    }
    names = {pixels_name, *beside}
    counts = model_inputs.get("batch_num_images") if kind == "image" else None
    grids = beside.get(_GRIDS.get(kind, ""))
    if len(wanted) == 1:  # all is its own
        media, rows = [0, pixels.shape[0]], [slice(None)]
    elif grids is not None:
        sizes = grids.prod(dim=1).tolist()
        media = _borders(_merged(kind, grids, beside, wanted, config), wanted, kind)
        ends = [0, *accumulate(sizes)]
        rows = [slice(ends[first], ends[last]) for first, last in pairwise(media)]
    elif config.model_type in _BY_ROW:
        media = list(range(len(wanted) + 1))
        rows = [slice(row, row + 1) for row in range(len(wanted))]
    else:
        if isinstance(counts, Tensor):
            media = [0, *accumulate(counts.tolist())]
            names.add("batch_num_images")
        else:
            each = [length for row in runs for length in row]
            if kind != "audio" or len(each) != pixels.shape[0]:  # recordings stand apart
                counted = [len(row) for row in runs]
                each = _lengths(pixels.shape[0], wanted, counted, beside)
            media = _borders(each, wanted, kind)
        rows = [slice(first, last) for first, last in pairwise(media)]
    parts: _Parts = []
    for row, (first, last) in enumerate(pairwise(media)):
        part: dict[str, Tensor] = {}
        if wanted[row]:
            part = {name: value[first:last] for name, value in beside.items()}
            part[pixels_name] = pixels[rows[row]]
            if isinstance(counts, Tensor):
                part["batch_num_images"] = counts[row : row + 1]
        parts.append(part)
    return parts, names


def _merged(
    kind: MediaKind,
    grids: Tensor,
    beside: Mapping[str, Tensor],
    wanted: Sequence[int],
    config: PreTrainedConfig,
) -> list[int]:
    """Placeholders of each medium with a grid of patches: several of them are one token."""
    patches = grids.prod(dim=1)
    merges = beside.get(f"{kind}_merge_sizes")  # a medium's own (VideoLLaMA 3)
    if merges is None:
        merge = getattr(config.vision_config, "spatial_merge_size", None)
        if merge is None:  # told by what there is; each is at least one
            own = patches * sum(wanted) // patches.sum()
            return [max(int(count), 1) for count in own]
        merges = torch.tensor(merge)
    return [int(own) for own in patches // merges.to(patches.device) ** 2]


def _lengths(
    media: int, wanted: Sequence[int], runs: Sequence[int], beside: Mapping[str, Tensor]
) -> list[int]:
    """Placeholders of each medium where its tensors do not say: all alike, unless the media differ
    in size; then each row's runs of placeholders must be one a medium."""
    sizes = next((beside[name] for name in _SIZES if name in beside), None)
    if (sizes is None or bool((sizes == sizes[0]).all())) and sum(wanted) % media == 0:
        return [sum(wanted) // media] * media
    if sum(runs) == media and all(w == 0 or r == 1 for w, r in zip(wanted, runs, strict=True)):
        return [count for count in wanted if count]
    raise InputError(
        f"got {media} images of different sizes for rows with {list(runs)} runs of placeholders; "
        "expected at most one image a row, or one prompt a call"
    )


def _borders(lengths: Sequence[int], wanted: Sequence[int], kind: str) -> list[int]:
    """(rows + 1,): the rows' media are those between two of them. `lengths` are each medium's
    tokens, `wanted` each row's placeholders."""
    borders, medium = [0], 0
    for count in wanted:
        while count > 0 and medium < len(lengths):
            count -= lengths[medium]
            medium += 1
        if count:
            raise InputError(
                f"{kind}s of {list(lengths)} tokens do not fill rows with {list(wanted)} "
                f"placeholders: expected each row's {kind}s, in order, to fill its placeholders"
            )
        borders.append(medium)
    if any(lengths[medium:]):
        raise InputError(
            f"got {len(lengths)} {kind}s, of which {len(lengths) - medium} have no placeholders"
        )
    return borders
