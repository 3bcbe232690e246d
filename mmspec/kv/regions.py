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

    def move(self, row: int, capacity: int) -> tuple[int, int]:
        """Gives the row a larger region; returns (old start, new start) for the caller to copy."""
        region = self.rows[row]
        old_start, region.start = region.start, self._find(capacity)
        region.capacity = capacity
        return old_start, region.start

    def _find(self, capacity: int) -> int:
        """The first gap of `capacity` slots; at the end, where `num_slots` grows, if need be."""
        start = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            if region.start - start >= capacity:
                return start
            start = region.start + region.capacity
        self.num_slots = max(self.num_slots, start + capacity)
        return start

    def check_integrity(self) -> None:
        """Raises AssertionError if regions overlap, overflow or leave the buffer."""
        end = 0
        for region in sorted(self.rows.values(), key=lambda region: region.start):
            assert region.start >= end, f"regions overlap at slot {region.start}"
            assert 0 <= region.length <= region.capacity, f"row overflows its region: {region}"
            end = region.start + region.capacity
        assert end <= self.num_slots, f"regions reach slot {end} of {self.num_slots}"
