"""Outlay: what preparing a drafter has cost all requests, against what it has saved them since."""

from dataclasses import dataclass

_OPENING_STEPS = 8.0  # plain steps' time that preparations may cost an engine at once
_SHARE = 0.005  # of the time, that they may cost on top
_MOST = 8.0  # times the newest one, of what was saved, that they may cost again
_HOPED = 0.2  # of a plain step, that a token is hoped to save behind a preparation
_RETURN = 2.0  # times what it costs, that a preparation must be able to save: a text may end early
_KEPT = 0.99  # of what is known of the saving, a step later


@dataclass
class Outlay:
    """Of an engine's whole life: a drafter that does not pay cannot be prepared for every request
    anew."""

    balance_s: float  # below 0: no preparation
    newest_s: float = 0.0  # what the newest one took
    saved_steps: float = 0.0  # plain steps' time saved in the newest steps behind a preparation
    tokens: float = 0.0  # and the tokens of these

    @staticmethod
    def opened(plain_s: float) -> "Outlay":
        """With a first request whose plain steps take `plain_s`."""
        return Outlay(_OPENING_STEPS * plain_s)

    @property
    def token_steps(self) -> float:
        """Plain steps' time that a token saves, as it turned out; what was hoped at least, for
        where that is wrong the balance tells."""
        return max(self.saved_steps / self.tokens if self.tokens else 0.0, _HOPED)

    def allows(self, cost_s: float, tokens: float, plain_s: float) -> bool:
        """Whether a preparation of `cost_s` may be made for so many tokens more."""
        return self.balance_s >= 0.0 and self.could_pay(cost_s, tokens, plain_s)

    def could_pay(self, cost_s: float, tokens: float, plain_s: float) -> bool:
        """Whether it can save what it costs."""
        return _RETURN * cost_s <= self.token_steps * tokens * plain_s

    def paid(self, seconds: float) -> None:
        """A preparation took so long."""
        self.balance_s -= seconds
        self.newest_s = seconds

    def earn(self, step_s: float, plain_s: float) -> None:
        """A step of a request took so long, whether the drafter was prepared or not."""
        most_s = max(_MOST * self.newest_s, _OPENING_STEPS * plain_s)
        self.balance_s = min(self.balance_s + _SHARE * step_s, most_s)

    def saved(self, saved_s: float, tokens: int, plain_s: float) -> None:
        """In a step of a request that it was prepared for."""
        self.balance_s += saved_s
        self.saved_steps = _KEPT * self.saved_steps + saved_s / plain_s
        self.tokens = _KEPT * self.tokens + tokens
