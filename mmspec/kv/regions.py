"""Which slots of the flat buffers belong to which row: a first-fit allocator."""

from dataclasses import dataclass, field, replace


@dataclass
class Region:
    """The slots of one row: [start, start + capacity); the first `length` hold committed tokens."""

    start: int
    capacity: int
    length: int = 0
    epoch: int = 0  # how often committed tokens were forgotten


@dataclass
class Regions:
    """Rows by number, each with its region. Freed slots are used again."""

    rows: dict[int, Region] = field(default_factory=dict)
    _next_row: int = 0

    @property
    def num_slots(self) -> int:
        """That the rows reach to."""
        return max((region.start + region.capacity for region in self.rows.values()), default=0)

    def open(self, capacity: int) -> int:
        """A new row with an empty region of `capacity` slots, the first gap that is large enough;
        returns its number."""
        row, self._next_row = self._next_row, self._next_row + 1
        self.rows[row] = Region(self._gap(capacity), capacity)
        return row

    def close(self, row: int) -> None:
        """Gives the row's slots back. Closing a closed row does nothing."""
        self.rows.pop(row, None)

    def grown(self, row: int, capacity: int, *, num_slots: int = 0) -> "Regions":
        """These, but with `capacity` slots for the row: by the free ones behind it, of `num_slots`
        that there are, or in a gap between others; else all rows lie one behind the other."""
        after = replace(self, rows={number: replace(one) for number, one in self.rows.items()})
        region, gap = after.rows[row], self._gap(capacity)
        behind = (r.start for r in self.rows.values() if r.start > region.start)
        region.capacity = capacity
        if region.start + capacity <= min(behind, default=num_slots):
            return after
        if gap < self.num_slots:
            region.start = gap
            return after
        end = 0
        for one in sorted(after.rows.values(), key=lambda one: one.start):
            one.start = end
            end += one.capacity
        return after

    def _gap(self, capacity: int) -> int:
        """Where the first `capacity` free slots begin; behind all rows there are always enough."""
        end = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            if region.start - end >= capacity:
                break
            end = region.start + region.capacity
        return end

    def check_integrity(self) -> None:
        """Raises AssertionError if regions overlap or overflow."""
        end = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            assert region.start >= end, f"regions overlap at slot {region.start}"
            assert 0 <= region.length <= region.capacity, f"row overflows its region: {region}"
            end = region.start + region.capacity
