"""Lookups: what the segments of one state of a datastore hold, by tokens and by positions."""

from collections.abc import Iterator, Sequence

import numpy as np

from mmspec.retrieval.continuations import Continuation
from mmspec.retrieval.corpus import DocumentName
from mmspec.retrieval.exact_vectors import Positions
from mmspec.retrieval.places import Longest, Place, StoredDocument
from mmspec.retrieval.segment import Segment
from mmspec.retrieval.suffix_index import Search


class Lookups:
    """Each asks all segments, of which there are few."""

    def __init__(self, segments: Sequence[Segment], *, vocab_size: int) -> None:
        self.segments = tuple(segments)
        self._vocab_size = vocab_size

    # By tokens

    def longest(self, query: Sequence[int], *, max_match: int = 32) -> Longest:
        """The longest end of `query` (up to `max_match` <= 64 tokens) that stands in a document
        before another token."""
        return self._longest(self._searches(query, max_match), max_match)

    def _searches(self, query: Sequence[int], max_match: int) -> list[Search]:
        return [one.suffixes.search(query, max_match=max_match) for one in self.segments]

    def _longest(self, searches: Sequence[Search], max_match: int) -> Longest:
        length = min(max((one.length for one in searches), default=0), max_match)
        best = tuple(
            segment.suffixes.found(one, length) if 0 < length <= one.length else None
            for segment, one in zip(self.segments, searches, strict=True)
        )
        return Longest(length, sum(one.num_places for one in best if one), best)

    def places(self, longest: Longest, *, limit: int = 32) -> list[Place]:
        """Up to `limit` places of a match: an even sample of them."""
        places: list[Place] = []
        holding = [(n, one) for n, one in enumerate(longest.found) if one is not None]
        for seen, (number, one) in enumerate(holding):
            share = (limit - len(places)) // (len(holding) - seen)
            if share:
                chosen = self.segments[number].suffixes.choose(one, limit=share)
                places += [Place(number, offset) for offset in chosen]
        return places

    def continuations(
        self,
        query: Sequence[int],
        *,
        limit: int = 32,
        length: int = 16,
        min_match: int = 2,
        max_match: int = 32,
    ) -> list[Continuation]:
        """What followed the longest match of `query`'s end, then (while there are fewer than
        `limit`) that of ends half as long, down to `min_match` tokens."""
        rows: list[Continuation] = []
        seen: set[Place] = set()
        searches = self._searches(query, max_match)
        while max_match >= max(min_match, 1) and len(rows) < limit:
            longest = self._longest(searches, max_match)
            if longest.length < min_match:
                break
            for place in self.places(longest, limit=limit):
                if place not in seen:
                    seen.add(place)
                    tokens = self.tokens_from(place, length)
                    rows.append(Continuation(tokens, longest.length, "suffix"))
            max_match = longest.length // 2
        return rows[:limit]

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

    # By positions

    def tokens_at(self, positions: Positions) -> Positions:
        """The tokens at positions (rows,); -1 for separators, for the end of a document, and where
        there is none."""
        tokens = np.full(len(positions), -1, np.int64)
        for segment in self.segments:
            offsets = segment.shard.offsets_of(positions)
            found = segment.shard.tokens[offsets[offsets >= 0]].astype(np.int64)
            tokens[offsets >= 0] = np.where(found < self._vocab_size, found, -1)
        return tokens

    def place_of(self, position: int) -> Place | None:
        """Where a position lies; None where its document was deleted."""
        for number, segment in enumerate(self.segments):
            offset = segment.shard.offset_of(position)
            if offset is not None:
                is_deleted = segment.shard.document_of(offset) in segment.deleted
                return None if is_deleted else Place(number, offset)
        return None

    def documents_from(self, position: int = 0) -> Iterator[StoredDocument]:
        """The documents with a token at `position` or after it, in the order of positions: what a
        target reads to make the dense index's keys."""
        order = [
            (int(segment.shard.documents["position"][document]), number, document)
            for number, segment in enumerate(self.segments)
            for document in segment.kept
        ]
        for first, number, document in sorted(order):
            shard = self.segments[number].shard
            start, length, _ = shard.documents[document].tolist()
            if first + length > position:
                tokens = shard.tokens[start : start + length].astype(np.int64)
                tokens[tokens >= shard.vocab_size] = -1
                yield StoredDocument(shard.names[document], first, tokens.tolist())
