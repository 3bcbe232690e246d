"""HeadGraphs: a head's levels recorded once, and then repeated without Python."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from mmspec.drafters.heads.attention import OverCache
from mmspec.drafters.heads.borrowing import BorrowingHead
from mmspec.drafters.heads.nodes import NewNodes
from mmspec.kv import BufferPool
from mmspec.target import Target
from mmspec.target.graphs import Bucket, Computed, ScoreCall, ScoreGraphs, StaticInputs
from mmspec.target.graphs.score import Inputs

Level = Callable[[StaticInputs, OverCache], Computed]
"""Computes new nodes by their ids and positions, in the inputs, and by their attention: of values
that differ from call to call it reads nothing else but tensors that stay where they are."""
Head = TypeVar("Head", bound=BorrowingHead)
Beside = TypeVar("Beside")  # what else a graph reads, by its bucket


class HeadGraphs(Generic[Head, Beside]):
    """The recorded graphs of one head, where its target's score calls are recorded; not for two
    threads at once."""

    most_nodes = 16  # of a row: the logits of all of them are made, where only some are asked for

    def __init__(self, target: Target, head: Head) -> None:
        self.recorded = recorded_as(target, head.device)
        self.pool = BufferPool() if self.recorded else None  # what was recorded stays where it is
        self._head = head
        self._watched = head.modules  # whose change ends all graphs
        self._beside: dict[Bucket, Beside] = {}

    def clear(self) -> None:
        """Drops them, and buffers that no cache uses."""
        for graphs in self.recorded:
            graphs.clear()
        if self.pool is not None:
            self.pool.clear()
        self._beside.clear()

    def _bucket(self, nodes: NewNodes) -> Bucket | None:
        """The shapes of a call's graph; None where none takes it."""
        bucket = _call(nodes).bucket if self.recorded else None
        return None if bucket is None or bucket.nodes > self.most_nodes else bucket

    def _compute(self, nodes: NewNodes, level: Level, *, mode: Hashable) -> Computed | None:
        """What `level` computes of a call that has a bucket, or None where it must be computed
        without a graph, which overwrites what was written. `mode`: what else tells graphs
        apart."""

        def forward(given: StaticInputs, call: ScoreCall) -> Computed:
            plan = replace(call.plan, captured=given.slots, is_viewed=False)
            with call.cache.planned(plan):
                return level(given, OverCache(call.cache, given.tree_call(call)))

        (graphs,) = self.recorded
        with torch.no_grad():
            return graphs.score(_call(nodes), forward, mode=mode, model=self._watched)


def recorded_as(
    target: Target, device: torch.device, *, inputs: Callable[..., Inputs] = StaticInputs.of
) -> list[ScoreGraphs]:
    """Graphs for forwards on `device` where the target's score calls are recorded; else none."""
    recorder = None if target.graphs is None else target.graphs.recorder.another(device)
    return [] if recorder is None else [ScoreGraphs(recorder, device, inputs=inputs)]


def _call(nodes: NewNodes) -> ScoreCall:
    return ScoreCall(nodes.given, nodes.places, nodes.call, nodes.plan, nodes.cache, nodes.rows, ())
