"""activation(gate) * up in one launch."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.target.kernels.precision import compute_dtype, launching
from mmspec.target.parts import Activation

_BLOCK = 1024


def gate(gates: Tensor, ups: Tensor, *, activation: Activation) -> Tensor:
    """Of (batch, nodes, intermediate) each, contiguous -> the same shape."""
    gates, ups = gates.contiguous(), ups.contiguous()
    out = torch.empty_like(gates)
    width = gates.numel()
    with launching(gates):
        _gate[(triton.cdiv(width, _BLOCK),)](
            gates,
            ups,
            out,
            width,
            ACTIVATION=activation,
            BLOCK=_BLOCK,
            COMPUTE=compute_dtype(gates),
            num_warps=4,
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
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    dtype = gates.dtype.element_ty
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < width
    opened = tl.load(gates + index, mask=inside, other=0.0).to(COMPUTE)
    opened = activate(opened, ACTIVATION).to(dtype)
    through = tl.load(ups + index, mask=inside, other=0.0)
    tl.store(out + index, (opened.to(COMPUTE) * through.to(COMPUTE)).to(dtype), mask=inside)
