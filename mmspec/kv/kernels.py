"""Writes and commits on a GPU as one Triton launch each: the nodes of a layer, the accepted paths
of all layers. Needs triton; `slots.has_kernels` says where they are used."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.uploads import upload

_HEADS = 8  # of a token, written by one program
_BLOCK = 1024  # words of a slot, moved by one program
_WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32}  # moved as what they are not: bits are bits


@triton.jit
def _put(
    buffer,
    states,
    slot,
    row,
    node,
    heads,
    is_real,
    kv_heads,
    head_dim,
    batch_stride,
    head_stride,
    node_stride,
    dim_stride,
    DIM: tl.constexpr,
):
    dims = tl.arange(0, DIM)
    inside = (heads[:, None] < kv_heads) & (dims[None, :] < head_dim) & is_real
    of = row * batch_stride + node * node_stride + heads[:, None].to(tl.int64) * head_stride
    to = slot * kv_heads * head_dim + heads[:, None] * head_dim
    values = tl.load(states + of + dims[None, :].to(tl.int64) * dim_stride, mask=inside)
    tl.store(buffer + to + dims[None, :], values, mask=inside)


# Not compiled anew where the numbers of a row lie otherwise: they are read one by one.
@triton.jit(do_not_specialize=["first", "counts", "kv_heads"])
def _write(
    keys,  # (slots, kv_heads, head_dim), contiguous
    values,
    key_states,  # (batch, kv_heads, nodes, head_dim), any strides
    value_states,
    first,  # (batch,) int64
    counts,  # (batch,)
    kv_heads,
    key_dim,
    value_dim,
    key_batch,
    key_head,
    key_node,
    key_along,
    value_batch,
    value_head,
    value_node,
    value_along,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)  # first: the other axes hold 65,535 programs at most
    row = tl.program_id(1).to(tl.int64)
    heads = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    slot = tl.load(first + row) + node
    is_real = node < tl.load(counts + row)
    _put(
        keys, key_states, slot, row, node, heads, is_real, kv_heads, key_dim,
        key_batch, key_head, key_node, key_along, KEY_DIM,
    )  # fmt: skip
    _put(
        values, value_states, slot, row, node, heads, is_real, kv_heads, value_dim,
        value_batch, value_head, value_node, value_along, VALUE_DIM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["path_stride"])
def _commit(
    addresses,  # (buffers,) int64
    widths,  # (buffers,) int64, words of a slot
    paths,  # (rows, 2 + longest) int64: first slot behind the row, nodes of its path, the path
    path_stride,
    WORD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    buffer = tl.program_id(0)
    path = paths + tl.program_id(1).to(tl.int64) * path_stride
    words = tl.load(addresses + buffer).to(tl.pointer_type(WORD))
    width = tl.load(widths + buffer)
    columns = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    end = tl.load(path)
    # A path is increasing, so no node is overwritten before it was moved, in this order.
    for place in range(0, tl.load(path + 1)):
        node = tl.load(path + 2 + place)
        moved = inside & (node != place)
        states = tl.load(words + (end + node) * width + columns, mask=moved)
        tl.store(words + (end + place) * width + columns, states, mask=moved)


def write(
    keys: Tensor,
    values: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    *,
    first: Tensor,
    counts: Tensor,
) -> None:
    """Writes the states (batch, kv_heads, nodes, head_dim), of any strides, into a layer's flat
    buffers (slots, kv_heads, head_dim), in one launch: node n of row i, if n < counts[i], to slot
    first[i] + n. `first` (batch,) is int64, `counts` (batch,) any integers.

    Reads lengths on the device alone, so that a captured launch writes to where they say then.
    Raises ValueError for buffers and states that do not fit.
    """
    batch, kv_heads, nodes, key_dim = key_states.shape
    value_dim = value_states.shape[3]
    for buffer, states in ((keys, key_states), (values, value_states)):
        if buffer.dtype != states.dtype or not buffer.is_contiguous():
            raise ValueError(
                f"a {'' if buffer.is_contiguous() else 'not '}contiguous buffer of {buffer.dtype} "
                f"for states of {states.dtype}"
            )
        if buffer.shape[1:] != (kv_heads, states.shape[3]) or states.shape[2] != nodes:
            raise ValueError(f"states {tuple(states.shape)} for a buffer {tuple(buffer.shape)}")
    grid = (nodes, batch, triton.cdiv(kv_heads, _HEADS))
    with torch.cuda.device_of(keys):  # a model may be spread over several
        _write[grid](
            keys,
            values,
            key_states,
            value_states,
            first,
            counts,
            kv_heads,
            key_dim,
            value_dim,
            *key_states.stride(),
            *value_states.stride(),
            HEADS=min(_HEADS, triton.next_power_of_2(kv_heads)),
            KEY_DIM=triton.next_power_of_2(key_dim),
            VALUE_DIM=triton.next_power_of_2(value_dim),
            enable_fp_fusion=False,
        )


@dataclass(frozen=True)
class BufferTable:
    """Where all buffers of a cache lie on one device, for `commit`. Valid as long as they are not
    moved."""

    addresses: Tensor  # (buffers,) int64
    widths: Tensor  # (buffers,) int64, words of a slot
    word_bytes: int
    widest: int

    @staticmethod
    def of(buffers: Sequence[Tensor]) -> "BufferTable":
        """Of flat buffers (slots, ...), contiguous, on one device, of whatever dtypes."""
        sizes = [buffer[0].numel() * buffer.element_size() for buffer in buffers]
        word_bytes = math.gcd(4, *sizes, *(buffer.data_ptr() for buffer in buffers))
        widths = [size // word_bytes for size in sizes]
        device = buffers[0].device
        return BufferTable(
            upload([buffer.data_ptr() for buffer in buffers], device),
            upload(widths, device),
            word_bytes,
            max(widths),
        )


def commit(table: BufferTable, paths: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Moves the accepted paths of all rows, in all buffers, in one launch.

    `paths` are (slot of node 0, nodes of the path) a row: node path[i] goes to the slot of node i.
    Increasing paths alone, of rows that share no slots.
    """
    longest = max(len(path) for _, path in paths)
    packed = torch.zeros(len(paths), 2 + longest, dtype=torch.int64)
    for row, (end, path) in enumerate(paths):
        packed[row, : 2 + len(path)] = torch.tensor([end, len(path), *path])
    on_device = upload(packed, table.addresses.device)
    block = min(_BLOCK, triton.next_power_of_2(table.widest))
    grid = (len(table.widths), len(paths), triton.cdiv(table.widest, block))
    with torch.cuda.device_of(on_device):
        _commit[grid](
            table.addresses,
            table.widths,
            on_device,
            on_device.stride(0),
            WORD=_WORDS[table.word_bytes],
            BLOCK=block,
            num_warps=min(max(block // 32, 1), 4),  # of more, several would read what one moves
            enable_fp_fusion=False,
        )
