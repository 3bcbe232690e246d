"""Deleting documents: their segments get new tables, their tokens stay where they are."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mmspec.retrieval.manifest import Manifest
from mmspec.retrieval.segment import Segment, mark_deleted


@dataclass(frozen=True)
class Deletion:
    """What deleting some documents changes; nothing is committed yet."""

    manifest: Manifest  # without the documents
    found: frozenset[str]  # ids
    positions: tuple[range, ...]  # of their tokens


def without_documents(folder: Path, manifest: Manifest, ids: Iterable[str]) -> Deletion:
    """Writes the tables of the segments that hold documents with these `ids`. Raises OSError."""
    wanted, found = frozenset(ids), set[str]()
    positions, segments = list[range](), list(manifest.segments)
    for at, record in enumerate(manifest.segments):
        segment = Segment(folder, record, vocab_size=manifest.vocab_size)
        shard = segment.shard
        gone = [document for document in segment.kept if shard.names[document].id in wanted]
        if not gone:
            continue
        found |= {shard.names[document].id for document in gone}
        for _, length, position in shard.documents[gone].tolist():
            positions.append(range(position, position + length))
        number = manifest.next_number
        segments[at] = mark_deleted(folder, segment, gone, number=number)
        manifest = replace(manifest, next_number=number + 1)
    kept = tuple(segment for segment in segments if segment.num_documents)
    # Deleted and added again is not "the inputs are in already".
    manifest = replace(manifest, segments=kept, inputs="")
    return Deletion(manifest, frozenset(found), tuple(positions))
