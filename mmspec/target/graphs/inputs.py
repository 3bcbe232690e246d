"""StaticInputs: all that a recorded call depends on, in tensors that stay where they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Never, overload

import torch
from torch import Tensor

from mmspec.attention import CallPaths, RowNodes, TreeCall
from mmspec.attention.tensors import WORD_BITS, TreeTensors
from mmspec.kv import WriteSlots
from mmspec.target.graphs.bucket import Bucket
from mmspec.target.graphs.call import ScoreCall
from mmspec.target.graphs.guard import Unrepeatable

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
        self._given = _parts(self._on_cpu, layout)
        parts = _parts(self._on_device, layout)
        self.ids = parts["ids"]  # (rows, nodes)
        # (rows, nodes), or (planes, rows, nodes)
        self.positions = parts["positions"] if bucket.planes > 1 else parts["positions"][0]
        self.slots = WriteSlots(parts["first"], parts["counts"])
        self.tree = _tree(parts)

    @staticmethod
    def of(call: ScoreCall, device: torch.device) -> "StaticInputs":
        """Those of the call's graph."""
        assert call.bucket is not None, "no graph takes the call"
        return StaticInputs(call.bucket, device)

    def fill(self, call: ScoreCall) -> None:
        """Takes over a call's values; what is padding writes nothing and sees nothing."""
        bucket, given, rows = self.bucket, self._given, call.tree.rows
        batch, nodes = call.ids.shape
        self._on_cpu.zero_()
        is_known = call.ids.device.type == "cpu"  # as against found by the device a moment ago
        if is_known:
            given["ids"][:batch, :nodes] = call.ids
        given["positions"][:, :batch, :nodes] = call.positions
        first = [
            start + end for start, end in zip(call.plan.starts, call.plan.lengths, strict=True)
        ]
        given["first"][:batch] = torch.tensor(first)
        given["counts"][:batch] = torch.tensor(call.plan.counts)
        _tree(given).copy_(
            TreeTensors.of(rows, "cpu", batch=bucket.rows, nodes=bucket.nodes, tail=bucket.tail)
        )
        given_bytes = self._on_cpu
        if self._on_device.is_cuda:  # from pageable memory it may wait for what is queued there
            given_bytes = given_bytes.pin_memory()  # its own, until the copy is done
        self._on_device.copy_(given_bytes, non_blocking=True)
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


def _tree(parts: Mapping[str, Tensor]) -> TreeTensors:
    return TreeTensors(**{field.name: parts[field.name] for field in fields(TreeTensors)})
