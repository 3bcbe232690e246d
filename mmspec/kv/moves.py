"""Moves: what a commit does to the buffers: a row's accepted nodes come to lie side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor


class Move(NamedTuple):
    """One row's accepted nodes."""

    end: int  # slot of its node 0, the first behind the committed tokens
    path: Sequence[int]  # increasing

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """(from, to) slots of the nodes that are not in place."""
        for position, node in enumerate(self.path):
            if node != position:
                yield self.end + node, self.end + position


class PathMover:
    """Moves by one kernel launch a device, whatever the number of layers. Good as long as the
    buffers stay where they are."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        from mmspec.kv.kernels import BufferTable

        self.addresses = tuple(buffer.data_ptr() for buffer in buffers)
        self._tables = [
            BufferTable.of([buffer for buffer in buffers if buffer.device == device])
            for device in dict.fromkeys(buffer.device for buffer in buffers)
        ]

    def move(self, moves: Sequence[Move]) -> None:
        from mmspec.kv.kernels import commit

        for table in self._tables:
            commit(table, moves)
