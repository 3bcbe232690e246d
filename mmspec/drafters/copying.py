"""Copying: continuations found in several places -> a tree, each node with how often such nodes
are accepted.

All places become one tree, as in SuffixDecoding (arXiv 2411.04975); its most probable nodes are
found best first.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Choice, Proposal, ProposalBuilder
from mmspec.drafters.walked import held_path
from mmspec.retrieval import Branch, Continuation, Trie
from mmspec.tree import TokenTree

# A match of so many tokens is believed at one half, before any was seen: of texts that have
# nothing to do with this one a few tokens agree by chance, and of a large corpus the more so.
_HALF_MATCH = {"online": 2.0, "generated": 4.0, "suffix": 6.0, "dense": 6.0}


class Bucket(NamedTuple):
    """Nodes that are accepted about equally often."""

    source: str  # of the place that says most for the node
    match: int  # log2 of the match length at the node, path below the match included
    support: int  # 0: one place, 1: two or three, 2: more
    share: int  # quarter of the siblings' weight
    distance: int  # eighths of the hidden states' squared distance; -1: matched by tokens


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
        self._was_useful = was_useful
        self._calibration = Calibration(shared=shared)
        self._proposal: Proposal | None = None
        self._branches: list[Branch] = []  # of its nodes
        self._trie = Trie(())

    def draft(self, token: int, found: Sequence[Continuation], budget: int) -> TokenTree:
        """The `budget` most confident nodes below `token`; the root alone where nothing was found
        that is worth it."""
        self._proposal = None
        if not found:
            return TokenTree.root(token)
        self._trie = Trie(found)
        nodes = ProposalBuilder(token, self._name)
        self._branches = nodes.add_likeliest(
            self._trie.root, self._below, budget=budget, min_confidence=self._min_confidence
        )
        self._proposal = nodes.built()
        return self._proposal.tree

    def observe(self, tokens: Sequence[int]) -> None:
        """What the target has chosen behind the text that was drafted for."""
        proposal, self._proposal = self._proposal, None
        if proposal is None:
            return
        proposal.teach(self._calibration, tokens)
        if self._was_useful is not None:
            tree = proposal.tree
            accepted = [self._branches[n] for n in held_path(tree, (tree.tokens[0], *tokens))[1:]]
            for place in sorted({place for branch in accepted for place in branch.places}):
                self._was_useful(self._trie.continuations[place])

    def take_back(self) -> None:
        """Nothing will be told of the last draft."""
        self._proposal = None

    def _below(self, branch: Branch) -> list[Choice[Branch]]:
        """What followed a branch, the likeliest first."""
        found: list[Choice[Branch]] = []
        for child in self._trie.children(branch):
            heaviest = self._trie.heaviest(child)
            bucket = _bucket(child, heaviest)
            rate = self._calibration.rate(bucket, _prior(child, heaviest))
            if rate >= self._min_confidence:  # else the path to it is no likelier
                found.append(Choice(child.token, rate, bucket, child))
        found.sort(key=attrgetter("rate"), reverse=True)
        return found


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
        -1 if distance is None else int(min(distance, 1.0) * 7.999),
    )


def _prior(branch: Branch, heaviest: Continuation) -> float:
    """What is believed of a node before any was seen: longer matches and agreement count."""
    length = max(branch.match_length, heaviest.worth) + branch.depth - 1
    return branch.share * length / (length + _HALF_MATCH[heaviest.source])
