"""DFlash heads on disk: the formats in which they are published, and what is no such head."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dflash_heads import BLOCK, MASK, assistant, loaded, published, unfitted, write
from matrix import model_of
from safetensors.torch import load_file, save_file

from mmspec.attention import Reach
from mmspec.drafters.dflash import DFlashConfig, DFlashHead, load
from mmspec.errors import ConfigError


def model() -> Any:
    return model_of("llama", "float64")


def read(**changes: Any) -> DFlashConfig:
    return DFlashConfig.read(published(model(), **changes), who="a test")


def assert_same(found: DFlashHead, head: DFlashHead) -> None:
    assert found.config == head.config
    expected = head.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert not found.training and not any(w.requires_grad for w in found.parameters())


def test_a_published_folder_is_read(tmp_path: Path) -> None:
    head = unfitted(model())
    assert_same(load(write(head, tmp_path, published(model()))), head)
    stored = set(load_file(tmp_path / "model.safetensors"))
    layer = {f"layers.1.{name}.weight" for name in (
        "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )}  # fmt: skip
    assert stored - {name for name in stored if name.startswith("layers.0.")} == layer | {
        "fc.weight", "hidden_norm.weight", "norm.weight",
    }  # fmt: skip


def test_the_speculators_format_is_read(tmp_path: Path) -> None:
    """Its layers are counted as hidden states; the target's own weights in it are left out."""
    head, given = unfitted(model()), published(model())
    said, block = given.pop("dflash_config"), given.pop("block_size")
    del given["architectures"]
    config = {
        "speculators_model_type": "dflash",
        "architectures": ["DFlashDraftModel"],
        "transformer_layer_config": given,
        "aux_hidden_state_layer_ids": [layer + 1 for layer in said["target_layer_ids"]],
        "mask_token_id": said["mask_token_id"],
        "block_size": block,
        "draft_vocab_size": given["vocab_size"],
    }
    write(head, tmp_path, config)
    file = tmp_path / "model.safetensors"
    extra = {"embed_tokens.weight": torch.zeros(3), "lm_head.weight": torch.zeros(3)}
    save_file(load_file(file) | extra, file)
    assert_same(load(tmp_path), head)


def test_a_reduced_vocabulary_is_read(tmp_path: Path) -> None:
    """By either of its tables; without, nobody knows which tokens they are."""
    given, ids = published(model(), draft_vocab_size=5), torch.tensor([3, 4, 9, 20, 21])
    head = unfitted(model(), draft_vocab_size=5)
    head.d2t.copy_(ids - torch.arange(5))
    known = torch.zeros(given["vocab_size"], dtype=torch.bool)
    known[ids] = True
    file = write(head, tmp_path, given) / "model.safetensors"
    stored = load_file(file)
    assert_same(load(tmp_path), head)
    save_file(stored | {"t2d": known}, file)
    assert_same(load(tmp_path), head)
    without = {name: tensor for name, tensor in stored.items() if name != "d2t"}
    save_file(without | {"t2d": known}, file)
    assert_same(load(tmp_path), head)
    save_file(without, file)
    with pytest.raises(ConfigError, match=f"5 of the target's {given['vocab_size']} tokens"):
        load(tmp_path)
    save_file({name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}, file)
    with pytest.raises(ConfigError, match=r"missing: lm_head\.weight"):
        load(tmp_path)


def test_the_assistant_of_transformers_is_read(tmp_path: Path) -> None:
    """Its windows do not count the token itself, and its layers see the whole block."""
    made = assistant(model(), sliding_window=9, layer_types=["sliding_attention", "full_attention"])
    head, stored = loaded(made, tmp_path), dict(made.state_dict())
    assert torch.equal(head.fc.weight, stored["encoder.fc.weight"])
    assert torch.equal(head.hidden_norm.weight, stored["encoder.output_norm_enc.weight"])
    assert torch.equal(head.norm.weight, stored["norm.weight"])
    config = head.config
    assert config.reaches == (Reach(window=10), Reach()) and config.is_causal == (False, False)
    assert (config.block_size, config.mask_token, config.layers) == (BLOCK, MASK, (1, 2))
    given = json.loads((tmp_path / "config.json").read_text())
    del given["layer_types"]
    assert DFlashConfig.read(given, who="a test").reaches == (Reach(window=10),) * 2


def test_what_a_config_leaves_out_is_as_published() -> None:
    given = published(model())
    del given["block_size"]
    config = DFlashConfig.read(given, who="a test")
    assert config.block_size == 16 and config.is_causal == (False, False)
    assert (config.embedding_scale, config.output_scale, config.softcap) == (1.0, 1.0, None)
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    mixed = read(**kinds)
    assert mixed.is_causal == (True, False) and mixed.reaches == (Reach(window=8), Reach())
    assert read(**kinds, is_causal=False).is_causal == (False, False)
    assert read(**kinds, sliding_window_non_causal=True).is_causal == (False, False)
    assert read(**kinds, sliding_window_non_causal=False).is_causal == (True, False)
    inner = {"mask_token_id": 0, "target_layer_ids": [1], "block_size": 2, "is_causal": True}
    config = read(dflash_config=inner)
    assert (config.block_size, config.layers, config.is_causal) == (2, (2,), (True, True))
    assert config.mask_token == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["DFlash2DraftModel"]}, "DFlash 2"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "LlamaForCausalLMEagle3"),
        ({"architectures": None}, "of the kind qwen3"),
        ({"speculators_model_type": "dspark"}, "dspark"),
        ({"dflash_config": {"mask_token_id": 2}}, "target_layer_ids"),
        ({"dflash_config": {"target_layer_ids": [0]}}, "mask_token_id"),
        ({"block_size": 1}, "block_size=1"),
        ({"sample_from_anchor": True}, "sample_from_anchor=True"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_is_no_such_head_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(**changes)


def test_weights_of_another_kind_are_refused_by_their_names(tmp_path: Path) -> None:
    head = unfitted(model())
    write(head, tmp_path, published(model()), **{"fc.weight": "attention_conv.weight"})
    with pytest.raises(ConfigError, match=r"missing: fc.weight; not known: attention_conv.weight"):
        load(tmp_path)
