"""Published DFlash folders.

z-lab, speculators  fc, hidden_norm, norm, layers.N.*; of a reduced vocabulary lm_head, d2t, t2d
transformers        encoder.fc, encoder.output_norm_enc, norm, layers.N.*
"""

import re
from pathlib import Path

import torch

from mmspec.drafters.dflash.config import DFlashConfig
from mmspec.drafters.dflash.module import DFlashHead
from mmspec.drafters.heads.folder import HeadFolder, take
from mmspec.drafters.heads.vocabulary import read_vocabulary

# What is computed, and what is the target's own.
_LEFT_OUT = re.compile(r"^(rotary_emb|verifier_\w+|embed_tokens)\.|^mask_hidden$")
_VOCABULARY = ("lm_head.weight", "d2t", "t2d")
_RENAMED = {
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
}


def load(folder: str | Path, *, revision: str | None = None) -> DFlashHead:
    """The head of a folder or hub name, on the CPU in the dtype that it is stored in. Raises
    ModelError for files that cannot be read, ConfigError for what is no such head."""
    found, who = HeadFolder.read(folder, revision=revision), str(folder)
    config = DFlashConfig.read(found.config, who=who)
    named = {re.sub(r"^model\.", "", name): tensor for name, tensor in found.tensors.items()}
    tensors = {_RENAMED.get(n, n): t for n, t in named.items() if not _LEFT_OUT.search(n)}
    own = {name: tensors.pop(name) for name in _VOCABULARY if name in tensors}
    if config.draft_vocab_size is not None:
        size, vocab_size = config.draft_vocab_size, config.block.vocab_size
        read = read_vocabulary(own, size=size, vocab_size=vocab_size, who=who)
        tensors |= {"d2t": read["d2t"], **{n: t for n, t in own.items() if n == "lm_head.weight"}}
    with torch.device("meta"):
        head = DFlashHead(config)
    head.load_state_dict(take(tensors, head.state_dict(), who=who), assign=True)
    return head.requires_grad_(False).eval()
