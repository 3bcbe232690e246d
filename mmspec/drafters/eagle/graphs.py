"""EagleGraphs: the recorded levels of a head that reads a feature beside each token."""

from torch import Tensor

from mmspec.drafters.eagle.bound_head import BoundHead
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.heads import HeadGraphs, NewNodes, OverCache
from mmspec.target.graphs import Bucket, Computed, StaticInputs

_FEATURES = 0  # what of `Computed.hidden_states` they are


class EagleGraphs:
    """The recorded graphs of one head; not for two threads at once."""

    def __init__(self, graphs: HeadGraphs, head: BoundHead) -> None:
        self._graphs = graphs
        self._head = head
        self._features: dict[Bucket, Tensor] = {}  # (rows, nodes, hidden) that graphs read

    def clear(self) -> None:
        self._graphs.graphs.clear()
        self._features.clear()

    def compute(self, nodes: NewNodes, features: Tensor) -> tuple[HeadStates, Tensor] | None:
        """The states of a call's nodes and its leaves' logits, (all rows' leaves, own vocab), or
        None where they must be computed without a graph, which overwrites what was written.
        `features` (batch, nodes, hidden)."""
        batch, width = nodes.given.shape
        bucket = self._graphs.bucket(nodes)
        if bucket is None:
            return None
        held = self._features.get(bucket)
        if held is None:
            held = features.new_zeros(bucket.rows, bucket.nodes, features.shape[-1])
            self._features[bucket] = held
        held[:batch, :width].copy_(features)
        computed = self._graphs.compute(nodes, self._level, mode=features.dtype)
        if computed is None:
            return None
        made = computed.hidden_states[_FEATURES]
        return HeadStates(made, made), nodes.leaves_of(computed.logits)

    def _level(self, given: StaticInputs, attend: OverCache) -> Computed:
        features = self._features[given.bucket]
        states = self._head.states(given.ids, features, given.positions, attend)
        return Computed(self._head.logits(states.read), {_FEATURES: states.features})
