"""BestPaths: the likeliest paths through what all heads say, or a fixed tree of them."""

from collections.abc import Hashable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.growing.branching import BestBranching
from mmspec.drafters.proposal import Proposal, ProposalBuilder

_LEAST = 1e-4  # that is believed of a fixed tree's tokens at least


class _Ranked(NamedTuple):
    """A token that may follow a node."""

    rate: float
    rank: int  # at its head
    token: int
    bucket: Hashable


class BestPaths:
    """The paths through the heads' best tokens that are likeliest as a whole.

    A token is ranked by log q + g as the target will choose (BestBranching). How often such a one
    is chosen is learnt: by its head, rank and belief, and by whether the token before it was its
    head's best, since each head speaks of a text that it has not seen.
    """

    def __init__(
        self,
        token: int,
        logits: Tensor,
        index: int,
        *,
        guide: DraftGuide,
        calibration: Calibration,
        top_k: int,
        min_confidence: float,
        budget: int,
        paths: Sequence[tuple[int, ...]],
        drafter: str,
    ) -> None:
        """`logits` (heads, vocab); node 0 is `token`, at `index` of the text. `paths` by ranks: a
        fixed tree; none: any."""
        self._token = token
        self._calibration = calibration
        self._min_confidence = min_confidence
        self._budget = budget
        self._paths = paths
        self._drafter = drafter
        self._branching = BestBranching(
            guide, index, top_k=top_k, max_depth=logits.shape[0], budget=budget
        )
        depths = range(1, logits.shape[0] + 1)
        found = self._branching.find(logits, depths, depths)
        self.unread = (found.tokens, found.beliefs)

    def grow(self, known: Iterator[list[list[float]]]) -> Proposal:
        pairs = list(zip(next(known), next(known), strict=True))
        # (heads, top_k) each head's tokens, best first, with what is believed of them
        self._levels = [
            self._branching.children([int(token) for token in tokens], beliefs)
            for tokens, beliefs in pairs
        ]
        nodes = ProposalBuilder(self._token, self._drafter)
        if self._paths:
            self._take_fixed(nodes)
        else:
            self._take_best(nodes)
        return nodes.built()

    def _take_best(self, nodes: ProposalBuilder) -> None:
        """Best first: a child is never likelier than its parent, nor than the one before it."""
        ranked = dict[tuple[int, bool], list[_Ranked]]()  # few trees come to all of them
        # (-cumulative confidence, order, parent, its cumulative confidence, depth, is_first, place)
        waiting: list[tuple[float, int, int, float, int, bool, int]] = []
        count = 0

        def wait(parent: int, likely: float, depth: int, is_first: bool, place: int) -> None:
            nonlocal count
            if depth == len(self._levels):
                return
            if (depth, is_first) not in ranked:
                ranked[depth, is_first] = self._ranked(depth, is_first)
            if place < len(ranked[depth, is_first]):
                cumulative = likely * ranked[depth, is_first][place].rate
                if cumulative >= self._min_confidence:
                    count += 1
                    heappush(waiting, (-cumulative, count, parent, likely, depth, is_first, place))

        wait(0, 1.0, 0, True, 0)
        while waiting and len(nodes) <= self._budget:
            cumulative, _, parent, likely, depth, is_first, place = heappop(waiting)
            child = ranked[depth, is_first][place]
            node = nodes.add(parent, child.token, child.rate, child.bucket)
            wait(node, -cumulative, depth + 1, child.rank == 0, 0)
            wait(parent, likely, depth, is_first, place + 1)

    def _take_fixed(self, nodes: ProposalBuilder) -> None:
        places: dict[tuple[int, ...], int] = {(): 0}
        for path in sorted(self._paths[: self._budget], key=len):
            parent, depth = places.get(path[:-1]), len(path) - 1
            if parent is None or depth >= len(self._levels) or path[-1] >= len(self._levels[depth]):
                continue
            is_first = depth == 0 or path[-2] == 0
            rate, bucket = self._rate(depth, path[-1], is_first)
            token = self._levels[depth][path[-1]].token
            places[path] = nodes.add(parent, token, max(rate, _LEAST), bucket)

    def _ranked(self, depth: int, is_first: bool) -> list[_Ranked]:
        """The depth's tokens behind a parent that was, or was not, its head's best."""
        ranked = list[_Ranked]()
        for rank, child in enumerate(self._levels[depth]):
            rate, bucket = self._rate(depth, rank, is_first)
            ranked.append(_Ranked(rate, rank, child.token, bucket))
        return sorted(ranked, key=lambda child: -child.rate)

    def _rate(self, depth: int, rank: int, is_first: bool) -> tuple[float, Hashable]:
        child = self._levels[depth][rank]
        bucket = (depth, is_first, child.bucket)
        return self._calibration.rate(bucket, child.rate), bucket
