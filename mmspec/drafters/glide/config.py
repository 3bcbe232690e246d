"""GlideHeadConfig: the shape of a head, and what of the target it looks at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmspec.drafters.glide.layer_kv import layer_kv
from mmspec.drafters.glide.rope import CrossRope
from mmspec.drafters.heads import BlockConfig
from mmspec.errors import ConfigError

if TYPE_CHECKING:
    from mmspec.target import Target

_CROSS_THETA = 10_000.0  # of published heads, whatever rope_theta says
_BLOCK = 5


@dataclass(frozen=True)
class GlideHeadConfig:
    """Decoder layers that look at the target's KV (GliDe, arXiv 2402.02082 section 3.1)."""

    block: BlockConfig  # its own layers
    num_target_heads: int  # heads of the cross-attention's query, as many as the target has
    target_head_dim: int  # of the target's keys
    target_value_dim: int  # of its values, which is the same but in few families
    target_layers: tuple[int, ...]  # whose KV each layer sees, from 0; < 0: from the end
    rope: CrossRope
    has_cross_norm: bool = True  # the cross-attention reads normed states; published heads: raw
    owns_ends: bool = False  # its own embedding and lm_head, as published; False: the target's
    block_size: int = _BLOCK  # longest speculation that training simulates

    @staticmethod
    def of_target(
        target: "Target", *, num_layers: int = 1, target_layer: int = -1
    ) -> "GlideHeadConfig":
        """A new head for a target: layers as wide as the target's own, with its embedding and
        lm_head, all of which see the KV of `target_layer`. Raises ConfigError for a layer without
        keys."""
        text = target.model.config.get_text_config(decoder=True)
        kept, index = layer_kv(target, target_layer), target_layer % text.num_hidden_layers
        heads: int = text.num_attention_heads
        return GlideHeadConfig(
            block=BlockConfig.of_target(text, num_layers=num_layers),
            num_target_heads=heads if heads % kept.kv_heads == 0 else kept.kv_heads,
            target_head_dim=kept.key_dim,
            target_value_dim=kept.value_dim,
            target_layers=(index,) * num_layers,
            rope=CrossRope.of_target(target.model, index),
        )

    @staticmethod
    def read(given: Mapping[str, Any], *, who: str) -> "GlideHeadConfig":
        """Of a config.json, ours or a published one. Raises ConfigError for one that lacks a
        size."""
        block = BlockConfig.read(given, who=who)
        heads, hidden = given.get("large_num_attention_heads"), given.get("large_hidden_size")
        size = given.get("large_head_dim")
        if not isinstance(heads, int) or not (isinstance(size, int) or isinstance(hidden, int)):
            raise ConfigError(
                f"{who}: config.json says nothing of large_num_attention_heads or large_head_dim; "
                "expected the config of a GliDe head"
            )
        size = size or (hidden or 0) // heads
        layers = given.get("target_layers")
        cross = given.get("cross_rope")
        return GlideHeadConfig(
            block=block,
            num_target_heads=heads,
            target_head_dim=size,
            target_value_dim=given.get("large_value_dim") or size,
            # Published heads look at as many of the target's last layers as they have.
            target_layers=tuple(layers or range(-block.num_layers, 0)),
            rope=CrossRope.of_theta(_CROSS_THETA, size) if cross is None else CrossRope.read(cross),
            has_cross_norm=bool(given.get("cross_norm", False)),
            owns_ends=bool(given.get("owns_ends", True)),
            block_size=given.get("block_size") or _BLOCK,
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return {
            "architectures": ["GlideHead"],
            **self.block.as_json,
            "large_num_attention_heads": self.num_target_heads,
            "large_head_dim": self.target_head_dim,
            "large_value_dim": self.target_value_dim,
            "large_hidden_size": self.num_target_heads * self.target_head_dim,
            "target_layers": list(self.target_layers),
            "cross_rope": self.rope.as_json,
            "cross_norm": self.has_cross_norm,
            "owns_ends": self.owns_ends,
            "block_size": self.block_size,
        }
