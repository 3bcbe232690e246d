import math
import random

import pytest

from mmspec.bench.interval import spread


def test_seven_pairs_give_their_whole_range() -> None:
    """P(all seven on one side of the median) = 2 / 2^7, so the range misses it in 1.6%."""
    found = spread([1.4, 1.1, 1.2, 1.9, 1.3, 1.0, 1.5])
    assert (found.low, found.median, found.high) == (1.0, 1.3, 1.9)
    assert found.coverage == 1 - 2 / 2**7
    assert found.mean == pytest.approx(9.4 / 7)
    assert found.values[0] == 1.4  # in the order of the pairs


@pytest.mark.parametrize(
    ("count", "rank"),
    # Tables of the sign test: the largest k with 2 P(B < k) <= 0.05, B binomial(n, 1/2).
    [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8), (50, 18)],
)
def test_more_pairs_leave_the_outermost_out(count: int, rank: int) -> None:
    found = spread([float(value) for value in range(1, count + 1)])
    assert (found.low, found.high) == (rank, count + 1 - rank)
    assert found.coverage >= 0.95


def test_fewer_than_six_pairs_say_how_little_they_know() -> None:
    assert spread([2.0, 1.0]).coverage == 0.5
    assert spread([1.0]).coverage == 0.0
    assert spread([1.0] * 5).coverage == pytest.approx(0.9375)
    with pytest.raises(ValueError):
        spread([])


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """2,000 draws of 9 from a skewed distribution whose median is 1."""
    rng = random.Random(3)
    draws = [spread([math.exp(rng.gauss(0, 1)) for _ in range(9)]) for _ in range(2000)]
    held = sum(one.low <= 1 <= one.high for one in draws) / len(draws)
    assert held == pytest.approx(draws[0].coverage, abs=0.012)
