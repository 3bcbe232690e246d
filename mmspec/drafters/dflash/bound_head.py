"""BlockHead: a head with what it borrows of its target."""

import torch
from torch import Tensor

from mmspec.drafters.dflash.attention import ByLayer
from mmspec.drafters.dflash.module import DFlashHead
from mmspec.drafters.eagle.bound_head import TappingHead
from mmspec.drafters.heads import Attend, TargetEnds, placed
from mmspec.drafters.heads.vocabulary import over_target, target_ids
from mmspec.errors import ConfigError
from mmspec.kv import KVCache
from mmspec.target import Target


class BlockHead(TappingHead):
    """It reads by the target's embedding and speaks through its lm_head, each as it is stored: what
    the target multiplies, norms or caps there, the head does by figures of its own. One of a
    reduced vocabulary has an lm_head for it."""

    def __init__(self, head: DFlashHead, target: Target, *, dtype: torch.dtype | None) -> None:
        """`dtype` None: the target's. Raises ConfigError for a head of another target."""
        config, ends = head.config, TargetEnds(target)
        _check_fits(head, target, ends)
        ends.scale, ends.cap = config.output_scale, config.softcap
        self.module = placed(head, ends, dtype or ends.dtype).eval()
        lm_head = self.module.lm_head
        super().__init__(self.module, config.reaches, ends, embedding=None, lm_head=lm_head)
        self._target_ids = None if lm_head is None else target_ids(self.module.d2t)
        self._vocab_size = target.vocab_size
        self.config = config
        self.taps = config.layers

    def over_target(self, logits: Tensor) -> Tensor:
        """(..., own vocab) -> (..., vocab) over the target's vocabulary, -inf for what is never
        drafted."""
        return over_target(logits, self._target_ids, self._vocab_size)

    @torch.no_grad()
    def remember(self, joined: Tensor, positions: Tensor, cache: KVCache) -> None:
        """As `DFlashHead.remember`."""
        with self.quick():
            self.module.remember(joined, positions, cache)

    @torch.no_grad()
    def states(self, ids: Tensor, positions: Tensor, causal: Attend, whole: Attend) -> Tensor:
        """Blocks `ids` at `positions`, both (batch, block) int64 -> (batch, block, hidden). By
        `causal` a token sees none behind it, by `whole` the whole block."""
        attend = ByLayer(self.config.is_causal, causal, whole)
        with self.quick():
            embedded = self.embed(ids) * self.config.embedding_scale
            return self.module(embedded, positions, attend)


def _check_fits(head: DFlashHead, target: Target, ends: TargetEnds) -> None:
    config, deepest = head.config, target.last_tap
    rows = getattr(ends.embedding, "num_embeddings", ends.vocab_size)
    for name, is_right, got, expected in (
        ("hidden_size", config.block.hidden_size == ends.hidden_size,
         config.block.hidden_size, f"{ends.hidden_size}, the target's"),
        ("vocab_size", config.block.vocab_size in (0, ends.vocab_size),
         config.block.vocab_size, f"{ends.vocab_size}, the target's"),
        ("num_target_layers", config.num_target_layers in (None, deepest),
         config.num_target_layers, f"{deepest}, as many as the target has"),
        ("hidden states", all(0 <= layer <= deepest for layer in config.layers),
         list(config.layers), f"0 to {deepest}, as the target has {deepest} layers"),
        ("mask_token_id", config.mask_token < rows,
         config.mask_token, f"one of the {rows} tokens of the target's embedding"),
    ):  # fmt: skip
        if not is_right:
            raise ConfigError(
                f"drafter.dflash: the head's {name}: {got}, expected {expected}; take a head that "
                "was trained for this model"
            )
