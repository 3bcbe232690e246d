"""Segment: a shard and its suffix index, opened from a datastore's folder."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmspec.retrieval.corpus import SUFFIXES, DocumentName, Shard, ShardWriter, map_file
from mmspec.retrieval.files import FileRecord, damaged, record_of, write_atomically
from mmspec.retrieval.manifest import SegmentRecord
from mmspec.retrieval.suffix_index import SuffixIndex, places_without, sorted_places

PLACES = ".suffixes"


class Segment:
    """Some of the datastore's documents, and look-ups in them."""

    def __init__(self, folder: Path, record: SegmentRecord, *, vocab_size: int) -> None:
        """Raises FileNotFoundError where a writer has replaced it meanwhile."""
        self.record = record
        self.shard = Shard(stem_of(folder, record.number), vocab_size=vocab_size)
        places = memoryview(map_file(folder / record.files[-1].name))
        self.suffixes = SuffixIndex(self.shard, places)
        self.deleted = frozenset(record.deleted)

    @property
    def kept(self) -> list[int]:
        """The documents that are not deleted, by number."""
        return [n for n in range(len(self.shard.documents)) if n not in self.deleted]

    @property
    def names(self) -> list[DocumentName]:
        """Of the documents that are not deleted."""
        return [self.shard.names[n] for n in self.kept]

    def check_integrity(self) -> None:
        """Counts, tables and the suffix array's order. Raises DatastoreError."""
        self.shard.check_integrity()
        self.suffixes.check_order()
        lengths = self.shard.documents["length"]
        record = self.record
        counts = (int(lengths.sum()), len(lengths) - len(self.deleted), len(self.suffixes))
        expected = (record.num_tokens, record.num_documents, record.num_places)
        if counts != expected:
            raise damaged(
                f"segment {record.number}: got (tokens, documents, places) = {counts}, the "
                f"manifest says {expected}"
            )


def stem_of(folder: Path, number: int) -> Path:
    """The path of a segment's files, but for their suffixes."""
    return folder / f"{number:06d}"


def finish_segment(folder: Path, number: int, *, vocab_size: int) -> SegmentRecord:
    """Sorts a complete shard. Raises OSError."""
    stem = stem_of(folder, number)
    shard = Shard(stem, vocab_size=vocab_size)
    files = tuple(record_of(stem.with_suffix(suffix)) for suffix in SUFFIXES)
    places = sorted_places(shard)
    written = _write_places(stem.with_suffix(PLACES), places)
    return SegmentRecord(
        number=number,
        num_tokens=int(shard.documents["length"].sum()),
        deleted=(),
        num_documents=len(shard.documents),
        num_places=len(places),
        files=(*files, written),
    )


def mark_deleted(
    folder: Path, segment: Segment, documents: Collection[int], *, number: int
) -> SegmentRecord:
    """The segment's record, its new suffix array, numbered `number`, without `documents`.

    Their tokens stay in the shard until it is merged, but nothing finds them. Raises OSError.
    """
    before = np.frombuffer(segment.suffixes.places, np.uint32)
    places = places_without(segment.shard, before, documents)
    deleted = segment.deleted.union(documents)
    written = _write_places(stem_of(folder, number).with_suffix(PLACES), places)
    return replace(
        segment.record,
        deleted=tuple(sorted(deleted)),
        num_documents=len(segment.shard.documents) - len(deleted),
        num_places=len(places),
        files=(*segment.record.files[:-1], written),
    )


def merge_segments(
    folder: Path, records: Sequence[SegmentRecord], *, number: int, vocab_size: int
) -> SegmentRecord:
    """One new segment of the documents of several, in the order of their positions, the deleted
    ones left out. Raises OSError."""
    segments = [Segment(folder, record, vocab_size=vocab_size) for record in records]
    kept = [(one.shard, document) for one in segments for document in one.kept]
    kept.sort(key=lambda pair: int(pair[0].documents["position"][pair[1]]))
    writer = ShardWriter(stem_of(folder, number), vocab_size=vocab_size)
    try:
        for shard, document in kept:
            start, length, position = shard.documents[document].tolist()
            tokens = shard.tokens[start : start + length].astype(np.int64)
            writer.append(shard.names[document], tokens, position=position)
        writer.checkpoint()
    finally:
        writer.close()
    return finish_segment(folder, number, vocab_size=vocab_size)


def _write_places(path: Path, places: NDArray[np.uint32]) -> FileRecord:
    return write_atomically(path, lambda file: file.write(places.data))
