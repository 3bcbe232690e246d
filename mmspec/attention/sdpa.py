"""torch's scaled_dot_product_attention with a mask, a row at a time: any device."""

import torch.nn.functional as F
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.rung import LayerRule


class Sdpa:
    """Tells nobody its log-sum-exp, so that prefix and tail go in together: the mask is as long as
    the text."""

    name = "sdpa"
    is_graph_safe = False

    def missing(self) -> str:
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return rule.softcap is None and rule.sinks is None

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        batch, heads, width, head_dim = query.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        padded = query.new_zeros(batch, width, heads, values.shape[2])
        for index, row in enumerate(call.rows):
            nodes = row.num_nodes
            folded = query[index, :, :nodes].reshape(1, kv_heads, group * nodes, head_dim)
            first, stop = row.start + row.first_column(rule.reach), row.start + row.num_columns
            own_keys, own_values = (
                buffer[first:stop].transpose(0, 1).unsqueeze(0) for buffer in (keys, values)
            )
            mask = call.mask(index, rule.reach, query.device).repeat(group, 1)
            out = F.scaled_dot_product_attention(
                folded, own_keys, own_values, attn_mask=mask, scale=rule.scaling
            )
            padded[index, :nodes] = out.reshape(heads, nodes, -1).transpose(0, 1)
        return padded
