"""SuffixIndex: the longest end of a text that a shard holds, and the places that hold it."""

import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmspec.retrieval.corpus import Shard
from mmspec.retrieval.files import damaged
from mmspec.retrieval.suffix_sort import DEPTH, sort_ends


class Search(NamedTuple):
    """Where the end of a text stands in the order of a shard's places. It holds for every shorter
    end too: those that have it lie round the same slot."""

    length: int  # tokens of the end that stand before some place; 0: none
    slot: int  # of the suffix array: the places most like the text are this one and the one before
    pattern: bytes


class Found(NamedTuple):
    """The places that an end of a text stands before: slots low .. high - 1 of the suffix array."""

    low: int
    high: int

    @property
    def num_places(self) -> int:
        return self.high - self.low


def sorted_places(shard: Shard) -> NDArray[np.uint32]:
    """The shard's suffix array: its places with a token before and a token behind them, in the
    order of `sort_ends`."""
    is_token = shard.tokens < shard.vocab_size
    is_place = np.zeros(len(is_token), bool)
    is_place[1:] = is_token[1:] & is_token[:-1]
    ends = sort_ends(shard.tokens, vocab_size=shard.vocab_size)
    return ends[is_place[ends]]


def places_without(
    shard: Shard, places: NDArray[np.uint32], documents: Collection[int]
) -> NDArray[np.uint32]:
    """A suffix array less its places in `documents`."""
    is_kept = np.ones(len(shard.documents), bool)
    is_kept[list(documents)] = False
    return places[np.repeat(is_kept, shard.documents["length"] + 1)[places]]


class SuffixIndex:
    """Look-ups in a shard by its suffix array, both memory-mapped; nothing is read beforehand.

    A token that is not in the vocabulary is a separator, in the shard as in a query: no match
    crosses it.
    """

    def __init__(self, shard: Shard, places: memoryview) -> None:
        """`places` are the bytes of a suffix array: uint32, as `sorted_places` gives them."""
        self.shard = shard
        self.places = places.cast("I") if len(places) else memoryview(b"").cast("B")

    def __len__(self) -> int:
        """Places that can be found."""
        return len(self.places)

    def search(self, query: Sequence[int], *, max_match: int = 32) -> Search:
        """How much of the end of `query`, of up to `max_match` <= 64 tokens, stands anywhere before
        a token."""
        if not 0 < max_match <= DEPTH:
            raise ValueError(f"max_match={max_match}: expected 1 .. {DEPTH}")
        pattern = self._pattern(query[-max_match:])
        key = self._key(len(pattern))
        slot = bisect_left(self.places, pattern, key=key)
        near = [key(place) for place in self.places[max(slot - 1, 0) : slot + 1]]
        common = max((_common_bytes(one, pattern) for one in near), default=0)
        return Search(common // self.shard.format.width, slot, pattern)

    def found(self, search: Search, length: int) -> Found:
        """The places with an end of `length` <= `search.length` tokens."""
        prefix = search.pattern[: length * self.shard.format.width]
        key = self._key(len(prefix))
        low, high = (self._edge(prefix, key, search.slot, way) for way in (-1, 1))
        return Found(low, high)

    def choose(self, found: Found, *, limit: int) -> list[int]:
        """Up to `limit` of the places found, evenly over what stood before the match, as offsets
        of the token that follows."""
        step = max(found.num_places / limit, 1.0)
        slots = range(min(found.num_places, limit))
        return [self.places[found.low + int(slot * step)] for slot in slots]

    def check_order(self, *, samples: int = 4096) -> None:
        """Compares `samples` neighbours, evenly spaced. Raises DatastoreError for a wrong order."""
        key = self._key(DEPTH * self.shard.format.width)
        pairs = max(len(self) - 1, 0)
        for slot in np.linspace(0, pairs - 1, min(samples, pairs)).astype(int).tolist():
            first, second = self.places[slot], self.places[slot + 1]
            if max(first, second) >= self.shard.num_tokens or not (
                (key(first), first) < (key(second), second)
            ):
                raise damaged(
                    f"the suffix array is out of order at slot {slot}: it is not its shard's"
                )

    def _pattern(self, tail: Sequence[int]) -> bytes:
        """The tokens behind the last separator, the last first, big-endian: as bytes they then
        compare as the tokens do."""
        if tail and (min(tail) < 0 or max(tail) >= self.shard.vocab_size):
            outside = [not 0 <= token < self.shard.vocab_size for token in tail]
            tail = tail[len(tail) - outside[::-1].index(True) :]
        return struct.pack(f"<{len(tail)}{self.shard.format.code}", *tail)[::-1]

    def _key(self, num_bytes: int) -> Callable[[int], bytes]:
        """From a place to the `num_bytes` before it, reversed."""
        data, width = self.shard.data, self.shard.format.width

        def key(place: int) -> bytes:
            stop = place * width
            return data[stop - num_bytes if stop > num_bytes else 0 : stop][::-1]

        return key

    def _edge(self, prefix: bytes, key: Callable[[int], bytes], slot: int, way: int) -> int:
        """Where the places with `prefix` round `slot` end: the first of them going down, the one
        past the last going up. Doubling steps, then bisection: few places cost few steps."""
        places, limit = self.places, len(self.places)
        inside, step = slot if way < 0 else slot - 1, 1
        while 0 <= inside + way * step < limit and key(places[inside + way * step]) == prefix:
            inside += way * step
            step *= 2
        outside = min(max(inside + way * step, -1), limit)
        while abs(outside - inside) > 1:
            middle = (inside + outside) // 2
            if key(places[middle]) == prefix:
                inside = middle
            else:
                outside = middle
        return inside if way < 0 else inside + 1


def _common_bytes(one: bytes, other: bytes) -> int:
    """How many leading bytes agree."""
    size = min(len(one), len(other))
    difference = int.from_bytes(one[:size]) ^ int.from_bytes(other[:size])
    return size - (difference.bit_length() + 7) // 8
