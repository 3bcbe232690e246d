"""Batch: some texts, padded on the right, with what the target says of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer of the target, as its own attention reads them (rotated)."""

    keys: Tensor  # (batch, kv_heads, seq, head_dim)
    values: Tensor


@dataclass(frozen=True)
class Batch:
    """All tensors lie on the target's device; hidden states and KV in the target's dtype."""

    ids: Tensor  # (batch, seq) int64; padding is 0
    learned: Tensor  # (batch, seq) bool: tokens that a head shall be able to say; never padding
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # tap -> (batch, seq, hidden)
    kv: LayerKV | None = None
    offsets: Tensor | None = None  # (batch, planes) int64, beside `kv` alone: what a token behind
    # the prompt counts as in the target, less its index
    counts: tuple[int, ...] = ()  # of a whole training step, as `learned_counts`

    def ahead(self, steps: int) -> tuple[Tensor, Tensor]:
        """(ids, learned), (batch, seq) each: of the token `steps` after each; behind the end
        nothing is learned."""
        return shifted(self.ids, steps), shifted(self.learned, steps)

    def num_learned(self, steps: int) -> int:
        """What a loss over the tokens `steps` ahead is divided by, so that the losses of all the
        batches of a training step add up to a mean: a batch by itself is a step."""
        counts = self.counts or learned_counts(self.learned.cpu().numpy())
        return max(sum(counts[steps:]), 1)


def learned_counts(texts: Iterable[NDArray[np.bool_]]) -> tuple[int, ...]:
    """(seq,) how many of the texts' tokens are learned at each place; `texts`: (tokens,) each."""
    rows = list(texts)
    counts = np.zeros(max(map(len, rows)), np.int64)
    for learned in rows:
        counts[: len(learned)] += learned
    return tuple(counts.tolist())


def shifted(values: Tensor, steps: int) -> Tensor:
    """(batch, seq, ...) moved left by `steps`, zeros behind its end."""
    return torch.cat([values[:, steps:], torch.zeros_like(values[:, :steps])], dim=1)
