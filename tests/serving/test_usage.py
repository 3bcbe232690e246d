"""What an answer took, as its client is told."""

from difflib import SequenceMatcher
from typing import Any

import pytest

from mmspec.serving import usage


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """The lengths of what is searched for matches, and whether frequent tokens begin none."""
    found = list[tuple[int, int, bool]]()

    def watched(junk: None, one: Any, other: Any, *, autojunk: bool) -> SequenceMatcher[int]:
        found.append((len(one), len(other), autojunk))
        return SequenceMatcher(junk, one, other, autojunk=autojunk)

    monkeypatch.setattr(usage, "SequenceMatcher", watched)
    return found


def test_a_prediction_is_searched_only_where_it_differs(
    searched: list[tuple[int, int, bool]],
) -> None:
    same = [1] * 9000
    assert usage.num_found([*same, 2, 5, 3, *same], [*same, 5, *same]) == 18001
    assert usage.num_found([1, 1], [1]) == usage.num_found([1], [1, 1]) == 1
    assert searched[0] == (3, 1, False)


def test_a_search_of_many_equal_tokens_is_cut_short(
    searched: list[tuple[int, int, bool]],
) -> None:
    """It would take minutes: each of the one meets each of the other."""
    assert usage.num_found([2, *[1] * 2000], [3, *[1] * 2000, 4]) <= 2000
    assert searched == [(2001, 2002, True)]
