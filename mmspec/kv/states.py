"""RunningStates: the state that each row's layers have come to, and that of each node of a tree.

A state is never changed, but followed by another, in another slot: committing a path is remembering
which node's slot the row has, and rolling back is not committing, as for keys.

    row 7 -- committed --+-- node 0 --+-- node 1 -- node 3
                         |            +-- node 2            commit (0, 2): row 7 has node 2's
    levels                    [0]          [1]       [2]    a level's nodes are one batch
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mmspec.kv.levels import Entry, Levels
from mmspec.kv.state_layer import StateLayer
from mmspec.kv.state_slots import Held, StateBlock, StateSlots

_LAST = -1  # in place of a node: the last one of a prompt's part, the only one whose state is known


@dataclass
class _Row:
    """What a row has come to."""

    held: Held | None = None  # after its committed tokens; None: there are none, or it is lost
    is_lost: bool = False  # it was cut where no state is known
    recent: dict[int, Held] = field(default_factory=dict)  # committed tokens -> state after them
    nodes: dict[int, Held] = field(default_factory=dict)  # uncommitted node -> after it


class RunningStates:
    """The states of all rows of a cache: which slots they have."""

    def __init__(self, layers: dict[int, StateLayer], *, num_recent: int = 0) -> None:
        """`num_recent`: a row may be cut by as many committed tokens that were scored."""
        self.layers = layers
        self.slots = StateSlots()
        self.is_lent = False  # the slots are another cache's
        self._num_recent = num_recent
        self._rows: dict[int, _Row] = {}
        self._call: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # rows, tokens of each
        self.is_by_levels = False  # a forward runs, whose mixers are called a level at a time

    # Rows

    def open(self, row: int) -> None:
        self._rows[row] = _Row()

    def close(self, row: int) -> None:
        self._rows.pop(row, None)

    def clear(self) -> StateSlots | None:
        """Closes all rows. Returns the slots, which the next cache may have; None for lent ones."""
        self._rows.clear()
        own = None if self.is_lent else self.slots
        self.slots, self.is_lent = StateSlots(), False
        return own

    def held(self, row: int) -> Held | None:
        """After the row's committed tokens; None where there are none."""
        assert self.knows(row), f"row {row} was cut where no state is known"
        return self._rows[row].held

    def knows(self, row: int) -> bool:
        """Whether the row's state is that of its committed tokens."""
        return not self._rows[row].is_lost

    def hold(self, row: int, held: Held | None) -> None:
        """The row has come to a state that is known; shared, for nobody writes to one."""
        self._rows[row] = replace(self._rows[row], held=held, is_lost=False, nodes={})

    def share(self, row: int, source: "RunningStates", source_row: int) -> None:
        """The row has come to where a row of another cache's has, whose slots serve both."""
        if self.slots is not source.slots:
            assert not any(of.held for of in self._rows.values()), "rows have states in other slots"
            self.slots, self.is_lent = source.slots, True
        self.hold(row, source.held(source_row))

    def resume(self, row: int, state: StateBlock) -> None:
        """The row has come to a state that was copied."""
        (held,) = self.slots.take(1)
        self.slots.put(held, state.tensors)
        self.hold(row, held)

    def cut(self, row: int, length: int) -> None:
        """The row was cut to `length` committed tokens."""
        recent = self._rows[row].recent
        held = recent.get(length) if length else None
        kept = {at: held for at, held in recent.items() if at <= length}
        self._rows[row] = _Row(held, is_lost=bool(length) and held is None, recent=kept)

    def forget(self, row: int, written: int = 0) -> None:
        """The nodes from `written` on."""
        of = self._rows[row]
        of.nodes = {n: held for n, held in of.nodes.items() if 0 <= n < written}

    def commit(self, row: int, path: Sequence[int], *, length: int) -> None:
        """The row, of `length` tokens before, has the state of the path's last node."""
        of = self._rows[row]
        nodes, of.nodes = of.nodes, {}
        if _LAST in nodes:
            of.held = nodes[_LAST]
        elif len(path):
            assert path[-1] in nodes, f"row {row}: node {path[-1]} has no state"
            of.held = nodes[path[-1]]
        if self._num_recent:
            now = length + len(path)
            known = {length + at: nodes[node] for at, node in enumerate(path, 1) if node in nodes}
            kept = {**of.recent, **known, **({} if of.held is None else {now: of.held})}
            oldest = now - self._num_recent
            of.recent = {at: held for at, held in kept.items() if at >= oldest}

    def snapshot(self, row: int) -> StateBlock | None:
        """A copy of the row's own state; None where none is known."""
        held = self._rows[row].held
        return None if held is None else self.slots.copy(held)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots, used or not, that are this cache's own."""
        return 0 if self.is_lent else self.slots.num_bytes

    # Forwards

    @contextmanager
    def running(self, rows: Sequence[int], counts: Sequence[int]) -> Iterator[None]:
        """Within it, one forward runs `counts[i]` tokens of `rows[i]`: `following`, or by
        `levels`."""
        self._call = tuple(rows), tuple(counts)
        try:
            yield
        finally:
            self._call, self.is_by_levels = None, False
            for index, layer in self.layers.items():
                layer.load(index, {})

    @contextmanager
    def following(self) -> Iterator[None]:
        """Within it, and within `running`, the forward of one row reads the state that the row has
        and leaves the one after its last token."""
        assert self._call is not None
        (row,), _ = self._call
        held = self.held(row)
        for index, layer in self.layers.items():
            # A copy: a forward of one token writes where it reads.
            layer.load(index, {} if held is None else self.slots.copy(held, index).tensors)
        yield
        (after,) = self.slots.take(1)
        for index, layer in self.layers.items():
            self.slots.put(after, layer.taken(index))
        self._rows[row].nodes = {_LAST: after}

    def levels(self, parents: Sequence[Sequence[int]], written: Sequence[int]) -> Levels:
        """The levels of the nodes behind the first `written[i]` of each row's tree; `parents[i]`
        are those of the whole tree, -1 for node 0. Their states are the nodes' from now on, so a
        forward must make them."""
        assert self._call is not None
        self.is_by_levels = True
        rows, counts = self._call
        levels: list[list[Entry]] = []
        for place, (row, of, done) in enumerate(zip(rows, parents, written, strict=True)):
            nodes = self._rows[row].nodes
            level_of: dict[int, int] = {}
            for node, held in enumerate(self.slots.take(len(of) - done), done):
                parent = of[node]
                source = self.held(row) if parent < 0 else nodes[parent]
                assert source is not None, f"row {row}: no token stands before the tree"
                level = level_of[node] = level_of.get(parent, -1) + 1
                if level == len(levels):
                    levels.append([])
                levels[level].append(Entry(place, node - done, source.slot, held.slot))
                nodes[node] = held
        return Levels(levels, batch=len(rows), width=max(counts))
