"""composed: several policies, each with an equal share of the budget; what two of them choose is
kept once, and the place goes to the newest token that none has chosen.

Costs what its parts cost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.kv.policies.base import LayerState, Policy, marked


class Composed:
    """The parts' choices together."""

    def __init__(self, parts: Sequence[Policy]) -> None:
        self.parts = tuple(parts)
        self.watched_queries = max(part.watched_queries for part in self.parts)
        paces = [part.refresh_every for part in self.parts if part.refresh_every is not None]
        self.refresh_every = min(paces, default=None)

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        chosen = [part.choose(layer, budget // len(self.parts)) for part in self.parts]
        heads = max(positions.shape[0] for positions in chosen)
        kept = torch.zeros(heads, layer.num_tokens, dtype=torch.bool, device=layer.keys.device)
        for positions in chosen:
            kept.scatter_(1, positions.expand(heads, -1), True)
        return marked(kept, budget)
