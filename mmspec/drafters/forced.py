"""Forced: the tokens that a request's own logits processors leave, as a chain.

Where a grammar allows one continuation (a key of a JSON object, the end of an enumerated word) the
model has nothing to choose. The engine asks this drafter by itself, for requests with a processor
that knows what comes (`mmspec.draft_guide.ForcingProcessor`).
"""

from collections.abc import Sequence

from mmspec.calibration import Calibration
from mmspec.callbacks import call_back
from mmspec.draft_guide import DraftGuide, ForcingProcessor
from mmspec.drafters.walked import walked
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
        self._drafted: tuple[int, ...] = ()

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        drafter = self._drafter
        said = [tuple(call_back(p.forced_tokens, tokens))[:budget] for p in self._processors]
        self._drafted = draft = max(said, key=len, default=())
        rates = [drafter.calibration.rate(_bucket(i), _BELIEVED) for i in range(len(draft))]
        return TokenTree.chain(tokens[-1], draft, rates, drafter.name)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        chosen = [token for _, token in walked(tree, verdict.tokens)]
        for place, (drafted, token) in enumerate(zip(self._drafted, chosen, strict=False)):
            self._drafter.calibration.observe(_bucket(place), drafted == token)
            if drafted != token:
                break
        self._drafted = ()

    def close(self) -> None:
        pass


def _bucket(place: int) -> int:
    return min(place, _DEEPEST)
