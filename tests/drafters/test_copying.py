"""Copying: what is believed of a copy before any was seen, and which copies learn together."""

from collections.abc import Sequence
from math import exp

import pytest

from mmspec.drafters.copying import Copier
from mmspec.retrieval import Continuation


def rates(copier: Copier, found: Sequence[Continuation]) -> tuple[float, ...]:
    """What is believed of each node of all that was found."""
    return copier.draft(0, found, 99).confidence[1:]


def test_a_copy_is_believed_by_what_agrees_with_it() -> None:
    """Half, where as many tokens agree as by chance: fewer of the request's own text than of a
    corpus. A neighbour at distance 0 counts as a match of 8, and never less than its own."""
    half = {"online": 2, "generated": 4, "suffix": 6}
    for source, chance in half.items():
        found = rates(Copier("x", min_confidence=0.0), [Continuation([5, 6, 7], 4, source)])
        assert found == pytest.approx([n / (n + chance) for n in (4, 5, 6)])
    for distance, match, worth in ((0.0, 1, 8), (0.5, 1, 8 / exp(1)), (4.0, 3, 3), (-1e-6, 1, 8)):
        found = rates(
            Copier("x", min_confidence=0.0), [Continuation([5, 6], match, "dense", distance)]
        )
        assert found == pytest.approx([n / (n + 6) for n in (worth, worth + 1)], rel=1e-5)
    apart = [Continuation([5], 4), Continuation([5], 4), Continuation([6], 4)]
    assert rates(Copier("x", min_confidence=0.0), apart) == pytest.approx([4 / 9, 2 / 9])
    assert rates(Copier("x", min_confidence=0.5), [Continuation([5, 6], 2)]) == (0.5,)


ONE = Continuation([5], 4)


@pytest.mark.parametrize(
    ("taught", "other", "is_alike"),
    [
        ([ONE], [ONE] * 2, False),  # one place, some, many
        ([ONE] * 2, [ONE] * 3, True),
        ([ONE] * 3, [ONE] * 4, False),
        ([ONE] * 4, [ONE] * 9, True),
        ([ONE], [Continuation([5], 5)], True),  # as long a match, about
        ([Continuation([5], 7)], [Continuation([5], 8)], False),
        ([ONE], [Continuation([5], 4, "suffix")], False),
        ([Continuation([5], 4, "dense", 0.2)], [Continuation([5], 4, "dense", 0.24)], True),
        ([Continuation([5], 4, "dense", 0.2)], [Continuation([5], 4, "dense", 0.3)], False),
        ([Continuation([5], 4, "dense", 1.5)], [Continuation([5], 4, "dense", 3.0)], True),
        ([Continuation([5], 4, "dense", 0.0)], [Continuation([5], 4, "dense", -1e-6)], True),
    ],
)
def test_copies_that_are_alike_learn_from_one_another(
    taught: Sequence[Continuation], other: Sequence[Continuation], is_alike: bool
) -> None:
    copier = Copier("x", min_confidence=0.0)
    before = rates(copier, other)
    rates(copier, taught)
    copier.observe([9])
    assert (rates(copier, other) < before) == is_alike


def test_who_brought_an_accepted_token_is_told_so_once() -> None:
    told: list[Continuation] = []
    copier = Copier("x", min_confidence=0.0, was_useful=told.append)
    both, first, none = ([5, 6, 7], [5, 8], [9])
    found = [Continuation(tokens, 4) for tokens in (none, both, first)]
    copier.draft(0, found, 99)
    copier.observe([5, 6, 1])
    assert told == [found[1], found[2]]
    copier.observe([5])  # nobody has drafted
    copier.draft(0, found, 99)
    copier.take_back()
    copier.observe([5])
    assert len(told) == 2
