"""Layers for the tokens to come, of tiny targets, in folders as published ones lie in them."""

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from eagle_heads import said, solved
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_layers import MtpLayer

from mmspec.drafters.mtp import Mtp
from mmspec.drafters.mtp.layer import _configs, _made

_USUAL = ("mtp_block.mlp.experts.gate_up_proj", "post_norm.weight")
# MtpLayer's names -> the published ones, behind `model.layers.N.` and `mtp.`.
NUMBERED = {"mtp_block.": "", "post_norm.": "shared_head.norm."}
OWN = {
    "mtp_block.": "layers.0.",
    "post_norm.": "norm.",
    "enorm.": "pre_fc_norm_embedding.",
    "hnorm.": "pre_fc_norm_hidden.",
    "eh_proj.": "fc.",
}


def drawn(model: Any, *, seed: int = 6, has: Collection[str] = _USUAL) -> MtpLayer:
    """One that knows nothing, of the first kind that has these weights or the like."""
    has_experts, has_post_norm = any(".experts." in name for name in has), "post_norm.weight" in has
    for config in _configs(model, has_experts=has_experts):
        layer = _made(model, config, has_post_norm=has_post_norm)
        if has == _USUAL or layer.state_dict().keys() >= set(has):
            break
    layer.to_empty(device="cpu").to(model.dtype)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in layer.state_dict().items():
            spread = 0.1 if "norm" in name else 0.3
            around = float("norm" in name and not _around_zero(model))
            weight.copy_(torch.randn(weight.shape, generator=draw) * spread + around)
    return layer.requires_grad_(False).eval()


def _around_zero(model: Any) -> bool:
    """Norms whose weight is what is added to one (Qwen3-Next, Gemma)."""
    norm = model.get_decoder().norm
    probe = type(norm)(8)
    return bool((probe.weight == 0).all())


@torch.no_grad()
def fitted(model: Any) -> MtpLayer:
    """One whose projection says, by least squares, what the target itself will say next."""
    layer = drawn(model)
    for name, weight in layer.state_dict().items():
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight", "out_proj.weight")):
            weight.zero_()  # the decoder layer says nothing
        if name.startswith(("enorm", "hnorm")):
            weight.fill_(0.0 if _around_zero(model) else 1.0)
    layer.post_norm.weight.copy_(model.get_decoder().norm.weight)
    texts, states = said(model)
    embeddings = model.get_input_embeddings().weight[texts[:, 1:]]
    read = torch.cat([layer.enorm(embeddings), layer.hnorm(states[-1][:, :-1])], dim=-1)
    gain = layer.post_norm.weight + (1.0 if _around_zero(model) else 0.0)
    layer.eh_proj.weight.copy_(solved(read, states[-1][:, 1:] / gain).T)
    return layer


def published(
    model: Any,
    layer: MtpLayer,
    *,
    numbered: bool = False,
    begin: str = "mtp.",
    names: Mapping[str, str] = OWN,
) -> dict[str, Tensor]:
    """Its weights as a checkpoint names them, experts one by one."""
    if numbered:
        depth = model.config.get_text_config().num_hidden_layers
        begin, names = f"model.layers.{depth}.", NUMBERED
    tensors: dict[str, Tensor] = {}
    for name, tensor in layer.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        head, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for n, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                tensors[f"{begin}{head}.{n}.gate_proj.weight"] = gate
                tensors[f"{begin}{head}.{n}.up_proj.weight"] = up
        elif last == "down_proj":
            for n, expert in enumerate(tensor):
                tensors[f"{begin}{head}.{n}.down_proj.weight"] = expert
        else:
            tensors[begin + name] = tensor
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> str:
    (folder / "config.json").write_text(json.dumps(config or {}))
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


@cache
def folder_of(model: Any, *, knows: bool = True) -> str:
    """Of the layer alone. One for each target object."""
    layer = fitted(model) if knows else drawn(model)
    return write(Path(mkdtemp(prefix="mtp")), published(model, layer))


def mtp(model: Any, **options: Any) -> Mtp:
    """One that was fitted to the target."""
    return Mtp(folder_of(model), **options)
