"""Proposal: what a drafter has proposed, kept until the target's choices teach what was right."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.drafters.walked import walked
from mmspec.tree import TokenTree

_FIRST = "first"  # the bucket of all first children
_BELIEVED = 0.8  # of them, before anything is known
Place = TypeVar("Place")  # what a node's children are found by


class Choice(NamedTuple, Generic[Place]):
    """A node that may be proposed."""

    token: int
    rate: float  # how likely it is accepted, if its parent is
    bucket: Hashable  # of the calibration
    place: Place


@dataclass(frozen=True)
class Proposal:
    """A tree, and the calibration's bucket of each node."""

    tree: TokenTree
    buckets: tuple[Hashable, ...]  # (nodes,) None for a node that says nothing

    def teach(self, calibration: Calibration, tokens: Sequence[int]) -> None:
        """Of every child on the way that the target's `tokens` took, whether it was chosen: scored
        or not, for the target has spoken of all of them."""
        tree, buckets = self.tree, self.buckets
        for node, token in walked(tree, tokens):
            children = tree.children(node)
            if children and buckets[children[0]] is not None:
                calibration.observe(_FIRST, tree.tokens[children[0]] == token)
            for child in children:
                if buckets[child] is not None:
                    calibration.observe(buckets[child], tree.tokens[child] == token)


class ProposalBuilder:
    """A proposal that grows node by node, parents first."""

    def __init__(self, token: int, drafter: str) -> None:
        """Node 0 alone, which holds `token`."""
        self.tokens, self.parents, self._rates = [token], [-1], [1.0]
        self._buckets: list[Hashable] = [None]
        self._child_of: dict[tuple[int, int], int] = {}
        self._drafter = drafter

    def __len__(self) -> int:
        """Nodes, node 0 among them."""
        return len(self.tokens)

    def child(self, parent: int, token: int) -> int | None:
        """The child of a node that holds `token`, or None."""
        return self._child_of.get((parent, token))

    def add(self, parent: int, token: int, rate: float, bucket: Hashable = None) -> int:
        """A new child of a node; returns its number."""
        node = self._child_of[parent, token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self._rates.append(rate)
        self._buckets.append(bucket)
        return node

    def add_likeliest(
        self,
        top: Place,
        below: Callable[[Place], Iterable[Choice[Place]]],
        *,
        budget: int,
        min_confidence: float,
    ) -> list[Place]:
        """Adds the `budget` nodes that are likeliest to be accepted with all above them, as far as
        that is `min_confidence`; among equals those whose parents came first. `below`: what may
        follow node 0, at `top`, or any other, the likeliest first. Returns each node's place."""
        places, order = [top], count()
        # (-cumulative confidence, parent, order, the parent's likelihood, choice, those after it)
        waiting: list[tuple[float, int, int, float, Choice[Place], Iterator[Choice[Place]]]] = []

        def wait(parent: int, likely: float, siblings: Iterator[Choice[Place]]) -> None:
            choice = next(siblings, None)
            if choice is not None and likely * choice.rate >= min_confidence:
                entry = (-likely * choice.rate, parent, next(order), likely, choice, siblings)
                heappush(waiting, entry)

        wait(0, 1.0, iter(below(top)))
        while waiting and len(self.tokens) <= budget:
            cumulative, parent, _, likely, choice, siblings = heappop(waiting)
            node = self.add(parent, choice.token, choice.rate, choice.bucket)
            places.append(choice.place)
            wait(node, -cumulative, iter(below(choice.place)))
            wait(parent, likely, siblings)
        return places

    def built(self, *, q: Tensor | None = None, scouts: Iterable[int] = ()) -> Proposal:
        """`q` (nodes, vocab), where the nodes were drawn."""
        tree = TokenTree.drafted(
            self.tokens, self.parents, self._rates, self._drafter, q=q, scouts=scouts
        )
        return Proposal(tree, tuple(self._buckets))


def first_rate(calibration: Calibration) -> float:
    """How often a node's first child was chosen, of those that a proposal has taught."""
    return calibration.rate(_FIRST, _BELIEVED)
