"""A prompt's later chunk by torch's flash attention on CUDA, in two launches that are merged.

    committed ................ | chunk
    every query, without mask  | causal

A mask over all that stands before would be as long as the text, and keeps flash kernels away.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mmspec.attention.rows import Attended, merge, with_sinks
from mmspec.attention.rung import LayerRule
from mmspec.attention.torch_flash import TorchFlash


class ChunkFlash:
    """Takes full reach in 16 bits; sinks, but no softcap."""

    name = "torch_flash in chunks"

    def __init__(self, function: Callable[..., Any] | None = None, *, device: str = "cuda") -> None:
        """As of `TorchFlash`."""
        self._rung = TorchFlash(function, device=device)

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return not self._rung.missing() and self._rung.can_attend(query, keys, values, rule=rule)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        start: int,
        committed: int,
        rule: LayerRule,
    ) -> Tensor:
        """Attention of `query` (1, heads, count, head_dim), behind the `committed` tokens from slot
        `start` on; keys and values (slots, kv_heads, head_dim) hold the chunk's own already.
        Returns (1, count, heads, head_dim)."""
        count, border = query.shape[2], start + committed
        own_keys, own_values = (buffer[border : border + count] for buffer in (keys, values))
        attended = self._own(query, own_keys, own_values, rule)
        if committed:
            before = self._prefix(query, keys[start:border], values[start:border], rule)
            attended = merge(attended, before)
        out = with_sinks(attended, rule.sinks, count)
        return out.to(query.dtype).transpose(1, 2)

    def _own(self, query: Tensor, keys: Tensor, values: Tensor, rule: LayerRule) -> Attended:
        group = query.shape[1] // keys.shape[1]
        own = (t.transpose(0, 1).repeat_interleave(group, 0).unsqueeze(0) for t in (keys, values))
        out, lse, *_ = self._rung.installed.function(
            query, *own, is_causal=True, scale=rule.scaling
        )
        return Attended(out, lse)

    def _prefix(self, query: Tensor, keys: Tensor, values: Tensor, rule: LayerRule) -> Attended:
        """The query heads of a KV head are queries of one head, so that no key is repeated."""
        folded = query.reshape(1, keys.shape[1], -1, query.shape[3])
        whole = (t.transpose(0, 1).unsqueeze(0) for t in (keys, values))
        out, lse, *_ = self._rung.installed.function(folded, *whole, scale=rule.scaling)
        return Attended(out.reshape(query.shape), lse.reshape(query.shape[:3]))
