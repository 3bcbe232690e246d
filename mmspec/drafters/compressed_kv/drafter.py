"""BoundCompressedKV: a target that drafts for itself; the views of all its sessions."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.compressed_kv.session import CompressedKVSession
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.trees import ByModel, GrowingTrees
from mmspec.errors import ConfigError
from mmspec.kv import KVCache, KVView
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.target.families import index_layers, layer_reaches
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.compressed_kv.settings import CompressedKV


class BoundCompressedKV(ByModel):
    """Drafts for one target. There is one view for each cache of the target's, which is that of one
    decode loop: its rows are never met by another thread. The forwards are the target's own, under
    its own lock."""

    name = "compressed_kv"

    def __init__(self, settings: "CompressedKV", target: Target) -> None:
        if index_layers(target.model.config):
            raise ConfigError(
                f"{self.name}: {type(target.model).__name__} chooses by itself which tokens its "
                "layers see, by keys that a view does not show; expected another drafter"
            )
        self.settings = settings
        self.model = target if settings.forward is None else settings.forward(target)
        self.draws = settings.trees.draws
        self.watched_queries = settings.policy.watched_queries
        self.weight_bytes = sum(weight.nbytes for weight in target.model.parameters())
        reaches = layer_reaches(target.model.config, target.mask_rule)
        self._newest_only = [not reach.is_full for reach in reaches]
        self._views: dict[KVCache, KVView] = {}
        self.cost = ForwardCost()
        self._trees = GrowingTrees(settings.trees, self.cost, self.name, target.vocab_size)
        self._lock = threading.Lock()  # of the dict; a view belongs to its decode loop

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> CompressedKVSession:
        cache = prefill.cache
        assert cache is not None, "the prefill does not say where the row's keys are"
        with self._lock:
            view = self._views.get(cache)
            if view is None:
                settings = self.settings
                view = self._views[cache] = KVView(
                    cache, settings.policy, settings.size, newest_only=self._newest_only
                )
        view.follow(
            prefill.placement.row, media=[range(span.start, span.stop) for span in prompt.media]
        )
        return CompressedKVSession(self, view, prefill.placement, guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(CompressedKVSession, session) for session in sessions]
        starts = [
            self.behind(tokens, session.catch_up(tokens))
            for session, tokens in zip(own, texts, strict=True)
        ]
        return self._trees.grown(self.model, own[0].view, own, texts, starts, budget)

    def free(self, view: KVView, source_row: int) -> None:
        """The row's request ended; the last one takes the view with it."""
        with self._lock:
            view.unfollow(source_row)
            if not view.followed:
                self._views.pop(view.source, None)

    @property
    def num_bytes(self) -> int:
        """Bytes of all views, and of the queries that are kept for them."""
        with self._lock:
            views = list(self._views.values())
        logs = [view.source.queries for view in views]
        return sum(v.num_bytes for v in views) + sum(log.num_bytes for log in logs if log)
