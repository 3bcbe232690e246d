"""What the host reads of a device: several small tensors in one copy, which is one wait."""

from typing import Any

import torch
from torch import Tensor


def read(*tensors: Tensor) -> list[list[Any]]:
    """The values of each tensor (first, ...), nested as it is, as floats: token ids are exact in
    float64."""
    if not tensors:
        return []
    values = torch.cat([tensor.double().reshape(-1) for tensor in tensors]).cpu()
    parts = values.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, tensors, strict=True)]
