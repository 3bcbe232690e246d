"""Published DFlash folders.

z-lab, speculators  fc, hidden_norm, norm, layers.N.*
transformers        encoder.fc, encoder.output_norm_enc, norm, layers.N.*
"""

import re
from pathlib import Path

import torch

from mmspec.drafters.dflash.config import DFlashConfig
from mmspec.drafters.dflash.module import DFlashHead
from mmspec.drafters.heads.folder import HeadFolder, take
from mmspec.errors import ConfigError

# What is computed, and what is the target's own.
_LEFT_OUT = re.compile(r"^(rotary_emb|verifier_\w+|embed_tokens|lm_head)\.|^(d2t|t2d|mask_hidden)$")
_RENAMED = {
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
}


def load(folder: str | Path, *, revision: str | None = None) -> DFlashHead:
    """The head of a folder or hub name, on the CPU in the dtype that it is stored in. Raises
    ModelError for files that cannot be read, ConfigError for what is no such head."""
    found, who = HeadFolder.read(folder, revision=revision), str(folder)
    config = DFlashConfig.read(found.config, who=who)
    drafted = found.config.get("draft_vocab_size") or config.block.vocab_size
    if drafted != config.block.vocab_size:
        raise ConfigError(
            f"{who}: it drafts {drafted} of {config.block.vocab_size} tokens by an lm_head of its "
            "own; expected a head that speaks through the target's"
        )
    named = {re.sub(r"^model\.", "", name): tensor for name, tensor in found.tensors.items()}
    tensors = {_RENAMED.get(n, n): t for n, t in named.items() if not _LEFT_OUT.search(n)}
    with torch.device("meta"):
        head = DFlashHead(config)
    head.load_state_dict(take(tensors, head.state_dict(), who=who), assign=True)
    return head.requires_grad_(False).eval()
