"""The median of some ratios, and how far it can be trusted."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A median with its interval."""

    median: float
    mean: float
    low: float
    high: float
    coverage: float  # probability that the interval holds the true median; below 0.95 for n < 6
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """The narrowest symmetric interval of order statistics that holds the median with 95%.

    [x(k), x(n+1-k)] holds the median of any continuous distribution with probability
    1 - 2 P(B < k), B binomial(n, 1/2) (David and Nagaraja, Order Statistics, 7.1): exact for few
    values, where a bootstrap is too narrow. For 7 values it is their whole range (98.4%), and so
    it is for fewer than 6, which cannot give 95%. Raises ValueError for no values.
    """
    ordered = sorted(values)
    rank = 1
    while rank < (len(ordered) + 1) // 2 and _coverage(len(ordered), rank + 1) >= CONFIDENCE:
        rank += 1
    return Spread(
        median=statistics.median(ordered),
        mean=statistics.fmean(ordered),
        low=ordered[rank - 1],
        high=ordered[-rank],
        coverage=_coverage(len(ordered), rank),
        values=tuple(values),
    )


def _coverage(count: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count
