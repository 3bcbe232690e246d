"""Folders as others publish them are read, and ours are as theirs."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_heads import head_config, unfitted
from matrix import model_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmspec.drafters.eagle import Eagle, EagleHead
from mmspec.drafters.eagle.checkpoint import load, save
from mmspec.errors import ConfigError, ModelError
from mmspec.target import Target

# What SafeAILab's folders hold, and SpecForge's, but for the embedding.
EAGLE_1 = {
    "embed_tokens.weight", "fc.weight", "fc.bias",
    *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "layers.0.post_attention_layernorm.weight",
}  # fmt: skip
EAGLE_3 = {
    "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d",
    *(f"midlayer.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"midlayer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"midlayer.{n}.weight"
      for n in ("hidden_norm", "input_layernorm", "post_attention_layernorm")),
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "vocab_size": 112,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
SPECULATORS = {
    "speculators_config": {"algorithm": "eagle", "verifier": {"name_or_path": "x"}},
    "speculators_version": "0.3.0",
    "auto_map": {"": "config.EagleSpeculatorConfig"},
}


def head_of(version: int, **changes: Any) -> EagleHead:
    head = unfitted(model_of("llama", "float32"), version, **changes)
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.3)
    return head


def tensors_of(head: EagleHead, *renamed: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in head.state_dict().items():
        for pattern, replacement in renamed:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.clone()
    return tensors


def as_bin(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    torch.save(dict(tensors), folder / "pytorch_model.bin")


def as_safetensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), folder / "model.safetensors")


def in_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    names = sorted(tensors)
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


Case = tuple[EagleHead, Mapping[str, Any], Mapping[str, Tensor], Callable[..., None]]


def cases() -> dict[str, Case]:
    first = head_of(1, has_embedding=True, fc_bias=True)
    third, whole = head_of(3), head_of(3, draft_vocab_size=112, layers=None, has_embedding=True)
    normed = head_of(1, first_norm=True, has_outer_norms=True)
    of_layers = {"draft_vocab_size": 90, "norm_before_residual": False}
    layer = {k: v for k, v in LLAMA.items() if k != "architectures"}
    eagle = (("^fc", "fusion_fc"), (r"^layers\.0", "transformer"))
    whole_tensors = {n: t for n, t in tensors_of(whole).items() if n not in ("d2t", "t2d")}
    newest = head_of(
        3, norm_before_residual=True, fc_norm=True, norm_output=True, has_embedding=True
    )
    old_rope = {**LLAMA, "rope_theta": 5e5}
    return {
        "SafeAILab EAGLE-1": (first, {**LLAMA, "bias": True}, tensors_of(first), as_bin),
        "SafeAILab EAGLE-3, whole vocabulary": (
            whole, {**LLAMA, "draft_vocab_size": 112}, whole_tensors, as_bin,
        ),
        "SpecForge EAGLE-3": (
            third,
            {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 90,
             "eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 0, 0],
                              "use_aux_hidden_state": True}},
            tensors_of(third),
            as_safetensors,
        ),
        "in shards, as a vLLM model": (
            third,
            {**LLAMA, **of_layers, "eagle_aux_hidden_state_layer_ids": [0, 1, 1]},
            tensors_of(third, ("^", "model."), (r"^model\.(lm_head|d2t|t2d)", r"\1")),
            in_shards,
        ),
        "speculators eagle": (
            normed,
            {**SPECULATORS, "speculators_model_type": "eagle", "layernorms": True,
             "fusion_bias": False, "transformer_layer_config": layer},
            tensors_of(normed, *eagle),
            as_safetensors,
        ),
        "speculators eagle3": (
            newest,
            {**SPECULATORS, "speculators_model_type": "eagle3", "transformer_layer_config": layer,
             "norm_before_residual": True, "draft_vocab_size": 90, "fc_norm": True,
             "norm_output": True, "target_hidden_size": None,
             "eagle_aux_hidden_state_layer_ids": [0, 1, 1]},
            {**tensors_of(newest, ("^midlayer", "layers.0"), ("^fc_norm", "fc_norms")),
             "verifier_norm.weight": torch.ones(64), "verifier_lm_head.weight": torch.ones(90, 64)},
            as_safetensors,
        ),
        "another theta": (
            head_of(1, block=replace(first.config.block, rope={
                "rope_type": "default", "rope_theta": 5e5})),
            old_rope, tensors_of(head_of(1)), as_bin,
        ),
    }  # fmt: skip


def outputs(head: EagleHead) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(6)
    embeddings, features = (
        torch.randn(2, 7, width, generator=draw) for width in (64, 64 * head.num_features)
    )
    made = head(embeddings, head.project(features))
    read = made.read if head.lm_head is None else head.lm_head(made.read)
    return made.features, read


@pytest.mark.parametrize("name", cases())
def test_a_published_folder_is_read(name: str, tmp_path: Path) -> None:
    head, config, tensors, write = cases()[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write(tmp_path, tensors)
    found = load(tmp_path)
    assert found.config == head.config
    for own, expected in zip(outputs(found), outputs(head), strict=True):
        assert torch.equal(own, expected)
    assert (found.target_ids is None) == (head.target_ids is None)
    if head.target_ids is not None:
        assert torch.equal(found.target_ids, head.target_ids)  # type: ignore[arg-type]
    if head.embed_tokens is not None:
        assert torch.equal(found.embed_tokens.weight, head.embed_tokens.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", cases())
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    head, *_ = cases()[name]
    save(head, tmp_path)
    found = load(tmp_path)
    assert found.config == head.config
    for key, tensor in head.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key


def test_what_is_written_has_the_published_names(tmp_path: Path) -> None:
    save(head_of(1, has_embedding=True, fc_bias=True), tmp_path / "1")
    assert load_file(tmp_path / "1" / "model.safetensors").keys() == EAGLE_1
    save(head_of(3), tmp_path / "3")
    assert load_file(tmp_path / "3" / "model.safetensors").keys() == EAGLE_3
    config = json.loads((tmp_path / "3" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 90 and config["vocab_size"] == 112
    # vLLM counts hidden states, SGLang the layers that they come out of.
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 1, 1]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [-1, 0, 0]


def test_several_layers_are_numbered_from_the_first(tmp_path: Path) -> None:
    block = replace(head_config(model_of("llama", "float32"), 3).block, num_layers=3)
    head = head_of(3, block=block)
    save(head, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0", "1", "2"}
    assert "layers.0.hidden_norm.weight" in names and "layers.1.hidden_norm.weight" not in names
    for own, expected in zip(outputs(load(tmp_path)), outputs(head), strict=True):
        assert torch.equal(own, expected)


def test_d2t_is_an_offset_to_the_targets_id() -> None:
    head = head_of(3, draft_vocab_size=4)
    head.set_vocabulary(torch.tensor([3, 7, 8, 100]))
    assert head.d2t.tolist() == [3, 6, 6, 97]
    assert head.t2d.nonzero().squeeze(1).tolist() == [3, 7, 8, 100]
    assert head.target_ids.tolist() == [3, 7, 8, 100]  # type: ignore[union-attr]


def test_t2d_alone_says_the_vocabulary(tmp_path: Path) -> None:
    head = head_of(3)
    save(head, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["d2t"]
    as_safetensors(tmp_path, tensors)
    assert torch.equal(load(tmp_path).d2t, head.d2t)


def test_layers_that_no_file_names_are_the_published_ones() -> None:
    config = head_config(model_of("llama", "float32"), 3, layers=None)
    assert config.taps(32) == (2, 16, 29)
    assert config.taps(80) == (2, 40, 77)
    assert head_config(model_of("llama", "float32"), 1).taps(32) == (32,)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load(tmp_path / "not" / "here")
    config = {**LLAMA, "draft_vocab_size": 90}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no weights; expected"):
        load(tmp_path)

    def refused(tensors: Mapping[str, Tensor], told: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        as_safetensors(tmp_path, tensors)
        with pytest.raises(ConfigError, match=told):
            load(tmp_path)

    tensors = tensors_of(head_of(3))
    refused(tensors, r"speculators_model_type='mlp'", speculators_model_type="mlp")
    refused(tensors, "says nothing of hidden_size", hidden_size=None)
    refused(tensors, r"fc\.weight has the shape .* expected", hidden_size=32)
    refused({**tensors, "medusa.0.weight": torch.ones(2)}, r"not known: medusa\.0\.weight")
    less = {name: t for name, t in tensors.items() if name != "norm.weight"}
    refused(less, r"missing: norm\.weight")
    refused({**tensors, "d2t": tensors["d2t"] + 40}, "d2t leads to tokens")
    refused({**tensors, "d2t": tensors["d2t"][:-1]}, r"d2t has the shape \(89,\), expected \(90,\)")
    short = {name: t for name, t in tensors.items() if name != "d2t"}
    refused({**short, "t2d": tensors["t2d"].clone().fill_(False)}, r"t2d has the shape \(0,\)")
    both = {name: t for name, t in tensors.items() if name not in ("d2t", "t2d")}
    refused(both, "90 of the target's 112 tokens are drafted, but no d2t says which")


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "it_ran",)

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    torch.save({"fc.weight": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": ["model-1.safetensors"]}'])
def test_an_index_that_cannot_be_read_is_told(tmp_path: Path, index: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json: .*weight_map"):
        load(tmp_path)


@pytest.mark.parametrize("stored", [torch.ones(2), {"fc.weight": 3}, [torch.ones(2)]])
def test_a_file_of_anything_but_tensors_is_told(tmp_path: Path, stored: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    torch.save(stored, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="expected a dict of tensors"):
        load(tmp_path)


def test_a_head_of_another_target_is_refused() -> None:
    target = Target(model_of("llama", "float32"))
    base = head_config(model_of("llama", "float32"), 3)

    def refused(told: str, version: int = 3, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=told):
            Eagle(head_of(version, **changes)).for_target(target, None)

    refused("made for a target of hidden_size 32, this one has 64", target_hidden_size=32)
    refused("vocab_size 64, this one has 112", block=replace(base.block, vocab_size=64),
            draft_vocab_size=60)  # fmt: skip
    refused(r"reads the target's hidden states \[1, 2, 1\]; expected 0 .* to 1", layers=(1, 2, 1))
    refused(r"hidden states \[2, 1, -1\]", layers=None)
    narrow = replace(base.block, hidden_size=48)
    refused("hidden_size 48, this one has 64", block=narrow)  # and it borrows the embedding
    Eagle(head_of(3, block=narrow, has_embedding=True)).for_target(target, None)
    for options, told in (
        ({"max_depth": 0}, "max_depth=0: expected at least 1"),
        ({"top_k": 0}, "top_k=0"),
        ({"min_confidence": 2.0}, r"min_confidence=2.0: expected in \[0, 1\]"),
        ({"draw": "x"}, "draw='x'"),
        ({"profile": [2, 0]}, r"profile=\[2, 0\]"),
        ({"dtype": "int8"}, "dtype='int8': expected one of auto"),
        ({"window": 3}, "window=3: expected at least 16"),
    ):
        with pytest.raises(ConfigError, match=told):
            Eagle(head_of(3), **options)  # type: ignore[arg-type]
