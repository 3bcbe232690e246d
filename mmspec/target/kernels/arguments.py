"""What kernels are given: the dtype to compute in, the device, states token by token."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def compute_dtype(states: Tensor) -> Any:
    """Triton's dtype between two roundings."""
    return tl.float64 if states.dtype == torch.float64 else tl.float32


def launching(states: Tensor) -> AbstractContextManager[Any]:
    """Within it, kernels go to the tensor's device: Triton takes the current one."""
    return torch.cuda.device_of(states)


def by_token(states: Tensor) -> Tensor:
    """(batch, nodes, width) as (tokens, width) with dense rows; a view where there can be one."""
    flat = states.flatten(0, 1)
    return flat if flat.stride(1) == 1 else flat.contiguous()
