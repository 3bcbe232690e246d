"""Medusa heads, trained with the target frozen (Medusa-1, arXiv 2401.10774, section 2.2.1)."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspec.drafters.heads import TargetEnds
from mmspec.drafters.medusa import MedusaHead, MedusaHeadConfig, save
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.heads.batch import Batch
from mmspec.training.heads.method import Losses, as_stored
from mmspec.training.heads.soft import summed_over_tokens
from mmspec.training.heads.target_head import head_weight


class MedusaMethod:
    """Head k says the token k + 2 places after the one whose state it reads:

    L = sum_k decay^(k + 1) CE(head_k(h_t), x_(t + k + 2))        (eq. 1, decay 0.8)
    """

    kv_layer = None
    rate = 1e-3

    def __init__(
        self,
        target: Target,
        *,
        num_heads: int = 5,
        num_layers: int = 1,
        loss_decay: float = 0.8,
        own_heads: bool = True,
    ) -> None:
        """`own_heads`: each head has a matrix of its own over the vocabulary, which begins as the
        target's; without, all speak through the target's own head, and are small. Raises
        ConfigError."""
        if num_heads < 1 or num_layers < 1:
            raise ConfigError(
                f"train.medusa: num_heads={num_heads}, num_layers={num_layers}: expected 1 or more"
            )
        hidden = target.model.config.get_text_config(decoder=True).hidden_size
        config = MedusaHeadConfig(
            hidden, target.vocab_size, num_heads, num_layers, has_own_heads=own_heads
        )
        self._ends = TargetEnds(target)
        self.module = MedusaHead(config).to(self._ends.device, torch.float32)
        if own_heads:
            self.module.say_as(head_weight(target))
        self.taps = frozenset([target.last_tap])
        self.depth = num_heads
        self._tap = target.last_tap
        self._decay = loss_decay

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The mean over learned tokens of each head's cross-entropy, weighted by depth."""
        hidden = batch.hidden[self._tap].float()
        total, parts = hidden.new_zeros(()), {}
        for depth in range(self.depth):
            ids, learned = batch.ahead(depth + 2)
            loss = summed_over_tokens(
                partial(self._cross_entropy, depth), hidden[learned], ids[learned]
            )
            mean = loss / batch.num_learned(depth + 2)
            total = total + self._decay ** (depth + 1) * mean
            parts[f"head {depth + 1}"] = mean.detach()
        return Losses(total, parts)

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        hidden = batch.hidden[self._tap].float()
        return torch.stack([self._said(n, hidden).topk(top_k).indices for n in range(self.depth)])

    def save(self, folder: Path, *, dtype: torch.dtype) -> None:
        save(as_stored(self.module, dtype), folder)

    def _cross_entropy(self, depth: int, hidden: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(self._said(depth, hidden).float(), ids, reduction="sum")

    def _said(self, depth: int, hidden: Tensor) -> Tensor:
        """(..., vocab) by one head."""
        said = self.module[depth](hidden)
        return said if self.module.config.has_own_heads else self._ends.logits(said)
