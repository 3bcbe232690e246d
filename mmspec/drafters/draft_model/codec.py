"""Codec: text <-> ids of one tokenizer, also where text comes behind other text."""

import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

SEAM = 8  # last tokens that may change when text comes behind them
HALF = "\ufffd"  # what a decoder puts in place of half a character
ANCHORS = ("\n", "a", ".")  # texts to encode behind: one of them does not merge with what follows


class Codec:
    """Text <-> ids of one tokenizer, nothing added and nothing left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.specials = set(tokenizer.all_special_ids) | {
            token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._lock = threading.Lock()  # slow tokenizers are not thread safe

    def encode(self, text: str) -> list[int]:
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        with self._lock:
            return str(
                self.tokenizer.decode(
                    list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
            )

    def seam(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """The longest end of `ids`, of a few tokens at most, that its text encodes to again, and
        that text."""
        for length in range(min(SEAM, len(ids)), 0, -1):
            tail = list(ids[-length:])
            text = self.decode(tail)
            if HALF not in text and self.encode(text) == tail:
                return tail, text
        return [], ""

    def tail(self, ids: Sequence[int]) -> str:
        """The text of the last few ids, from a whole character on."""
        for length in range(min(SEAM, len(ids)), 0, -1):
            text = self.decode(ids[-length:])
            if HALF not in text:
                return text
        return ""

    def encode_behind(self, before: str, text: str) -> list[int]:
        """The ids of `text` where it comes behind `before`, whose own ids stand already."""
        for start in (before, *ANCHORS):
            if not start:
                continue
            likely, both = len(self.encode(start)), self.encode(start + text)
            for count in (likely, *range(likely + 2)):
                if self.decode(both[:count]) == start:
                    return both[count:]
        return self.encode(text)

    def decode_behind(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` where they come behind `before`: some tokenizers drop a first space."""
        start = self.decode(before)
        text = self.decode([*before, *ids])
        return text[len(start) :] if text.startswith(start) else self.decode(ids)
