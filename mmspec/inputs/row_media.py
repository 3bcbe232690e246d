"""Which row's are the pixels, frames and sounds of a batch: the row's whose placeholders they fill,
in the order of the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.encoders.media import PIXELS, grids_of, kind_of
from mmspec.encoders.outputs import FeatureError
from mmspec.errors import InputError
from mmspec.inputs.spans import num_placeholders
from mmspec.state import MediaKind, MediaSpan

_RATIOS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")  # of Mllama's images
_SIZES = (  # what says if media are alike
    *("image_sizes", "spatial_shapes", "image_position_ids"),
    *("input_features_mask", "feature_attention_mask", "input_values_mask", "padding_mask"),
    "chunk_sample_lengths",
)
_TOKENS = "audio_embed_sizes"  # how many placeholders each recording has
_COUNTS = "batch_num_images"  # (batch,) how many are each row's

_Parts = list[dict[str, Tensor]]  # of each row
Count = Callable[[MediaKind, Mapping[str, Tensor]], int]  # a medium's placeholders; FeatureError


def media_of_rows(
    tokens: Sequence[Tensor],
    spans: Sequence[tuple[MediaSpan, ...]],
    model_inputs: Mapping[str, Tensor],
    config: PreTrainedConfig,
    repeats: int,
    count: Count | None,
) -> Iterator[tuple[_Parts, set[str]]]:
    """The rows' own images, videos, then audio: (inputs of each row, names that are done with).
    `model_inputs` are those that say nothing of tokens."""
    for kind, names in PIXELS.items():
        name = next((one for one in names if one in model_inputs), None)
        if name == "pixel_values" and "aspect_ratio_ids" in model_inputs:
            yield _beside_tokens(model_inputs)
            continue
        if name is None or len(tokens) == 1:
            continue  # one row: all is its own
        runs = [[s.stop - s.start for s in row if s.kind == kind] for row in spans]
        own = {n: v[::repeats] for n, v in model_inputs.items() if v.ndim and kind_of(n) == kind}
        wanted = placeholders_of_rows(kind, tokens, config)
        parts, taken = _raw(kind, name, wanted[::repeats], runs[::repeats], own, config, count)
        yield [part for part in parts for _ in range(repeats)], taken


def placeholders_of_rows(
    kind: MediaKind, tokens: Sequence[Tensor], config: PreTrainedConfig
) -> list[int]:
    """Each row's placeholders."""
    kinds: tuple[MediaKind, ...] = ("video", "image") if kind == "video" else (kind,)
    counts = [0] * len(tokens)
    for own in kinds:  # some families put an image's in a video's place
        counts = [num_placeholders(row, config, own) for row in tokens]
        if any(counts):
            break
    return counts


def _beside_tokens(model_inputs: Mapping[str, Tensor]) -> tuple[_Parts, set[str]]:
    """Of images that are read beside the tokens (Mllama), (batch, images, ...): those behind a
    row's own have no aspect ratio."""
    tensors = {name: model_inputs[name] for name in _RATIOS if name in model_inputs}
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
    own: Mapping[str, Tensor],
    config: PreTrainedConfig,
    count: Count | None,
) -> tuple[_Parts, set[str]]:
    """From pixels: of the rows, of patches with a grid a medium, or of one medium after another.
    `own` are all of the kind's tensors; one that is as long as neither pixels nor media is left."""
    if len(wanted) == 1:
        return [dict(own)], set(own)
    pixels, counts, grids = own[pixels_name], own.get(_COUNTS), grids_of(own)
    if grids is not None:
        media = _borders(_merged(kind, grids, own, wanted, config), wanted, kind)
        ends = [0, *accumulate(grids.prod(dim=1).tolist())]
        borders = {pixels.shape[0]: [ends[medium] for medium in media], len(grids): media}
    elif pixels.ndim == 5 and "pixel_attention_mask" in own:  # (batch, images, ...): Idefics
        borders = {pixels.shape[0]: list(range(len(wanted) + 1))}
    elif counts is not None:
        borders = {pixels.shape[0]: [0, *accumulate(counts.tolist())]}
    else:
        each = [length for row in runs for length in row]
        if _TOKENS in own:
            each = own[_TOKENS].tolist()
        elif kind != "audio" or len(each) != pixels.shape[0]:  # recordings stand apart
            each = _lengths(kind, pixels.shape[0], wanted, own, count)
        borders = {pixels.shape[0]: _borders(each, wanted, kind)}
        if kind == "audio":  # of a recording in chunks, what is said of all of it
            borders.setdefault(sum(map(bool, wanted)), [0, *accumulate(map(bool, wanted))])
    parts: _Parts = [{} for _ in wanted]
    taken = set()
    for name, value in own.items():
        places = range(len(wanted) + 1) if name == _COUNTS else borders.get(value.shape[0])
        if places is None:
            continue
        taken.add(name)
        for part, tokens, (first, last) in zip(parts, wanted, pairwise(places), strict=True):
            if tokens:
                part[name] = value[first:last]
    return parts, taken


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
        merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", None)
        if merge is None:  # told by what there is; each is at least one
            own = patches * sum(wanted) // patches.sum()
            return [max(int(count), 1) for count in own]
        merges = torch.tensor(merge)
    return [int(own) for own in patches // merges.to(patches.device) ** 2]


def _lengths(
    kind: MediaKind,
    media: int,
    wanted: Sequence[int],
    beside: Mapping[str, Tensor],
    count: Count | None,
) -> list[int]:
    """Placeholders of each medium where its tensors do not say: all of a row's, where there are no
    more media than rows to fill; else all alike, unless the media differ in size, and are
    counted."""
    filled = [count for count in wanted if count]
    if media == len(filled):
        return filled
    sizes = next((beside[name] for name in _SIZES if name in beside), None)
    if (sizes is None or bool((sizes == sizes[0]).all())) and sum(wanted) % media == 0:
        return [sum(wanted) // media] * media
    if kind == "audio" and sizes is not None and int(sizes.sum()) == sum(wanted):
        return sizes.reshape(media, -1).sum(dim=1).tolist()  # of tokens, not of frames (Granite)
    if count is not None:
        own = [
            {
                name: value[i : i + 1] if len(value) == media else value
                for name, value in beside.items()
            }
            for i in range(media)
        ]
        with suppress(FeatureError):
            return [count(kind, tensors) for tensors in own]
    raise InputError(
        f"got {media} {kind}s of different sizes for rows with {list(wanted)} placeholders; "
        f"expected at most one {kind} a row, or one prompt a call"
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
    if medium < len(lengths):
        raise InputError(
            f"got {len(lengths)} {kind}s, of which {len(lengths) - medium} have no placeholders"
        )
    return borders
