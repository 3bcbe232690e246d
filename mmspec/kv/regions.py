"""Which slots of the flat buffers belong to which row: a first-fit allocator."""

from dataclasses import dataclass, field


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

    num_slots: int = 0
    rows: dict[int, Region] = field(default_factory=dict)
    _next_row: int = 0

    def open(self, capacity: int) -> int:
        """A new row with an empty region of `capacity` slots; returns its number."""
        row, self._next_row = self._next_row, self._next_row + 1
        self.rows[row] = Region(self._find(capacity), capacity)
        return row

    def close(self, row: int) -> None:
        """Gives the row's slots back. Closing a closed row does nothing."""
        self.rows.pop(row, None)

    def grow(self, row: int, capacity: int) -> dict[int, tuple[int, int]]:
        """Gives the row a region of `capacity` slots: by the free ones behind it, or in a gap
        that is large enough; else `num_slots` grows to what all rows need, one behind the other.
        Returns row -> (old start, new start) of those that moved, for the caller to copy; more
        slots than there were say that all is to be copied into new buffers."""
        region = self.rows[row]
        behind = [r.start for r in self.rows.values() if r.start > region.start]
        if region.start + capacity <= min(behind, default=self.num_slots):
            region.capacity = capacity
            return {}
        gap = self._gap(capacity)
        if gap is not None:
            old, region.start, region.capacity = region.start, gap, capacity
            return {row: (old, gap)}
        region.capacity = capacity
        moved, end = {}, 0
        for number, other in sorted(self.rows.items(), key=lambda item: item[1].start):
            if other.start != end:
                moved[number] = (other.start, end)
            other.start = end
            end += other.capacity
        self.num_slots = max(self.num_slots, end)
        return moved

    def _find(self, capacity: int) -> int:
        """The first gap of `capacity` slots; at the end, where `num_slots` grows, if need be."""
        gap = self._gap(capacity)
        if gap is None:
            gap = max((r.start + r.capacity for r in self.rows.values()), default=0)
            self.num_slots = max(self.num_slots, gap + capacity)
        return gap

    def _gap(self, capacity: int) -> int | None:
        """The first gap of `capacity` slots among those that there are."""
        start = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            if region.start - start >= capacity:
                return start
            start = region.start + region.capacity
        return start if start + capacity <= self.num_slots else None

    def check_integrity(self) -> None:
        """Raises AssertionError if regions overlap, overflow or leave the buffer."""
        end = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            assert region.start >= end, f"regions overlap at slot {region.start}"
            assert 0 <= region.length <= region.capacity, f"row overflows its region: {region}"
            end = region.start + region.capacity
        assert end <= self.num_slots, f"regions reach slot {end} of {self.num_slots}"
