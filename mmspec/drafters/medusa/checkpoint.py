"""Medusa heads on disk: read as they are published, written as the authors write them.

FasterDecoding   medusa_lm_head.pt or .safetensors: 0.0.linear.weight, 0.0.linear.bias, 0.1.weight
TGI              the same; of its second version the lm_heads are missing, the target's speaks
vLLM             model.safetensors: blocks.0.layers.0.weight, lm_heads.0.weight, perhaps token_map
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmspec.drafters.heads.folder import WEIGHTS, HeadFolder, take
from mmspec.drafters.medusa.config import MedusaHeadConfig
from mmspec.drafters.medusa.module import MedusaHead
from mmspec.errors import ConfigError

_WRITTEN = "medusa_lm_head.safetensors"
_READ = (_WRITTEN, "medusa_lm_head.pt", *WEIGHTS)
_PREFIX = re.compile(r"^(module\.)?(medusa_heads?\.)?(heads\.)?")
_VLLM_BLOCK = re.compile(r"^blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)$")
_VLLM_HEAD = re.compile(r"^lm_heads\.(\d+)\.weight$")
_BLOCK = re.compile(r"^(\d+)\.(\d+)\.linear\.(weight|bias)$")
_HEAD = re.compile(r"^(\d+)\.\d+\.weight$")


def load(folder: str | Path, *, revision: str | None = None) -> MedusaHead:
    """The heads of a folder or hub name, on the CPU in the dtype that they are stored in. How many
    there are, and how large, is read off the weights: some published config.json say otherwise.
    Raises ModelError for files that cannot be read, ConfigError for what are no Medusa heads."""
    found = HeadFolder.read(folder, revision=revision, weights=_READ)
    blocks, lm_heads, token_map = _published(found.tensors)
    if "0.0.linear.weight" not in blocks:
        raise ConfigError(
            f"{folder}: no Medusa heads there; expected weights such as 0.0.linear.weight or "
            f"blocks.0.layers.0.weight, got {', '.join(sorted(found.tensors)[:3]) or 'none'}"
        )
    if found.config.get("original_lm_head"):  # they speak through the target's
        lm_heads, token_map = {}, None
    places = [match for key in blocks if (match := _BLOCK.match(key))]
    num_heads = 1 + max(int(place[1]) for place in places)
    num_layers = 1 + max(int(place[2]) for place in places)
    vocab_size = found.config.get("vocab_size")
    if token_map is not None and lm_heads:
        if vocab_size is None:
            raise ConfigError(
                f"{folder}: a token_map, but no vocab_size in config.json; expected the target's"
            )
        _check_map(token_map, vocab_size, who=str(folder))
        if next(iter(lm_heads.values())).shape[0] > token_map.shape[0]:
            lm_heads = {head: weight[token_map] for head, weight in lm_heads.items()}
    elif lm_heads:
        vocab_size = next(iter(lm_heads.values())).shape[0]
    config = MedusaHeadConfig(
        hidden_size=blocks["0.0.linear.weight"].shape[0],
        vocab_size=vocab_size,
        num_heads=num_heads,
        num_layers=num_layers,
        has_bias="0.0.linear.bias" in blocks,
        has_own_heads=bool(lm_heads),
        num_mapped=None if token_map is None else token_map.shape[0],
        base_model=str(found.config.get("base_model_name_or_path") or ""),
    )
    state = blocks | {f"{head}.{num_layers}.weight": w for head, w in lm_heads.items()}
    if token_map is not None:
        state["token_map"] = token_map
    with torch.device("meta"):
        made = MedusaHead(config)
    made.load_state_dict(take(state, made.state_dict(), who=str(folder)), assign=True)
    return made.requires_grad_(False).eval()


def save(head: MedusaHead, folder: str | Path) -> None:
    """Writes config.json and medusa_lm_head.safetensors, as the authors' own tools and
    text-generation-inference read them, in the heads' dtype."""
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    HeadFolder.write(folder, head.config.as_json, state, weights=_WRITTEN)


def _check_map(token_map: Tensor, vocab_size: int, *, who: str) -> None:
    if not bool(((token_map >= 0) & (token_map < vocab_size)).all()):
        raise ConfigError(
            f"{who}: token_map leads to tokens {int(token_map.min())} to {int(token_map.max())}, "
            f"expected ids of a vocabulary of {vocab_size}"
        )


def _published(
    stored: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[int, Tensor], Tensor | None]:
    """The blocks under the authors' keys, the lm_heads by their heads, and the token map. What says
    nothing of a head, as in a file that holds the target too, is left out."""
    blocks, lm_heads, token_map = dict[str, Tensor](), dict[int, Tensor](), None
    for name, tensor in stored.items():
        key = _PREFIX.sub("", name, count=1)
        if match := _VLLM_BLOCK.match(key):
            blocks[f"{match[1]}.{match[2]}.linear.{match[3]}"] = tensor
        elif _BLOCK.match(key):
            blocks[key] = tensor
        elif match := _VLLM_HEAD.match(key) or _HEAD.match(key):
            lm_heads[int(match[1])] = tensor
        elif key == "token_map":
            token_map = tensor.long()
    return blocks, lm_heads, token_map if lm_heads else None
