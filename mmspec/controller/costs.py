"""CostModel: what a step and a draft were measured to cost, by size."""

from collections import deque
from statistics import median

from mmspec.controller.step_cost import StepCost, size_of
from mmspec.state import Preparation

_RECENT = 9  # measurements that an estimate is the median of: one slow step does not move it
_LEAST_S = 1e-6  # that work is taken for, so that one who says there is none is corrected, too
_FEW = 5  # proposals: the first ones may pay for what is done only once
_FADING = 0.01  # of the time since the newest of few, by which it is believed to have been chance


class CostModel:
    """Seconds, measured while decoding and shared by all requests of an engine, from any thread.

    A step's cost is kept by rows, nodes (of the largest tree, node 0 included) and context, the
    context by powers of two.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[int, int], _Steps] = {}
        self._drafts: dict[str, deque[float]] = {}
        self._usual_s: dict[str, float] = {}  # of them, as they stand
        self._asked_s: dict[str, float] = {}  # when each drafter was asked last
        self._clock_s = 0.0  # of all steps
        self._prompt_tokens: deque[float] = deque(maxlen=_RECENT)
        self._misjudged: dict[str, deque[float]] = {}

    def observe_step(self, rows: int, nodes: int, context: int, seconds: float) -> None:
        """A step of `rows` requests took `seconds` from its score call to its commit."""
        key = rows, context.bit_length()
        self._steps.setdefault(key, _Steps(rows)).observe(nodes, seconds)
        self._clock_s += seconds

    def knows(self, rows: int, context: int) -> bool:
        """Whether a plain step of this size has been measured."""
        steps = self._steps.get((rows, context.bit_length()))
        return steps is not None and 1 in steps.cost.measured

    def step(self, rows: int, context: int) -> StepCost:
        """As measured at this size, or at the nearest one."""
        size = context.bit_length()
        own = self._steps.get((rows, size))
        if own is not None and own.cost.is_known:
            return own.cost
        known = self._steps.copy()  # in one go: another thread's may join meanwhile
        measured = [key for key, steps in known.items() if steps.cost.is_known]
        if not measured:
            return StepCost(rows)
        nearest = min(measured, key=lambda k: (abs(k[0] - rows), abs(k[1] - size)))
        return StepCost(rows, known[nearest].cost.measured)

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


class _Steps:
    """Those of one number of rows and one context."""

    def __init__(self, rows: int) -> None:
        self.cost = StepCost(rows)  # of the newest, by their size
        self._recent: dict[int, deque[float]] = {}

    def observe(self, nodes: int, seconds: float) -> None:
        size, known = size_of(nodes - 1), self.cost
        if size not in self._recent:  # the first step of a size pays for what is done only once
            self._recent[size] = deque(maxlen=_RECENT)
            return
        self._recent[size].append(seconds)
        value = median(self._recent[size])
        if value != known.measured.get(size):
            self.cost = StepCost(known.rows, {**known.measured, size: value})
