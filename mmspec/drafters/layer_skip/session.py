"""One request's drafting with layers left out."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmspec.calibration import Calibration
from mmspec.drafters.walked import learn_choices, walked
from mmspec.kv import KVCache
from mmspec.sampling import DraftGuide
from mmspec.state import Placement, Preparation, Prices, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.layer_skip.drafter import BoundLayerSkip


@dataclass(frozen=True)
class _Proposal:
    tree: TokenTree
    buckets: tuple[Hashable, ...]  # (nodes,) what counts as alike
    skipped: frozenset[int]


class LayerSkipSession:
    """What was learnt of the request. Its keys are the target's."""

    def __init__(
        self,
        drafter: "BoundLayerSkip",
        prompt: Prompt,
        placement: Placement,
        cache: KVCache,
        guide: DraftGuide,
    ) -> None:
        self.placement = placement
        self.cache = cache
        self.guide = guide
        self.calibration = Calibration()
        self.prices: Prices | None = None
        self.text: list[int] = prompt.token_ids.tolist()  # as far as it was told
        self.num_untried = 0  # proposals since the last trial
        self._num_prompt = prompt.num_tokens
        self._drafter = drafter
        self._proposal: _Proposal | None = None

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

    @property
    def least_s(self) -> float | None:
        return self._drafter.cost.forward_s

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._drafter.propose_together([self], [tokens], budget)[0]

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """The target's choices tell of every child on the way, scored or not."""
        if not self.num_told:
            self.text.append(tree.tokens[0])  # the prompt's last logits chose it
        self.text += verdict.tokens
        proposal, self._proposal = self._proposal, None
        if proposal is None:
            return
        own, matched, tested = proposal.tree, 0, 0
        learn_choices(self.calibration, own, proposal.buckets, verdict.tokens)
        for node, token in walked(own, verdict.tokens):
            children = own.children(node)
            tested += bool(children)
            matched += bool(children) and own.tokens[children[0]] == token
        self._drafter.observed(proposal.skipped, matched, tested)

    def close(self) -> None:
        """The row's keys are the decode loop's to free."""

    def remember(
        self, tree: TokenTree, buckets: Sequence[Hashable], skipped: frozenset[int]
    ) -> None:
        """What was proposed, and by which layers."""
        self._proposal = _Proposal(tree, tuple(buckets), skipped)
