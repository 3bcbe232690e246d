"""Tree attention: one function, a ladder of backends. A rung is one more file and one line."""

from torch import Tensor

from mmspec.attention.bitwise import attend_bitwise
from mmspec.attention.call import TreeCall
from mmspec.attention.ladder import rung_for
from mmspec.attention.rung import LayerRule


def tree_attention(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """Attention of each row's nodes over the row's own slots: its prefix, read once for all nodes
    and query heads, and those of its uncommitted tokens that the node sees.

    `query` is (batch, heads, nodes, head_dim); `keys` and `values` are a layer's flat buffers,
    (slots, kv_heads, head_dim), the nodes' own already in them. Returns (batch, nodes, heads,
    head_dim of the values); padding nodes get zeros. Raises RuntimeError for a captured call that
    no graph-safe backend takes.
    """
    if call.paths is not None:
        return attend_bitwise(query, keys, values, call=call, rule=rule)
    rung = rung_for(query, keys, values, call=call, rule=rule)
    return rung.attend(query, keys, values, call=call, rule=rule)
