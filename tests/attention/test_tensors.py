"""TreeTensors say what the rows of a call say."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention import RowNodes
from mmspec.attention import tensors as tensors_module
from mmspec.attention.tensors import TreeTensors


def _row(start: int, committed: int, tail: int, nodes: int, seed: int) -> RowNodes:
    visible = np.random.default_rng(seed).random((nodes, tail)) < 0.5
    return RowNodes(start, committed, visible, np.arange(tail))


def _seen(tensors: TreeTensors, row: int, node: int, tail: int) -> bool:
    word = int(tensors.visible[row, node, tail // 32])
    return bool(word >> (tail % 32) & 1)


def test_every_bit_is_where_a_kernel_looks() -> None:
    rows = [_row(0, 5, 70, 40, 1), _row(100, 0, 3, 3, 2)]
    tensors = TreeTensors.of(rows, "cpu", batch=4, nodes=64, tail=128)
    assert tensors.visible.shape == (4, 64, 4)
    for index, row in enumerate(rows):
        for node in range(64):
            for tail in range(128):
                is_inside = node < row.num_nodes and tail < len(row.depths)
                expected = is_inside and bool(row.visible[node, tail])
                assert _seen(tensors, index, node, tail) == expected
    assert tensors.starts.tolist() == [0, 100, 0, 0]
    assert tensors.committed.tolist() == [5, 0, 0, 0]
    assert tensors.num_nodes.tolist() == [40, 3, 0, 0]
    assert tensors.num_tail.tolist() == [70, 3, 0, 0]
    assert tensors.depths[1, :4].tolist() == [0, 1, 2, 0]


def test_all_of_a_call_goes_to_the_device_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of addresses that are multiples of 16 bytes, as kernels are compiled for."""
    copies = []

    def upload(values: NDArray[np.int32], device: torch.device | str) -> Tensor:
        copies.append(values.nbytes)
        return torch.from_numpy(values.copy())

    monkeypatch.setattr(tensors_module, "upload", upload)
    rows = [_row(7 * seed, seed, 3 + seed, 1 + seed, seed) for seed in range(5)]
    tensors = TreeTensors.of(rows, "cpu")
    assert len(copies) == 1
    parts = [getattr(tensors, field.name) for field in fields(tensors)]
    for part in parts:
        assert (part.data_ptr() - tensors.starts.data_ptr()) % 16 == 0
        assert part.is_contiguous()
    assert [part.dtype for part in parts] == [torch.int64, *[torch.int32] * 5]
    assert tensors.starts.tolist() == [row.start for row in rows]
    assert tensors.num_tail.tolist() == [len(row.depths) for row in rows]
    assert all(
        _seen(tensors, index, node, tail) == bool(row.visible[node, tail])
        for index, row in enumerate(rows)
        for node in range(row.num_nodes)
        for tail in range(len(row.depths))
    )
