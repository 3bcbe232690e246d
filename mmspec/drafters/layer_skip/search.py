"""SkipSearch: which layers a target can do without, found out while it generates."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PRIOR_SPREAD = 0.05  # how much of the agreement one layer may be worth, more or less
_PRIOR_TOKENS = 16.0  # how many tokens seen the model's word on a set counts for
_GOOD_ENOUGH = 0.98


@dataclass
class _Tried:
    matched: float = 0.0
    tested: float = 0.0


class SkipSearch:
    """A set of layers of a fixed size, improved by trials.

    Agreement of a set with the target's own tokens is taken to be a sum over its layers, in a
    Bayesian linear model; a trial draws a model from the posterior and tests the set that would be
    best under it (Thompson sampling). The best set is judged by what was seen of itself as well.
    SWIFT (arXiv 2410.06916 section 4.1) searches by agreement too, with random sets and a Gaussian
    process; the first and the last layer are left in, as there.
    """

    def __init__(
        self,
        num_layers: int,
        share: float,
        *,
        trials: int,
        seed: int = 0,
        kept: Collection[int] = (),
    ) -> None:
        """`share` of `num_layers` are skipped, at least one, of those that are not `kept`. Where
        there is none, `best` is empty, and there is nothing to search."""
        last = num_layers - 1 if num_layers > 3 else num_layers
        self._layers = [index for index in range(1, last) if index not in kept]
        self._size = min(max(round(share * num_layers), 1), len(self._layers))
        self._trials_left = trials
        self._random = np.random.default_rng(seed)
        self._tried: dict[frozenset[int], _Tried] = {}
        count = len(self._layers)
        self._precision = np.eye(count) / _PRIOR_SPREAD**2
        self._weighted = np.zeros(count)  # sum of features x agreement, each by its precision
        self._mean, self._covariance = self._posterior()
        even = (
            np.linspace(0, count - 1, self._size + 2)[1:-1] if self._size < count else range(count)
        )
        self.best = frozenset(self._layers[int(place + 0.5)] for place in even)
        self._tried[self.best] = _Tried()

    @property
    def is_over(self) -> bool:
        seen = self._tried[self.best]
        is_good = seen.tested >= 4 * _PRIOR_TOKENS and seen.matched >= _GOOD_ENOUGH * seen.tested
        return self._trials_left <= 0 or is_good

    def propose(self) -> frozenset[int]:
        """The set to try next."""
        drawn = self._random.multivariate_normal(self._mean, self._covariance, method="cholesky")
        return frozenset(self._layers[place] for place in np.argsort(-drawn)[: self._size])

    def learn(
        self, skipped: frozenset[int], matched: int, tested: int, *, is_trial: bool = False
    ) -> None:
        """With `skipped` left out, `matched` of `tested` tokens were the target's own."""
        self._trials_left -= is_trial
        if tested:
            seen = self._tried.setdefault(skipped, _Tried())
            seen.matched += matched
            seen.tested += tested
            features = self._features(skipped)
            precision = tested / 0.25  # of a share of `tested` coin flips
            self._precision += precision * np.outer(features, features)
            self._weighted += precision * (matched / tested - 0.5) * features
            self._mean, self._covariance = self._posterior()
        self.best = max(self._tried, key=self.agreement)

    def agreement(self, skipped: frozenset[int]) -> float:
        """The estimated share of the target's tokens that drafts without these layers get."""
        seen = self._tried.get(skipped, _Tried())
        predicted = 0.5 + float(self._features(skipped) @ self._mean)
        prior = min(max(predicted, 0.0), 1.0)
        return (seen.matched + _PRIOR_TOKENS * prior) / (seen.tested + _PRIOR_TOKENS)

    def _features(self, skipped: frozenset[int]) -> NDArray[np.float64]:
        return np.array([layer in skipped for layer in self._layers], dtype=np.float64)

    def _posterior(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        covariance = np.asarray(np.linalg.inv(self._precision), dtype=np.float64)
        return covariance @ self._weighted, covariance
