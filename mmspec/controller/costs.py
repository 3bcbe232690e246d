"""CostModel: what a step and a draft were measured to cost, by size."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from statistics import median

from mmspec.state import Preparation

_RECENT = 9  # measurements that an estimate is the median of: one slow step does not move it
_LEAST_S = 1e-6  # that work is taken for, so that one who says there is none is corrected, too
_FEW = 5  # proposals: the first ones may pay for what is done only once
_FADING = 0.01  # of the time since the newest of few, by which it is believed to have been chance
_SLOPE = 0.02  # of a plain step: what one more node is believed to cost before it was measured


class CostModel:
    """Seconds, measured while decoding and shared by all requests of an engine, from any thread.

    A step's cost is kept by rows, nodes (of the largest tree, node 0 included) and context, the
    context by powers of two; between measured node counts it is interpolated.
    """

    def __init__(self, nodes: Sequence[int]) -> None:
        """`nodes`: the node counts, increasing from 1, that `step_s` is asked about."""
        self._nodes = nodes
        self._curves: dict[tuple[int, int], _Curve] = {}
        self._drafts: dict[str, deque[float]] = {}
        self._usual_s: dict[str, float] = {}  # of them, as they stand
        self._asked_s: dict[str, float] = {}  # when each drafter was asked last
        self._clock_s = 0.0  # of all steps
        self._prompt_tokens: deque[float] = deque(maxlen=_RECENT)
        self._misjudged: dict[str, deque[float]] = {}

    def observe_step(self, rows: int, nodes: int, context: int, seconds: float) -> None:
        """A step of `rows` requests took `seconds` from its score call to its commit."""
        curve = self._curves.setdefault((rows, context.bit_length()), _Curve(self._nodes))
        curve.observe(nodes, seconds)
        self._clock_s += seconds

    def knows(self, rows: int, context: int) -> bool:
        """Whether a plain step of this size has been measured."""
        curve = self._curves.get((rows, context.bit_length()))
        return curve is not None and curve.knows_plain

    def step_s(self, rows: int, context: int) -> list[float] | None:
        """Expected seconds of a step for each number of nodes, as measured at this size or at the
        nearest one; None before anything was."""
        curve = self._curve(rows, context)
        return None if curve is None else curve.expected_s

    def largest(self, rows: int, context: int) -> int:
        """The most nodes that were measured, where `step_s` takes its costs from; beyond them they
        are guesses."""
        curve = self._curve(rows, context)
        return 1 if curve is None else curve.largest

    def observe_draft(self, drafter: str, seconds: float) -> None:
        """The drafter took `seconds` a row to propose."""
        recent = self._drafts.setdefault(drafter, deque(maxlen=_RECENT))
        recent.append(seconds)
        self._usual_s[drafter] = median(recent) if len(recent) >= _FEW else min(recent)
        self._asked_s[drafter] = self._clock_s

    def draft_s(self, drafter: str) -> float | None:
        """Expected seconds of a proposal for one row; None before one was measured.

        Of few the least counts, and less with time: a drafter that compiled or recorded something
        when it was first asked would otherwise be taken for a slow one for ever.
        """
        usual_s = self._usual_s.get(drafter)
        if usual_s is None or len(self._drafts[drafter]) >= _FEW:
            return usual_s
        return max(usual_s - _FADING * (self._clock_s - self._asked_s[drafter]), _LEAST_S)

    def observe_prompt(self, token_s: float) -> None:
        """Each token of a prompt took `token_s` to read."""
        self._prompt_tokens.append(token_s)

    def observe_preparation(
        self, drafter: str, due: Preparation, seconds: float, *, plain_s: float, node_s: float
    ) -> None:
        """What was due took `seconds`, where a plain step takes `plain_s`."""
        if drafter not in self._misjudged:  # as with steps: done only once
            self._misjudged[drafter] = deque(maxlen=_RECENT)
            return
        self._misjudged[drafter].append(seconds / self._judged_s(due, plain_s, node_s))

    def preparation_s(
        self, drafter: str, due: Preparation, *, plain_s: float, node_s: float
    ) -> float:
        """Expected seconds of what is due, by what the target takes for such work, and by how far
        that was wrong for the drafter so far. `node_s` stands in for a prompt's token before one
        was measured."""
        recent = self._misjudged.get(drafter)
        return (median(recent) if recent else 1.0) * self._judged_s(due, plain_s, node_s)

    def _judged_s(self, due: Preparation, plain_s: float, node_s: float) -> float:
        token_s = median(self._prompt_tokens) if self._prompt_tokens else node_s
        return max(due.steps * plain_s + due.tokens * token_s + due.seconds, _LEAST_S)

    def _curve(self, rows: int, context: int) -> "_Curve | None":
        size = context.bit_length()
        own = self._curves.get((rows, size))
        if own is not None and own.is_measured:
            return own
        known = self._curves.copy()  # in one go: another thread's may join meanwhile
        measured = [key for key, curve in known.items() if curve.is_measured]
        if not measured:
            return None
        return self._curves[min(measured, key=lambda k: (abs(k[0] - rows), abs(k[1] - size)))]


class _Curve:
    """Cost by nodes, for one number of rows and one context."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = nodes
        self._recent: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}  # median by nodes, which are increasing
        self._expected: list[float] | None = None

    @property
    def knows_plain(self) -> bool:
        return 1 in self._known

    @property
    def is_measured(self) -> bool:
        return bool(self._known)

    @property
    def largest(self) -> int:
        return max(self._known)

    def observe(self, nodes: int, seconds: float) -> None:
        size = self._nodes[min(bisect_left(self._nodes, nodes), len(self._nodes) - 1)]
        if size not in self._recent:  # the first step of a size pays for what is done only once
            self._recent[size] = deque(maxlen=_RECENT)
            return
        recent = self._recent[size]
        recent.append(seconds)
        value = median(recent)
        if value != self._known.get(size):
            self._known[size] = value
            self._expected = None

    @property
    def expected_s(self) -> list[float]:
        expected = self._expected
        if expected is None:
            sizes = sorted(self._known)
            seconds = [self._known[size] for size in sizes]
            expected = [_interpolated(sizes, seconds, count) for count in self._nodes]
            self._expected = expected
        return expected


def _interpolated(sizes: list[int], seconds: list[float], nodes: int) -> float:
    place = bisect_left(sizes, nodes)
    if place < len(sizes) and (place == 0 or sizes[place] == nodes):
        return seconds[place]
    if place == len(sizes):
        slope = _SLOPE * seconds[0]
        if len(sizes) > 1:
            slope = max((seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0]), 0.0)
        return seconds[-1] + slope * (nodes - sizes[-1])
    share = (nodes - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
    return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
