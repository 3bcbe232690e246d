"""TextReader: the target reads documents by windows, several in one forward."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.inputs import InputProcessor
from mmspec.retrieval import KeyBatch
from mmspec.retrieval.exact_vectors import Keys
from mmspec.retrieval.places import StoredDocument
from mmspec.target import Target

WINDOW_TOKENS = 2048
BATCH_TOKENS = 8192


class Window(NamedTuple):
    """A part of a document that is read in one go."""

    tokens: list[int]
    positions: list[int]  # of the tokens, in the datastore
    first: int  # index of the first token that gets a key here; those before are context


class TextReader:
    """Reads every document behind the same `lead`, as the answer to it.

    A token's key is the hidden state of the token before it, so a document's first token has none.
    Separators are not read, and have none.
    """

    def __init__(
        self,
        target: Target,
        *,
        tap: int,
        lead: Sequence[int] = (),
        window_tokens: int | None = None,
        overlap_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """`lead`: tokens before each window, such as a chat's beginning, so that the states are
        those of an answer. A document longer than `window_tokens` (by default the model's context,
        2,048 at most) is read in several, of which each but the first sees `overlap_tokens` (a
        quarter) of the one before. A forward takes `batch_tokens`, padding counted.

        Raises ConfigError for windows that do not fit the context, or do not move on.
        """
        room = (target.max_positions or WINDOW_TOKENS + len(lead)) - len(lead)
        size = min(WINDOW_TOKENS, room) if window_tokens is None else window_tokens
        overlap = size // 4 if overlap_tokens is None else overlap_tokens
        if not 2 <= size <= room or not 1 <= overlap < size:
            raise ConfigError(
                f"window_tokens={size}, overlap_tokens={overlap}: expected 2 to {room} tokens (all "
                "that the context holds beside the lead), and a smaller overlap of 1 or more"
            )
        self._target = target
        self._tap = tap
        self._lead = list(lead)
        self._size, self._overlap = size, overlap
        self._batch_tokens = batch_tokens

    def read(self, documents: Iterable[StoredDocument], start: int) -> Iterator[KeyBatch]:
        """The keys of positions from `start` on, in their order."""
        batch: list[Window] = []
        for window in self._windows(documents, start):
            longest = max(len(one.tokens) for one in (*batch, window)) + len(self._lead)
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                yield self._keys(batch, start)
                batch = []
            batch.append(window)
        if batch:
            yield self._keys(batch, start)

    def _windows(self, documents: Iterable[StoredDocument], start: int) -> Iterator[Window]:
        for document in documents:
            read = [n for n, token in enumerate(document.tokens) if token >= 0]
            tokens = [document.tokens[n] for n in read]
            positions = [document.position + n for n in read]
            begin, end = 0, 0
            while end < len(tokens):
                first = max(end - begin, 1)
                end = min(begin + self._size, len(tokens))
                if positions[end - 1] >= start and end - begin > 1:
                    yield Window(tokens[begin:end], positions[begin:end], first)
                begin = end - self._overlap

    def _keys(self, windows: Sequence[Window], start: int) -> KeyBatch:
        texts = [[*self._lead, *window.tokens] for window in windows]
        hidden = self._target.read(texts, taps=(self._tap,))
        positions, keys = [], []
        for window, states in zip(windows, hidden, strict=True):
            own = range(window.first, len(window.tokens))
            kept = [n for n in own if window.positions[n] >= start]
            positions += [window.positions[n] for n in kept]
            keys.append(as_keys(states[self._tap][[len(self._lead) + n - 1 for n in kept]]))
        return KeyBatch(np.array(positions, np.int64), np.concatenate(keys))


def answer_lead(inputs: InputProcessor, question: str = "Quote the document.") -> list[int]:
    """A `lead` that makes documents answers: the question in the model's chat template, or without
    one the question as it is."""
    return inputs.encode(question).token_ids.tolist()


def as_keys(states: Tensor) -> Keys:
    """Hidden states (rows, hidden) as the dense index takes them."""
    return states.float().cpu().numpy()
