"""Pace: one request's part of what a controller knows, and what it did for it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from mmspec.calibration import Calibration
from mmspec.controller.account import Account
from mmspec.controller.worth import Worth
from mmspec.stats import Choices

Speculate = Literal["auto"] | bool

_KEPT = 0.9  # of what is known of a request's speed, a step later


@dataclass
class Pace:
    """Each request's own experience; what all of them teach is the controller's."""

    speculate: Speculate = "auto"
    keeps_trees: bool = False  # a tree is scored whole, whatever was drawn for its nodes
    calibration: Calibration = field(default_factory=lambda: Calibration(1.0, 0.95))
    worth: Worth = field(default_factory=Worth)
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
