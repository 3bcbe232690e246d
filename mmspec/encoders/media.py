"""Which tensors and which placeholder tokens of a prompt are whose: a medium at a time."""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmspec.state import MediaKind, MediaSpan, Prompt

# Under which name each kind's encoder gets what it reads.
PIXELS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("pixel_values", "image_pixel_values"),
    "video": ("pixel_values_videos",),
    "audio": (
        "input_features",
        "input_values",
        "audio_input_features",
        "audio_values",
        "audio_embeds",
    ),
}
# In the names of a kind's tensors. A name with words of two kinds is the first one's: videos have
# pixels, too, and of the words of audio some say little.
_WORDS: dict[MediaKind, tuple[str, ...]] = {
    "video": ("video", "second_per_grid"),
    "image": ("image", "pixel", "spatial_shapes"),
    "audio": (
        "audio",
        "input_features",
        "input_values",
        "feature_attention_mask",
        "padding_mask",
        "chunk_sample_lengths",
    ),
}
_GRIDS = ("grid_thw", "grid_hw")  # how the names end of tensors that count a medium's patches
CROSS_MASK = "cross_attention_mask"  # which tokens see an image: it says nothing of the image
_VIEWS = "pixel_values_local"  # of an image any number, also none (DeepSeek-OCR 2)


@dataclass(frozen=True)
class MediaItem:
    """What an encoder can read by itself: an image, a tile of one, a video, a recording, or where
    they cannot be told apart, all of a kind together."""

    kind: MediaKind
    start: int  # index of its first token among the prompt's placeholders of its kind
    stop: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    axis: int = 0  # along which the tensors of several items are joined

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over names, dtypes, shapes and bytes of its tensors."""
        digest = hashlib.sha256(self.kind.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            raw = tensor.detach().cpu().contiguous().flatten()  # views as bytes need one axis
            raw = raw.as_strided(raw.shape, (1,))  # of a single number it may be another
            digest.update(raw.view(torch.uint8).numpy().data)
        return digest.digest()


@dataclass(frozen=True)
class Media:
    """The items of a prompt by kind, in order."""

    items: Mapping[MediaKind, tuple[MediaItem, ...]]
    spans: tuple[MediaSpan, ...]

    @property
    def num_items(self) -> int:
        return sum(map(len, self.items.values()))

    def placeholders(self, start: int, stop: int) -> dict[MediaKind, tuple[int, int]]:
        """Which placeholders of each kind, counted from the kind's first, the tokens [start, stop)
        hold; kinds without any are left out."""
        ranges: dict[MediaKind, tuple[int, int]] = {}
        for kind in self.items:
            before = sum(_overlap(span, 0, start) for span in self.spans if span.kind == kind)
            within = sum(_overlap(span, start, stop) for span in self.spans if span.kind == kind)
            if within:
                ranges[kind] = (before, before + within)
        return ranges

    def needed(self, kind: MediaKind, start: int, stop: int) -> tuple[MediaItem, ...]:
        """The items that have a part in the kind's placeholders [start, stop)."""
        return tuple(item for item in self.items[kind] if item.start < stop and start < item.stop)


def token_inputs(prompt: Prompt) -> dict[str, Tensor]:
    """The model's inputs that say something of each token, (1, seq), such as token_type_ids."""
    shape = (1, prompt.num_tokens)
    inputs = prompt.model_inputs.items()
    return {name: value for name, value in inputs if says_of_tokens(name, value, shape)}


def says_of_tokens(name: str, value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether it says something of each of so many tokens, (batch, seq). A mask of a recording's
    frames, or of an image's patches, that are as many, does not."""
    is_medium = name.startswith("pixel_") or kind_of(name) == "audio"
    return value.shape == shape and not value.is_floating_point() and not is_medium


def split_media(prompt: Prompt, *, together: Container[MediaKind] = ()) -> Media | None:
    """Items without media are none. None: the prompt has inputs whose tokens cannot be found. Those
    of a kind in `together` are one item."""
    others = {*token_inputs(prompt), CROSS_MASK, "position_ids"}
    inputs = {n: v for n, v in prompt.model_inputs.items() if n not in others}
    by_kind: dict[MediaKind, dict[str, Tensor]] = {}
    for name, value in inputs.items():
        by_kind.setdefault(kind_of(name) or "image", {})[name] = value
    if set(by_kind) != {span.kind for span in prompt.media}:
        return None
    items: dict[MediaKind, tuple[MediaItem, ...]] = {}
    for kind, tensors in by_kind.items():
        spans = [span.stop - span.start for span in prompt.media if span.kind == kind]
        whole = (MediaItem(kind, 0, sum(spans), tensors),)
        items[kind] = whole if kind in together else _split(kind, tensors, spans)
    return Media(items, prompt.media)


def kind_of(name: str) -> MediaKind | None:
    """Of which media a model's input of this name says something, if it is one of those known."""
    kinds = (kind for kind, words in _WORDS.items() if any(word in name for word in words))
    return next(kinds, None)


def grids_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """(media, axes): how many patches each medium has along each axis, where that is told."""
    return next((value for name, value in tensors.items() if name.endswith(_GRIDS)), None)


def join(items: Sequence[MediaItem]) -> dict[str, Tensor]:
    """The model's inputs for these items of one kind together."""
    first = items[0]
    if len(items) == 1:
        return dict(first.tensors)
    return {
        name: torch.cat([item.tensors[name] for item in items], dim=first.axis)
        for name in first.tensors
    }


def _split(
    kind: MediaKind, tensors: Mapping[str, Tensor], spans: Sequence[int]
) -> tuple[MediaItem, ...]:
    """`spans`: the lengths of the kind's runs of placeholders."""
    total = sum(spans)
    whole = (MediaItem(kind, 0, total, tensors),)
    pixels = next((tensors[name] for name in PIXELS[kind] if name in tensors), None)
    if pixels is None or _VIEWS in tensors:
        return whole
    grid = grids_of(tensors)
    # Tiles of one row are many along axis 1 (Idefics3, SmolVLM), unless a size an image says that
    # they belong to one image; so are images of several tiles (Mllama).
    axis = int(kind == "image" and pixels.ndim >= 5 and "image_sizes" not in tensors)
    patches = [1] * pixels.shape[axis] if grid is None else grid.prod(dim=1).tolist()
    if grid is not None and len(pixels) != sum(patches):
        return whole
    beside = [tensor for tensor in tensors.values() if tensor is not pixels]
    counts: list[int] = []
    if len(patches) == len(spans):
        counts = list(spans)
    elif grid is not None:
        counts = _shares(total, patches)
    elif len(patches) == total or _are_alike(beside, axis):
        counts = _equal(len(patches), spans)
    if not counts or sum(counts) != total or pixels.shape[:axis].numel() != 1:
        return whole
    parts: list[dict[str, Tensor]] = [{} for _ in counts]
    for name, tensor in tensors.items():
        sizes = patches if tensor is pixels else [1] * len(counts)
        if tensor.ndim <= axis or tensor.shape[axis] != sum(sizes):
            return whole  # it says something of all of them at once
        for part, piece in zip(parts, tensor.split(sizes, dim=axis), strict=True):
            part[name] = piece
    items, start = [], 0
    for count, part in zip(counts, parts, strict=True):
        items.append(MediaItem(kind, start, start + count, part, axis))
        start += count
    return tuple(items)


def _shares(total: int, patches: Sequence[int]) -> list[int]:
    """Tokens of items that have as many for each of their patches; empty where they cannot."""
    if any(total * count % sum(patches) for count in patches):
        return []
    return [total * count // sum(patches) for count in patches]


def _equal(num_items: int, spans: Sequence[int]) -> list[int]:
    """Tokens of items of one length, several a span; empty where they cannot be."""
    each, rest = divmod(sum(spans), num_items)
    return [] if rest or any(span % each for span in spans) else [each] * num_items


def _are_alike(tensors: Sequence[Tensor], axis: int) -> bool:
    """Whether what is told of items beside their pixels is the same of each. Images of several
    sizes may stand side by side, and nothing tells where one ends."""
    told = (tensor.split(1, dim=axis) for tensor in tensors if tensor.ndim > axis)
    return all(torch.equal(part, parts[0]) for parts in told for part in parts)


def _overlap(span: MediaSpan, start: int, stop: int) -> int:
    return max(0, min(span.stop, stop) - max(span.start, start))
