"""StaticInputs: all that a recorded call depends on, in tensors that stay where they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Never, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention import CallPaths, RowNodes, TreeCall
from mmspec.attention.tensors import WORD_BITS, TreeArrays, TreeTensors
from mmspec.kv import Levels, LevelSlots, WriteSlots
from mmspec.kv.levels import Entry
from mmspec.kv.state_slots import NOWHERE
from mmspec.target.graphs.bucket import Bucket
from mmspec.target.graphs.call import ScoreCall
from mmspec.target.graphs.guard import Unrepeatable
from mmspec.uploads import upload_to

_READ = (
    "a layer's attention reads its rows on the CPU; mmspec's own on a GPU does not, which needs "
    "triton and a layer that asks for nothing else"
)
_ALIGNMENT = 16  # bytes: kernels are compiled for addresses that are multiples of it
_Field = tuple[tuple[int, ...], torch.dtype]


class StaticInputs:
    """The inputs of one bucket on the device, parts of one tensor: one copy fills them."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        layout = _layout(bucket)
        self._on_device = torch.zeros(_size(layout), dtype=torch.uint8, device=device)
        self._on_cpu = torch.zeros(_size(layout), dtype=torch.uint8)
        # NumPy's view of it: a few numbers take torch several times as long to write.
        self._given = {name: part.numpy() for name, part in _parts(self._on_cpu, layout).items()}
        self._given_tree = TreeArrays(*(self._given[name] for name in TreeArrays._fields))
        parts = _parts(self._on_device, layout)
        self.ids = parts["ids"]  # (rows, nodes)
        # (rows, nodes), or (planes, rows, nodes)
        self.positions = parts["positions"] if bucket.planes > 1 else parts["positions"][0]
        self.slots = WriteSlots(parts["first"], parts["counts"])
        self.tree = TreeTensors(**{name: parts[name] for name in TreeArrays._fields})
        self.levels = _levels(bucket, parts)  # None where no mixer needs them

    @staticmethod
    def of(call: ScoreCall, device: torch.device) -> "StaticInputs":
        """Those of the call's graph."""
        assert call.bucket is not None, "no graph takes the call"
        return StaticInputs(call.bucket, device)

    def fill(self, call: ScoreCall) -> None:
        """Takes over a call's values; what is padding writes nothing and sees nothing."""
        given, plan = self._given, call.plan
        batch, nodes = call.ids.shape
        self._on_cpu.zero_()
        is_known = call.ids.device.type == "cpu"  # as against found by the device a moment ago
        if is_known:
            given["ids"][:batch, :nodes] = call.ids.numpy()
        given["positions"][:, :batch, :nodes] = call.positions.numpy()
        given["first"][:batch] = plan.starts
        given["first"][:batch] += plan.lengths
        given["counts"][:batch] = plan.counts
        self._given_tree.fill(call.tree.rows)
        if call.levels is not None:
            _place(given, self.bucket, call.levels)
        upload_to(self._on_device, self._on_cpu)
        if not is_known:
            self.ids[:batch, :nodes] = call.ids

    def tree_call(self, call: ScoreCall, *, rows: Sequence[RowNodes] | None = None) -> TreeCall:
        """What attention is told in place of a call's own: nothing of its rows but the tensors,
        unless they are given, for a forward that nobody records. To be made anew for each forward,
        which may keep there what it computed."""
        own = call.tree
        return TreeCall(
            _Unread() if rows is None else rows,
            own.layers,
            own.reaches,
            backend=own.backend,
            prepared=self.tree,
            max_columns=self.bucket.columns,
            paths=None if own.paths is None else CallPaths(),
        )


class _Unread(Sequence[RowNodes]):
    """The rows of a recorded call: what was read of them would stay what it was."""

    @overload
    def __getitem__(self, index: int) -> RowNodes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RowNodes]: ...
    def __getitem__(self, index: int | slice) -> Never:
        raise Unrepeatable(_READ)

    def __len__(self) -> Never:
        raise Unrepeatable(_READ)


def _layout(bucket: Bucket) -> dict[str, _Field]:
    rows, nodes, tail = bucket.rows, bucket.nodes, bucket.tail
    long, short = torch.int64, torch.int32
    return {
        "ids": ((rows, nodes), long),
        "positions": ((bucket.planes, rows, nodes), long),
        "first": ((rows,), long),
        "counts": ((rows,), long),
        "starts": ((rows,), long),
        "committed": ((rows,), short),
        "num_nodes": ((rows,), short),
        "num_tail": ((rows,), short),
        "depths": ((rows, tail), short),
        "visible": ((rows, nodes, -(-tail // WORD_BITS)), short),
        "order": ((sum(bucket.levels),), long),
        "back": ((rows * nodes if bucket.levels else 0,), long),
        "sources": ((sum(bucket.levels),), long),
        "slots": ((sum(bucket.levels),), long),
    }


def _size(layout: Mapping[str, _Field]) -> int:
    return sum(_padded(_num_bytes(field)) for field in layout.values())


def _parts(packed: Tensor, layout: Mapping[str, _Field]) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, (shape, dtype) in layout.items():
        size = _num_bytes((shape, dtype))
        parts[name] = packed[start : start + size].view(dtype).view(shape)
        start += _padded(size)
    return parts


def _num_bytes(field: _Field) -> int:
    shape, dtype = field
    return math.prod(shape) * dtype.itemsize


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _levels(bucket: Bucket, parts: Mapping[str, Tensor]) -> LevelSlots | None:
    """What mixers are told, parts of the inputs."""
    if not bucket.levels:
        return None
    sources = parts["sources"].split(bucket.levels)
    is_in_order = bucket.is_chain and 1 in (bucket.rows, bucket.nodes)
    return LevelSlots(
        bucket.levels,
        None if is_in_order else parts["order"],
        None if is_in_order else parts["back"],
        [sources[0], *(None if bucket.is_chain else own for own in sources[1:])],
        parts["slots"].split(bucket.levels),
    )


def _place(given: Mapping[str, NDArray[Any]], bucket: Bucket, levels: Levels) -> None:
    """Fills them in; padding goes on from zeros, and its states go nowhere."""
    given["slots"].fill(NOWHERE)
    first, indices, entries = 0, list[int](), list[Entry]()
    for size, level in zip(bucket.levels, levels.each, strict=False):
        entries += level
        at = (entry.row for entry in level) if bucket.is_chain else range(len(level))
        indices += [first + index for index in at]
        first += size
    index = np.array(indices)
    row, node, source, slot = np.array(entries).T
    place = row * bucket.nodes + node
    given["order"][index] = place
    given["back"][place] = index
    given["sources"][index] = source
    given["slots"][index] = slot
