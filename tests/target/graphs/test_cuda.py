"""CUDA graphs themselves; everything around them is tested without a GPU next to this file."""

import warnings

import matrix
import pytest
import torch
from draft_models import letters
from families import FAMILIES, prompt_inputs
from ragged import requests_of

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.draft_model import DraftModel
from mmspec.requests import Request

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


_ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="slow where pretended")


@pytest.mark.parametrize(
    ("max_nodes", "dtype"),
    [
        (4, torch.bfloat16),
        pytest.param(64, torch.bfloat16, marks=_ON_A_GPU),
        pytest.param(64, torch.float32, marks=_ON_A_GPU),
    ],
)
def test_in_bitwise_mode_replays_have_the_bits_of_launches(
    max_nodes: int, dtype: torch.dtype
) -> None:
    """Plain and drafted, alone and together, by graphs and launch by launch."""
    model = FAMILIES["llama"].build(dtype).cuda()
    requests = [
        Request(
            prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=length),
            max_new_tokens=min(max_nodes + 2, 32), output_logits=True, seed=1, **sampling,
        )
        for length, sampling in (
            (60, {"temperature": 0.0}),
            (117, {"temperature": 0.7, "top_k": 0, "top_p": 0.9}),
        )
    ]  # fmt: skip
    found = []
    for graphs in ("never", "auto"):
        decode = DecodeConfig(
            exactness="bitwise", max_rows=2, max_nodes=max_nodes, cuda_graphs=graphs,
            controller="fixed",
        )  # fmt: skip
        engine = mmspec.load(
            model, letters(), config=Config(decode=decode), drafter=matrix._lookup()
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", mmspec.errors.GraphWarning)
            found.append(engine.generate(requests, speculate=graphs == "auto"))
            found.append([engine.generate(r, speculate=graphs == "never") for r in requests])
        info = engine.graph_info
        assert (info is None) == (graphs == "never")
        assert info is None or (info.replayed > info.eager and info.recorded == 1)
    for results in found[1:]:
        for result, expected in zip(results, found[0], strict=True):
            assert result.tokens == expected.tokens
            assert result.logits is not None and expected.logits is not None
            assert torch.equal(result.logits, expected.logits)
