"""Small host values on their way to a device, without a wait for what the device is doing."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """`values` as an int64 tensor on the device. A copy from pageable memory would wait until all
    work queued there is done."""
    tensor = torch.tensor(values, dtype=torch.int64)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
