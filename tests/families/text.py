"""Tiny text models. The sliding window is 8, so that a prompt of 24 tokens really is cut."""

from typing import Any

from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from .family import SPECIAL_TOKENS, VOCAB_SIZE, Family, family

SLIDING_WINDOW = 8
GEMMA_EMBEDDING_STD = 0.125  # Gemma multiplies its embeddings by the root of the hidden size
MIXED_LAYERS = ["sliding_attention", "full_attention"]


def text_shape(**changes: Any) -> dict[str, Any]:
    """Config fields shared by the decoders: hidden 64, 4 query heads over 2 KV heads of 16."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        **SPECIAL_TOKENS,
    }
    return shape | changes


def without_head_dim(shape: dict[str, Any]) -> dict[str, Any]:
    """The same shape for configs that derive the head size from the hidden size."""
    return {key: value for key, value in shape.items() if key != "head_dim"}


def _qwen2() -> PreTrainedConfig:
    return Qwen2Config(**without_head_dim(text_shape()))


def _qwen2_sliding() -> PreTrainedConfig:
    return Qwen2Config(
        **without_head_dim(text_shape()),
        use_sliding_window=True,
        sliding_window=SLIDING_WINDOW,
        layer_types=["full_attention", "sliding_attention"],
    )


def _mistral_sliding() -> PreTrainedConfig:
    return MistralConfig(**text_shape(), sliding_window=SLIDING_WINDOW)


def gemma3_text_config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **text_shape(num_hidden_layers=3),
        query_pre_attn_scalar=16,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )


def _gemma2() -> PreTrainedConfig:
    # Caps far below the real 50 and 30, so that leaving one out changes the logits.
    return Gemma2Config(
        **text_shape(),
        query_pre_attn_scalar=16,
        sliding_window=SLIDING_WINDOW,
        layer_types=MIXED_LAYERS,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=10.0,
    )


def _gpt_oss() -> PreTrainedConfig:
    return GptOssConfig(
        **text_shape(),
        sliding_window=SLIDING_WINDOW,
        layer_types=MIXED_LAYERS,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )


def _qwen3_moe() -> PreTrainedConfig:
    return Qwen3MoeConfig(
        **text_shape(), moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2
    )


def _gpt2() -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=4096,
        n_embd=64,
        n_layer=2,
        n_head=4,
        tie_word_embeddings=False,
        **SPECIAL_TOKENS,
    )


def _bloom() -> PreTrainedConfig:
    return BloomConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        n_layer=2,
        n_head=4,
        tie_word_embeddings=False,
        **SPECIAL_TOKENS,
    )


def _mpt() -> PreTrainedConfig:
    return MptConfig(
        vocab_size=VOCAB_SIZE,
        d_model=64,
        n_layers=2,
        n_heads=4,
        tie_word_embeddings=False,
        **SPECIAL_TOKENS,
    )


def _falcon_alibi() -> PreTrainedConfig:
    return FalconConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        alibi=True,
        tie_word_embeddings=False,
        **SPECIAL_TOKENS,
    )


DECODABLE_TEXT: tuple[Family, ...] = (
    family("llama", "text", LlamaForCausalLM, lambda: LlamaConfig(**text_shape())),
    family("qwen2", "text", Qwen2ForCausalLM, _qwen2),
    family("qwen2_sliding", "text", Qwen2ForCausalLM, _qwen2_sliding),
    family("qwen3", "text", Qwen3ForCausalLM, lambda: Qwen3Config(**text_shape())),
    family("mistral_sliding", "text", MistralForCausalLM, _mistral_sliding),
    family(
        "gemma2",
        "text",
        Gemma2ForCausalLM,
        _gemma2,
        embedding_std=GEMMA_EMBEDDING_STD,
        attn_implementation="eager",  # sdpa, the default of transformers 5.17, drops the softcap
    ),
    family(
        "gemma3_text",
        "text",
        Gemma3ForCausalLM,
        gemma3_text_config,
        embedding_std=GEMMA_EMBEDDING_STD,
    ),
    family("gpt_oss", "text", GptOssForCausalLM, _gpt_oss),
    family("qwen3_moe", "text", Qwen3MoeForCausalLM, _qwen3_moe),
    family("gpt2", "text", GPT2LMHeadModel, _gpt2),
)

BIASED_TEXT: tuple[Family, ...] = (  # in place of positions
    family("bloom", "text", BloomForCausalLM, _bloom),
    family("mpt", "text", MptForCausalLM, _mpt),
)

REFUSED_TEXT: tuple[Family, ...] = (
    family("falcon_alibi", "text", FalconForCausalLM, _falcon_alibi),
)
