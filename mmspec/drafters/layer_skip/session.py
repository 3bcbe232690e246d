"""One request's drafting with layers left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmspec.drafters.model_session import ModelSession
from mmspec.drafters.proposal import Proposal
from mmspec.drafters.walked import walked
from mmspec.kv import KVCache
from mmspec.sampling import DraftGuide
from mmspec.state import Placement, Preparation, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.layer_skip.drafter import BoundLayerSkip


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
        self.text: list[int] = prompt.token_ids.tolist()  # as far as it was told
        self.num_untried = 0  # proposals since the last trial
        self._num_prompt = prompt.num_tokens
        self._skipped: frozenset[int] = frozenset()  # by the newest proposal

    @property
    def num_told(self) -> int:
        """Chosen tokens that it knows of."""
        return len(self.text) - self._num_prompt

    def preparation(self, num_tokens: int) -> Preparation | None:
        """A trial of the drafter's search, now and then: about one forward."""
        if not self._drafter.is_trial_due(self):
            return None
        return Preparation(steps=1.0, can_wait=True)

    def prepare(self, tokens: Sequence[int]) -> None:
        self._drafter.try_out(self)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        if not self.num_told:
            self.text.append(tree.tokens[0])  # the prompt's last logits chose it
        self.text += verdict.tokens
        proposal = self._proposal
        super().observe(tree, verdict, scores)
        if proposal is None:
            return
        own, matched, tested = proposal.tree, 0, 0
        for node, token in walked(own, verdict.tokens):
            children = own.children(node)
            tested += bool(children)
            matched += bool(children) and own.tokens[children[0]] == token
        self._drafter.observed(self._skipped, matched, tested)

    def remember(self, proposal: Proposal) -> None:
        self._skipped = self._drafter.skipped
        super().remember(proposal)
