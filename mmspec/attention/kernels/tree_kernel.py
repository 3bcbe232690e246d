"""Tree attention in one launch: the prefix and the tail of every row, split along the keys.

Online softmax (arXiv 1805.02867) over blocks of slots as in FlashAttention (arXiv 2205.14135), the
keys shared out among several programs as in FlashDecoding. A program has a tile of (node, query
head of one KV head) pairs and a share of a row's columns:

    columns    0 ........................ committed ... committed + tail
               | every node sees them     | those whose bit is set
    splits     |    0    |    1    |    2    |

How many splits there are is fixed at launch, where each begins is computed here: a captured launch
holds for every length up to the one that it was made for.
"""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from mmspec.attention.kernels.early import let_next_begin, wait_for_previous
from mmspec.attention.kernels.fence import let_tensor_cores_see


# Compiled once, not for each size of a call: none of these makes a load wider.
@triton.jit(
    do_not_specialize=[
        "nodes", "splits", "kv_heads", "depth_row", "visible_row", "visible_node", "lse_batch",
        "lse_node", "lse_kv_head", "lse_member",
    ]
)  # fmt: skip
def tree_kernel(
    query,
    keys,
    values,
    out,  # (batch, nodes, heads, value_dim), where there is one split
    partial,  # (batch, kv_heads, splits, nodes * group, value_dim) float32, where there are more
    partial_lse,  # (batch, kv_heads, splits, nodes * group) float32, base 2
    prefix_out,  # (batch, nodes, kv_heads, group, value_dim), where another kernel did the prefix
    prefix_lse,  # (batch, nodes, kv_heads, group) float32, natural log
    sinks,
    starts,
    committed,
    num_nodes,
    num_tail,
    depths,
    visible,
    scale_in,  # scores become scores * scale_in, or tanh(scores * scale_in) * scale_out; base 2
    scale_out,
    nodes,
    splits,
    kv_heads,
    depth_row,  # strides from here on; the last dimension is contiguous
    visible_row,
    visible_node,
    query_batch,
    query_head,
    query_node,
    key_slot,
    key_head,
    value_slot,
    value_head,
    prefix_batch,
    prefix_node,
    prefix_kv_head,
    prefix_member,
    lse_batch,
    lse_node,
    lse_kv_head,
    lse_member,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SPLIT: tl.constexpr,  # False: one split
    LEAST: tl.constexpr,  # columns of a split, a multiple of BLOCK_N
    WINDOW: tl.constexpr,  # 0: none
    CHUNK: tl.constexpr,  # 0: none
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BEHIND_PREFIX: tl.constexpr,  # attends to the tail alone and goes on from the prefix's result
    IS_EARLY: tl.constexpr,
):
    wait_for_previous(IS_EARLY)
    tile = tl.program_id(0)
    row = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    split = tl.program_id(2)
    start = tl.load(starts + row)
    count = tl.load(committed + row)
    own_nodes = tl.load(num_nodes + row)
    tail = tl.load(num_tail + row)

    pair = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    node = pair // GROUP
    member = pair % GROUP
    head = kv_head * GROUP + member
    is_real = node < own_nodes
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_V)
    row_wide = row.to(tl.int64)
    q = tl.load(
        query
        + row_wide * query_batch
        + head[:, None] * query_head
        + node[:, None] * query_node
        + dims[None, :],
        mask=is_real[:, None] & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )

    # 1. The columns of this split.
    first = tl.zeros([BLOCK_M], dtype=tl.int32)  # the first position that each node sees
    begin = count * 0
    if BEHIND_PREFIX:
        begin = count
    if WINDOW > 0 or CHUNK > 0:
        own = tl.load(depths + row * depth_row + tail - own_nodes + node, mask=is_real, other=0)
        position = count + own
        if WINDOW > 0:
            first = tl.maximum(first, position - WINDOW + 1)
        if CHUNK > 0:
            first = tl.maximum(first, position // CHUNK * CHUNK)
        lowest = tl.min(tl.where(is_real, tl.minimum(first, count), count), axis=0)
        if not BEHIND_PREFIX:
            begin = lowest // BLOCK_N * BLOCK_N
    total = count + tail
    share = tl.cdiv(tl.cdiv(total - begin, splits), BLOCK_N) * BLOCK_N
    share = tl.maximum(share, LEAST)
    low = begin + split * share
    high = tl.minimum(low + share, total)
    high = tl.where(tile * BLOCK_M // GROUP < own_nodes, high, low)  # nothing but padding
    plain_high = low
    if WINDOW == 0 and CHUNK == 0:
        plain_high = low + tl.maximum(tl.minimum(high, count) - low, 0) // BLOCK_N * BLOCK_N

    # 2. Online softmax over its blocks: largest score, sum of weights, weighted values.
    largest = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], dtype=tl.float32)
    if BEHIND_PREFIX:
        at = row_wide * lse_batch + node * lse_node + kv_head * lse_kv_head + member * lse_member
        # An empty prefix has no result worth reading: some kernels say +inf of it.
        is_there = is_real & (count > 0)
        largest = tl.load(prefix_lse + at, mask=is_there, other=float("-inf")) * 1.4426950408889634
        weight = tl.where(largest == float("-inf"), 0.0, 1.0)
        at = (
            row_wide * prefix_batch
            + node * prefix_node
            + kv_head * prefix_kv_head
            + member * prefix_member
        )
        acc = tl.load(
            prefix_out + at[:, None] + value_dims[None, :],
            mask=(weight > 0.0)[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        ).to(tl.float32)
    columns = tl.arange(0, BLOCK_N)
    key_at = keys + kv_head * key_head + columns[:, None] * key_slot + dims[None, :]
    value_at = values + kv_head * value_head + columns[:, None] * value_slot + value_dims[None, :]
    visible_at = visible + row * visible_row + node * visible_node
    depth_at = depths + row * depth_row
    for block in range(low, plain_high, BLOCK_N):
        largest, weight, acc = _attend_block(
            q, largest, weight, acc, key_at, value_at, visible_at, depth_at, first, is_real,
            start, block, count, total, key_slot, value_slot, scale_in, scale_out,
            HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, False, False, HAS_SOFTCAP,
        )  # fmt: skip
    # Most splits have no such blocks, nor need what makes ready for them; and without the question
    # the compiler lets each product of both loops wait for the one before it.
    if plain_high < high:
        for block in range(plain_high, high, BLOCK_N):
            largest, weight, acc = _attend_block(
                q, largest, weight, acc, key_at, value_at, visible_at, depth_at, first, is_real,
                start, block, count, total, key_slot, value_slot, scale_in, scale_out,
                HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N, True, WINDOW > 0 or CHUNK > 0,
                HAS_SOFTCAP,
            )  # fmt: skip

    let_next_begin(IS_EARLY)

    # 3. The result, or this split's share of it.
    has_weight = weight > 0.0
    pairs = nodes * GROUP
    if not IS_SPLIT:
        total_weight = weight
        if HAS_SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
            base = tl.where(has_weight, largest, 0.0)
            total_weight += tl.exp2(sink - base)
        total_weight = tl.where(has_weight, total_weight, 1.0)
        result = tl.where(is_real[:, None], acc / total_weight[:, None], 0.0)
        at = ((row_wide * nodes + node) * kv_heads * GROUP + head) * VALUE_DIM
        tl.store(
            out + at[:, None] + value_dims[None, :],
            result.to(out.dtype.element_ty),
            mask=(pair < pairs)[:, None] & (value_dims[None, :] < VALUE_DIM),
        )
    else:
        safe = tl.where(has_weight, weight, 1.0)
        lse = tl.where(has_weight, largest + tl.log2(safe), float("-inf"))
        at = ((row_wide * kv_heads + kv_head) * splits + split) * pairs + pair
        tl.store(partial_lse + at, lse, mask=pair < pairs)
        tl.store(
            partial + at[:, None] * VALUE_DIM + value_dims[None, :],
            acc / safe[:, None],
            mask=(has_weight & (pair < pairs))[:, None] & (value_dims[None, :] < VALUE_DIM),
        )


@triton.jit
def _attend_block(
    q,
    largest,
    weight,
    acc,
    key_at,
    value_at,
    visible_at,
    depth_at,
    first,
    is_real,
    start,
    block,
    count,
    total,
    key_slot,
    value_slot,
    scale_in,
    scale_out,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr,  # False: all nodes see all BLOCK_N columns from `block` on
    HAS_REACH: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    column = block + tl.arange(0, BLOCK_N)
    inside = column < total
    slot = start + block  # int64: slots times heads may pass 2**31
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_V)

    key_at = key_at + slot * key_slot
    if IS_MASKED:
        k = tl.load(key_at, mask=inside[:, None] & (dims[None, :] < HEAD_DIM), other=0.0)
    elif HEAD_DIM < BLOCK_D:
        k = tl.load(key_at, mask=dims[None, :] < HEAD_DIM, other=0.0)
    else:
        k = tl.load(key_at)
    let_tensor_cores_see()
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:
        # tanh; exp2 overflows to inf or falls to 0 where it is 1 or -1.
        scores = 1.0 - 2.0 / (tl.exp2(scores * scale_in * 2.8853900817779268) + 1.0)
        scale = scale_out
    else:
        scale = scale_in
    if IS_MASKED:
        own = column - count  # in the tail, from 0 on
        # The words that a block may touch, one load of a node each: a column's own word is selected
        # in registers. Fetched column by column they took more shared memory than keys do.
        low_word = (block - count) >> 5
        word = tl.zeros([is_real.shape[0], BLOCK_N], dtype=tl.int32)
        for step in tl.static_range((BLOCK_N + 62) // 32):
            at = low_word + step
            is_there = is_real & (at >= 0) & (at * 32 < total - count)
            some = tl.load(visible_at + at, mask=is_there, other=0)
            word = tl.where((own >> 5)[None, :] == at, some[:, None], word)
        bit = (word >> (own & 31)[None, :]) & 1
        seen = inside[None, :] & ((own < 0)[None, :] | (bit == 1))
        if HAS_REACH:
            depth = tl.load(depth_at + own, mask=(own >= 0) & inside, other=0)
            position = tl.where(own < 0, column, count + depth)
            seen = seen & (position[None, :] >= first[:, None])
        scores = tl.where(seen, scores, float("-inf"))

    # Scaled behind the maximum, and in the same instruction as the difference.
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * scale)
    base = new_largest
    if IS_MASKED:  # -inf - -inf would be NaN, where a node has seen nothing yet
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores * scale - base[:, None])
    shrink = tl.exp2(largest - base)
    weight = weight * shrink + tl.sum(weights, axis=1)
    acc = acc * shrink[:, None]

    value_at = value_at + slot * value_slot
    if IS_MASKED:
        v = tl.load(value_at, mask=inside[:, None] & (value_dims[None, :] < VALUE_DIM), other=0.0)
    elif VALUE_DIM < BLOCK_V:
        v = tl.load(value_at, mask=value_dims[None, :] < VALUE_DIM, other=0.0)
    else:
        v = tl.load(value_at)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return new_largest, weight, acc
