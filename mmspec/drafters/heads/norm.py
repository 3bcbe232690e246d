"""RMSNorm (arXiv 1910.07467), computed in float32 at least, as the published heads were."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, states: Tensor) -> Tensor:
        wide = states if states.dtype == torch.float64 else states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return self.weight * wide.to(states.dtype)
