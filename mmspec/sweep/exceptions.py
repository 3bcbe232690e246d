"""Families whose default config does not shrink by names alone: what else they need."""

from collections.abc import Mapping
from typing import Any

_SPARSE = {"n_routed_experts": 4, "num_experts_per_tok": 2}
_CONV = {"layer_types": ["full_attention", "conv", "full_attention", "conv"]}
_FEW_FILTERS = {"num_filters": 8, "depths": [1] * 4, "downsampling_ratios": [8, 8, 10]}
_FOURFOLD = {"intermediate_size": 256}  # four positions of an audio encoder are one token
_AS_MANY = {"num_key_value_heads": 4}  # as heads: transformers' values are of each head
_SEES = {"vision_start_token_id": 130, "vision_end_token_id": 131}
_HEARS = {"audio_start_token_id": 132, "audio_end_token_id": 133}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
_QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_PINPOINTS = [[28, 56], [56, 28], [56, 56]]
_CODES = range(32)  # of a codebook, each a token of its own
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")  # as Chameleon writes a code

EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "chameleon": {
        "vocabulary_map": {
            "<image>": 120,
            **{f"IMGIMG{str(code).translate(_LETTERS)}Z": 124 + code for code in _CODES},
        },
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2]},
    },
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _MROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {
        "text_config": {**_SPARSE, "mlp_layer_types": ["dense", *["sparse"] * 3]},
        "vision_config": {
            "sam_config": {
                "output_channels": 64,
                "downsample_channels": [64, 64],
                "global_attn_indexes": [1, 3],
            }
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {**_SPARSE, "moe_intermediate_size": 48, "n_shared_experts": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64},
        "audio_config": {"adapter_input_size": 64},
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 120,
            "<|extra_200|>": 121,
            **{f"<|visual token {code:06}|>": 124 + code for code in _CODES},
        },
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1, 2]},
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": _MROPE}},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fast_vlm": {"vision_config": {"hidden_size": 2048}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n": {
        "vision_config": {  # the family's own tower has 300M weights
            "architecture": "resnet18", "hidden_size": 512, "vocab_offset": 120, "vocab_size": 20
        },
        "vision_soft_tokens_per_image": 1,
        "image_token_id": 121,
        "audio_config": {
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 2,
            "vocab_offset": 140,
            "vocab_size": 20,
        },
        "audio_soft_tokens_per_image": 6,  # two more than there are features
        "audio_token_id": 141,
    },
    "glm5_next": {
        "text_config": {"num_key_value_heads": 4, "index_kpool": 2, "qk_rope_head_dim": 0},
    },
    "glmasr": {"audio_config": _FOURFOLD},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [0, 1, 2, 3],
        "image_grid_pinpoints": _PINPOINTS,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_vl": {"text_config": {"rope_parameters": {**_MROPE, "mrope_section": [2] * 4}}},
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "lfm2_vl": {"text_config": _CONV},
    "llama4": {
        "vision_config": {
            "intermediate_size": 256,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
        }
    },
    "llava_next": {"image_grid_pinpoints": _PINPOINTS},
    "llava_next_video": {"image_grid_pinpoints": _PINPOINTS},
    "llava_onevision": {"image_grid_pinpoints": _PINPOINTS},
    "mllama": {
        "text_config": {"cross_attention_layers": [1, 3]},
        "vision_config": {"intermediate_layers_indices": [0], "vision_output_dim": 128},
    },
    "mamba2": {"num_heads": 8},
    "mistral4": {"qk_nope_head_dim": 8, "qk_head_dim": 16, "head_dim": 16},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1, 0, 1]}},
    "molmo2": {
        "adapter_config": {"vision_feature_layer": [3, 1]},
        "vision_config": {"num_position_embeddings": 16},
        "image_patch_id": 140,
    },
    "muse_glimmer": {"out_hidden_size": 256},  # four patches are one token
    "muse_spark": {"out_hidden_size": 256},
    "nemo_speechlm": {
        "audio_config": {
            "asr_config": _AS_MANY,
            "diarization_config": {"audio_config": _AS_MANY, "head_config": _AS_MANY},
        }
    },
    "nemotron_h_omni": {
        "vision_config": {"video_temporal_patch_size": 2},
        "image_token_id": 120,
        "video_token_id": 121,
    },
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": {"crop_size": 28},
        "audio_config": {"ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64},
    },
    "prophetnet": {"num_buckets": 4, "relative_max_distance": 8},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {
                "embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": [28, 28], "patch_size": 7,
            },
        }
    },
    "qwen2_5_omni": {"thinker_config": {**_SEES, **_HEARS}, "enable_audio_output": False},
    "qwen2_5_omni_thinker": {**_SEES, **_HEARS},
    "qwen3_omni_moe": {
        "thinker_config": {**_SEES, **_HEARS},
        "talker_config": ...,  # it speaks what was written; nothing here hears it
        "enable_audio_output": False,
    },
    "qwen3_omni_moe_thinker": {**_SEES, **_HEARS},
    "qwen4_exp": {"text_config": _QSA},
    "qwen4_exp_text": _QSA,
    "reformer": {"axial_pos_embds_dim": [16, 48]},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": _FEW_FILTERS,
        "semantic_tokenizer_encoder_config": _FEW_FILTERS,
    },
    "vipllava": {"vision_feature_layers": [-2, -3]},
    "voxtral": {"audio_config": _FOURFOLD, "audio_token_id": 100},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""By model type: values laid over the shrunk ones, `...` takes one away."""
