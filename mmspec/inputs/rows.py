"""A batch as transformers' generate hands it on -> one Prompt a row, padding left out.

Images, videos and recordings are given to rows by their placeholder tokens: each medium belongs to
the row whose placeholders it fills, in the order of the batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.encoders.media import CROSS_MASK
from mmspec.errors import InputError
from mmspec.inputs.prepared import AUDIO_FEATURES
from mmspec.inputs.spans import find_spans, placeholder_ids
from mmspec.state import MediaKind, MediaSpan, Prompt

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
    "audio": ("feature_attention_mask", "input_features_mask", "padding_mask"),
}


def split_rows(
    input_ids: Tensor,
    model_inputs: Mapping[str, object],
    config: PreTrainedConfig,
    *,
    repeats: int = 1,
) -> list[Prompt]:
    """The prompts of a batch: `input_ids` (batch, seq), padded wherever `attention_mask` (batch,
    seq) in `model_inputs` is 0, and the model's other inputs: of the tokens (batch, seq) or
    (planes, batch, seq), or of the media, as pixels or, from transformers 5.2x on, as
    `mm_encoder_outputs`. `repeats` rows, one behind the other, are of one prompt, and so is each
    entry of pixels there so often: not the media of one row, then those of the next. Nothing is
    mutated.

    Raises InputError where it is not clear which row an input belongs to.
    """
    mask = model_inputs.get("attention_mask")
    kept = mask.bool() if isinstance(mask, Tensor) else torch.ones_like(input_ids).bool()
    if kept.shape != input_ids.shape:
        raise InputError(
            f"got attention_mask {tuple(kept.shape)} for input_ids {tuple(input_ids.shape)}; "
            "expected the same shape: give the whole prompt, not what follows a cached prefix"
        )
    tokens = [row[keep].to("cpu", torch.int64) for row, keep in zip(input_ids, kept, strict=True)]
    spans = [find_spans(ids, config) for ids in tokens]
    own: list[dict[str, Tensor]] = [{} for _ in tokens]
    taken = {"attention_mask", "cache_position"}
    _check_positions(model_inputs.get("position_ids"), kept)
    for parts, names in _media(tokens, spans, model_inputs, config, repeats):
        taken |= names
        for inputs, part in zip(own, parts, strict=True):
            inputs.update(part)
    for name, value in model_inputs.items():
        if not isinstance(value, Tensor) or name in taken:
            continue
        if name == CROSS_MASK and "aspect_ratio_ids" in model_inputs:  # (batch, seq, images, tiles)
            for row, (inputs, keep) in enumerate(zip(own, kept, strict=True)):
                if "aspect_ratio_ids" in inputs:
                    num_images = inputs["aspect_ratio_ids"].shape[1]
                    inputs[name] = value[row : row + 1, keep.to(value.device), :num_images]
        elif value.shape[-2:] == input_ids.shape:
            for row, (inputs, keep) in enumerate(zip(own, kept, strict=True)):
                inputs[name] = value[..., row : row + 1, keep.to(value.device)]
        elif name == "position_ids" and value.shape == (1, input_ids.shape[1]):
            continue  # the same for all: counted from 0
        elif len(tokens) == 1:
            own[0][name] = value
        else:
            raise InputError(
                f"got {name} of shape {tuple(value.shape)} in a batch of {len(tokens)}; it cannot "
                "be told which row each part belongs to: expected one prompt a call"
            )
    return [
        Prompt(ids, inputs, media) for ids, inputs, media in zip(tokens, own, spans, strict=True)
    ]


_Parts = list[dict[str, Tensor]]  # of each row


def _media(
    tokens: Sequence[Tensor],
    spans: Sequence[tuple[MediaSpan, ...]],
    model_inputs: Mapping[str, object],
    config: PreTrainedConfig,
    repeats: int,
) -> Iterator[tuple[_Parts, set[str]]]:
    """The rows' own images, videos, then audio: (inputs of each row, names that are done with)."""
    encoded = model_inputs.get("mm_encoder_outputs") or {}
    assert isinstance(encoded, Mapping)
    for kind, names in _PIXELS.items():
        ids = placeholder_ids(config, kind)
        if kind == "video":
            ids = ids or placeholder_ids(config, "image")
        wanted = [sum(int((row == one).sum()) for one in ids) for row in tokens]
        if encoded.get(kind) is not None:
            yield _encoded(kind, encoded[kind], wanted), set()
        name = next((n for n in names if isinstance(model_inputs.get(n), Tensor)), None)
        if name == "pixel_values" and isinstance(model_inputs.get("aspect_ratio_ids"), Tensor):
            yield _beside_tokens(model_inputs)
            continue
        if name is None or len(tokens) == 1:
            continue  # one row: all is its own
        runs = [[s.stop - s.start for s in row if s.kind == kind] for row in spans]
        once = {n: v[::repeats] for n, v in model_inputs.items() if isinstance(v, Tensor)}
        parts, taken = _raw(kind, name, wanted[::repeats], runs[::repeats], once, config)
        yield [part for part in parts for _ in range(repeats)], taken


def _check_positions(positions: object, kept: Tensor) -> None:
    """One plane of positions must count the tokens; the three of M-RoPE are the model's own."""
    if not isinstance(positions, Tensor) or positions.ndim != 2:
        return
    for row, keep in zip(positions.expand(kept.shape), kept, strict=True):
        steps = row[keep.to(row.device)].diff()
        if bool((steps != 1).any()):
            raise InputError(
                "got position_ids that do not go up by one from token to token; expected none, or "
                "those that transformers makes itself"
            )


def _encoded(kind: str, output: object, wanted: Sequence[int]) -> _Parts:
    """From the features of each medium, (tokens, hidden), with as many tokens as placeholders."""
    features = output.pooler_output  # type: ignore[attr-defined]  # a ModelOutput of any class
    layers = getattr(output, "deepstack_features", None)
    parts: _Parts = []
    for first, last in pairwise(_borders([len(one) for one in features], wanted, kind)):
        part: dict[str, Tensor] = {}
        if last > first:
            is_stack = isinstance(features, Tensor)
            some = features[first:last]
            part[f"{kind}_features"] = some if is_stack else torch.cat(list(some))
            if layers is not None:
                deep = [torch.cat(list(layer[first:last])) for layer in layers]
                part[f"{kind}_deepstack"] = torch.stack(deep)
        parts.append(part)
    return parts


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
    if grids is not None:
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
        if merge is None:  # told by what there is
            return [int(own) for own in patches * sum(wanted) // patches.sum()]
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
