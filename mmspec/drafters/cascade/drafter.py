"""BoundCascade: two drafters at work for one target, the lower one's trees verified over a view."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.asking import propose_all
from mmspec.drafters.base import (
    Drafter,
    DraftSession,
    LearningDrafter,
    RecordedDrafter,
    TappingDrafter,
    WatchingDrafter,
)
from mmspec.drafters.cascade.run import Run
from mmspec.drafters.cascade.session import CascadeSession
from mmspec.drafters.compressed_kv import BoundCompressedKV
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.proposal import Proposal
from mmspec.reads import read
from mmspec.state import Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.target.graphs import ScoreGraphs
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.cascade.settings import Cascade


class BoundCascade:
    """Drafts for one target. The views are the middle level's, and as much a decode loop's own."""

    name = "cascade"

    def __init__(
        self, settings: "Cascade", lower: Drafter, middle: BoundCompressedKV, target: Target
    ) -> None:
        self.settings = settings
        self.lower = lower
        self.middle = middle
        self.draws = middle.draws
        below = lower.watched_queries if isinstance(lower, WatchingDrafter) else 0
        self.watched_queries = max(middle.watched_queries, below)
        self.taps = lower.taps if isinstance(lower, TappingDrafter) else Taps()
        self.cost = ForwardCost()  # a forward over the view, with what it takes to ask below it
        self._vocab_size = target.vocab_size

    @property
    def recorded(self) -> Sequence[ScoreGraphs]:
        """The graphs of both levels, where they are recorded."""
        lower = self.lower.recorded if isinstance(self.lower, RecordedDrafter) else ()
        return [*self.middle.recorded, *lower]

    def free_recorded(self) -> None:
        self.middle.free_recorded()
        if isinstance(self.lower, RecordedDrafter):
            self.lower.free_recorded()

    def forget(self, namespace: str | None = None) -> None:
        """Drops what earlier requests have left to the lower level."""
        if isinstance(self.lower, LearningDrafter):
            self.lower.forget(namespace)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> CascadeSession:
        lower = self.lower.start(prompt, prefill, guide)
        try:
            return CascadeSession(self, lower, self.middle.start(prompt, prefill, guide))
        except BaseException:
            lower.close()
            raise

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; each forward over the views verifies the lower trees of all."""
        own = [cast(CascadeSession, session) for session in sessions]
        pairs = zip(own, texts, strict=True)
        runs = [session.begin(tokens, budget) for session, tokens in pairs]
        begun, time_s = [run for run in runs if run is not None], time.perf_counter()
        with ExitStack() as at_end:  # each run's, also where another's fails
            for run in begun:
                at_end.callback(run.take_back)
            while active := [run for run in begun if not run.is_done]:
                self._advance(active)
        self.cost.observe(time.perf_counter() - time_s, sum(run.num_forwards for run in begun))
        return [
            self._without_view(session, tokens, budget)
            if run is None
            else self._proposed(session, run)
            for session, run, tokens in zip(own, runs, texts, strict=True)
        ]

    def _advance(self, runs: Sequence[Run]) -> None:
        """One forward of the middle level, over the lower level's trees, and one wait for it."""
        trees = self._lower_trees(runs)
        scores = self.middle.model.score(trees, runs[0].view, [run.placement for run in runs])
        scored = list(zip(runs, trees, scores, strict=True))
        candidates = [run.find(tree, score) for run, tree, score in scored]
        known = iter(read(*(t for found in candidates for t in (found.tokens, found.beliefs))))
        for (run, tree, score), found in zip(scored, candidates, strict=True):
            run.verify(tree, score, found, next(known), next(known))

    def _lower_trees(self, runs: Sequence[Run]) -> list[TokenTree]:
        trees = [TokenTree.root(run.text[-1]) for run in runs]
        asked = [index for index, run in enumerate(runs) if run.may_ask]
        if asked:
            sessions = [runs[index].session.lower for index in asked]
            texts = [runs[index].text for index in asked]
            nodes = self.settings.lower_nodes
            for index, tree in zip(
                asked, propose_all(self.lower, sessions, texts, nodes), strict=True
            ):
                run = runs[index]
                tree.check_integrity(self._vocab_size)
                assert tree.tokens[0] == run.text[-1], f"node 0 of {self.lower.name} is another"
                trees[index] = tree.prune(nodes).cut(max(run.room - 1, 0))
        return trees

    def _without_view(
        self, session: CascadeSession, tokens: Sequence[int], budget: int
    ) -> TokenTree:
        """Of a text that the middle level has no run for: what the lower one says, if that may be
        handed on."""
        if session.middle.must_draw:
            return TokenTree.root(tokens[-1])
        return propose_all(self.lower, [session.lower], [tokens], budget)[0]

    def _proposed(self, session: CascadeSession, run: Run) -> TokenTree:
        children = run.children
        chain = TokenTree.chain(
            run.tokens[-1], [c.token for c in children], [c.rate for c in children], self.name
        )
        session.ran(run)
        session.middle.remember(Proposal(chain, (None, *(child.bucket for child in children))))
        if session.middle.must_draw:
            session.middle.num_draws += len(children)
            return replace(chain, q=run.q(self._vocab_size))
        least = self.settings.middle.trees.min_confidence
        return chain.prune(chain.num_nodes, min_confidence=least)
