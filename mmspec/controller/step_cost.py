"""StepCost: what a batch's next step is believed to take, by the nodes that its rows score."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from mmspec.controller.outlook import BUDGETS

_FIRST_NODES = 6  # scored at most before any tree was measured; then twice what was
_LEAST_NODE = 0.2  # of a plain step, that a probe's node is taken to cost: a guess, or a lucky
# measurement, must not make probes free


@dataclass(frozen=True)
class StepCost:
    """Seconds of all rows together, but where a name says `row`."""

    rows: int
    expected_s: Sequence[float]  # for each of `BUDGETS`; empty before anything was measured
    largest: int  # nodes of the largest tree that was measured, node 0 included

    @property
    def is_known(self) -> bool:
        return bool(self.expected_s)

    @property
    def plain_s(self) -> float:
        """0 where it is not known."""
        return self.expected_s[0] if self.expected_s else 0.0

    @property
    def row_plain_s(self) -> float:
        return self.plain_s / self.rows

    @property
    def row_node_s(self) -> float:
        """Of one node more, in a small tree."""
        return max(self.seconds(_FIRST_NODES) - self.plain_s, 0.0) / _FIRST_NODES / self.rows

    @property
    def probe_s(self) -> float:
        """Of scoring one node to see what becomes of it."""
        node_s = self.expected_s[1] - self.plain_s if self.expected_s else 0.0
        return max(node_s, _LEAST_NODE * self.plain_s)

    @property
    def most_nodes(self) -> int:
        """Drafted nodes that may be scored. A size that was never measured may cost far more than
        believed: they are tried in turn."""
        return max(_FIRST_NODES, 2 * self.largest)

    def seconds(self, nodes: int) -> float:
        """Of a step whose largest tree has so many drafted nodes."""
        return self.expected_s[min(bisect_left(BUDGETS, nodes), len(BUDGETS) - 1)]
