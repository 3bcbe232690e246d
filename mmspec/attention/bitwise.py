"""Bitwise attention: a node's result has the same bits wherever its keys lie.

In standard arithmetic the same token rounds otherwise as a node than as a committed token, since
sums are cut elsewhere. Here a node's keys, the row's committed tokens and then its ancestors, are
taken by their positions in the text: in blocks of a fixed size that begin at multiples of it, one
after the other (online softmax: Milakov, Gimelshein, arXiv 1805.02867), each in a product of one
shape. Neither the tree, nor the batch, nor where the text was committed can change a bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention.call import RowNodes, TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.uploads import upload

BLOCK = 64  # positions
_TILE = 16


@dataclass(frozen=True)
class Path:
    """One way down a row's tree, and the nodes that are computed on it."""

    slots: NDArray[np.int64]  # (depth,) of its tail tokens, from the first position not committed
    owners: NDArray[np.bool_]  # (nodes,)


@dataclass(frozen=True)
class RowPaths:
    """A row of a score call, by positions in the text."""

    start: int
    committed: int
    positions: NDArray[np.int64]  # (nodes,); padding stands where the row's first node does
    paths: Sequence[Path]

    @property
    def num_blocks(self) -> int:
        return int(self.positions.max()) // BLOCK + 1

    @staticmethod
    def of(row: RowNodes) -> "RowPaths":
        """Raises ValueError for a node that does not see one token of each position before it."""
        count = row.num_nodes
        own = row.visible.shape[1] - count  # where the nodes begin in the tail
        positions = row.committed + row.depths[own:]
        real = count - row.padding
        paths: list[tuple[NDArray[np.bool_], list[int]]] = []
        for node in sorted(range(real), key=lambda n: -positions[n]):
            seen = row.visible[node]
            if (row.depths[seen] != np.arange(seen.sum())).any():
                raise ValueError(f"node {node} sees the depths {row.depths[seen].tolist()}")
            for deeper, owners in paths:
                if not (seen & ~deeper).any():
                    owners.append(node)
                    break
            else:
                paths.append((seen, [node]))
        paths[0][1].extend(range(real, count))
        first = row.start + row.committed
        positions[real:] = positions[0]
        return RowPaths(
            row.start,
            row.committed,
            positions,
            [
                Path(first + np.flatnonzero(seen), np.isin(np.arange(count), owners))
                for seen, owners in paths
            ],
        )


@dataclass
class CallPaths:
    """The rows of a score call in bitwise mode, and what its layers share of them."""

    rows: Sequence[RowPaths]  # (batch,)
    _places: Tensor | None = None

    @staticmethod
    def of(rows: Sequence[RowNodes]) -> "CallPaths":
        """Raises ValueError as `RowPaths.of` does."""
        return CallPaths([RowPaths.of(row) for row in rows])

    def places(self, device: torch.device) -> Tensor:
        """What the kernel reads: (batch, 2 + nodes + nodes * depth) int32, of one shape for one
        number of nodes."""
        if self._places is None:
            self._places = upload(np.stack([_places_of(row) for row in self.rows]), device)
        return self._places


def _places_of(row: RowPaths) -> NDArray[np.int32]:
    nodes = len(row.positions)
    ancestors = np.full((nodes, nodes), -1, dtype=np.int64)
    for path in row.paths:
        behind = path.slots - row.start - row.committed
        for node in np.flatnonzero(path.owners):
            count = row.positions[node] - row.committed + 1
            ancestors[node, :count] = behind[:count]
    head = [np.array([row.start, row.committed]), row.positions, ancestors.ravel()]
    return np.concatenate(head).astype(np.int32)


def attend_bitwise(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """As `tree_attention`; sums in float32 at least. The bits also depend on the shape of the call:
    a caller keeps to one."""
    assert call.paths is not None
    kernel = _kernel() if query.device.type == "cuda" else None
    if kernel is not None and kernel.can_attend(query, keys, values):
        return kernel.attend(query, keys, values, call.paths.places(query.device), rule=rule)
    rows = [
        _attend_row(own, keys, values, row, rule)
        for own, row in zip(query, call.paths.rows, strict=True)
    ]
    return torch.stack(rows).to(query.dtype)


@cache
def _kernel() -> Any:
    try:
        return import_module("mmspec.attention.kernels.bitwise")
    except ImportError:  # no Triton: tensor operations do the same, in other bits
        return None


class _Softmax:
    """Weighted sums of values so far, of (kv_heads, group * nodes) queries."""

    def __init__(self, query: Tensor, head_dim: int) -> None:
        self.query = query
        self.most = query.new_full((*query.shape[:2], 1), torch.finfo(query.dtype).min)
        self.total = query.new_zeros(*query.shape[:2], 1)
        self.out = query.new_zeros(*query.shape[:2], head_dim)

    def add(
        self, keys: Tensor, values: Tensor, hidden: Tensor, owners: Tensor | None, rule: LayerRule
    ) -> None:
        """`keys` and `values` (BLOCK, kv_heads, head_dim), `hidden` (group * nodes, BLOCK) and
        `owners` (group * nodes, 1) bool: the queries that they are for."""
        keys, values = (t.to(self.query.dtype).transpose(0, 1).contiguous() for t in (keys, values))
        scores = torch.bmm(self.query, keys.transpose(1, 2).contiguous())
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        scores = scores.masked_fill(hidden, -torch.inf)
        most = torch.maximum(self.most, scores.amax(dim=-1, keepdim=True))
        kept, weights = torch.exp(self.most - most), torch.exp(scores - most)
        total = self.total * kept + weights.sum(dim=-1, keepdim=True)
        out = self.out * kept + torch.bmm(weights, values)
        if owners is not None:
            most = torch.where(owners, most, self.most)
            total = torch.where(owners, total, self.total)
            out = torch.where(owners, out, self.out)
        self.most, self.total, self.out = most, total, out


def _attend_row(
    query: Tensor, keys: Tensor, values: Tensor, row: RowPaths, rule: LayerRule
) -> Tensor:
    heads, nodes, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    folded = query.to(dtype).reshape(kv_heads, group * nodes, head_dim) * rule.scaling
    # The last rows of a product that are no whole tile may be summed up in another order.
    extra = -folded.shape[1] % _TILE
    softmax = _Softmax(torch.nn.functional.pad(folded, (0, 0, 0, extra)), values.shape[2])
    first = int(rule.reach.first_visible(row.positions).min()) // BLOCK
    pad = torch.nn.functional.pad
    paths = [
        (
            torch.from_numpy(path.slots).to(query.device),
            pad(_placed(path.owners, query.device).repeat(group), (0, extra)).unsqueeze(1),
        )
        for path in row.paths
    ]
    for block in range(first, row.num_blocks):
        begin = block * BLOCK
        hidden = _hidden(row.positions, begin, rule.reach)
        seen = pad(_placed(hidden, query.device).repeat(group, 1), (0, 0, 0, extra))
        if begin + BLOCK <= row.committed:
            slots = slice(row.start + begin, row.start + begin + BLOCK)
            softmax.add(keys[slots], values[slots], seen, None, rule)
            continue
        before = torch.arange(begin, max(row.committed, begin), device=query.device) + row.start
        for tail, own in paths:
            index = torch.cat([before, tail[max(begin - row.committed, 0) :]])[:BLOCK]
            # What lies behind a path is hidden from all that are on it: any finite key will do.
            index = pad(index, (0, BLOCK - index.shape[0]), value=row.start)
            softmax.add(keys[index], values[index], seen, own, rule)
    most, total, summed = (
        t[:, : group * nodes] for t in (softmax.most, softmax.total, softmax.out)
    )
    if rule.sinks is not None:
        sinks = rule.sinks.to(dtype).repeat_interleave(nodes).view(kv_heads, group * nodes, 1)
        total = total + torch.exp(sinks - most)
    return (summed / total).reshape(heads, nodes, -1).transpose(0, 1)


def _placed(flags: NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(flags).to(device)


def _hidden(positions: NDArray[np.int64], begin: int, reach: Reach) -> NDArray[np.bool_]:
    """(nodes, BLOCK): the positions from `begin` on that each node does not see."""
    keys = np.arange(begin, begin + BLOCK)
    later = keys > positions[:, None]
    return later if reach.is_full else later | (keys < reach.first_visible(positions)[:, None])
