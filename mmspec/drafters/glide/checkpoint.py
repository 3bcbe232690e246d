"""A head's folder: config.json and model.safetensors, our own or as GliDe's authors wrote them."""

import re
from pathlib import Path

import torch

from mmspec.drafters.glide.config import GlideHeadConfig
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.heads.folder import HeadFolder, take

_LEFT_OUT = re.compile(r"rotary_emb\.")  # computed


def load(folder: str | Path, *, revision: str | None = None) -> GlideHead:
    """The head of a folder or hub name, on the CPU in the dtype that it is stored in. Raises
    ModelError for files that cannot be read, ConfigError for what is no GliDe head."""
    found = HeadFolder.read(folder, revision=revision)
    who = str(folder)
    tensors = {n: tensor for n, tensor in found.tensors.items() if not _LEFT_OUT.search(n)}
    config = GlideHeadConfig.read(found.config, who=who)
    with torch.device("meta"):
        head = GlideHead(config)
    head.load_state_dict(take(tensors, head.state_dict(), who=who), assign=True)
    return head.requires_grad_(False).eval()


def save(head: GlideHead, folder: str | Path) -> None:
    """Writes config.json and model.safetensors."""
    HeadFolder.write(folder, head.config.as_json, head.state_dict())
