"""What a policy looks at, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmspec.kv.queries import NewestQueries


@dataclass(frozen=True)
class LayerState:
    """One layer of one row of the cache: what there is to choose from."""

    keys: Tensor  # (tokens, kv_heads, head_dim) committed and rotated; the cache's own, no copy
    queries: NewestQueries | None = None  # of the newest tokens; None: nobody saw them
    media: Sequence[range] = ()  # the tokens of each image and video

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]


class Policy(Protocol):
    """Chooses the committed positions that a view shows of a layer. Holds no row's state."""

    @property
    def watched_queries(self) -> int:
        """Newest tokens whose queries it looks at; 0: none."""

    @property
    def refresh_every(self) -> int | None:
        """Verifications after which it wants to choose anew; None: it waits until the view has no
        room for recent tokens left."""

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        """(kv_heads, budget) int64, or (1, budget) for all heads alike: increasing, distinct
        positions. `budget` is at most the layer's number of tokens."""


def marked(kept: Tensor, budget: int) -> Tensor:
    """(heads, budget) positions of what is marked in `kept` (heads, tokens) bool, and of the newest
    tokens beside them where a head has fewer than `budget`. A head may not have more."""
    missing = budget - kept.sum(dim=-1, keepdim=True)
    free = ~kept
    newer = free.flip(-1).cumsum(-1).flip(-1)  # free tokens from this one on
    return positions(kept | (free & (newer <= missing)), budget)


def positions(kept: Tensor, count: int) -> Tensor:
    """(heads, count) of a mask (heads, tokens) that marks so many in each head: as it is known how
    many, nothing waits for the device."""
    heads = kept.shape[0]
    return kept.nonzero_static(size=heads * count)[:, 1].reshape(heads, count)


def received_attention(layer: LayerState, queries: NewestQueries, *, every: int = 1) -> Tensor:
    """(kv_heads, tokens) float32: the share of attention that each token gets from the newest
    tokens' queries, or from each `every`-th of them, counted from the last; on average over them
    and over the query heads of a KV head."""
    count, tokens = queries.states.shape[0], layer.num_tokens
    first = (count - 1) % every
    states = queries.states[first::every].float()
    asked, heads, head_dim = states.shape
    grouped = states.reshape(asked, layer.kv_heads, heads // layer.kv_heads, head_dim)
    own = torch.arange(tokens - count, tokens, device=states.device)[first::every]
    later = torch.arange(tokens, device=states.device) > own[:, None]  # (queries, tokens)
    shares = []
    for head in range(layer.kv_heads):  # one by one: all weights of a long text are never there
        scores = grouped[:, head].transpose(0, 1) @ layer.keys[:, head].float().T
        scores = (scores * queries.scaling).masked_fill_(later, -torch.inf)
        shares.append(torch.softmax(scores, dim=-1).mean(dim=(0, 1)))
    return torch.stack(shares)
