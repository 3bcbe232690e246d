"""One layer's keys and values: flat buffers, tokens first, as a transformers cache layer."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mmspec.errors import InputError
from mmspec.kv.slots import WriteSlots, has_kernels
from mmspec.uploads import upload


@dataclass
class WritePlan:
    """Where the next forward writes its tokens and what its attention reads, the same for every
    layer. Made by `KVCache.writing`."""

    starts: list[int]  # (batch,) first slot of each row's region
    lengths: list[int]  # (batch,) committed tokens
    counts: list[int]  # (batch,) tokens that the forward writes, the row's padding not counted
    is_viewed: bool = True  # False: the forward's attention reads the buffers, and needs no view
    captured: WriteSlots | None = None  # where a forward writes that is captured, or replayed
    _indices: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _slots: dict[torch.device, WriteSlots] = field(default_factory=dict)

    @property
    def max_count(self) -> int:
        return max(self.counts)

    @property
    def num_columns(self) -> int:
        """Keys that a query can see: the longest row with its new tokens."""
        rows = zip(self.lengths, self.counts, strict=True)
        return max(length + count for length, count in rows)

    @property
    def is_single(self) -> bool:
        return len(self.counts) == 1

    def slots(self, device: torch.device) -> WriteSlots:
        """What a kernel on the device is told; where the forward is captured, the tensors that
        stay."""
        if self.captured is not None:
            return self.captured.on(device)
        if device not in self._slots:
            rows = zip(self.starts, self.lengths, strict=True)
            told = [[start + length for start, length in rows], self.counts]
            first, counts = upload(told, device)
            self._slots[device] = WriteSlots(first, counts)
        return self._slots[device]

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(source, destination, view) on the device: which of the forward's batch * max_count
        tokens are real (tokens,), the slots they go to (tokens,), and the slot behind each column
        of the padded view (batch, columns); columns past a row's end show its first slot."""
        if device not in self._indices:
            source, destination, view = [], [], []
            for row, (start, length, count) in enumerate(
                zip(self.starts, self.lengths, self.counts, strict=True)
            ):
                source.append(torch.arange(count) + row * self.max_count)
                destination.append(torch.arange(count) + start + length)
                columns = torch.arange(self.num_columns)
                view.append(start + columns.masked_fill_(columns >= length + count, 0))
            self._indices[device] = (
                upload(torch.cat(source), device),
                upload(torch.cat(destination), device),
                upload(torch.stack(view), device),
            )
        return self._indices[device]


class FlatLayer(CacheLayerMixin):
    """Keys and values of all rows in two flat buffers, (slots, kv_heads, head_dim)."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: WritePlan | None = None
        self.num_slots = 0
        self.index: FlatLayer | None = None  # of a layer that chooses what it sees: see `cache`
        self.keeps_tokens = True  # False: a cross-attention layer's place, which stays empty
        self.spare: tuple[Tensor, Tensor] | None = None  # taken in place of new buffers if they fit

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the buffers in the shape, dtype and place of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        spare, self.spare = self.spare, None
        # Zeros: what lies behind a mask must be finite, for 0 * NaN is NaN.
        if spare is not None and self._fits(spare, (key_states, value_states)):
            self.keys, self.values = (buffer.zero_() for buffer in spare)
            self.num_slots = min(buffer.shape[0] for buffer in spare)
        else:
            self.keys, self.values = (
                states.new_zeros(self.num_slots, states.shape[1], states.shape[3])
                for states in (key_states, value_states)
            )
        self.is_initialized = True

    def _fits(self, spare: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor]) -> bool:
        return all(
            buffer.shape[0] >= self.num_slots
            and buffer.shape[1:] == (states.shape[1], states.shape[3])
            and (buffer.dtype, buffer.device) == (states.dtype, states.device)
            for buffer, states in zip(spare, given, strict=True)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (batch, kv_heads, nodes, head_dim) behind each row's committed tokens and returns
        what attention reads, (batch, kv_heads, columns, head_dim), or what was given where nobody
        reads it. Lengths stay as they are. Raises InputError where a model itself has made more
        positions of the tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        assert plan is not None, "a forward over this cache must run inside `cache.writing(...)`"
        nodes = key_states.shape[2]
        if plan.captured is None and nodes != plan.max_count:
            raise InputError(
                f"the model made {nodes} positions of {plan.max_count} tokens; expected a "
                "placeholder token for each feature of an image, video or recording, as newer "
                "processors write them"
            )
        if plan.captured is not None or has_kernels(self.keys.device.type):
            slots = plan.slots(self.keys.device)
            slots.write(self.keys, self.values, key_states, value_states)
        else:
            self._write(self.keys, key_states)
            self._write(self.values, value_states)
        if not plan.is_viewed:
            return key_states, value_states
        return self.view(self.keys), self.view(self.values)

    def update_indexer(self, states: Tensor) -> Tensor:
        """The same for the keys by which the layer chooses which tokens it sees: writes (batch,
        nodes, index_dim), returns (batch, columns, index_dim)."""
        assert self.index is not None, "the cache was not told that this layer chooses"
        first, second = states.unsqueeze(1).chunk(2, dim=-1)
        self.index.update(first, second)
        halves = [self.index.view(half) for half in (self.index.keys, self.index.values)]
        return torch.cat(halves, dim=-1).squeeze(1)

    def _write(self, buffer: Tensor, states: Tensor) -> None:
        plan = self.plan
        assert plan is not None, "a forward over this cache must run inside `cache.writing(...)`"
        assert states.shape[0] == len(plan.counts)
        if plan.is_single:  # no copy: the row's region is the view
            start, length, count = plan.starts[0], plan.lengths[0], plan.counts[0]
            buffer[start + length : start + length + count] = states[0].transpose(0, 1)
            return
        source, destination, _ = plan.indices(buffer.device)
        tokens_first = states.transpose(1, 2).flatten(0, 1)
        buffer.index_copy_(0, destination, tokens_first.index_select(0, source))

    def view(self, buffer: Tensor) -> Tensor:
        """What a model's own attention reads of `keys` or `values` in this forward: (batch,
        kv_heads, columns, head_dim), rows padded to the longest."""
        plan = self.plan
        assert plan is not None, "a forward over this cache must run inside `cache.writing(...)`"
        if plan.is_single:  # no copy: the row's region is the view
            start, stop = plan.starts[0], plan.starts[0] + plan.num_columns
            return buffer[start:stop].transpose(0, 1).unsqueeze(0)
        return buffer[plan.indices(buffer.device)[2]].transpose(1, 2)

    def resize(self, num_slots: int) -> None:
        """New buffers of `num_slots`, one after the other, that hold what the old ones do."""
        if self.is_initialized:
            self.keys = resized(self.keys, num_slots)
            self.values = resized(self.values, num_slots)
        self.num_slots = num_slots

    def release(self) -> None:
        """Drops the buffers; the next `update` allocates new ones."""
        self.keys = self.values = None  # type: ignore[assignment]  # as before the first update
        self.is_initialized, self.num_slots, self.spare = False, 0, None

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """A copy of the slots [start, stop): keys and values, each (tokens, kv_heads, head_dim);
        None before the first `update`."""
        if not self.is_initialized:
            return None
        return self.keys[start:stop].clone(), self.values[start:stop].clone()

    def put(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Writes keys and values, each (tokens, kv_heads, head_dim), from slot `start` on."""
        if not self.is_initialized:
            first = (states[:1].transpose(0, 1).unsqueeze(0) for states in (keys, values))
            self.lazy_initialization(*first)
        self.keys[start : start + keys.shape[0]] = keys
        self.values[start : start + values.shape[0]] = values

    def get_seq_length(self) -> int:
        return max(self.plan.lengths) if self.plan else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def resized(buffer: Tensor, num_slots: int) -> Tensor:
    """A buffer of `num_slots`, the first dimension, that holds what this one does."""
    held = buffer.shape[0]
    if held >= num_slots:  # there was memory for this one before, but not for another
        return buffer
    larger = buffer.new_zeros(num_slots, *buffer.shape[1:])
    larger[:held] = buffer
    return larger
