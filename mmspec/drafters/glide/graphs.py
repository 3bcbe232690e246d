"""GlideGraphs: the recorded levels of a head that sees the target's cache."""

from torch import Tensor

from mmspec.drafters.glide.bound_head import HeadForTarget
from mmspec.drafters.glide.glimpse import CacheGlimpse, Glance
from mmspec.drafters.heads import HeadGraphs, NewNodes, OverCache
from mmspec.kv import WritePlan
from mmspec.target.graphs import Computed, ScoreCall, StaticInputs


class GlideGraphs(HeadGraphs[HeadForTarget, StaticInputs]):
    """What is seen of the target's cache has inputs of its own, of the same rows and nodes."""

    def compute(self, nodes: NewNodes, glance: Glance) -> Tensor | None:
        """The logits of a call's leaves, (all rows' leaves, vocab), or None where they must be
        computed without a graph, which overwrites what was written."""
        if self._bucket(nodes) is None:
            return None
        head, cache = self._head, glance.cache
        layers = [cache.flat_layers[index] for index in head.target_layers]
        call = _reading(nodes, glance)
        bucket = call.bucket
        if bucket is None:
            return None
        if any(layer.keys.device != head.device for layer in layers):  # a graph is one device's
            return None
        seen = self._beside.get(bucket)
        if seen is None:
            seen = self._beside[bucket] = StaticInputs(bucket, head.device)
        seen.fill(call)

        def level(given: StaticInputs, attend: OverCache) -> Computed:
            positions = seen.positions if bucket.planes > 1 else seen.positions.unsqueeze(0)
            glimpse = CacheGlimpse(layers, seen.tree_call(call))
            states = head.states(given.ids, given.positions, attend, positions, glimpse)
            return Computed(head.logits(states))

        computed = self._compute(nodes, level, mode=(bucket, cache.addresses))
        return None if computed is None else nodes.leaves_of(computed.logits)


def _reading(nodes: NewNodes, glance: Glance) -> ScoreCall:
    """A call that writes nothing: what its inputs are to hold of the target's positions and rows.
    Its tokens are those of the level's own."""
    batch = nodes.places.shape[0]
    nothing = WritePlan([0] * batch, [0] * batch, [0] * batch)
    return ScoreCall(nodes.places, glance.positions, glance.call, nothing, glance.cache, (), ())
