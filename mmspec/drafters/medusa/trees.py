"""DepthTrees: trees out of what is said of each depth alone, whatever the tokens above it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmspec.drafters.growing.branching import affordable
from mmspec.drafters.growing.settings import TreeSettings
from mmspec.drafters.medusa.best_paths import BestPaths
from mmspec.drafters.medusa.drawn_paths import DrawnPaths
from mmspec.drafters.model_session import ModelSession
from mmspec.reads import read
from mmspec.tree import TokenTree

Session = ModelSession[Any]  # whichever drafter it is of


class DepthTrees:
    """Those of one drafter."""

    def __init__(
        self,
        settings: TreeSettings,
        drafter: str,
        vocab_size: int,
        *,
        paths: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """The drafter's name, and the target's `vocab_size`. `paths` by ranks: a fixed tree; none:
        any."""
        self.settings = settings
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._paths = paths

    def depth(self, budget: int) -> int:
        """How deep a tree of `budget` nodes can be: what is to be said."""
        return min(self.settings.max_depth, budget)

    def grown(
        self,
        sessions: Sequence[Session],
        texts: Sequence[Sequence[int]],
        logits: Tensor,
        budget: int,
    ) -> list[TokenTree]:
        """One tree a session, of `logits` (depths, rows, vocab); one wait for the device."""
        rows = zip(sessions, texts, logits.unbind(1), strict=True)
        sketches = [self._sketch(session, tokens, said, budget) for session, tokens, said in rows]
        known = iter(read(*(tensor for sketch in sketches for tensor in sketch.unread)))
        trees = list[TokenTree]()
        for session, sketch in zip(sessions, sketches, strict=True):
            grown = sketch.grow(known)
            session.remember(grown)
            trees.append(grown.tree)
        return trees

    def _sketch(
        self, session: Session, tokens: Sequence[int], logits: Tensor, budget: int
    ) -> BestPaths | DrawnPaths:
        """The row's tree, before what is said of it is read from the device."""
        settings, guide = self.settings, session.guide
        if session.must_draw:
            profile = affordable(settings.profile[: logits.shape[0]], budget)
            drawn = DrawnPaths(
                tokens[-1],
                logits,
                len(tokens) - 1,
                guide=guide,
                profile=profile,
                first_draw=session.num_draws,
                vocab_size=self._vocab_size,
                drafter=self._drafter,
            )
            session.num_draws += drawn.num_draws
            return drawn
        return BestPaths(
            tokens[-1],
            logits,
            len(tokens) - 1,
            guide=guide,
            calibration=session.calibration,
            top_k=settings.top_k,
            min_confidence=settings.min_confidence,
            budget=budget,
            paths=self._paths,
            drafter=self._drafter,
        )
