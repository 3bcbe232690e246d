"""Tree attention: one function, a ladder of backends. A GPU rung is one more file and one line."""

from torch import Tensor

from mmspec.attention.bitwise import attend_bitwise
from mmspec.attention.call import TreeCall
from mmspec.attention.flash_cpu import FlashCpu
from mmspec.attention.matmul import Matmul
from mmspec.attention.rung import LayerRule, Rung

LADDER: tuple[Rung, ...] = (FlashCpu(), Matmul())  # the last one takes every call


def tree_attention(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """Attention of each row's nodes over the row's own slots: its prefix, read once for all nodes
    and query heads, and those of its uncommitted tokens that the node sees.

    `query` is (batch, heads, nodes, head_dim); `keys` and `values` are a layer's flat buffers,
    (slots, kv_heads, head_dim), the nodes' own already in them. Returns (batch, nodes, heads,
    head_dim of the values); padding nodes get zeros.
    """
    if call.paths is not None:
        return attend_bitwise(query, keys, values, call=call, rule=rule)
    return _rung(query, keys, values, rule).attend(query, keys, values, call=call, rule=rule)


def _rung(query: Tensor, keys: Tensor, values: Tensor, rule: LayerRule) -> Rung:
    for rung in LADDER:
        if rung.can_attend(query, keys, values, rule=rule):
            return rung
    raise AssertionError("the ladder has no rung for this call")
