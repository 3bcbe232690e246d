"""Copying: continuations found in several places -> a tree, each node with how often such nodes
are accepted.

All places become one tree, as in SuffixDecoding (arXiv 2411.04975); its most probable nodes are
found best first.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import exp
from typing import NamedTuple

from mmspec.calibration import Calibration
from mmspec.retrieval import Branch, Continuation, Trie
from mmspec.state import Verdict
from mmspec.tree import TokenTree

# A match of so many tokens is believed at one half, before any was seen: of texts that have
# nothing to do with this one a few tokens agree by chance, and of a large corpus the more so.
_HALF_MATCH = {"online": 2.0, "generated": 4.0, "suffix": 6.0, "dense": 6.0}
_NEAR_MATCH, _NEAR_SCALE = 8.0, 0.5  # tokens that a neighbour at distance 0 counts, and its decay


class Bucket(NamedTuple):
    """Nodes that are accepted about equally often."""

    source: str  # of the place that says most for the node
    match: int  # log2 of the match length at the node, path below the match included
    support: int  # 0: one place, 1: two or three, 2: more
    share: int  # quarter of the siblings' weight
    distance: int = -1  # eighths of the hidden states' squared distance; -1: matched by tokens


class Copier:
    """One request's copying: it learns which copies the target takes."""

    def __init__(
        self,
        name: str,
        *,
        min_confidence: float,
        shared: Calibration | None = None,
        was_useful: Callable[[Continuation], None] | None = None,
    ) -> None:
        """`name` of the drafter. A node is proposed if its whole path is accepted with at least
        `min_confidence`. `shared` is what earlier requests have shown, and learns with this one;
        `was_useful` is told the continuations that accepted tokens came from, once each."""
        self._name = name
        self._min_confidence = min_confidence
        self._shared = shared
        self._was_useful = was_useful
        self._calibration = Calibration()
        self._drafted: dict[tuple[int, ...], tuple[Bucket, Branch]] = {}  # by the path's tokens
        self._trie = Trie(())

    def draft(self, token: int, found: Sequence[Continuation], budget: int) -> TokenTree:
        """The `budget` most confident nodes below `token`; the root alone where nothing was found
        that is worth it."""
        self._drafted = {}
        self._trie = trie = Trie(found)
        if not found or budget <= 0:
            return TokenTree.root(token)
        tokens, parents, confidence = [token], [-1], [1.0]
        paths: list[tuple[int, ...]] = [()]
        # (-cumulative confidence, order, branch, parent, confidence, bucket)
        waiting: list[tuple[float, int, Branch, int, float, Bucket]] = []
        count = 0

        def wait_for_children(branch: Branch, parent: int, cumulative: float) -> None:
            nonlocal count
            for child in trie.children(branch):
                heaviest = trie.heaviest(child)
                bucket = _bucket(child, heaviest)
                rate = self._rate(bucket, _prior(child, heaviest))
                if cumulative * rate >= self._min_confidence:
                    count += 1
                    entry = (-cumulative * rate, count, child, parent, rate, bucket)
                    heappush(waiting, entry)

        wait_for_children(trie.root, 0, 1.0)
        while waiting and len(tokens) <= budget:
            cumulative, _, branch, parent, rate, bucket = heappop(waiting)
            tokens.append(branch.token)
            parents.append(parent)
            confidence.append(rate)
            paths.append((*paths[parent], branch.token))
            self._drafted[paths[-1]] = bucket, branch
            wait_for_children(branch, len(tokens) - 1, -cumulative)
        return TokenTree.drafted(tokens, parents, confidence, self._name)

    def observe(self, tree: TokenTree, verdict: Verdict) -> None:
        """What became of the step's tree, which may lack some of the drafted nodes and hold
        others."""
        if not self._drafted:
            return
        useful: set[int] = set()
        accepted = set(verdict.path)
        for node, bucket, branch in self._tried(tree, accepted):
            is_accepted = node in accepted
            self._calibration.observe(bucket, is_accepted)
            if self._shared is not None:
                self._shared.observe(bucket, is_accepted)
            if is_accepted:
                useful.update(branch.places)
        if self._was_useful is not None:
            for place in sorted(useful):
                self._was_useful(self._trie.continuations[place])
        self._drafted = {}

    def take_back(self) -> None:
        """Nothing will be told of the last draft."""
        self._drafted = {}

    def _tried(self, tree: TokenTree, accepted: set[int]) -> Iterator[tuple[int, Bucket, Branch]]:
        """The drafted nodes whose parent was accepted: of them alone the target has spoken."""
        for node in range(1, tree.num_nodes):
            if tree.parents[node] in accepted:
                path = tuple(tree.tokens[n] for n in tree.path_to(node)[1:])
                if path in self._drafted:
                    yield node, *self._drafted[path]

    def _rate(self, bucket: Bucket, prior: float) -> float:
        if self._shared is not None:
            prior = self._shared.rate(bucket, prior)
        return self._calibration.rate(bucket, prior)


def _bucket(branch: Branch, heaviest: Continuation) -> Bucket:
    num_places = len(branch.places)
    support = 0 if num_places == 1 else 1 if num_places <= 3 else 2
    match = branch.match_length + branch.depth - 1
    distance = heaviest.distance
    return Bucket(
        heaviest.source,
        match.bit_length(),
        support,
        int(branch.share * 3.999),
        -1 if distance is None else int(min(max(distance, 0.0), 1.0) * 7.999),
    )


def _prior(branch: Branch, heaviest: Continuation) -> float:
    """What is believed of a node before any was seen: longer matches and agreement count."""
    length = float(branch.match_length + branch.depth - 1)
    if heaviest.distance is not None:  # as `Continuation.weight` compares it with a match
        near = _NEAR_MATCH * exp(-max(heaviest.distance, 0.0) / _NEAR_SCALE)
        length = max(length, near + branch.depth - 1)
    return branch.share * length / (length + _HALF_MATCH[heaviest.source])
