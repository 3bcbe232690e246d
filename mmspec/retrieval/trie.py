"""Trie: continuations found in several places, as one tree that is only grown where it is asked.

Best-first drafting looks at a few dozen nodes of the hundreds that a dozen places span.
"""

from collections.abc import Sequence
from heapq import nlargest
from operator import itemgetter
from typing import NamedTuple

from mmspec.retrieval.continuations import MAX_PLACES, Continuation


class Branch(NamedTuple):
    """A node: a token that followed, after the path to its parent."""

    token: int  # -1 in the root, the place that all continuations follow
    depth: int  # 0 for the root
    share: float  # of the siblings' weight, in (0, 1]
    match_length: int  # longest match that supports the node
    places: tuple[int, ...]  # indices of the continuations that support it


class Trie:
    """Of more than `MAX_PLACES` continuations the heaviest count, among equals the first."""

    def __init__(self, continuations: Sequence[Continuation]) -> None:
        """Raises KeyError for a source that is not among `SOURCE_WEIGHTS`."""
        weighted = [(one.weight(), one) for one in continuations]
        if len(weighted) > MAX_PLACES:
            weighted = nlargest(MAX_PLACES, weighted, key=lambda pair: pair[0])
        self.continuations = [one for _, one in weighted]  # that a branch's places count
        self._weights = [weight for weight, _ in weighted]
        self._tokens = [one.tokens for one in self.continuations]
        self._lengths = [one.match_length for one in self.continuations]
        longest = max(self._lengths, default=0)
        self.root = Branch(-1, 0, 1.0, longest, tuple(range(len(self._tokens))))

    def children(self, branch: Branch) -> list[Branch]:
        """What followed the branch, the heaviest first; among equals the one found first."""
        depth = branch.depth
        following: dict[int, list[int]] = {}
        for place in branch.places:
            tokens = self._tokens[place]
            if depth < len(tokens):
                following.setdefault(tokens[depth], []).append(place)
        weight_of, length_of = self._weights.__getitem__, self._lengths.__getitem__
        if len(following) == 1:  # most branches go on in one way only
            ((token, places),) = following.items()
            longest = max(map(length_of, places))
            return [Branch(token, depth + 1, 1.0, longest, tuple(places))]
        weighed = [(sum(map(weight_of, ps)), token, ps) for token, ps in following.items()]
        weighed.sort(key=itemgetter(0), reverse=True)
        total = sum(weight for weight, _, _ in weighed)
        return [
            Branch(token, depth + 1, weight / total, max(map(length_of, ps)), tuple(ps))
            for weight, token, ps in weighed
        ]

    def heaviest(self, branch: Branch) -> Continuation:
        """The continuation that supports the branch most; among equals the one found first."""
        return self.continuations[max(branch.places, key=self._weights.__getitem__)]
