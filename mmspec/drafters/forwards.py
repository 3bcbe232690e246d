"""ForwardCost: what a drafter's own forwards cost, and when one more of them is worth its time."""

import math
import sys
from collections import deque
from statistics import median

from torch import nn

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import first_rate
from mmspec.state import Prices

_RECENT = 9  # measurements that an estimate is the median of
_UNMEASURED = 1.0  # of a path's likelihood: node 0 alone is as likely, so one forward is made


class ForwardCost:
    """Seconds of a forward of the draft's, for one request, measured while drafting. Shared by all
    requests of a drafter; written by whoever holds its model's lock, or is its only user."""

    def __init__(self) -> None:
        self._recent: deque[float] | None = None

    def observe(self, seconds: float, forwards: int) -> None:
        """So many forwards, those of each request counted, took `seconds` together."""
        if not forwards:
            return
        if self._recent is None:  # the first ones pay for what is done only once
            self._recent = deque(maxlen=_RECENT)
            return
        self._recent.append(seconds / forwards)

    @property
    def forward_s(self) -> float | None:
        return median(self._recent) if self._recent else None

    def affordable(self, prices: Prices | None) -> int:
        """Forwards that a proposal may be made of, at least one."""
        if prices is None or self.forward_s is None or prices.most_s == math.inf:
            return sys.maxsize
        return max(int(prices.most_s / self.forward_s), 1)

    def least_likely(
        self, prices: Prices | None, calibration: Calibration, *, tokens: float = 1.0
    ) -> float:
        """How likely a path must be accepted for one more forward to be worth while: what it adds,
        `tokens` as likely as the drafter's best child usually is, must save more time than the
        forward and the scoring of what it adds take. 0 where nothing is said of time."""
        if prices is None:
            return 0.0
        seconds = self.forward_s
        if seconds is None:
            return _UNMEASURED
        gain_s = prices.token_s * tokens * first_rate(calibration)
        return (seconds + tokens * prices.node_s) / gain_s


def num_weights(module: nn.Module) -> int:
    """Numbers that a forward reads, at least one: what its cost is compared by."""
    return max(sum(weight.numel() for weight in module.parameters()), 1)
