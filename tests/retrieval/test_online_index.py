"""OnlineIndex: look-ups in a growing text against a search of every place."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.retrieval.online_index import LEVELS, Match, OnlineIndex

ALL = 1000  # more matches than any text here has
SEPARATOR = -1

tokens = st.lists(st.sampled_from([SEPARATOR, 0, 0, 1, 1, 2]), min_size=1, max_size=40)


def index_of(text: list[int], min_match: int = 1) -> OnlineIndex:
    index = OnlineIndex(min_match)
    index.extend(text)
    return index


def searched(text: list[int], min_match: int, max_match: int) -> list[Match]:
    """Every earlier place, measured token by token: the longest first, among equals the latest."""
    places = []
    for end in range(1, len(text)):
        length = 0
        while length < min(end, max_match):
            token = text[end - 1 - length]
            if token == SEPARATOR or token != text[len(text) - 1 - length]:
                break
            length += 1
        if length >= min_match:
            places.append(Match(end, length))
    return sorted(places, key=lambda match: (-match.length, -match.end))


# LAW


def test_the_longest_match_comes_first_then_the_latest() -> None:
    #        0  1  2  3  4  5  6  7  8  9
    text = [1, 2, 3, 9, 2, 3, 8, 2, 3, 7, 1, 2, 3]
    assert index_of(text).matches(limit=ALL, min_match=2, max_match=8) == [
        Match(end=3, length=3),  # 1 2 3 | 9
        Match(end=9, length=2),  # 2 3 | 7
        Match(end=6, length=2),  # 2 3 | 8
    ]


def test_a_text_that_never_repeats_has_no_match() -> None:
    assert index_of([1, 2, 3, 4]).matches(limit=ALL, min_match=1, max_match=8) == []


def test_an_empty_text_has_no_match() -> None:
    assert OnlineIndex().matches(limit=ALL, min_match=1, max_match=8) == []


def test_a_place_that_overlaps_the_end_counts() -> None:
    assert index_of([5, 5, 5]).matches(limit=ALL, min_match=1, max_match=8) == [
        Match(end=2, length=2),
        Match(end=1, length=1),
    ]


def test_no_match_crosses_a_separator() -> None:
    text = [1, 2, SEPARATOR, 3, 9, 1, 2, SEPARATOR, 3]
    matches = index_of(text).matches(limit=ALL, min_match=1, max_match=8)
    assert matches == [Match(end=4, length=1)], "1 2 | 3 agree too, but for the separator between"
    assert index_of([1, SEPARATOR, 1, SEPARATOR]).matches(limit=9, min_match=1, max_match=8) == []


def test_a_continuation_ends_before_a_separator_and_at_the_end() -> None:
    index = index_of([1, 2, 0, SEPARATOR, 4, 5])
    assert index.continuation(Match(1, 1), 9) == [2, 0]
    assert index.continuation(Match(1, 1), 1) == [2]
    assert index.continuation(Match(3, 1), 9) == []
    assert index.continuation(Match(4, 1), 9) == [4, 5]


def test_a_look_up_costs_the_same_however_often_the_text_repeats() -> None:
    """It measures a bounded number of places."""
    counts = [
        len(index_of([1] * length).matches(limit=10_000, min_match=1, max_match=4))
        for length in (1000, 4000)
    ]
    assert counts[0] == counts[1] < 500


def test_matches_are_counted_up_to_the_cap() -> None:
    text = [1, 2, 3, 4, 5] * 2
    (match,) = index_of(text).matches(limit=ALL, min_match=1, max_match=3)
    assert match == Match(end=5, length=3)


@given(tokens, st.integers(1, 4), st.integers(1, 5))
def test_the_limit_drops_no_match_of_a_higher_level(
    text: list[int], limit: int, min_match: int
) -> None:
    index = index_of(text)
    matches = index.matches(limit=limit, min_match=min_match, max_match=40)
    every = searched(text, min_match, 40)
    assert len(matches) == min(limit, len(every))
    assert set(matches) <= set(every)
    assert matches == sorted(matches, key=lambda match: (-match.length, -match.end))

    def level(match: Match) -> int:
        return max(n for n in LEVELS if n <= match.length)

    dropped = set(every) - set(matches)
    assert all(level(lost) <= level(kept) for lost in dropped for kept in matches)


@given(tokens, st.lists(st.integers(0, 5), max_size=20))
def test_token_by_token_equals_all_at_once(text: list[int], sizes: list[int]) -> None:
    grown, start = OnlineIndex(), 0
    for size in sizes:
        grown.extend(text[start : start + size])
        grown.matches(limit=3, min_match=1, max_match=8)  # a look-up changes nothing
        start += size
    grown.extend(text[start:])
    bulk = index_of(text)
    assert grown.tokens == bulk.tokens
    assert len(grown) == len(text)
    lookup = {"limit": ALL, "min_match": 1, "max_match": 40}
    assert grown.matches(**lookup) == bulk.matches(**lookup)


# ORACLE


@pytest.mark.parametrize("min_match", [1, 2, 4])
def test_matches_in_every_short_text_are_those_of_a_full_search(min_match: int) -> None:
    for text in map(list, product([SEPARATOR, 1, 2], repeat=7)):
        index = index_of(text, min_match)
        found = index.matches(limit=ALL, min_match=min_match, max_match=8)
        assert found == searched(text, min_match, 8), text


@given(
    st.lists(st.sampled_from([0, 0, 1, 1, SEPARATOR]), min_size=12, max_size=60),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
)
def test_matches_are_those_of_a_full_search(
    text: list[int], min_match: int, max_match: int
) -> None:
    found = index_of(text, min_match).matches(limit=ALL, min_match=min_match, max_match=max_match)
    assert found == searched(text, min_match, max_match)


@pytest.mark.parametrize("min_match", [3, 5, 9])
def test_a_match_just_long_enough_is_found(min_match: int) -> None:
    text = [*range(min_match), 50, *range(min_match)]
    found = index_of(text, min_match).matches(limit=ALL, min_match=min_match, max_match=32)
    assert found == [Match(end=min_match, length=min_match)]


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.integers(0, 3), max_size=20),
)
def test_what_is_truncated_leaves_no_trace(
    kept: list[int], taken_back: list[int], later: list[int]
) -> None:
    index, fresh = OnlineIndex(), OnlineIndex()
    index.extend([*kept, *taken_back])
    index.truncate(len(kept))
    index.extend(later)
    fresh.extend([*kept, *later])
    assert vars(index) == vars(fresh)
