"""BoundEagle: a head at work for one target, the cache of all its sessions with it."""

import threading
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.eagle.bound_head import FeatureHead
from mmspec.drafters.eagle.graphs import EagleGraphs
from mmspec.drafters.eagle.scoring import EagleScorer, read_text
from mmspec.drafters.eagle.session import EagleSession
from mmspec.drafters.forwards import ForwardCost, num_weights
from mmspec.drafters.growing.settings import TreeSettings
from mmspec.drafters.growing.trees import GrowingTrees, Start
from mmspec.drafters.heads import TextPlaces
from mmspec.kv import KVCache
from mmspec.state import Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.tree import TokenTree


class BoundEagle:
    """Drafts for one target. One cache holds the rows of all its sessions, whatever call or thread
    they belong to; `lock` is held while it is read or written."""

    def __init__(
        self, name: str, head: FeatureHead, target: Target, *, trees: TreeSettings, window: int
    ) -> None:
        """`window`: newest tokens of a text that the head sees."""
        self.name = name
        self.head = head
        self._target = target
        self.taps = Taps(frozenset(self.head.taps), whole_prompt=True)
        self.draws = trees.draws
        self._graphs = EagleGraphs(target, head)
        self.recorded = self._graphs.recorded
        self.cache = KVCache(
            head.num_layers, pool=self._graphs.pool, index_layers=head.index_layers
        )
        self.lock = threading.RLock()
        self.cost = ForwardCost()
        self._trees = GrowingTrees(trees, self.cost, name, target.vocab_size)
        self.window = window
        self.size_share = head.num_weights / num_weights(target.model)  # of the target's

    def free_recorded(self) -> None:
        with self.lock:
            self._graphs.clear()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> EagleSession:
        places = TextPlaces.of(self._target, prompt, planes=self.head.planes)
        return EagleSession(self, prompt.num_tokens, prefill, guide, places)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(EagleSession, session) for session in sessions]
        with self.lock:
            starts, beside = [], []
            for session, tokens in zip(own, texts, strict=True):
                session.catch_up(tokens)
                chain, features = session.waiting(tokens)
                starts.append(Start(session.placement, chain))
                beside.append(features)
            rows = [session.placement.row for session in own]
            counts = {row: part.shape[0] for row, part in zip(rows, beside, strict=True)}
            projected = self.head.project(torch.cat(beside))
            scorer = EagleScorer(self.head, projected, counts, self._graphs)
            drafts = self._trees.grown(scorer, self.cache, own, texts, starts, budget)
            # Of what was written the chain has the target's own features: that stays. Nothing may
            # fail from here on: a session that has read cannot be asked for the same text again.
            self.cache.commit({row: range(count) for row, count in counts.items()})
            for session in own:
                session.has_read()
            return drafts

    def read(self, row: int, ids: Sequence[int], features: Tensor, places: Tensor) -> None:
        """As `ReadingDrafter.read`."""
        read_text(self.head, self.cache, row, ids, self.head.project(features), places)
