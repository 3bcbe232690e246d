"""Which dtype kernels compute in, and on which device they are launched."""

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
