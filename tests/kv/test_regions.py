"""Regions: the first-fit allocator of slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.kv.regions import Region, Regions


def layout(regions: Regions) -> dict[int, tuple[int, int]]:
    """row -> (start, capacity)."""
    return {row: (region.start, region.capacity) for row, region in regions.rows.items()}


# LAW


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
    assert regions.num_slots == 14, "no more than the rows reach to"


def test_closing_a_closed_row_does_nothing() -> None:
    regions = Regions()
    row = regions.open(2)
    regions.close(row)
    regions.close(row)
    assert layout(regions) == {}


@pytest.mark.parametrize("capacity", [6, 7])
def test_a_row_grows_into_the_free_slots_behind_it_though_there_is_a_gap(capacity: int) -> None:
    regions = Regions()
    gap, row, gone, other = (regions.open(capacity) for capacity in (9, 4, 3, 1))
    regions.close(gap)
    regions.close(gone)
    assert layout(regions.grown(row, capacity)) == {row: (9, capacity), other: (16, 1)}
    assert layout(regions)[row] == (9, 4), "nothing has changed yet"


@pytest.mark.parametrize("gap", [6, 9])
def test_a_row_that_grows_moves_into_a_gap_and_no_other_row_moves(gap: int) -> None:
    regions = Regions()
    row, other, gone, last = (regions.open(capacity) for capacity in (4, 2, gap, 1))
    regions.close(gone)
    regions.rows[row].length = 3
    grown = regions.grown(row, 6)
    assert grown.rows[row] == Region(start=6, capacity=6, length=3)
    assert (layout(grown)[other], layout(grown)[last]) == ((4, 2), (6 + gap, 1))


def test_where_there_is_no_room_the_rows_move_together() -> None:
    regions = Regions()
    gone, row, other = (regions.open(capacity) for capacity in (2, 4, 3))
    regions.close(gone)
    #    ..rrrrooo  ->  rrrrrrrooo: one slot more, and none lies idle
    assert layout(regions.grown(row, 7)) == {row: (0, 7), other: (7, 3)}


def test_the_last_row_grows_where_it_is() -> None:
    regions = Regions()
    first, row = regions.open(4), regions.open(3)
    assert layout(regions.grown(row, 5)) == {first: (0, 4), row: (4, 5)}


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (Region(0, 4), Region(3, 2), "overlap at slot 3"),
        (Region(0, 2, length=3), Region(3, 2), "overflows"),
    ],
)
def test_check_integrity_finds(first: Region, second: Region, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        Regions({0: first, 1: second}).check_integrity()


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
def test_every_region_is_the_first_that_fits_and_growth_takes_what_it_needs(
    steps: list[tuple[str, int, int]],
) -> None:
    regions = Regions()
    for action, which, capacity in steps:
        if action == "open":
            expected, before = first_fit(regions, capacity), layout(regions)
            row = regions.open(capacity)
            assert layout(regions) == {**before, row: (expected, capacity)}
        elif regions.rows:
            row = list(regions.rows)[which % len(regions.rows)]
            before, slots = layout(regions), regions.num_slots
            if action == "close":
                regions.close(row)
                del before[row]
                assert layout(regions) == before
                continue
            larger = before[row][1] + capacity
            regions = regions.grown(row, larger)
            after = layout(regions)
            assert {r: c for r, (_, c) in after.items()} == {
                r: larger if r == row else c for r, (_, c) in before.items()
            }
            needed = sum(c for _, c in after.values())
            assert regions.num_slots <= max(slots, needed), "no more slots than the rows need"
        regions.check_integrity()
