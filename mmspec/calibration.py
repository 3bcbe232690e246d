"""Calibration: from what a drafter believes of a node to how often such nodes are accepted."""

from collections import defaultdict
from collections.abc import Hashable


class Calibration:
    """Acceptance rates by bucket, learnt online. A bucket starts at the caller's prior, which
    counts as much as `prior_weight` observations; `decay` forgets older ones."""

    def __init__(self, prior_weight: float = 4.0, decay: float = 0.98) -> None:
        self._prior_weight = prior_weight
        self._decay = decay
        self._tried: defaultdict[Hashable, float] = defaultdict(float)
        self._accepted: defaultdict[Hashable, float] = defaultdict(float)

    def rate(self, bucket: Hashable, prior: float) -> float:
        """The estimated probability of acceptance, in (0, 1) for a prior in (0, 1)."""
        weight = self._prior_weight
        accepted = self._accepted.get(bucket, 0.0)
        return (accepted + weight * prior) / (self._tried.get(bucket, 0.0) + weight)

    def observe(self, bucket: Hashable, accepted: bool) -> None:
        """One node of the bucket, whose parent was accepted, was accepted or not."""
        self._tried[bucket] = self._tried[bucket] * self._decay + 1.0
        self._accepted[bucket] = self._accepted[bucket] * self._decay + accepted
