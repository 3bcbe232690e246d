"""torch's flash attention on the CPU, with the group folded into the query axis."""

import torch
from torch import Tensor

from mmspec.attention.call import Part, TreeCall
from mmspec.attention.rows import Attended, attend_rows
from mmspec.attention.rung import LayerRule

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_LONG = 1024  # slots from where 4 rows are quicker than 2 or 3 (by 15 to 25%), 8 than 5 to 7


class FlashCpu:
    """One call a row: measured, it is the fastest on this side of 32 nodes at every length, and a
    mask over prefix and tail together costs it nothing."""

    name = "flash_cpu"
    is_graph_safe = False

    def missing(self) -> str:
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return (
            query.device.type == "cpu"
            and query.dtype in _DTYPES
            and keys.shape[2] == values.shape[2]
            and rule.softcap is None
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        if len(call.rows) == 1 and rule.sinks is None:
            parts = call.parts(0, rule.reach, query.shape[1] // keys.shape[1], query)
            if len(parts) == 1:
                return _attend_one(query, keys, values, parts[0], rule.scaling)

        def attend_part(
            query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
        ) -> Attended:
            return Attended(*_flash(query, keys, values, mask, rule.scaling))

        return attend_rows(query, keys, values, attend_part, call=call, rule=rule)


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, part: Part, scale: float) -> Tensor:
    """The common call, of one row in one piece: as `attend_rows`, with nothing to merge."""
    _, heads, nodes, head_dim = query.shape
    count = part.stop - part.first
    key = keys.narrow(0, part.first, count).transpose(0, 1).unsqueeze(0)
    value = values.narrow(0, part.first, count).transpose(0, 1).unsqueeze(0)
    folded = query.reshape(1, keys.shape[1], -1, head_dim)
    out, _ = _flash(folded, key, value, part.mask, scale)
    return out.reshape(heads, nodes, -1).transpose(0, 1).unsqueeze(0)


def _flash(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(attention, log-sum-exp)"""
    count = query.shape[2]
    extra = -count % 4
    if mask is None and count > 1 and extra and keys.shape[2] >= _LONG:
        query = torch.nn.functional.pad(query, (0, 0, 0, extra))
        out, lse = _FLASH(query, keys, values, attn_mask=mask, scale=scale)
        return out[:, :, :count], lse[:, :, :count]
    return _FLASH(query, keys, values, attn_mask=mask, scale=scale)
