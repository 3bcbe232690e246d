"""DFlashGraphs: the recorded forward of blocks."""

from torch import Tensor

from mmspec.drafters.dflash.attention import whole_blocks
from mmspec.drafters.dflash.bound_head import BlockHead
from mmspec.drafters.heads import HeadGraphs, NewNodes, OverCache
from mmspec.target.graphs import Computed, ScoreCall, StaticInputs


class DFlashGraphs(HeadGraphs[BlockHead, StaticInputs]):
    """A block that sees itself whole has inputs of its own, of the same rows and nodes."""

    most_nodes = 64  # a block is computed whole however few of it are asked for

    def compute(self, nodes: NewNodes) -> Tensor | None:
        """The logits of a call's blocks, (batch, block, own vocab), or None where they must be
        computed without a graph, which overwrites what was written."""
        bucket = self._bucket(nodes)
        if bucket is None:
            return None
        call = ScoreCall(
            nodes.given, nodes.places, whole_blocks(nodes), nodes.plan, nodes.cache, nodes.rows, ()
        )
        held = self._beside.get(bucket)
        if held is None:
            held = self._beside[bucket] = StaticInputs(bucket, self._head.device)
        held.fill(call)

        def level(given: StaticInputs, attend: OverCache) -> Computed:
            whole = OverCache(call.cache, held.tree_call(call))
            states = self._head.states(given.ids, given.positions, attend, whole)
            return Computed(self._head.logits(states))

        computed = self._compute(nodes, level, mode=None)
        return None if computed is None else computed.logits
