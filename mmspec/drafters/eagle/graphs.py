"""EagleGraphs: the recorded levels of a head that reads a feature beside each token."""

from torch import Tensor

from mmspec.drafters.eagle.bound_head import FeatureHead
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.heads import HeadGraphs, NewNodes, OverCache
from mmspec.target.graphs import Computed, StaticInputs

_FEATURES = 0  # what of `Computed.hidden_states` they are


class EagleGraphs(HeadGraphs[FeatureHead, Tensor]):
    """Beside the tokens they read features, (rows, nodes, hidden)."""

    def compute(self, nodes: NewNodes, features: Tensor) -> tuple[HeadStates, Tensor] | None:
        """The states of a call's nodes and its leaves' logits, (all rows' leaves, own vocab), or
        None where they must be computed without a graph, which overwrites what was written.
        `features` (batch, nodes, hidden)."""
        batch, width = nodes.given.shape
        bucket = self._bucket(nodes)
        if bucket is None:
            return None
        held = self._beside.get(bucket)
        if held is None:
            held = features.new_zeros(bucket.rows, bucket.nodes, features.shape[-1])
            self._beside[bucket] = held
        held[:batch, :width].copy_(features)
        computed = self._compute(nodes, self._level, mode=features.dtype)
        if computed is None:
            return None
        made = computed.hidden_states[_FEATURES]
        return HeadStates(made, made), nodes.leaves_of(computed.logits)

    def _level(self, given: StaticInputs, attend: OverCache) -> Computed:
        features = self._beside[given.bucket]
        states = self._head.states(given.ids, features, given.positions, attend)
        return Computed(self._head.logits(states.read), {_FEATURES: states.features})
