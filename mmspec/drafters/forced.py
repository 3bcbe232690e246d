"""Forced: the tokens that a request's own logits processors leave, as a chain.

Where a grammar allows one continuation (a key of a JSON object, the end of an enumerated word) the
model has nothing to choose. The engine asks this drafter by itself, for requests with a processor
that knows what comes (`mmspec.draft_guide.ForcingProcessor`).
"""

from collections.abc import Sequence

from mmspec.calibration import Calibration
from mmspec.callbacks import call_back
from mmspec.draft_guide import DraftGuide, ForcingProcessor
from mmspec.drafters.proposal import Proposal
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

_BELIEVED = 0.95  # of a token, before any was seen
_DEEPEST = 6  # tokens further down are taken to be alike


class Forced:
    """Drafts what processors say must come."""

    name = "forced"
    reads_text_alone = True

    def __init__(self) -> None:
        self.calibration = Calibration(decay=0.998)  # of all requests: rates, no request's text

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "ForcedSession":
        return ForcedSession(self, guide.forcing)


class ForcedSession:
    """One request's drafting of forced tokens."""

    def __init__(self, drafter: Forced, processors: Sequence[ForcingProcessor]) -> None:
        self._drafter = drafter
        self._processors = processors
        self._proposal: Proposal | None = None

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        drafter, calibration = self._drafter, self._drafter.calibration
        said = [tuple(call_back(p.forced_tokens, tokens))[:budget] for p in self._processors]
        draft = max(said, key=len, default=())
        buckets = [min(place, _DEEPEST) for place in range(len(draft))]
        rates = [calibration.rate(bucket, _BELIEVED) for bucket in buckets]
        tree = TokenTree.chain(tokens[-1], draft, rates, drafter.name)
        self._proposal = Proposal(tree, (None, *buckets))
        return tree

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        proposal, self._proposal = self._proposal, None
        if proposal is not None:
            proposal.teach(self._drafter.calibration, verdict.tokens)

    def close(self) -> None:
        pass
