"""Moves: a row's accepted nodes come to lie side by side, and rows make room for one that grows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.kv.slots import KERNELS
from mmspec.uploads import upload


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


def move_slots(buffers: Sequence[Tensor], of: Tensor, to: Tensor) -> None:
    """Copies the slots `of` (tokens,) of each buffer to `to` (tokens,); they may overlap. All the
    memory for it is taken first: where there is none, nothing was moved."""
    rooms: dict[tuple[object, ...], _Room] = {}
    each = list[_Room]()
    for buffer in buffers:
        kind = buffer.device, buffer.dtype, buffer.shape[1:]
        if kind not in rooms:
            held = buffer.new_empty(len(of), *buffer.shape[1:])
            rooms[kind] = _Room(held, upload(of, buffer.device), upload(to, buffer.device))
        each.append(rooms[kind])
    for buffer, (held, source, destination) in zip(buffers, each, strict=True):
        torch.index_select(buffer, 0, source, out=held)
        buffer.index_copy_(0, destination, held)


class _Room(NamedTuple):
    """What a move needs for the buffers of one kind."""

    held: Tensor  # (tokens, kv_heads, head_dim), what is on its way
    source: Tensor  # (tokens,)
    destination: Tensor
