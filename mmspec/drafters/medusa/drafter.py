"""BoundMedusa: heads at work for one target."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.growing.branching import affordable
from mmspec.drafters.heads import TargetEnds, placed
from mmspec.drafters.medusa.best_paths import BestPaths
from mmspec.drafters.medusa.drawn_paths import DrawnPaths
from mmspec.drafters.medusa.graphs import MedusaGraphs
from mmspec.drafters.medusa.session import MedusaSession
from mmspec.reads import read
from mmspec.state import Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.medusa.settings import Medusa


class BoundMedusa:
    """Drafts for one target, in its dtype and where its lm_head lies."""

    name = "medusa"

    def __init__(self, settings: "Medusa", target: Target, ends: TargetEnds) -> None:
        self.settings = settings
        self.draws = settings.trees.draws
        self.cost = None  # one forward, however deep the tree
        self.tap = target.last_tap  # after the final norm, as the authors have it
        self.taps = Taps(frozenset({self.tap}))
        self._ends = ends
        self._head = head = placed(settings.head, ends, ends.dtype)
        self._graphs = MedusaGraphs(target, head, ends)
        self.recorded = self._graphs.recorded
        self._lock = threading.Lock()  # of what is recorded

    def free_recorded(self) -> None:
        with self._lock:
            for graphs in self.recorded:
                graphs.clear()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> MedusaSession:
        return MedusaSession(self, prefill, guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session. All heads speak for all rows at once; one wait for the device."""
        own = [cast(MedusaSession, session) for session in sessions]
        logits = self._logits([session.state for session in own], budget)
        rows = zip(own, texts, logits.unbind(1), strict=True)
        sketches = [self._sketch(session, tokens, said, budget) for session, tokens, said in rows]
        known = iter(read(*(tensor for sketch in sketches for tensor in sketch.unread)))
        trees = list[TokenTree]()
        for session, sketch in zip(own, sketches, strict=True):
            grown = sketch.grow(known)
            session.remember(grown)
            trees.append(grown.tree)
        return trees

    @torch.no_grad()
    def _logits(self, states: Sequence[Tensor], budget: int) -> Tensor:
        """(heads, rows, vocab), of as many heads as a tree of `budget` nodes can be deep."""
        joined = torch.stack(list(states)).to(self._ends.device, self._ends.dtype)
        depth = min(self.settings.trees.max_depth, budget)
        with self._lock:
            logits = self._graphs.compute(joined, depth)
        return self._head.logits(joined, depth, self._ends.logits) if logits is None else logits

    def _sketch(
        self, session: MedusaSession, tokens: Sequence[int], logits: Tensor, budget: int
    ) -> BestPaths | DrawnPaths:
        """The row's tree, before what its heads say is read from the device."""
        trees, guide = self.settings.trees, session.guide
        if session.must_draw:
            profile = affordable(trees.profile[: logits.shape[0]], budget)
            drawn = DrawnPaths(
                tokens[-1],
                logits,
                len(tokens) - 1,
                guide=guide,
                profile=profile,
                first_draw=session.num_draws,
                vocab_size=self._ends.vocab_size,
                drafter=self.name,
            )
            session.num_draws += drawn.num_draws
            return drawn
        return BestPaths(
            tokens[-1],
            logits,
            len(tokens) - 1,
            guide=guide,
            calibration=session.calibration,
            top_k=trees.top_k,
            min_confidence=trees.min_confidence,
            budget=budget,
            paths=self.settings.tree,
            drafter=self.name,
        )
