"""FeatureHead: what a head that reads features is to a forward over a cache."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmspec.attention import Reach
from mmspec.drafters.heads.attention import Attend


class HeadStates(NamedTuple):
    """What a head says of some tokens, each (batch, seq, hidden)."""

    features: Tensor  # that their children read
    read: Tensor  # that logits are made of


class FeatureHead(Protocol):
    """A head that has all it needs: its weights, and the target's ends where it borrows them."""

    @property
    def reaches(self) -> Sequence[Reach]:
        """Of each of its layers."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> HeadStates:
        """`ids` and `positions` (batch, seq) int64, `features` (batch, seq, hidden)"""

    def logits(self, read: Tensor) -> Tensor:
        """(..., hidden) -> (..., own vocab)"""

    def over_target(self, logits: Tensor) -> Tensor:
        """(nodes, own vocab) -> (nodes, vocab) over the target's vocabulary, -inf for what is never
        drafted"""
