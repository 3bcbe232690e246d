"""Growth: one row's tree while it grows, a level at a time."""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmspec.drafters.proposal import Proposal, ProposalBuilder
from mmspec.state import Placement
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class Child(NamedTuple):
    """A token that may follow a node."""

    token: int
    rate: float  # estimated probability that the target chooses it after its parent
    bucket: Hashable = None  # what counts as alike when it turns out


class Candidates(NamedTuple):
    """Which tokens may follow some nodes, where their logits lie."""

    tokens: Tensor  # (nodes, most children) int64, each node's in their order
    beliefs: Tensor  # (nodes, most children) what is thought of each; 0: not a child
    q: Tensor | None = None  # (nodes, vocab) what they were drawn from, if they were


class Branching(Protocol):
    """How one row's tree grows."""

    @property
    def is_set(self) -> bool:
        """Whether the tree is a chain whose length no token and no belief can change."""

    def find(self, logits: Tensor, depths: Sequence[int], draws: Sequence[int]) -> Candidates:
        """The candidates for the children, at `depths` (nodes,), of each node that `logits` (nodes,
        vocab) were scored for. `draws` (nodes,) tell apart what is drawn for one tree. Nothing
        waits for the device."""

    def children(self, tokens: Sequence[int], beliefs: Sequence[float]) -> list[Child]:
        """The children of one node, of its candidates."""

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
        self.branching = branching
        self._drafter = drafter
        self._text = tuple(chain)
        self._unsettled: list[Candidates] = []  # of levels whose tokens were not read
        self._drawn_from: list[Tensor] = []  # (nodes, vocab) of each level, where it was drawn
        self._begin()

    def _begin(self) -> None:
        self._nodes = ProposalBuilder(self._text[-1], self._drafter)
        self.cumulative = [1.0]  # of each node, how likely all down to it is accepted
        self.expanded: list[int] = []  # nodes that were scored, in this order
        self.num_written = 0
        self._is_guess = False
        self._frontier, self.depth = [0], 0  # levels below node 0
        self._slots = {0: len(self._text) - 1}  # node -> its place among the written tokens
        self._chain = list(self._text)
        self._chain_parents = list(range(-1, len(self._text) - 1))

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
    def proposal(self) -> Proposal:
        """All nodes, also those that were not scored."""
        return self._nodes.built()

    def find(self, logits: Tensor) -> Candidates:
        """The candidates for one level more. `logits` (nodes, vocab) of what was written last: the
        frontier's come last of all."""
        count, before = len(self._frontier), len(self.expanded)
        found = self.branching.find(
            logits[-count:], [self.depth + 1] * count, range(before, before + count)
        )
        self._unsettled.append(found)
        if found.q is not None:
            self._drawn_from.append(found.q)
        return found

    def guess(self) -> None:
        """One level more of a tree that is set, its token unknown: `settle` does it anew."""
        self._branch([[0.0]], [[1.0]])
        self._is_guess = True

    @property
    def unsettled(self) -> list[Tensor]:
        """What `settle` has to know."""
        return [tensor for found in self._unsettled for tensor in (found.tokens, found.beliefs)]

    def settle(self, known: Iterator[list[list[float]]]) -> None:
        """Grows by the candidates that were found; takes the values of `unsettled` from `known`."""
        if self._is_guess:
            self._begin()
        for _ in self._unsettled:
            self._branch(next(known), next(known))
        self._unsettled.clear()

    def q(self, vocab_size: int) -> Tensor:
        """(nodes, vocab_size) what a node's children were drawn from; zeros where it has none."""
        drawn = torch.cat(self._drawn_from)
        q = drawn.new_zeros(len(self._nodes), vocab_size)
        q[:, : drawn.shape[1]].index_copy_(0, upload(self.expanded, q.device), drawn)
        return q

    def _branch(self, tokens: list[list[float]], beliefs: list[list[float]]) -> None:
        self.num_written = len(self._chain)
        self.expanded += self._frontier
        self.depth += 1
        level: list[int] = []
        for parent, own, rates in zip(self._frontier, tokens, beliefs, strict=True):
            for child in self.branching.children([int(token) for token in own], rates):
                level.append(self._nodes.add(parent, child.token, child.rate, child.bucket))
                self.cumulative.append(self.cumulative[parent] * child.rate)
        self._frontier = self.branching.goes_on(self, level)
        for node in self._frontier:
            self._slots[node] = len(self._chain)
            self._chain.append(self._nodes.tokens[node])
            self._chain_parents.append(self._slots[self._nodes.parents[node]])
