"""composed: several policies, each with a share of the budget; what two of them choose is kept once
and the place goes to the newest token that none has chosen.

Costs what its parts cost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.kv.policies.base import LayerState, Policy, marked


class Composed:
    """The parts' choices together."""

    def __init__(self, parts: Sequence[Policy], shares: Sequence[float] = ()) -> None:
        """`shares` of the budget, which sum to at most 1; empty: equal ones."""
        self.parts = tuple(parts)
        self.shares = tuple(shares) or (1 / len(self.parts),) * len(self.parts)
        assert len(self.shares) == len(self.parts) and sum(self.shares) < 1 + 1e-9
        self.watched_queries = max(part.watched_queries for part in self.parts)
        paces = [part.refresh_every for part in self.parts if part.refresh_every is not None]
        self.refresh_every = min(paces, default=None)

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        chosen = [
            part.choose(layer, int(budget * share + 1e-9))
            for part, share in zip(self.parts, self.shares, strict=True)
        ]
        heads = max(positions.shape[0] for positions in chosen)
        kept = torch.zeros(heads, layer.num_tokens, dtype=torch.bool, device=layer.keys.device)
        for positions in chosen:
            kept.scatter_(1, positions.expand(heads, -1), True)
        return marked(kept, budget)
