"""FlashAttention 3 (arXiv 2407.08608) for the prefix, on Hopper; the tail is merged behind it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.installed import Installed, first_installed
from mmspec.attention.prefix_rung import HALVES, attend_behind, suits_flash
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule

_FORWARD_ONLY = "fa3_fwd_interface"  # a wheel without windows and without float16
_MODULES = ("flash_attn_interface", _FORWARD_ONLY)
_ARGUMENTS = (
    "cache_seqlens", "cache_batch_idx", "cache_leftpad", "softmax_scale", "softcap", "num_splits",
    "return_softmax_lse",
)  # fmt: skip


class FlashAttention3:
    """Its keys may lie anywhere in one buffer: a row's begin is given as padding on the left."""

    name = "flash_attn_3"
    is_graph_safe = True

    def __init__(self, function: Callable[..., Any] | None = None, *, device: str = "cuda") -> None:
        """`function`: in place of the installed `flash_attn_with_kvcache`; `device`: the type of
        device that it computes on."""
        self._given = function
        self._device = device

    @cached_property
    def _installed(self) -> Installed:
        if self._given is not None:
            return Installed(self._given, "")
        return first_installed(
            _MODULES,
            "flash_attn_with_kvcache",
            arguments=_ARGUMENTS,
            packages="flash-attn-3 or fa3-fwd",
        )

    def missing(self) -> str:
        return self._installed.missing

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        dtypes = (torch.bfloat16,) if self._installed.module == _FORWARD_ONLY else HALVES
        return (
            query.device.type == self._device
            and (self._given is not None or torch.cuda.get_device_capability(query.device)[0] == 9)
            and suits_flash(query, keys, values, rule=rule, dtypes=dtypes)
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        return attend_behind(self._prefix, query, keys, values, call=call, rule=rule)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        lengths: dict[str, Tensor] = {}
        if call.is_single:  # no lengths at all: the row's prefix is what it is given
            keys, values = (call.rows[0].prefix_of(buffer) for buffer in (keys, values))
        else:
            rows = call.prefixes(query.device)
            lengths = {
                "cache_leftpad": rows.starts,
                "cache_seqlens": rows.stops,  # counted from the buffer's begin
                "cache_batch_idx": rows.buffer,
            }
        out, lse, *_ = self._installed.function(
            query.transpose(1, 2),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            **lengths,
            softmax_scale=rule.scaling,
            softcap=rule.softcap or 0.0,
            num_splits=0,  # by its own heuristic
            return_softmax_lse=True,
        )
        heads = (keys.shape[1], query.shape[1] // keys.shape[1])
        return Attended(out.unflatten(2, heads), lse.transpose(1, 2).unflatten(2, heads))
