"""AutoRow: one row of an automatic controller's step, from whom to ask to what they have saved."""

import math
from typing import TYPE_CHECKING

from mmspec.controller.account import Account
from mmspec.controller.asked import Ask, Probe, owners_of
from mmspec.controller.outlook import BUDGETS, Outlook
from mmspec.controller.pace import Pace
from mmspec.controller.step_cost import StepCost
from mmspec.controller.worth import nearest, standing_of
from mmspec.state import Prices, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.controller.auto import AutoController

_LEAST_LOSS = 0.25  # of what it costs, that an ask which is not believed to pay is taken to lose
_USUAL = 2.0  # times its usual cost, that a proposal may count for: now and then one does more
_AT_STAKE = 0.5  # of what a drafter may lose, that one proposal may take
_LONGEST_SLEEP = 32.0  # plain steps' time: what asking costs may have become less meanwhile
_UNPREPARED_SLEEP = 4.0  # of one that would have to be prepared first, and may not: as long as its
# text grows, or others save something, that may change


class AutoRow:
    """What the row's pace and what all requests have taught say of it. In seconds of its share of
    the step."""

    def __init__(
        self, controller: "AutoController", pace: Pace, cost: StepCost, *, is_plain: bool
    ) -> None:
        """`cost` of the step, in which nobody is asked where it `is_plain`."""
        self.pace = pace
        self.asked: list[Ask] = []
        self.scored: Outlook | None = None  # of its tree, where drafted nodes are scored
        self._controller, self._cost, self._is_plain = controller, cost, is_plain
        self._waits_s: dict[str, float] = {}  # until each drafter may be asked
        self._probes: dict[str, Probe] = {}  # of drafters that may now and then only
        self._outlook: Outlook | None = None  # of the tree that was looked at last

    @property
    def is_pinned(self) -> bool:
        return self.pace.speculate is True

    @property
    def is_free(self) -> bool:
        """Whether its tree may be cut. Not where the rule divides by q: the cut would look at the
        tokens that were drawn. There all that may be chosen is whether to draw."""
        return not (self.is_pinned or self.pace.keeps_trees)

    @property
    def probe(self) -> Probe | None:
        """What any of those who were asked is; "paused" before "doubted"."""
        probes = {ask.probe for ask in self.asked}
        return "paused" if "paused" in probes else "doubted" if "doubted" in probes else None

    # Whom to ask

    def asks(self, drafter: str, tree: TokenTree, least_s: float | None) -> bool:
        if self.is_pinned:
            return True
        if self._is_plain or self.pace.sleep_s > 0.0:
            return False
        wait_s = self._waits_s[drafter] = self._wait_s(drafter, tree, least_s)
        return wait_s == 0.0

    def waits_unprepared(self, drafter: str) -> None:
        """It would be asked, if it were prepared."""
        self._waits_s[drafter] = _UNPREPARED_SLEEP * self._cost.row_plain_s

    def _wait_s(self, drafter: str, tree: TokenTree, least_s: float | None) -> float:
        """Of the request's steps, until the drafter may be asked; 0: now."""
        shared = self._controller
        cost_s = shared.costs.draft_s(drafter)
        if cost_s is None:
            return 0.0
        if least_s is not None:
            cost_s = min(cost_s, least_s)
        account = self._account(drafter)
        standing = standing_of(tree)
        asks = account.beside(standing)
        worth = nearest(self.pace.worth, shared.worth, drafter, standing)
        pays = worth is None or worth + asks.saved_s > 0.0
        if pays and account.balance_s >= cost_s:
            return 0.0
        # Paused, or not believed to pay: asked now and then, and then one node is scored at least.
        is_paused = account.balance_s < cost_s
        node_s = self._cost.probe_s
        probe_s = cost_s + node_s
        loss_s = -(worth or 0.0)
        if self.pace.keeps_trees:  # scored whole
            probe_s = max(probe_s, loss_s)
        elif not is_paused:  # the rest of its cost comes back
            probe_s = min(probe_s, max(loss_s, _LEAST_LOSS * cost_s) + node_s)
        self._probes[drafter] = "paused" if is_paused else "doubted"
        return account.wait_s(standing, cost_s if pays else math.inf, probe_s)

    def prices(self, drafter: str) -> Prices | None:
        pace, cost = self.pace, self._cost
        if not (cost.is_known and self.is_free):
            return None
        token_s = cost.row_plain_s
        if pace.recent_tokens:
            token_s = min(token_s, pace.recent_s / pace.recent_tokens)
        most_s = _AT_STAKE * self._account(drafter).balance_s
        return Prices(token_s, cost.row_node_s, most_s)

    def learn(self, drafter: str, before: TokenTree, after: TokenTree, seconds: float) -> Ask:
        """The drafter was asked; what that was expected to save is what it is worth."""
        standing, shared = standing_of(before), self._controller
        ask = Ask(drafter, standing, after, seconds, self._probes.get(drafter))
        self.asked.append(ask)
        if self._is_plain:
            return ask
        # Of the first proposal nothing is usual yet, and it may pay for what is done only once.
        usual_s = shared.costs.draft_s(drafter) or self._cost.row_plain_s
        seconds = min(seconds, _USUAL * usual_s)
        saved_s = self._expected_s(after) - self._expected_s(before) - seconds
        if self.affordable_scouts(after):  # it shows later: the account bounds what they cost
            saved_s = max(saved_s, seconds)
        cost_steps, prior_s = seconds / self._cost.row_plain_s, shared.worth.at(drafter, standing)
        self.pace.worth.learn(drafter, standing, saved_s, cost_steps=cost_steps, prior_s=prior_s)
        shared.worth.learn(drafter, standing, saved_s, cost_steps=cost_steps)
        return ask

    # What to score

    def outlook(self, tree: TokenTree) -> Outlook:
        known = self._outlook
        if known is None or known.drafted is not tree:
            known = Outlook.of(tree, self.pace.calibration, self._controller.calibration)
            self._outlook = known
        return known

    def affordable_scouts(self, tree: TokenTree) -> int:
        """How many of the tree's scouts may be scored: if nothing comes of them, all that they
        cost is lost."""
        if not tree.scouts or self._is_plain or self.probe == "paused":
            return 0
        names, cost = {tree.drafters[node] for node in tree.scouts}, self._cost
        most_s = _AT_STAKE * min(self._account(name).balance_s for name in names)
        most = min(len(tree.scouts), 2 * cost.largest)  # other sizes' costs are guesses
        affordable = 0
        for size in (*(budget for budget in BUDGETS if 0 < budget < most), most):
            if cost.seconds(size) - cost.plain_s <= most_s * cost.rows:
                affordable = size
        return affordable

    def _expected_s(self, tree: TokenTree) -> float:
        """What a step saves by this tree, best cut, against plain steps."""
        cost = self._cost
        if tree.num_nodes == 1:
            return 0.0
        tokens = self.outlook(tree).with_scouts(0).tokens
        if self.pace.keeps_trees:  # scored whole, also where that is a loss
            return (tokens[-1] * cost.plain_s - cost.seconds(tree.num_nodes - 1)) / cost.rows
        choices = zip(tokens, BUDGETS, strict=False)
        best = max(tokens * cost.plain_s - cost.seconds(budget) for tokens, budget in choices)
        return max(best, 0.0) / cost.rows

    # What became of it

    def saved_by(self, verdict: Verdict | None) -> dict[str, float]:
        """Seconds that each drafter that was asked saved or lost, at what such steps usually cost:
        an accepted node saves a plain step; the tree's cost is shared by the nodes. A node belongs
        to who proposed it first: what others say again saves nothing."""
        cost, scored = self._cost, self.scored
        saved_s = {ask.drafter: -ask.seconds for ask in self.asked}
        if saved_s and scored is not None and verdict is not None and cost.is_known:
            nodes = len(scored.buckets)
            node_s = (cost.seconds(nodes) - cost.plain_s) / cost.rows / nodes
            owners = owners_of(scored.tree, self.asked)
            for name in owners[1:]:
                saved_s[name] -= node_s
            for node in verdict.path[1:]:
                saved_s[owners[node]] += cost.row_plain_s
        return saved_s

    def settle(self, saved_s: dict[str, float], seconds: float) -> None:
        """Books what each drafter saved or lost by the step, and how long nobody need be asked."""
        pace, row_plain_s = self.pace, self._cost.row_plain_s
        told_s = pace.told_s(seconds)
        if told_s is None:
            return
        for ask in self.asked:
            self._account(ask.drafter).turned_out(
                ask.standing,
                saved_s[ask.drafter],
                is_probe=ask.probe is not None,
                plain_s=row_plain_s,
            )
        for name, account in pace.accounts.items():
            account.earn(saved_s.get(name, 0.0), told_s, row_plain_s)
        # What this step takes is waited for already.
        wait_s = min(self._waits_s.values(), default=0.0)
        pace.sleep_s = min(wait_s, _LONGEST_SLEEP * row_plain_s) - seconds

    def _account(self, drafter: str) -> Account:
        accounts = self.pace.accounts
        if drafter not in accounts:
            accounts[drafter] = Account.opened(self._cost.row_plain_s)
        return accounts[drafter]
