"""Head norms, rotation of queries and keys, and the write of keys and values, in one launch."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mmspec.attention.kernels.early import launch_options, let_next_begin, wait_for_previous
from mmspec.attention.tensors import TreeTensors
from mmspec.target.kernels.arguments import by_token, compute_dtype, launching


class HeadNorms(NamedTuple):
    """RMSNorm of each head, before it is rotated."""

    query: Tensor  # (head_dim,)
    key: Tensor  # (head_dim,)
    epsilon: float


def turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    tensors: TreeTensors,
    norms: HeadNorms | None = None,
    is_early: bool = False,
) -> Tensor:
    """The rotated queries, (batch, nodes, heads, head_dim); rotated keys and values go to the
    slots of their nodes in a layer's flat buffers, `keys` and `values` (slots, kv_heads, head_dim).

    `query`, `key` and `value` are what the projections made, (batch, nodes, heads * head_dim),
    each with any stride from token to token; `cos` and `sin` (batch, nodes, head_dim). Slots are
    told by `tensors`: nothing here depends on a length that the host knows. A padding node's keys
    are written nowhere. Rotation: arXiv 2104.09864 section 3.4.2, a pair being a dimension and the
    one half a head further.
    """
    batch, nodes, width = query.shape
    head_dim, kv_heads = cos.shape[-1], keys.shape[1]
    assert keys.is_contiguous() and values.is_contiguous() and values.shape == keys.shape
    heads = width // head_dim
    turned = query.new_empty(batch, nodes, heads, head_dim)
    angles = [t.expand(batch, nodes, head_dim).contiguous() for t in (cos, sin)]
    query, key, value = (by_token(states) for states in (query, key, value))
    with launching(query):
        _turn[(batch * nodes, heads + 2 * kv_heads)](
            query,
            key,
            value,
            *angles,
            query if norms is None else norms.query,
            query if norms is None else norms.key,
            turned,
            keys,
            values,
            tensors.starts,
            tensors.committed,
            tensors.num_nodes,
            tensors.num_tail,
            nodes,
            query.stride(0),
            key.stride(0),
            value.stride(0),
            0.0 if norms is None else norms.epsilon,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HALF=head_dim // 2,
            BLOCK=triton.next_power_of_2(head_dim // 2),
            IS_NORMED=norms is not None,
            COMPUTE=compute_dtype(query),
            num_warps=1,
            **launch_options(is_early, fuses=False),
        )
    return turned


@triton.jit(do_not_specialize=["nodes"])  # compiled once for all of them
def _turn(
    query,
    key,
    value,
    cos,
    sin,
    query_norm,
    key_norm,
    turned,
    keys,
    values,
    starts,
    committed,
    num_nodes,
    num_tail,
    nodes,
    query_stride,
    key_stride,
    value_stride,
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_NORMED: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    let_next_begin(IS_EARLY)
    wait_for_previous(IS_EARLY)
    head_dim: tl.constexpr = 2 * HALF
    dtype = query.dtype.element_ty
    row, node = tl.program_id(0) // nodes, tl.program_id(0) % nodes
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    count = tl.load(num_nodes + row)
    behind = tl.load(committed + row) + tl.load(num_tail + row) - count
    slot = tl.load(starts + row) + behind + node
    column = tl.arange(0, BLOCK)
    inside = column < HALF

    if head < HEADS + KV_HEADS:
        if head < HEADS:
            source = query + token * query_stride + head * head_dim
            target = turned + (token * HEADS + head) * head_dim
            scale = query_norm
            is_kept = node >= 0
        else:
            source = key + token * key_stride + (head - HEADS) * head_dim
            target = keys + (slot * KV_HEADS + head - HEADS) * head_dim
            scale = key_norm
            is_kept = node < count
        first = tl.load(source + column, mask=inside, other=0.0)
        second = tl.load(source + HALF + column, mask=inside, other=0.0)
        if IS_NORMED:
            one, two = first.to(tl.float32), second.to(tl.float32)
            mean = (tl.sum(one * one, axis=0) + tl.sum(two * two, axis=0)) / head_dim
            factor = tl.rsqrt(mean + epsilon)
            one, two = (one * factor).to(dtype), (two * factor).to(dtype)
            scale_one = tl.load(scale + column, mask=inside, other=0.0)
            scale_two = tl.load(scale + HALF + column, mask=inside, other=0.0)
            first = (scale_one.to(COMPUTE) * one.to(COMPUTE)).to(dtype)
            second = (scale_two.to(COMPUTE) * two.to(COMPUTE)).to(dtype)
        angle = token * head_dim + column
        cos_one = tl.load(cos + angle, mask=inside, other=0.0).to(COMPUTE)
        cos_two = tl.load(cos + HALF + angle, mask=inside, other=0.0).to(COMPUTE)
        sin_one = tl.load(sin + angle, mask=inside, other=0.0).to(COMPUTE)
        sin_two = tl.load(sin + HALF + angle, mask=inside, other=0.0).to(COMPUTE)
        a, b = first.to(COMPUTE), second.to(COMPUTE)
        # Each product is rounded, as the model's own rotation does.
        one = (a * cos_one).to(dtype).to(COMPUTE) - (b * sin_one).to(dtype).to(COMPUTE)
        two = (b * cos_two).to(dtype).to(COMPUTE) + (a * sin_two).to(dtype).to(COMPUTE)
        tl.store(target + column, one.to(dtype), mask=inside & is_kept)
        tl.store(target + HALF + column, two.to(dtype), mask=inside & is_kept)
    else:
        index = head - HEADS - KV_HEADS
        source = value + token * value_stride + index * head_dim
        target = values + (slot * KV_HEADS + index) * head_dim
        is_kept = node < count
        first = tl.load(source + column, mask=inside, other=0.0)
        second = tl.load(source + HALF + column, mask=inside, other=0.0)
        tl.store(target + column, first, mask=inside & is_kept)
        tl.store(target + HALF + column, second, mask=inside & is_kept)
