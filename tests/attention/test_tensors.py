"""TreeTensors say what the rows of a call say."""

import numpy as np
import torch

from mmspec.attention import RowNodes
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


def test_copied_values_replace_all_old_ones() -> None:
    large = TreeTensors.of([_row(7, 9, 20, 20, 1)], "cpu", batch=2, nodes=32, tail=32)
    small = TreeTensors.of([_row(3, 2, 2, 2, 3)], "cpu", batch=2, nodes=32, tail=32)
    address = large.visible.data_ptr()
    large.copy_(small)
    assert large.visible.data_ptr() == address
    assert torch.equal(large.visible, small.visible) and torch.equal(large.starts, small.starts)
