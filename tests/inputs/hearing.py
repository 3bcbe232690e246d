"""A tiny Qwen2-Audio with its real processor, built without a network."""

from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from inputs.text_families import byte_level

NUM_MELS = 16
FRAMES = 100  # of a second, which is what recordings are padded to
_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>")


def processor() -> Qwen2AudioProcessor:
    tokenizer = byte_level(
        (*_TOKENS, "<|audio_eos|>"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    extractor = WhisperFeatureExtractor(feature_size=NUM_MELS, chunk_length=1)
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def model(tokens: Qwen2AudioProcessor, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Seeded and random, its attention sharp enough that the recording matters."""
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": NUM_MELS,
            "max_source_positions": FRAMES // 2,
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
        },
        text_config=Qwen2Config(
            vocab_size=len(tokens.tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        ).to_dict(),
        audio_token_index=tokens.audio_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Qwen2AudioForConditionalGeneration._from_config(config, dtype=dtype)
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(std=1.6 * weight[0].numel() ** -0.5)
                if "embed" in name:
                    weight.normal_()
    made.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return made.eval()


def folder(path: Path) -> Path:
    """Saves both to a folder, as a user has them."""
    tokens = processor()
    model(tokens).save_pretrained(path)
    tokens.save_pretrained(path)
    return path
