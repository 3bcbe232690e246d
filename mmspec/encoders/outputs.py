"""What an encoder's output says of each placeholder, and outputs of the same form made of parts."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from mmspec.encoders.media import MediaItem
from mmspec.errors import MmspecError


class FeatureError(MmspecError):
    """The encoder's output has a form in which no single token's features can be found."""


@dataclass(frozen=True)
class Features:
    """What an encoder said of one item: a row a placeholder token."""

    rows: tuple[Tensor, ...]  # (tokens, hidden): the embeddings, if any, then deeper layers'
    form: "Form"

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.rows)


@dataclass(frozen=True)
class Form:
    """How a model's method packs the rows: as one tensor or one an item, in which output class."""

    output_class: type[ModelOutput]
    ndim: int  # of the tensor, or of each item's
    is_list: tuple[bool, bool]  # the first rows, each deeper layer's rows
    has_deeper: bool
    names: tuple[str, ...] = ("pooler_output",)  # under which the model reads the embeddings
    layers: tuple[int, ...] = ()  # the deeper ones, where they are numbered
    is_masked: bool = False  # which rows are no padding is said beside them

    def build(self, rows: Sequence[Tensor]) -> ModelOutput:
        """An output like the model's own, with these rows: (tokens, hidden) each."""
        needed = {f.name: None for f in fields(self.output_class) if f.default is MISSING}
        output = self.output_class(**needed)  # some set fields that their class does not have
        for name in self.names:
            setattr(output, name, self._pack(rows[0], self.is_list[0]))
        if self.is_masked:
            mask = rows[0].new_ones(len(rows[0]), dtype=torch.bool)
            output.attention_mask = mask.view(*[1] * (self.ndim - 2), -1)
        if self.has_deeper:
            deeper = rows[1:] if self.names else rows
            packed = [self._pack(layer, self.is_list[1]) for layer in deeper]
            if self.layers:
                packed = list(zip(self.layers, packed, strict=True))
            output.deepstack_features = packed
        return output

    def _pack(self, rows: Tensor, is_list: bool) -> object:
        rows = rows.view(*[1] * (self.ndim - 2), *rows.shape)
        return [rows] if is_list else rows


def split_output(output: object, items: Sequence[MediaItem]) -> Iterator[Features]:
    """The items' features. Raises FeatureError if the output's rows are not the items' tokens."""
    if not isinstance(output, ModelOutput):
        raise FeatureError(f"the encoder gave {type(output).__name__}")
    if getattr(output, "audio_mel_mask", None) is not None:
        raise FeatureError("which of the features are padding is the model's own to say")
    deeper: Any = getattr(output, "deepstack_features", None)
    numbers = _numbers(deeper)
    names, first = ((), ()) if numbers else _embeddings(output)
    layers = [features for _, features in deeper] if numbers else [first, *(deeper or ())]
    packed = layers[0]
    mask = _mask(output, packed)
    rows = [_rows(packed if mask is None else packed[mask]), *map(_rows, layers[1:])]
    counts = [item.num_tokens for item in items]
    if any(len(layer) != sum(counts) for layer in rows):
        raise FeatureError(f"got {len(rows[0])} rows of features for {sum(counts)} placeholders")
    is_list = tuple(isinstance(layer, list | tuple) for layer in (packed, layers[-1]))
    form = Form(
        type(output),
        (packed[0] if is_list[0] else packed).ndim,
        (is_list[0], is_list[1]),
        deeper is not None,
        names,
        numbers,
        mask is not None,
    )
    split = [layer.split(counts) for layer in rows]
    # Cloned: a part would keep the memory of the whole.
    return (Features(tuple(t.clone() for t in parts), form) for parts in zip(*split, strict=True))


def feature_rows(output: object) -> Tensor:
    """All of an encoder's output, (tokens, hidden). Raises FeatureError for another form."""
    packed = _embeddings(output)[1]
    mask = _mask(output, packed)
    return _rows(packed if mask is None else packed[mask])


def _numbers(deeper: Any) -> tuple[int, ...]:
    """Of the layers that features come in before, where each says so (Granite 4 Vision, which puts
    nothing in the placeholders' place)."""
    is_numbered = deeper and isinstance(deeper[0], tuple) and isinstance(deeper[0][0], int)
    return tuple(number for number, _ in deeper) if is_numbered else ()


def _mask(output: object, packed: object) -> Tensor | None:
    """Which features are no padding (Gemma 4's audio), where the model drops the others by it."""
    mask = getattr(output, "attention_mask", None)
    if not (isinstance(mask, Tensor) and isinstance(packed, Tensor)):
        return None
    return mask.bool() if mask.shape == packed.shape[:-1] else None


def _embeddings(output: object) -> tuple[tuple[str, ...], Any]:
    """What is put in the placeholders' place, and where it stands: some families (Qwen-Omni's
    audio, Llama 4's images) read the last hidden state, of which others made it."""
    pooled, last = (getattr(output, n, None) for n in ("pooler_output", "last_hidden_state"))
    if pooled is None and last is None:
        raise FeatureError(f"the encoder gave {type(output).__name__} without pooler_output")
    if pooled is None:
        return ("last_hidden_state",), last
    return ("pooler_output", *(("last_hidden_state",) if last is pooled else ())), pooled


def _rows(packed: object) -> Tensor:
    """(tokens, hidden) of a tensor or a list of them."""
    given = packed if isinstance(packed, list | tuple) else [packed]
    tensors = [tensor for tensor in given if isinstance(tensor, Tensor) and tensor.ndim >= 2]
    if not tensors or len(tensors) < len(given):
        raise FeatureError(f"the encoder's features are {type(packed).__name__}")
    return torch.cat([tensor.flatten(0, -2) for tensor in tensors])
