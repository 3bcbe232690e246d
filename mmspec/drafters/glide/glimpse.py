"""Glimpse: what of the target's KV the queries of a layer see.

One rule, in training and when drafting: a token sees the target's KV of the tokens before it, as
far as they were committed when it was computed, and of the text's first token always. A drafted
token and node 0 so see all that is committed, whatever their depth; a token that is read later sees
what stands before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention import LayerRule, Reach, RowNodes, TreeCall, tree_attention
from mmspec.drafters.heads import attended
from mmspec.kv import FlatLayer, KVCache


class Glimpse(Protocol):
    """Which of the target's keys the queries of a layer meet."""

    def __call__(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """`query` (batch, heads, seq, head_dim) of draft layer `layer`, rotated. Returns (batch,
        seq, heads, head_dim of the values)."""


class WholeGlimpse:
    """Of whole sequences, for training."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], borders: Tensor) -> None:
        """`keys` and `values` (batch, kv_heads, seq, head_dim) by draft layer; `borders` (batch,
        seq): how many of the target's tokens each token sees."""
        self._keys = keys
        self._values = values
        seq = borders.shape[1]
        seen = torch.arange(seq, device=borders.device) < borders.unsqueeze(-1)
        self._mask = seen.unsqueeze(1)  # (batch, 1, seq, seq)

    def __call__(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        keys, values = (part[layer].to(query.dtype) for part in (self._keys, self._values))
        return attended(query, keys, values, scaling, mask=self._mask)


class CacheGlimpse:
    """Of the target's own cache, read where it lies; all rows in one call a layer."""

    def __init__(self, layers: Sequence[FlatLayer], call: TreeCall) -> None:
        """`layers` of the target's cache, by draft layer; what is seen there is the `call`'s."""
        self._layers = layers
        self._call = call

    def __call__(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        flat, place = self._layers[layer], query.device
        # A target in parts keeps its layers' keys beside them.
        query = query.to(flat.keys.device, flat.keys.dtype)
        rule = LayerRule(Reach(), scaling)
        out = tree_attention(query, flat.keys, flat.values, call=self._call, rule=rule)
        return out.to(place)


@dataclass(frozen=True)
class Glance:
    """What a forward's nodes see of the target."""

    cache: KVCache  # the target's
    positions: Tensor  # (planes, batch, nodes) int64 on the CPU, as the target counts
    call: TreeCall


def glimpse_call(
    cache: KVCache, rows: Sequence[int], borders: Sequence[NDArray[np.int64]]
) -> TreeCall:
    """`rows` of the target's `cache`; `borders[i]` (nodes,): how many of its committed tokens each
    node of the row sees, one or more."""
    reaches = [Reach()] * len(cache.flat_layers)
    seen = [_seen(cache.region(row).start, own) for row, own in zip(rows, borders, strict=True)]
    return TreeCall(seen, cache.flat_layers, reaches)


def _seen(start: int, borders: NDArray[np.int64]) -> RowNodes:
    """A row's region from `start` on: what all its nodes see, and what some of them see."""
    common = int(borders.min()) - 1
    tail = np.arange(common, int(borders.max()))
    return RowNodes(start, common, tail < borders[:, None], tail - common)


def block_borders(lengths: Tensor, seq: int) -> Tensor:
    """(batch, seq) int64: how many of the target's tokens each token sees, in texts that were said
    in speculations of `lengths` (batch, blocks), one or more tokens each, `seq` or more in all.

    The first token of a block is node 0, the others are drafted behind it: none of them is in the
    target's cache yet. Published training takes blocks of one length (block-wise mask, arXiv
    2402.02082 figure 3).
    """
    ends = lengths.cumsum(dim=1)
    places = torch.arange(seq, device=lengths.device).expand(lengths.shape[0], seq)
    block = torch.searchsorted(ends, places.contiguous(), right=True)
    return (ends - lengths).gather(1, block).clamp(min=1)
