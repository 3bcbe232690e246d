"""Pace: one request's part of what a controller knows, and what it did for it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from mmspec.calibration import Calibration
from mmspec.controller.account import Account
from mmspec.controller.lengths import TextLengths
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
    token_s: float | None = None  # that a token of its prompt took; None: not known
    lengths: TextLengths = field(default_factory=TextLengths)  # of texts that have ended
    room: int = 0  # tokens that the text still has room for
    num_tokens: int = 1  # that it has got, the prefill's with them
    prepared_s: dict[str, float] = field(default_factory=dict)  # drafter -> what preparing it took
    unprepared_s: dict[str, float] = field(default_factory=dict)  # and what it would have, last
    sleep_s: float = 0.0  # of its steps to come, in which nobody could be asked
    slept_s: float = 0.0  # of those behind it, which the accounts have not been told of
    recent_s: float = 0.0  # its share of the newest steps' time, older ones counting less
    recent_tokens: float = 0.0  # and what it got in it

    def got(self, tokens: int, seconds: float) -> None:
        """A step gave so many tokens."""
        self.num_tokens += tokens
        self.recent_s = _KEPT * self.recent_s + seconds
        self.recent_tokens = _KEPT * self.recent_tokens + tokens

    def told_s(self, seconds: float) -> float | None:
        """A step took `seconds`: what the accounts are to be told of; None while it sleeps on."""
        self.sleep_s -= seconds
        self.slept_s += seconds
        if self.sleep_s > 0.0:
            return None
        told_s, self.slept_s = self.slept_s, 0.0
        return told_s

    @property
    def tokens_to_come(self) -> int:
        """How many the text is believed to get still, from its room, texts before it, and its own
        length so far: one that is long already may well get twice as long."""
        usual = self.lengths.usual - self.num_tokens
        return min(self.room, max(usual, self.num_tokens))

    @property
    def choices(self) -> Choices:
        steps = sum(self.budgets.values())
        return Choices(
            asked=dict(self.asked),
            budgets=dict(sorted(self.budgets.items())),
            expected_tokens_per_step=self.expected_tokens / steps if steps else 1.0,
            prepared_s=dict(self.prepared_s),
            unprepared_s=dict(self.unprepared_s),
            plain_step_s=self.plain_s / steps if steps else 0.0,
        )
