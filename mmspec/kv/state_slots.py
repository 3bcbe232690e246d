"""StateSlots: where running states lie, a slot for each row's and each node's.

One flat buffer a layer and kind, as for keys, whose addresses stay while there is room: what was
recorded over them holds. A slot belongs to whoever holds its `Held`, and is free after that.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from mmspec.kv.layer import resized
from mmspec.kv.state_layer import StateKey

ZEROS = 0  # the slot that padding goes on from: nobody writes to it
NOWHERE = 1  # the one that padding leaves its states in: nobody reads it
_LEAST = 8


def rounded_up(num_slots: int) -> int:
    """The size of a buffer for so many slots, one of four from each power of two to the next: at
    most a quarter of it is not asked for."""
    step = max(2 ** ((num_slots - 1).bit_length() - 1) // 4, 1)
    return -(-num_slots // step) * step


@dataclass(eq=False)
class StateBlock:
    """A copy of one slot's states, (1, ...) each."""

    tensors: dict[StateKey, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Held:
    """One slot, as long as somebody has this: a row that came to its states, or a node."""

    __slots__ = ("_free", "slot")

    def __init__(self, slot: int, free: list[int]) -> None:
        self.slot, self._free = slot, free

    def __del__(self) -> None:
        self._free.append(self.slot)


class StateSlots:
    """The buffers of one cache, and of the views that share its rows' states."""

    def __init__(self) -> None:
        self.buffers: dict[StateKey, Tensor] = {}  # (slots, ...), made when the first state comes
        self._num_slots = _LEAST
        self._free = [slot for slot in range(_LEAST) if slot not in (ZEROS, NOWHERE)]
        self._lock = threading.RLock()

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the buffers lie and how far they reach: larger ones may come to lie where smaller
        ones were, over which something was recorded."""
        return (self._num_slots, *(buffer.data_ptr() for buffer in self.buffers.values()))

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @property
    def slot_bytes(self) -> int:
        """Of one row or node; 0 while none has been there."""
        return self.num_bytes // self._num_slots

    def take(self, count: int) -> list[Held]:
        """So many slots, which hold anything; where too few are free the buffers grow, and move."""
        with self._lock:
            if len(self._free) < count:
                self._grow(self._num_slots + count - len(self._free))
            return [Held(self._free.pop(), self._free) for _ in range(count)]

    def put(self, held: Held, states: dict[StateKey, Tensor]) -> None:
        """Writes one slot's states, (1, ...) each."""
        with self._lock:
            for key, tensor in states.items():
                self.buffer(key, tensor)[held.slot : held.slot + 1].copy_(tensor)

    def copy(self, held: Held, layer: int | None = None) -> StateBlock:
        """The slot's states, of one layer or of all."""
        with self._lock:
            return StateBlock(
                {
                    key: buffer[held.slot : held.slot + 1].clone()
                    for key, buffer in self.buffers.items()
                    if layer in (None, key.layer)
                }
            )

    def gather(self, keys: Iterable[StateKey], slots: Tensor) -> dict[StateKey, Tensor]:
        """Copies (slots, ...) of those of the states that there are."""
        return {
            key: self.buffers[key].index_select(0, slots) for key in keys if key in self.buffers
        }

    def scatter(self, states: dict[StateKey, Tensor], slots: Tensor) -> dict[StateKey, Tensor]:
        """Writes states (slots, ...); returns them as they are kept, in the buffers' dtype."""
        kept: dict[StateKey, Tensor] = {}
        for key, tensor in states.items():
            buffer = self.buffer(key, tensor)
            kept[key] = tensor.to(buffer.dtype)
            buffer.index_copy_(0, slots, kept[key])
        return kept

    def buffer(self, key: StateKey, like: Tensor) -> Tensor:
        """Where states like `like` (any, ...) lie."""
        found = self.buffers.get(key)
        if found is None:
            found = self.buffers[key] = like.new_zeros(self._num_slots, *like.shape[1:])
        return found

    def _grow(self, least: int) -> None:
        size, former = rounded_up(least), self._num_slots
        for key, buffer in self.buffers.items():  # one after the other: never all of them twice
            self.buffers[key] = resized(buffer, size)
        self._free += range(former, size)
        self._num_slots = size
