"""Merging segments: few of them, for a look-up asks each, and none that holds what was deleted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmspec.retrieval.manifest import Manifest, SegmentRecord
from mmspec.retrieval.segment import merge_segments

MAX_SMALL_SEGMENTS = 8  # of less than half of the allowed size


def with_segments(
    folder: Path, manifest: Manifest, segments: Sequence[SegmentRecord], *, limit: int
) -> Manifest:
    """`manifest` with `segments`; where more than eight are small, these are merged into ones of
    up to `limit` tokens. Raises OSError."""
    small = [segment for segment in segments if _size(segment) <= limit // 2]
    if len(small) <= MAX_SMALL_SEGMENTS:
        return replace(manifest, segments=tuple(segments))
    groups: list[list[SegmentRecord]] = [[]]
    for segment in small:
        if sum(_size(one) for one in groups[-1]) + _size(segment) > limit:
            groups.append([])
        groups[-1].append(segment)
    kept = [segment for segment in segments if segment not in small]
    for group in groups:
        if len(group) > 1:
            merged, manifest = _merged(folder, manifest, group)
            group = [merged]
        kept += group
    return replace(manifest, segments=tuple(kept))


def without_deleted(folder: Path, manifest: Manifest) -> Manifest:
    """Every segment with deleted documents is written anew without them. Raises OSError."""
    segments = []
    for segment in manifest.segments:
        if segment.deleted:
            segment, manifest = _merged(folder, manifest, [segment])
        segments.append(segment)
    return replace(manifest, segments=tuple(segments))


def _merged(
    folder: Path, manifest: Manifest, group: Sequence[SegmentRecord]
) -> tuple[SegmentRecord, Manifest]:
    number = manifest.next_number
    merged = merge_segments(folder, group, number=number, vocab_size=manifest.vocab_size)
    return merged, replace(manifest, next_number=number + 1)


def _size(segment: SegmentRecord) -> int:
    """Tokens in its shard, separators among them."""
    return segment.num_tokens + segment.num_documents + len(segment.deleted)
