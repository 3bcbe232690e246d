"""Shapes: known ones, those of configs, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EXCHANGEABLE, FAMILIES
from families.hybrid import DECODABLE_HYBRID
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    RemBertConfig,
)
from transformers.pytorch_utils import Conv1D

from mmspec.errors import ConfigError
from mmspec.plan.hardware import find_hardware, this_cpu
from mmspec.plan.roofline import Forward
from mmspec.plan.shape import SHAPES, find_shape, shape_of
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.linears import text_linears

HYBRID = tuple(family.name for family in DECODABLE_HYBRID)
DENSE = [name for name in EXCHANGEABLE if name not in ("gpt_oss", "qwen3_moe", *HYBRID)]


@pytest.mark.parametrize("family", DENSE)
def test_weights_are_those_of_the_model(family: str) -> None:
    """The shape of a model's config counts what its matrices hold."""
    model = FAMILIES[family].build(torch.float32)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)), family)
    counted = shape.layers * shape.layer_weights + shape.head_weights
    if family != "mllama":  # layers that look at images alone are not called
        assert counted == _weights(model)
    assert shape.expert_weights == 0 < counted


@pytest.mark.parametrize("family", ["gemma2", "llama", "qwen2"])
def test_memory_is_what_a_row_and_the_weights_take(family: str) -> None:
    """A sliding layer keeps all of a row; an embedding that is the head is there once."""
    model = FAMILIES[family].build(torch.float32)
    assert shape_of(json.loads(model.config.to_json_string()), family).max_context > 0
    for tied in (True, False):
        config = {**json.loads(model.config.to_json_string(use_diff=False)), "sliding_window": 8}
        shape = shape_of({**config, "tie_word_embeddings": tied}, family)
        matrices = _weights(model) + (0 if tied else shape.head_weights)
        forward = Forward(shape, find_hardware("h200"), "fp32", "fp32")
        assert forward.stored_bytes == pytest.approx(4 * matrices, rel=0.01)  # norms
    target = Target(model)
    cache, prompt = target.new_cache(), Prompt(torch.arange(30, 60))
    row = cache.open(prompt.num_tokens)
    target.prefill(prompt, cache, row)
    kept = sum(t.nbytes for pair in cache.read(row, 0, 30) if pair is not None for t in pair)
    assert forward.row_bytes(30) == kept


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama", "qwen2_vl"])
def test_a_config_that_does_not_say_it_is_tied_as_its_kind_is(family: str) -> None:
    """So are Gemma's own: what is usual is not written."""
    config = json.loads(FAMILIES[family].build(torch.float32).config.to_json_string(use_diff=False))
    inner = config.get("text_config", {})
    for values in (config, inner):
        values.pop("tie_word_embeddings", None)
    usual, tied, loose = (
        shape_of({**config, **changes}, family).looked_up
        for changes in (
            {},
            {"tie_word_embeddings": True, **({"text_config": inner} if inner else {})},
            {"tie_word_embeddings": False, **({"text_config": inner} if inner else {})},
        )
    )
    assert usual == (tied if family.startswith("gemma") else loose) and tied < loose


def test_a_vision_language_models_own_word_on_its_head_counts() -> None:
    """As in transformers, where the model's own config ties its head."""
    config = json.loads(FAMILIES["gemma3"].build(torch.float32).config.to_json_string())
    for own, text in ((True, False), (False, True)):
        inner = {**config["text_config"], "tie_word_embeddings": text}
        both = {**config, "tie_word_embeddings": own, "text_config": inner}
        made = AutoModelForImageTextToText.from_config(Gemma3Config(**both))
        is_tied = made.get_output_embeddings().weight is made.get_input_embeddings().weight
        shape = shape_of(both, "x")
        assert (shape.looked_up < shape.head_weights) == is_tied


def _weights(model: Any) -> int:
    own = (m for m in model.get_decoder().modules() if isinstance(m, Conv1D))  # GPT-2's
    linears = (m for m in text_linears(model) if isinstance(m, nn.Linear))
    return sum(m.weight.numel() for m in (*own, *linears))


@pytest.mark.parametrize("family", sorted({*HYBRID} - {"qwen3_next"}))  # experts
def test_running_states_are_as_large_as_in_the_cache(family: str) -> None:
    model = FAMILIES[family].build(torch.bfloat16)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)), family)
    assert shape.layers * shape.layer_weights + shape.head_weights == pytest.approx(_weights(model))
    target = Target(model)
    cache, prompt = target.new_cache(), Prompt(torch.arange(30, 40))
    row = cache.open(prompt.num_tokens)
    target.prefill(prompt, cache, row)
    state = cache.snapshot(row)
    assert state is not None and shape.state_bytes == state.num_bytes
    kept = sum(t.nbytes for pair in cache.read(row, 0, 10) if pair is not None for t in pair)
    forward = Forward(shape, find_hardware("h200"))
    assert forward.kv_bytes(10) == kept
    assert forward.row_bytes(10, nodes=3) == kept + 4 * state.num_bytes
    plain, tree = (forward.seconds(nodes, context=10, batch=2) for nodes in (1, 5))
    assert tree - plain > 4 * 2 * 2 * shape.state_bytes / forward.hardware.bytes_per_s


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=112, hidden_size=64, num_hidden_layers=3),
        Mamba2Config(
            vocab_size=112,
            hidden_size=64,
            num_hidden_layers=3,
            num_heads=8,
            head_dim=16,
            n_groups=1,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_without_attention_has_a_state_and_no_keys(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    shape = shape_of(config.to_dict(), config.model_type)
    counted = shape.layers * shape.layer_weights + shape.head_weights
    assert counted == pytest.approx(_weights(model), rel=0.02)  # a small one is read, not called
    assert shape.state_bytes == Target(model).state_bytes > 0
    forward = Forward(shape, find_hardware("h200"))
    assert forward.kv_bytes(1000) == 0 and forward.row_bytes(1000) == shape.state_bytes


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_a_token_is_multiplied_by_its_experts_alone(family: str) -> None:
    model = FAMILIES[family].build(torch.float32)
    text = model.config.get_text_config(decoder=True)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)), family)
    experts = sum(w.numel() for n, w in model.named_parameters() if "experts." in n and w.ndim == 3)
    share = text.num_experts_per_tok / text.num_local_experts
    assert (shape.expert_weights, shape.expert_share) == (experts, share)
    target = Forward(shape, find_hardware("h200"), "fp32", "fp32")
    weights = sum(w.numel() for w in model.parameters())
    assert target.stored_bytes == pytest.approx(4 * weights, rel=0.01)
    assert target.stored_bytes - target.weight_bytes == pytest.approx(
        4 * (experts * (1 - share) + shape.looked_up)
    )
    slow = replace(target, hardware=replace(target.hardware, bytes_per_s=1.0))
    one, two = (slow.seconds(nodes, context=1, batch=1) for nodes in (1, 2))
    more = experts * 4 * ((1 - share) - (1 - share) ** 2)  # a second one's, chosen evenly
    assert two - one == pytest.approx(more + slow.kv_bytes(3) - slow.kv_bytes(2))


_MLA = {
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
# What the published configs write, billions of weights, those of them that a token is multiplied
# by, and bytes that it keeps in bfloat16: layers x 2 x KV heads x head size x 2; of latents 576.
_PUBLISHED: dict[str, tuple[dict[str, object], float, float, int]] = {
    "gemma-3-27b": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21_504,
                "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
                "head_dim": 128, "sliding_window": 1024,
            },
        },
        27.0, 27.0, 507_904,
    ),
    "gemma-3n-e2b": (
        {
            "model_type": "gemma3n_text", "num_hidden_layers": 30, "num_kv_shared_layers": 10,
            "intermediate_size": [8192] * 30,
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        },
        4.44, 2.42, 40_960,
    ),
    "mixtral-8x7b": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14_336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 32_000, "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        46.7, 12.75, 131_072,
    ),
    "deepseek-v3": (
        {
            "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18_432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
            "vocab_size": 129_280, "n_routed_experts": 256, "num_experts_per_tok": 8,
            "first_k_dense_replace": 3, "q_lora_rank": 1536, **_MLA,
        },
        671.0, 36.62, 70_272,
    ),
    "dbrx": (
        {
            "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40,
            "vocab_size": 100_352,
            "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500_000},
            "ffn_config": {
                "ffn_hidden_size": 10_752, "moe_num_experts": 16, "moe_top_k": 4,
                "ffn_act_fn": {"name": "silu"},
            },
        },
        131.6, 35.85, 163_840,
    ),
    "jetmoe-8b": (
        {
            "model_type": "jetmoe", "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 24, "num_key_value_heads": 16, "kv_channels": 128,
            "vocab_size": 32_000, "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        8.52, 2.33, 196_608,
    ),
    "qwen3-omni-30b": (  # its thinker writes
        {
            "model_type": "qwen3_omni_moe", "enable_audio_output": False,
            "thinker_config": {
                "text_config": {
                    "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
                    "head_dim": 128, "num_hidden_layers": 48, "num_experts": 128,
                    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "vocab_size": 152_064,
                },
            },
        },
        30.5, 3.04, 98_304,
    ),
    "longcat-flash": (  # 27 of 560; transformers has rows for experts that do nothing too
        {"model_type": "longcat_flash"},
        741.0, 27.1, 64_512,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _PUBLISHED)
def test_published_configs_have_the_published_sizes(name: str) -> None:
    config, stored, used, kept = _PUBLISHED[name]
    forward = Forward(shape_of(config, name), find_hardware("h200"))
    assert forward.stored_bytes / 2e9 == pytest.approx(stored, rel=2e-3)
    assert forward.weight_bytes / 2e9 == pytest.approx(used, rel=2e-3)
    assert forward.row_bytes(1) == kept


@pytest.mark.parametrize(
    ("family", "key"), [("llama", "num_nextn_predict_layers"), ("qwen3_5", "mtp_num_hidden_layers")]
)
def test_layers_for_the_tokens_to_come_are_those_that_the_config_names(
    family: str, key: str
) -> None:
    config = json.loads(FAMILIES[family].build(torch.float32).config.to_json_string(use_diff=False))
    assert shape_of(config, family).mtp_layers == 0
    config.get("text_config", config)[key] = 2
    assert shape_of(config, family).mtp_layers == 2


def test_known_shapes_have_the_published_sizes() -> None:
    """Parameters but for the norms, in billions; the input embedding counts where it is its own."""
    published = {
        "llama-3-8b": 8.03, "llama-2-7b": 6.74, "qwen2.5-7b": 7.62, "llama-3-70b": 70.6,
        "llama-3.2-1b": 1.236, "qwen2.5-0.5b": 0.494, "smollm2-135m": 0.1345,
    }  # fmt: skip
    for name, billions in published.items():
        total = Forward(SHAPES[name], find_hardware("h200")).stored_bytes / 2
        assert abs(total / 1e9 - billions) < 0.005 * billions, name


def test_a_sliding_layer_reads_its_window_alone() -> None:
    config = {
        "model_type": "qwen2", "use_sliding_window": True, "num_key_value_heads": 2,
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 112, "sliding_window": 1024,
    }  # fmt: skip
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    mixed = shape_of({**config, "layer_types": kinds}, "mixed")
    full = shape_of({**config, "sliding_window": None}, "full")
    hardware = find_hardware("h200")
    mixed_bytes, full_bytes = (Forward(s, hardware).kv_bytes(16_384) for s in (mixed, full))
    assert mixed_bytes / full_bytes == pytest.approx((1 + 3 * 1024 / 16_384) / 4)
    assert Forward(mixed, hardware).kv_bytes(512) == Forward(full, hardware).kv_bytes(512)


def test_an_attention_that_is_not_installed_is_not_asked_for() -> None:
    """Published configs may name the one that they were saved with."""
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    asked = {**config, "_attn_implementation": "flash_attention_2"}
    assert shape_of(asked, "x") == shape_of(config, "x")


def test_a_head_may_be_wider_than_the_layers() -> None:
    config = RemBertConfig(
        vocab_size=112,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        input_embedding_size=16,
        output_embedding_size=256,
        is_decoder=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict(), "rembert")
    assert shape.head_weights == model.get_output_embeddings().weight.numel()
    beside = sum(one.in_features * one.out_features for one in _linears(model.cls)) - 112 * 256
    own = sum(one.in_features * one.out_features for one in _linears(model.rembert))
    assert shape.layers * shape.layer_weights == own + beside


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_heads_that_differ_from_layer_to_layer_are_their_mean() -> None:
    if "dots3_note_text" in CONFIG_MAPPING:  # not in transformers 5.17
        assert shape_of({"model_type": "dots3_note_text"}, "x").heads == 82


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama-3-8b"):
        find_shape("llama-9")
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        find_shape(tmp_path)
    broken.write_text("[1]")
    with pytest.raises(ConfigError, match="got list, expected an object"):
        find_shape(tmp_path)
    for config, told in (
        ({}, "unnamed: its config says model_type=None, which transformers"),
        ({"model_type": "nobody's"}, 'unnamed: its config says model_type="nobody\'s", which'),
        ({"model_type": "t5"}, "is an encoder-decoder model"),
        ({"model_type": "evolla"}, "AutoModelForCausalLM of transformers .* loads no evolla"),
        ({"model_type": "siglip"}, "loads no siglip"),
        ({"model_type": "blip-2"}, "asks for pixel_values with every part of a text"),
        ({"model_type": "xlstm"}, r"has no cache for \(recurrent\)"),
        ({"model_type": "recurrent_gemma"}, r"outside of its cache|\(recurrent\)"),
        ({"model_type": "minimax"}, "MiniMax uses cache of its own"),
        ({"model_type": "falcon", "alibi": True}, "adds biases"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers=0; expected 1"),
        ({"model_type": "llama", "hidden_size": "a"}, "building the model without its weights"),
    ):
        with pytest.raises(ConfigError, match=told):
            shape_of(config, "unnamed")
    for text in ("h300", "1,2", "1,2,-3", "a,b,c"):
        with pytest.raises(ConfigError, match="h200"):
            find_hardware(text)


def test_a_machine_may_be_three_numbers() -> None:
    machine = find_hardware("1.5,100,50")
    assert (machine.bytes_per_s, machine.gemm_flops) == (1.5e12, 100e12)
    assert machine.attention_flops == 50e12


def test_this_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmspec.plan.hardware._MEASURED_S", 0.01)
    machine = this_cpu()
    assert 1e8 < machine.bytes_per_s < 1e13 and 1e8 < machine.gemm_flops < 1e15
