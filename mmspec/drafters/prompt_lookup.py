"""Prompt lookup: copies what followed earlier places that look like the end of the text.

The idea is Saxena's prompt lookup decoding (2023) and LLMA (arXiv 2304.04487), which copy from one
place as a chain; here all places found become one tree (see `copying`).
"""

from collections.abc import Sequence

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.copying import Copier
from mmspec.drafters.own_text import OwnText
from mmspec.state import Prefill, Preparation, Prompt, Scores, Verdict
from mmspec.tree import TokenTree


class PromptLookup:
    """Drafts from the request's own prompt, passages and output; needs no model."""

    name = "prompt_lookup"
    reads_text_alone = True

    def __init__(
        self,
        *,
        max_depth: int = 64,
        max_matches: int = 16,
        min_match: int = 2,
        max_match: int = 32,
        min_confidence: float = 0.15,
    ) -> None:
        """`min_match` and `max_match` count matching tokens before a copied place;
        a node is proposed if its whole path is accepted with at least `min_confidence`."""
        self.max_depth = max_depth
        self.max_matches = max_matches
        self.min_match = min_match
        self.max_match = max_match
        self.min_confidence = min_confidence
        self.calibration = Calibration(decay=0.998)  # of all requests: rates, no request's text

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "PromptLookupSession":
        return PromptLookupSession(self, OwnText(prompt, min_match=self.min_match))


class PromptLookupSession:
    """One request's text, and what it has shown of copies."""

    def __init__(self, drafter: PromptLookup, text: OwnText) -> None:
        self._drafter = drafter
        self._text = text
        self._copier = Copier(
            drafter.name, min_confidence=drafter.min_confidence, shared=drafter.calibration
        )

    def preparation(self, num_tokens: int) -> Preparation | None:
        return self._text.preparation(num_tokens)

    def prepare(self, tokens: Sequence[int]) -> None:
        self._text.grow(tokens)

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        drafter = self._drafter
        self._text.grow(tokens)
        found = self._text.continuations(
            limit=drafter.max_matches,
            length=min(drafter.max_depth, budget),
            min_match=drafter.min_match,
            max_match=drafter.max_match,
        )
        return self._copier.draft(tokens[-1], found, budget)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self._copier.observe(verdict.tokens)

    def take_back(self, num_tokens: int) -> None:
        self._text.take_back(num_tokens)
        self._copier.take_back()

    def close(self) -> None:
        pass
