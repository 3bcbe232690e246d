"""Worth: the seconds that asking a drafter saves, as its proposals were expected to."""

from collections.abc import Mapping

from mmspec.tree import TokenTree

_RISING = 0.15  # share of the newest proposal in what asking is believed to be worth, where it was
# worth more
_FALLING = 0.5  # and where it was worth less, at most: doubts come as quickly as being wrong costs,
_DOUBTED = 0.5  # so that a drafter is doubted once some this many plain steps were lost by it


class Worth:
    """By drafter and by the standing of the tree that it is asked beside."""

    def __init__(self) -> None:
        self._saved_s: dict[str, dict[int, float]] = {}

    def of(self, drafter: str) -> Mapping[int, float]:
        """What is known of it, by standing."""
        return self._saved_s.get(drafter, {})

    def at(self, drafter: str, standing: int) -> float | None:
        """What is known of exactly this."""
        return self.of(drafter).get(standing)

    def learn(
        self,
        drafter: str,
        standing: int,
        saved_s: float,
        *,
        cost_steps: float,
        prior_s: float | None = None,
    ) -> None:
        """A proposal was expected to save so much, itself paid for, which took as long as
        `cost_steps` plain steps. `prior_s`: what is believed where nothing is known."""
        own = self._saved_s.setdefault(drafter, {})
        known = own.get(standing, saved_s if prior_s is None else prior_s)
        share = _RISING if saved_s > known else min(cost_steps / _DOUBTED, _FALLING)
        own[standing] = known + share * (saved_s - known)


def nearest(own: Worth, shared: Worth, drafter: str, standing: int) -> float | None:
    """What asking is worth beside a tree of this standing, by the request's own experience, or else
    by that of all; where that is not known, beside a lesser tree, which is rather more."""
    own_s, shared_s = own.of(drafter), shared.of(drafter)
    for place in range(standing, -1, -1):
        worth = own_s.get(place, shared_s.get(place))
        if worth is not None:
            return worth
    return None


def alone(own: Worth, shared: Worth, drafter: str) -> float | None:
    """What asking is worth where nobody else is asked, or at least: beside the least tree that it
    is known of."""
    own_s, shared_s = own.of(drafter), shared.of(drafter)
    least = min((*own_s, *shared_s), default=-1)
    return own_s.get(least, shared_s.get(least))


def standing_of(tree: TokenTree) -> int:
    """How much the tree promises already: what another drafter adds depends on it."""
    return 0 if tree.num_nodes == 1 else int(sum(tree.cumulative_confidence)).bit_length()
