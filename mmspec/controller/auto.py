"""AutoController: asks and scores what promises most tokens a second, by what was measured.

The empty tree is a choice like any other, and so is not to ask. Each request keeps accounts: a
drafter that has lost the time of one plain step and 0.5% of the rest pauses. While all of them do
the request sleeps: its steps cost what plain ones do.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence, Set

from mmspec.calibration import Calibration
from mmspec.controller.account import Account
from mmspec.controller.asked import Ask, owners_of
from mmspec.controller.costs import CostModel
from mmspec.controller.fixed import FixedStep
from mmspec.controller.lengths import TextLengths
from mmspec.controller.outlay import Outlay
from mmspec.controller.outlook import BUDGETS, Outlook
from mmspec.controller.pace import Pace
from mmspec.controller.preparing import Preparing
from mmspec.controller.worth import Worth, alone, nearest, standing_of
from mmspec.state import Preparation, Prices, Verdict
from mmspec.tree import TokenTree

_MARGIN = 1.02  # a tree must promise so much more tokens a second than none
_LEAST_LOSS = 0.25  # of what it costs, that an ask which is not believed to pay is taken to lose
_USUAL = 2.0  # times its usual cost, that a proposal may count for: now and then one does more
_AT_STAKE = 0.5  # of what a drafter may lose, that one proposal may take
_LONGEST_SLEEP = 32.0  # plain steps' time: what asking costs may have become less meanwhile
_UNPREPARED_SLEEP = 4.0  # of one that would have to be prepared first, and may not: as long as its
# text grows, or others save something, that may change
_REFRESH_STEPS = 256  # after so many steps with trees a plain one is measured again


class AutoController:
    """Learns costs, acceptance and the worth of asking from all requests; each request's own
    experience comes on top."""

    def __init__(self, costs: CostModel | None = None) -> None:
        self.costs = costs or CostModel()
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
    """A step in which some rows may have pinned speculation to on."""

    def __init__(self, controller: AutoController, paces: Sequence[Pace], context: int) -> None:
        super().__init__(paces)
        self._controller = controller
        self._context = context
        rows, costs = len(paces), controller.costs
        self._cost = costs.step(rows, context)
        # Without a plain step's cost nothing can be weighed: the first one of its size is plain.
        stale = controller.since_plain >= _REFRESH_STEPS or not costs.knows(rows, context)
        # Beside a pinned row none is plain, and there's nothing to wait for.
        is_refreshed = stale and not any(pace.speculate is True for pace in paces)
        self._is_plain = is_refreshed or not self._cost.is_known
        self._probing: set[tuple[int, str]] = set()
        self._paused: set[tuple[int, str]] = set()
        self._waits_s: dict[int, dict[str, float]] = {}  # of rows: until each drafter may be asked
        self._draft_s: dict[tuple[int, str], float] = {}
        self._asked: dict[int, list[Ask]] = {}  # of each row, in their order
        self._spent_s = 0.0
        self._preparing = Preparing(costs, controller.outlays, self._cost)
        self._outlooks: dict[int, Outlook] = {}
        self._scored: dict[int, Outlook] = {}  # of the rows whose drafted nodes are scored

    @property
    def lets_drafts_wait(self) -> bool:
        return not any(pace.speculate is True for pace in self.paces)

    # Whom to prepare

    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        pace = self.paces[row]
        if pace.speculate is True:
            return True
        if not self._is_plain and self._preparing.is_worth(pace, drafter, due):
            return True
        if not due.can_wait:
            self._waits_s.setdefault(row, {})[drafter] = _UNPREPARED_SLEEP * self._cost.row_plain_s
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
        if len(drafters) < 2:
            return drafters
        return sorted(drafters, key=self._alone_s, reverse=True)

    def _alone_s(self, drafter: str) -> float:
        shared = self._controller.worth
        known = [alone(pace.worth, shared, drafter) for pace in self.paces]
        return sum(worth for worth in known if worth is not None and worth > 0.0)

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        pace = self.paces[row]
        if pace.speculate is True:
            return True
        if self._is_plain or self.sleeps(row):
            return False
        wait_s = self._wait_s(row, drafter, tree, least_s)
        self._waits_s.setdefault(row, {})[drafter] = wait_s
        return wait_s == 0.0

    def _wait_s(self, row: int, drafter: str, tree: TokenTree, least_s: float | None) -> float:
        """Of the request's steps, until the drafter may be asked; 0: now."""
        pace, cost_s = self.paces[row], self._controller.costs.draft_s(drafter)
        if cost_s is None:
            return 0.0
        if least_s is not None:
            cost_s = min(cost_s, least_s)
        account = self._account(pace, drafter)
        standing = standing_of(tree)
        asks = account.beside(standing)
        worth = nearest(pace.worth, self._controller.worth, drafter, standing)
        pays = worth is None or worth + asks.saved_s > 0.0
        if pays and account.balance_s >= cost_s:
            return 0.0
        # Paused, or not believed to pay: asked now and then, and then one node is scored at least.
        is_paused = account.balance_s < cost_s
        node_s = self._cost.probe_s
        probe_s = cost_s + node_s
        if pace.keeps_trees:  # scored whole
            probe_s = max(probe_s, -(worth or 0.0))
        elif worth is not None and not is_paused:  # the rest of its cost comes back
            probe_s = min(probe_s, max(-worth, _LEAST_LOSS * cost_s) + node_s)
        wait_s = account.wait_s(standing, cost_s if pays else math.inf, probe_s)
        if wait_s == 0.0:
            self._probing.add((row, drafter))
            if is_paused:
                self._paused.add((row, drafter))
        return wait_s

    def prices(self, row: int, drafter: str) -> Prices | None:
        pace, cost = self.paces[row], self._cost
        if not cost.is_known or pace.speculate is True or pace.keeps_trees:
            return None
        token_s = cost.row_plain_s
        if pace.recent_tokens:
            token_s = min(token_s, pace.recent_s / pace.recent_tokens)
        most_s = _AT_STAKE * self._account(pace, drafter).balance_s
        return Prices(token_s, cost.row_node_s, most_s)

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        super().learn(row, drafter, before, after, seconds)
        self._draft_s[row, drafter] = seconds
        self._asked.setdefault(row, []).append(Ask(drafter, standing_of(before), after))
        if self._is_plain:
            return
        # Of the first proposal nothing is usual yet, and it may pay for what is done only once.
        usual_s = self._controller.costs.draft_s(drafter) or self._cost.row_plain_s
        seconds = min(seconds, _USUAL * usual_s)
        saved_s = self._saved_s(row, after) - self._saved_s(row, before) - seconds
        if self._affordable_scouts(row, after):  # it shows later: the account bounds what they cost
            saved_s = max(saved_s, seconds)
        standing, shared = standing_of(before), self._controller.worth
        prior_s = shared.at(drafter, standing)
        cost_steps = seconds / self._cost.row_plain_s
        self.paces[row].worth.learn(
            drafter, standing, saved_s, cost_steps=cost_steps, prior_s=prior_s
        )
        shared.learn(drafter, standing, saved_s, cost_steps=cost_steps)

    # What to score

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        best = self._best(trees)
        self._scored = {row: outlook for row, outlook in best.items() if outlook.buckets}
        return super().cut([best[r].tree if r in best else t for r, t in enumerate(trees)])

    def drop(self, trees: Sequence[TokenTree]) -> bool:
        """What they take is booked where they are asked again: what is booked here would use up
        what they may still cost, and nothing of theirs was ever scored."""
        if not any(outlook.tree.num_nodes > 1 for outlook in self._best(trees).values()):
            return False
        self._asked = {
            r: asked for r, asked in self._asked.items() if asked[-1].after.num_nodes == 1
        }
        return True

    def _best(self, trees: Sequence[TokenTree]) -> dict[int, Outlook]:
        """Of each row that has a drafted node: what is worth scoring of its tree."""
        scored = {row: self._outlook(row, t) for row, t in enumerate(trees) if t.num_nodes > 1}
        if not scored:
            return scored
        free = [row for row in scored if self._is_free(row)]
        for row in free:
            scored[row] = scored[row].with_scouts(self._affordable_scouts(row, trees[row]))
        budget = self._budget(scored, free)
        for row in free:
            is_probing = self._is_any_of(self._probing, row)
            affordable = 1 if self._is_any_of(self._paused, row) else max(budget, int(is_probing))
            scored[row] = scored[row].best(affordable)
        return scored

    def _is_any_of(self, chosen: Set[tuple[int, str]], row: int) -> bool:
        """Whether any drafter that was asked for the row is among them."""
        return any((row, ask.drafter) in chosen for ask in self._asked.get(row, ()))

    def _is_free(self, row: int) -> bool:
        """Whether the row's tree may be cut. Not where the rule divides by q: the cut would look at
        the tokens that were drawn. There all that may be chosen is whether to draw."""
        pace = self.paces[row]
        return not (pace.speculate is True or pace.keeps_trees)

    def _budget(self, outlooks: Mapping[int, Outlook], free: Sequence[int]) -> int:
        """The number of nodes a row that promises most tokens a second of the whole batch."""
        if self._is_plain or not free:
            return 0
        cost, num_rows = self._cost, len(self.paces)
        # The other rows' nodes are scored anyway, and so are scouts.
        pinned = max(
            len(o.tree.scouts) if r in free else o.tree.num_nodes - 1 for r, o in outlooks.items()
        )
        most = min(max(outlooks[row].tree.num_nodes for row in free) - 1, cost.most_nodes)
        rest = float(num_rows - len(free))
        tokens = [outlooks[row].tokens for row in free]
        least = rest + sum(row[0] for row in tokens)  # without drafts: one a row
        best, best_rate = 0, _MARGIN * least / cost.seconds(pinned)
        for place, budget in enumerate(BUDGETS[: bisect_left(BUDGETS, most) + 1]):
            expected = rest + sum(row[min(place, len(row) - 1)] for row in tokens)
            rate = expected / cost.seconds(max(budget, pinned))
            if budget and rate > best_rate:
                best, best_rate = budget, rate
        return best

    def _affordable_scouts(self, row: int, tree: TokenTree) -> int:
        """How many of the tree's scouts may be scored: if nothing comes of them, all that they
        cost is lost."""
        if not tree.scouts or self._is_plain or self._is_any_of(self._paused, row):
            return 0
        names = {tree.drafters[node] for node in tree.scouts}
        pace, cost = self.paces[row], self._cost
        most_s = _AT_STAKE * min(self._account(pace, name).balance_s for name in names)
        most = min(len(tree.scouts), 2 * cost.largest)  # other sizes' costs are guesses
        affordable = 0
        for size in (*(budget for budget in BUDGETS if 0 < budget < most), most):
            if cost.seconds(size) - cost.plain_s <= most_s * cost.rows:
                affordable = size
        return affordable

    # What became of it

    def spent(self, seconds: float) -> None:
        """Books the drafters' own time, and with it what it took to weigh their trees. What it took
        to prepare them is booked already."""
        seconds -= self._preparing.spent_s
        self._spent_s = seconds
        if self._draft_s:
            rest_s = max(seconds - sum(self._draft_s.values()), 0.0) / len(self._draft_s)
            for asked in self._draft_s:
                self._draft_s[asked] += rest_s
            # It was asked for all of its rows at once, which take the same each.
            each_s = {drafter: own_s for (_, drafter), own_s in self._draft_s.items()}
            for drafter, own_s in each_s.items():
                self._controller.costs.observe_draft(drafter, own_s)

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        controller, rows = self._controller, len(self.paces)
        scored = self._scored
        nodes = 1 + max(len(outlook.buckets) for outlook in scored.values()) if scored else 1
        controller.costs.observe_step(rows, nodes, self._context, seconds)
        controller.since_plain = 0 if nodes == 1 else controller.since_plain + 1
        for row, (pace, verdict) in enumerate(zip(self.paces, verdicts, strict=True)):
            outlook = scored.get(row)
            pace.expected_tokens += sum(outlook.tree.cumulative_confidence) if outlook else 1.0
            pace.plain_s += (self._cost.plain_s or seconds) / rows
            self._settle(row, verdict, seconds / rows)
            if verdict is not None:
                pace.got(len(verdict.tokens), (seconds + self._spent_s) / rows)
            if verdict is not None and outlook is not None:
                for bucket, accepted in outlook.outcomes(verdict):
                    pace.calibration.observe(bucket, accepted)
                    controller.calibration.observe(bucket, accepted)

    def _settle(self, row: int, verdict: Verdict | None, seconds: float) -> None:
        """Books what each drafter saved or lost by the row's share of the step."""
        pace, row_plain_s = self.paces[row], self._cost.row_plain_s
        saved_s = self._saved_by(row, verdict)
        self._preparing.settle(pace, saved_s, verdict, seconds)
        told_s = pace.told_s(seconds)
        if told_s is None:
            return
        for ask in self._asked.get(row, ()):
            is_probe, own_s = (row, ask.drafter) in self._probing, saved_s[ask.drafter]
            account = self._account(pace, ask.drafter)
            account.turned_out(ask.standing, own_s, is_probe=is_probe, plain_s=row_plain_s)
        for name, account in pace.accounts.items():
            account.earn(saved_s.get(name, 0.0), told_s, row_plain_s)
        # What this step takes is waited for already.
        wait_s = min(self._waits_s.get(row, {}).values(), default=0.0)
        pace.sleep_s = min(wait_s, _LONGEST_SLEEP * row_plain_s) - seconds

    def _saved_by(self, row: int, verdict: Verdict | None) -> dict[str, float]:
        """Seconds that each drafter that was asked saved or lost, at what such steps usually cost:
        an accepted node saves a plain step; the tree's cost is shared by the nodes. A node belongs
        to who proposed it first: what others say again saves nothing."""
        asked, cost, outlook = self._asked.get(row, ()), self._cost, self._scored.get(row)
        if not asked:
            return {}
        saved_s = {ask.drafter: -self._draft_s[row, ask.drafter] for ask in asked}
        if outlook is not None and verdict is not None and cost.is_known:
            nodes = len(outlook.buckets)
            node_s = (cost.seconds(nodes) - cost.plain_s) / cost.rows / nodes
            owners = owners_of(outlook.tree, asked)
            for name in owners[1:]:
                saved_s[name] -= node_s
            for node in verdict.path[1:]:
                saved_s[owners[node]] += cost.row_plain_s
        return saved_s

    def _account(self, pace: Pace, drafter: str) -> Account:
        if drafter not in pace.accounts:
            pace.accounts[drafter] = Account.opened(self._cost.row_plain_s)
        return pace.accounts[drafter]

    def _saved_s(self, row: int, tree: TokenTree) -> float:
        """What the row's share of a step saves by this tree, best cut, against plain steps."""
        cost = self._cost
        if tree.num_nodes == 1 or not cost.is_known:
            return 0.0
        outlook = self._outlook(row, tree).with_scouts(0)
        if self.paces[row].keeps_trees:  # scored whole, also where that is a loss
            return (
                outlook.tokens[-1] * cost.plain_s - cost.seconds(tree.num_nodes - 1)
            ) / cost.rows
        choices = zip(outlook.tokens, BUDGETS, strict=False)
        best = max(tokens * cost.plain_s - cost.seconds(budget) for tokens, budget in choices)
        return max(best, 0.0) / cost.rows

    def _outlook(self, row: int, tree: TokenTree) -> Outlook:
        known = self._outlooks.get(row)
        if known is None or known.drafted is not tree:
            calibration = self.paces[row].calibration
            known = Outlook.of(tree, calibration, self._controller.calibration)
            self._outlooks[row] = known
        return known
