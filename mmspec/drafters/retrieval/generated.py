"""GeneratedSource: what was generated before, each namespace for itself."""

import logging
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query, Source
from mmspec.retrieval import Continuation, GeneratedStore

logger = logging.getLogger(__name__)

_MIN_MATCH = 3  # the store's own least
_SAVE_SECONDS = 30.0


class GeneratedSource(Source):
    """Finished texts join as they end, and are found in the namespace they came from alone.

    In memory, bounded in bytes; on disk only with a `path`: read at the start, written at most
    every 30 seconds, when something is forgotten, and at the end.
    """

    name = "generated"
    learns = True

    def __init__(
        self, limits: Limits, *, max_bytes: int, path: Path | None = None, tokenizer: str = ""
    ) -> None:
        """`tokenizer`: its hash, which a file must have. Raises DatastoreError: the file is
        damaged or of another tokenizer."""
        self._limits = limits
        self._file = None if path is None else _File(path, tokenizer)
        if path is not None and path.exists():
            self.store = GeneratedStore.load(path, tokenizer=tokenizer, max_bytes=max_bytes)
        else:
            self.store = GeneratedStore(max_bytes)
        if self._file is not None:  # also at the interpreter's end
            weakref.finalize(self, self._file.save, self.store)

    def find_one(self, query: Query, length: int) -> list[Continuation]:
        if query.namespace is None:
            return []
        matches = self.store.matches(
            query.tail,
            namespace=query.namespace,
            limit=self._limits.max_places,
            min_match=self._limits.min_match,
            max_match=max(self._limits.max_match, _MIN_MATCH),
        )
        return [self.store.continuation(match, length) for match in matches]

    def was_useful(self, continuation: Continuation) -> None:
        self.store.was_useful(continuation.origin)

    def learn(self, tokens: Sequence[int], namespace: str) -> None:
        self.store.add(tokens, namespace=namespace)
        if self._file is not None:
            self._file.changed(self.store)

    def forget(self, namespace: str | None) -> None:
        """Drops what a namespace left, or all; from the file too."""
        for name in self.store.namespaces() if namespace is None else [namespace]:
            self.store.forget(name)
        if self._file is not None:
            self._file.is_changed = True
            self._file.save(self.store)


class _File:
    """Where the texts are kept, and whether they have changed since."""

    def __init__(self, path: Path, tokenizer: str) -> None:
        self.path = path
        self.is_changed = False
        self._tokenizer = tokenizer
        self._saved_s = -_SAVE_SECONDS

    def changed(self, store: GeneratedStore) -> None:
        self.is_changed = True
        if time.monotonic() - self._saved_s >= _SAVE_SECONDS:
            self.save(store)

    def save(self, store: GeneratedStore) -> None:
        if not self.is_changed:
            return
        self._saved_s = time.monotonic()
        try:
            store.save(self.path, tokenizer=self._tokenizer)
            self.is_changed = False
        except OSError as error:  # what is kept must never cost a text
            logger.warning("generated texts are not saved: %s: %s", self.path, error)
