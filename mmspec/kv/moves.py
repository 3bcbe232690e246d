"""Moves: what a commit does to the buffers: a row's accepted nodes come to lie side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from mmspec.kv.slots import KERNELS


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

    def move(self, moves: Sequence[Move]) -> bool:
        """False where the kernel fails, and nothing was moved."""
        from mmspec.kv.kernels import commit

        first, *others = self._tables
        is_moved = False
        with KERNELS.or_else(first.addresses.device):
            commit(first, moves)
            is_moved = True
        if is_moved:  # there is no way back: what was moved must not be moved again
            for table in others:
                commit(table, moves)
        return is_moved
