"""One request's drafting with layers left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.model_session import ModelSession
from mmspec.drafters.walked import walked
from mmspec.kv import Held, KVCache
from mmspec.state import Placement, Preparation, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.layer_skip.drafter import BoundLayerSkip

_MANY_TRIALS = 4  # what a trial puts aside, in trials' tokens, before a newer place is marked


class Trial(NamedTuple):
    """Where a trial's tokens begin."""

    start: int  # committed tokens before them
    state: Held | None = None  # the running state there


class Mark(NamedTuple):
    """A place in the text that a trial can go back to, where the row has a running state."""

    length: int  # committed tokens
    state: Held


class LayerSkipSession(ModelSession["BoundLayerSkip"]):
    """What was learnt of the request. Its keys are the target's."""

    def __init__(
        self,
        drafter: "BoundLayerSkip",
        prompt: Prompt,
        placement: Placement,
        cache: KVCache,
        guide: DraftGuide,
    ) -> None:
        super().__init__(drafter, guide)
        self.placement = placement
        self.cache = cache
        self.num_untried = 0  # proposals since the last trial
        self._num_prompt = prompt.num_tokens
        self.skipped: frozenset[int] = frozenset()  # layers that its newest draft left out
        self._mark: Mark | None = None

    def trial(self, num_tokens: int) -> Trial | None:
        """Where a trial begins in a text of `num_tokens`: at the newest that were chosen; with
        running states behind the place that was marked. None where there are not as many."""
        count, mark = self._drafter.settings.trial_tokens, self._mark
        if self.cache.states is None:
            has_all = num_tokens - self._num_prompt >= count
            return Trial(num_tokens - 1 - count) if has_all else None
        if mark is None or num_tokens - 1 - mark.length < count:
            return None
        return Trial(mark.length, mark.state)

    def mark(self) -> None:
        """From here on tokens are chosen that a trial may be made of."""
        row = self.placement.row
        if self.cache.states is not None:
            state = self.cache.states.held(row)
            assert state is not None, "no token is committed"
            self._mark = Mark(self.cache.length(row), state)

    def preparation(self, num_tokens: int) -> Preparation | None:
        """A trial of the drafter's search, now and then: about one forward."""
        if not self._drafter.is_trial_due(self, num_tokens):
            return None
        return Preparation(steps=1.0, can_wait=True)

    def prepare(self, tokens: Sequence[int]) -> None:
        self._drafter.try_out(self, tokens)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        if self._drafter.is_searching and self._is_mark_old:
            self.mark()
        proposal = self._proposal
        super().observe(tree, verdict, scores)
        if proposal is None or self.must_draw:  # what is drawn says little of the layers
            return
        own, matched, tested = proposal.tree, 0, 0
        for node, token in walked(own, verdict.tokens):
            children = own.children(node)
            tested += bool(children)
            matched += bool(children) and own.tokens[children[0]] == token
        self._drafter.observed(self.skipped, matched, tested)

    @property
    def _is_mark_old(self) -> bool:
        if self._mark is None:
            return True
        longest = _MANY_TRIALS * self._drafter.settings.trial_tokens
        return self.cache.length(self.placement.row) - self._mark.length > longest
