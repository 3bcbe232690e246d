"""Lookahead: drafts of n-grams that the target has found by itself; nothing to train or load."""

from functools import partial

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.lookahead.session import LookaheadSession
from mmspec.errors import check_setting
from mmspec.state import Prefill, Prompt


class Lookahead:
    """Lookahead decoding (Fu et al., arXiv 2402.02057): beside its drafts each tree holds a window
    of tokens yet to come, scored only to be guessed better in the next step."""

    name = "lookahead"

    def __init__(
        self,
        *,
        window: int = 15,
        ngram: int = 5,
        guess_set: int = 15,
        pool_from_prompt: bool = True,
    ) -> None:
        """W = `window` columns, N = `ngram` tokens, G = `guess_set` n-grams kept for each first
        token. A full tree has W (N - 1) - 1 nodes of the window and G (N - 1) of n-grams; where
        the budget is smaller the n-grams have half of it at most and the window has as few columns
        as fit. `pool_from_prompt` adds the n-grams of the prompt and of the text to those that the
        window finds. Raises ConfigError."""
        check = partial(check_setting, "drafter.lookahead")
        check("window", window >= 1, window, "1 or more")
        check("ngram", ngram >= 2, ngram, "2 or more")
        check("guess_set", guess_set >= 1, guess_set, "1 or more")
        self.window = window
        self.ngram = ngram
        self.guess_set = guess_set
        self.pool_from_prompt = pool_from_prompt

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> LookaheadSession:
        return LookaheadSession(self, prompt, guide)
