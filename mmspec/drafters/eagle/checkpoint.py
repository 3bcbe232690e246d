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
from mmspec.errors import ConfigError

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
        tensors |= _vocabulary(tensors, config, who=who)
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


def _vocabulary(
    tensors: Mapping[str, Tensor], config: EagleHeadConfig, *, who: str
) -> dict[str, Tensor]:
    """d2t and t2d, either of which says the other; neither is needed where nothing is left out."""
    size, vocab_size = config.draft_vocab_size, config.block.vocab_size
    steps, name = torch.arange(size), "d2t"
    if "d2t" in tensors:
        offsets = tensors["d2t"].long()
    elif "t2d" in tensors:
        name, known = "what is True in t2d", tensors["t2d"].bool().nonzero().squeeze(1)[:size]
        offsets = known - steps[: known.shape[0]]
    elif size == vocab_size:
        offsets = torch.zeros_like(steps)
    else:
        raise ConfigError(
            f"{who}: {size} of the target's {vocab_size} tokens are drafted, but no d2t says which"
        )
    if offsets.shape != (size,):
        raise ConfigError(f"{who}: {name} has the shape {tuple(offsets.shape)}, expected ({size},)")
    ids = offsets + steps
    if not bool(((ids >= 0) & (ids < vocab_size)).all()):
        raise ConfigError(
            f"{who}: d2t leads to tokens {int(ids.min())} to {int(ids.max())}, expected ids of a "
            f"vocabulary of {vocab_size}"
        )
    known = torch.zeros(vocab_size, dtype=torch.bool)
    known[ids] = True
    return {"d2t": offsets, "t2d": known}
