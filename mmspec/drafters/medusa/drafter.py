"""BoundMedusa: heads at work for one target."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.heads import TargetEnds, placed
from mmspec.drafters.medusa.graphs import MedusaGraphs
from mmspec.drafters.medusa.session import MedusaSession
from mmspec.drafters.medusa.trees import DepthTrees
from mmspec.state import Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.medusa.settings import Medusa


class BoundMedusa:
    """Drafts for one target, in its dtype and where its lm_head lies."""

    name = "medusa"

    def __init__(self, settings: "Medusa", target: Target, ends: TargetEnds) -> None:
        self.draws = settings.trees.draws
        self.cost = None  # one forward, however deep the tree
        self.tap = target.last_tap  # after the final norm, as the authors have it
        self.taps = Taps(frozenset({self.tap}))
        self._ends = ends
        self._trees = DepthTrees(settings.trees, self.name, ends.vocab_size, paths=settings.tree)
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
        logits = self._logits([session.state for session in own], self._trees.depth(budget))
        return self._trees.grown(own, texts, logits, budget)

    @torch.no_grad()
    def _logits(self, states: Sequence[Tensor], depth: int) -> Tensor:
        """(heads, rows, vocab), of the first `depth` heads."""
        joined = torch.stack(list(states)).to(self._ends.device, self._ends.dtype)
        with self._lock:
            logits = self._graphs.compute(joined, depth)
        return self._head.logits(joined, depth, self._ends.logits) if logits is None else logits
