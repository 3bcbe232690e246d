"""OnlineIndex: a growing text and the earlier places that look like its end.

For each n of `LEVELS`, a table of the last place where each n-gram ended, and from each place a
link to the one before. A look-up follows the links of the longest n-gram of the text's end that
was seen before, then of shorter ones, and measures each match exactly.
"""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

from mmspec.retrieval.continuations import before_separator

LEVELS = (1, 2, 4, 8, 16)
_MAX_LINKS = 48  # followed a level and look-up


class Match(NamedTuple):
    """An earlier place whose preceding tokens equal the end of the text."""

    end: int  # index of the token that followed there
    length: int  # matching tokens before it, counted up to the look-up's `max_match`


class OnlineIndex:
    """Tokens, appended one by one (about 2 us each), and look-ups of their end.

    A negative token is a separator: no match crosses it.
    """

    def __init__(self, min_match: int = 1) -> None:
        self.tokens: list[int] = []
        shortest = max(n for n in LEVELS if n <= max(min_match, 1))
        self._levels = [n for n in LEVELS if n >= shortest]
        self._last: list[dict[int, int]] = [{} for _ in self._levels]
        self._previous = [array("l") for _ in self._levels]

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for n, last, previous in zip(self._levels, self._last, self._previous, strict=True):
                # Keys are hashes: a collision costs a candidate that the exact measure drops.
                key = hash(tuple(self.tokens[end - n : end])) if end >= n else 0
                previous.append(last.get(key, 0))
                last[key] = end

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on: all is as if they had never been appended."""
        for end in range(len(self.tokens), length, -1):
            for n, last, previous in zip(self._levels, self._last, self._previous, strict=True):
                key = hash(tuple(self.tokens[end - n : end])) if end >= n else 0
                before = previous.pop()
                if before:
                    last[key] = before
                else:
                    del last[key]
            self.tokens.pop()

    def matches(self, *, limit: int, min_match: int, max_match: int) -> list[Match]:
        """Up to `limit` earlier places like the text's end, the longest match first, among equals
        the latest. Only matches of at least `min_match` tokens."""
        found: dict[int, int] = {}
        now = len(self.tokens)
        for n, previous in zip(reversed(self._levels), reversed(self._previous), strict=True):
            if n > now:
                continue
            end, links = previous[now - 1], 0
            while end and links < _MAX_LINKS and len(found) < limit:
                if end not in found:
                    length = self._match_length(end, max_match)
                    if length >= min_match:
                        found[end] = length
                end, links = previous[end - 1], links + 1
        ranked = sorted(found.items(), key=lambda item: (-item[1], -item[0]))
        return [Match(end, length) for end, length in ranked]

    def _match_length(self, end: int, max_match: int) -> int:
        tokens, offset = self.tokens, len(self.tokens) - end
        length, limit = 0, min(max_match, end)
        while length < limit:
            token = tokens[end - 1 - length]
            if token < 0 or token != tokens[end - 1 - length + offset]:
                break
            length += 1
        return length

    def continuation(self, match: Match, length: int) -> list[int]:
        """Up to `length` tokens that followed at `match`, cut before a separator."""
        return before_separator(self.tokens[match.end : match.end + length])
