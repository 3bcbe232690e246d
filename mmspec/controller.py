"""Controllers: whom to ask for a draft, and how many of its nodes to score, at each step.

The automatic one maximises expected tokens a second: what a step costs is measured (`costs`), what
a node is worth is calibrated on what became of nodes like it. The empty tree is a choice like any
other, and so is not to ask. Each request keeps accounts: a drafter that has lost the time of one
plain step and 0.5% of the rest pauses. None of this can change a text: coupled verification never
looks at the tree. Under a rule that divides by q whether to ask is all there is to choose: from
what became of earlier steps, before anything is drawn.
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
from mmspec.state import Prices, Verdict
from mmspec.stats import Choices
from mmspec.tree import TokenTree

Speculate = Literal["auto"] | bool

_MARGIN = 1.02  # a tree must promise so much more tokens a second than none
_OPENING_STEPS = 1.0  # plain steps' time that a drafter may lose a request at once
_LOSS_SHARE = 0.005  # of the time, that it may lose on top
_PROBE_SHARE = 0.005  # of the time, for asking whom it does not believe to pay
_LEAST_LOSS = 0.25  # of what it costs, that such an ask is taken to lose
_LEAST_NODE = 0.2  # of a plain step, that a probe's node is taken to cost: a guess, or a lucky
# measurement, must not make probes free
_MOST_STEPS = 20.0  # plain steps' time, of what it saved, that it may lose again
_RISING, _FALLING = 0.15, 0.5  # share of the newest proposal in what asking is believed to be
# worth, where it was worth more and where less: doubts come quickly
_NEWEST_ASK = 0.25  # share of the newest ask in what asks have saved
_USUAL = 2.0  # times its usual cost, that a proposal may count for: now and then one does more
_AT_STAKE = 0.5  # of what a drafter may lose, that one proposal may take
_KEPT = 0.9  # of what is known of a request's speed, a step later
_REFRESH_STEPS = 256  # after so many steps with trees a plain one is measured again
_FIRST_NODES = 6  # scored at most before any tree was measured; then twice what was
_LEVELS = 8  # of confidence, told apart by the calibration
_BUDGETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)


@dataclass
class Account:
    """What one drafter may still cost one request."""

    balance_s: float  # of loss, against plain decoding; what it saved is added
    probe_s: float  # of asking it while it is not believed to pay
    ask_s: float = 0.0  # what an ask has saved of late, as it turned out

    def turned_out(self, saved_s: float) -> None:
        """It was asked, and saved so much."""
        self.ask_s += _NEWEST_ASK * (saved_s - self.ask_s)

    def earn(self, saved_s: float, step_s: float, plain_s: float) -> None:
        """A step that took `step_s`; the drafter saved so much by it, or lost."""
        most = _MOST_STEPS * plain_s
        self.balance_s = min(self.balance_s + saved_s + _LOSS_SHARE * step_s, most)
        self.probe_s = min(self.probe_s + _PROBE_SHARE * step_s, most)


@dataclass
class Pace:
    """One request's part of what a controller knows, and what it did."""

    speculate: Speculate = "auto"
    keeps_trees: bool = False  # a tree is scored whole, whatever was drawn for its nodes
    calibration: Calibration = field(default_factory=lambda: Calibration(1.0, 0.95))
    worth: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds, of asking
    accounts: dict[str, Account] = field(default_factory=dict)  # drafter -> account
    asked: Counter[str] = field(default_factory=Counter)  # drafter -> steps
    budgets: Counter[int] = field(default_factory=Counter)  # scored nodes below node 0 -> steps
    expected_tokens: float = 0.0  # of all steps
    plain_s: float = 0.0  # what as many plain steps were believed to cost
    recent_s: float = 0.0  # its share of the newest steps' time, older ones counting less
    recent_tokens: float = 0.0  # and what it got in it

    def got(self, tokens: int, seconds: float) -> None:
        """A step gave so many tokens."""
        self.recent_s = _KEPT * self.recent_s + seconds
        self.recent_tokens = _KEPT * self.recent_tokens + tokens

    @property
    def choices(self) -> Choices:
        steps = sum(self.budgets.values())
        return Choices(
            asked=dict(self.asked),
            budgets=dict(sorted(self.budgets.items())),
            expected_tokens_per_step=self.expected_tokens / steps if steps else 1.0,
            plain_step_s=self.plain_s / steps if steps else 0.0,
        )


class Step(Protocol):
    """One step's decisions, for all rows of a batch."""

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        """Whether to ask the drafter for `row`, which has `tree` from others. `least_s`: what it
        takes at least, if it keeps to `Prices.most_s`."""

    def prices(self, row: int, drafter: str) -> Prices | None:
        """What the row's time buys; None where that shall not matter, or is not known."""

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        """The drafter was asked, took `seconds` and made `after` of `before`."""

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What is to be scored of each row's tree."""

    def spent(self, seconds: float) -> None:
        """What asking and deciding took, all told."""

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

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        return True

    def prices(self, row: int, drafter: str) -> Prices | None:
        return None

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        self.paces[row].asked[drafter] += 1

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        for pace, tree in zip(self.paces, trees, strict=True):
            pace.budgets[tree.num_nodes - 1] += 1
        return list(trees)

    def spent(self, seconds: float) -> None:
        pass

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        pass


class AutoController:
    """Learns costs, acceptance and the worth of asking from all requests; each request's own
    experience comes on top."""

    def __init__(self, costs: CostModel | None = None) -> None:
        self.costs = costs or CostModel([budget + 1 for budget in _BUDGETS])
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
        self._step_s = costs.step_s(rows, context)
        # Without a plain step's cost nothing can be weighed: the first one of its size is plain.
        stale = controller.since_plain >= _REFRESH_STEPS
        self._is_plain = self._step_s is None or stale or not costs.knows(rows, context)
        self._plain_s = self._step_s[0] if self._step_s else 0.0
        node_s = self._step_s[1] - self._plain_s if self._step_s else 0.0
        self._probe_s = max(node_s, _LEAST_NODE * self._plain_s)
        self._probing: set[int] = set()
        self._paused: set[int] = set()
        self._draft_s: dict[tuple[int, str], float] = {}
        self._spent_s = 0.0
        self._outlooks: dict[int, _Outlook] = {}
        self._scored: list[_Outlook] = []

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        pace = self.paces[row]
        if pace.speculate is True:
            return True
        if self._is_plain:
            return False
        cost_s = self._controller.costs.draft_s(drafter)
        if cost_s is None:
            return True
        if least_s is not None:
            cost_s = min(cost_s, least_s)
        account = self._account(pace, drafter)
        standing = _standing(tree)
        worth = _nearest(pace.worth, drafter, standing)
        if worth is None:
            worth = _nearest(self._controller.worth, drafter, standing)
        pays = worth is None or worth > 0.0 or account.ask_s > 0.0
        if pays and account.balance_s >= cost_s:
            return True
        # Paused, or not believed to pay: asked now and then, and then one node is scored at least.
        is_paused = account.balance_s < cost_s
        probe_s = cost_s + self._probe_s
        if pace.keeps_trees:  # scored whole
            probe_s = max(probe_s, -(worth or 0.0))
        elif worth is not None and not is_paused:  # the rest of its cost comes back
            probe_s = min(probe_s, max(-worth, _LEAST_LOSS * cost_s) + self._probe_s)
        if account.probe_s < probe_s:
            return False
        account.probe_s -= probe_s
        self._probing.add(row)
        if is_paused:
            self._paused.add(row)
        return True

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        super().learn(row, drafter, before, after, seconds)
        self._draft_s[row, drafter] = seconds
        if self._is_plain:
            return
        usual_s = self._controller.costs.draft_s(drafter)
        if usual_s is not None:
            seconds = min(seconds, _USUAL * usual_s)
        saved_s = self._saved_s(row, after) - self._saved_s(row, before) - seconds
        key = (drafter, _standing(before))
        shared = self._controller.worth
        for worth in (self.paces[row].worth, shared):
            known = worth.get(key, shared.get(key, saved_s))
            worth[key] = known + (_RISING if saved_s > known else _FALLING) * (saved_s - known)

    def prices(self, row: int, drafter: str) -> Prices | None:
        pace, rows = self.paces[row], len(self.paces)
        if self._step_s is None or pace.speculate is True or pace.keeps_trees:
            return None
        token_s = self._plain_s / rows
        if pace.recent_tokens:
            token_s = min(token_s, pace.recent_s / pace.recent_tokens)
        place = bisect_left(_BUDGETS, _FIRST_NODES)
        node_s = max(self._step_s[place] - self._plain_s, 0.0) / _FIRST_NODES / rows
        most_s = _AT_STAKE * self._account(pace, drafter).balance_s
        return Prices(token_s, node_s, most_s)

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        outlooks = [self._outlook(row, tree) for row, tree in enumerate(trees)]
        free = [row for row, outlook in enumerate(outlooks) if self._is_free(row, outlook.tree)]
        budget = self._budget(outlooks, free)
        self._scored = list(outlooks)
        for row in free:
            affordable = 1 if row in self._paused else max(budget, int(row in self._probing))
            self._scored[row] = outlooks[row].best(affordable)
        return super().cut([outlook.tree for outlook in self._scored])

    def spent(self, seconds: float) -> None:
        """Books the drafters' own time, and with it what it took to weigh their trees."""
        self._spent_s = seconds
        if self._draft_s:
            rest_s = max(seconds - sum(self._draft_s.values()), 0.0) / len(self._draft_s)
            for (row, drafter), own_s in self._draft_s.items():
                self._draft_s[row, drafter] = own_s + rest_s
                self._controller.costs.observe_draft(drafter, own_s + rest_s)

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        controller, rows = self._controller, len(self.paces)
        nodes = max(outlook.tree.num_nodes for outlook in self._scored)
        controller.costs.observe_step(rows, nodes, self._context, seconds)
        controller.since_plain = 0 if nodes == 1 else controller.since_plain + 1
        for row, (pace, outlook, verdict) in enumerate(
            zip(self.paces, self._scored, verdicts, strict=True)
        ):
            pace.expected_tokens += sum(outlook.tree.cumulative_confidence)
            pace.plain_s += (self._plain_s or seconds) / rows
            self._settle(row, pace, outlook.tree, verdict, seconds / rows)
            if verdict is not None:
                pace.got(len(verdict.tokens), (seconds + self._spent_s) / rows)
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
        # A size that was never measured may cost far more than believed: they are tried in turn.
        known = self._controller.costs.largest(len(outlooks), self._context)
        most = min(most, max(_FIRST_NODES, 2 * known))
        rest = float(len(outlooks) - len(free))
        best, best_rate = 0, _MARGIN * len(outlooks) / self._seconds(0, pinned)
        tokens = [outlooks[row].tokens for row in free]
        for place in range(1, bisect_left(_BUDGETS, most) + 1):
            expected = rest + sum(row[place] if place < len(row) else row[-1] for row in tokens)
            rate = expected / self._seconds(place, pinned)
            if rate > best_rate:
                best, best_rate = _BUDGETS[place], rate
        return best

    def _seconds(self, place: int, pinned: int) -> float:
        assert self._step_s is not None
        if pinned > 1:  # the other rows' nodes are scored anyway
            place = max(place, bisect_left(_BUDGETS, pinned - 1))
        return self._step_s[min(place, len(_BUDGETS) - 1)]

    def _settle(
        self, row: int, pace: Pace, tree: TokenTree, verdict: Verdict | None, seconds: float
    ) -> None:
        """Books what each drafter saved or lost, at what such steps usually cost: an accepted node
        saves a plain step; the tree's cost is shared by the nodes."""
        saved_s = {name: -s for (index, name), s in self._draft_s.items() if index == row}
        nodes = tree.num_nodes - 1
        if nodes and verdict is not None and self._step_s is not None:
            place = min(bisect_left(_BUDGETS, nodes), len(_BUDGETS) - 1)
            node_s = (self._step_s[place] - self._plain_s) / len(self.paces) / nodes
            for name in tree.drafters[1:]:
                saved_s[name] = saved_s.get(name, 0.0) - node_s
            for node in verdict.path[1:]:
                saved_s[tree.drafters[node]] += self._plain_s / len(self.paces)
        for name in {*saved_s, *pace.accounts}:
            account = self._account(pace, name)
            if (row, name) in self._draft_s:
                account.turned_out(saved_s[name])
            account.earn(saved_s.get(name, 0.0), seconds, self._plain_s / len(self.paces))

    def _account(self, pace: Pace, drafter: str) -> Account:
        if drafter not in pace.accounts:
            opening_s = _OPENING_STEPS * self._plain_s / len(self.paces)
            pace.accounts[drafter] = Account(opening_s, opening_s / 2)
        return pace.accounts[drafter]

    def _saved_s(self, row: int, tree: TokenTree) -> float:
        """What the row's share of a step saves by this tree, best cut, against plain steps."""
        if tree.num_nodes == 1 or self._step_s is None:
            return 0.0
        outlook, rows = self._outlook(row, tree), len(self.paces)
        if self.paces[row].keeps_trees:  # scored whole, also where that is a loss
            seconds = self._seconds(0, tree.num_nodes)
            return (outlook.tokens[-1] * self._plain_s - seconds) / rows
        choices = zip(outlook.tokens, self._step_s, strict=False)
        best = max(expected * self._plain_s - seconds for expected, seconds in choices)
        return max(best, 0.0) / rows

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


def _nearest(worth: dict[tuple[str, int], float], drafter: str, standing: int) -> float | None:
    """The drafter's worth beside a tree of this standing; where that is not known, beside a lesser
    one, which is rather more."""
    known = (worth.get((drafter, lesser)) for lesser in range(standing, -1, -1))
    return next((value for value in known if value is not None), None)


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
    def tokens(self) -> list[float]:
        """Expected tokens of a step that scores the tree's best nodes, for each of `_BUDGETS` up
        to the first that holds them all."""
        sums = list(accumulate(sorted(self.tree.cumulative_confidence, reverse=True)))
        last = len(sums) - 1
        return [sums[min(n, last)] for n in _BUDGETS[: bisect_left(_BUDGETS, last) + 1]]

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
