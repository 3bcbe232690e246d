"""CostModel: what a step and a draft were measured to cost, by size."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from statistics import median

_RECENT = 9  # measurements that an estimate is the median of: one slow step does not move it
_SLOPE = 0.02  # of a plain step: what one more node is believed to cost before it was measured
_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class CostModel:
    """Seconds, measured while decoding and shared by all requests of an engine.

    A step's cost is kept by rows, nodes (of the largest tree, node 0 included) and context, the
    context by powers of two; between measured node counts it is interpolated.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[int, int], dict[int, deque[float]]] = {}
        self._curves: dict[tuple[int, int], tuple[list[int], list[float]]] = {}
        self._drafts: dict[str, deque[float]] = {}

    def observe_step(self, rows: int, nodes: int, context: int, seconds: float) -> None:
        """A step of `rows` requests took `seconds` from its score call to its commit."""
        key = (rows, context.bit_length())
        points = self._steps.setdefault(key, {})
        points.setdefault(_bucket(nodes), deque(maxlen=_RECENT)).append(seconds)
        sizes = sorted(points)
        self._curves[key] = (sizes, [median(points[size]) for size in sizes])

    def knows(self, rows: int, context: int) -> bool:
        """Whether a plain step of this size has been measured."""
        return 1 in self._steps.get((rows, context.bit_length()), ())

    def step_s(self, rows: int, nodes: Sequence[int], context: int) -> list[float] | None:
        """Expected seconds of a step for each number of nodes; None before any was."""
        curve = self._curve(rows, context.bit_length())
        return None if curve is None else [_interpolated(curve, count) for count in nodes]

    def observe_draft(self, drafter: str, seconds: float) -> None:
        """The drafter took `seconds` a row to propose."""
        self._drafts.setdefault(drafter, deque(maxlen=_RECENT)).append(seconds)

    def draft_s(self, drafter: str) -> float | None:
        """Expected seconds of a proposal for one row; None before one was measured."""
        recent = self._drafts.get(drafter)
        return median(recent) if recent else None

    def _curve(self, rows: int, context: int) -> tuple[list[int], list[float]] | None:
        """The measured curve of this size, or of the nearest one."""
        curve = self._curves.get((rows, context))
        if curve is None and self._curves:
            nearest = min(self._curves, key=lambda k: (abs(k[0] - rows), abs(k[1] - context)))
            curve = self._curves[nearest]
        return curve


def _bucket(nodes: int) -> int:
    return _NODES[min(bisect_left(_NODES, nodes), len(_NODES) - 1)]


def _interpolated(curve: tuple[list[int], list[float]], nodes: int) -> float:
    sizes, seconds = curve
    place = bisect_left(sizes, nodes)
    if place < len(sizes) and (place == 0 or sizes[place] == nodes):
        return seconds[place]
    if place == len(sizes):
        if len(sizes) > 1:
            slope = max((seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0]), 0.0)
        else:
            slope = _SLOPE * seconds[0]
        return seconds[-1] + slope * (nodes - sizes[-1])
    share = (nodes - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
    return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
