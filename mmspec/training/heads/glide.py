"""GliDe: a small draft model that glimpses at the target's keys (arXiv 2402.02082, section 3)."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspec.drafters.glide import GlideHead, GlideHeadConfig
from mmspec.drafters.glide.checkpoint import save
from mmspec.drafters.heads import TargetEnds
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.heads.batch import Batch
from mmspec.training.heads.method import Losses, as_stored
from mmspec.training.heads.soft import summed_over_tokens


class GlideMethod:
    """The head says the next token of its own text, cross-entropy, and sees the target's keys of
    the tokens before the speculation alone: texts are cut into speculations of random lengths, and
    each token sees what stands before its own (the block-wise mask, figure 3)."""

    rate = 5e-4

    def __init__(self, target: Target, *, max_drafts: int = 5, layers: int = 1) -> None:
        """Raises ConfigError."""
        if max_drafts < 1 or layers < 1:
            raise ConfigError(
                f"train.glide: max_drafts={max_drafts}, layers={layers}: expected 1 or more"
            )
        config = replace(
            GlideHeadConfig.of_target(target, num_layers=layers), block_size=max_drafts
        )
        self._ends = TargetEnds(target)
        self.module = GlideHead(config).to(self._ends.device, torch.float32)
        self.taps = frozenset[int]()
        self.kv_layer: int | None = config.target_layers[0]
        self.depth = max_drafts

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The mean over learned tokens."""
        rows, seq = batch.ids.shape
        lengths = torch.randint(1, self.depth + 1, (rows, seq), generator=generator)
        ids, learned = batch.ahead(1)
        states = self._states(batch, lengths.to(batch.ids.device))

        def of_tokens(states: Tensor, ids: Tensor) -> Tensor:
            return F.cross_entropy(self._ends.logits(states).float(), ids, reduction="sum")

        total = summed_over_tokens(of_tokens, states[learned], ids[learned])
        return Losses(total / batch.num_learned(1))

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        """By speculations of the longest length, begun at every place: a token's d-th neighbour is
        drafted where its speculation began d tokens before it."""
        rows, seq = batch.ids.shape
        found = batch.ids.new_full((self.depth, rows, seq, top_k), -1)
        places = torch.arange(seq, device=batch.ids.device)
        for phase in range(self.depth):
            blocks = [phase] * (phase > 0) + [self.depth] * (seq // self.depth + 1)
            lengths = torch.tensor([blocks] * rows, device=batch.ids.device)
            best = self._ends.logits(self._states(batch, lengths)).topk(top_k).indices
            begun = places - (places - phase) % self.depth  # of each token's speculation
            for depth in range(self.depth):
                # Node 0 is the first of a speculation; what was read ends before it.
                said = places[(places - begun == depth) & (begun > 0)]
                found[depth, :, begun[said] - 1] = best[:, said]
        return found

    def save(self, folder: Path, *, dtype: torch.dtype) -> None:
        save(as_stored(self.module, dtype), folder)

    def _states(self, batch: Batch, lengths: Tensor) -> Tensor:
        """(batch, seq, hidden) that the next token is said from."""
        assert batch.kv is not None
        return self.module(
            self._ends.embed(batch.ids).to(self._ends.device, torch.float32),
            batch.kv.keys,
            batch.kv.values,
            lengths=lengths,
            offsets=batch.offsets,
        )
