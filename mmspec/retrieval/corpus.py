"""Token shards on disk: documents one after the other, a separator behind each, memory-mapped.

Three files: `.tokens` (little-endian uint16, or uint32 for vocabularies that need it), `.documents`
(one record a document: where it starts, how long it is, its position) and `.names` (a JSON line a
document: id, source). A *position* is a token's number within the whole datastore: it is given once
and never again, so it stays right when shards are merged.
"""

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmspec.errors import DatastoreError
from mmspec.retrieval.files import damaged, flush

DOCUMENT = np.dtype([("start", "<u4"), ("length", "<u4"), ("position", "<u8")])
SUFFIXES = (".tokens", ".documents", ".names")
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Document:
    """Something to be indexed. `id` is the caller's name for it, by which it can be deleted;
    negative tokens are separators: nothing is matched or copied across them."""

    id: str
    source: str
    tokens: Sequence[int]


class DocumentName(NamedTuple):
    """Which document, and where it came from."""

    id: str
    source: str


class TokenFormat(NamedTuple):
    """How tokens of a vocabulary lie in a file."""

    dtype: np.dtype[np.unsignedinteger]
    code: str  # of `struct` and `memoryview.cast`
    separator: int

    @classmethod
    def of(cls, vocab_size: int) -> "TokenFormat":
        """Raises DatastoreError for a vocabulary without room for a separator."""
        if not 0 < vocab_size < 2**31:
            raise DatastoreError(f"vocab_size={vocab_size}: expected 1 .. 2^31 - 1")
        if vocab_size < 2**16:
            return cls(np.dtype("<u2"), "H", 2**16 - 1)
        return cls(np.dtype("<u4"), "I", 2**32 - 1)

    @property
    def width(self) -> int:
        """Bytes a token."""
        return self.dtype.itemsize


class Checkpoint(NamedTuple):
    """How much of an unfinished shard is on the disk for good."""

    num_tokens: int = 0  # separators among them
    num_documents: int = 0
    names_bytes: int = 0


class ShardWriter:
    """Appends documents to a shard's three files, with bounded memory.

    Nothing of it counts until `checkpoint` has returned: `at` then tells how much is safe, and a
    writer that starts from there goes on as if it had never stopped.
    """

    def __init__(self, stem: Path, *, vocab_size: int, at: Checkpoint | None = None) -> None:
        self.vocab_size = vocab_size
        self._format = TokenFormat.of(vocab_size)
        at = at or Checkpoint()
        self.num_tokens, self.num_documents = at.num_tokens, at.num_documents
        sizes = (at.num_tokens * self._format.width, at.num_documents * DOCUMENT.itemsize)
        self._files = []
        for suffix, size in zip(SUFFIXES, (*sizes, at.names_bytes), strict=True):
            path = stem.with_suffix(suffix)
            path.touch()
            file = path.open("r+b", buffering=_BUFFER_BYTES)
            self._files.append(file)
            if path.stat().st_size < size:
                self.close()
                raise DatastoreError(
                    f"{path}: this unfinished file is shorter than its checkpoint ({size} bytes); "
                    "start the build again from the beginning: fresh=True, --fresh"
                )
            file.truncate(size)
            file.seek(size)

    def append(self, name: DocumentName, tokens: NDArray[np.int64], *, position: int) -> None:
        """One document, and the separator behind it."""
        is_token = (tokens >= 0) & (tokens < self.vocab_size)
        stored = np.where(is_token, tokens, self._format.separator).astype(self._format.dtype)
        tokens_file, documents_file, names_file = self._files
        tokens_file.write(stored.tobytes())
        tokens_file.write(self._format.separator.to_bytes(self._format.width, "little"))
        record = np.array((self.num_tokens, len(tokens), position), DOCUMENT)
        documents_file.write(record.tobytes())
        names_file.write(json.dumps([name.id, name.source]).encode() + b"\n")
        self.num_tokens += len(tokens) + 1
        self.num_documents += 1

    def checkpoint(self) -> Checkpoint:
        """Puts everything on the disk."""
        for file in self._files:
            flush(file)
        return Checkpoint(self.num_tokens, self.num_documents, self._files[2].tell())

    def close(self) -> None:
        for file in self._files:
            file.close()


class Shard:
    """Reads a finished shard; keeps it mapped, so it stays readable when its files are deleted."""

    def __init__(self, stem: Path, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.format = TokenFormat.of(vocab_size)
        self.data = map_file(stem.with_suffix(".tokens"))
        self.documents = np.frombuffer(map_file(stem.with_suffix(".documents")), DOCUMENT)
        self._names_data = map_file(stem.with_suffix(".names"))

    @property
    def num_tokens(self) -> int:
        """Separators among them."""
        return len(self.data) // self.format.width

    @property
    def tokens(self) -> NDArray[np.unsignedinteger]:
        """(tokens,), not copied."""
        return np.frombuffer(self.data, self.format.dtype)

    @cached_property
    def names(self) -> list[DocumentName]:
        """One a document; read when first asked for."""
        lines = bytes(self._names_data).splitlines()
        return [DocumentName(*json.loads(line)) for line in lines]

    def read(self, start: int, stop: int) -> list[int]:
        """Tokens from `start`, cut before `stop` and before the first separator."""
        width = self.format.width
        data = self.data[start * width : stop * width]
        tokens = struct.unpack(f"<{len(data) // width}{self.format.code}", data)
        if max(tokens, default=0) < self.vocab_size:
            return list(tokens)
        return list(takewhile(lambda token: token < self.vocab_size, tokens))

    def document_of(self, offset: int) -> int:
        """The document that holds the token at `offset`."""
        return int(np.searchsorted(self._starts, offset, side="right")) - 1

    def offset_of(self, position: int) -> int | None:
        """Where the token with the datastore's `position` lies; None where it is not here."""
        document = int(np.searchsorted(self._positions, position, side="right")) - 1
        if document < 0:
            return None
        start, length, first = self.documents[document].tolist()
        return start + position - first if position < first + length else None

    def offsets_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`offset_of` for many (rows,), -1 for those that are not here."""
        document = np.searchsorted(self._positions, positions, side="right") - 1
        own = self.documents[np.maximum(document, 0)]
        within = positions - own["position"].astype(np.int64)
        is_here = (document >= 0) & (within < own["length"])
        return np.where(is_here, own["start"].astype(np.int64) + within, -1)

    @cached_property
    def _starts(self) -> NDArray[np.uint32]:
        return np.ascontiguousarray(self.documents["start"])  # searching a field would copy it

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        """Ascending: merging keeps the order."""
        return self.documents["position"].astype(np.int64)

    def check_integrity(self) -> None:
        """Raises DatastoreError where the tables contradict each other."""
        starts, lengths = (self.documents[name].astype(np.int64) for name in ("start", "length"))
        ends = np.concatenate([[0], starts + lengths + 1])
        separators = self.tokens[ends[1:] - 1] if ends[-1] == self.num_tokens else None
        if (
            separators is None
            or not np.array_equal(starts, ends[:-1])
            or (separators < self.vocab_size).any()
            or len(self.names) != len(starts)
            or (np.diff(self._positions) <= 0).any()
        ):
            raise damaged("a shard's documents do not add up to its tokens")


def map_file(path: Path) -> mmap.mmap | bytes:
    """A file's contents, mapped; no bytes for an empty one, which cannot be."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
