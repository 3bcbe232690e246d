"""A head's attention, over whole sequences or over a KV cache."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from mmspec.attention import ChunkCall, LayerRule, Reach, TreeCall, tree_attention
from mmspec.drafters.heads.config import BlockConfig
from mmspec.drafters.heads.norm import RMSNorm
from mmspec.drafters.heads.rotary import Rotation
from mmspec.kv import KVCache, WritePlan


class Attend(Protocol):
    """Which keys the queries of a layer meet."""

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        """`query` (batch, heads, seq, head_dim), `keys` and `values` (batch, kv_heads, seq,
        head_dim) of layer `layer`, rotated. Returns (batch, seq, heads, head_dim)."""


class WholeSequences:
    """Each token sees those before it and itself, or what a mask says. For training."""

    def __init__(self, mask: Tensor | None = None) -> None:
        """`mask`: bool, True where seen, or additive; broadcast to (batch, heads, seq, seq)."""
        self._mask = mask

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        return attended(query, keys, values, scaling, mask=self._mask)


def attended(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, *, mask: Tensor | None = None
) -> Tensor:
    """Of whole sequences, as `Attend`; `mask` None: each token sees those before it and itself."""
    group = query.shape[1] // keys.shape[1]
    out = nn.functional.scaled_dot_product_attention(
        query,
        keys.repeat_interleave(group, dim=1),
        values.repeat_interleave(group, dim=1),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
    )
    return out.transpose(1, 2)


class OverCache:
    """New tokens of ragged rows see their row's committed tokens, read where they lie, and of the
    uncommitted ones those that their tree says. Their keys are written within `cache.writing`."""

    def __init__(self, cache: KVCache, call: TreeCall) -> None:
        self.cache = cache
        self.call = call

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        flat = self.cache.flat_layers[layer]
        flat.update(keys, values)
        rule = LayerRule(self.call.reaches[layer], scaling)
        return tree_attention(query, flat.keys, flat.values, call=self.call, rule=rule)


class Reading:
    """Many tokens of one row, each seeing all before it. Their keys are written within
    `cache.writing`."""

    def __init__(self, cache: KVCache, plan: WritePlan, reaches: Sequence[Reach]) -> None:
        place = plan.starts[0], plan.lengths[0], plan.counts[0]
        self.cache = cache
        self.call = ChunkCall(*place, cache.flat_layers, reaches)
        self._whole = WholeSequences()

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        flat, reach = self.cache.flat_layers[layer], self.call.reaches[layer]
        flat.update(keys, values)
        if not self.call.committed and reach.is_full:
            return self._whole(layer, query, keys, values, scaling)
        return self.call.attend(query, flat.keys, flat.values, rule=LayerRule(reach, scaling))


CachedAttend: TypeAlias = OverCache | Reading


class SelfAttention(nn.Module):
    """Grouped queries; `width` is that of its input where that is not the layer's own."""

    def __init__(self, config: BlockConfig, *, width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        self.head_dim = config.head_dim
        inner, kv_inner = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        self.q_proj = nn.Linear(width, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, kv_inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, kv_inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self._has_norms = config.qk_norm

    def forward(self, states: Tensor, rotation: Rotation, attend: Attend, *, layer: int) -> Tensor:
        """(batch, seq, width) -> (batch, seq, hidden)."""
        query = self._split(self.q_proj(states))
        if self._has_norms:
            query = self.q_norm(query)
        keys, values = self.keys_values(states, rotation)
        out = attend(layer, rotation(query), keys, values, self.head_dim**-0.5)
        return self.o_proj(out.flatten(-2))

    def keys_values(self, states: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """What queries meet of (batch, seq, width), each (batch, kv_heads, seq, head_dim)."""
        keys, values = self._split(self.k_proj(states)), self._split(self.v_proj(states))
        return rotation(self.k_norm(keys) if self._has_norms else keys), values

    def _split(self, projected: Tensor) -> Tensor:
        """(batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)"""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
