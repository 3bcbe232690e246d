"""BoundLayerSkip: a target that drafts for itself with layers left out."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.trees import ByModel, GrowingTrees
from mmspec.drafters.layer_skip.search import SkipSearch
from mmspec.drafters.layer_skip.session import LayerSkipSession
from mmspec.errors import ConfigError
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.target.self_draft import draft_forward
from mmspec.target.skipping import SkippedLayers
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.layer_skip.settings import LayerSkip


class BoundLayerSkip(ByModel):
    """Drafts for one target, on its own KV.

    A draft's keys are written behind the row's committed ones, in the layers left in. Nobody has
    to take them back: the score of the drafted tree writes the same tokens in all layers.
    """

    name = "layer_skip"

    def __init__(self, settings: "LayerSkip", target: Target) -> None:
        self.settings = settings
        self.draws = settings.trees.draws
        self._skipped = SkippedLayers(target.model, packing=target.packing)
        rough = draft_forward(weights=settings.weights)
        self.model = (target if rough is None else rough(target)).variant(self._skipped)
        self.cost = ForwardCost()
        self._trees = GrowingTrees(settings.trees, self.cost, self.name, target.vocab_size)
        self._lock = threading.RLock()  # of what is skipped, over all forwards of a draft
        self.search: SkipSearch | None = None
        try:
            self._fixed = self._skipped.chosen(settings.layers)
        except ValueError as error:
            raise ConfigError(f"drafter.layer_skip.layers: {error}") from error
        if not settings.layers:
            self.search = SkipSearch(
                self._skipped.num_layers,
                settings.skip,
                kept=self._skipped.lending,
                trials=settings.trials,
                seed=settings.seed,
            )
            if not self.search.best:
                raise ConfigError("drafter.layer_skip: the target has no layer to spare")

    @property
    def skipped(self) -> frozenset[int]:
        """The layers that drafts leave out at present."""
        return self._fixed if self.search is None else self.search.best

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> LayerSkipSession:
        assert prefill.cache is not None, "the prefill does not say where the row's keys are"
        return LayerSkipSession(self, prompt, prefill.placement, prefill.cache, guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(LayerSkipSession, session) for session in sessions]
        for session, tokens in zip(own, texts, strict=True):
            held = session.cache.length(session.placement.row)
            assert held == len(tokens) - 1, "the cache is not the text's"
            session.num_untried += 1
        with self._lock:
            self._skipped.skipped = skipped = self.skipped
            starts = [
                self.behind(tokens, session.placement)
                for session, tokens in zip(own, texts, strict=True)
            ]
            trees = self._trees.grown(self.model, own[0].cache, own, texts, starts, budget)
        for session in own:
            session.skipped = skipped
        return trees

    def observed(self, skipped: frozenset[int], matched: int, tested: int) -> None:
        """What became of a draft that left out `skipped`."""
        with self._lock:
            if self.search is not None and self.is_searching:
                self.search.learn(skipped, matched, tested)

    @property
    def is_searching(self) -> bool:
        """Whether trials are still made."""
        return self.search is not None and not self.search.is_over

    def is_trial_due(self, session: LayerSkipSession, num_tokens: int) -> bool:
        """Whether the search goes on, and the session was asked often enough since its last one."""
        is_time = session.num_untried + 1 >= self.settings.trial_every
        return self.is_searching and is_time and session.trial(num_tokens) is not None

    def try_out(self, session: LayerSkipSession, tokens: Sequence[int]) -> None:
        """One trial of the search on what the session's target chose last of `tokens`, if one is
        due: what would another set of layers have said of each of these tokens?"""
        with self._lock:
            if self.search is None or not self.is_trial_due(session, len(tokens)):
                return
            session.num_untried = -1  # the proposal that follows is the trial's
            skipped, count = self.search.propose(), self.settings.trial_tokens
            matched = self._matched(session, tokens, skipped)
            self.search.learn(skipped, matched, count, is_trial=True)

    def _matched(
        self, session: LayerSkipSession, tokens: Sequence[int], skipped: frozenset[int]
    ) -> int:
        """How many of the newest chosen tokens the layers left in would have chosen as well. The
        row's keys of these tokens are put aside for the time of it."""
        cache, row, count = session.cache, session.placement.row, self.settings.trial_tokens
        trial, states = session.trial(len(tokens)), cache.states
        assert trial is not None, "there is nothing to try it on"
        start, length = trial.start, cache.length(row)
        asked = tokens[start : start + count]
        kept, state = cache.read(row, start, length), None if states is None else states.held(row)
        cache.truncate(row, start)
        if states is not None:
            states.hold(row, trial.state)
        try:
            self._skipped.skipped = skipped
            tree = TokenTree.chain(asked[0], asked[1:], (1.0,) * (count - 1), self.name)
            logits = self.model.score([tree], cache, [session.placement])[0].logits
        finally:
            cache.append(row, kept, count=length - start)
            if states is not None:
                states.hold(row, state)
                session.mark()
        guide, first = session.guide, start + 1
        scores, places = guide.warp(logits), range(first, first + count)
        scores = scores + guide.noise_at(places, scores.shape[-1], device=scores.device)
        said = scores.argmax(dim=-1).tolist()
        chosen = tokens[first : first + count]
        return sum(a == b for a, b in zip(said, chosen, strict=True))
