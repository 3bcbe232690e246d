"""The tail of every row by plain operations, merged with what another kernel said of the prefix.

For rungs whose kernel knows no ancestor mask: it takes the prefix, which all nodes see, and this
the few tokens behind it. Lengths are read on the device, so that a graph may hold it.
"""

from functools import partial

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rows import Attended, merge
from mmspec.attention.rung import LayerRule
from mmspec.attention.setbacks import SETBACKS, Way
from mmspec.attention.tensors import WORD_BITS, TreeTensors
from mmspec.attention.triton_tree import TritonTree

_TRITON = TritonTree()


def finish(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: Attended | None,
    *,
    call: TreeCall,
    rule: LayerRule,
) -> Tensor:
    """`tree_attention`, the attention to the prefixes being known: `out` (batch, nodes, kv_heads,
    group, head_dim) and `lse` (batch, nodes, kv_heads, group), the natural logarithm. Neither is
    read for a row without a prefix. None: no row has one. The layer's reach must be full.
    """
    operands = (query, keys, values)
    plainly = Way(
        "plain operations", partial(finish_plainly, *operands, prefix, call=call, rule=rule)
    )
    ways = [plainly]
    if prefix is not None and _suits_triton(*operands, rule):
        kernel = partial(_TRITON.attend, *operands, prefix=prefix, call=call, rule=rule)
        ways = [Way("triton behind a prefix", kernel), plainly]
    return SETBACKS.first_that_works(ways, *operands, call=call, rule=rule)


def _suits_triton(query: Tensor, keys: Tensor, values: Tensor, rule: LayerRule) -> bool:
    return (
        query.is_cuda
        and not _TRITON.missing()
        and _TRITON.can_attend(query, keys, values, rule=rule)
    )


def finish_plainly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: Attended | None,
    *,
    call: TreeCall,
    rule: LayerRule,
) -> Tensor:
    """`finish`, in operations of torch alone."""
    assert rule.reach == Reach(), "a prefix is attended to by all nodes, or not at all"
    batch, heads, nodes, _ = query.shape
    kv_heads = keys.shape[1]
    tensors = call.tensors(query.device)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    own = query.transpose(1, 2).unflatten(2, (kv_heads, -1)).to(wide)  # (batch, nodes, kv, group,)
    visible = _seen(tensors)
    slots = _tail_slots(tensors, visible)
    scores = torch.einsum("bnkgd,btkd->bnkgt", own, keys[slots].to(wide)) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    hidden = ~visible[:, :, None, None, :]
    # The lowest finite score: a padding node sees nothing, and softmax of -inf alone is NaN.
    scores = scores.masked_fill(hidden, torch.finfo(wide).min)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    out = torch.einsum("bnkgt,btkd->bnkgd", weights, values[slots].to(wide))
    if prefix is not None:
        is_empty = (tensors.committed == 0)[:, None, None, None]
        before = Attended(
            prefix.out.to(wide).masked_fill(is_empty.unsqueeze(-1), 0.0),
            prefix.lse.to(wide).masked_fill(is_empty, float("-inf")),
        )
        out, lse = merge(Attended(out, lse), before)
    if rule.sinks is not None:
        sinks = rule.sinks.to(wide).view(kv_heads, -1)
        out = out * torch.sigmoid(lse - sinks).unsqueeze(-1)
    is_real = torch.arange(nodes, device=query.device) < tensors.num_nodes[:, None]
    out = out.masked_fill(~is_real[:, :, None, None, None], 0.0)
    return out.reshape(batch, nodes, heads, -1).to(query.dtype)


def _tail_slots(tensors: TreeTensors, visible: Tensor) -> Tensor:
    """(batch, tail). In place of what no node of a row sees, its first token: there may lie another
    request's, and of NaN a weight of 0 makes NaN."""
    columns = torch.arange(visible.shape[2], device=visible.device) * visible.any(dim=1)
    return (tensors.starts + tensors.committed)[:, None] + columns


def _seen(tensors: TreeTensors) -> Tensor:
    """(batch, nodes, tail)"""
    columns = torch.arange(tensors.depths.shape[1], device=tensors.starts.device)
    words = tensors.visible[:, :, columns // WORD_BITS]
    return (words >> (columns % WORD_BITS).int()) & 1 == 1
