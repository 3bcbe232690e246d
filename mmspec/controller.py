"""Controllers: whom to ask for a draft, and how many of its nodes to score, at each step.

The automatic one maximises expected tokens a second: what a step costs is measured (`costs`), what
a node is worth is calibrated on what became of nodes like it. The empty tree is a choice like any
other, and so is not to ask. None of this can change a text: coupled verification never looks at
the tree. Under a rule that divides by q whether to ask is all there is to choose: from what became
of earlier steps, before anything is drawn.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal, Protocol

from mmspec.calibration import Calibration
from mmspec.costs import CostModel
from mmspec.state import Verdict
from mmspec.tree import TokenTree

Speculate = Literal["auto"] | bool

_MARGIN = 1.02  # a tree must promise so much more tokens a second than none
_PROBE_SHARE = 0.01  # of the time, for asking and scoring what is not believed to pay
_OPENING_STEPS = 2.0  # plain steps' time that a new request may spend so at once
_MOST_STEPS = 20.0  # plain steps' time that can be saved up for it
_WORTH_SHARE = 0.15  # of the newest proposal in what asking is believed to be worth
_REFRESH_STEPS = 256  # after so many steps with trees a plain one is measured again
_LEVELS = 8  # of confidence, told apart by the calibration
_BUDGETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)


@dataclass
class Pace:
    """One request's part of what a controller knows, and what it did."""

    speculate: Speculate = "auto"
    keeps_trees: bool = False  # a tree is scored whole, whatever was drawn for its nodes
    calibration: Calibration = field(default_factory=lambda: Calibration(1.0, 0.95))
    worth: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds, of asking
    credit_s: float | None = None  # what may be spent on proposals that are not believed to pay
    asked: Counter[str] = field(default_factory=Counter)  # drafter -> steps
    budgets: Counter[int] = field(default_factory=Counter)  # scored nodes below node 0 -> steps
    expected_tokens: float = 0.0  # of all steps
    expected_s: float = 0.0  # what all steps were believed to cost, as far as costs were known
    plain_s: float = 0.0  # and plain ones in their place


class Step(Protocol):
    """One step's decisions, for all rows of a batch."""

    def asks(self, row: int, drafter: str, tree: TokenTree) -> bool:
        """Whether to ask the drafter for `row`, which has `tree` from others."""

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        """The drafter was asked, took `seconds` and made `after` of `before`."""

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What is to be scored of each row's tree."""

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        """What became of the trees that `cut` gave, and the seconds from score to commit."""


class Controller(Protocol):
    """Shared by all requests of an engine."""

    def step(self, paces: Sequence[Pace], context: int) -> Step:
        """Decides for a batch whose longest row has `context` tokens."""


class FixedController:
    """Always asks, always scores the whole tree: the same steps whatever the clock says."""

    def step(self, paces: Sequence[Pace], context: int) -> "FixedStep":
        return FixedStep(paces)


class FixedStep:
    """A step without choices; counts what was done."""

    def __init__(self, paces: Sequence[Pace]) -> None:
        self.paces = paces

    def asks(self, row: int, drafter: str, tree: TokenTree) -> bool:
        return True

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        self.paces[row].asked[drafter] += 1

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        for pace, tree in zip(self.paces, trees, strict=True):
            pace.budgets[tree.num_nodes - 1] += 1
        return list(trees)

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        pass


class AutoController:
    """Learns costs, acceptance and the worth of asking from all requests; each request's own
    experience comes on top."""

    def __init__(self, costs: CostModel | None = None) -> None:
        self.costs = costs or CostModel()
        self.calibration = Calibration(4.0, 0.99)
        self.worth: dict[tuple[str, int], float] = {}
        self.since_plain = 0  # steps

    def step(self, paces: Sequence[Pace], context: int) -> "AutoStep":
        return AutoStep(self, paces, context)


class AutoStep(FixedStep):
    """A step in which some rows may have pinned speculation to on."""

    def __init__(self, controller: AutoController, paces: Sequence[Pace], context: int) -> None:
        super().__init__(paces)
        self._controller = controller
        self._context = context
        rows, costs = len(paces), controller.costs
        self._step_s = costs.step_s(rows, [n + 1 for n in _BUDGETS], context)
        # Without a plain step's cost nothing can be weighed: the first one of its size is plain.
        stale = controller.since_plain >= _REFRESH_STEPS
        self._is_plain = self._step_s is None or stale or not costs.knows(rows, context)
        self._plain_s = self._step_s[0] if self._step_s else 0.0
        self._outlooks: dict[int, _Outlook] = {}
        self._scored: list[_Outlook] = []

    def asks(self, row: int, drafter: str, tree: TokenTree) -> bool:
        pace = self.paces[row]
        if pace.speculate is True:
            return True
        if self._is_plain:
            return False
        key = (drafter, _standing(tree))
        worth = pace.worth.get(key, self._controller.worth.get(key))
        cost = self._controller.costs.draft_s(drafter)
        if worth is None or cost is None or worth > 0.0:
            return True
        return self._spend(pace, max(cost, -worth))  # a tree that is kept whole costs more

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        super().learn(row, drafter, before, after, seconds)
        self._controller.costs.observe_draft(drafter, seconds)
        if self._is_plain:
            return
        saved_s = self._saved_s(row, after) - self._saved_s(row, before) - seconds
        key = (drafter, _standing(before))
        for worth in (self.paces[row].worth, self._controller.worth):
            known = worth.get(key, saved_s)
            worth[key] = known + _WORTH_SHARE * (saved_s - known)

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        outlooks = [self._outlook(row, tree) for row, tree in enumerate(trees)]
        free = [row for row, outlook in enumerate(outlooks) if self._is_free(row, outlook.tree)]
        budget = self._budget(outlooks, free)
        self._scored = list(outlooks)
        for row in free:
            affordable = budget or self._probe(self.paces[row])
            self._scored[row] = outlooks[row].best(affordable)
        return super().cut([outlook.tree for outlook in self._scored])

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        controller, rows = self._controller, len(self.paces)
        nodes = max(outlook.tree.num_nodes for outlook in self._scored)
        controller.costs.observe_step(rows, nodes, self._context, seconds)
        controller.since_plain = 0 if nodes == 1 else controller.since_plain + 1
        for pace, outlook, verdict in zip(self.paces, self._scored, verdicts, strict=True):
            pace.expected_tokens += sum(outlook.tree.cumulative_confidence)
            pace.expected_s += seconds / rows
            pace.plain_s += (self._plain_s or seconds) / rows
            credit_s = _OPENING_STEPS * seconds if pace.credit_s is None else pace.credit_s
            earned_s = _PROBE_SHARE * seconds / rows
            pace.credit_s = min(credit_s + earned_s, _MOST_STEPS * seconds)
            if verdict is not None and outlook.tree.num_nodes > 1:
                for bucket, accepted in outlook.outcomes(verdict):
                    pace.calibration.observe(bucket, accepted)
                    controller.calibration.observe(bucket, accepted)

    def _is_free(self, row: int, tree: TokenTree) -> bool:
        """Whether the row's tree may be cut. Not where the rule divides by q: the cut would look at
        the tokens that were drawn. There all that may be chosen is whether to draw."""
        pace = self.paces[row]
        return tree.num_nodes > 1 and not (pace.speculate is True or pace.keeps_trees)

    def _budget(self, outlooks: "Sequence[_Outlook]", free: Sequence[int]) -> int:
        """The number of nodes a row that promises most tokens a second of the whole batch."""
        if self._is_plain or not free or self._step_s is None:
            return 0
        pinned = max((o.tree.num_nodes for r, o in enumerate(outlooks) if r not in free), default=1)
        most = max(outlooks[row].tree.num_nodes for row in free) - 1
        rest = float(len(outlooks) - len(free))
        best, best_rate = 0, _MARGIN * len(outlooks) / self._seconds(0, pinned)
        for place, budget in enumerate(_BUDGETS):
            if budget == 0:
                continue
            tokens = rest + sum(outlooks[row].tokens(budget) for row in free)
            rate = tokens / self._seconds(place, pinned)
            if rate > best_rate:
                best, best_rate = budget, rate
            if budget >= most:
                break
        return best

    def _seconds(self, place: int, pinned: int) -> float:
        assert self._step_s is not None
        if pinned > 1:  # the other rows' nodes are scored anyway
            place = max(place, bisect_left(_BUDGETS, pinned - 1))
        return self._step_s[min(place, len(_BUDGETS) - 1)]

    def _probe(self, pace: Pace) -> int:
        """1 if the request can afford to score one node that is not believed to pay, else 0."""
        if self._is_plain or self._step_s is None:
            return 0
        return int(self._spend(pace, max(self._step_s[1] - self._plain_s, 0.0)))

    def _spend(self, pace: Pace, seconds: float) -> bool:
        if pace.credit_s is None or pace.credit_s < seconds:
            return False
        pace.credit_s -= seconds
        return True

    def _saved_s(self, row: int, tree: TokenTree) -> float:
        """What the row's share of a step saves by this tree, best cut, against plain steps."""
        if tree.num_nodes == 1 or self._step_s is None:
            return 0.0
        outlook, rows, best = self._outlook(row, tree), len(self.paces), 0.0
        if self.paces[row].keeps_trees:  # scored whole, also where that is a loss
            seconds = self._seconds(0, tree.num_nodes)
            return (outlook.tokens(tree.num_nodes - 1) * self._plain_s - seconds) / rows
        for budget, seconds in zip(_BUDGETS, self._step_s, strict=True):
            saved_s = (outlook.tokens(budget) * self._plain_s - seconds) / rows
            best = max(best, saved_s)
            if budget >= tree.num_nodes - 1:
                break
        return best

    def _outlook(self, row: int, tree: TokenTree) -> "_Outlook":
        known = self._outlooks.get(row)
        if known is None or known.drafted is not tree:
            calibration = self.paces[row].calibration
            known = _Outlook.of(tree, calibration, self._controller.calibration)
            self._outlooks[row] = known
        return known


CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "auto": AutoController,
    "fixed": FixedController,
}


def _standing(tree: TokenTree) -> int:
    """How much the tree promises already: what another drafter adds depends on it."""
    return 0 if tree.num_nodes == 1 else int(sum(tree.cumulative_confidence)).bit_length()


@dataclass(frozen=True)
class _Outlook:
    """A drafted tree, and the same with confidences as they turned out for nodes like its own."""

    drafted: TokenTree
    tree: TokenTree
    buckets: tuple[tuple[str, int], ...]  # (nodes - 1,) what counts as alike, of nodes 1, 2, ...

    @staticmethod
    def of(drafted: TokenTree, own: Calibration, shared: Calibration) -> "_Outlook":
        if drafted.num_nodes == 1:
            return _Outlook(drafted, drafted, ())
        pairs = zip(drafted.drafters[1:], drafted.confidence[1:], strict=True)
        buckets = tuple((drafter, int(believed * (_LEVELS - 0.01))) for drafter, believed in pairs)
        rates = [
            own.rate(bucket, shared.rate(bucket, believed))
            for bucket, believed in zip(buckets, drafted.confidence[1:], strict=True)
        ]
        return _Outlook(drafted, replace(drafted, confidence=(1.0, *rates)), buckets)

    @cached_property
    def _sums(self) -> list[float]:
        """Entry n: expected tokens of a step that scores the best n nodes."""
        return list(accumulate(sorted(self.tree.cumulative_confidence, reverse=True)))

    def tokens(self, budget: int) -> float:
        return self._sums[min(budget, len(self._sums) - 1)]

    def best(self, budget: int) -> "_Outlook":
        """Its best `budget` nodes."""
        if budget >= self.tree.num_nodes - 1:
            return self
        kept = self.tree.best(budget)
        buckets = tuple(self.buckets[node - 1] for node in kept[1:])
        return _Outlook(self.drafted, self.tree.keep(kept), buckets)

    def outcomes(self, verdict: Verdict) -> Iterator[tuple[tuple[str, int], bool]]:
        """Of each node whose parent was accepted: what it is like, and whether it was."""
        accepted = set(verdict.path)
        for node, (parent, bucket) in enumerate(
            zip(self.tree.parents[1:], self.buckets, strict=True), start=1
        ):
            if parent in accepted:
                yield bucket, node in accepted
