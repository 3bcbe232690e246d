"""ScoreCall: one call as it is asked for, and what comes of it."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mmspec.attention import CallPaths, RowNodes, TreeCall
from mmspec.kv import KVCache, Levels, QueryTap, WritePlan
from mmspec.target.graphs.bucket import Bucket
from mmspec.uploads import upload


class GraphCall(Protocol):
    """What can be recorded: its sizes are its graph's, its values lie in the graph's inputs."""

    @property
    def kind(self) -> Hashable | None:
        """What tells its graph from others, sizes and where things lie; None: none takes it."""

    @property
    def size(self) -> tuple[int, int]:
        """(batch, nodes)"""

    @property
    def counts(self) -> Sequence[int]:
        """(batch,) nodes of each row, the others are padding."""

    @property
    def is_bitwise(self) -> bool:
        """Whether a replay must have the forward's own bits."""

    @property
    def varied(self) -> Self | None:
        """One of the same graph that differs in every value; None where there is none."""

    @property
    def left(self) -> Sequence[Tensor]:
        """What its forward leaves for later calls and does not return: a digest of it, copied."""


@dataclass(frozen=True)
class ScoreCall:
    """The nodes of some rows, within `cache.writing`."""

    ids: Tensor  # (batch, nodes) int64; short rows are padded
    positions: Tensor  # (batch, nodes), or (planes, batch, nodes) under M-RoPE; on the CPU
    tree: TreeCall
    plan: WritePlan
    cache: KVCache
    rows: Sequence[int]  # (batch,) the cache's numbers
    taps: Collection[int]
    shape: tuple[int, int] | None = None  # (rows, nodes) of all calls, in bitwise mode
    levels: Levels | None = None  # of a model with running states

    @property
    def bucket(self) -> Bucket | None:
        """The graph's shapes; None where none takes it."""
        if self.shape is not None:
            rows, nodes = self.shape
            return Bucket.fixed(rows, nodes, columns=self.tree.max_columns, planes=self.planes)
        batch, nodes = self.ids.shape
        return Bucket.of(
            rows=batch,
            nodes=nodes,
            tail=max(len(row.depths) for row in self.tree.rows),
            columns=self.tree.max_columns,
            planes=self.planes,
            levels=() if self.levels is None else [len(level) for level in self.levels.each],
            is_chain=self.levels is not None and self.levels.is_chain,
        )

    @property
    def kind(self) -> Hashable | None:
        bucket, is_watched = self.bucket, self.cache.queries is not None
        if bucket is None:
            return None
        return bucket, frozenset(self.taps), is_watched, self.cache.addresses

    @property
    def size(self) -> tuple[int, int]:
        batch, nodes = self.ids.shape
        return batch, nodes

    @property
    def counts(self) -> Sequence[int]:
        return self.plan.counts

    @property
    def is_bitwise(self) -> bool:
        return self.shape is not None

    @property
    def left(self) -> Sequence[Tensor]:
        """Sums over the running states; keys are read within the forward itself."""
        if self.levels is None or self.cache.states is None:
            return ()
        slots = [entry.slot for level in self.levels.each for entry in level]
        return [
            buffer.index_select(0, upload(slots, buffer.device)).sum(
                dim=-1, dtype=torch.promote_types(buffer.dtype, torch.float32)
            )
            for buffer in self.cache.states.slots.buffers.values()
        ]

    @property
    def planes(self) -> int:
        """Of position ids."""
        return 1 if self.positions.ndim == 2 else self.positions.shape[0]

    @property
    def varied(self) -> "ScoreCall | None":
        """A call of the same bucket that differs in every value: tokens, positions, slots, lengths
        and counts. It makes no sense, but writes to slots that this call writes to, or one further,
        and nowhere else. None where a row has no such slot, or is too short."""
        plan = self.plan
        first = [start + end for start, end in zip(plan.starts, plan.lengths, strict=True)]
        for row, own, slot, count in zip(
            self.rows, self.tree.rows, first, plan.counts, strict=True
        ):
            region = self.cache.region(row)
            if own.committed < 2 or slot + count >= region.start + region.capacity:
                return None
        return replace(
            self,
            ids=torch.where(self.ids > 0, self.ids - 1, 1),
            positions=(self.positions - 1).clamp(min=0),
            tree=TreeCall(
                [_varied(row) for row in self.tree.rows],
                self.tree.layers,
                self.tree.reaches,
                backend=self.tree.backend,
                paths=None if self.tree.paths is None else CallPaths(),
            ),
            plan=WritePlan(
                [start + 2 for start in plan.starts],
                [length - 1 for length in plan.lengths],
                [max(count - 1, 1) for count in plan.counts],
            ),
            levels=None if self.levels is None else self.levels.varied,
        )


def _varied(row: RowNodes) -> RowNodes:
    """A node fewer, and another tree: all below the first, or one path where that was so."""
    nodes = max(row.num_nodes - 1, 1)
    tail = len(row.depths) - row.num_nodes + nodes
    if tail > 2 and row.depths.max() > 1:
        seen = np.eye(tail, dtype=np.bool_)
        seen[:, 0] = True
        depths = np.minimum(np.arange(tail), 1)
    else:
        seen, depths = np.tri(tail, dtype=np.bool_), np.arange(tail)
    return RowNodes(row.start + 2, row.committed - 1, seen[-nodes:], depths)


@dataclass(frozen=True)
class Queries:
    """What a layer asked for."""

    layer: int
    states: Tensor  # (batch, heads, nodes, head_dim)
    scaling: float


class HeldQueries(QueryTap):
    """A tap that only holds what it is told: whose tokens they are is known at each replay."""

    def __init__(self) -> None:
        super().__init__(())
        self.held: list[Queries] = []

    def take(self, layer: int, query: Tensor, scaling: float) -> None:
        self.held.append(Queries(layer, query, scaling))


@dataclass(frozen=True)
class Computed:
    """What a forward computed. A graph's own is overwritten by its next replay."""

    logits: Tensor  # (batch, nodes, vocab)
    hidden_states: Mapping[int, Tensor] = field(default_factory=dict)  # by tap
    queries: tuple[Queries, ...] = ()

    def copied(self, batch: int, nodes: int) -> "Computed":
        """The first rows and nodes, which are the real ones, in memory of their own."""
        own = [
            self.logits[:batch, :nodes],
            *(states[:batch, :nodes] for states in self.hidden_states.values()),
            *(q.states[:batch, :, :nodes] for q in self.queries),
        ]
        copies = [torch.empty_like(part) for part in own]
        torch._foreach_copy_(copies, own)  # one launch, of one dtype and equal strides
        logits, *rest = copies
        queries = rest[len(self.hidden_states) :]
        return Computed(
            logits,
            dict(zip(self.hidden_states, rest, strict=False)),
            tuple(
                Queries(known.layer, states, known.scaling)
                for known, states in zip(self.queries, queries, strict=True)
            ),
        )
