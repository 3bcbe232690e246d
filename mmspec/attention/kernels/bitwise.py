"""Bitwise attention in two launches: each node's keys by their positions, block after block.

A block that is all committed is read once for a tile of nodes. In the others each node has keys of
its own: the tile is computed once for each of its nodes, and only that node's results are kept.
Both go through the same instructions of one loop: two copies of it could be compiled otherwise.

A long text is divided among programs at multiples of `_SEGMENT` positions, never by how long it is,
and the segments of a node are merged in one order, from the first that it sees to its own. Programs
and memory for segments that no node has change nothing.
"""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.attention.rung import LayerRule
from mmspec.attention.tensors import TreeTensors

_PAIRS = 32  # of (node, query head of one KV head) in a tile
_SEGMENT = 1024  # positions that one program reads
_TOGETHER = 16  # segments that are summed up at once
_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["segments"])  # compiled once, whatever their number
def bitwise_kernel(
    query,
    keys,
    values,
    partial,  # (batch, nodes, heads, segments, value_dim) float32: weighted values
    partial_largest,  # (batch, nodes, heads, segments) float32: largest score, base 2
    partial_weight,  # likewise: sum of weights
    starts,  # (batch,), and so on: see TreeTensors
    committed_of,
    num_nodes,
    depths,
    ancestors,  # (batch, nodes, depth), see `ancestors_of`
    scale_in,  # scores become scores * scale_in, or tanh(scores * scale_in) * scale_out; base 2
    scale_out,
    query_batch,  # strides from here on; the last dimension is contiguous
    query_head,
    query_node,
    key_slot,
    key_head,
    value_slot,
    value_head,
    segments,
    NODES: tl.constexpr,
    DEPTH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,  # the next power of two
    TILE: tl.constexpr,  # nodes
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,  # positions
    SEGMENT: tl.constexpr,  # positions, some blocks
    WINDOW: tl.constexpr,  # 0: none
    CHUNK: tl.constexpr,  # 0: none
    HAS_SOFTCAP: tl.constexpr,
):
    tile = tl.program_id(0)
    row = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(1) % KV_HEADS
    pair = tl.arange(0, TILE * MEMBERS)
    place = pair // MEMBERS
    node = tile * TILE + place
    head = kv_head * GROUP + pair % MEMBERS
    own_nodes = tl.load(num_nodes + row)
    is_real = (node < own_nodes) & (pair % MEMBERS < GROUP)
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_N)
    q = tl.load(
        query
        + row * query_batch
        + head[:, None].to(tl.int64) * query_head
        + node[:, None].to(tl.int64) * query_node
        + dims[None, :],
        mask=is_real[:, None] & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )

    # 1. Which positions: [first, position] of each node, as far as they lie in this segment.
    start = tl.load(starts + row)
    committed = tl.load(committed_of + row)
    depth_of = tl.load(depths + row * DEPTH + node, mask=is_real, other=0)
    position = tl.where(is_real, committed + depth_of, -1)  # padding sees nothing
    first = tl.zeros([TILE * MEMBERS], dtype=tl.int32)
    if WINDOW > 0:
        first = tl.maximum(first, position - WINDOW + 1)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    begin = tl.min(tl.where(is_real, first, 2147483647), axis=0) // BLOCK_N
    end = tl.max(tl.where(is_real, position, 0), axis=0) // BLOCK_N + 1
    segment = tl.program_id(2)
    begin = tl.maximum(begin, segment * (SEGMENT // BLOCK_N))
    end = tl.maximum(tl.minimum(end, (segment + 1) * (SEGMENT // BLOCK_N)), begin)
    # Blocks before it are the same for all nodes.
    shared = tl.minimum(tl.maximum(committed // BLOCK_N, begin), end)
    count = tl.maximum(tl.minimum(own_nodes - tile * TILE, TILE), 1)
    steps = (shared - begin) + (end - shared) * count

    # 2. Online softmax: largest score, sum of weights, weighted values.
    largest = tl.full([TILE * MEMBERS], -3.0e38, dtype=tl.float32)
    weight = tl.zeros([TILE * MEMBERS], dtype=tl.float32)
    acc = tl.zeros([TILE * MEMBERS, BLOCK_V], dtype=tl.float32)
    for step in range(0, steps):
        rest = step - (shared - begin)
        is_shared = rest < 0
        block = tl.where(is_shared, begin + step, shared + rest // count)
        own = tl.where(is_shared, 0, rest % count)
        column = block * BLOCK_N + columns
        is_committed = column < committed
        depth = column - committed
        own_node = tile * TILE + own
        in_tail = (depth >= 0) & (depth < DEPTH) & (own_node < own_nodes)
        behind = tl.load(
            ancestors + (row * NODES + own_node) * DEPTH + depth, mask=in_tail, other=-1
        )
        is_there = is_committed | (behind >= 0)
        slot = start + tl.where(is_committed, column, committed + behind)
        k = tl.load(
            keys + slot[:, None] * key_slot + kv_head * key_head + dims[None, :],
            mask=is_there[:, None] & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_in
        if HAS_SOFTCAP:
            # tanh; exp2 overflows to inf or falls to 0 where it is 1 or -1.
            scores = (1.0 - 2.0 / (tl.exp2(scores * 2.8853900817779268) + 1.0)) * scale_out
        seen = is_there[None, :] & (column[None, :] <= position[:, None])
        seen = seen & (column[None, :] >= first[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        kept = tl.exp2(largest - new_largest)
        weights = tl.exp2(scores - new_largest[:, None])
        v = tl.load(
            values + slot[:, None] * value_slot + kv_head * value_head + value_dims[None, :],
            mask=is_there[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        new_weight = weight * kept + tl.sum(weights, axis=1)
        new_acc = acc * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        is_own = is_shared | (place == own)
        largest = tl.where(is_own, new_largest, largest)
        weight = tl.where(is_own, new_weight, weight)
        acc = tl.where(is_own[:, None], new_acc, acc)

    # 3. What the segment adds, to nodes that see any of it.
    is_seen = is_real & (first // SEGMENT <= segment) & (segment <= position // SEGMENT)
    at = ((row * NODES + node) * KV_HEADS * GROUP + head) * segments + segment
    tl.store(partial_largest + at, largest, mask=is_seen)
    tl.store(partial_weight + at, weight, mask=is_seen)
    tl.store(
        partial + at[:, None] * VALUE_DIM + value_dims[None, :],
        acc,
        mask=is_seen[:, None] & (value_dims[None, :] < VALUE_DIM),
    )


@triton.jit(do_not_specialize=["segments"])  # compiled once, whatever their number
def merge_segments(
    partial,
    partial_largest,
    partial_weight,
    out,  # (batch, nodes, heads, value_dim)
    sinks,
    committed_of,
    num_nodes,
    depths,
    segments,
    NODES: tl.constexpr,
    DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TOGETHER: tl.constexpr,
    SEGMENT: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    row = (tl.program_id(0) // NODES).to(tl.int64)
    node = tl.program_id(0) % NODES
    head = tl.program_id(1)
    is_real = node < tl.load(num_nodes + row)
    position = tl.load(committed_of + row) + tl.load(depths + row * DEPTH + node)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(first, position - WINDOW + 1)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    begin = first // SEGMENT
    last = tl.where(is_real, position // SEGMENT, -1)
    value_dims = tl.arange(0, BLOCK_V)
    own = ((row * NODES + node) * HEADS + head) * segments
    largest = -3.0e38
    weight = 0.0
    acc = tl.zeros([BLOCK_V], dtype=tl.float32)
    for step in range(begin // TOGETHER, last // TOGETHER + 1):
        segment = step * TOGETHER + tl.arange(0, TOGETHER)
        is_there = (segment >= begin) & (segment <= last)
        at = own + segment
        highest = tl.load(partial_largest + at, mask=is_there, other=-3.0e38)
        weights = tl.load(partial_weight + at, mask=is_there, other=0.0)
        values = tl.load(
            partial + at[:, None] * VALUE_DIM + value_dims[None, :],
            mask=is_there[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(highest, axis=0))
        kept = tl.exp2(largest - new_largest)
        shares = tl.exp2(highest - new_largest)
        weight = weight * kept + tl.sum(weights * shares, axis=0)
        acc = acc * kept + tl.sum(values * shares[:, None], axis=0)
        largest = new_largest
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        weight += tl.exp2(tl.where(is_real, sink - largest, 0.0))
    # Zeros for padding, which goes through the model's layers as well.
    result = acc / tl.where(is_real, weight, 1.0)
    at = ((row * NODES + node) * HEADS + head) * VALUE_DIM
    tl.store(out + at + value_dims, result.to(out.dtype.element_ty), mask=value_dims < VALUE_DIM)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tensors: TreeTensors,
    ancestors: Tensor,
    *,
    columns: int,
    rule: LayerRule,
) -> Tensor:
    """As `tree_attention`, of one shape of calls: `tensors` of rows whose tail is their nodes, and
    `ancestors_of` them. What is read lies on the device, and nothing is chosen by a length: a graph
    holds for every call of rows of `columns` tokens, and more columns change no bit."""
    batch, heads, nodes, head_dim = query.shape
    kv_heads, value_dim = keys.shape[1], values.shape[2]
    group = heads // kv_heads
    members = triton.next_power_of_2(group)
    tile = max(_PAIRS // members, 1)
    block_d = max(triton.next_power_of_2(head_dim), 16)
    wide = block_d * query.element_size() >= 512  # two blocks of keys and values must fit
    out = query.new_empty(batch, nodes, heads, value_dim)
    segments = triton.cdiv(columns, _SEGMENT)
    partial = query.new_empty(batch, nodes, heads, segments, value_dim, dtype=torch.float32)
    # Each where an allocation begins: kernels are compiled for addresses as they are aligned.
    partial_largest, partial_weight = (partial.new_empty(partial.shape[:4]) for _ in range(2))
    scale, softcap = rule.scaling, rule.softcap
    if query.stride(3) != 1:
        query = query.contiguous()
    assert ancestors.shape == (batch, nodes, tensors.depths.shape[1]), "another call's rows"
    launch = bitwise_kernel[(triton.cdiv(nodes, tile), batch * kv_heads, segments)]
    with torch.cuda.device_of(query):  # a model may be spread over several
        launch(
            query,
            keys,
            values,
            partial,
            partial_largest,
            partial_weight,
            starts=tensors.starts,
            committed_of=tensors.committed,
            num_nodes=tensors.num_nodes,
            depths=tensors.depths,
            ancestors=ancestors,
            scale_in=scale * _LOG2_E if softcap is None else scale / softcap,
            scale_out=1.0 if softcap is None else softcap * _LOG2_E,
            query_batch=query.stride(0),
            query_head=query.stride(1),
            query_node=query.stride(2),
            key_slot=keys.stride(0),
            key_head=keys.stride(1),
            value_slot=values.stride(0),
            value_head=values.stride(1),
            segments=segments,
            NODES=nodes,
            DEPTH=ancestors.shape[2],
            KV_HEADS=kv_heads,
            GROUP=group,
            MEMBERS=members,
            TILE=tile,
            HEAD_DIM=head_dim,
            VALUE_DIM=value_dim,
            BLOCK_D=block_d,
            BLOCK_V=max(triton.next_power_of_2(value_dim), 16),
            BLOCK_N=32 if wide else 64,
            SEGMENT=_SEGMENT,
            WINDOW=rule.reach.window or 0,
            CHUNK=rule.reach.chunk or 0,
            HAS_SOFTCAP=softcap is not None,
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )
        merge_segments[(batch * nodes, heads)](
            partial,
            partial_largest,
            partial_weight,
            out,
            sinks=out if rule.sinks is None else rule.sinks,
            committed_of=tensors.committed,
            num_nodes=tensors.num_nodes,
            depths=tensors.depths,
            segments=segments,
            NODES=nodes,
            DEPTH=ancestors.shape[2],
            HEADS=heads,
            VALUE_DIM=value_dim,
            BLOCK_V=max(triton.next_power_of_2(value_dim), 16),
            TOGETHER=_TOGETHER,
            SEGMENT=_SEGMENT,
            WINDOW=rule.reach.window or 0,
            CHUNK=rule.reach.chunk or 0,
            HAS_SINKS=rule.sinks is not None,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return out


def can_attend(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel takes such a call."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    sizes_fit = max(query.shape[3], values.shape[2]) <= 256
    return query.dtype in dtypes and query.dtype == keys.dtype == values.dtype and sizes_fit
