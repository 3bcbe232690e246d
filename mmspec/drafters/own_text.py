"""OwnText: all that one request brought along and what it was answered, to be copied from."""

from collections.abc import Sequence

from mmspec.retrieval import Continuation, OnlineIndex
from mmspec.state import Preparation, Prompt

_MANY = 64  # tokens from which on indexing them is no part of a proposal
_TOKEN_S = 2e-6  # as `OnlineIndex` has it
SEPARATOR = -1  # stands for media placeholders, which are never copied, and between texts


class OwnText:
    """The texts beside the prompt, the prompt, and what was chosen after it: one growing index.

    No match crosses a medium, nor the border of two texts.
    """

    def __init__(self, prompt: Prompt, *, min_match: int = 1) -> None:
        """Nothing is indexed before the first `grow`."""
        self.index = OnlineIndex(min_match)
        self._prompt: Prompt | None = prompt
        self._num_beside = sum(len(text) + 1 for text in prompt.draft_texts)

    def preparation(self, num_tokens: int) -> Preparation | None:
        """The indexing of many tokens, as a prompt has them, for a text of `num_tokens`."""
        late = self._num_beside + num_tokens - len(self.index)
        return Preparation(seconds=_TOKEN_S * late) if late >= _MANY else None

    def grow(self, tokens: Sequence[int]) -> None:
        """`tokens` are the prompt's and all chosen ones; those that are new join."""
        prompt, self._prompt = self._prompt, None
        if prompt is not None:
            for text in prompt.draft_texts:
                self.index.extend((*text, SEPARATOR))
            self.index.extend(prompt_tokens(prompt))
        self.index.extend(tokens[len(self.index) - self._num_beside :])

    def take_back(self, num_tokens: int) -> None:
        """Only the first `num_tokens` of the prompt's and the chosen ones stand."""
        self.index.truncate(self._num_beside + num_tokens)

    def tail(self, count: int) -> list[int]:
        """The last tokens of the text, as far as it has grown: at most `count`."""
        size = len(self.index) - self._num_beside
        return self.index.tokens[len(self.index) - min(count, size) :]

    def continuations(
        self, *, limit: int, length: int, min_match: int, max_match: int
    ) -> list[Continuation]:
        """What followed up to `limit` earlier places like the text's end, the longest match first,
        among equals the latest."""
        matches = self.index.matches(limit=limit, min_match=min_match, max_match=max_match)
        return [Continuation(self.index.continuation(m, length), m.length) for m in matches]


def prompt_tokens(prompt: Prompt) -> list[int]:
    """The prompt's tokens, separators in place of its media."""
    tokens: list[int] = prompt.token_ids.tolist()
    for span in prompt.media:
        tokens[span.start : span.stop] = [SEPARATOR] * (span.stop - span.start)
    return tokens
