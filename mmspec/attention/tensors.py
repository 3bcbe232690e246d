"""TreeTensors: the rows of a TreeCall in tensors of fixed shapes, as kernels read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.uploads import upload

if TYPE_CHECKING:
    from mmspec.attention.call import RowNodes

WORD_BITS = 32
_ALIGNED = 4  # words: kernels are compiled for addresses that are multiples of 16 bytes


class TreeArrays(NamedTuple):
    """The same as `TreeTensors`, on the host."""

    starts: NDArray[np.int64]
    committed: NDArray[np.int32]
    num_nodes: NDArray[np.int32]
    num_tail: NDArray[np.int32]
    depths: NDArray[np.int32]
    visible: NDArray[np.int32]

    def fill(self, rows: "Sequence[RowNodes]") -> None:
        """Writes the rows over zeros."""
        batch, nodes, words = self.visible.shape
        seen = np.zeros((batch, nodes, words * WORD_BITS), dtype=np.bool_)
        for index, row in enumerate(rows):
            own, tail = row.visible.shape
            self.starts[index], self.committed[index] = row.start, row.committed
            self.num_nodes[index], self.num_tail[index] = own, tail
            self.depths[index, :tail] = row.depths
            seen[index, :own, :tail] = row.visible
        self.visible[:] = np.packbits(seen, axis=-1, bitorder="little").view("<i4")


@dataclass(frozen=True)
class TreeTensors:
    """All on one device. The shapes may be larger than the call: a captured graph keeps tensors of
    the largest call that it takes, and `copy_` gives them each call's values."""

    starts: Tensor  # (batch,) int64, first slot of each row's region
    committed: Tensor  # (batch,) int32, tokens that every node sees as far as its layer reaches
    num_nodes: Tensor  # (batch,) int32, this forward's nodes; 0: a row that is only padding
    num_tail: Tensor  # (batch,) int32, tokens behind the committed ones; the last are the nodes
    depths: Tensor  # (batch, tail) int32, position of each tail token - committed
    visible: Tensor  # (batch, nodes, words) int32: bit j % 32 of word j // 32, node sees tail j

    @staticmethod
    def of(
        rows: "Sequence[RowNodes]",
        device: torch.device | str,
        *,
        batch: int | None = None,
        nodes: int | None = None,
        tail: int | None = None,
    ) -> "TreeTensors":
        """The shapes are those of the rows, or larger where `batch`, `nodes` or `tail` say so; what
        is beyond a row is 0. One copy to the device, which is not waited for."""
        batch = len(rows) if batch is None else batch
        nodes = max(row.num_nodes for row in rows) if nodes is None else nodes
        tail = max(len(row.depths) for row in rows) if tail is None else tail
        words = -(-tail // WORD_BITS)
        shapes = [(2 * batch,), *[(batch,)] * 3, (batch, tail), (batch, nodes, words)]
        places = _places([math.prod(shape) for shape in shapes])
        packed = np.zeros(places[-1].stop, dtype="<i4")
        starts, *rest = (
            packed[place].reshape(shape) for place, shape in zip(places, shapes, strict=True)
        )
        TreeArrays(starts.view("<i8"), *rest).fill(rows)
        there = upload(packed, device)
        first, *others = (
            there[place].view(shape) for place, shape in zip(places, shapes, strict=True)
        )
        return TreeTensors(first.view(torch.int64), *others)

    def on(self, device: torch.device) -> "TreeTensors":
        """The same on another device; these themselves where they lie there already."""
        return TreeTensors(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _places(sizes: Sequence[int]) -> list[slice]:
    """One behind the other, each from an aligned word on."""
    places, start = [], 0
    for size in sizes:
        places.append(slice(start, start + size))
        start += -(-size // _ALIGNED) * _ALIGNED
    return places
