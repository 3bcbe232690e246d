"""BestPaths: the likeliest paths through what all heads say, or a fixed tree of them."""

from collections.abc import Hashable, Iterator, Sequence
from operator import attrgetter

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.growing.branching import BestBranching
from mmspec.drafters.proposal import Choice, Proposal, ProposalBuilder

_LEAST = 1e-4  # that is believed of a fixed tree's tokens at least
_Place = tuple[int, bool]  # its depth, and whether the token there was its head's best


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
        """The tree; takes the values of `unread` from `known`."""
        pairs = list(zip(next(known), next(known), strict=True))
        # (heads, top_k) each head's tokens, best first, with what is believed of them
        self._levels = [
            self._branching.children([int(token) for token in tokens], beliefs)
            for tokens, beliefs in pairs
        ]
        self._ranked = dict[_Place, list[Choice[_Place]]]()
        nodes = ProposalBuilder(self._token, self._drafter)
        if self._paths:
            self._take_fixed(nodes)
        else:
            nodes.add_likeliest(
                (0, True), self._below, budget=self._budget, min_confidence=self._min_confidence
            )
        return nodes.built()

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

    def _below(self, place: _Place) -> list[Choice[_Place]]:
        """The tokens that may follow, the likeliest first."""
        if place not in self._ranked:  # few trees come to all of them
            depth, is_first = place
            level = self._levels[depth] if depth < len(self._levels) else []
            rates = [self._rate(depth, rank, is_first) for rank in range(len(level))]
            choices = [
                Choice(child.token, *rate, (depth + 1, rank == 0))
                for rank, (child, rate) in enumerate(zip(level, rates, strict=True))
            ]
            self._ranked[place] = sorted(choices, key=attrgetter("rate"), reverse=True)
        return self._ranked[place]

    def _rate(self, depth: int, rank: int, is_first: bool) -> tuple[float, Hashable]:
        child = self._levels[depth][rank]
        bucket = (depth, is_first, child.bucket)
        return self._calibration.rate(bucket, child.rate), bucket
