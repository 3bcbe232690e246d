"""Tree attention: one function, a ladder of backends. A rung is one more file and one line."""

from functools import partial

from torch import Tensor

from mmspec.attention.bitwise import attend_bitwise
from mmspec.attention.call import TreeCall
from mmspec.attention.ladder import rungs_for
from mmspec.attention.rung import LayerRule
from mmspec.attention.setbacks import SETBACKS, Way


def tree_attention(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """Attention of each row's nodes over the row's own slots: its prefix, read once for all nodes
    and query heads, and those of its uncommitted tokens that the node sees.

    `query` is (batch, heads, nodes, head_dim); `keys` and `values` are a layer's flat buffers,
    (slots, kv_heads, head_dim), the nodes' own already in them. Returns (batch, nodes, heads,
    head_dim of the values); padding nodes get zeros. A backend that fails is put aside for the next
    (`Setbacks`). Raises RuntimeError for a captured call that no graph-safe backend takes.
    """
    if call.paths is not None:
        return attend_bitwise(query, keys, values, call=call, rule=rule)
    operands = (query, keys, values)
    ways = (
        Way(rung.name, partial(rung.attend, *operands, call=call, rule=rule))
        for rung in rungs_for(*operands, call=call, rule=rule)
    )
    return SETBACKS.first_that_works(ways, *operands, call=call, rule=rule)
