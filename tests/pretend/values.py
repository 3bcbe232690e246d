"""Values that nobody may read."""

import torch
from torch import Tensor


def spoil(tensor: Tensor) -> None:
    """Makes it NaN, or a number that is wrong wherever it is used."""
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    elif tensor.dtype not in (torch.bool, torch.uint8):
        tensor.fill_(torch.iinfo(tensor.dtype).max // 3)
