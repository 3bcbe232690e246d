"""JsonAhead: the text that a JSON grammar is about to see, as tokens.

A grammar that allows blanks between any two tokens of JSON forces little: after a key may come a
colon, or a blank. So where blanks and one other character are all that is allowed, that character
is taken to come, with the blanks before it that the text has had in such places. What is guessed so
is drafted, and no more than that.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_BYTES = 160  # looked ahead
_BLANK = b" \t\r\n"
_AFTER_COLON = re.compile(rb'":([ \t\r\n]*)(?=[^ \t\r\n])')
_AFTER_COMMA = re.compile(rb',([ \t\r\n]*)(?=["{\[])')
_BEFORE_KEY = re.compile(rb'[,{\[]([ \t\r\n]*)(?=["{\[])')
_NONE, _OTHER = 0, 256  # in place of a token's first byte: nothing but blanks; no text at all


class JsonAhead:
    """For one vocabulary, used by all of its requests."""

    def __init__(self, tokenizer: "LLTokenizer") -> None:
        self._tokenizer = tokenizer
        self._first: NDArray[np.int16] | None = None  # (vocab,), made when it is asked for

    def tokens(self, matcher: "LLMatcher", said: bytes) -> list[int]:
        """What comes behind `said`, the answer so far, where `matcher` stands. It is advanced: give
        a copy."""
        coming = b""
        while len(coming) < _MOST_BYTES and not matcher.is_error():
            forced: bytes = matcher.compute_ff_bytes()
            if not forced:
                allowed = _set_bits(matcher.compute_bitmask())
                if len(allowed) == 1:  # the end of the text among others
                    return [*self._tokenizer.tokenize_bytes(coming), int(allowed[0])]
                first = self._only_first(allowed)
                if first is None:
                    break
                forced = _blanks(said + coming, first) + first
            if not self._takes(matcher, forced):
                break
            coming += forced
        return list(self._tokenizer.tokenize_bytes(coming)) if coming else []

    def _takes(self, matcher: "LLMatcher", text: bytes) -> bool:
        tokens = self._tokenizer.tokenize_bytes(text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens))

    def _only_first(self, allowed: NDArray[np.intp]) -> bytes | None:
        """The one byte that all allowed tokens begin with, but for blanks."""
        firsts = np.unique(self._first_bytes[allowed])
        firsts = firsts[firsts != _NONE]
        if len(firsts) != 1 or firsts[0] == _OTHER:
            return None
        return bytes([int(firsts[0])])

    @property
    def _first_bytes(self) -> NDArray[np.int16]:
        if self._first is None:
            size = self._tokenizer.vocab_size
            first = np.full(size, _OTHER, np.int16)
            for token in range(size):
                text = b"" if self._is_special(token) else self._tokenizer.decode_bytes([token])
                if text:
                    bare = text.lstrip(_BLANK)
                    first[token] = bare[0] if bare else _NONE
            self._first = first
        return self._first

    def _is_special(self, token: int) -> bool:
        return bool(self._tokenizer.is_special_token(token))


def _blanks(said: bytes, first: bytes) -> bytes:
    """Those that the text is likely to have before `first`, which is no blank."""
    last = said.rstrip(_BLANK)[-1:]
    if said[-1:] in (b"", *map(bytes, zip(_BLANK))) or first in b":,":
        return b""
    if last == b":":
        return _last(_AFTER_COLON, said, b" ")
    before_key = _last(_BEFORE_KEY, said, b"")
    if last == b"," and b"\n" not in before_key:  # as after a comma, or else a colon, before
        return _last(_AFTER_COMMA, said, _last(_AFTER_COLON, said, b" "))
    if first in b"}]":  # one step out of what the lines inside of it have
        line, newline, indent = before_key.rpartition(b"\n")
        step = len(_first(_BEFORE_KEY, said).rpartition(b"\n")[2])
        return line + newline + indent[step:] if newline else b""
    return before_key


def _last(pattern: re.Pattern[bytes], text: bytes, default: bytes) -> bytes:
    found = pattern.findall(text)
    return found[-1] if found else default


def _first(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    found = pattern.search(text)
    return found[1] if found else b""


def _set_bits(mask: bytes) -> NDArray[np.intp]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little"))
