"""AutoController: asks and scores what promises most tokens a second, by what was measured.

The empty tree is a choice like any other, and so is not to ask. Each request keeps accounts: a
drafter that has lost the time of one plain step and 0.5% of the rest pauses. While all of them do
the request sleeps: its steps cost what plain ones do.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from mmspec.calibration import Calibration
from mmspec.controller.asked import Ask
from mmspec.controller.auto_row import AutoRow
from mmspec.controller.costs import CostModel
from mmspec.controller.fixed import FixedStep
from mmspec.controller.lengths import TextLengths
from mmspec.controller.outlay import Outlay
from mmspec.controller.outlook import BUDGETS, Outlook
from mmspec.controller.pace import Pace
from mmspec.controller.preparing import Preparing
from mmspec.controller.worth import Worth, alone
from mmspec.state import Preparation, Prices, Verdict
from mmspec.tree import TokenTree

_MARGIN = 1.02  # a tree must promise so much more tokens a second than none
_REFRESH_STEPS = 256  # after so many steps with trees a plain one is measured again


class AutoController:
    """Learns costs, acceptance and the worth of asking from all requests; each request's own
    experience comes on top."""

    def __init__(self) -> None:
        self.costs = CostModel()
        self.calibration = Calibration(4.0, 0.99)
        self.worth = Worth()
        self.outlays: dict[str, Outlay] = {}  # of drafters that have to be prepared
        self.lengths = TextLengths()
        self.since_plain = 0  # steps

    def step(self, paces: Sequence[Pace], context: int) -> "AutoStep":
        for pace in paces:
            pace.lengths = self.lengths
        return AutoStep(self, paces, context)


class AutoStep(FixedStep):
    """A step in which some rows may have pinned speculation to on. What is a row's own is decided
    by its `AutoRow`; here is what its rows share: the clock, and the budget."""

    def __init__(self, controller: AutoController, paces: Sequence[Pace], context: int) -> None:
        super().__init__(paces)
        self._controller = controller
        self._context = context
        num_rows, costs = len(paces), controller.costs
        cost = self._cost = costs.step(num_rows, context)
        # Beside a pinned row no step is plain, and there's nothing to wait for.
        self._is_pinned = any(pace.speculate is True for pace in paces)
        # Without a plain step's cost nothing can be weighed: the first one of its size is plain.
        is_stale = controller.since_plain >= _REFRESH_STEPS or not costs.knows(num_rows, context)
        is_plain = (is_stale and not self._is_pinned) or not cost.is_known
        self._is_plain = is_plain
        self._rows = [AutoRow(controller, pace, cost, is_plain=is_plain) for pace in paces]
        self._asked: list[Ask] = []  # of all rows
        self._spent_s = 0.0
        self._preparing = Preparing(costs, controller.outlays, cost)

    @property
    def lets_drafts_wait(self) -> bool:
        return not self._is_pinned

    # Whom to prepare

    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        own = self._rows[row]
        if own.is_pinned:
            return True
        if not self._is_plain and self._preparing.is_worth(own.pace, drafter, due):
            return True
        if not due.can_wait:
            own.waits_unprepared(drafter)
        return False

    def prepared(self, row: int, drafter: str, due: Preparation, seconds: float) -> None:
        super().prepared(row, drafter, due, seconds)
        self._preparing.book(self.paces[row], drafter, due, seconds)

    # Whom to ask

    def sleeps(self, row: int) -> bool:
        return self.paces[row].sleep_s > 0.0

    def order(self, drafters: Sequence[str]) -> Sequence[str]:
        """Those first that save most where nobody else is asked: the others then show what they
        add to it."""
        return sorted(drafters, key=self._alone_s, reverse=True)

    def _alone_s(self, drafter: str) -> float:
        shared = self._controller.worth
        known = [alone(pace.worth, shared, drafter) for pace in self.paces]
        return sum(worth for worth in known if worth is not None and worth > 0.0)

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        return self._rows[row].asks(drafter, tree, least_s)

    def prices(self, row: int, drafter: str) -> Prices | None:
        return self._rows[row].prices(drafter)

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        super().learn(row, drafter, before, after, seconds)
        self._asked.append(self._rows[row].learn(drafter, before, after, seconds))

    # What to score

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        best = self._best(trees)
        for row, outlook in best.items():
            self._rows[row].scored = outlook if outlook.buckets else None
        return super().cut([best[r].tree if r in best else t for r, t in enumerate(trees)])

    def drop(self, trees: Sequence[TokenTree]) -> bool:
        """What they take is booked where they are asked again: what is booked here would use up
        what they may still cost, and nothing of theirs was ever scored."""
        if not any(outlook.tree.num_nodes > 1 for outlook in self._best(trees).values()):
            return False
        for row in self._rows:
            if row.asked and row.asked[-1].after.num_nodes > 1:
                row.asked.clear()
        return True

    def _best(self, trees: Sequence[TokenTree]) -> dict[int, Outlook]:
        """Of each row that has a drafted node: what is worth scoring of its tree."""
        scored = {r: self._rows[r].outlook(t) for r, t in enumerate(trees) if t.num_nodes > 1}
        free = [row for row in scored if self._rows[row].is_free]
        for row in free:
            most = self._rows[row].affordable_scouts(trees[row])
            scored[row] = scored[row].with_scouts(most)
        budget = self._budget(scored, free)
        for row in free:
            probe = self._rows[row].probe
            affordable = 1 if probe == "paused" else max(budget, int(probe is not None))
            scored[row] = scored[row].best(affordable)
        return scored

    def _budget(self, outlooks: Mapping[int, Outlook], free: Sequence[int]) -> int:
        """The number of nodes a row that promises most tokens a second of the whole batch."""
        if self._is_plain or not free:
            return 0
        cost, num_rows = self._cost, len(self.paces)
        # The other rows' nodes are scored anyway, and so are scouts.
        pinned = max(
            len(o.tree.scouts) if r in free else o.tree.num_nodes - 1 for r, o in outlooks.items()
        )
        rest = float(num_rows - len(free))
        tokens = [outlooks[row].tokens for row in free]
        least = rest + sum(row[0] for row in tokens)  # without drafts: one a row
        best, best_rate = 0, _MARGIN * least / cost.seconds(pinned)
        places = min(max(map(len, tokens)), bisect_left(BUDGETS, cost.most_nodes) + 1)
        for place in range(1, places):
            expected = rest + sum(row[min(place, len(row) - 1)] for row in tokens)
            rate = expected / cost.seconds(max(BUDGETS[place], pinned))
            if rate > best_rate:
                best, best_rate = BUDGETS[place], rate
        return best

    # What became of it

    def spent(self, seconds: float) -> None:
        """Books the drafters' own time, and with it what it took to weigh their trees. What it took
        to prepare them is booked already."""
        seconds -= self._preparing.spent_s
        self._spent_s = seconds
        if not self._asked:
            return
        rest_s = max(seconds - sum(ask.seconds for ask in self._asked), 0.0) / len(self._asked)
        for ask in self._asked:
            ask.seconds += rest_s
        # A drafter was asked for all of its rows at once, which take the same each.
        for drafter, own_s in {ask.drafter: ask.seconds for ask in self._asked}.items():
            self._controller.costs.observe_draft(drafter, own_s)

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        controller, num_rows = self._controller, len(self._rows)
        nodes = 1 + max(len(row.scored.buckets) if row.scored else 0 for row in self._rows)
        controller.costs.observe_step(num_rows, nodes, self._context, seconds)
        controller.since_plain = 0 if nodes == 1 else controller.since_plain + 1
        own_s, plain_s = seconds / num_rows, (self._cost.plain_s or seconds) / num_rows
        for row, verdict in zip(self._rows, verdicts, strict=True):
            pace, scored = row.pace, row.scored
            pace.expected_tokens += sum(scored.tree.cumulative_confidence) if scored else 1.0
            pace.plain_s += plain_s
            saved_s = row.saved_by(verdict)
            self._preparing.settle(pace, saved_s, verdict, own_s)
            row.settle(saved_s, own_s)
            if verdict is None:
                continue
            pace.got(len(verdict.tokens), (seconds + self._spent_s) / num_rows)
            for bucket, accepted in scored.outcomes(verdict) if scored else ():
                pace.calibration.observe(bucket, accepted)
                controller.calibration.observe(bucket, accepted)
