"""Preparing: which drafters may do what they have to before a step's proposals."""

import math
from collections.abc import Mapping

from mmspec.controller.costs import CostModel
from mmspec.controller.outlay import Outlay
from mmspec.controller.pace import Pace
from mmspec.controller.step_cost import StepCost
from mmspec.state import Preparation, Verdict


class Preparing:
    """One step's. What it books in `outlays` and learns in `costs` is all requests'."""

    def __init__(self, costs: CostModel, outlays: dict[str, Outlay], cost: StepCost) -> None:
        """`cost` of the step; while that is not known nothing is booked."""
        self.spent_s = 0.0
        self._costs, self._outlays, self._cost = costs, outlays, cost

    def is_worth(self, pace: Pace, drafter: str, due: Preparation) -> bool:
        """Whether the tokens to come can save what it takes, and the drafter may spend it."""
        cost_s = self._expected_s(pace, drafter, due)
        tokens = math.inf if due.can_wait else min(pace.tokens_to_come, due.lasts_tokens)
        if self._outlay(drafter).allows(cost_s, tokens, self._cost.row_plain_s):
            return True
        if not due.can_wait:
            pace.unprepared_s[drafter] = cost_s
        return False

    def book(self, pace: Pace, drafter: str, due: Preparation, seconds: float) -> None:
        """It was done."""
        self.spent_s += seconds
        cost = self._cost
        if not cost.is_known:
            return
        if pace.speculate == "auto":  # what was asked for is not the drafter's to answer for
            # The first one pays for what is done only once, too: it is booked as it was expected.
            outlay, expected_s = self._outlay(drafter), self._expected_s(pace, drafter, due)
            outlay.paid(seconds if outlay.newest_s else min(seconds, expected_s))
        self._costs.observe_preparation(
            drafter, due, seconds, plain_s=cost.plain_s, node_s=cost.row_node_s
        )

    def settle(
        self, pace: Pace, saved_s: Mapping[str, float], verdict: Verdict | None, seconds: float
    ) -> None:
        """The request's share of the step took `seconds`; its drafters saved `saved_s` by it."""
        if not self._outlays or pace.speculate != "auto" or not self._cost.is_known:
            return
        for name, outlay in self._outlays.copy().items():  # another thread's may join meanwhile
            if name in pace.prepared_s and verdict is not None:
                tokens, row_plain_s = len(verdict.tokens), self._cost.row_plain_s
                outlay.saved(saved_s.get(name, 0.0), tokens, row_plain_s)
            outlay.earn(seconds, self._cost.plain_s)

    def _expected_s(self, pace: Pace, drafter: str, due: Preparation) -> float:
        if pace.token_s is not None:
            self._costs.observe_prompt(pace.token_s)
            pace.token_s = None  # it was told
        plain_s, node_s = self._cost.plain_s, self._cost.row_node_s
        return self._costs.preparation_s(drafter, due, plain_s=plain_s, node_s=node_s)

    def _outlay(self, drafter: str) -> Outlay:
        if drafter not in self._outlays:
            self._outlays[drafter] = Outlay.opened(self._cost.plain_s)
        return self._outlays[drafter]
