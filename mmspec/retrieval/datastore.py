"""Datastore: a folder with a manifest, opened for look-ups.

Everything is memory-mapped, so it opens in milliseconds whatever its size. What is open stays as it
was when it was opened: a writer that adds or deletes meanwhile is not seen until `latest`, and when
the folder is deleted, the mapped files live on as long as the datastore object does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmspec.errors import DatastoreError
from mmspec.retrieval.continuations import Continuation
from mmspec.retrieval.corpus import DocumentName
from mmspec.retrieval.dense_index import DenseIndex, Keys, Neighbours, Positions
from mmspec.retrieval.files import check_file
from mmspec.retrieval.manifest import Manifest, SegmentRecord, read_manifest
from mmspec.retrieval.segment import Segment
from mmspec.retrieval.suffix_index import Choice, Found

VERIFY_BYTES = 64 * 2**20  # datastores up to this size are checked in full when they are opened
_PROBE_COSINE = 0.999  # the same weights in another precision reach it


class Place(NamedTuple):
    """Somewhere in a datastore: its token follows a match."""

    segment: int  # number in `Datastore.segments`
    offset: int  # of the token in the segment's shard


class StoredDocument(NamedTuple):
    """A document as it is read back."""

    name: DocumentName
    position: int  # of its first token; the next token's is one more
    tokens: list[int]  # -1 for separators


class Longest(NamedTuple):
    """The longest match of a look-up, in every segment that has it."""

    length: int  # 0: nothing was found
    num_places: int  # that have it, in all segments
    found: tuple[Found | None, ...]  # one a segment

    @property
    def is_nothing(self) -> bool:
        return self.num_places == 0


class Datastore:
    """Look-ups in a corpus: exact by its tokens, and by hidden states where it has them."""

    def __init__(self, folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Use `open`."""
        self.folder = folder
        self.manifest = manifest
        self.segments = tuple(segments)
        self._dense: DenseIndex | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        verify: bool | None = None,
    ) -> "Datastore":
        """Opens a datastore, if it fits the target's `tokenizer` (its hash) and `vocab_size`.

        `verify=None` compares the checksum of every file up to 64 MB in all, and only their sizes
        above that; True and False decide it. A dense index is always compared before it is read.

        Raises DatastoreError: no datastore, another format, a damaged file, another tokenizer, a
        vocabulary too small.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        while True:
            manifest.check_fit(path, tokenizer=tokenizer, vocab_size=vocab_size)
            in_full = manifest.num_bytes <= VERIFY_BYTES if verify is None else verify
            try:
                for file in manifest.files:
                    check_file(path, file, contents=in_full)
                segments = [
                    Segment(path, record, vocab_size=manifest.vocab_size)
                    for record in manifest.segments
                ]
                return cls(path, manifest, segments)
            except FileNotFoundError as error:
                # A writer may have replaced the file after the manifest was read.
                manifest, before = read_manifest(path), manifest
                if manifest == before:
                    raise DatastoreError(
                        f"{error.filename}: this file of the datastore is gone; restore the folder "
                        "from a copy, or build it again"
                    ) from error

    def latest(self) -> "Datastore":
        """This datastore as it is on the disk now: itself where nothing was committed since.

        Raises DatastoreError where the folder is gone; this one goes on working.
        """
        if read_manifest(self.folder) == self.manifest:
            return self
        return Datastore.open(
            self.folder, tokenizer=self.manifest.tokenizer, vocab_size=self.manifest.vocab_size
        )

    # By tokens.

    def longest(self, query: Sequence[int], *, max_match: int = 32) -> Longest:
        """The longest end of `query` (up to `max_match` <= 64 tokens) that stands in a document
        before another token."""
        found = [segment.suffixes.longest(query, max_match=max_match) for segment in self.segments]
        length = max((one.length for one in found), default=0)
        if length == 0:
            return Longest(0, 0, ())
        best = tuple(one if one.length == length else None for one in found)
        return Longest(length, sum(one.num_places for one in best if one), best)

    def places(
        self,
        longest: Longest,
        *,
        limit: int = 32,
        choice: Choice = "spread",
        per_document: int | None = None,
    ) -> list[Place]:
        """Up to `limit` places of a match: an even sample of them, or ("latest") those that were
        added last, the latest first. With `per_document`, at most so many of one document."""
        wanted = limit if per_document is None else 8 * limit
        places: list[Place] = []
        holding = [(n, one) for n, one in enumerate(longest.found) if one is not None]
        if choice == "latest":
            holding.reverse()  # a later segment was added later
        for seen, (number, one) in enumerate(holding):
            share = wanted - len(places)
            if choice == "spread":
                share = -(-share // (len(holding) - seen))
            if share > 0:
                chosen = self.segments[number].suffixes.choose(one, limit=share, choice=choice)
                places += [Place(number, offset) for offset in chosen]
        if per_document is not None:
            places = self._fewer(places, per_document)
        return places[:limit]

    def continuations(
        self,
        query: Sequence[int],
        *,
        limit: int = 32,
        length: int = 16,
        min_match: int = 2,
        max_match: int = 32,
        choice: Choice = "spread",
    ) -> list[Continuation]:
        """What followed the longest match of `query`'s end, then (while there are fewer than
        `limit`) that of ends half as long, down to `min_match` tokens."""
        rows: list[Continuation] = []
        seen: set[Place] = set()
        while max_match >= min_match:
            longest = self.longest(query, max_match=max_match)
            if longest.length < min_match:
                break
            for place in self.places(longest, limit=limit, choice=choice):
                if place not in seen and len(rows) < limit:
                    seen.add(place)
                    tokens = self.tokens_from(place, length)
                    rows.append(Continuation(tokens, longest.length, "suffix"))
            if len(rows) >= limit:
                break
            max_match = longest.length // 2
        return rows

    def tokens_from(self, place: Place, length: int) -> list[int]:
        """Up to `length` tokens from a place on, cut before a separator."""
        shard = self.segments[place.segment].shard
        return shard.read(place.offset, place.offset + length)

    def tokens_before(self, place: Place, length: int) -> list[int]:
        """Up to `length` tokens before a place, cut behind a separator."""
        shard = self.segments[place.segment].shard
        tokens = shard.tokens[max(place.offset - length, 0) : place.offset].tolist()
        outside = [n for n, token in enumerate(tokens, start=1) if token >= shard.vocab_size]
        return tokens[outside[-1] if outside else 0 :]

    def document_of(self, place: Place) -> DocumentName:
        """Which document a place is in."""
        shard = self.segments[place.segment].shard
        return shard.names[shard.document_of(place.offset)]

    # By hidden states.

    def check_target(self, *, fingerprint: str, probe: Sequence[float] = ()) -> None:
        """Refuses a target whose hidden states are not those of the dense index.

        `fingerprint` is the one it was built with; `probe`, if both have one, is the hidden state
        of the text that the builder took: their cosine has to be 0.999 at least. Raises
        DatastoreError; also where there is no dense index.
        """
        dense = self.manifest.dense
        if dense is None:
            raise DatastoreError(f"{self.folder}: this datastore has no dense index")
        if dense.fingerprint != fingerprint:
            raise DatastoreError(
                f"{self.folder}: its dense index holds hidden states of other weights: got "
                f"{fingerprint}, it was built with {dense.fingerprint}; build it for this target"
            )
        if dense.probe and len(probe):
            if len(probe) != len(dense.probe):
                cosine = 0.0
            else:
                a, b = np.asarray(probe, float), np.asarray(dense.probe, float)
                cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
            if not cosine >= _PROBE_COSINE:
                raise DatastoreError(
                    f"{self.folder}: the target's hidden state of the probe is not the dense "
                    f"index's: got cosine {cosine:.4f}, expected {_PROBE_COSINE} at least; are "
                    "these the weights, adapters and layer that it was built with?"
                )

    @property
    def dense(self) -> DenseIndex | None:
        """The dense index, opened when first asked for, after its checksum. None where there is
        none. Raises DatastoreError, and MissingExtraError where faiss is missing."""
        record = self.manifest.dense
        if self._dense is None and record is not None:
            try:
                check_file(self.folder, record.file, contents=True)
                self._dense = DenseIndex.open(self.folder / record.file.name, dim=record.dim)
            except FileNotFoundError as error:
                raise DatastoreError(
                    f"{error.filename}: the dense index has been replaced or deleted since this "
                    "datastore was opened; take latest()"
                ) from error
        return self._dense

    def nearest(self, queries: Keys, *, limit: int = 32) -> Neighbours:
        """The positions nearest to hidden states (rows, dim), for all rows of a batch in one go.
        Raises DatastoreError where there is no dense index."""
        dense = self.dense
        if dense is None:
            raise DatastoreError(f"{self.folder}: this datastore has no dense index")
        return dense.search(queries, limit=limit)

    def tokens_at(self, positions: Positions) -> Positions:
        """The tokens at positions (rows,); -1 for separators, for the end of a document, and where
        there is none."""
        tokens = np.full(len(positions), -1, np.int64)
        for segment in self.segments:
            offsets = segment.shard.offsets_of(positions)
            found = segment.shard.tokens[offsets[offsets >= 0]].astype(np.int64)
            tokens[offsets >= 0] = np.where(found < self.manifest.vocab_size, found, -1)
        return tokens

    def place_of(self, position: int) -> Place | None:
        """Where a position lies; None where its document was deleted."""
        for number, segment in enumerate(self.segments):
            offset = segment.shard.offset_of(position)
            if offset is not None:
                is_deleted = segment.shard.document_of(offset) in segment.deleted
                return None if is_deleted else Place(number, offset)
        return None

    def position_of(self, place: Place) -> int:
        """A place's position, which stays the same when segments are merged."""
        return self.segments[place.segment].shard.position_of(place.offset)

    # The whole.

    def documents_from(self, position: int = 0) -> Iterator[StoredDocument]:
        """The documents with a token at `position` or after it, in the order of positions: what a
        target reads to make the dense index's keys."""
        order = [
            (int(first), number, document)
            for number, segment in enumerate(self.segments)
            for document, first in enumerate(segment.shard.documents["position"])
            if document not in segment.deleted
        ]
        for first, number, document in sorted(order):
            shard = self.segments[number].shard
            start, length, _ = shard.documents[document].tolist()
            if first + length > position:
                tokens = shard.tokens[start : start + length].astype(np.int64)
                tokens[tokens >= shard.vocab_size] = -1
                yield StoredDocument(shard.names[document], first, tokens.tolist())

    def check_integrity(self) -> None:
        """Checksums, tables, counts and the suffix arrays' order (sampled). Raises DatastoreError,
        naming the file or segment."""
        for file in self.manifest.files:
            try:
                check_file(self.folder, file, contents=True)
            except FileNotFoundError as error:
                raise DatastoreError(f"{error.filename}: this file is gone") from error
        for segment in self.segments:
            segment.check_integrity()

    def documents(self, segment: SegmentRecord) -> list[DocumentName]:
        """The names of a segment's documents, those deleted left out."""
        names = self.segments[self.manifest.segments.index(segment)].shard.names
        return [name for number, name in enumerate(names) if number not in segment.deleted]

    def _fewer(self, places: Sequence[Place], per_document: int) -> list[Place]:
        counts: dict[tuple[int, int], int] = {}
        kept = []
        for place in places:
            document = self.segments[place.segment].shard.document_of(place.offset)
            count = counts[place.segment, document] = counts.get((place.segment, document), 0) + 1
            if count <= per_document:
                kept.append(place)
        return kept
