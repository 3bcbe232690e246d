"""Rung: one way to compute tree attention; the ladder holds them, fastest first."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.reach import Reach


@dataclass(frozen=True)
class LayerRule:
    """What a layer's attention does to its scores."""

    reach: Reach
    scaling: float
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    sinks: Tensor | None = None  # (heads,) a score that takes weight and gives no value


class Rung(Protocol):
    """One backend of `tree_attention`, which says what its arguments are."""

    name: str
    is_graph_safe: bool  # reads the call's tensors alone: a captured launch holds for other values

    def missing(self) -> str:
        """What must be there before it can run at all; "" where all is. Imports it."""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        """Whether it computes such a call, all being there."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        """(batch, nodes, heads, head_dim)"""
