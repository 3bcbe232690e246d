"""GrowingTrees: how the trees of a drafter's sessions grow, and what is proposed of them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.branching import BestBranching, DrawnBranching, Warp, affordable
from mmspec.drafters.growing.cape import CapeBranching
from mmspec.drafters.growing.growth import Branching, Growth
from mmspec.drafters.growing.settings import TreeSettings
from mmspec.drafters.growing.together import Scorer, grow
from mmspec.drafters.model_session import ModelSession
from mmspec.kv import KVCache
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.target.graphs import ScoreGraphs
from mmspec.tree import TokenTree

Session = ModelSession[Any]  # whichever drafter it is of


class Start(NamedTuple):
    """Where a row's tree grows from."""

    placement: Placement
    chain: Sequence[int]  # the text's last tokens, whose keys are not held: node 0 the last of them
    room: int = sys.maxsize  # levels that there is room for, at least one


class ByModel:
    """A drafter whose trees are scored by a whole model."""

    model: Target

    def room(self, num_tokens: int) -> int:
        """Levels of a tree that its context has room for behind so many tokens."""
        context = self.model.max_positions
        return sys.maxsize if context is None else context - num_tokens

    @property
    def recorded(self) -> Sequence[ScoreGraphs]:
        """The graphs of its forwards, where they are recorded."""
        return [] if self.model.graphs is None else [self.model.graphs]

    def free_recorded(self) -> None:
        self.model.free()

    def behind(self, tokens: Sequence[int], placement: Placement | None) -> Start | None:
        """Of a text whose keys are held but for the last token's; None without a place for it, or
        without room behind it."""
        room = self.room(len(tokens))
        return None if placement is None or room <= 0 else Start(placement, tokens[-1:], room)


class GrowingTrees:
    """Those of one drafter."""

    def __init__(
        self,
        settings: TreeSettings,
        cost: ForwardCost,
        drafter: str,
        vocab_size: int,
        *,
        crop: Warp | None = None,
        is_coupled: bool = True,
    ) -> None:
        """`cost` of its forwards, its name, and the target's `vocab_size`. `crop`: from what a
        forward says (nodes, vocab) to what the request warps; None: the same. Not `is_coupled`:
        they grow in another tokenizer's tokens, of which nobody tells what became of them."""
        self.settings = settings
        self._cost = cost
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._crop = crop
        self._is_coupled = is_coupled

    def grown(
        self,
        model: Scorer,
        cache: KVCache,
        sessions: Sequence[Session],
        texts: Sequence[Sequence[int]],
        starts: Sequence[Start | None],
        budget: int,
    ) -> list[TokenTree]:
        """One tree a session, all rows growing together; node 0 alone for one without a start. The
        chains and what was scored of the trees are written behind what the rows of `cache` hold."""
        growths = [
            None
            if start is None
            else Growth(
                start.placement,
                start.chain,
                self._branching(session, len(tokens) - 1, budget, start.room),
                self._drafter,
            )
            for session, tokens, start in zip(sessions, texts, starts, strict=True)
        ]
        grow(model, cache, [one for one in growths if one is not None], cost=self._cost)
        return [
            TokenTree.root(tokens[-1])
            if growth is None
            else self._proposed(session, growth, tokens, budget)
            for session, growth, tokens in zip(sessions, growths, texts, strict=True)
        ]

    def _branching(self, session: Session, index: int, budget: int, room: int) -> Branching:
        """As the settings say, below node 0 at `index` of the text: tokens drawn from q in a shape
        that is set before; or the best ones, `settings.width` nodes a level going on, or a chain
        with what CaPE sets beside it, as deep as pays."""
        settings, cost, guide, crop = self.settings, self._cost, session.guide, self._crop
        warp = guide.warp if crop is None else lambda logits: guide.warp(crop(logits))
        if self._is_coupled:
            room = min(room, guide.depth_below(index))
        if session.must_draw:
            profile, first_draw = affordable(settings.profile[:room], budget), session.num_draws
            return DrawnBranching(guide, index, warp=warp, profile=profile, first_draw=first_draw)
        best = BestBranching(
            guide,
            index,
            calibration=session.calibration if self._is_coupled else None,
            warp=warp,
            is_coupled=self._is_coupled,
            top_k=settings.top_k if settings.cape is None else settings.cape.most,
            max_depth=min(settings.max_depth, room, budget, cost.affordable(session.prices)),
            min_confidence=max(
                settings.min_confidence, cost.least_likely(session.prices, session.calibration)
            ),
            budget=budget,
            width=settings.width,
        )
        return best if settings.cape is None else CapeBranching(best, settings.cape)

    def _proposed(
        self, session: Session, growth: Growth, tokens: Sequence[int], budget: int
    ) -> TokenTree:
        """One that was drawn is whole and has its q; of another one the best `budget` nodes."""
        proposal = session.grown(growth, tokens)
        session.remember(proposal)
        tree = proposal.tree
        if isinstance(growth.branching, DrawnBranching):
            session.num_draws += len(growth.expanded)
            return replace(tree, q=growth.q(self._vocab_size))
        # Leaves beside CaPE's chain are seldom likely, each for itself.
        least = self.settings.min_confidence if self.settings.cape is None else 0.0
        return tree.prune(budget, min_confidence=least)
