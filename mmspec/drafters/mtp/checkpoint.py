"""The layer's weights among those of a model's folder, which are read alone.

DeepSeek, GLM      model.layers.N.{enorm, hnorm, eh_proj, shared_head.norm, ...} in a model of N
MiMo-V2            model.mtp.layers.0.{enorm, hnorm, eh_proj, final_layernorm, ...}
Qwen3-Next, 3.5    mtp.{pre_fc_norm_embedding, pre_fc_norm_hidden, fc, norm}, mtp.layers.0....
ERNIE 4.5          model.mtp_{emb_norm, hidden_norm, linear_proj, block}.0....
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmspec.drafters.heads.folder import HeadFolder
from mmspec.errors import ModelError

_BLOCK = "mtp_block."
# By the projection's name: what stands for the names of MtpLayer, and what all others belong to.
_FORMS: tuple[tuple[str, dict[str, str], str], ...] = (
    ("eh_proj.weight", {
        "enorm.": "enorm.", "hnorm.": "hnorm.", "eh_proj.": "eh_proj.",
        "shared_head.norm.": "post_norm.", "final_layernorm.": "post_norm.",
        "pre_mlp_layernorm.": f"{_BLOCK}post_attention_layernorm.",
    }, _BLOCK),
    ("mtp.fc.weight", {
        "pre_fc_norm_embedding.": "enorm.", "pre_fc_norm_hidden.": "hnorm.", "fc.": "eh_proj.",
        "norm.": "post_norm.", "layers.0.": _BLOCK,
    }, ""),
    ("mtp_linear_proj.0.weight", {
        "mtp_emb_norm.0.": "enorm.", "mtp_hidden_norm.0.": "hnorm.",
        "mtp_linear_proj.0.": "eh_proj.", "mtp_block.0.": _BLOCK,
    }, ""),
)  # fmt: skip
# Copies of what it shares, and layers for further depths.
_LEFT_OUT = re.compile(
    r"(embed_tokens|shared_head\.head|lm_head|layers\.[1-9]\d*)\.|shared_head\.weight$"
)
_SCALE, _FP8_BLOCK = "_scale_inv", (128, 128)
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def read(
    folder: str | Path,
    *,
    num_layers: int,
    revision: str | None,
    renamed: Callable[[str], str],
) -> dict[str, Tensor]:
    """Those of the first such layer of a model of `num_layers`, under the names of transformers'
    MtpLayer. `renamed`: what the model calls a weight of a layer. Raises ModelError for files that
    cannot be read, or hold no such layer."""
    wanted = re.compile(rf"(^|\.)(mtp\.|mtp_\w+\.0\.|layers\.{num_layers}\.)")
    found = HeadFolder.read(folder, revision=revision, wanted=wanted)
    tensors = _in_full(found.tensors, found.config)
    for projection, names, rest in _FORMS:
        for name in sorted(tensors):  # of several layers the first
            if name.endswith(projection):
                begin = name.removesuffix(projection.removeprefix("mtp."))
                own = {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}
                kept = {name: t for name, t in own.items() if not _LEFT_OUT.match(name)}
                named = {_named(name, names, rest): t for name, t in kept.items()}
                return _joined({_known(n, renamed): t for n, t in named.items()})
    raise ModelError(
        f"{folder}: no layer for the tokens to come (multi-token prediction) among its weights; "
        f"expected layers.{num_layers}.eh_proj.weight or mtp.fc.weight, as many of DeepSeek's, "
        "GLM's and Qwen's models have. drafter.mtp.path names another folder; or draft otherwise"
    )


def _in_full(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without the scales of blocks that fp8 weights are stored with: multiplied, in bfloat16."""
    sizes = (config.get("quantization_config") or {}).get("weight_block_size") or _FP8_BLOCK
    full = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SCALE)}
    for name in tensors.keys() - full.keys():
        weight, scale = tensors.get(name.removesuffix(_SCALE)), tensors[name].float()
        if weight is not None and weight.ndim == scale.ndim == 2:
            for dim, size in enumerate(sizes):
                scale = scale.repeat_interleave(size, dim).narrow(dim, 0, weight.shape[dim])
            full[name.removesuffix(_SCALE)] = (weight.float() * scale).to(torch.bfloat16)
        else:  # of another form: it will be said that it is not known
            full[name] = scale
    return full


def _named(name: str, names: Mapping[str, str], rest: str) -> str:
    for there, here in names.items():
        if name.startswith(there):
            return here + name.removeprefix(there)
    return rest + name


def _known(name: str, renamed: Callable[[str], str]) -> str:
    if not name.startswith(_BLOCK):
        return name
    return _BLOCK + renamed(name.removeprefix(_BLOCK))


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts that are stored one by one in the form of transformers' modules, side by side."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensors.items():
        found = _EXPERT.fullmatch(name)
        if found is None:
            joined[name] = tensor
        else:
            parts.setdefault(found[1], {})[int(found[2]), found[3]] = tensor
    for name, own in parts.items():
        numbers = sorted({number for number, _ in own})
        if len(own) != 3 * len(numbers):
            raise ModelError(f"{name}: expected a gate_proj, an up_proj and a down_proj of each")
        gates = [torch.cat([own[n, "gate_proj"], own[n, "up_proj"]]) for n in numbers]
        joined[f"{name}.gate_up_proj"] = torch.stack(gates)
        joined[f"{name}.down_proj"] = torch.stack([own[n, "down_proj"] for n in numbers])
    return joined
