"""Published EAGLE folders: read whoever wrote them, written as SafeAILab and SpecForge do.

SafeAILab, SpecForge   fc.*, layers.N.* (EAGLE-1), midlayer.* (EAGLE-3), embed_tokens.*, ...
speculators eagle      fusion_fc.*, transformer.*, embedding_layernorm.*, ...
speculators eagle3     layers.0.* with a hidden_norm, fc.*, norm.*, lm_head.*, d2t, t2d
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmspec.drafters.eagle.config import EagleHeadConfig
from mmspec.drafters.eagle.module import EagleHead
from mmspec.drafters.heads.folder import HeadFolder, take
from mmspec.drafters.heads.vocabulary import read_vocabulary

# What training leaves behind, and what is computed.
_LEFT_OUT = re.compile(r"rotary_emb\.|^verifier_|^mask_hidden$|^log_")
_RENAMED = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^fusion_fc\."), "fc."),
    (re.compile(r"^transformer\."), "layers.0."),
    (re.compile(r"^fc_norms\."), "fc_norm."),
)
_MIDDLE = "layers.0.hidden_norm.weight"


def load(folder: str | Path, *, revision: str | None = None) -> EagleHead:
    """The head of a folder or hub name, on the CPU in the dtype that it is stored in. Raises
    ModelError for files that cannot be read, ConfigError for what is no EAGLE head."""
    found = HeadFolder.read(folder, revision=revision)
    who = str(folder)
    tensors = _named(found.tensors)
    config = EagleHeadConfig.read(found.config, tensors.keys(), who=who)
    with torch.device("meta"):
        head = EagleHead(config)
    expected = head.state_dict()
    if config.version == 3:
        size, vocab_size = config.draft_vocab_size, config.block.vocab_size
        tensors |= read_vocabulary(tensors, size=size, vocab_size=vocab_size, who=who)
    for name in ("d2t", "t2d"):  # some EAGLE-1 trainers write them, too
        if name not in expected:
            tensors.pop(name, None)
    head.load_state_dict(take(tensors, expected, who=who), assign=True)
    return head.requires_grad_(False).eval()


def save(head: EagleHead, folder: str | Path) -> None:
    """Writes config.json and model.safetensors."""
    tensors = dict(head.state_dict())
    if head.config.version == 3 and head.config.block.num_layers > 1:
        tensors = {_as_published(name): tensor for name, tensor in tensors.items()}
    HeadFolder.write(folder, head.config.as_json, tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of `EagleHead`."""
    named = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if not _LEFT_OUT.search(name):
            named[name] = tensor
    return {_as_ours(name): t for name, t in named.items()} if _MIDDLE in named else named


def _as_ours(name: str) -> str:
    """EAGLE-3's layers from 0 on -> its first one apart."""
    found = re.match(r"layers\.(\d+)\.(.*)", name)
    if found is None:
        return name
    number = int(found[1])
    return f"midlayer.{found[2]}" if number == 0 else f"layers.{number - 1}.{found[2]}"


def _as_published(name: str) -> str:
    found = re.match(r"layers\.(\d+)\.(.*)", name)
    if found is not None:
        return f"layers.{int(found[1]) + 1}.{found[2]}"
    return re.sub(r"^midlayer\.", "layers.0.", name)
