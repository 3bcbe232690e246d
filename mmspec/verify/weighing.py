"""Weighing: what a rule that accepts by chance asks of the logits, for many nodes at once.

It is all tensors: nothing waits for the device until one copy brings chances and choices to the
host, where the walk goes on by them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.tree import TokenTree
from mmspec.uploads import upload


@dataclass(frozen=True)
class Nodes:
    """Some nodes of a tree, parents before children, or those of several trees in turn."""

    scores: Tensor  # (nodes, vocab) the target's logits after the processors
    drafted: Sequence[Sequence[int]]  # (nodes,) the tokens of each node's children, in their order
    q: Tensor | None = None  # (nodes, vocab) what the children were drawn from

    @staticmethod
    def of(tree: TokenTree, nodes: Sequence[int], scores: Tensor) -> "Nodes":
        """`scores` (nodes, vocab) of the `nodes` of one tree."""
        drafted = [[tree.tokens[child] for child in tree.children(node)] for node in nodes]
        q = None if tree.q is None else _rows(tree.q, nodes, scores.device)
        return Nodes(scores, drafted, q)

    @staticmethod
    def joined(some: "Sequence[Nodes]", scores: Tensor) -> "Nodes":
        """Those of several trees, whose `scores` (nodes, vocab) lie one after the other."""
        q = [nodes.q for nodes in some if nodes.q is not None]
        drafted = list(chain.from_iterable(nodes.drafted for nodes in some))
        return Nodes(scores, drafted, torch.cat(q) if len(q) == len(some) else None)

    @property
    def p(self) -> Tensor:
        """(nodes, vocab) float64: what the target samples from."""
        return torch.softmax(self.scores.double(), dim=-1)

    @cached_property
    def tokens(self) -> Tensor:
        """(nodes, most children) int64: `drafted`, filled up with token 0."""
        return self._table.clamp(min=0)

    @cached_property
    def is_child(self) -> Tensor:
        """(nodes, most children) bool: what of `tokens` was drafted."""
        return self._table >= 0

    @cached_property
    def _table(self) -> Tensor:
        """`drafted`, filled up with -1."""
        most = max(1, *map(len, self.drafted))
        rows = [[*tokens, *[-1] * (most - len(tokens))] for tokens in self.drafted]
        return upload(rows, self.scores.device)


class Weighed(NamedTuple):
    """What a rule makes of nodes, where their scores lie."""

    chances: Tensor  # (nodes, most children) float64: of each child, that the rule keeps it where
    # it comes to test it; NaN: the tree's q cannot be what it was drawn from
    rests: Tensor  # (nodes, vocab) float64, logarithms: of the distribution, but for a constant,
    # that the next token is drawn from where the walk ends at the node


Weigh = Callable[[Nodes], Weighed]


class Odds(NamedTuple):
    """What was weighed of one node, on the host."""

    chances: Sequence[float]  # (children,)
    draw: Callable[[], int]  # the token that its rest gives by the noise of its place; asked once,
    # when the node's own token is the last that was chosen
    seen: tuple[Tensor, Tensor] | None = None  # (vocab,) logits and scores, where they are recorded


def _rows(q: Tensor, nodes: Sequence[int], device: torch.device) -> Tensor:
    if q.device != device:
        q = upload(q, device)
    if list(nodes) == list(range(q.shape[0])):
        return q
    return q.index_select(0, upload(list(nodes), device))
