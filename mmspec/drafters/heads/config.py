"""BlockConfig: the shape of a head's decoder layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmspec.attention import Reach
from mmspec.errors import ConfigError

_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_THETA = 10_000.0
_CONTEXT = 2048  # transformers' default for Llama, which old config files rely on


@dataclass(frozen=True)
class BlockConfig:
    """A decoder layer of the Llama kind."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # ids that its embedding has, which are the target's
    num_layers: int = 1
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys are normed, a head at a time (Qwen3)
    window: int | None = None  # tokens that a token sees, itself included; None: all
    max_positions: int = _CONTEXT  # that it was trained for
    rope: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": _THETA}
    )  # transformers' rope_parameters
    sections: tuple[int, ...] = ()  # of M-RoPE: frequencies that turn by each plane of positions;
    # empty: all by one, that counts the text's tokens

    @staticmethod
    def read(given: Mapping[str, Any], *, who: str) -> "BlockConfig":
        """Of a config.json of the Llama kind, old (rope_theta, rope_scaling) or new
        (rope_parameters). Raises ConfigError for one that lacks a size, or whose sizes do not
        fit."""
        missing = [name for name in _REQUIRED if not isinstance(given.get(name), int)]
        if missing:
            raise ConfigError(
                f"{who}: config.json says nothing of {', '.join(missing)}; expected the config of "
                "a decoder layer of the Llama kind"
            )
        heads = given["num_attention_heads"]
        head_dim = given.get("head_dim") or given["hidden_size"] // heads
        has_bias = bool(given.get("attention_bias"))
        sections = _sections(given)
        if sections and sum(sections) != head_dim // 2:
            raise ConfigError(
                f"{who}: config.json says mrope_section={list(sections)}; expected {head_dim // 2} "
                "in all, half of head_dim"
            )
        return BlockConfig(
            hidden_size=given["hidden_size"],
            intermediate_size=given["intermediate_size"],
            num_heads=heads,
            num_kv_heads=given.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            vocab_size=given["vocab_size"],
            num_layers=given.get("num_hidden_layers") or 1,
            rms_norm_eps=given.get("rms_norm_eps") or 1e-6,
            hidden_act=given.get("hidden_act") or "silu",
            qkv_bias=bool(given.get("qkv_bias", has_bias)),
            o_bias=has_bias,
            mlp_bias=bool(given.get("mlp_bias")),
            qk_norm=bool(given.get("qk_norm")) or given.get("model_type") == "qwen3",
            window=_window(given),
            max_positions=given.get("max_position_embeddings") or _CONTEXT,
            rope=_rope(given),
            sections=sections,
        )

    @property
    def reaches(self) -> list[Reach]:
        """How far back each layer looks."""
        return [Reach(window=self.window)] * self.num_layers

    @property
    def as_json(self) -> dict[str, Any]:
        """What `read` reads, under the names of the published files."""
        rope = dict(self.rope)
        theta = rope.pop("rope_theta", _THETA)
        scaling = None if rope.get("rope_type", "default") == "default" else rope
        if self.sections:
            scaling = {"rope_type": "mrope", "mrope_section": list(self.sections)}
        sliding = {"sliding_window": self.window, "layer_types": ["sliding_attention"]}
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "num_hidden_layers": self.num_layers,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": self.hidden_act,
            "attention_bias": self.o_bias,
            "qkv_bias": self.qkv_bias,
            "mlp_bias": self.mlp_bias,
            "qk_norm": self.qk_norm,
            "max_position_embeddings": self.max_positions,
            "rope_theta": theta,
            "rope_scaling": scaling,
            **(sliding if self.window is not None else {}),
        }

    @staticmethod
    def of_target(text_config: Any, *, num_layers: int = 1) -> "BlockConfig":
        """A layer as wide as those of a transformers text config: what is trained for a target
        that nothing was published for. Its own rotations, without M-RoPE's planes."""
        hidden = text_config.hidden_size
        heads = getattr(text_config, "num_attention_heads", None) or max(hidden // 128, 1)
        head_dim = getattr(text_config, "head_dim", None) or hidden // heads
        kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
        rope = getattr(text_config, "rope_parameters", None) or {}
        if "rope_type" not in rope:  # one a kind of layer: those that see all
            rope = rope.get("full_attention") or {}
        theta = rope.get("rope_theta") or _THETA
        return BlockConfig(
            hidden_size=hidden,
            intermediate_size=getattr(text_config, "intermediate_size", None) or 4 * hidden,
            num_heads=heads,
            num_kv_heads=kv_heads if heads % kv_heads == 0 else heads,
            head_dim=head_dim - head_dim % 2,
            vocab_size=text_config.vocab_size,
            num_layers=num_layers,
            rms_norm_eps=getattr(text_config, "rms_norm_eps", None) or 1e-6,
            max_positions=getattr(text_config, "max_position_embeddings", None) or _CONTEXT,
            rope={"rope_type": "default", "rope_theta": theta},
        )


def _window(given: Mapping[str, Any]) -> int | None:
    kinds = given.get("layer_types") or []
    if "sliding_attention" not in kinds or given.get("use_sliding_window") is False:
        return None
    return given.get("sliding_window")


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rope_parameters, without the planes of M-RoPE."""
    rope = _said_of_rope(given)
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    rope.pop("mrope_section", None)
    if rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"
    rope.setdefault("rope_theta", given.get("rope_theta") or _THETA)
    return rope


def _sections(given: Mapping[str, Any]) -> tuple[int, ...]:
    """Those of a head that was trained in the target's planes. Without the type they are but what
    was copied of the target's config: such a head counts in one."""
    rope = _said_of_rope(given)
    is_mrope = "mrope" in (rope.get("type"), rope.get("rope_type"))
    return tuple(rope.get("mrope_section") or ()) if is_mrope else ()


def _said_of_rope(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
