"""CUDA graphs themselves; everything around them is tested without a GPU next to this file."""

import warnings

import matrix
import pytest
import torch
from draft_models import letters
from families import FAMILIES
from ragged import requests_of

import mmspec
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.draft_model import DraftModel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("drafter", ["prompt_lookup", "compressed_kv", "draft_model"])
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_replayed_calls_give_the_tokens_of_eager_ones(family: str, drafter: str) -> None:
    model = FAMILIES[family].build(torch.float32).cuda()
    requests = requests_of(family, {"temperature": 0.0}, ["text"] * 3)
    results = {}
    for graphs in ("never", "auto"):
        drafters: dict[str, Drafter | DrafterForTarget] = {
            "prompt_lookup": matrix._lookup(),
            "compressed_kv": matrix._compressed("window"),
            "draft_model": DraftModel(model, letters(), min_confidence=0.0),
        }
        engine = mmspec.load(
            model,
            letters(),
            overrides={"decode.cuda_graphs": graphs, "decode.controller": "fixed"},
            drafter=drafters[drafter],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", mmspec.errors.GraphWarning)
            for _ in range(3):
                results[graphs] = [result.tokens for result in engine.generate(requests)]
    assert results["auto"] == results["never"]
    assert engine.graph_info is not None
    assert engine.graph_info.replayed > engine.graph_info.eager > 0
