"""What a kernel reads and writes: tensors where they lie, and the memory that its threads share.

Each access is checked as a GPU does it, and more narrowly: a tensor's storage ends where it ends.
"""

import ctypes
import gc
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Lanes = NDArray[np.integer]  # (threads,)
_UNEQUAL = "several threads write a word, and not the same"
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class IllegalAccess(Exception):
    """Reads or writes outside of every tensor, across a boundary, or beside another's."""


@dataclass(frozen=True)
class _Span:
    start: int
    data: NDArray[np.uint8]

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class GlobalMemory:
    """Of the tensors that are given, and of those whose addresses one of them holds (a table).

    Blocks are in no order, and within one only barriers put warps in order: `check_order` says
    whether the result hung on another.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._spans = [_span(tensor) for tensor in tensors]
        self._tables = [_span(tensor) for tensor in tensors if tensor.dtype == torch.int64]
        self._accesses: list[_Access] = []

    def read(self, addresses: Lanes, width: int, count: int, *, who: "Who") -> NDArray[np.integer]:
        """(threads, count) words of `width` bytes, one behind the other."""
        self._accesses.append(_Access(addresses, width * count, who, is_write=False))
        found = np.empty((len(addresses), count), _WORDS[width])
        for span, mine in self._by_span(addresses, width * count):
            first = (addresses[mine] - span.start) // width
            found[mine] = _words(span, width)[first[:, None] + np.arange(count)]
        return found

    def write(self, addresses: Lanes, words: NDArray[np.integer], *, who: "Who") -> None:
        width, count = words.dtype.itemsize, words.shape[1]
        self._accesses.append(_Access(addresses, width * count, who, is_write=True))
        for span, mine in self._by_span(addresses, width * count):
            first = (addresses[mine] - span.start) // width
            places, every = first[:, None] + np.arange(count), _words(span, width)
            every[places] = words[mine]
            if (every[places] != words[mine]).any():
                raise IllegalAccess(_UNEQUAL)

    def check(self, addresses: Lanes) -> None:
        """That something is there."""
        self._by_span(addresses, 1)

    def check_order(self) -> None:
        writes = [one for one in self._accesses if one.is_write and len(one.addresses)]
        if not writes:
            return
        unit = min(one.size for one in self._accesses)
        written = np.unique(np.concatenate([one.cells(unit) for one in writes]))
        columns = []
        for one in self._accesses:
            cells = one.cells(unit)
            place = np.minimum(np.searchsorted(written, cells), len(written) - 1)
            own = np.flatnonzero(written[place] == cells)
            warps = np.repeat(one.who.warps, one.size // unit)[own]
            block, epoch = (np.full(len(own), x) for x in (one.who.block, one.who.epoch))
            columns.append(
                np.stack([cells[own], block, epoch, warps, np.full(len(own), one.is_write)])
            )
        cells, block, epoch, warps, is_write = np.concatenate(columns, axis=1)
        _raise_if_apart([cells], block, is_write, "blocks of threads")
        _raise_if_apart([cells, block, epoch], warps, is_write, "warps, with no barrier between,")

    def _by_span(self, addresses: Lanes, size: int) -> list[tuple[_Span, Lanes]]:
        if (addresses % size).any():
            raise IllegalAccess(
                f"misaligned: {size} bytes at {addresses[addresses % size != 0][0]}"
            )
        found, left = [], np.arange(len(addresses))
        for turn in range(2):
            for span in self._spans:
                if not len(left):
                    return found
                at = addresses[left]
                mine = (at >= span.start) & (at + size <= span.end)
                if mine.any():
                    found.append((span, left[mine]))
                    left = left[~mine]
            if len(left) and turn == 0:
                self._spans = [*self._spans, *self._pointed()]
        if len(left):
            first = int(addresses[left[0]])
            near = min(self._spans, key=lambda span: max(span.start - first, first - span.end))
            past = first - near.start
            raise IllegalAccess(
                f"{size} bytes at {past} of a storage of {len(near.data)}, by {len(left)} threads"
            )
        return found

    def _pointed(self) -> list[_Span]:
        tables = [_words(span, 8).astype(np.int64) for span in self._tables]
        return [
            span for span in map(_span, _alive())
            if any(((table >= span.start) & (table < span.end)).any() for table in tables)
        ]  # fmt: skip


@dataclass(frozen=True)
class Who:
    """Accesses, and when."""

    block: int
    epoch: int  # barriers of the block so far
    warps: Lanes  # (threads,)


@dataclass(frozen=True)
class _Access:
    addresses: Lanes
    size: int
    who: Who
    is_write: bool

    def cells(self, unit: int) -> Lanes:
        first = self.addresses.astype(np.int64)[:, None] // unit
        return (first + np.arange(self.size // unit)).reshape(-1)


def _raise_if_apart(keys: list[Lanes], who: Lanes, is_write: Lanes, whose: str) -> None:
    """Where several touch what one of them writes."""
    order = np.lexsort((who, *reversed(keys)))
    starts = np.any([np.diff(key[order], prepend=-1) != 0 for key in keys], axis=0)
    first = np.flatnonzero(starts)
    several = np.minimum.reduceat(who[order], first) != np.maximum.reduceat(who[order], first)
    if (several & np.logical_or.reduceat(is_write[order] != 0, first)).any():
        raise IllegalAccess(f"several {whose} touch what one of them writes")


def _span(tensor: Tensor) -> _Span:
    storage = tensor.untyped_storage()
    start, size = storage.data_ptr(), storage.nbytes()
    memory = (ctypes.c_uint8 * size).from_address(start)
    return _Span(start, np.frombuffer(memory, np.uint8) if size else np.empty(0, np.uint8))


def _alive() -> list[Tensor]:
    return [
        one for one in gc.get_objects()
        if issubclass(type(one), Tensor) and one.device.type == "cpu" and one.numel()
        and one.layout is torch.strided
    ]  # fmt: skip


def _words(span: _Span, width: int) -> NDArray[np.integer]:
    whole = len(span.data) // width * width
    return span.data[:whole].view(_WORDS[width])


_ON_ITS_WAY = 2**30  # later than any barrier: when what runs beside the threads reads or writes
_COPY, _PRODUCT = -2, -3  # of no warp


@dataclass
class SharedMemory:
    """Of one block of threads. Between two barriers no warp may read what another writes, nor
    write what another reads or writes: which comes first is open. Nor may one touch what a copy on
    its way writes, or write what a product on its way reads."""

    size: int
    base = 1024  # address of its first byte: no pointer is 0
    data: NDArray[np.uint8] = field(init=False)
    epoch: int = 1  # barriers so far

    def __post_init__(self) -> None:
        self.data = np.full(self.base + self.size, 0xFF, np.uint8)  # NaN
        self._written = np.zeros((2, len(self.data)), np.int32)  # epoch, and warp: -1 for several
        self._read = np.zeros((2, len(self.data)), np.int32)
        self._is_unfenced = np.zeros(len(self.data), np.bool_)  # tensor cores may not see it

    def read(
        self, addresses: Lanes, width: int, count: int = 1, *, warps: Lanes
    ) -> NDArray[np.integer]:
        at = self._bytes(addresses, width * count)
        self._note_read(at, warps[:, None])
        return self.data[at].view(_WORDS[width])

    def write(self, addresses: Lanes, words: NDArray[np.integer], *, warps: Lanes) -> None:
        words = np.ascontiguousarray(words)
        at = self._bytes(addresses, words.dtype.itemsize * words.shape[1])
        self._note_written(at, warps[:, None])
        self._is_unfenced[at] = True
        self.data[at] = words.view(np.uint8)
        if (self.data[at] != words.view(np.uint8)).any():
            raise IllegalAccess(_UNEQUAL)

    def begin_copy(self, addresses: Lanes, size: int, *, warps: Lanes) -> None:
        """Until `end_copy` nobody may touch what it writes."""
        at = self._bytes(addresses, size)
        self._note_written(at, warps[:, None])
        self._written[0, at], self._written[1, at] = _ON_ITS_WAY, _COPY

    def end_copy(self, addresses: Lanes, words: NDArray[np.integer], *, warps: Lanes) -> None:
        at = self._bytes(addresses, words.dtype.itemsize * words.shape[1])
        self._written[0, at] = 0
        self.write(addresses, words, warps=warps)

    def begin_product(self, at: Lanes, group: int) -> None:
        """Until `end_product` nobody may write what it reads."""
        if self._is_unfenced[at].any():
            raise IllegalAccess("tensor cores read what was written without a fence between")
        self._note_read(at, _PRODUCT)
        self._read[0, at] = _ON_ITS_WAY + group

    def end_product(self, at: Lanes, group: int) -> None:
        """Of the bytes that no later group reads, too."""
        self._read[0, at[self._read[0, at] == _ON_ITS_WAY + group]] = self.epoch

    def fence(self) -> None:
        """Tensor cores see what is written so far."""
        self._is_unfenced[:] = False

    def _note_read(self, at: Lanes, warps: Lanes | int) -> None:
        warps = np.broadcast_to(warps, at.shape)
        written = self._written[:, at]
        if ((written[0] >= self.epoch) & (written[1] != warps)).any():
            raise IllegalAccess("a warp reads what another writes, without a barrier or a wait")
        read = self._read[:, at]
        several = (read[0] >= self.epoch) & (read[1] != warps)
        self._read[0, at] = np.maximum(read[0], self.epoch)
        self._read[1, at] = np.where(several, -1, warps)
        self._read[1, at[self._read[1, at] != warps]] = -1  # several by one instruction

    def _note_written(self, at: Lanes, warps: Lanes | int) -> None:
        warps = np.broadcast_to(warps, at.shape)
        for before in (self._written[:, at], self._read[:, at]):
            if ((before[0] >= self.epoch) & (before[1] != warps)).any():
                raise IllegalAccess(
                    "a warp writes what another touches, without a barrier or a wait"
                )
        self._written[0, at] = self.epoch
        self._written[1, at] = warps
        self._written[1, at[self._written[1, at] != warps]] = -1  # several by one instruction

    def _bytes(self, addresses: Lanes, size: int) -> Lanes:
        addresses = addresses.astype(np.int64)
        if (addresses % size).any():
            raise IllegalAccess(f"misaligned: {size} bytes of shared memory")
        if len(addresses) and (
            addresses.min() < self.base or addresses.max() + size > len(self.data)
        ):
            raise IllegalAccess(f"outside of {self.size} bytes of shared memory")
        return addresses[:, None] + np.arange(size)
