"""PromptedReader: documents that are answers to prompts of their own, images among them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from mmspec.errors import InputError
from mmspec.indexing.windows import as_keys
from mmspec.retrieval import KeyBatch
from mmspec.retrieval.corpus import DocumentName
from mmspec.retrieval.places import StoredDocument
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)

_CHUNK = 128  # tokens of each document in one forward


class PromptedReader:
    """Reads each document behind its own prompt: the states are those that the target has while it
    gives that answer, having seen the prompt's images.

    The prompt is prefilled as for a request, the document scored behind it as an accepted draft is.
    Other than a text without a prompt, a document has a key for its first token too: that of the
    prompt's end. What lies beyond the model's context is left out, with a warning.
    """

    def __init__(
        self,
        target: Target,
        prompt_of: Callable[[DocumentName], Prompt],
        *,
        tap: int,
        max_rows: int = 8,
    ) -> None:
        """`prompt_of` makes a document's prompt; it is asked when the document is read."""
        self._target = target
        self._prompt_of = prompt_of
        self._tap = tap
        self._max_rows = max_rows

    def read(self, documents: Iterable[StoredDocument], start: int) -> Iterator[KeyBatch]:
        """The keys of positions from `start` on, in their order."""
        waiting = iter(documents)
        while some := list(islice(waiting, self._max_rows)):
            yield self._keys(some, start)

    def _keys(self, documents: Sequence[StoredDocument], start: int) -> KeyBatch:
        target, tap, cache = self._target, self._tap, self._target.new_cache()
        texts, states, placements = [], [], []
        for document in documents:
            prompt = self._prompt_of(document.name)
            texts.append(self._fitting(document, prompt.num_tokens))
            row = cache.open(prompt.num_tokens + len(texts[-1]))
            prefill = target.prefill(prompt, cache, row, taps=(tap,))
            placements.append(prefill.placement)
            states.append([as_keys(prefill.hidden[tap][-1:])])
        done = 0
        while rows := [n for n, text in enumerate(texts) if len(text) > done + 1]:
            # The last token is not read: nothing follows it.
            parts = [texts[n][done : min(done + _CHUNK, len(texts[n]) - 1)] for n in rows]
            trees = [TokenTree.chain(p[0], p[1:], (1.0,) * (len(p) - 1), "") for p in parts]
            scores = target.score(trees, cache, [placements[n] for n in rows], taps=(tap,))
            cache.commit(
                {placements[n].row: range(len(p)) for n, p in zip(rows, parts, strict=True)}
            )
            for n, score in zip(rows, scores, strict=True):
                states[n].append(as_keys(score.hidden[tap]))
            done += _CHUNK
        cache.release()
        positions, keys = [], []
        for document, text, own in zip(documents, texts, states, strict=True):
            places = [
                document.position + n for n, token in enumerate(document.tokens) if token >= 0
            ]
            kept = [n for n, position in enumerate(places[: len(text)]) if position >= start]
            positions += [places[n] for n in kept]
            keys.append(np.concatenate(own)[kept])
        return KeyBatch(np.array(positions, np.int64), np.concatenate(keys))

    def _fitting(self, document: StoredDocument, num_before: int) -> list[int]:
        """The document's tokens, as many as the context holds behind its prompt."""
        tokens = [token for token in document.tokens if token >= 0]
        context = self._target.max_positions
        if context is None or num_before + len(tokens) <= context:
            return tokens
        if num_before >= context:
            raise InputError(
                f"{document.name.source}: the prompt of {document.name.id!r} has {num_before} "
                f"tokens: the model's context holds {context}; shorten it, or delete the document"
            )
        logger.warning(
            "%s: only %d of its %d tokens fit the context behind its prompt; the others get no "
            "hidden states",
            document.name.id,
            context - num_before,
            len(tokens),
        )
        return tokens[: context - num_before]
