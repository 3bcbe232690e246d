"""Adapters of peft: on a model that is given, from a folder, switched while an engine lives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_models import letters
from families import FAMILIES, prompt_inputs
from torch import Tensor, nn
from transformers.utils import is_peft_available

import mmspec
import mmspec.target.load as load_module
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.errors import ConfigError, MissingExtraError, ModelError

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
needs_peft = pytest.mark.skipif(not is_peft_available(), reason="needs peft (extra: lora)")


def prompt() -> dict[str, Tensor]:
    return prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20)


def adapted() -> Any:
    """A peft model with two random adapters, "default" and "other"; the first is active."""
    import peft

    torch.manual_seed(0)
    shape = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = peft.get_peft_model(
        FAMILIES["llama"].build(torch.float64),
        peft.LoraConfig(**shape),
        autocast_adapter_dtype=False,
    )
    model.add_adapter("other", peft.LoraConfig(**shape))
    return model.double()


def native(model: Any) -> list[int]:
    return model.generate(**prompt(), **GREEDY)[0, 20:].tolist()


@needs_peft
def test_the_active_adapter_is_the_one_that_speaks() -> None:
    model = adapted()
    engine = mmspec.load(model, drafter=PromptLookup(min_match=1, min_confidence=0.0))
    texts = []
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        texts.append(native(model))
        result = engine.generate(prompt(), temperature=0, max_new_tokens=12)
        assert list(result.tokens) == texts[-1]
    from peft.helpers import rescale_adapter_scale

    for changed in (model.disable_adapter(), rescale_adapter_scale(model, multiplier=-2.0)):
        with changed:
            texts.append(native(model))
            result = engine.generate(prompt(), temperature=0, max_new_tokens=12)
            assert list(result.tokens) == texts[-1]
    assert len({tuple(text) for text in texts}) == 4, "the adapters change nothing"


@needs_peft
def test_a_peft_models_generate_takes_our_loop() -> None:
    model = adapted()
    ours = model.generate(**prompt(), **GREEDY, custom_generate=mmspec.custom_generate)
    assert ours[0, 20:].tolist() == native(model)


@needs_peft
def test_a_peft_model_drafts_with_its_adapters() -> None:
    model = adapted()
    engine = mmspec.load(
        model, drafter=DraftModel(adapted()), overrides=["decode.controller=fixed"]
    )
    result = engine.generate(prompt(), temperature=0, max_new_tokens=12)
    assert list(result.tokens) == native(model)
    count = result.stats.by_drafter["draft_model"]
    assert count.accepted >= 8, f"the same adapters draft what the target says: {count}"


@needs_peft
def test_a_folder_with_an_adapter_loads_its_base(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    FAMILIES["llama"].build(torch.float64).save_pretrained(base)
    model = adapted()
    model.save_pretrained(folder, selected_adapters=["default"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    engine = mmspec.load(folder, dtype="float64")
    result = engine.generate(prompt(), temperature=0, max_new_tokens=12)
    assert list(result.tokens) == native(model)


@needs_peft
def test_prompt_learning_is_refused() -> None:
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(FAMILIES["llama"].build(torch.float32), config)
    with pytest.raises(ModelError, match="virtual tokens"):
        mmspec.load(model)


def test_a_module_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(ModelError, match="got a Linear"):
        mmspec.load(nn.Linear(2, 2))


def test_a_compiled_model_is_decoded_as_the_one_within(caplog: pytest.LogCaptureFixture) -> None:
    model, prompt = FAMILIES["llama"].build(torch.float64), prompt_inputs(FAMILIES["llama"], "text")
    engine = mmspec.load(torch.compile(model))
    assert engine.target.model is model and "torch.compile" in caplog.text
    expected = mmspec.load(model).generate(prompt, max_new_tokens=8).tokens
    assert engine.generate(prompt, max_new_tokens=8).tokens == expected


def test_what_is_no_model_no_processor_or_no_drafter_is_refused() -> None:
    model, tokenizer = FAMILIES["llama"].build(torch.float32), letters()
    with pytest.raises(ModelError, match=r"got a \w+; expected a path, a hub name"):
        mmspec.load(tokenizer)
    with pytest.raises(ConfigError, match="processor: got a LlamaForCausalLM"):
        mmspec.load(tokenizer, model)
    with pytest.raises(ModelError, match="got the class LlamaForCausalLM; expected a path"):
        mmspec.load(type(model))
    with pytest.raises(ConfigError, match="processor: got a dict; expected a transformers"):
        mmspec.load(model, {"tokenizer": tokenizer})
    with pytest.raises(ConfigError, match="or drafter objects"):
        mmspec.load(model, drafter=PromptLookup)  # type: ignore[arg-type]


def test_an_adapter_folder_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(load_module, "is_peft_available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"mmspec\[lora\]"):
        mmspec.load(tmp_path)
    monkeypatch.setattr(load_module, "is_peft_available", lambda: True)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        mmspec.load(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match="names no base model"):
        mmspec.load(tmp_path)
