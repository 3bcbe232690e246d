"""HeadGraphs: a head's levels recorded once, and then repeated without Python."""

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import nn

from mmspec.drafters.heads.attention import OverCache
from mmspec.drafters.heads.nodes import NewNodes
from mmspec.target import Target
from mmspec.target.graphs import Bucket, Computed, Recorder, ScoreCall, ScoreGraphs, StaticInputs

_MAX_NODES = 16  # of a row: the logits of all of them are made, where only some are asked for

Level = Callable[[StaticInputs, OverCache], Computed]
"""Computes new nodes by their ids and positions, in the inputs, and by their attention: of values
that differ from call to call it reads nothing else but tensors that stay where they are."""


class HeadGraphs:
    """The recorded graphs of one head; not for two threads at once."""

    def __init__(self, recorder: Recorder, device: torch.device, watched: nn.Module) -> None:
        """`watched`: the modules that it computes by, whose change ends all graphs."""
        self.graphs = ScoreGraphs(recorder, device)
        self._watched = watched

    @staticmethod
    def as_target(target: Target, device: torch.device, watched: nn.Module) -> "HeadGraphs | None":
        """Those of a head on `device` where the target's score calls are recorded; else None."""
        recorder = recorder_as(target, device)
        return None if recorder is None else HeadGraphs(recorder, device, watched)

    def bucket(self, nodes: NewNodes) -> Bucket | None:
        """The shapes of a call's graph; None where none takes it."""
        bucket = _call(nodes).bucket
        return None if bucket is None or bucket.nodes > _MAX_NODES else bucket

    def compute(self, nodes: NewNodes, level: Level, *, mode: Hashable) -> Computed | None:
        """What `level` computes of a call that has a bucket, or None where it must be computed
        without a graph, which overwrites what was written. `mode`: what else tells graphs
        apart."""

        def forward(given: StaticInputs, call: ScoreCall) -> Computed:
            plan = replace(call.plan, captured=given.slots, is_viewed=False)
            with call.cache.planned(plan):
                return level(given, OverCache(call.cache, given.tree_call(call)))

        with torch.no_grad():
            return self.graphs.score(_call(nodes), forward, mode=mode, model=self._watched)


def as_one(*modules: nn.Module) -> nn.ModuleList:
    """Modules as one, to be watched for changes; they stay as they are, in training or not."""
    joined = nn.ModuleList(modules)
    joined.training = False
    return joined


def recorder_as(target: Target, device: torch.device) -> Recorder | None:
    """One for forwards on `device` where the target's score calls are recorded; else None."""
    return None if target.graphs is None else target.graphs.recorder.another(device)


def _call(nodes: NewNodes) -> ScoreCall:
    return ScoreCall(nodes.given, nodes.places, nodes.call, nodes.plan, nodes.cache, nodes.rows, ())
