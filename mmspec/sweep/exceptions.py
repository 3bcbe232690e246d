"""Families whose default config does not shrink by names alone: what else they need."""

from collections.abc import Mapping
from typing import Any

_SPARSE = {"n_routed_experts": 4, "num_experts_per_tok": 2}
_CONV = {"layer_types": ["full_attention", "conv", "full_attention", "conv"]}
_FOURFOLD = {"intermediate_size": 256}  # four positions of an audio encoder are one token
_SEES = {"vision_start_token_id": 130, "vision_end_token_id": 131}
_HEARS = {"audio_start_token_id": 132, "audio_end_token_id": 133}
_VOCABULARY = {"<image>": 120, "<|image token|>": 120, "<|extra_200|>": 121, "<eos>": 2}

EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "aria": {"text_config": {"moe_num_experts": 4, "moe_topk": 2}},
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "chameleon": {"vocabulary_map": _VOCABULARY},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "deepseek_v2": _SPARSE,
    "dots1": {**_SPARSE, "moe_intermediate_size": 48, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": _VOCABULARY},
    "ernie4_5_vl_moe": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2],
            }
        }
    },
    "glmasr": {"audio_config": _FOURFOLD},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "hunyuan_vl": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2],
            }
        }
    },
    "lfm2": _CONV,
    "lfm2_moe": {**_CONV, "num_experts": 4, "num_experts_per_tok": 2},
    "lfm2_vl": {"text_config": _CONV},
    "llama4": {
        "vision_config": {
            "intermediate_size": 256,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
        }
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1, 3]},
        "vision_config": {"intermediate_layers_indices": [0], "vision_output_dim": 128},
    },
    "mistral4": {"qk_nope_head_dim": 8, "qk_head_dim": 16, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": {"num_buckets": 4, "relative_max_distance": 8},
    "qwen2_5_omni": {"thinker_config": {**_SEES, **_HEARS}, "enable_audio_output": False},
    "qwen2_5_omni_thinker": {**_SEES, **_HEARS},
    "qwen3_omni_moe": {
        "thinker_config": {**_SEES, **_HEARS},
        "talker_config": ...,  # it speaks what was written; nothing here hears it
        "enable_audio_output": False,
    },
    "qwen3_omni_moe_thinker": {**_SEES, **_HEARS},
    "voxtral": {"audio_config": _FOURFOLD, "audio_token_id": 100},
}  # fmt: skip
"""By model type: values laid over the shrunk ones, `...` takes one away."""
