"""One request's recycling: a tree of what the target held likely behind the same words before."""

from collections.abc import Sequence
from heapq import nlargest
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.proposal import Proposal, ProposalBuilder
from mmspec.drafters.token_recycling.likeliest import likeliest
from mmspec.drafters.token_recycling.successors import Context, Found, Successors
from mmspec.noise import gumbel
from mmspec.reads import read
from mmspec.state import Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.token_recycling.drafter import TokenRecycling

_WIDTH = 8  # nodes a level that get children
_RANKS = 8  # of siblings, and levels of belief, told apart by the calibration
_BELIEVED = 0.7  # of what the target said in another place, before anything is known


class _Said(NamedTuple):
    """What the target said of a step's nodes, before it is read."""

    contexts: list[Context]  # (nodes,)
    tokens: Tensor  # (nodes, k) the likeliest first
    logits: Tensor  # (nodes, k) float32
    path: frozenset[int]  # nodes that were accepted, and node 0


class _Open(NamedTuple):
    """A node that may get children."""

    node: int
    context: Context  # that ends in it
    likely: float  # that the path to it is accepted


class RecyclingSession:
    """It learns in the steps that it was asked in: plain decoding pays nothing for it."""

    def __init__(
        self, drafter: "TokenRecycling", guide: DraftGuide, successors: Successors
    ) -> None:
        self._drafter = drafter
        self._guide = guide
        self.successors = successors
        self._calibration = Calibration(shared=drafter.calibration)
        self._proposal: Proposal | None = None
        self._before = -1  # the token before node 0
        self.said: _Said | None = None

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        settle([self])
        self._before = tokens[-2] if len(tokens) > 1 else -1
        nodes = ProposalBuilder(tokens[-1], self._drafter.name)
        level = [_Open(0, (self._before, tokens[-1]), 1.0)]
        least, best = self._drafter.min_confidence, list[float]()
        for depth in range(self._drafter.max_depth):
            below = self._grow(nodes, level, len(tokens) + depth, least)
            best = nlargest(budget, best + [child.likely for child in below])
            if len(best) == budget:
                # Less likely ones would be pruned. Some are kept, to learn how likely they are.
                least = max(least, 0.25 * best[-1])
            level = nlargest(_WIDTH, below, key=attrgetter("likely"))
        self._proposal = nodes.built()
        return self._proposal.tree.prune(budget)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """All nodes say something, also those that were not accepted, and those of others."""
        proposal, self._proposal = self._proposal, None
        if proposal is None:
            return
        proposal.teach(self._calibration, verdict.tokens)
        before = [self._before, *(tree.tokens[parent] for parent in tree.parents[1:])]
        logits, tokens = likeliest(scores.logits, self.successors.k)
        contexts = list(zip(before, tree.tokens, strict=True))
        self.said = _Said(contexts, tokens, logits, frozenset(verdict.path))

    def close(self) -> None:
        pass

    def _grow(
        self, nodes: ProposalBuilder, level: Sequence[_Open], place: int, least: float
    ) -> list[_Open]:
        """Adds the children of a level, whose tokens stand at `place` of the text, that are likely
        at `least`; returns them."""
        found = self.successors.after([parent.context for parent in level])
        known = [(parent, one) for parent, one in zip(level, found, strict=True) if one is not None]
        if not known:
            return []
        below: list[_Open] = []
        beliefs = self._beliefs([one for _, one in known], place)
        for (parent, one), rates in zip(known, beliefs, strict=True):
            ranked = sorted(zip(rates, one.tokens, strict=True), reverse=True)
            for rank, (belief, token) in enumerate(ranked):
                bucket = (one.is_exact, min(rank, _RANKS), int(belief * (_RANKS - 0.01)))
                rate = self._calibration.rate(bucket, _BELIEVED * belief)
                likely = parent.likely * rate
                if belief > 0.0 and likely >= least:
                    node = nodes.add(parent.node, token, rate, bucket)
                    below.append(_Open(node, (parent.context[1], token), likely))
        return below

    def _beliefs(self, found: Sequence[Found], place: int) -> list[list[float]]:
        """Of each one's tokens how likely the target chooses them at `place` of the text, among
        each other, if it says there what it said before."""
        logits = torch.tensor([one.logits for one in found])
        if not self._guide.is_greedy:
            seed, sample, position, _ = self._guide.place(place)
            tokens = torch.tensor([one.tokens for one in found])
            noise = gumbel(seed, position, 0, sample=sample, token_ids=tokens.view(-1))
            logits = self._guide.warp(logits) + noise.view(tokens.shape)
        beliefs: list[list[float]] = torch.softmax(logits, dim=-1).tolist()
        return beliefs


def settle(sessions: Sequence[RecyclingSession]) -> None:
    """Reads what the target has said of all of them, in one wait for the device."""
    waiting = [(one, one.said) for one in sessions if one.said is not None]
    values = iter(read(*(t for _, said in waiting for t in (said.tokens, said.logits))))
    for session, said in waiting:
        session.said = None
        told = list(zip(said.contexts, next(values), next(values), strict=True))
        finite = [node for node, (*_, logits) in enumerate(told) if isfinite(logits[0])]
        # What stands is told last, and counts.
        session.successors.add(told[node] for node in sorted(finite, key=said.path.__contains__))
