"""Account: what one drafter may still cost one request."""

from dataclasses import dataclass, field

_OPENING_STEPS = 1.0  # plain steps' time that a drafter may lose a request at once
_LOSS_SHARE = 0.005  # of the time, that it may lose on top
_PROBE_SHARE = 0.005  # of the time, for asking whom it does not believe to pay
_PROBE_RETURN = 0.25  # of what asks have saved, for more of the same kind
_MOST_STEPS = 20.0  # plain steps' time, of what it saved, that it may lose again
_NEWEST_ASK = 0.25  # share of the newest ask in what asks have saved


@dataclass
class Asks:
    """What came of asking beside trees of one standing, in seconds."""

    saved_s: float = 0.0  # by an ask of late, as it turned out
    probe_s: float = 0.0  # of what they saved, for asking while that is not believed to pay


@dataclass
class Account:
    """Seconds, against plain decoding."""

    balance_s: float  # of loss; what it saved is added
    probe_s: float  # of asking it while it is not believed to pay
    asks: dict[int, Asks] = field(default_factory=dict)  # by standing

    @staticmethod
    def opened(plain_s: float) -> "Account":
        """Of a request whose plain steps take `plain_s`."""
        opening_s = _OPENING_STEPS * plain_s
        return Account(opening_s, opening_s / 4)

    def beside(self, standing: int) -> Asks:
        """Of a tree of this standing."""
        asks = self.asks.get(standing)
        if asks is None:
            asks = self.asks[standing] = Asks()
        return asks

    def wait_s(self, standing: int, cost_s: float, probe_s: float) -> float:
        """Of steps that save nothing, until it holds `cost_s`, or `probe_s` for asking beside a
        tree of this standing."""
        lacks_s = probe_s - self.probe_s - self.beside(standing).probe_s
        wait_s = min((cost_s - self.balance_s) / _LOSS_SHARE, lacks_s / _PROBE_SHARE)
        return max(wait_s, 0.0)

    def turned_out(self, standing: int, saved_s: float, *, is_probe: bool, plain_s: float) -> None:
        """It was asked beside a tree of this standing, and saved so much, or lost."""
        asks = self.beside(standing)
        asks.saved_s += _NEWEST_ASK * (saved_s - asks.saved_s)
        if saved_s > 0.0:
            most = _MOST_STEPS * plain_s
            asks.probe_s = min(asks.probe_s + _PROBE_RETURN * saved_s, most)
        elif is_probe:
            own_s = min(max(asks.probe_s, 0.0), -saved_s)
            asks.probe_s -= own_s
            self.probe_s -= -saved_s - own_s

    def earn(self, saved_s: float, step_s: float, plain_s: float) -> None:
        """A step that took `step_s`; the drafter saved so much by it, or lost."""
        most = _MOST_STEPS * plain_s
        self.balance_s = min(self.balance_s + saved_s + _LOSS_SHARE * step_s, most)
        self.probe_s = min(self.probe_s + _PROBE_SHARE * step_s, most)
