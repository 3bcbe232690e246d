"""window: the first tokens, which soak up attention, and the newest ones.

Keeps `sinks` + the newest (budget - sinks). Costs nothing to choose; looks at no key and no query.
StreamingLLM, Xiao et al., arXiv 2309.17453, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.kv.policies.base import LayerState


@dataclass(frozen=True)
class Window:
    """Sinks and recent tokens, the same for all heads."""

    sinks: int = 4
    watched_queries: int = 0
    refresh_every: int | None = None

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        sinks, tokens = min(self.sinks, budget), layer.num_tokens
        device = layer.keys.device
        first = torch.arange(sinks, device=device)
        newest = torch.arange(tokens - (budget - sinks), tokens, device=device)
        return torch.cat([first, newest]).unsqueeze(0)
