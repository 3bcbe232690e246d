"""Tiny models that hear: the text shape of `text.py` behind a two-layer encoder of mel features."""

from typing import Any

from transformers import (
    LlamaConfig,
    PreTrainedConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)

from .family import Family, family
from .text import text_shape, without_head_dim

AUDIO_TOKEN, AUDIO_START_TOKEN, AUDIO_END_TOKEN = range(105, 108)
NUM_MELS = 16
NUM_FRAMES = 32  # mel frames of a padded recording: twice the encoder's positions
VOXTRAL_TOKENS = NUM_FRAMES // 2 // 4  # four positions are one token


def _encoder(**changes: Any) -> dict[str, Any]:
    shape = {"num_mel_bins": NUM_MELS, "max_source_positions": NUM_FRAMES // 2}
    return shape | changes


def _qwen2_audio() -> PreTrainedConfig:
    return Qwen2AudioConfig(
        audio_config=_encoder(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            model_type="qwen2_audio_encoder",
        ),
        text_config=Qwen2Config(**without_head_dim(text_shape())).to_dict(),
        audio_token_index=AUDIO_TOKEN,
        tie_word_embeddings=False,
    )


def _voxtral() -> PreTrainedConfig:
    return VoxtralConfig(
        audio_config=_encoder(
            hidden_size=32,
            intermediate_size=128,  # four positions side by side
            num_hidden_layers=2,
            num_attention_heads=2,
            model_type="voxtral_encoder",
        ),
        text_config=LlamaConfig(**text_shape()).to_dict(),
        audio_token_id=AUDIO_TOKEN,
        tie_word_embeddings=False,
    )


DECODABLE_AUDIO: tuple[Family, ...] = (
    family("qwen2_audio", "audio", Qwen2AudioForConditionalGeneration, _qwen2_audio),
    family("voxtral", "audio", VoxtralForConditionalGeneration, _voxtral),
)
