"""torch's flash attention on the CPU, with the group folded into the query axis."""

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.rows import Attended, attend_rows
from mmspec.attention.rung import LayerRule

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_LONG = 1024  # slots from where 4 rows are quicker than 2 or 3 (by 15 to 25%), 8 than 5 to 7


class FlashCpu:
    """One call a row: measured, it is the fastest on this side of 32 nodes at every length, and a
    mask over prefix and tail together costs it nothing."""

    name = "flash_cpu"

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
        def attend_part(
            query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
        ) -> Attended:
            count = query.shape[2]
            extra = -count % 4
            if mask is None and count > 1 and extra and keys.shape[2] >= _LONG:
                query = torch.nn.functional.pad(query, (0, 0, 0, extra))
            out, lse = _FLASH(query, keys, values, attn_mask=mask, scale=rule.scaling)
            if query.shape[2] > count:
                out, lse = out[:, :, :count], lse[:, :, :count]
            return Attended(out, lse)

        return attend_rows(query, keys, values, attend_part, call=call, rule=rule)
