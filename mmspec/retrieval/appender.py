"""Appender: documents in, sorted segments out, with a journal to go on from."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmspec.errors import DatastoreError
from mmspec.retrieval.corpus import Checkpoint, Document, DocumentName, Shard, ShardWriter
from mmspec.retrieval.journal import Journal, write_journal
from mmspec.retrieval.manifest import SegmentRecord
from mmspec.retrieval.segment import Segment, finish_segment, stem_of

_CHECKPOINT_TOKENS = 2**18


class Appender:
    """One add: `append` documents, then `finish`. Goes on from the journal it is given."""

    def __init__(self, folder: Path, journal: Journal, *, before: Sequence[SegmentRecord]) -> None:
        """`before` are the segments that are there already. Raises OSError and DatastoreError."""
        self.folder = folder
        self.journal = journal
        self._shard: ShardWriter | None = None
        self._ids = set[str]()
        self._earlier: dict[str, list[tuple[Shard, int]]] = {}  # the pieces of each document
        self._tokens_since = 0  # the last checkpoint
        if journal.current:
            self._shard = self._shard_writer()  # cuts it back to its checkpoint
            names = Shard(stem_of(folder, journal.current), vocab_size=journal.vocab_size).names
            self._ids.update(name.id for name in names)
        for record in before:
            segment = Segment(folder, record, vocab_size=journal.vocab_size)
            for number in segment.kept:
                pieces = self._earlier.setdefault(segment.shard.names[number].id, [])
                pieces.append((segment.shard, number))
        for record in journal.finished:
            segment = Segment(folder, record, vocab_size=journal.vocab_size)
            self._ids.update(name.id for name in segment.names)

    def earlier(self, name: str) -> list[int] | None:
        """The tokens, -1 for separators, of the document with this id that was there before."""
        if (pieces := self._earlier.get(name)) is None:
            return None
        found: dict[int, NDArray[np.int64]] = {}  # by position
        for shard, number in pieces:
            start, length, position = shard.documents[number].tolist()
            found[position] = shard.tokens[start : start + length].astype(np.int64)
        tokens = np.concatenate([found[position] for position in sorted(found)])
        return np.where(tokens < self.journal.vocab_size, tokens, -1).tolist()

    def checked(self, document: Document) -> NDArray[np.int64]:
        """Its tokens. Raises DatastoreError: an id that is there already, a token that is no
        integer or outside of the vocabulary; nothing is changed then."""
        if document.id in self._ids or document.id in self._earlier:
            raise DatastoreError(
                f"{self.folder}: document {document.id!r} ({document.source}) is there already; "
                "delete it first, or give it another id"
            )
        tokens = np.asarray(document.tokens).reshape(-1)
        if not (isinstance(document.id, str) and isinstance(document.source, str)) or (
            len(tokens) and tokens.dtype.kind not in "iu"
        ):
            raise DatastoreError(
                f"document {document.id!r}: got {tokens[:3].tolist()} ..., from "
                f"{document.source!r}; expected integer tokens, and strings as its id and source"
            )
        if len(tokens) and int(tokens.max()) >= self.journal.vocab_size:
            raise DatastoreError(
                f"document {document.id!r}: token {int(tokens.max())} lies outside of the "
                f"vocabulary of {self.journal.vocab_size}; was it made by another tokenizer?"
            )
        return tokens.astype(np.int64)

    def append(self, document: Document, tokens: NDArray[np.int64]) -> None:
        """The document, whose `tokens` were checked. Raises OSError."""
        self._ids.add(document.id)
        name, size = DocumentName(document.id, document.source), self.journal.segment_tokens - 1
        for start in range(0, max(len(tokens), 1), size):
            self._append_piece(name, tokens[start : start + size])
        self.journal = replace(self.journal, num_documents=self.journal.num_documents + 1)
        if self._tokens_since >= _CHECKPOINT_TOKENS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Everything up to here is safe. Raises OSError."""
        if self._shard is not None:
            self.journal = replace(self.journal, checkpoint=self._shard.checkpoint())
        write_journal(self.folder, self.journal)
        self._tokens_since = 0

    def finish(self) -> Journal:
        """Sorts what is not sorted yet. Raises OSError."""
        self._finish_shard()
        self._earlier.clear()  # Windows deletes no file that is mapped
        return self.journal

    def close(self) -> None:
        """What came after the last checkpoint is forgotten, unless it was finished."""
        if self._shard is not None:
            with contextlib.suppress(OSError):  # a full disk has been told already
                self._shard.close()
            self._shard = None

    def _append_piece(self, name: DocumentName, tokens: NDArray[np.int64]) -> None:
        held = self._shard.num_tokens if self._shard else 0
        if held and held + len(tokens) + 1 > self.journal.segment_tokens:
            self._finish_shard()
        if self._shard is None:
            number = self.journal.next_number
            self.journal = replace(self.journal, current=number, next_number=number + 1)
            self._shard = self._shard_writer()
        position = self.journal.next_position
        self._shard.append(name, tokens, position=position)
        self.journal = replace(self.journal, next_position=position + len(tokens) + 1)
        self._tokens_since += len(tokens) + 1

    def _shard_writer(self) -> ShardWriter:
        return ShardWriter(
            stem_of(self.folder, self.journal.current),
            vocab_size=self.journal.vocab_size,
            at=self.journal.checkpoint,
        )

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.checkpoint()
        self._shard.close()
        self._shard = None
        number = self.journal.current
        record = finish_segment(self.folder, number, vocab_size=self.journal.vocab_size)
        self._tokens_since = _CHECKPOINT_TOKENS  # so that it is not sorted twice
        self.journal = replace(
            self.journal,
            finished=(*self.journal.finished, record),
            current=0,
            checkpoint=Checkpoint(),
        )
