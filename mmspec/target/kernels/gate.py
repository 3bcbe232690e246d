"""activation(gate) * up in one launch."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from mmspec.attention.kernels.early import launch_options, let_next_begin, wait_for_previous
from mmspec.target.kernels.arguments import by_token, compute_dtype, launching
from mmspec.target.parts import Activation

_BLOCK = 1024


def gate(gates: Tensor, ups: Tensor, *, activation: Activation, is_early: bool = False) -> Tensor:
    """Of (batch, nodes, intermediate) each, with any stride from token to token -> the same
    shape."""
    out = gates.new_empty(gates.shape)
    gates, ups = by_token(gates), by_token(ups)
    tokens, width = gates.shape
    with launching(gates):
        _gate[(tokens, triton.cdiv(width, _BLOCK))](
            gates,
            ups,
            out,
            width,
            gates.stride(0),
            ups.stride(0),
            ACTIVATION=activation,
            BLOCK=_BLOCK,
            COMPUTE=compute_dtype(gates),
            num_warps=4,
            **launch_options(is_early),
        )
    return out


@triton.jit
def activate(states, ACTIVATION: tl.constexpr):
    """In the dtype of `states`, a float32 or float64."""
    if ACTIVATION == "silu":
        slope = states
    else:  # tanh(x) is 2 * sigmoid(2x) - 1, so half of 1 + tanh(x) is sigmoid(2x)
        slope = 1.5957691216057308 * (states + 0.044715 * states * states * states)
    return states / (1.0 + tl.exp(-slope))


@triton.jit
def _gate(
    gates,
    ups,
    out,
    width,
    gate_stride,
    up_stride,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    let_next_begin(IS_EARLY)
    wait_for_previous(IS_EARLY)
    dtype = gates.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    opened = tl.load(gates + token * gate_stride + column, mask=inside, other=0.0).to(COMPUTE)
    opened = activate(opened, ACTIVATION).to(dtype)
    through = tl.load(ups + token * up_stride + column, mask=inside, other=0.0)
    product = (opened.to(COMPUTE) * through.to(COMPUTE)).to(dtype)
    tl.store(out + token * width + column, product, mask=inside)
