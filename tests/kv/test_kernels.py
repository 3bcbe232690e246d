"""The KV kernels, in Triton's interpreter, against the torch code that they stand for."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mmspec.kv.cache
import mmspec.kv.layer
import mmspec.kv.slots
from mmspec.kv import KVCache, WriteSlots
from mmspec.kv.moves import Move, PathMover

pytest.importorskip("triton")
from interpreted import DEVICE

from mmspec.kv import kernels

NUM_LAYERS = 2

dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])
paths = st.lists(st.integers(0, 11), unique=True, max_size=8).map(sorted)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    shape=st.tuples(st.sampled_from([1, 3, 8, 12]), st.integers(1, 20), st.integers(1, 20)),
    is_transposed=st.booleans(),
    dtype=dtypes,
)
@settings(max_examples=12)
def test_write_puts_each_real_node_in_its_slot_and_nothing_else(
    counts: list[int], shape: tuple[int, int, int], is_transposed: bool, dtype: torch.dtype
) -> None:
    kv_heads, *dims = shape
    nodes = max(*counts, 1)
    first = [7 * row + 3 for row in range(len(counts))]
    buffers = [drawn(7 * len(counts) + 3, kv_heads, dim, dtype=dtype) for dim in dims]
    expected = [buffer.clone() for buffer in buffers]
    states = [drawn(len(counts), kv_heads, nodes, dim, dtype=dtype) for dim in dims]
    if is_transposed:  # as a projection's output is viewed
        states = [s.transpose(1, 2).contiguous().transpose(1, 2) for s in states]
    for row, count in enumerate(counts):
        for own in states:
            own[row, :, count:] = torch.nan  # padding must not be seen anywhere
        for buffer, own in zip(expected, states, strict=True):
            buffer[first[row] : first[row] + count] = own[row, :, :count].transpose(0, 1)
    slots = {"first": torch.tensor(first), "counts": torch.tensor(counts, dtype=torch.int32)}
    kernels.write(*buffers, *states, **{name: t.to(DEVICE) for name, t in slots.items()})
    assert all(map(torch.equal, buffers, expected))


@given(counts=st.lists(st.integers(0, 5), max_size=3), own=st.integers(1, 5))
@settings(max_examples=12)
def test_the_torch_code_for_tensors_writes_the_same(counts: list[int], own: int) -> None:
    counts = [own, *counts]
    first = torch.tensor([7 * row + 3 for row in range(len(counts))])
    states = [torch.randn(len(counts), 2, max(counts), 3) for _ in range(2)]
    written = []
    for write in (WriteSlots(first, torch.tensor(counts)).write, None):
        buffers = [torch.zeros(7 * len(counts) + 3, 2, 3) for _ in range(2)]
        if write is not None:
            write(*buffers, *states)
        else:
            place = {"first": first, "counts": torch.tensor(counts)}
            moved = [t.to(DEVICE) for t in (*buffers, *states)]
            kernels.write(*moved, **{name: t.to(DEVICE) for name, t in place.items()})
            buffers = [t.cpu() for t in moved[:2]]
        written.append(buffers)
    assert all(map(torch.equal, *written))


def test_write_refuses_what_does_not_fit() -> None:
    keys, states = torch.zeros(8, 2, 4), torch.zeros(1, 2, 3, 4)
    place = {"first": torch.tensor([0]), "counts": torch.tensor([3])}
    with pytest.raises(ValueError, match=r"buffer of torch\.float32 for states of torch\.float64"):
        kernels.write(keys, keys, states.double(), states, **place)
    with pytest.raises(ValueError, match=r"states \(1, 2, 3, 5\) for a buffer \(8, 2, 4\)"):
        kernels.write(keys, keys, states, torch.zeros(1, 2, 3, 5), **place)
    with pytest.raises(ValueError, match="a not contiguous buffer"):
        kernels.write(torch.zeros(2, 8, 4).transpose(0, 1), keys, states, states, **place)


@given(
    rows=st.lists(paths, min_size=1, max_size=3).filter(any),
    widths=st.lists(st.sampled_from([(1, 1), (2, 3), (3, 5), (8, 200)]), min_size=1, max_size=4),
    dtype=dtypes,
)
@settings(max_examples=12)
def test_commit_moves_paths_that_overlap_in_all_buffers(
    rows: list[list[int]], widths: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    buffers = [drawn(14 * len(rows), *width, dtype=dtype) for width in widths]
    moves = [Move(14 * row + 2, path) for row, path in enumerate(rows)]
    expected = []
    for buffer in buffers:
        copy = buffer.clone()
        for move in moves:
            for source, destination in move.pairs:
                copy[destination] = buffer[source]
        expected.append(copy)
    PathMover(buffers).move(moves)
    assert all(map(torch.equal, buffers, expected))


def test_commit_takes_layers_of_different_dtypes() -> None:
    buffers = [drawn(6, 1, 3, dtype=torch.bfloat16), drawn(6, 2, 2, dtype=torch.float64)]
    expected = [buffer[[0, 1, 3, 5, 4, 5]] for buffer in buffers]
    PathMover(buffers).move([Move(1, (0, 2, 4))])
    assert all(map(torch.equal, buffers, expected))


trees = st.lists(st.tuples(st.integers(1, 6), paths), min_size=1, max_size=3)


@given(steps=st.lists(trees, min_size=1, max_size=4), dtype=dtypes)
@settings(max_examples=5)
def test_a_cache_holds_the_same_with_kernels_as_without(
    steps: list[list[tuple[int, list[int]]]], dtype: torch.dtype
) -> None:
    states = [torch.randn(3, 2, 6, 4).to(DEVICE, dtype) for _ in range(2 * NUM_LAYERS)]
    contents = []
    for is_fused in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            for module in (mmspec.kv.slots, mmspec.kv.layer, mmspec.kv.cache):
                patch.setattr(module, "has_kernels", lambda device, is_fused=is_fused: is_fused)
            contents.append(played(steps, states))
    assert all(map(torch.equal, *contents))


def played(steps: Sequence[Sequence[tuple[int, list[int]]]], states: list[Tensor]) -> list[Tensor]:
    """What the rows hold after trees were written and paths of them committed; regions start small,
    so that rows move."""
    cache = KVCache(NUM_LAYERS)
    rows = [cache.open(2) for _ in range(3)]
    for trees in steps:
        used = rows[: len(trees)]
        counts = [count for count, _ in trees]
        with cache.writing(used, counts):
            for layer in range(NUM_LAYERS):
                of = [s[: len(used), :, : max(counts)] for s in states[2 * layer : 2 * layer + 2]]
                cache.update(*of, layer)
        cache.commit(
            {
                row: [n for n in path if n < count]
                for row, (count, path) in zip(used, trees, strict=True)
            }
        )
        cache.check_integrity()
    return [t for row in rows for pair in cache.read(row, 0, cache.length(row)) for t in pair or ()]
