"""topk_chunks: the chunks of the text whose mean key the newest queries look for.

Keeps, for each KV head, the first chunk (the attention sinks), the newest tokens, and the chunks of
highest attention to their mean key; a budget that is no multiple of the chunk is filled up with
newer tokens. It chooses anew every few verifications, from the queries that those made anyway.
TriForce, Sun et al., arXiv 2404.11912, section 4.1 (its chunks are 8 tokens long, too).

Costs one reading of the layer's keys and tokens / chunk products a query, at each refresh: about
half of what the attention of one verification reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.kv.policies.base import LayerState, marked
from mmspec.kv.policies.window import Window
from mmspec.kv.queries import NewestQueries


@dataclass(frozen=True)
class TopKChunks:
    """Chunks by query times mean key."""

    chunk: int = 8
    newest: int = 16  # tokens that are kept whatever they are, at most a quarter of the budget
    watched_queries: int = 8
    refresh_every: int | None = 8

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        if layer.queries is None:
            return Window().choose(layer, budget)
        tokens, size = layer.num_tokens, self.chunk
        first_newest = tokens - min(self.newest, budget // 4)
        # Whole chunks before the newest tokens; those in between fill up what is left.
        num_chunks = first_newest // size
        affordable = min((budget - (tokens - first_newest)) // size, num_chunks)
        kept = torch.zeros(layer.kv_heads, tokens, dtype=torch.bool, device=layer.keys.device)
        kept[:, first_newest:] = True
        if affordable:
            attention = self._chunk_attention(layer, layer.queries, num_chunks)
            attention[:, 0] = torch.inf  # the sinks
            best = attention.topk(affordable, dim=-1).indices
            chunks = kept[:, : num_chunks * size].view(layer.kv_heads, num_chunks, size)
            chunks.scatter_(1, best.unsqueeze(-1).expand(-1, -1, size), True)
        return marked(kept, budget)

    def _chunk_attention(self, layer: LayerState, queries: NewestQueries, count: int) -> Tensor:
        """(kv_heads, count): the share of attention that each chunk's mean key gets, on average
        over the queries and the query heads of a KV head."""
        keys = layer.keys[: count * self.chunk]
        means = keys.unflatten(0, (count, self.chunk)).float().mean(dim=1).transpose(0, 1)
        states = queries.states[-self.watched_queries :].float()
        number, heads, head_dim = states.shape
        group = heads // layer.kv_heads
        grouped = states.reshape(number, layer.kv_heads, group, head_dim).transpose(0, 1)
        scores = grouped.reshape(layer.kv_heads, number * group, head_dim) @ means.transpose(1, 2)
        return torch.softmax(scores * queries.scaling, dim=-1).mean(dim=1)
