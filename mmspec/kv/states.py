"""RunningStates: the state that each row's layers have come to, and that of each node of a tree.

A state is never changed, but followed by another: committing a path is remembering which node's
state the row has, and rolling back is not committing, as for keys.

    row 7 -- committed --+-- node 0 --+-- node 1 -- node 3
                         |            +-- node 2            commit (0, 2): row 7 has node 2's
    levels                    [0]          [1]       [2]    a level's nodes are one batch
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.kv.state_layer import StateKey, StateLayer
from mmspec.uploads import upload

_LAST = -1  # in place of a node: the last one of a prompt's part, the only one whose state is known


@dataclass(eq=False)
class StateBlock:
    """The states after some nodes, side by side: (nodes, ...) each."""

    tensors: dict[StateKey, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Held(NamedTuple):
    """One node's states."""

    block: StateBlock
    place: int

    def copy(self, layer: int | None = None) -> StateBlock:
        """The node's states alone, of one layer or of all."""
        return StateBlock(
            {
                key: tensor[self.place : self.place + 1].clone()
                for key, tensor in self.block.tensors.items()
                if layer in (None, key.layer)
            }
        )


@dataclass(eq=False)
class Level:
    """Nodes whose parents' states are known, in a row of the order of `Levels`."""

    nodes: range
    sources: list[tuple[StateBlock, list[int]]]  # of their parents, in the same order
    block: StateBlock = field(default_factory=StateBlock)

    def gather(self, key: StateKey, places: Sequence[Tensor]) -> Tensor | None:
        """The parents' states (nodes, ...), a copy; None where they have none."""
        parts = [
            block.tensors[key].index_select(0, place)
            for (block, _), place in zip(self.sources, places, strict=True)
            if key in block.tensors
        ]
        assert len(parts) in (0, len(self.sources)), f"{key}: some rows have no state"
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None


class Levels:
    """The nodes that one forward scores, by their depth below what was known before."""

    def __init__(self, levels: list[Level], order: list[int], width: int) -> None:
        """`order`: which of the forward's batch * `width` places each node has."""
        self.each = levels
        self._order, self.width = order, width
        self._placed: dict[torch.device, tuple[Tensor, list[list[Tensor]]]] = {}

    @property
    def num_nodes(self) -> int:
        return len(self._order)

    @property
    def is_in_order(self) -> bool:
        """Whether the forward's places are the nodes, one after the other."""
        return self._order == list(range(len(self._order)))

    def on(self, device: torch.device) -> tuple[Tensor, list[list[Tensor]]]:
        """(order (nodes,), the places of each level's sources) on the device; one upload."""
        if device not in self._placed:
            places = [place for level in self.each for _, place in level.sources]
            flat = [*self._order, *(index for place in places for index in place)]
            sizes = [len(self._order), *map(len, places)]
            order, *parts = upload(flat, device).split(sizes)
            of = iter(parts)
            self._placed[device] = order, [[next(of) for _ in lv.sources] for lv in self.each]
        return self._placed[device]


class RunningStates:
    """The states of all rows of a cache. Holds no more than what rows and uncommitted nodes need,
    a level of one forward at a time."""

    def __init__(self, layers: dict[int, StateLayer], *, num_recent: int = 0) -> None:
        """`num_recent`: a row may be cut by as many committed tokens that were scored."""
        self.layers = layers
        self._num_recent = num_recent
        self._recent: dict[int, dict[int, Held]] = {}  # row -> committed tokens -> state after them
        self._rows: dict[int, Held | None] = {}  # after the committed tokens; None: there are none
        self._nodes: dict[int, dict[int, Held]] = {}  # row -> uncommitted node -> after it
        self._lost: set[int] = set()  # rows that were cut where no state is known
        self._call: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # rows, tokens of each
        self.is_by_levels = False  # a forward runs, whose mixers are called a level at a time

    # Rows

    def open(self, row: int) -> None:
        self._rows[row] = None

    def close(self, row: int) -> None:
        self._rows.pop(row, None)
        self._nodes.pop(row, None)
        self._recent.pop(row, None)
        self._lost.discard(row)

    def clear(self) -> None:
        self._rows.clear()
        self._recent.clear()
        self._nodes.clear()
        self._lost.clear()

    def held(self, row: int) -> Held | None:
        """After the row's committed tokens; None where there are none."""
        assert row not in self._lost, f"row {row} was cut where no state is known"
        return self._rows[row]

    def knows(self, row: int) -> bool:
        """Whether the row's state is that of its committed tokens."""
        return row not in self._lost

    def hold(self, row: int, held: Held | None) -> None:
        """The row has come to a state that is known; shared, for nobody writes to one."""
        self._rows[row] = held
        self._nodes.pop(row, None)
        self._lost.discard(row)

    def cut(self, row: int, length: int) -> None:
        """The row was cut to `length` committed tokens."""
        recent = self._recent.get(row, {})
        self._recent[row] = {at: held for at, held in recent.items() if at <= length}
        self.hold(row, recent.get(length) if length else None)
        if length and length not in recent:
            self._lost.add(row)

    def forget(self, row: int, written: int = 0) -> None:
        """The nodes from `written` on."""
        nodes = self._nodes.get(row, {})
        self._nodes[row] = {n: held for n, held in nodes.items() if 0 <= n < written}

    def commit(self, row: int, path: Sequence[int], *, length: int) -> None:
        """The row, of `length` tokens before, has the state of the path's last node."""
        nodes = self._nodes.pop(row, {})
        if _LAST in nodes:
            self._rows[row] = nodes[_LAST]
        elif len(path):
            assert path[-1] in nodes, f"row {row}: node {path[-1]} has no state"
            self._rows[row] = nodes[path[-1]]
        if self._num_recent:
            now, recent = length + len(path), self._recent.get(row, {})
            known = {length + at: nodes[node] for at, node in enumerate(path, 1) if node in nodes}
            last = self._rows[row]
            kept = {**recent, **known, **({} if last is None else {now: last})}
            oldest = now - self._num_recent
            self._recent[row] = {at: held for at, held in kept.items() if at >= oldest}

    def snapshot(self, row: int) -> StateBlock | None:
        """A copy of the row's own state; None where none is known."""
        held = self._rows.get(row)
        if held is None or row in self._lost:
            return None
        return held.copy()

    @property
    def num_bytes(self) -> int:
        """Bytes of all states that are there."""
        kept = [held for held in self._rows.values() if held is not None]
        for some in (*self._nodes.values(), *self._recent.values()):
            kept += some.values()
        blocks = {id(held.block): held.block for held in kept}
        return sum(block.num_bytes for block in blocks.values())

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
            layer.load(index, {} if held is None else held.copy(index).tensors)
        yield
        block = StateBlock()
        for index, layer in self.layers.items():
            block.tensors |= layer.taken(index)
        self._nodes[row] = {_LAST: Held(block, 0)}

    def levels(self, parents: Sequence[Sequence[int]], written: Sequence[int]) -> Levels:
        """The levels of the nodes behind the first `written[i]` of each row's tree; `parents[i]`
        are those of the whole tree, -1 for node 0. Their states are the nodes' from now on, so a
        forward must make them."""
        assert self._call is not None
        self.is_by_levels = True
        rows, counts = self._call
        width = max(counts)
        waiting: list[list[tuple[Held | None, int, int, int]]] = []  # by level: parent, row, node
        depth: list[dict[int, int]] = [{} for _ in rows]
        for place, (row, of, done) in enumerate(zip(rows, parents, written, strict=True)):
            for node in range(done, len(of)):
                level = depth[place].get(of[node], -1) + 1
                depth[place][node] = level
                if level == len(waiting):
                    waiting.append([])
                before = None if level else self._before(row, of[node])
                waiting[level].append((before, place, node, place * width + node - done))
        return self._made(waiting, rows, parents, width)

    def _before(self, row: int, parent: int) -> Held:
        held = self.held(row) if parent < 0 else self._nodes[row][parent]
        assert held is not None, f"row {row}: no token stands before the tree"
        return held

    def _made(
        self,
        waiting: list[list[tuple[Held | None, int, int, int]]],
        rows: Sequence[int],
        parents: Sequence[Sequence[int]],
        width: int,
    ) -> Levels:
        levels: list[Level] = []
        order: list[int] = []
        places: dict[tuple[int, int], int] = {}  # (row, node) -> its index in its level
        for number, nodes in enumerate(waiting):
            if not number:  # those whose parents lie in one block are neighbours
                blocks = list(dict.fromkeys(before.block for before, *_ in nodes if before))
                nodes = sorted(
                    nodes, key=lambda node: blocks.index(node[0].block) if node[0] else 0
                )
            sources: list[tuple[StateBlock, list[int]]] = []
            level = Level(range(len(order), len(order) + len(nodes)), sources)
            for index, (before, place, node, at) in enumerate(nodes):
                if before is None:
                    before = Held(levels[-1].block, places[place, parents[place][node]])
                if not sources or sources[-1][0] is not before.block:
                    sources.append((before.block, []))
                sources[-1][1].append(before.place)
                places[place, node] = index
                self._nodes.setdefault(rows[place], {})[node] = Held(level.block, index)
                order.append(at)
            levels.append(level)
        return Levels(levels, order, width)
