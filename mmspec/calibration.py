"""Calibration: from what a drafter believes of a node to how often such nodes are accepted."""

from collections.abc import Hashable

_UNSEEN = 0.0, 0.0


class Calibration:
    """Acceptance rates by bucket, learnt online. A bucket starts at the caller's prior, which
    counts as much as `prior_weight` observations; `decay` forgets older ones."""

    def __init__(
        self,
        prior_weight: float = 4.0,
        decay: float = 0.98,
        *,
        shared: "Calibration | None" = None,
    ) -> None:
        """`shared` is what others have shown too: priors are what it makes of the caller's, and it
        learns with this one."""
        self._prior_weight = prior_weight
        self._decay = decay
        self._shared = shared
        # (tried, taken) of each bucket, older ones counting less
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def rate(self, bucket: Hashable, prior: float) -> float:
        """The estimated probability of acceptance, in (0, 1) for a prior in (0, 1)."""
        if self._shared is not None:
            prior = self._shared.rate(bucket, prior)
        tried, taken = self._seen.get(bucket, _UNSEEN)
        return (taken + self._prior_weight * prior) / (tried + self._prior_weight)

    def observe(self, bucket: Hashable, accepted: bool) -> None:
        """One node of the bucket, whose parent was accepted, was accepted or not."""
        if self._shared is not None:
            self._shared.observe(bucket, accepted)
        tried, taken = self._seen.get(bucket, _UNSEEN)
        self._seen[bucket] = tried * self._decay + 1.0, taken * self._decay + accepted
