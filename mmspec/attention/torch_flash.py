"""torch's own flash attention on CUDA for the prefix, a row at a time; the tail is merged behind.

The group is folded into the query axis, for it packs one for a single query alone.
"""

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.flash_package import FlashPackage
from mmspec.attention.installed import Installed
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule


class TorchFlash(FlashPackage):
    """Comes with torch. Rows are called one after the other, with lengths that a graph would keep:
    it is for machines without triton."""

    name = "torch_flash"
    is_graph_safe = False
    majors = range(8, 100)

    def missing(self) -> str:
        return "" if self._given or torch.cuda.is_available() else "a CUDA device"

    def _find(self) -> Installed:
        return Installed(torch.ops.aten._scaled_dot_product_flash_attention.default, "")

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return rule.softcap is None and super().can_attend(query, keys, values, rule=rule)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        batch, _, nodes, head_dim = query.shape
        kv_heads = keys.shape[1]
        folded = query.reshape(batch, kv_heads, -1, head_dim)  # a head's nodes together
        out = folded.new_empty(batch, kv_heads, folded.shape[2], head_dim)
        lse = folded.new_empty(out.shape[:3], dtype=torch.float32)
        for index, row in enumerate(call.rows):
            if not row.committed:  # its result is not read; the operator would say +inf
                continue
            own_keys, own_values = (
                row.prefix_of(buffer).transpose(0, 1).unsqueeze(0) for buffer in (keys, values)
            )
            own = folded[index : index + 1]
            out[index], lse[index], *_ = self.installed.function(
                own, own_keys, own_values, scale=rule.scaling
            )
        return Attended(
            out.unflatten(2, (-1, nodes)).permute(0, 3, 1, 2, 4),
            lse.unflatten(2, (-1, nodes)).permute(0, 3, 1, 2),
        )
