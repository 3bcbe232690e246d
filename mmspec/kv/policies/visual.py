"""visual: of images and videos the most attended tokens, and an even share of the others.

Text goes first: all of it, where at least half of the budget is left for media, else the sinks and
the newest text tokens. Of what is left, `attended_share` goes to the media tokens that the newest
queries attend to most, for each KV head, and the rest to the others thinned evenly, so that no
part of a picture is gone altogether. Without media it is `window`.
SpecVLM, Ji et al., arXiv 2508.16201, section 3.2 (attention first, then a uniform grid).

Costs the products of the window's queries with all keys at a refresh, as `snapkv` does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmspec.kv.policies.base import LayerState, positions, received_attention
from mmspec.kv.policies.window import Window
from mmspec.uploads import upload


@dataclass(frozen=True)
class Visual:
    """Media thinned by attention and evenly; text by age."""

    attended_share: float = 0.5
    sinks: int = 4
    watched_queries: int = 16
    refresh_every: int | None = None

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        tokens, device = layer.num_tokens, layer.keys.device
        is_media = np.zeros(tokens, dtype=np.bool_)
        for span in layer.media:
            is_media[span.start : span.stop] = True
        media, text = (upload(np.flatnonzero(mask), device) for mask in (is_media, ~is_media))
        num_text = max(min(text.numel(), budget // 2), budget - media.numel())
        num_text = min(num_text, text.numel())
        num_media = budget - num_text
        if not num_media:
            return Window(self.sinks).choose(layer, budget)
        kept = torch.zeros(layer.kv_heads, tokens, dtype=torch.bool, device=device)
        sinks = min(self.sinks, num_text)
        kept.index_fill_(1, text[:sinks], True)
        kept.index_fill_(1, text[text.numel() - (num_text - sinks) :], True)
        kept.index_copy_(1, media, self._thin(layer, media, num_media))
        return positions(kept, budget)

    def _thin(self, layer: LayerState, media: Tensor, count: int) -> Tensor:
        """(kv_heads, media) bool: which `count` of the media tokens stay."""
        kept = torch.zeros(layer.kv_heads, media.numel(), dtype=torch.bool, device=media.device)
        attended = 0
        if layer.queries is not None:
            attended = int(count * self.attended_share)
            attention = received_attention(layer, layer.queries).index_select(1, media)
            kept.scatter_(1, attention.topk(attended, dim=-1).indices, True)
        others = positions(~kept, media.numel() - attended)  # (kv_heads, others)
        number = count - attended
        # The middles of `number` equal stretches.
        even = (2 * torch.arange(number, device=media.device) + 1) * others.shape[1] // (2 * number)
        return kept.scatter_(1, others[:, even], True)
