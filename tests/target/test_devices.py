"""Models that accelerate spread or offloaded: inputs go where the first layer is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs

import mmspec
from mmspec.drafters.prompt_lookup import PromptLookup

accelerate = pytest.importorskip("accelerate")


def dispatched(family: str, how: str, folder: Path) -> Any:
    model = FAMILIES[family].build(torch.float32)
    if how == "map":
        return accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    if how == "cpu_offload":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("how", ["map", "cpu_offload", "disk_offload"])
@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_a_dispatched_model_decodes_as_it_does_whole(family: str, how: str, tmp_path: Path) -> None:
    layout = "text" if family == "llama" else "image_middle"
    prompt = prompt_inputs(FAMILIES[family], layout)  # type: ignore[arg-type]
    drafter = PromptLookup(min_match=1, min_confidence=0.0)
    options: dict[str, Any] = {"temperature": 0.9, "top_k": 0, "seed": 3, "max_new_tokens": 10}
    whole = mmspec.load(FAMILIES[family].build(torch.float32), drafter=drafter)
    engine = mmspec.load(dispatched(family, how, tmp_path), drafter=drafter)
    if how != "map":
        assert engine.target.model.device.type == "meta", "nothing was offloaded"
    assert engine.target.device.type == "cpu"
    expected = whole.generate(prompt, **options)
    assert engine.generate(prompt, **options).tokens == expected.tokens


def test_a_device_map_is_left_to_transformers(tmp_path: Path) -> None:
    FAMILIES["llama"].build(torch.float32).save_pretrained(tmp_path)
    engine = mmspec.load(tmp_path, device_map="cpu")
    prompt = prompt_inputs(FAMILIES["llama"], "text")
    expected = mmspec.load(FAMILIES["llama"].build(torch.float32)).generate(
        prompt, temperature=0, max_new_tokens=8
    )
    result = engine.generate(prompt, temperature=0, max_new_tokens=8)
    assert result.tokens == expected.tokens
