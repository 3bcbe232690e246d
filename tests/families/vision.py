"""Tiny vision-language models: the text shape of `text.py` under a two-layer vision tower."""

from typing import Any

from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .family import PAD_TOKEN, Family, family
from .text import GEMMA_EMBEDDING_STD, gemma3_text_config, text_shape, without_head_dim

# Ids inside the vocabulary that prompts use for media and their delimiters, never for text.
FIRST_MEDIA_TOKEN = 100
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN, GLOBAL_IMAGE_TOKEN = range(100, 105)

IMAGE_SIZE = 28  # pixels a side of a vision tower of fixed size
PATCH_SIZE = 7  # so 4 x 4 patches
ANYRES_SIZES = [[28, 56], [56, 28], [56, 56]]

QWEN_PATCH_SIZE = 4
QWEN_TEMPORAL_PATCH_SIZE = 2
QWEN_MERGE_SIZE = 2


def _tower(**changes: Any) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    return shape | changes


def qwen_tower(**changes: Any) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": QWEN_PATCH_SIZE,
        "temporal_patch_size": QWEN_TEMPORAL_PATCH_SIZE,
        "spatial_merge_size": QWEN_MERGE_SIZE,
    }
    return shape | changes


def _qwen_text(**changes: Any) -> dict[str, Any]:
    # Half of the head size, split over the temporal, height and width planes.
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    return text_shape(rope_parameters=rope, **changes)


def qwen_tokens() -> dict[str, int]:
    return {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": VIDEO_TOKEN,
        "vision_start_token_id": VISION_START_TOKEN,
        "vision_end_token_id": VISION_END_TOKEN,
    }


def _llava() -> PreTrainedConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**_tower(), projection_dim=32),
        text_config=LlamaConfig(**text_shape()),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
    )


def _llava_next() -> PreTrainedConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_tower(), projection_dim=32),
        text_config=LlamaConfig(**text_shape()),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
        image_grid_pinpoints=ANYRES_SIZES,
    )


def _llava_onevision() -> PreTrainedConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tower(), vision_use_head=False),
        text_config=Qwen2Config(**without_head_dim(text_shape())),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=ANYRES_SIZES,
    )


def _qwen2_vl() -> PreTrainedConfig:
    return Qwen2VLConfig(
        vision_config=qwen_tower(hidden_size=64, embed_dim=32),
        text_config=without_head_dim(_qwen_text()),
        **qwen_tokens(),
    )


def _qwen2_5_vl() -> PreTrainedConfig:
    return Qwen2_5_VLConfig(
        vision_config=qwen_tower(
            intermediate_size=48, out_hidden_size=64, window_size=16, fullatt_block_indexes=[1]
        ),
        text_config=without_head_dim(_qwen_text()),
        **qwen_tokens(),
    )


def _qwen3_vl() -> PreTrainedConfig:
    return Qwen3VLConfig(
        vision_config=qwen_tower(
            intermediate_size=48,
            out_hidden_size=64,
            num_position_embeddings=36,
            deepstack_visual_indexes=[0, 1],
        ),
        text_config=_qwen_text(num_hidden_layers=3),
        **qwen_tokens(),
    )


def _smolvlm() -> PreTrainedConfig:
    return SmolVLMConfig(
        vision_config=_tower(),
        text_config=LlamaConfig(**text_shape()),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=PAD_TOKEN,
    )


def _idefics3() -> PreTrainedConfig:
    return Idefics3Config(
        vision_config=_tower(),
        text_config=LlamaConfig(**text_shape()),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=PAD_TOKEN,
    )


def _internvl() -> PreTrainedConfig:
    sides = {"image_size": [IMAGE_SIZE, IMAGE_SIZE], "patch_size": [PATCH_SIZE, PATCH_SIZE]}
    return InternVLConfig(
        vision_config=_tower(**sides),
        text_config=Qwen2Config(**without_head_dim(text_shape())),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _paligemma() -> PreTrainedConfig:
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_tower(), vision_use_head=False),
        text_config=GemmaConfig(**text_shape()),
        image_token_index=IMAGE_TOKEN,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )


def _gemma3() -> PreTrainedConfig:
    return Gemma3Config(
        vision_config=SiglipVisionConfig(**_tower(), vision_use_head=False),
        text_config=gemma3_text_config(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=VISION_START_TOKEN,
        eoi_token_index=VISION_END_TOKEN,
        tie_word_embeddings=False,
    )


def _mllama() -> PreTrainedConfig:
    # The embedding has eight rows more than the head; the image token is kept below both.
    return MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "max_num_tiles": 4,
        },
        text_config=without_head_dim(
            text_shape(num_hidden_layers=3, cross_attention_layers=[1])
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
        ),
        image_token_index=IMAGE_TOKEN,
    )


DECODABLE_VISION: tuple[Family, ...] = (
    family("llava", "vision", LlavaForConditionalGeneration, _llava),
    family("llava_next", "vision", LlavaNextForConditionalGeneration, _llava_next),
    family(
        "llava_onevision",
        "vision",
        LlavaOnevisionForConditionalGeneration,
        _llava_onevision,
        takes_video=True,
    ),
    family("qwen2_vl", "vision", Qwen2VLForConditionalGeneration, _qwen2_vl, takes_video=True),
    family(
        "qwen2_5_vl", "vision", Qwen2_5_VLForConditionalGeneration, _qwen2_5_vl, takes_video=True
    ),
    family("qwen3_vl", "vision", Qwen3VLForConditionalGeneration, _qwen3_vl, takes_video=True),
    family("smolvlm", "vision", SmolVLMForConditionalGeneration, _smolvlm),
    family("idefics3", "vision", Idefics3ForConditionalGeneration, _idefics3),
    family("internvl", "vision", InternVLForConditionalGeneration, _internvl),
    family(
        "paligemma",
        "vision",
        PaliGemmaForConditionalGeneration,
        _paligemma,
        embedding_std=GEMMA_EMBEDDING_STD,
    ),
    family(
        "gemma3",
        "vision",
        Gemma3ForConditionalGeneration,
        _gemma3,
        embedding_std=GEMMA_EMBEDDING_STD,
    ),
    family("mllama", "vision", MllamaForConditionalGeneration, _mllama),
)
