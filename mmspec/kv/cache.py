"""KVCache: ragged rows, one flat buffer a layer, a region of slots a row.

A forward inside `writing` puts its tokens behind each row's committed ones and changes no length;
`commit` keeps the accepted path. Rolling back is not committing.

    slots   0         start      start+length
            | row 7 ... | prompt ... | node 0 | node 1 | node 2 | node 3 | free |
    commit path (0, 2)               | node 0 | node 2 |        length += 2
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mmspec.kv.buffers import BufferPool
from mmspec.kv.cross import CrossStates
from mmspec.kv.layer import FlatLayer, WritePlan
from mmspec.kv.moves import Move, PathMover, move_slots
from mmspec.kv.queries import QueryLog, QueryTap
from mmspec.kv.regions import Region, Regions
from mmspec.kv.slots import has_kernels
from mmspec.kv.state_layer import FlatStateLayer, StateKind, StateLayer
from mmspec.kv.state_slots import StateBlock
from mmspec.kv.states import RunningStates

Segment = tuple[tuple[Tensor, Tensor] | None, ...]
"""Keys and values of some tokens, a pair of (tokens, kv_heads, head_dim) a layer; None for a layer
that keeps none."""

_GROWTH = 1.5  # a row that outgrows its region takes one this much larger,
_MOST_GROWTH = 4096  # but no more tokens than so many at once


class KVCache(Cache):
    """The KV cache of all rows that are decoded together.

    Passed to a transformers model as `past_key_values`. `num_layers` is the model's number of
    attention layers that keep keys and values.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        queries: QueryLog | None = None,
        pool: BufferPool | None = None,
        cross_layers: Collection[int] = (),
        index_layers: Collection[int] = (),
        states: Mapping[int, StateKind] | None = None,
        num_recent: int = 0,
    ) -> None:
        """`queries`: the log of what the newest tokens asked for, where somebody reads it. `pool`:
        where released buffers stay for the next cache. `cross_layers` keep no tokens: see
        `cross`. `index_layers` choose which tokens they see, by keys of their own: these are kept
        as one more layer's behind all others, halved into keys and values. `states`: of the layers
        that keep a running state, what they keep; `num_recent`: by how many scored tokens such a
        row may be cut."""
        self.queries = queries
        self.pool = pool
        self.state_kinds = dict(states or {})
        running: dict[int, StateLayer] = {
            index: (FlatStateLayer if kind.has_keys else StateLayer)(kind.num_states)
            for index, kind in self.state_kinds.items()
        }
        both = {index: layer for index, layer in running.items() if isinstance(layer, FlatLayer)}
        self.flat_layers = [both.get(index) or FlatLayer() for index in range(num_layers)]
        self.states = RunningStates(running, num_recent=num_recent) if running else None
        self.cross = CrossStates(cross_layers)
        for index in cross_layers:
            self.flat_layers[index].keeps_tokens = False
        apart = {**self.cross.layers, **running}
        super().__init__(layers=[apart.get(i, flat) for i, flat in enumerate(self.flat_layers)])
        for index in index_layers:
            self.flat_layers[index].index = FlatLayer()
        self.flat_layers += [f.index for f in self.flat_layers if f.index is not None]
        self._regions = Regions()
        self._written: dict[int, int] = {}  # row -> tokens written behind it, not yet committed
        self._mover: PathMover | None = None  # of the buffers as they last were
        self._addresses: tuple[int, ...] | None = None  # of the buffers, once all are there

    # Rows

    def open(self, capacity: int) -> int:
        """A new, empty row with room for `capacity` tokens (it grows when it needs more);
        returns its number."""
        if self.pool is not None and not self.flat_layers[0].num_slots:
            buffers, slots = self.pool.take()
            for layer, spare in zip(self.flat_layers, buffers, strict=False):
                layer.spare = spare
            if self.states is not None:
                self.states.slots = slots or self.states.slots
        row = self._regions.open(max(capacity, 1))
        try:
            self._fit_buffers(self._regions.num_slots)
        except BaseException:
            self._regions.close(row)  # others may find memory
            raise
        if self.states is not None:
            self.states.open(row)
        return row

    def close(self, row: int) -> None:
        """Frees the row's slots. Closing a closed row does nothing."""
        self._regions.close(row)
        self._written.pop(row, None)
        self.cross.forget(row)
        if self.states is not None:
            self.states.close(row)
        if self.queries is not None:
            self.queries.forget(row)

    def release(self) -> None:
        """Closes all rows and gives the buffers' memory back, or to the pool."""
        self._regions = Regions()
        self._written.clear()
        self.cross.clear()
        self._mover = self._addresses = None
        slots = None if self.states is None else self.states.clear()
        if self.queries is not None:
            self.queries.clear()
        if self.pool is not None:
            buffers = [
                (layer.keys, layer.values) if layer.is_initialized else layer.spare
                for layer in self.flat_layers
            ]
            self.pool.give(buffers, slots)
        for layer in self.flat_layers:
            layer.release()

    def length(self, row: int) -> int:
        """Committed tokens of the row."""
        return self._regions.rows[row].length

    def region(self, row: int) -> Region:
        """Where the row's tokens lie, as of now: a row that grows moves. To be read only."""
        return self._regions.rows[row]

    def epoch(self, row: int) -> int:
        """Differs once committed tokens of the row were forgotten."""
        return self._regions.rows[row].epoch

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(self._regions.rows)

    @property
    def buffers(self) -> list[Tensor]:
        """All there are, keys and values of one layer after the other."""
        return [b for f in self.flat_layers if f.is_initialized for b in (f.keys, f.values)]

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the buffers lie: what was captured over them is good while this stays as it is."""
        states = () if self.states is None else self.states.slots.addresses
        return (*self._found_addresses(), *states)

    def _found_addresses(self) -> tuple[int, ...]:
        if self._addresses is not None:
            return self._addresses
        found = tuple(buffer.data_ptr() for buffer in self.buffers)
        if len(found) == 2 * len(self.flat_layers):  # a layer allocates its own at its first write
            self._addresses = found
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, used or not, of running states, and of what is read beside the
        tokens."""
        states = 0 if self.states is None else self.states.num_bytes
        return states + sum(buffer.nbytes for buffer in self.buffers) + self.cross.num_bytes

    # Writing

    @contextmanager
    def writing(
        self, rows: Sequence[int], counts: Sequence[int], *, after: Sequence[int] = ()
    ) -> Iterator[WritePlan]:
        """Within it, one forward writes `counts[i]` tokens behind the committed ones of `rows[i]`,
        or behind `after[i]` tokens more, which forwards before it wrote and no commit forgot.

        Regions that are too small grow first, so slots may move; lengths do not change.
        """
        kept = list(after) or [0] * len(rows)
        for row, old, count in zip(rows, kept, counts, strict=True):
            assert old <= self._written.get(row, 0), f"row {row}: {old} tokens were not written"
            self._reserve(row, count, written=old)
        regions = [self._regions.rows[row] for row in rows]
        ends = [region.length + old for region, old in zip(regions, kept, strict=True)]
        plan = WritePlan([region.start for region in regions], ends, list(counts))
        for row, old in zip(rows, kept, strict=True):
            self._written.pop(row, None)
            if self.states is not None:
                self.states.forget(row, old)
        try:
            self._set_plan(plan)
            self.cross.show(rows)
            with nullcontext() if self.states is None else self.states.running(rows, counts):
                yield plan
            for row, old, count in zip(rows, kept, counts, strict=True):
                self._written[row] = old + count
        finally:
            self._set_plan(None)
            self.cross.show(())

    @contextmanager
    def planned(self, plan: WritePlan) -> Iterator[None]:
        """Within it, and within `writing`, a forward writes by another plan: behind what the row's
        forwards have written, or over what this one writes."""
        own = self.flat_layers[0].plan  # all have the same
        try:
            self._set_plan(plan)
            yield
        finally:
            self._set_plan(own)

    def tap(
        self, rows: Sequence[int], counts: Sequence[int], *, is_prompt: bool = False
    ) -> QueryTap | None:
        """What a forward that writes `counts[i]` tokens of `rows[i]` tells its queries; None where
        nobody reads them."""
        log = self.queries
        return None if log is None else log.tap(rows, counts, is_prompt=is_prompt)

    def commit(self, paths: Mapping[int, Sequence[int]]) -> None:
        """Keeps, for each row, the tokens at `path` of those written, in that order, and forgets
        the others. A path is increasing; an empty one keeps nothing. Where it fails no row has
        come to hold anything else, and what was written is forgotten."""
        written = {row: self._written.pop(row, 0) for row in paths}
        moves: list[Move] = []
        for row, path in paths.items():
            region = self._regions.rows[row]
            is_there = not path or path[-1] < written[row]
            assert is_there, f"row {row}: {tuple(path)} of {written[row]} tokens"
            assert list(path) == sorted(set(path)), f"a path is increasing, got {tuple(path)}"
            if path and path[-1] != len(path) - 1:
                moves.append(Move(region.start + region.length, path))
        if moves:
            self._move(moves)
        if self.queries is not None:
            self.queries.commit(paths)
        for row, path in paths.items():  # this takes no memory
            region = self._regions.rows[row]
            if self.states is not None:
                self.states.commit(row, path, length=region.length)
            region.length += len(path)

    def truncate(self, row: int, length: int) -> None:
        """Forgets the row's committed tokens from `length` on, and what was written behind them.
        A running state cannot go back further than `num_recent` tokens, but to none; beyond that
        the row `is_lost`, until it is given the state that it has there (`resume`)."""
        region = self._regions.rows[row]
        assert 0 <= length <= region.length, f"row {row}: {length} of {region.length} tokens"
        if self.states is not None:
            self.states.forget(row)
        if length < region.length:
            region.epoch += 1
            if self.states is not None:
                self.states.cut(row, length)
            if self.queries is not None:
                self.queries.forget(row)
        region.length = length
        self._written.pop(row, None)

    # Copies

    def read(self, row: int, start: int, stop: int) -> Segment:
        """A copy of the row's committed tokens [start, stop), a layer at a time."""
        region = self._regions.rows[row]
        assert 0 <= start <= stop <= region.length, f"[{start}, {stop}) of {region.length} tokens"
        first = region.start
        return tuple(layer.read(first + start, first + stop) for layer in self.flat_layers)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """What a mixer asks of its layer. Some name none, which is answered for the last
        layer of all: level by level each has its states only while it is called."""
        if layer_idx is None and self.states is not None and self.states.is_by_levels:
            return any(any(one.has_previous_state.values()) for one in self.states.layers.values())
        return super().has_previous_state(layer_idx, state_idx)

    def snapshot(self, row: int) -> StateBlock | None:
        """A copy of the running state after the row's committed tokens; None where there is none,
        or none is known."""
        return None if self.states is None else self.states.snapshot(row)

    def is_lost(self, row: int) -> bool:
        """Whether the row's running state is not that of its committed tokens: it cannot go on."""
        return self.states is not None and not self.states.knows(row)

    def resume(self, row: int, state: StateBlock) -> None:
        """The row's committed tokens have come to this state, which stays what it is."""
        assert self.states is not None, "no layer keeps a state"
        self.states.resume(row, state)

    def append(self, row: int, segment: Segment, *, count: int) -> None:
        """Commits the first `count` tokens of a copy behind the row's committed ones. A running
        state does not come with them (`resume`)."""
        self._reserve(row, count)
        region = self._regions.rows[row]
        for layer, states in zip(self.flat_layers, segment, strict=True):
            if states is not None:
                layer.put(region.start + region.length, *(tensor[:count] for tensor in states))
        self._written.pop(row, None)
        if self.queries is not None:
            self.queries.forget(row)
        region.length += count
        if self.states is not None and count:
            self.states.cut(row, region.length)

    def check_integrity(self) -> None:
        """Raises AssertionError if regions overlap or overflow, or a buffer is too small."""
        self._regions.check_integrity()
        for index, layer in enumerate(self.flat_layers):
            if layer.is_initialized:
                for buffer in (layer.keys, layer.values):
                    assert buffer.shape[0] >= layer.num_slots, f"layer {index}: too small"
                assert layer.num_slots >= self._regions.num_slots, f"layer {index}: too small"

    def _move(self, moves: Sequence[Move]) -> None:
        """Moves accepted nodes to where they stay, in all layers."""
        buffers = self.buffers
        kinds = {buffer.device.type for buffer in buffers}
        if kinds and all(map(has_kernels, kinds)):
            if self._mover is None or self._mover.addresses != self._found_addresses():
                self._mover = PathMover(buffers)
            if self._mover.move(moves):
                return
        pairs = [pair for move in moves for pair in move.pairs]
        move_slots(buffers, *torch.tensor(pairs).T.contiguous())

    # Room

    def _reserve(self, row: int, count: int, *, written: int = 0) -> None:
        region = self._regions.rows[row]
        needed = region.length + written + count
        if needed <= region.capacity:
            return
        larger = min(int(region.capacity * _GROWTH), region.capacity + _MOST_GROWTH)
        made = [layer.num_slots for layer in self.flat_layers if layer.is_initialized]
        capacity = max(needed, larger)
        after = self._regions.grown(row, capacity, num_slots=min(made, default=0))
        self._fit_buffers(after.num_slots)
        of, to = list[Tensor](), list[Tensor]()
        for number, old in self._regions.rows.items():
            new, used = after.rows[number].start, old.length + self._written.get(number, 0)
            if new != old.start:
                of.append(torch.arange(old.start, old.start + used))
                to.append(torch.arange(new, new + used))
        if of:
            move_slots(self.buffers, torch.cat(of), torch.cat(to))
        self._regions = after

    def _fit_buffers(self, num_slots: int) -> None:
        """Gives the buffers room for so many, a layer at a time, so that never all of them are
        there twice. Where memory does not suffice, what the rows hold stays as it is."""
        size = num_slots if self.pool is None else self.pool.rounded(num_slots)
        for layer in self.flat_layers:
            if layer.num_slots < num_slots or not layer.is_initialized:
                self._addresses = None
                layer.resize(size)

    def _set_plan(self, plan: WritePlan | None) -> None:
        for layer in self.flat_layers:
            layer.plan = plan
