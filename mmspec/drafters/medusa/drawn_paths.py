"""DrawnPaths: a tree that is drawn from what all heads say."""

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draw import draw_level
from mmspec.drafters.proposal import Proposal, ProposalBuilder
from mmspec.noise import DRAFT_STREAM
from mmspec.uploads import upload


class DrawnPaths:
    """Tokens drawn from each head's q without replacement, in a shape that is fixed before, for the
    rules that divide by q. All nodes of a depth share their head's q; each draws for itself."""

    def __init__(
        self,
        token: int,
        logits: Tensor,
        index: int,
        *,
        guide: DraftGuide,
        profile: Sequence[int],
        first_draw: int,
        vocab_size: int,
        drafter: str,
    ) -> None:
        """`logits` (heads, vocab). `first_draw`: how many nodes were drawn below before."""
        self._token = token
        self._vocab_size = vocab_size
        self._drafter = drafter
        self._profile = profile
        self.num_draws = 0
        warped, drawings = guide.warp(logits), []
        for depth, children in enumerate(profile):
            parents = prod(profile[:depth])  # as many as there may be
            places = [
                guide.place(
                    index + depth + 1, stream=DRAFT_STREAM + first_draw + self.num_draws + parent
                )
                for parent in range(parents)
            ]
            self.num_draws += parents
            drawings.append(draw_level(warped[depth].expand(parents, -1), children, places))
        self._q = [drawing.q[0] for drawing in drawings]  # (vocab,) of each depth
        self.unread = tuple(t for drawing in drawings for t in (drawing.tokens, drawing.rates))

    def grow(self, known: Iterator[list[list[float]]]) -> Proposal:
        """As `BestPaths.grow`."""
        nodes = ProposalBuilder(self._token, self._drafter)
        level = {0: 0}  # of the nodes that may be at a depth: place -> those that are
        expanded: list[list[int]] = []
        for children in self._profile:
            tokens, rates = next(known), next(known)
            expanded.append(list(level.values()))
            below = dict[int, int]()
            for place, parent in level.items():
                for n, (token, rate) in enumerate(zip(tokens[place], rates[place], strict=True)):
                    if rate > 0.0:
                        node = nodes.add(parent, int(token), min(rate, 1.0))
                        below[place * children + n] = node
            level = below
        q = self._q[0].new_zeros(len(nodes), self._vocab_size)
        for own, rows in zip(self._q, expanded, strict=True):
            if rows:
                q[:, : own.shape[0]].index_copy_(
                    0, upload(rows, q.device), own.expand(len(rows), -1)
                )
        return nodes.built(q=q)
