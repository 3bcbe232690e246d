"""BufferPool: flat buffers that outlive the cache they were made for.

A captured graph writes to the addresses that it was captured with. The next cache of the same model
takes over the last one's buffers, and with them its graphs.
"""

import threading
from collections.abc import Sequence

from torch import Tensor

from mmspec.kv.state_slots import StateSlots, rounded_up

Buffers = Sequence[tuple[Tensor, Tensor] | None]
"""Keys and values by layer, each (slots, kv_heads, head_dim); None for a layer that keeps none."""


class BufferPool:
    """Keeps the buffers of one cache that was released: the largest. Can be used from several
    threads."""

    def __init__(self, *, least_slots: int = 4096) -> None:
        """`least_slots`: no buffer is smaller, for one that grows has to move."""
        self.least_slots = least_slots
        self._idle: Buffers = ()
        self._idle_states: StateSlots | None = None
        self._lock = threading.Lock()
        self._views: BufferPool | None = None

    @property
    def views(self) -> "BufferPool":
        """Of the small caches that show a selection of a large one."""
        with self._lock:
            if self._views is None:
                self._views = BufferPool(least_slots=self.least_slots // 4)
            return self._views

    def rounded(self, num_slots: int) -> int:
        """The size of a buffer that shall hold so many slots."""
        return max(self.least_slots, rounded_up(num_slots))

    def take(self) -> tuple[Buffers, StateSlots | None]:
        """What is idle, which is the caller's then: buffers, empty where there are none, and slots
        of running states."""
        with self._lock:
            taken = self._idle, self._idle_states
            self._idle, self._idle_states = (), None
            return taken

    def give(self, buffers: Buffers, states: StateSlots | None = None) -> None:
        """What nobody writes to any more; dropped where larger ones are idle."""
        with self._lock:
            if _num_bytes(buffers) >= _num_bytes(self._idle):
                self._idle = tuple(buffers)
            idle = self._idle_states
            if idle is None or (states is not None and states.num_bytes >= idle.num_bytes):
                self._idle_states = states

    def clear(self) -> None:
        """Drops what is idle."""
        with self._lock:
            self._idle, views = (), self._views
            self._idle_states = None
        if views is not None:
            views.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of what is idle, views' included."""
        with self._lock:
            views = self._views
            own = _num_bytes(self._idle)
            own += 0 if self._idle_states is None else self._idle_states.num_bytes
        return own + (0 if views is None else views.num_bytes)


def _num_bytes(buffers: Buffers) -> int:
    return sum(tensor.nbytes for pair in buffers if pair is not None for tensor in pair)
