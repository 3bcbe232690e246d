"""EagleHeadConfig: what kind of an EAGLE head a folder holds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmspec.drafters.heads import BlockConfig
from mmspec.errors import ConfigError

_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_OWN_NORM = "input_layernorm.weight"


@dataclass(frozen=True)
class EagleHeadConfig:
    """One head. EAGLE-2 is EAGLE-1 with another tree: there is no difference in the head."""

    version: Literal[1, 3]
    block: BlockConfig
    draft_vocab_size: int  # tokens that its own lm_head chooses from
    target_hidden_size: int
    # The target's hidden states that EAGLE-3 reads, as transformers counts them: 0 the embedding, i
    # the output of layer i; None: by the target's depth.
    layers: tuple[int, ...] | None = None
    has_embedding: bool = True  # False: the target's
    has_head: bool = True  # False: the target's
    fc_bias: bool = False
    first_norm: bool = False  # EAGLE-1: whether the first layer norms what its attention reads
    has_outer_norms: bool = False  # EAGLE-1: norms of the embedding and before the head
    norm_before_residual: bool = False  # EAGLE-3: what is added behind attention is normed too
    norm_before_fc: bool = False  # EAGLE-3: the joined features are normed
    fc_norm: bool = False  # EAGLE-3.1: each of the joined features is normed
    norm_output: bool = False  # EAGLE-3.1: what is read in place of a feature is normed
    has_fc: bool = True  # EAGLE-3: False where it reads the target's last state alone

    @staticmethod
    def read(given: Mapping[str, Any], names: Collection[str], *, who: str) -> "EagleHeadConfig":
        """Of a config.json: SafeAILab's, SpecForge's, or vLLM's speculators format. `names` are
        those of the tensors, in `checkpoint`'s own naming: they say what a file of either kind
        leaves out. Raises ConfigError for what is no EAGLE head."""
        kind = given.get("speculators_model_type")
        if kind not in (None, "eagle", "eagle3"):
            raise ConfigError(
                f"{who}: speculators_model_type={kind!r}; expected eagle or eagle3, or another "
                "drafter's name in drafter.name"
            )
        nested = given.get("transformer_layer_config")
        block = BlockConfig.read(nested if isinstance(nested, Mapping) else given, who=who)
        first = "midlayer." if any(name.startswith("midlayer.") for name in names) else "layers.0."
        block = replace(
            block,
            qkv_bias=f"{first}self_attn.q_proj.bias" in names,
            o_bias=f"{first}self_attn.o_proj.bias" in names,
            mlp_bias=f"{first}mlp.gate_proj.bias" in names,
            qk_norm=f"{first}self_attn.q_norm.weight" in names,
        )
        config = EagleHeadConfig(
            version=1,
            block=block,
            draft_vocab_size=block.vocab_size,
            target_hidden_size=given.get("target_hidden_size") or block.hidden_size,
            has_embedding="embed_tokens.weight" in names,
            has_head="lm_head.weight" in names,
            fc_bias="fc.bias" in names,
        )
        if first == "layers.0.":
            return replace(
                config,
                first_norm=f"layers.0.{_OWN_NORM}" in names,
                has_outer_norms="embedding_layernorm.weight" in names,
            )
        inner = given.get("eagle_config")
        inner = inner if isinstance(inner, Mapping) else {}
        return replace(
            config,
            version=3,
            draft_vocab_size=given.get("draft_vocab_size") or block.vocab_size,
            layers=_layers(given, inner),
            norm_before_residual=bool(given.get("norm_before_residual")),
            norm_before_fc="input_norm.weight" in names,
            fc_norm="fc_norm.0.weight" in names,
            norm_output=bool(given.get("norm_output")),
            has_fc=bool(inner.get("use_aux_hidden_state", True)) and "fc.weight" in names,
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """config.json as SafeAILab and SpecForge write it, which SGLang and vLLM read."""
        common = {
            "model_type": "llama",
            **self.block.as_json,
            "tie_word_embeddings": False,
            "target_hidden_size": self.target_hidden_size,
        }
        if self.version == 1:
            return {**common, "architectures": ["LlamaForCausalLMEagle"], "bias": self.fc_bias}
        inner: dict[str, Any] = {"use_aux_hidden_state": self.has_fc}
        layers: dict[str, Any] = {}
        if self.layers is not None:  # by their outputs, and as hidden states are counted
            inner[_LAYER_IDS] = [layer - 1 for layer in self.layers]
            layers[_LAYER_IDS] = list(self.layers)
        return {
            **common,
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": self.draft_vocab_size,
            "norm_before_residual": self.norm_before_residual,
            "norm_before_fc": self.norm_before_fc,
            "fc_norm": self.fc_norm,
            "norm_output": self.norm_output,
            "eagle_config": inner,
            **layers,
        }

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The hidden states of a target of so many layers that it reads, in their order; what comes
        after the final norm is `num_layers`. Raises ConfigError for the output of the last layer
        before that norm, which nobody is given."""
        if self.version == 1 or not self.has_fc:
            return (num_layers,)
        layers = self.layers
        if layers is None:  # as published for heads whose files do not say
            layers = (2, num_layers // 2, num_layers - 3)
        if any(not 0 <= layer < num_layers for layer in layers):
            raise ConfigError(
                f"the head reads the target's hidden states {list(layers)}; expected 0 (the "
                f"embedding) to {num_layers - 1}, as the target has {num_layers} layers: was it "
                "made for another target?"
            )
        return layers


def _layers(given: Mapping[str, Any], inner: Mapping[str, Any]) -> tuple[int, ...] | None:
    """vLLM counts hidden states, at the top level; SGLang the layers that they come out of."""
    if given.get(_LAYER_IDS):
        return tuple(given[_LAYER_IDS])
    if inner.get(_LAYER_IDS):
        return tuple(layer + 1 for layer in inner[_LAYER_IDS])
    return None
