"""FlashAttention 2 (arXiv 2307.08691) for the prefix; the tail is merged behind it."""

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

_ARGUMENTS = (  # of flash-attn 2.6 and later
    "cache_seqlens", "cache_batch_idx", "cache_leftpad", "softmax_scale", "softcap", "num_splits",
    "return_softmax_lse",
)  # fmt: skip


class FlashAttention2:
    """It packs a group of query heads for one token alone, so they are folded into the token axis:
    each key is read once for all nodes and heads."""

    name = "flash_attn_2"
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
            ["flash_attn"],
            "flash_attn_with_kvcache",
            arguments=_ARGUMENTS,
            packages="flash-attn>=2.6.1",
        )

    def missing(self) -> str:
        return self._installed.missing

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return (
            query.device.type == self._device
            and (self._given is not None or torch.cuda.get_device_capability(query.device)[0] >= 8)
            and suits_flash(query, keys, values, rule=rule)
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
        nodes = query.shape[2]
        out, lse = self._installed.function(
            _folded(query, keys.shape[1]),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            **lengths,
            softmax_scale=rule.scaling,
            softcap=rule.softcap or 0.0,
            num_splits=0,  # by its own heuristic
            return_softmax_lse=True,
        )
        return Attended(
            out.unflatten(1, (nodes, -1)).transpose(2, 3),
            lse.unflatten(2, (nodes, -1)).transpose(1, 2),
        )


def _folded(query: Tensor, kv_heads: int) -> Tensor:
    """(batch, nodes * group, kv_heads, head_dim), a node's heads together."""
    return query.unflatten(1, (kv_heads, -1)).permute(0, 3, 2, 1, 4).flatten(1, 2)
