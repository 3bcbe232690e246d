"""What all heads say, as one tree: paths of best tokens, a fixed one, or one that is drawn."""

from collections.abc import Hashable, Iterator, Sequence
from heapq import heappop, heappush
from math import prod
from typing import NamedTuple, Protocol

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.drafters.draw import draw_level
from mmspec.drafters.growing.branching import BestBranching
from mmspec.drafters.proposal import Proposal
from mmspec.noise import DRAFT_STREAM
from mmspec.sampling import DraftGuide
from mmspec.tree import TokenTree
from mmspec.uploads import upload

_LEAST = 1e-4  # that is believed of a fixed tree's tokens at least


class _Ranked(NamedTuple):
    """A token that may follow a node."""

    rate: float
    rank: int  # at its head
    token: int
    bucket: Hashable


class Sketch(Protocol):
    """One row's tree before what its heads say is read."""

    @property
    def unread(self) -> Sequence[Tensor]:
        """What `grow` has to know."""

    def grow(self, known: Iterator[list[list[float]]]) -> Proposal:
        """The tree, by the values of `unread`, the next of `known`."""


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
            guide,
            index,
            calibration=None,
            warp=guide.warp,
            is_coupled=True,
            top_k=top_k,
            max_depth=logits.shape[0],
            min_confidence=0.0,
            budget=budget,
            width=1,
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
        nodes = _Nodes(self._token, self._drafter)
        if self._paths:
            self._take_fixed(nodes)
        else:
            self._take_best(nodes)
        return nodes.grown

    def _take_best(self, nodes: "_Nodes") -> None:
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
            node = nodes.add(child.token, parent, child.rate, child.bucket)
            wait(node, -cumulative, depth + 1, child.rank == 0, 0)
            wait(parent, likely, depth, is_first, place + 1)

    def _take_fixed(self, nodes: "_Nodes") -> None:
        places: dict[tuple[int, ...], int] = {(): 0}
        for path in sorted(self._paths[: self._budget], key=len):
            parent, depth = places.get(path[:-1]), len(path) - 1
            if parent is None or depth >= len(self._levels) or path[-1] >= len(self._levels[depth]):
                continue
            is_first = depth == 0 or path[-2] == 0
            rate, bucket = self._rate(depth, path[-1], is_first)
            token = self._levels[depth][path[-1]].token
            places[path] = nodes.add(token, parent, max(rate, _LEAST), bucket)

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
        rate = self._calibration.rate(bucket, min(max(child.rate, 0.0), 1.0))
        return min(max(rate, 0.0), 1.0), bucket


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
        nodes = _Nodes(self._token, self._drafter)
        level = {0: 0}  # of the nodes that may be at a depth: place -> those that are
        expanded: list[list[int]] = []
        for children in self._profile:
            tokens, rates = next(known), next(known)
            expanded.append(list(level.values()))
            below = dict[int, int]()
            for place, parent in level.items():
                for n, (token, rate) in enumerate(zip(tokens[place], rates[place], strict=True)):
                    if rate > 0.0:
                        node = nodes.add(int(token), parent, min(rate, 1.0), None)
                        below[place * children + n] = node
            level = below
        q = self._q[0].new_zeros(len(nodes), self._vocab_size)
        for own, rows in zip(self._q, expanded, strict=True):
            if rows:
                q[:, : own.shape[0]].index_copy_(
                    0, upload(rows, q.device), own.expand(len(rows), -1)
                )
        return nodes.with_q(q)


class _Nodes:
    """Nodes below node 0, parents first."""

    def __init__(self, token: int, drafter: str) -> None:
        self._tokens, self._parents, self._rates = [token], [-1], [1.0]
        self._buckets: list[Hashable] = [None]
        self._drafter = drafter

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int, parent: int, rate: float, bucket: Hashable) -> int:
        self._tokens.append(token)
        self._parents.append(parent)
        self._rates.append(rate)
        self._buckets.append(bucket)
        return len(self._tokens) - 1

    @property
    def grown(self) -> Proposal:
        return self._grown(None)

    def with_q(self, q: Tensor) -> Proposal:
        """`q` (nodes, vocab)."""
        return self._grown(q)

    def _grown(self, q: Tensor | None) -> Proposal:
        names = ("", *[self._drafter] * (len(self) - 1))
        tree = TokenTree(tuple(self._tokens), tuple(self._parents), tuple(self._rates), names, q)
        return Proposal(tree, tuple(self._buckets))
