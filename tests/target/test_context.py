"""A longer context: positions are scaled by what is missing, or it is said why they cannot be."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from transformers import Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlavaConfig

import mmspec
from mmspec.errors import ConfigError, InputError, ModelError
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.target.context import with_context
from mmspec.target.load import load_model


def test_the_factor_is_just_what_is_missing() -> None:
    config = LlamaConfig(max_position_embeddings=128, rope_parameters={"rope_theta": 5e5})
    longer = with_context(config, 320)
    assert longer.max_position_embeddings == 320
    assert longer.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 2.5,
        "original_max_position_embeddings": 128,
    }


def test_a_vision_models_text_model_is_what_is_scaled() -> None:
    config = LlavaConfig(text_config=LlamaConfig(max_position_embeddings=128))
    assert with_context(config, 256).text_config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize("tokens", [1, 127, 128])
def test_a_context_that_is_there_anyway_changes_nothing(tokens: int) -> None:
    config = LlamaConfig(max_position_embeddings=128)
    before = config.to_dict()
    assert with_context(config, tokens).to_dict() == before


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.context=0: expected a number"):
        with_context(LlamaConfig(), 0)
    with pytest.raises(ModelError, match="a gpt2 has no rotary positions"):
        with_context(GPT2Config(), 4096)
    with pytest.raises(ModelError, match="no rotary positions of one kind"):
        with_context(Gemma3TextConfig(max_position_embeddings=128), 256)  # two kinds of layers
    scaled = with_context(LlamaConfig(max_position_embeddings=128), 256)
    with pytest.raises(ModelError, match=r"scaled already \(yarn\), to 256"):
        with_context(scaled, 512)


def test_a_prompt_beyond_the_context_is_answered_once_it_is_longer(tmp_path: Path) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    model.config.max_position_embeddings = 64
    model.save_pretrained(tmp_path)
    prompt = Prompt(torch.arange(100) % 50 + 20)
    request = Request(prompt, max_new_tokens=4, temperature=0.0)
    short = mmspec.load(tmp_path, device="cpu", drafter="none")
    with pytest.raises(InputError, match=r"has 100 tokens: .*holds 64, .*model\.context=4096"):
        short.generate(request)
    context = ["model.context=4096"]
    engine = mmspec.load(tmp_path, overrides=context, device="cpu", drafter="none")
    assert len(engine.generate(request).tokens) == 4
    assert engine.target.max_positions == 4096


def test_weights_stay_what_they_are(tmp_path: Path) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    model.config.max_position_embeddings = 64
    model.save_pretrained(tmp_path)
    for name, value in load_model(str(tmp_path), context=128).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_where_positions_cannot_be_scaled_nobody_is_told_to() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    engine = mmspec.load(model, drafter="none")
    with pytest.raises(InputError, match=r"context holds 64.*; shorten the prompt$"):
        engine.generate(Prompt(torch.arange(100)))
