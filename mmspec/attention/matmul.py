"""Attention by matrix products, in tiles: any device, any dtype, with a softcap."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.rows import Attended, attend_rows, merge
from mmspec.attention.rung import LayerRule

_MAX_SCORES = 2**22  # of a tile: the scores of a long prefix are never all in memory


class Matmul:
    """Takes every call."""

    name = "matmul"
    is_graph_safe = False

    def __init__(self, max_scores: int = _MAX_SCORES) -> None:
        """`max_scores` bounds the scores (kv_heads * group * nodes * slots) of one tile."""
        self._max_scores = max_scores

    def missing(self) -> str:
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return True

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        def attend_part(
            query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
        ) -> Attended:
            attended: Attended | None = None
            for tile in self._tiles(query, keys.shape[2]):
                own = None if mask is None else mask[:, tile]
                new = _attend_tile(query, keys[:, :, tile], values[:, :, tile], own, rule)
                attended = new if attended is None else merge(attended, new)
            assert attended is not None, "a part has at least one slot"
            return attended

        return attend_rows(query, keys, values, attend_part, call=call, rule=rule)

    def _tiles(self, query: Tensor, slots: int) -> Iterator[slice]:
        size = max(self._max_scores // (query.shape[1] * query.shape[2]), 1)
        return (slice(first, first + size) for first in range(0, slots, size))


def _attend_tile(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: LayerRule
) -> Attended:
    if query.dtype in (torch.bfloat16, torch.float16):
        query, keys, values = query.float(), keys.float(), values.float()
    scores = torch.matmul(query * rule.scaling, keys.transpose(2, 3))
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    return Attended(torch.matmul(weights, values), lse)
