"""What the tokens of a block see of each other, by the layer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from mmspec.attention import TreeCall
from mmspec.drafters.heads import Attend, NewNodes


def whole_blocks(nodes: NewNodes) -> TreeCall:
    """The call of chains of nodes, in which each sees all of its chain."""
    call = nodes.call
    rows = [replace(row, visible=np.ones_like(row.visible)) for row in call.rows]
    return TreeCall(rows, call.layers, call.reaches)


class ByLayer:
    """Attends in one of two ways."""

    def __init__(self, is_causal: Sequence[bool], causal: Attend, whole: Attend) -> None:
        self._ways = [causal if own else whole for own in is_causal]

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        return self._ways[layer](layer, query, keys, values, scaling)
