"""Growing trees: all rows together, one forward of the draft model a level."""

import time
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from mmspec.drafters.forwards import ForwardCost
from mmspec.kv import KVCache
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.tree import TokenTree


class Child(NamedTuple):
    """A token that may follow a node."""

    token: int
    rate: float  # estimated probability that the target chooses it after its parent
    bucket: Hashable = None  # what counts as alike when it turns out


class Branching(Protocol):
    """How one row's tree grows."""

    def children(self, logits: Tensor, depth: int) -> list[list[Child]]:
        """The children, at `depth`, of each node that `logits` (nodes, vocab) were scored for."""

    def goes_on(self, growth: "Growth", level: Sequence[int]) -> list[int]:
        """Which nodes of the newest level get children of their own."""


class Growth:
    """One row's tree while it grows.

    The draft model's cache holds the row's text up to `chain`, whose last token is node 0; the
    keys of `chain` and of the nodes that got children are written behind it, in that order.
    """

    def __init__(
        self, placement: Placement, chain: Sequence[int], branching: Branching, drafter: str
    ) -> None:
        self.placement = placement
        self.tokens, self.parents = [chain[-1]], [-1]
        self.rates, self.cumulative = [1.0], [1.0]
        self.buckets: list[Hashable] = [None]
        self.expanded: list[int] = []  # nodes that were scored, in this order
        self.num_written = 0
        self._frontier, self._depth = [0], 0
        self.branching = branching
        self._drafter = drafter
        self._slots = {0: len(chain) - 1}  # node -> its place among the written tokens
        self._chain = list(chain)
        self._chain_parents = list(range(-1, len(chain) - 1))

    @property
    def is_growing(self) -> bool:
        return bool(self._frontier)

    @property
    def written(self) -> TokenTree:
        """All that is written behind the row's text, or is to be by the next forward."""
        nodes = len(self._chain)
        return TokenTree(
            tuple(self._chain), tuple(self._chain_parents), (1.0,) * nodes, ("",) * nodes
        )

    @property
    def tree(self) -> TokenTree:
        """All nodes, also those that were not scored."""
        names = ("", *[self._drafter] * (len(self.tokens) - 1))
        return TokenTree(tuple(self.tokens), tuple(self.parents), tuple(self.rates), names)

    def branch(self, logits: Tensor) -> None:
        """One level more. `logits` (nodes, vocab) of what was written last: the frontier's come
        last of all."""
        self.num_written = len(self._chain)
        self.expanded += self._frontier
        self._depth += 1
        children = self.branching.children(logits[-len(self._frontier) :], self._depth)
        level: list[int] = []
        for parent, born in zip(self._frontier, children, strict=True):
            for child in born:
                level.append(len(self.tokens))
                self.tokens.append(child.token)
                self.parents.append(parent)
                self.rates.append(child.rate)
                self.cumulative.append(self.cumulative[parent] * child.rate)
                self.buckets.append(child.bucket)
        self._frontier = self.branching.goes_on(self, level)
        for node in self._frontier:
            self._slots[node] = len(self._chain)
            self._chain.append(self.tokens[node])
            self._chain_parents.append(self._slots[self.parents[node]])

    @property
    def depth(self) -> int:
        """Levels below node 0."""
        return self._depth


def grow(model: Target, cache: KVCache, growths: Sequence[Growth], *, cost: ForwardCost) -> None:
    """Grows all trees to their end; rows that have ended drop out. Tells `cost` what it took."""
    begun = time.perf_counter()
    while growing := [growth for growth in growths if growth.is_growing]:
        scores = model.score(
            [growth.written for growth in growing],
            cache,
            [growth.placement for growth in growing],
            written=[growth.num_written for growth in growing],
        )
        for growth, score in zip(growing, scores, strict=True):
            growth.branch(score.logits)
    cost.observe(time.perf_counter() - begun, sum(growth.depth for growth in growths))
