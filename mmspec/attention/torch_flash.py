"""torch's own flash attention on CUDA for the prefix, a row at a time; the tail is merged behind.

The group is folded into the query axis, for it packs one for a single query alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.prefix_rung import attend_behind, suits_flash
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule

# Returns (attention, log-sum-exp, ...).
Flash = Callable[..., tuple[Tensor, ...]]


class TorchFlash:
    """Comes with torch. Rows are called one after the other, with lengths that a graph would keep:
    it is for machines without triton."""

    name = "torch_flash"
    is_graph_safe = False

    def __init__(self, function: Flash | None = None, *, device: str = "cuda") -> None:
        """`function`: in place of torch's operator; `device`: the type of device that it computes
        on."""
        self._function = function or torch.ops.aten._scaled_dot_product_flash_attention.default
        self._is_given = function is not None
        self._device = device

    def missing(self) -> str:
        return "" if self._is_given or torch.cuda.is_available() else "a CUDA device"

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return (
            query.device.type == self._device
            and (self._is_given or torch.cuda.get_device_capability(query.device)[0] >= 8)
            and suits_flash(query, keys, values, rule=rule)
            and rule.softcap is None
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        return attend_behind(self._prefix, query, keys, values, call=call, rule=rule)

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
            out[index], lse[index], *_ = self._function(
                own, own_keys, own_values, scale=rule.scaling
            )
        return Attended(
            out.unflatten(2, (-1, nodes)).permute(0, 3, 1, 2, 4),
            lse.unflatten(2, (-1, nodes)).permute(0, 3, 1, 2),
        )
