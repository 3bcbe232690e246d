"""Worth: the seconds that asking a drafter saves, as its proposals were expected to."""

from mmspec.tree import TokenTree

_RISING, _FALLING = 0.15, 0.5  # share of the newest proposal in what asking is believed to be
# worth, where it was worth more and where less: doubts come quickly


class Worth:
    """By drafter and by the standing of the tree that it is asked beside."""

    def __init__(self) -> None:
        self._saved_s: dict[tuple[str, int], float] = {}

    def at(self, drafter: str, standing: int) -> float | None:
        """What is known of exactly this."""
        return self._saved_s.get((drafter, standing))

    def nearest(self, drafter: str, standing: int) -> float | None:
        """Beside a tree of this standing; where that is not known, beside a lesser one, which is
        rather more."""
        known = (self.at(drafter, lesser) for lesser in range(standing, -1, -1))
        return next((value for value in known if value is not None), None)

    def learn(
        self, drafter: str, standing: int, saved_s: float, *, prior_s: float | None = None
    ) -> None:
        """A proposal was expected to save so much, itself paid for. `prior_s`: what is believed
        where nothing is known."""
        known = self._saved_s.get((drafter, standing), saved_s if prior_s is None else prior_s)
        share = _RISING if saved_s > known else _FALLING
        self._saved_s[drafter, standing] = known + share * (saved_s - known)


def standing_of(tree: TokenTree) -> int:
    """How much the tree promises already: what another drafter adds depends on it."""
    return 0 if tree.num_nodes == 1 else int(sum(tree.cumulative_confidence)).bit_length()
