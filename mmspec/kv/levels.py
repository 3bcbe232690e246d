"""Levels: the nodes that one forward scores, by their depth below what was known before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.kv.state_slots import NOWHERE, ZEROS
from mmspec.uploads import upload


class Entry(NamedTuple):
    """One node of a level."""

    row: int  # of the call
    node: int  # of those that the call computes of the row
    source: int  # slot of its parent's state
    slot: int  # where its own goes


@dataclass(frozen=True)
class LevelSlots:
    """Where a forward's mixers find and leave states, on a device: an entry after the other, level
    by level. What is recorded reads these tensors anew each time."""

    sizes: Sequence[int]  # entries of each level
    order: Tensor | None  # (entries,) which of batch * nodes places each is; None: the first ones
    back: Tensor | None  # (batch * nodes,) which entry each place is; padding's is any; None: ditto
    sources: Sequence[Tensor | None]  # (entries of a level,) slots; None: those it has just left
    slots: Sequence[Tensor]  # (entries of a level,)

    def on(self, device: torch.device) -> "LevelSlots":
        """The same on another device; itself where it lies there already."""
        if self.slots[0].device == device:
            return self
        return replace(
            self,
            order=None if self.order is None else self.order.to(device),
            back=None if self.back is None else self.back.to(device),
            sources=[None if part is None else part.to(device) for part in self.sources],
            slots=[part.to(device) for part in self.slots],
        )


class Levels:
    """The levels of one forward's nodes, each with the slots that it reads and writes."""

    def __init__(self, each: Sequence[Sequence[Entry]], *, batch: int, width: int) -> None:
        """`width`: nodes of a row, padding included."""
        self.each = each
        self._batch, self._width = batch, width
        self._placed: dict[torch.device, LevelSlots] = {}

    @property
    def is_chain(self) -> bool:
        """Whether no level has two nodes of a row: each goes on from the row's one before."""
        return all(len({entry.row for entry in level}) == len(level) for level in self.each)

    @property
    def varied(self) -> "Levels":
        """Levels of these sizes that differ in every value, and leave states in slots of these;
        one node alone leaves its own nowhere, where no padding writes then."""
        own = [entry.slot for level in self.each for entry in level]
        other = dict(zip(own, [*own[1:], own[0] if len(own) > 1 else NOWHERE], strict=True))
        return Levels(
            [
                [
                    Entry(
                        entry.row if self._width > 1 else (entry.row + 1) % self._batch,
                        (entry.node + 1) % self._width,
                        other.get(entry.source, ZEROS),
                        other[entry.slot],
                    )
                    for entry in level
                ]
                for level in self.each
            ],
            batch=self._batch,
            width=self._width,
        )

    def on(self, device: torch.device) -> LevelSlots:
        """On the device; one upload."""
        if device not in self._placed:
            self._placed[device] = self._made(device)
        return self._placed[device]

    def _made(self, device: torch.device) -> LevelSlots:
        sizes = [len(level) for level in self.each]
        follows = [False, *map(_follows, self.each, self.each[1:])]
        order = [entry.row * self._width + entry.node for level in self.each for entry in level]
        is_in_order = order == list(range(len(order)))
        places = [] if is_in_order else [*order, *_back(order, self._batch * self._width)]
        sources = [
            [entry.source for entry in level]
            for level, is_carried in zip(self.each, follows, strict=True)
            if not is_carried
        ]
        slots = [[entry.slot for entry in level] for level in self.each]
        parts = [*sources, *slots]
        flat = [*places, *(slot for part in parts for slot in part)]
        given = upload(flat, device)
        split = iter(given[len(places) :].split([len(part) for part in parts]))
        of = [None if is_carried else next(split) for is_carried in follows]
        return LevelSlots(
            sizes,
            None if is_in_order else given[: len(order)],
            None if is_in_order else given[len(order) : len(places)],
            of,
            list(split),
        )


def _follows(before: Sequence[Entry], level: Sequence[Entry]) -> bool:
    """Whether each entry goes on from the one at its index in the level before."""
    return len(before) == len(level) and all(
        entry.source == parent.slot for parent, entry in zip(before, level, strict=True)
    )


def _back(order: Sequence[int], num_places: int) -> list[int]:
    back = [0] * num_places
    for index, place in enumerate(order):
        back[place] = index
    return back
