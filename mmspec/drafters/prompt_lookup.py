"""Prompt lookup: copies what followed earlier places that look like the end of the text.

The idea is Saxena's prompt lookup decoding (2023) and LLMA (arXiv 2304.04487), which copy from one
place as a chain; here all places found become one tree (see `copying`).
"""

from mmspec.calibration import Calibration
from mmspec.drafters.retrieval.drafter import BoundRetrieval
from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.online import OnlineSource
from mmspec.errors import check_setting
from mmspec.retrieval.continuations import MAX_PLACES
from mmspec.retrieval.suffix_sort import DEPTH


class PromptLookup(BoundRetrieval):
    """Drafts from the request's own prompt, passages and output; needs no model."""

    name = "prompt_lookup"

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
        a node is proposed if its whole path is accepted with at least `min_confidence`. Raises
        ConfigError for values that make no sense."""
        check_setting("drafter.prompt_lookup", "max_matches", max_matches >= 1, max_matches, ">= 1")
        most, longest = min(max_matches, MAX_PLACES), min(max_match, DEPTH)
        limits = Limits(most, min_match, longest, max_depth, min_confidence, drafter=self.name)
        super().__init__([OnlineSource(limits)], limits)
        self.calibration = Calibration(decay=0.998)  # of all requests: rates, no request's text
