"""Quantised models go through the same code: weights that are no plain tensors, or cannot move."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import mmspec
import mmspec.target.load as load_module
from mmspec.drafters.prompt_lookup import PromptLookup

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}


class Int8Linear(nn.Module):
    """Weight-only int8 with a scale a row, as the quantisers make them: no floating `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale)


def quantised(family: str, dtype: torch.dtype) -> Any:
    model = FAMILIES[family].build(dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "proj" in name and module.bias is None:
            model.set_submodule(name, Int8Linear(module))
    model.is_quantized = True
    return model


def check(model: Any, family: str) -> None:
    prompt = prompt_inputs(FAMILIES[family], "text" if family == "llama" else "image_middle")
    native = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in prompt.items()}
    expected = model.generate(**native, max_new_tokens=12, do_sample=False)
    engine = mmspec.load(model, drafter=PromptLookup(min_match=1, min_confidence=0.0))
    result = engine.generate(prompt, **GREEDY)
    assert list(result.tokens) == expected[0, prompt["input_ids"].shape[1] :].tolist()
    ours = model.generate(
        **native, max_new_tokens=12, do_sample=False, custom_generate=mmspec.custom_generate
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_layers_without_floating_weights_decode(family: str) -> None:
    model = quantised(family, torch.float64)
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    check(model, family)


def test_a_quantised_model_that_is_in_its_place_is_not_moved(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes puts 4-bit weights onto the device itself and refuses `.to`."""
    FAMILIES["llama"].build(torch.float32).save_pretrained(tmp_path)
    model = quantised("llama", torch.float32)

    def refuse(*_: object) -> None:
        raise ValueError("`.to` is not supported for 4-bit models")

    monkeypatch.setattr(model, "to", refuse)
    monkeypatch.setattr(load_module.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    engine = mmspec.load(tmp_path, device="cpu")
    assert engine.target.model is model
    assert len(engine.generate({"input_ids": torch.tensor([[5, 6, 7]])}, **GREEDY).tokens) == 12


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_torchao_int8_weights_decode() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = FAMILIES["llama"].build(torch.float32)
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    quantize_(model, Int8WeightOnlyConfig())
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert type(weight) is not nn.Parameter or not torch.equal(weight, before)
    check(model, "llama")


def write_gguf(model: Any, path: Path) -> None:
    """The tiny llama in GGUF, its projections in Q8_0."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        own, values = names.get_name(name, try_suffixes=(".weight",)), tensor.numpy()
        if "proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_decodes_as_transformers_loads_it(tmp_path: Path) -> None:
    write_gguf(FAMILIES["llama"].build(torch.float32), tmp_path / "tiny.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    model.generation_config.update(eos_token_id=2, pad_token_id=0)
    check(model, "llama")
