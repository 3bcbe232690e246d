"""Small host values on their way to a device, without a wait for what the device is doing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[Sequence[int]] | NDArray[Any] | Tensor,
    device: torch.device | str,
) -> Tensor:
    """`values` on the device, in the dtype of the array or tensor, or as int64; they may change
    afterwards. A copy from pageable memory would wait until all work queued there is done."""
    if isinstance(values, Tensor):
        tensor = values
    elif isinstance(values, np.ndarray):
        tensor = torch.from_numpy(values)
    else:
        tensor = torch.tensor(values, dtype=torch.int64)
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
