"""Sketch: one row's tree before what its heads say is read, and its nodes while it grows."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from mmspec.drafters.proposal import Proposal
from mmspec.tree import TokenTree


class Sketch(Protocol):
    """One row's tree before what its heads say is read."""

    @property
    def unread(self) -> Sequence[Tensor]:
        """What `grow` has to know."""

    def grow(self, known: Iterator[list[list[float]]]) -> Proposal:
        """The tree, by the values of `unread`, the next of `known`."""


class SketchNodes:
    """Nodes below node 0, parents first."""

    def __init__(self, token: int, drafter: str) -> None:
        self._tokens, self._parents, self._rates = [token], [-1], [1.0]
        self._buckets: list[Hashable] = [None]
        self._drafter = drafter

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int, parent: int, rate: float, bucket: Hashable) -> int:
        self._tokens.append(token)
        self._parents.append(parent)
        self._rates.append(rate)
        self._buckets.append(bucket)
        return len(self._tokens) - 1

    @property
    def grown(self) -> Proposal:
        return self._grown(None)

    def with_q(self, q: Tensor) -> Proposal:
        """`q` (nodes, vocab)."""
        return self._grown(q)

    def _grown(self, q: Tensor | None) -> Proposal:
        names = ("", *[self._drafter] * (len(self) - 1))
        tree = TokenTree(tuple(self._tokens), tuple(self._parents), tuple(self._rates), names, q)
        return Proposal(tree, tuple(self._buckets))
