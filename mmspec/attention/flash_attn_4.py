"""FlashAttention 4 (the package `flash_attn.cute`) for the prefix, on Hopper and Blackwell; the
tail is merged behind it.

A mask of its own (`mask_mod`) would take the tail along, but is compiled into the kernel, and keeps
it from the ways that are quick for few queries.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.installed import Installed, first_installed
from mmspec.attention.prefix_rung import attend_behind, suits_flash
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule
from mmspec.attention.triton_tree import on_device

_ARGUMENTS = (
    "cu_seqlens_k", "seqused_k", "max_seqlen_k", "softmax_scale", "softcap", "num_splits",
    "return_lse",
)  # fmt: skip
_SPLITTING = (10, 11)  # compute capabilities where it shares the keys of a row out


class FlashAttention4:
    """Rows are pieces of the cache's buffer, which begin and end where the device says."""

    name = "flash_attn_4"
    is_graph_safe = True

    def __init__(self, function: Callable[..., Any] | None = None, *, device: str = "cuda") -> None:
        """`function`: in place of the installed `flash_attn_varlen_func`; `device`: the type of
        device that it computes on."""
        self._given = function
        self._device = device

    @cached_property
    def _installed(self) -> Installed:
        if self._given is not None:
            return Installed(self._given, "")
        return first_installed(
            ["flash_attn.cute"],
            "flash_attn_varlen_func",
            arguments=_ARGUMENTS,
            packages="flash-attn-4",
        )

    def missing(self) -> str:
        return self._installed.missing

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        head_dim = keys.shape[2]
        return (
            query.device.type == self._device
            and suits_flash(query, keys, values, rule=rule)
            and (head_dim <= 128 or self._major(query.device) == 9)
            and self._major(query.device) >= 9
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        return attend_behind(self._prefix, query, keys, values, call=call, rule=rule)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        options: dict[str, object] = {}
        if call.is_single:  # no lengths at all: the row's prefix is what it is given
            keys, values = (call.rows[0].prefix_of(t).unsqueeze(0) for t in (keys, values))
        else:
            options["cu_seqlens_k"] = call.prefixes(query.device).bounds
            options["seqused_k"] = call.tensors(query.device).committed
            options["max_seqlen_k"] = call.max_columns
        with on_device(query.device):
            out, lse = self._installed.function(
                query.transpose(1, 2),
                keys,
                values,
                **options,
                softmax_scale=rule.scaling,
                softcap=rule.softcap or 0.0,
                # 0: by its heuristic, which knows no Hopper and would be refused there
                num_splits=0 if self._major(query.device) in _SPLITTING else 1,
                return_lse=True,
            )
        heads = (keys.shape[-2], query.shape[1] // keys.shape[-2])
        return Attended(out.unflatten(2, heads), lse.transpose(1, 2).unflatten(2, heads))

    def _major(self, device: torch.device) -> int:
        return 9 if self._given is not None else torch.cuda.get_device_capability(device)[0]
