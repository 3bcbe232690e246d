"""Bitwise attention: a node's result has the same bits wherever its keys lie.

In standard arithmetic the same token rounds otherwise as a node than as a committed token, since
sums are cut elsewhere. Here a node's keys, the row's committed tokens and then its ancestors, are
taken by their positions in the text: in blocks of a fixed size that begin at multiples of it, one
after the other (online softmax: Milakov, Gimelshein, arXiv 1805.02867), each in a product of one
shape. Neither the tree, nor the batch, nor where the text was committed can change a bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention.call import RowNodes, TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.attention.tensors import WORD_BITS, TreeTensors
from mmspec.kernels import Kernels

BLOCK = 64  # positions
_TILE = 16
# One that fails is no setback: tensor operations do the same in other bits.
_KERNELS = Kernels("mmspec.attention.kernels.bitwise", "bitwise attention")


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
    def of(row: RowNodes, width: int) -> "RowPaths":
        """Of `width` nodes, the last of them padding. Raises ValueError for a node that does not
        see one token of each position before it."""
        real = row.num_nodes
        own = row.visible.shape[1] - real  # where the nodes begin in the tail
        positions = np.empty(width, dtype=np.int64)
        positions[:real] = row.committed + row.depths[own:]
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
        paths[0][1].extend(range(real, width))
        first = row.start + row.committed
        positions[real:] = positions[0]
        return RowPaths(
            row.start,
            row.committed,
            positions,
            [
                Path(first + np.flatnonzero(seen), np.isin(np.arange(width), owners))
                for seen, owners in paths
            ],
        )


class CallPaths:
    """What the layers of a call in bitwise mode share, made when the first one asks for it."""

    def __init__(self) -> None:
        self._rows: list[RowPaths] | None = None
        self._ancestors: dict[torch.device, Tensor] = {}

    def rows(self, call: TreeCall, width: int) -> Sequence[RowPaths]:
        """(batch,), of `width` nodes each. Raises ValueError as `RowPaths.of` does."""
        if self._rows is None:
            self._rows = [RowPaths.of(row, width) for row in call.rows]
        return self._rows

    def ancestors(self, tensors: TreeTensors) -> Tensor:
        """As `ancestors_of`, once for all layers on a device."""
        device = tensors.depths.device
        if device not in self._ancestors:
            self._ancestors[device] = ancestors_of(tensors)
        return self._ancestors[device]


def ancestors_of(tensors: TreeTensors) -> Tensor:
    """(batch, nodes, tail) int32: each node's ancestors by their depth, itself the last, as places
    in the tail; -1 behind them. Computed where the tensors lie, so that a graph does it anew."""
    depths = tensors.depths
    bits = torch.arange(WORD_BITS, device=depths.device)
    seen = (tensors.visible.unsqueeze(-1) >> bits).bitwise_and(1).flatten(2).bool()
    batch, tail = depths.shape
    nodes = seen.shape[1]
    # What a node does not see goes to a column of its own, which is cut off.
    column = torch.where(seen[..., :tail], depths.unsqueeze(1), tail).long()
    place = torch.arange(tail, device=depths.device, dtype=torch.int32).expand(batch, nodes, -1)
    found = torch.full((batch, nodes, tail + 1), -1, device=depths.device, dtype=torch.int32)
    return found.scatter_(2, column, place)[..., :tail].contiguous()


def attend_bitwise(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """As `tree_attention`; sums in float32 at least. The bits also depend on the nodes that the
    query is padded to: a caller keeps to one number. Rows behind the call's are padding too."""
    assert call.paths is not None
    kernel = _KERNELS.on(query.device)
    if kernel is not None and kernel.can_attend(query, keys, values):
        tensors = call.tensors(query.device)
        ancestors = call.paths.ancestors(tensors)
        columns = call.max_columns
        return kernel.attend(query, keys, values, tensors, ancestors, columns=columns, rule=rule)
    batch, heads, width, _ = query.shape
    rows = call.paths.rows(call, width)
    out = query.new_zeros(batch, width, heads, values.shape[2])
    for index, row in enumerate(rows):
        out[index] = _attend_row(query[index], keys, values, row, rule)
    return out


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
