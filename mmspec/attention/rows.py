"""Rows one after the other, each in parts that are merged by their log-sum-exp."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.attention.call import Part, TreeCall
from mmspec.attention.rung import LayerRule


class Attended(NamedTuple):
    """Attention over some of the keys, and how much weight they had."""

    out: Tensor  # (1, kv_heads, group * nodes, head_dim)
    lse: Tensor  # (1, kv_heads, group * nodes) natural log of the sum of exp(scores)


# query (1, kv_heads, group * nodes, head_dim), keys and values (1, kv_heads, slots, head_dim), mask
AttendPart = Callable[[Tensor, Tensor, Tensor, Tensor | None], Attended]


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attend_part: AttendPart,
    *,
    call: TreeCall,
    rule: LayerRule,
) -> Tensor:
    """`tree_attention` by a function that attends to one part of one row.

    The query heads that share a KV head are rows of one matrix product, so that each key is read
    once and never repeated.
    """
    batch, heads, width, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    rows = []
    for index, row in enumerate(call.rows):
        own = query if batch == 1 else query[index, :, : row.num_nodes]
        folded = own.reshape(1, kv_heads, group * row.num_nodes, head_dim)
        parts = call.parts(index, rule.reach, group, query)
        attended = _attend(folded, keys, values, parts[0], attend_part)
        for part in parts[1:]:
            attended = merge(attended, _attend(folded, keys, values, part, attend_part))
        out = with_sinks(attended, rule.sinks, row.num_nodes)
        rows.append(out.reshape(heads, row.num_nodes, -1).transpose(0, 1).to(query.dtype))
    if batch == 1:
        return rows[0].unsqueeze(0)
    padded = query.new_zeros(batch, width, heads, values.shape[2])
    for index, out in enumerate(rows):
        padded[index, : out.shape[0]] = out
    return padded


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, part: Part, attend_part: AttendPart
) -> Attended:
    count = part.stop - part.first
    keys, values = (
        buffer.narrow(0, part.first, count).transpose(0, 1).unsqueeze(0)
        for buffer in (keys, values)
    )
    return attend_part(query, keys, values, part.mask)


def merge(a: Attended, b: Attended) -> Attended:
    """Attention over both sets of keys (the split of FlashDecoding, arXiv 2311.01282 section 2)."""
    lse = torch.logaddexp(a.lse, b.lse)
    share_a, share_b = (torch.exp(x.lse - lse).unsqueeze(-1) for x in (a, b))
    return Attended(a.out * share_a + b.out * share_b, lse)


def with_sinks(attended: Attended, sinks: Tensor | None, nodes: int) -> Tensor:
    """The attention once the heads' sinks (heads,) have their share of the weight."""
    if sinks is None:
        return attended.out
    # The sink has no value: it only takes its share of the weight.
    sink = sinks.to(attended.lse.dtype).repeat_interleave(nodes).view_as(attended.lse)
    return attended.out * torch.sigmoid(attended.lse - sink).unsqueeze(-1)
