"""HeadGraphs: a head's levels recorded once, and then repeated without Python."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmspec.drafters.heads.attention import OverCache
from mmspec.drafters.heads.feature_head import FeatureHead, HeadStates
from mmspec.drafters.heads.nodes import NewNodes
from mmspec.target.graphs import (
    Bucket,
    Computed,
    GraphInfo,
    Recorder,
    ScoreCall,
    ScoreGraphs,
    StaticInputs,
)

_MAX_NODES = 16  # of a row: the logits of all of them are made, where only some are asked for
_FEATURES = 0  # what of `Computed.hidden_states` they are


class HeadGraphs:
    """Of one head, whose calls come one after the other."""

    def __init__(self, recorder: Recorder, head: FeatureHead, watched: nn.Module) -> None:
        """`watched`: the modules that it computes by, whose change ends all graphs."""
        self._graphs = ScoreGraphs(recorder, head.device)
        self._head = head
        self._watched = watched
        self._features: dict[Bucket, Tensor] = {}  # (rows, nodes, hidden) that graphs read

    @property
    def info(self) -> GraphInfo:
        return self._graphs.info

    def compute(self, nodes: NewNodes, features: Tensor) -> tuple[HeadStates, Tensor] | None:
        """The states of a call's nodes and its leaves' logits, (all rows' leaves, own vocab), or
        None where they must be computed without a graph, which overwrites what was written.
        `features` (batch, nodes, hidden)."""
        call = ScoreCall(
            nodes.given, nodes.places, nodes.call, nodes.plan, nodes.cache, nodes.rows, ()
        )
        batch, width = nodes.given.shape
        bucket = call.bucket
        if bucket is None or bucket.nodes > _MAX_NODES:
            return None
        held = self._features.get(bucket)
        if held is None:
            held = features.new_zeros(bucket.rows, bucket.nodes, features.shape[-1])
            self._features[bucket] = held
        held[:batch, :width].copy_(features)
        with torch.no_grad():
            computed = self._graphs.score(
                call, self._forward, mode=features.dtype, model=self._watched
            )
        if computed is None:
            return None
        made = computed.hidden_states[_FEATURES]
        return HeadStates(made, made), nodes.leaves_of(computed.logits)

    def _forward(self, given: StaticInputs, call: ScoreCall) -> Computed:
        plan = replace(call.plan, captured=given.slots, is_viewed=False)
        with call.cache.planned(plan):
            attend = OverCache(call.cache, given.tree_call(call))
            features = self._features[given.bucket]
            states = self._head.states(given.ids, features, given.positions, attend)
            return Computed(self._head.logits(states.read), {_FEATURES: states.features})
