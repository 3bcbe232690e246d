"""Medusa heads on disk: what others have published is read, what is written is what they read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import model_of
from medusa_heads import unfitted
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmspec.drafters.medusa import Medusa, MedusaHead, load, save
from mmspec.errors import ConfigError, ModelError
from mmspec.target import Target

HIDDEN, VOCAB, HEADS, LAYERS = 8, 11, 3, 2
STATES = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))


def weights(*, bias: bool = True) -> dict[str, Tensor]:
    """Of the authors' names: "head.layer.linear.weight", and the lm_head behind the last layer."""
    draw, made = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for head in range(HEADS):
        for layer in range(LAYERS):
            made[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=draw)
            if bias:
                made[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN, generator=draw)
        made[f"{head}.{LAYERS}.weight"] = torch.randn(VOCAB, HIDDEN, generator=draw)
    return made


def by_hand(stored: dict[str, Tensor], *, speaks: Tensor | None = None) -> Tensor:
    """(heads, batch, seq, vocab) as the paper writes it: silu(W x + b) + x, then the lm_head."""
    logits = list[Tensor]()
    for head in range(HEADS):
        x = STATES
        for layer in range(LAYERS):
            y = x @ stored[f"{head}.{layer}.linear.weight"].T
            y = y + stored.get(f"{head}.{layer}.linear.bias", torch.zeros(HIDDEN))
            x = x + y * torch.sigmoid(y)
        lm_head = stored[f"{head}.{LAYERS}.weight"] if speaks is None else speaks
        logits.append(x @ lm_head.T)
    return torch.stack(logits)


def write(folder: Path, stored: dict[str, Tensor], name: str, **config: Any) -> Path:
    if name.endswith(".safetensors"):
        save_file(stored, folder / name)
    else:
        torch.save(stored, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


AUTHORS = {"medusa_num_heads": HEADS, "medusa_num_layers": LAYERS, "base_model_name_or_path": "a/b"}


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
@pytest.mark.parametrize("prefix", ["", "medusa_head.", "module.medusa_heads."])
def test_the_authors_files_are_read(name: str, prefix: str, tmp_path: Path) -> None:
    stored = {prefix + key: tensor for key, tensor in weights().items()}
    head = load(write(tmp_path, stored, name, **AUTHORS))
    assert head.config.base_model == "a/b" and head.config.vocab_size == VOCAB
    torch.testing.assert_close(head(STATES), by_hand(weights()))


def test_the_weights_say_how_many_heads_there_are(tmp_path: Path) -> None:
    """As with the authors' first checkpoints, whose config says 2 of 5."""
    head = load(
        write(tmp_path, weights(), "medusa_lm_head.pt", **{**AUTHORS, "medusa_num_heads": 2})
    )
    assert len(head) == HEADS and head.config.num_layers == LAYERS


def vllm(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = dict[str, Tensor]()
    for key, tensor in stored.items():
        head, layer, *rest = key.split(".")
        block = f"blocks.{head}.layers.{layer}.{rest[-1]}"
        renamed[block if rest[0] == "linear" else f"lm_heads.{head}.weight"] = tensor
    return renamed


def test_vllms_files_are_read(tmp_path: Path) -> None:
    stored = weights(bias=False)
    config = {"num_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    head = load(write(tmp_path, vllm(stored), "model.safetensors", **config))
    assert not head.config.has_bias
    torch.testing.assert_close(head(STATES), by_hand(stored))


def test_tokens_outside_of_vllms_token_map_are_never_said(tmp_path: Path) -> None:
    kept = [7, 2, 9, 4]
    stored = vllm(weights(bias=False))
    for head in range(HEADS):
        stored[f"lm_heads.{head}.weight"] = stored[f"lm_heads.{head}.weight"][kept].contiguous()
    stored["token_map"] = torch.tensor(kept)
    config = {"vocab_size": VOCAB, "truncated_vocab_size": len(kept)}
    logits = load(write(tmp_path, stored, "model.safetensors", **config))(STATES)
    torch.testing.assert_close(logits[..., kept], by_hand(weights(bias=False))[..., kept])
    others = [token for token in range(VOCAB) if token not in kept]
    assert (logits[..., others] == -torch.inf).all()


@pytest.mark.parametrize("beyond", [VOCAB, -1])
def test_a_token_map_beyond_the_vocabulary_is_refused(beyond: int, tmp_path: Path) -> None:
    """On a GPU such an index ends the process's work there, and not the drafter's alone."""
    stored = {**vllm(weights(bias=False)), "token_map": torch.tensor([7, beyond, 9, 4])}
    with pytest.raises(ConfigError, match=f"token_map leads to tokens .*{beyond}.*, expected ids"):
        load(write(tmp_path, stored, "model.safetensors", vocab_size=VOCAB))


@pytest.mark.parametrize("is_there", [False, True])
def test_heads_without_an_lm_head_speak_through_the_targets(is_there: bool, tmp_path: Path) -> None:
    """None in the file, or a copy that config.json calls the original one."""
    stored = {k: t for k, t in weights().items() if "linear" in k or is_there}
    config = {"original_lm_head": True} if is_there else AUTHORS
    head = load(write(tmp_path, stored, "medusa_lm_head.safetensors", **config))
    speaks = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(2))
    logits = head(STATES, lambda states: states @ speaks.T)
    torch.testing.assert_close(logits, by_hand(weights(), speaks=speaks))


@pytest.mark.parametrize(
    "changes", [{}, {"has_own_heads": False}, {"has_bias": False}, {"num_mapped": 20}]
)
def test_what_is_written_is_read_again(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of("llama", "float64")
    head = unfitted(model, num_layers=2, base_model="org/target", **changes).to(torch.bfloat16)
    save(head, tmp_path)
    again = load(tmp_path)
    assert again.config == head.config
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    keys = load_file(tmp_path / "medusa_lm_head.safetensors").keys()
    assert {"0.0.linear.weight", "2.1.linear.weight"} <= keys
    assert ("0.2.weight" in keys) == head.config.has_own_heads
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (3, 2)
    assert config["base_model_name_or_path"] == "org/target"


def test_each_head_begins_as_the_targets_own() -> None:
    model = model_of("llama", "float64")
    head = MedusaHead(unfitted(model).config).double()
    head.say_as(model.get_output_embeddings().weight)
    states = torch.randn(4, head.config.hidden_size, dtype=torch.float64)
    expected = model.get_output_embeddings()(states)
    torch.testing.assert_close(head(states), expected.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, "no Medusa heads"),
        ({k: t for k, t in weights().items() if k != f"1.{LAYERS}.weight"}, "missing"),
        ({**weights(), "1.0.linear.weight": torch.zeros(3, 3)}, "1.0.linear.weight"),
    ],
)
def test_what_are_no_heads_is_refused(
    stored: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, stored, "medusa_lm_head.safetensors", **AUTHORS))


def test_no_code_is_run_from_a_file(tmp_path: Path) -> None:
    torch.save({"0.0.linear.weight": print}, tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "got"), [("hidden_size", 24), ("vocab_size", 70)])
def test_heads_of_another_target_are_refused(name: str, got: int) -> None:
    model = model_of("llama", "float64")
    drafter = Medusa(unfitted(model, **{name: got, "base_model": "org/other"}))
    with pytest.raises(ConfigError, match=rf"{name} {got}.*org/other"):
        drafter.for_target(Target(model), None)
