"""Account: what one drafter may still cost one request."""

from dataclasses import dataclass

_OPENING_STEPS = 1.0  # plain steps' time that a drafter may lose a request at once
_LOSS_SHARE = 0.005  # of the time, that it may lose on top
_PROBE_SHARE = 0.005  # of the time, for asking whom it does not believe to pay
_MOST_STEPS = 20.0  # plain steps' time, of what it saved, that it may lose again
_NEWEST_ASK = 0.25  # share of the newest ask in what asks have saved


@dataclass
class Account:
    """Seconds, against plain decoding."""

    balance_s: float  # of loss; what it saved is added
    probe_s: float  # of asking it while it is not believed to pay
    ask_s: float = 0.0  # what an ask has saved of late, as it turned out

    @staticmethod
    def opened(plain_s: float) -> "Account":
        """Of a request whose plain steps take `plain_s`."""
        opening_s = _OPENING_STEPS * plain_s
        return Account(opening_s, opening_s / 2)

    def turned_out(self, saved_s: float) -> None:
        """It was asked, and saved so much."""
        self.ask_s += _NEWEST_ASK * (saved_s - self.ask_s)

    def earn(self, saved_s: float, step_s: float, plain_s: float) -> None:
        """A step that took `step_s`; the drafter saved so much by it, or lost."""
        most = _MOST_STEPS * plain_s
        self.balance_s = min(self.balance_s + saved_s + _LOSS_SHARE * step_s, most)
        self.probe_s = min(self.probe_s + _PROBE_SHARE * step_s, most)
