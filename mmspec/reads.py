"""What the host reads of a device: several small tensors in one copy, which is one wait."""

from typing import Any

import torch
from torch import Tensor


def read(*tensors: Tensor) -> list[list[Any]]:
    """The values of each tensor (first, ...), nested as it is. Their bytes are joined, so that none
    has to be converted first: two launches, whatever there is to read."""
    if not tensors:
        return []
    joined = torch.cat([_bytes(tensor) for tensor in tensors]).cpu()
    parts = joined.split([tensor.nbytes for tensor in tensors])
    return [
        part.clone().view(tensor.dtype).view(tensor.shape).tolist()  # cloned: each is aligned
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # also of a single element: only then it can be seen as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
