"""TokenTree: what a drafter proposes and the target scores in one forward.

    The cat sat on the | mat      node 0 is the last chosen token; its KV is not in the cache yet
                       0 mat      depth 0
                      / \\
             1 beside     2 and   depth 1
               |          |
             3 the      4 slept   depth 2
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmspec.uploads import upload


@dataclass(frozen=True)
class TokenTree:
    """A tree of candidate tokens, parents before children; node 0 is the last chosen token.

    `confidence` of a node estimates the probability that the target chooses it, given that its
    parent was chosen. `q` is there only where every node was drawn from a distribution, and whether
    it is in the tree was settled before: row i is what the children of node i were drawn from, as
    probabilities over the target's vocabulary, after the drafter's warping; the children of a node
    stand in the order they were drawn in, without replacement. The rules that divide by q refuse a
    tree without it (docs/verification.md).

    `scouts` are nodes that are scored for what the target says behind them, whatever is thought of
    their being chosen: pruning takes the others first. With a node all those above it are scouts.
    """

    tokens: tuple[int, ...]  # (nodes,)
    parents: tuple[int, ...]  # (nodes,); -1 for node 0, else smaller than the node's own index
    confidence: tuple[float, ...]  # (nodes,) in [0, 1]; 1 for node 0
    drafters: tuple[str, ...]  # (nodes,) who proposed it; "" for node 0
    q: Tensor | None = field(default=None, compare=False, repr=False)  # (nodes, vocab) floating
    scouts: frozenset[int] = frozenset()  # node 0 is not among them

    @staticmethod
    def root(token: int) -> "TokenTree":
        """The tree of node 0 alone: no draft, plain decoding."""
        tree = TokenTree((token,), (-1,), (1.0,), ("",))
        vars(tree).update(_OF_ROOT)  # one is made for each row and step
        return tree

    @staticmethod
    def chain(
        token: int, draft: Sequence[int], confidence: Sequence[float], drafter: str
    ) -> "TokenTree":
        """Node 0 and one path below it."""
        return TokenTree.drafted(
            (token, *draft), range(-1, len(draft)), (1.0, *confidence), drafter
        )

    @staticmethod
    def drafted(
        tokens: Sequence[int],
        parents: Sequence[int],
        confidence: Sequence[float],
        drafter: str,
        *,
        q: Tensor | None = None,
        scouts: Iterable[int] = (),
    ) -> "TokenTree":
        """A tree whose nodes below node 0 are all `drafter`'s."""
        names = ("", *[drafter] * (len(tokens) - 1))
        return TokenTree(
            tuple(tokens), tuple(parents), tuple(confidence), names, q, frozenset(scouts)
        )

    @property
    def num_nodes(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """True for one path: no node has two children."""
        return self.parents == tuple(range(-1, self.num_nodes - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """(nodes,) distance from node 0."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def cumulative_confidence(self) -> tuple[float, ...]:
        """(nodes,) estimated probability that the whole path to the node is accepted."""
        cumulative = [1.0]
        for parent, confidence in zip(self.parents[1:], self.confidence[1:], strict=True):
            cumulative.append(cumulative[parent] * confidence)
        return tuple(cumulative)

    @cached_property
    def _child_of(self) -> dict[tuple[int, int], int]:
        pairs = zip(self.parents, self.tokens, strict=True)
        return {pair: node for node, pair in enumerate(pairs) if node}

    @cached_property
    def _children(self) -> list[list[int]]:
        children: list[list[int]] = [[] for _ in self.tokens]
        for child, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(child)
        return children

    def children(self, node: int) -> list[int]:
        """The children of `node`, in their order."""
        return self._children[node].copy()

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that holds `token`, or None."""
        return self._child_of.get((node, token))

    @cached_property
    def ancestor_mask(self) -> NDArray[np.bool_]:
        """(nodes, nodes): [i, j] is True where j is i or an ancestor of i."""
        mask = np.eye(self.num_nodes, dtype=np.bool_)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask

    def path_to(self, node: int) -> tuple[int, ...]:
        """The nodes from node 0 down to `node`, both included."""
        path = [node]
        while path[-1]:
            path.append(self.parents[path[-1]])
        return tuple(reversed(path))

    def prune(self, budget: int, *, min_confidence: float = 0.0) -> "TokenTree":
        """The connected subtree of the `budget` drafted nodes of highest cumulative confidence
        (EAGLE-2's re-ranking, arXiv 2406.16858 section 4.2, made general), less those below
        `min_confidence`, in [0, 1]. Scouts have half of the budget, or what the others leave.

        It looks at the tokens that were drawn, so what is left has no `q` any more.
        """
        nodes = self.num_nodes - 1
        if nodes <= budget and min_confidence <= 0.0:
            return self
        tree = self.with_scouts(max(budget // 2, budget - nodes + len(self.scouts)))
        likely = self.cumulative_confidence
        kept = [n for n in tree.best(budget) if likely[n] >= min_confidence or n in tree.scouts]
        return self if len(kept) == self.num_nodes else tree.keep(kept)

    def best(self, budget: int) -> list[int]:
        """Node 0 and the `budget` nodes of highest cumulative confidence, in their order; scouts
        before all others."""
        # A child is never more probable than its parent; among equals the lower index, which is
        # the parent's, comes first: so the set is connected.
        likely, scouts = self.cumulative_confidence, self.scouts
        if scouts:
            likely = tuple(2.0 if n in scouts else value for n, value in enumerate(likely))
        ranked = sorted(range(1, self.num_nodes), key=lambda n: -likely[n])
        return sorted([0, *ranked[:budget]])

    def with_scouts(self, most: int) -> "TokenTree":
        """The same tree, of whose scouts the first `most` are left."""
        if len(self.scouts) <= most:
            return self
        return replace(self, scouts=frozenset(sorted(self.scouts)[: max(most, 0)]))

    def cut(self, max_depth: int) -> "TokenTree":
        """The nodes down to `max_depth`. The cut doesn't look at the tokens that were drawn, so
        `q` stays."""
        if max(self.depths) <= max_depth:
            return self
        kept = [n for n, depth in enumerate(self.depths) if depth <= max_depth]
        cut = self.keep(kept)
        if self.q is None:
            return cut
        return replace(cut, q=self.q.index_select(0, upload(kept, self.q.device)))

    def best_chain(self) -> "TokenTree":
        """The one path that goes to the most confident child at each node."""
        path = [0]
        while children := self.children(path[-1]):
            path.append(max(children, key=lambda n: self.confidence[n]))
        return self if len(path) == self.num_nodes else self.keep(path)

    def keep(self, kept: Sequence[int]) -> "TokenTree":
        """The nodes `kept`: node 0 first, increasing, each with its parent. `q` is dropped."""
        new_index = {old: new for new, old in enumerate(kept)}
        return TokenTree(
            tokens=tuple(self.tokens[n] for n in kept),
            parents=tuple(new_index[self.parents[n]] if n else -1 for n in kept),
            confidence=tuple(self.confidence[n] for n in kept),
            drafters=tuple(self.drafters[n] for n in kept),
            scouts=frozenset(new_index[n] for n in self.scouts if n in new_index),
        )

    def merge(self, other: "TokenTree") -> "TokenTree":
        """Both trees as one trie. A node that both hold keeps the higher confidence and its
        drafter. `q` is dropped. Raises ValueError if the two start at different tokens."""
        if self.tokens[0] != other.tokens[0]:
            raise ValueError(
                f"trees start at different tokens: {self.tokens[0]}, {other.tokens[0]}"
            )
        tokens, parents = list(self.tokens), list(self.parents)
        confidence, drafters = list(self.confidence), list(self.drafters)
        children = dict(self._child_of)
        image = [0]  # where each node of `other` lies in the merged tree
        for node in range(1, other.num_nodes):
            pair = (image[other.parents[node]], other.tokens[node])
            merged = children.get(pair)
            if merged is None:
                merged = children[pair] = len(tokens)
                tokens.append(pair[1])
                parents.append(pair[0])
                confidence.append(other.confidence[node])
                drafters.append(other.drafters[node])
            elif other.confidence[node] > confidence[merged]:
                confidence[merged], drafters[merged] = other.confidence[node], other.drafters[node]
            image.append(merged)
        scouts = self.scouts | {image[node] for node in other.scouts}
        return TokenTree(
            tuple(tokens), tuple(parents), tuple(confidence), tuple(drafters), scouts=scouts
        )

    def check_integrity(self, vocab_size: int | None = None) -> None:
        """Raises ValueError where this is not a tree of distinct children."""
        lengths = {len(self.parents), len(self.confidence), len(self.drafters), self.num_nodes}
        if len(lengths) != 1 or self.num_nodes == 0:
            raise ValueError(f"fields of different or zero length: {sorted(lengths)}")
        if self.q is not None and (
            self.q.ndim != 2
            or self.q.shape[0] != self.num_nodes
            or vocab_size not in (None, self.q.shape[1])
        ):
            raise ValueError(
                f"q has the shape {tuple(self.q.shape)}, expected a row of the vocabulary's size"
                f" ({vocab_size or 'vocab'}) for each of {self.num_nodes} nodes"
            )
        if not all(0.0 <= confidence <= 1.0 for confidence in self.confidence):
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence}")
        if self.parents[0] != -1:
            raise ValueError(f"node 0 must have parent -1, got {self.parents[0]}")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(
                    f"node {node} has parent {parent}; a parent comes before its child"
                )
        if len(self._child_of) != self.num_nodes - 1:
            raise ValueError("two children of one node hold the same token")
        for node in self.scouts:
            if not 0 < node < self.num_nodes or self.parents[node] not in self.scouts | {0}:
                raise ValueError(f"scout {node} is no drafted node, or has a parent that is none")
        if vocab_size is not None and not 0 <= min(self.tokens) <= max(self.tokens) < vocab_size:
            outside = [token for token in self.tokens if not 0 <= token < vocab_size]
            raise ValueError(f"tokens {outside[:5]} lie outside of the vocabulary of {vocab_size}")


_OF_ROOT: dict[str, object] = {  # what such a tree would find, whatever its token
    "depths": (0,),
    "cumulative_confidence": (1.0,),
    "ancestor_mask": np.ones((1, 1), dtype=np.bool_),
    "_child_of": {},
    "_children": [[]],
}
