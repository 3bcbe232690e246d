"""Regions: the first-fit allocator of slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.kv.regions import Region, Regions


def layout(regions: Regions) -> dict[int, tuple[int, int]]:
    """row -> (start, capacity)."""
    return {row: (region.start, region.capacity) for row, region in regions.rows.items()}


# LAW


def test_rows_lie_one_behind_the_other() -> None:
    regions = Regions()
    rows = [regions.open(capacity) for capacity in (3, 5, 2)]
    assert rows == [0, 1, 2]
    assert layout(regions) == {0: (0, 3), 1: (3, 5), 2: (8, 2)}
    assert regions.num_slots == 10


def test_closed_rows_slots_are_used_again() -> None:
    regions = Regions()
    first, _, third = (regions.open(capacity) for capacity in (4, 5, 6))
    regions.close(first)
    regions.close(third)
    assert layout(regions) == {1: (4, 5)}
    assert regions.open(4) not in (first, third), "a number is never given twice"
    assert layout(regions)[3] == (0, 4), "the gap that fits exactly is taken"
    regions.open(5)
    assert layout(regions)[4] == (9, 5)
    assert regions.num_slots == 15, "all fit in the slots that were there"


def test_a_gap_too_small_is_passed_over() -> None:
    regions = Regions()
    first = regions.open(2)
    regions.open(4)
    regions.close(first)
    regions.open(3)
    assert layout(regions) == {1: (2, 4), 2: (6, 3)}


def test_closing_a_closed_row_does_nothing() -> None:
    regions = Regions()
    row = regions.open(2)
    regions.close(row)
    regions.close(row)
    assert layout(regions) == {}


def test_a_moved_row_keeps_its_length_and_does_not_touch_its_old_slots() -> None:
    regions = Regions()
    row = regions.open(4)
    regions.rows[row].length = 3
    old, new = regions.move(row, 6)
    assert (old, new) == (0, 4), "a copy needs both places at once"
    assert regions.rows[row] == Region(start=4, capacity=6, length=3)


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (Region(0, 4), Region(3, 2), "overlap at slot 3"),
        (Region(0, 2, length=3), Region(3, 2), "overflows"),
        (Region(0, 2), Region(3, 9), "reach slot 12 of 8"),
    ],
)
def test_check_integrity_finds(first: Region, second: Region, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        Regions(num_slots=8, rows={0: first, 1: second}).check_integrity()


# ORACLE

actions = st.lists(
    st.tuples(st.sampled_from(["open", "close", "grow"]), st.integers(0, 7), st.integers(1, 9)),
    max_size=30,
)


def first_fit(regions: Regions, capacity: int) -> int:
    """The lowest start at which no slot of [start, start + capacity) is taken."""
    taken = {
        slot
        for region in regions.rows.values()
        for slot in range(region.start, region.start + region.capacity)
    }
    return next(
        start
        for start in range(len(taken) * 20 + 1)
        if taken.isdisjoint(range(start, start + capacity))
    )


@given(actions)
def test_every_region_is_the_first_that_fits(steps: list[tuple[str, int, int]]) -> None:
    regions = Regions()
    for action, which, capacity in steps:
        if action == "open":
            expected, before = first_fit(regions, capacity), layout(regions)
            row = regions.open(capacity)
            assert layout(regions) == {**before, row: (expected, capacity)}
        elif regions.rows:
            row = list(regions.rows)[which % len(regions.rows)]
            before = layout(regions)
            if action == "close":
                regions.close(row)
                del before[row]
            else:
                larger = before[row][1] + capacity
                before[row] = (first_fit(regions, larger), larger)
                regions.move(row, larger)
            assert layout(regions) == before
        regions.check_integrity()
