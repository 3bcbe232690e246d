"""The splits of `tree_kernel`, merged by their log-sum-exp: a program for each node, head and
part of the head. It is one warp, so that what it adds up is in registers of its own."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from mmspec.attention.kernels.early import let_next_begin, wait_for_previous


# Compiled once for all models: none of these makes a load wider.
@triton.jit(do_not_specialize=["nodes", "splits", "kv_heads", "group"])
def merge_kernel(
    partial,  # (batch, kv_heads, splits, nodes * group, value_dim) float32
    partial_lse,  # (batch, kv_heads, splits, nodes * group) float32, base 2; -inf: nothing there
    out,  # (batch, nodes, heads, value_dim)
    sinks,
    num_nodes,
    nodes,
    splits,
    kv_heads,
    group,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr,  # splits, rounded up to a power of two
    STEP: tl.constexpr,  # splits whose values are in registers together
    HAS_SINKS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    let_next_begin(IS_EARLY)
    wait_for_previous(IS_EARLY)
    row = tl.program_id(0) // nodes
    node = tl.program_id(0) % nodes
    head = tl.program_id(1)
    kv_head = head // group
    pairs = nodes * group
    dims = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_real = node < tl.load(num_nodes + row)
    # Of split 0; the next one's is `pairs` further.
    base = (row.to(tl.int64) * kv_heads + kv_head) * splits * pairs + node * group + head % group

    split = tl.arange(0, BLOCK_S)
    lse = tl.load(partial_lse + base + split * pairs, mask=split < splits, other=float("-inf"))
    lse = tl.where(is_real, lse, float("-inf"))
    largest = tl.max(lse, axis=0)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp2(lse - largest), axis=0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total += tl.exp2(sink - largest)
    acc = tl.zeros([BLOCK_V], dtype=tl.float32)
    for low in tl.static_range(0, BLOCK_S, STEP):
        some = low + tl.arange(0, STEP)
        own = tl.load(partial_lse + base + some * pairs, mask=some < splits, other=float("-inf"))
        values = tl.load(  # not told by `own` what to read: both are on their way together
            partial + (base + some * pairs)[:, None] * VALUE_DIM + dims[None, :],
            mask=(is_real & (some < splits))[:, None] & (dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        weighed = values * tl.exp2(own - largest)[:, None]
        acc += tl.sum(tl.where(own[:, None] > float("-inf"), weighed, 0.0), axis=0)
    result = tl.where(is_real, acc / tl.where(total > 0.0, total, 1.0), 0.0)
    at = (row.to(tl.int64) * nodes + node) * kv_heads * group + head
    tl.store(out + at * VALUE_DIM + dims, result.to(out.dtype.element_ty), mask=dims < VALUE_DIM)
