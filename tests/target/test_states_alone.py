"""Models without any attention, which take their cache by another keyword."""

from typing import Any

import pytest
import torch
from draft_models import letters
from graphed import graphed
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

import mmspec
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.requests import Request

SHAPE: dict[str, Any] = {
    "vocab_size": 112, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SHAPE)),
    "falcon_mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**SHAPE)),
    "mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(**SHAPE, num_heads=8, head_dim=16, n_groups=1, chunk_size=8)
    ),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]().double().eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)
    return model


def engine_of(model: PreTrainedModel) -> Engine:
    drafters = [
        LayerSkip(layers=[1], min_confidence=0.0, max_depth=4, top_k=2),
        PromptLookup(min_match=1, min_confidence=0.0, max_depth=4),
    ]
    overrides = {"decode.controller": "fixed", "decode.prefill_chunk": 7}
    return mmspec.load(model, letters(), overrides=overrides, drafter=drafters)


def requests() -> list[Request]:
    return [
        Request({"input_ids": torch.arange(5, 22)[None]}, max_new_tokens=9, temperature=0.0),
        Request({"input_ids": torch.arange(30, 39)[None]}, max_new_tokens=6, top_k=0, seed=3),
        Request({"input_ids": torch.arange(5, 22)[None]}, max_new_tokens=8, top_k=0, seed=4),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_plain_decoding_and_of_generate(name: str) -> None:
    model = build(name)
    engine, prompts = engine_of(model), requests()
    plain = engine.generate(prompts, speculate=False)
    ids = prompts[0].prompt["input_ids"]  # type: ignore[index,call-overload]
    own = model.generate(ids, max_new_tokens=9, do_sample=False)[0, 17:].tolist()
    assert list(plain[0].tokens) == own
    for _ in range(2):  # the second time on beginnings that were kept
        results = engine.generate(prompts)
        assert [r.tokens for r in results] == [r.tokens for r in plain]
        assert sum(r.stats.by_drafter["layer_skip"].accepted for r in results) > 3
    reused = [result.stats.reused_tokens for result in results]
    assert (min(reused) > 0) == (name == "mamba2"), "the first kind cannot be read in pieces"


def test_their_score_calls_are_recorded() -> None:
    with graphed() as seen:
        engine, prompts = engine_of(build("mamba2")), requests()[:2]
        plain = engine.generate(prompts, speculate=False)
        assert [r.tokens for r in engine.generate(prompts)] == [r.tokens for r in plain]
    assert not seen.given_up and seen.replayed > 5
