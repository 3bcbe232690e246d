"""The search for layers to skip: better than an even choice, and never the first or the last."""

import numpy as np
import pytest

from mmspec.drafters.layer_skip.search import SkipSearch


def agreement(skipped: frozenset[int], costs: np.ndarray) -> float:
    """What is lost is a sum, but for neighbours, which are missed more together."""
    neighbours = sum(layer + 1 in skipped for layer in skipped)
    return max(0.0, 1.0 - float(sum(costs[layer] for layer in skipped)) - 0.02 * neighbours)


def searched(seed: int, *, trials: int = 48) -> tuple[float, float, float]:
    """(agreement of the first set, of the one found, of the best there is but for neighbours)"""
    random = np.random.default_rng(seed)
    costs = random.exponential(0.04, size=20)
    search = SkipSearch(20, 0.45, trials=trials, seed=seed)
    first = agreement(search.best, costs)
    while not search.is_over:
        skipped = search.propose()
        matched = random.binomial(24, agreement(skipped, costs))
        search.learn(skipped, matched, 24, is_trial=True)
        in_use = search.best
        search.learn(in_use, random.binomial(8, agreement(in_use, costs)), 8)
    ideal = frozenset(int(i) + 1 for i in np.argsort(costs[1:19])[:9])
    return first, agreement(search.best, costs), agreement(ideal, costs)


def test_it_finds_a_set_that_is_better_than_the_even_one() -> None:
    runs = np.array([searched(seed) for seed in range(8)])
    first, found, ideal = runs.mean(axis=0)
    assert found > first + 0.5 * (ideal - first), (first, found, ideal)


def test_without_trials_the_even_choice_stays() -> None:
    search = SkipSearch(12, 0.5, trials=0)
    assert search.is_over
    assert len(search.best) == 6 and not {0, 11} & search.best


@pytest.mark.parametrize("num_layers", [2, 3, 4, 7, 32])
@pytest.mark.parametrize("share", [0.1, 0.45, 0.99])
def test_every_set_has_the_same_size_and_leaves_the_ends(num_layers: int, share: float) -> None:
    search = SkipSearch(num_layers, share, trials=4)
    sets = [search.best, *(search.propose() for _ in range(20))]
    assert len({len(one) for one in sets}) == 1
    assert len(search.best) <= max(share * num_layers + 0.5, 1)
    for one in sets:
        assert one and 0 not in one and max(one) < num_layers
        assert num_layers <= 3 or num_layers - 1 not in one


@pytest.mark.parametrize(
    ("matched", "tested", "is_over"), [(63, 63, False), (64, 64, True), (97, 99, False)]
)
def test_a_set_that_agrees_with_all_ends_the_search(
    matched: int, tested: int, is_over: bool
) -> None:
    search = SkipSearch(8, 0.5, trials=100)
    search.learn(search.best, matched, tested)
    assert search.is_over == is_over


def test_trials_alone_are_counted() -> None:
    search = SkipSearch(8, 0.5, trials=2)
    for is_trial, is_over in ((False, False), (True, False), (False, False), (True, True)):
        search.learn(search.best, 0, 0, is_trial=is_trial)  # whatever they told
        assert search.is_over == is_over


def test_a_set_is_judged_by_what_was_seen_of_it_and_of_its_layers() -> None:
    search = SkipSearch(8, 0.5, trials=100)  # 3 or 4 of the layers 1 to 6
    one = search.best
    other = frozenset(range(1, 7)) - one
    assert search.agreement(one) == search.agreement(other) == 0.5, "nothing is known"
    found = []
    for _ in range(9):
        search.learn(one, 6, 24)
        found.append(search.agreement(one))
    assert found == sorted(found, reverse=True) and 0.25 < found[-1] < 0.26
    assert search.agreement(other) == 0.5, "of its layers nothing was seen"
    assert 0.25 < search.agreement(frozenset([*sorted(one)[1:], *other])) < 0.5


def test_one_seed_gives_one_search() -> None:
    assert searched(3) == searched(3)
