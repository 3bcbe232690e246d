"""Batch: some texts, padded on the right, with what the target says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
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
    is_token: Tensor  # (batch, seq) bool; False: padding
    learned: Tensor  # (batch, seq) bool: tokens that a head shall be able to say
    lengths: tuple[int, ...]  # (batch,) tokens
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # tap -> (batch, seq, hidden)
    kv: LayerKV | None = None
    offsets: Tensor | None = None  # (batch, planes) int64, beside `kv` alone: what a token behind
    # the prompt counts as in the target, less its index

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def ahead(self, steps: int) -> tuple[Tensor, Tensor]:
        """(ids, learned), (batch, seq) each: of the token `steps` after each; behind the end
        nothing is learned."""
        return shifted(self.ids, steps), shifted(self.learned, steps)


def shifted(values: Tensor, steps: int) -> Tensor:
    """(batch, seq, ...) moved left by `steps`, zeros behind its end."""
    if steps >= values.shape[1]:
        return torch.zeros_like(values)
    kept = values[:, steps:]
    return torch.cat([kept, values.new_zeros(values.shape[0], steps, *values.shape[2:])], dim=1)
