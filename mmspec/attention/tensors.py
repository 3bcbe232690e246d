"""TreeTensors: the rows of a TreeCall in tensors of fixed shapes, as kernels read them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmspec.uploads import upload

if TYPE_CHECKING:
    from mmspec.attention.call import RowNodes

WORD_BITS = 32


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
        is beyond a row is 0."""
        batch = len(rows) if batch is None else batch
        nodes = max(row.num_nodes for row in rows) if nodes is None else nodes
        tail = max(len(row.depths) for row in rows) if tail is None else tail
        starts = np.zeros(batch, dtype=np.int64)
        counts = np.zeros((3, batch), dtype=np.int32)
        depths = np.zeros((batch, tail), dtype=np.int32)
        seen = np.zeros((batch, nodes, -(-tail // WORD_BITS) * WORD_BITS), dtype=np.bool_)
        for index, row in enumerate(rows):
            starts[index] = row.start
            counts[:, index] = row.committed, row.num_nodes, len(row.depths)
            depths[index, : len(row.depths)] = row.depths
            seen[index, : row.num_nodes, : len(row.depths)] = row.visible
        words = np.packbits(seen, axis=-1, bitorder="little").view("<i4")
        committed, num_nodes, num_tail = upload(counts, device)
        return TreeTensors(
            upload(starts, device),
            committed,
            num_nodes,
            num_tail,
            upload(depths, device),
            upload(words, device),
        )

    def on(self, device: torch.device) -> "TreeTensors":
        """The same on another device; these themselves where they lie there already."""
        return TreeTensors(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def copy_(self, other: "TreeTensors") -> None:
        """Takes over the values of tensors of the same shapes."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name), non_blocking=True)
