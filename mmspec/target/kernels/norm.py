"""Residual add and RMSNorm in one launch."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.attention.kernels.early import launch_options, let_next_begin, wait_for_previous
from mmspec.target.kernels.arguments import compute_dtype, launching
from mmspec.target.parts import Added, Shares


def add_norm(
    states: Tensor,
    added: Added | None,
    weight: Tensor,
    *,
    epsilon: float,
    is_early: bool = False,
) -> tuple[Tensor, Tensor]:
    """(states + added, its RMSNorm by `weight` (hidden,)), each (batch, nodes, hidden) as `states`
    is; the first is `states` itself where nothing is added. RMSNorm: arXiv 1910.07467 equation 4.
    """
    states = states.contiguous()
    width = states.shape[-1]
    normed = torch.empty_like(states)
    summed = states if added is None else torch.empty_like(states)
    shares, more = 0, states
    if isinstance(added, Shares):
        shares, more = added.each.shape[0], added.each.contiguous()
    elif added is not None:
        more = added.contiguous()
    block = triton.next_power_of_2(width)
    with launching(states):
        _add_norm[(states.numel() // width,)](
            states,
            more,
            weight,
            summed,
            normed,
            epsilon,
            width,
            HAS_ADDED=added is not None,
            SHARES=shares,
            BLOCK=block,
            COMPUTE=compute_dtype(states),
            num_warps=min(max(block // 512, 1), 16),
            **launch_options(is_early),
        )
    return summed, normed


@triton.jit
def _add_norm(
    states,
    added,
    weight,
    summed,
    normed,
    epsilon,
    width,
    HAS_ADDED: tl.constexpr,
    SHARES: tl.constexpr,  # of a sum that is yet to be made; 0: it is made
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    let_next_begin(IS_EARLY)
    wait_for_previous(IS_EARLY)
    dtype = states.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    row = tl.load(states + first + column, mask=inside, other=0.0)
    if HAS_ADDED:
        more = tl.load(added + first + column, mask=inside, other=0.0)
        # Of a share. The compiler knows what divides it, and so how wide the reads may be.
        size = tl.num_programs(0).to(tl.int64) * width
        for share in tl.static_range(1, SHARES):
            at = share * size + first + column
            more += tl.load(added + at, mask=inside, other=0.0)
        more = more.to(dtype)
        row = (row.to(COMPUTE) + more.to(COMPUTE)).to(dtype)
        tl.store(summed + first + column, row, mask=inside)
    single = row.to(tl.float32)
    mean = tl.sum(single * single, axis=0) / width
    unit = (single * tl.rsqrt(mean + epsilon)).to(dtype)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(normed + first + column, (scale.to(COMPUTE) * unit.to(COMPUTE)).to(dtype), mask=inside)
