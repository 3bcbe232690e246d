"""The texts of requests that have no names: each is known by its tokens, in bounded memory.

A server's rows come and go and change places between steps; what a row holds says whose it is.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mmspec.retrieval import Continuation, OnlineIndex

Tokens = NDArray[np.int32]  # (seq,)

BYTES_PER_TOKEN = 450  # of an index (measured: 420 with four levels) and of the tokens themselves
_MOST_NEW = 1024  # tokens that a row may gain between two steps and still be known


class KnownText:
    """One request's tokens so far, and as many of them as have been indexed."""

    def __init__(self, tokens: Tokens, *, start: int, min_match: int) -> None:
        """The index holds the tokens from `start` on."""
        self.start = start
        self.index = OnlineIndex(min_match)
        self.num_tokens = len(tokens)
        self._tokens = np.empty(2 * len(tokens) + 64, np.int32)
        self._tokens[: len(tokens)] = tokens

    @property
    def num_kept(self) -> int:
        """Tokens that memory is needed for: those of the index, and a little for the others."""
        return self.num_tokens - self.start + self.num_tokens // 16 + 1

    @property
    def num_waiting(self) -> int:
        """Tokens that are to be indexed yet."""
        return self.num_tokens - self.start - len(self.index)

    def is_begun_by(self, row: Tokens) -> bool:
        """Whether this text begins with what `row` is: the row is the text and what followed it."""
        size = self.num_tokens
        if not size <= len(row) <= size + _MOST_NEW or row[size - 1] != self._tokens[size - 1]:
            return False
        return bool(np.array_equal(row[:size], self._tokens[:size]))

    def grow(self, row: Tokens) -> None:
        """Takes over what `row` has more."""
        if len(row) > len(self._tokens):
            longer = np.empty(2 * len(row), np.int32)
            longer[: self.num_tokens] = self._tokens[: self.num_tokens]
            self._tokens = longer
        self._tokens[self.num_tokens : len(row)] = row[self.num_tokens :]
        self.num_tokens = len(row)

    def catch_up(self, limit: int) -> int:
        """Indexes up to `limit` of the waiting tokens; returns how many it did."""
        done = self.start + len(self.index)
        new = self._tokens[done : min(done + limit, self.num_tokens)].tolist()
        self.index.extend(new)
        return len(new)

    def tail(self, count: int) -> list[int]:
        """The last tokens, at most `count`."""
        return self._tokens[max(self.num_tokens - count, 0) : self.num_tokens].tolist()

    def continuations(self, *, limit: int, length: int, min_match: int) -> list[Continuation]:
        """What followed earlier places like the text's end; nothing while tokens are waiting."""
        if self.num_waiting:
            return []
        matches = self.index.matches(limit=limit, min_match=min_match, max_match=32)
        return [Continuation(self.index.continuation(m, length), m.length) for m in matches]


class KnownTexts:
    """All requests that were seen lately. Of more than `max_tokens` tokens in all, those not seen
    for longest go; where a step's own are more, they are kept by their ends."""

    def __init__(self, *, max_tokens: int, min_match: int) -> None:
        self._max_tokens = max_tokens
        self._min_match = min_match
        self._texts: list[KnownText] = []  # those seen last at the end
        self._places: dict[int, KnownText] = {}  # where each was in the last step

    def __iter__(self) -> Iterator[KnownText]:
        return iter(self._texts)

    @property
    def num_kept(self) -> int:
        """Tokens that memory is needed for."""
        return sum(text.num_kept for text in self._texts)

    def of_step(self, rows: Mapping[int, Tokens]) -> dict[int, KnownText]:
        """The text of each place of a step, grown to what its row is now."""
        known = {
            place: text
            for place, text in self._places.items()
            if place in rows and text.is_begun_by(rows[place])
        }
        taken = {id(text) for text in known.values()}
        absent = [text for text in self._texts if id(text) not in taken]
        for place in sorted(rows.keys() - known.keys()):
            moved = next((text for text in absent if text.is_begun_by(rows[place])), None)
            if moved is not None:
                known[place] = moved
                absent.remove(moved)
        for place, text in known.items():
            text.grow(rows[place])
        for place in sorted(rows.keys() - known.keys()):
            known[place] = KnownText(rows[place], start=0, min_match=self._min_match)
        self._texts = absent + list(known.values())
        self._places = known
        self._make_room(len(absent))
        return known

    def _make_room(self, num_absent: int) -> None:
        """Forgets absent texts, the first ones; then the beginnings of the longest present ones."""
        excess = self.num_kept - self._max_tokens
        while excess > 0 and num_absent:
            excess -= self._texts.pop(0).num_kept
            num_absent -= 1
        while excess > 0:
            place, text = max(
                self._places.items(), key=lambda item: item[1].num_tokens - item[1].start
            )
            kept = (text.num_tokens - text.start) // 2
            if not kept:
                return  # nothing is indexed any more
            row = np.asarray(text.tail(text.num_tokens), np.int32)
            shorter = KnownText(row, start=len(row) - kept, min_match=self._min_match)
            excess -= text.num_kept - shorter.num_kept
            self._texts[self._texts.index(text)] = self._places[place] = shorter
