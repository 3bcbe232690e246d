"""StepCost: what a batch's next step is believed to take, by the nodes that its rows score."""

from bisect import bisect_left
from collections.abc import Mapping

from mmspec.controller.outlook import BUDGETS

_FIRST_NODES = 6  # scored at most before any tree was measured; then twice what was
_LEAST_NODE = 0.2  # of a plain step, that a probe's node is taken to cost: a guess, or a lucky
# measurement, must not make probes free
_SLOPE = 0.02  # of a plain step: what one more node is believed to cost before it was measured


class StepCost:
    """Seconds of all rows together, but where a name says `row`. It never changes."""

    def __init__(self, rows: int, measured: Mapping[int, float] | None = None) -> None:
        """`measured`: nodes of a step's largest tree, node 0 included, with what such steps took.
        Between them it is interpolated."""
        self.rows = rows
        self.measured = measured or {}
        self._sizes = sorted(self.measured)
        self._seconds: dict[int, float] = {}  # by drafted nodes, of those that were asked for
        self.plain_s = self.measured[self._sizes[0]] if measured else 0.0  # 0: not known
        self.row_plain_s = self.plain_s / rows

    @property
    def is_known(self) -> bool:
        return bool(self._sizes)

    @property
    def largest(self) -> int:
        """Nodes of the largest tree that was measured; what more of them cost is a guess."""
        return self._sizes[-1] if self._sizes else 1

    @property
    def row_node_s(self) -> float:
        """Of one node more, in a small tree."""
        return max(self.seconds(_FIRST_NODES) - self.plain_s, 0.0) / _FIRST_NODES / self.rows

    @property
    def probe_s(self) -> float:
        """Of scoring one node to see what becomes of it."""
        node_s = self.seconds(1) - self.plain_s if self.is_known else 0.0
        return max(node_s, _LEAST_NODE * self.plain_s)

    @property
    def most_nodes(self) -> int:
        """Drafted nodes that may be scored. A size that was never measured may cost far more than
        believed: they are tried in turn."""
        return max(_FIRST_NODES, 2 * self.largest)

    def seconds(self, nodes: int) -> float:
        """Of a step whose largest tree has so many drafted nodes."""
        known = self._seconds.get(nodes)
        if known is None:
            known = self._seconds[nodes] = self._interpolated(size_of(nodes))
        return known

    def _interpolated(self, size: int) -> float:
        sizes, measured = self._sizes, self.measured
        place = bisect_left(sizes, size)
        if place == len(sizes):  # the slope goes on
            last, slope = sizes[-1], _SLOPE * self.plain_s
            if len(sizes) > 1:
                slope = max((measured[last] - self.plain_s) / (last - sizes[0]), 0.0)
            return measured[last] + slope * (size - last)
        above = sizes[place]
        if place == 0 or above == size:
            return measured[above]
        below = sizes[place - 1]
        share = (size - below) / (above - below)
        return measured[below] + share * (measured[above] - measured[below])


def size_of(nodes: int) -> int:
    """Nodes, node 0 included, of the steps that one with so many drafted nodes counts among."""
    return BUDGETS[min(bisect_left(BUDGETS, nodes), len(BUDGETS) - 1)] + 1
