"""Tiny models whose layers keep a running state. The last layer attends, so that drafters that look
at its keys find some."""

from typing import Any

from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from .family import Family, family
from .text import text_shape, without_head_dim
from .vision import qwen_tokens, qwen_tower

_DELTA_NET: dict[str, Any] = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LAYERS = ["linear_attention", "linear_attention", "full_attention"]
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,  # a prompt is longer
}


def _qwen3_next() -> PreTrainedConfig:
    return Qwen3NextConfig(
        **text_shape(num_hidden_layers=3),
        **_DELTA_NET,
        layer_types=_LAYERS,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
    )


def _qwen3_5() -> PreTrainedConfig:
    # A quarter of each head is rotated: of 32, in the sections of three planes.
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    rope["partial_rotary_factor"] = 0.25
    return Qwen3_5Config(
        vision_config=qwen_tower(
            intermediate_size=48, out_hidden_size=64, num_position_embeddings=36
        ),
        text_config={
            **text_shape(num_hidden_layers=3, head_dim=32),
            **_DELTA_NET,
            "layer_types": _LAYERS,
            "rope_parameters": rope,
        },
        **qwen_tokens(),
    )


def _lfm2() -> PreTrainedConfig:
    return Lfm2Config(
        **without_head_dim(text_shape(num_hidden_layers=3)),
        layer_types=["conv", "conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    )


def _granite_hybrid() -> PreTrainedConfig:
    return GraniteMoeHybridConfig(
        **without_head_dim(text_shape(num_hidden_layers=3)),
        **_MAMBA,
        layer_types=_LAYERS,
        position_embedding_type="rope",
        num_local_experts=0,
        shared_intermediate_size=96,
        embedding_multiplier=1.0,
    )


def _falcon_h1() -> PreTrainedConfig:
    return FalconH1Config(
        **without_head_dim(text_shape()),
        **_MAMBA,
        mamba_d_ssm=128,
        ssm_in_multiplier=0.8,
        ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7],
    )


DECODABLE_HYBRID: tuple[Family, ...] = (
    family("qwen3_next", "text", Qwen3NextForCausalLM, _qwen3_next),
    family("lfm2", "text", Lfm2ForCausalLM, _lfm2),
    family("granite_hybrid", "text", GraniteMoeHybridForCausalLM, _granite_hybrid),
    family("falcon_h1", "text", FalconH1ForCausalLM, _falcon_h1),
    family("qwen3_5", "vision", Qwen3_5ForConditionalGeneration, _qwen3_5, takes_video=True),
)
