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
    tensor = _on_host(values)
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_to(place: Tensor, values: Sequence[int] | Tensor) -> None:
    """Writes `values` to a tensor of their shape, as `upload` does."""
    tensor = _on_host(values)
    if place.is_cuda:
        place.copy_(tensor.pin_memory(), non_blocking=True)
    else:  # without a wait some devices would read memory that is another's meanwhile
        place.copy_(tensor)


def _on_host(
    values: Sequence[int] | Sequence[Sequence[int]] | NDArray[Any] | Tensor,
) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray):
        return torch.from_numpy(values)
    return torch.tensor(values, dtype=torch.int64)
