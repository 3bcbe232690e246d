"""snapkv: what the newest tokens of the text attend to, pooled so that neighbours come along.

Keeps, for each KV head, the observation window (the newest `window` tokens, at most half of the
budget) and the tokens before it of highest pooled attention from the window's queries. At the
first look the window is the prompt's end, as in SnapKV, Li et al., arXiv 2404.14469, section 4; a
view that ran full is chosen anew from the newest tokens then.

Costs `asked_queries` * tokens products a query head and layer, once a refresh; keeps the window's
queries.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspec.kv.policies.base import LayerState, marked, received_attention
from mmspec.kv.policies.window import Window


@dataclass(frozen=True)
class SnapKV:
    """Attention of the last window, pooled over `kernel` neighbours (odd)."""

    watched_queries: int = 32
    asked_queries: int = 8  # of these, evenly spread: neighbours look for much the same
    kernel: int = 7
    refresh_every: int | None = None

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        if layer.queries is None:
            return Window().choose(layer, budget)
        window = min(self.watched_queries, budget // 2)
        before = layer.num_tokens - window
        every = max(self.watched_queries // self.asked_queries, 1)
        attention = received_attention(layer, layer.queries, every=every)[:, :before]
        pooled = F.max_pool1d(attention, self.kernel, stride=1, padding=self.kernel // 2)
        best = pooled.topk(budget - window, dim=-1).indices
        kept = torch.zeros(
            layer.kv_heads, layer.num_tokens, dtype=torch.bool, device=layer.keys.device
        )
        kept.scatter_(1, best, True)
        return marked(kept, budget)  # which adds the window, the newest
