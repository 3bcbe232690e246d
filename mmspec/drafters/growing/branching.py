"""Which children a node gets: the best under the noise that the target will choose with, or tokens
drawn from q by noise of their own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draw import draw_level
from mmspec.drafters.growing.growth import Candidates, Child, Growth
from mmspec.noise import DRAFT_STREAM

_SPREAD = 0.7  # believed difference between the two models' logits, in nats
_LEVELS = 8  # of belief, told apart by the calibration
_MOST_RANKS = 4  # that are told apart by the calibration

Warp = Callable[[Tensor], Tensor]


class BestBranching:
    """The top k of log q + g: the target chooses by the same g (DESIGN: coupled verification).

    A child's raw confidence comes from the gaps between these values, not from q: the target's
    differ from them by the models' difference alone. Without noise it is q. Both are calibrated.
    The tree follows cumulative confidence, as EAGLE-2's does (arXiv 2406.16858 section 4.1).
    """

    def __init__(
        self,
        guide: DraftGuide,
        index: int,
        *,
        top_k: int,
        max_depth: int,
        budget: int,
        width: int = 1,
        min_confidence: float = 0.0,
        calibration: Calibration | None = None,
        warp: Warp | None = None,
        is_coupled: bool = True,
    ) -> None:
        """`index` is where node 0 stands in the target's text. `width` nodes a level go on.
        `calibration` None leaves raw confidences as they are; `warp` None: the guide's. Not
        `is_coupled`: the tokens are not the target's, nor is its noise theirs."""
        self._guide = guide
        self._index = index
        self._calibration = calibration
        self._warp = warp or guide.warp
        self._has_noise = is_coupled and not guide.is_greedy
        self._top_k = top_k
        self._max_depth = max_depth
        self._min_confidence = min_confidence
        self._budget = budget
        self._width = width

    @property
    def is_set(self) -> bool:
        return self._top_k == 1 and self._min_confidence <= 0.0

    def find(self, logits: Tensor, depths: Sequence[int], draws: Sequence[int]) -> Candidates:
        values = torch.log_softmax(self._warp(logits), dim=-1)
        if self._has_noise:
            indices = [self._index + depth for depth in depths]
            values = values + self._guide.noise_at(indices, values.shape[-1], device=values.device)
        best = values.topk(min(self._top_k + 1, values.shape[-1]), dim=-1)
        # With noise: that the models' difference leaves a value the largest, by its gap to the
        # others. Without: q itself.
        beliefs = (
            torch.softmax(best.values / _SPREAD, dim=-1) if self._has_noise else best.values.exp()
        )
        return Candidates(best.indices[:, : self._top_k], beliefs[:, : self._top_k])

    def children(self, tokens: Sequence[int], beliefs: Sequence[float]) -> list[Child]:
        return [
            self._child(token, rank, belief)
            for rank, (token, belief) in enumerate(zip(tokens, beliefs, strict=True))
            if belief > 0.0  # a token that the warpers forbid is no child
        ]

    def goes_on(self, growth: Growth, level: Sequence[int]) -> list[int]:
        if growth.depth >= self._max_depth:
            return []
        ranked = sorted(range(1, len(growth.cumulative)), key=lambda n: -growth.cumulative[n])
        promising = set(ranked[: self._budget])  # children of others would never be proposed
        return [
            node
            for node in sorted(level, key=lambda n: -growth.cumulative[n])[: self._width]
            if node in promising and growth.cumulative[node] >= self._min_confidence
        ]

    def _child(self, token: int, rank: int, belief: float) -> Child:
        belief = min(belief, 1.0)  # but for rounding
        bucket = (min(rank, _MOST_RANKS), int(belief * (_LEVELS - 0.01)))
        if self._calibration is not None:
            belief = self._calibration.rate(bucket, belief)
        return Child(token, belief, bucket)


class DrawnBranching:
    """Children drawn from q without replacement, in a shape that is fixed before: for the rules
    that divide by q. The noise is a stream of its own, another one for each node."""

    def __init__(
        self,
        guide: DraftGuide,
        index: int,
        *,
        profile: Sequence[int],
        first_draw: int,
        warp: Warp | None = None,
    ) -> None:
        """`profile[d]` children for each node of depth d; `first_draw` is how many nodes of the
        request's trees got children before. `warp` None: the guide's."""
        self._guide = guide
        self._index = index
        self._warp = warp or guide.warp
        self._profile = profile
        self._first_draw = first_draw

    @property
    def is_set(self) -> bool:
        return max(self._profile, default=1) == 1

    def find(self, logits: Tensor, depths: Sequence[int], draws: Sequence[int]) -> Candidates:
        places = [
            self._guide.place(self._index + depth, stream=DRAFT_STREAM + self._first_draw + draw)
            for depth, draw in zip(depths, draws, strict=True)
        ]
        most = max(self._profile[depth - 1] for depth in set(depths))
        return Candidates(*draw_level(self._warp(logits), most, places))

    def children(self, tokens: Sequence[int], beliefs: Sequence[float]) -> list[Child]:
        return [
            Child(token, min(rate, 1.0))
            for token, rate in zip(tokens, beliefs, strict=True)
            if rate > 0.0
        ]

    def goes_on(self, growth: Growth, level: Sequence[int]) -> list[int]:
        return list(level) if growth.depth < len(self._profile) else []


def affordable(profile: Sequence[int], budget: int) -> list[int]:
    """The first levels of `profile` with at most `budget` nodes; of the first level at least one
    node. It looks at no token, so the rules that divide by q stay exact."""
    kept, nodes, level = list[int](), 0, 1
    for children in profile:
        fitting = min(children, (budget - nodes) // level)
        if fitting < 1:
            break
        kept.append(fitting)
        level *= fitting
        nodes += level
    return kept
