"""Chosen tokens -> text, a token at a time: half-finished UTF-8 and stop strings are held back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

_MANY_HELD = 16  # tokens without new text, among which those that never have one are looked for
_CHARACTER = 4  # tokens, of a byte each at least, that would be a whole character if they were any


@dataclass(frozen=True)
class Piece:
    """Some text of the answer and who drafted it; prints as its text."""

    text: str
    drafter: str | None = None  # None: the target's own choice
    is_reasoning: bool = False  # where an answer's parts are told apart

    def __str__(self) -> str:
        return self.text


class Detokenizer:
    """Turns tokens into text, in order.

    It decodes a short window of tokens again with each one: the tokens of the last text that came
    out, for what a token's text looks like may depend on those before, and the ones since.

    What came out stays, also where a later byte makes the bytes before it no character.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        is_silent: Callable[[int], bool] = lambda token: False,
    ) -> None:
        """`is_silent` says of a token that it has no text, and changes none around it."""
        self._decode = decode
        self._is_silent = is_silent
        self._window: list[int] = []
        self._num_done = 0  # tokens of the window whose text came out
        self._known = ""  # that text

    def push(self, token: int) -> str:
        """The text that has become certain with this token. One that cannot be decoded leaves
        nothing behind."""
        window = [*self._window, token]
        text = self._decode(window)
        self._window = window
        if len(text) <= len(self._known) or text.endswith("\ufffd"):  # no whole character yet
            held = self._window[self._num_done :]
            if len(held) > _MANY_HELD:
                self._window[self._num_done :] = [one for one in held if not self._is_silent(one)]
                return self._settled(text) if text.endswith("\ufffd") else ""
            return ""
        new = text[len(self._known) :]
        self._window = self._window[self._num_done :]
        self._num_done = len(self._window)
        self._known = self._decode(self._window)
        return new

    def _settled(self, text: str) -> str:
        """The text of bytes that are no character, and before some that can be none any more. As
        later bytes may read otherwise behind such ones, the first of them stay in the window."""
        count = self._num_done + (0 if self._known.endswith("\ufffd") else _CHARACTER)
        kept, last = self._window[:count], len(self._window) - _CHARACTER
        known = self._decode(kept)
        for cut in range(last, max(last - _CHARACTER, count), -1):
            before, rest = self._decode(self._window[:cut]), self._window[cut:]
            if before + self._decode(kept + rest)[len(known) :] == text:
                new = before[len(self._known) :]
                self._window, self._num_done, self._known = kept + rest, count, known
                return new
        return ""

    def flush(self) -> str:
        """The text of what is still held, at the end."""
        return self._decode(self._window)[len(self._known) :]


def build_detokenizer(
    tokenizer: PreTrainedTokenizerBase | None, *, skip_special_tokens: bool
) -> Detokenizer:
    """By the tokenizers library itself where the tokenizer is fast; without one no token has a
    text."""
    if tokenizer is None:
        return Detokenizer(lambda ids: "", lambda token: True)
    backend = getattr(tokenizer, "backend_tokenizer", None)

    @cache  # only asked for where many tokens have no text: some tokenizers have thousands of these
    def special() -> frozenset[int]:
        if backend is None:
            return frozenset(getattr(tokenizer, "all_special_ids", ()))
        added = backend.get_added_tokens_decoder()
        return frozenset(token for token, told in added.items() if told.special)

    def is_silent(token: int) -> bool:
        is_none = backend is not None and backend.id_to_token(token) is None  # a padded vocabulary
        return is_none or (skip_special_tokens and token in special())

    decoder = tokenizer if backend is None else backend
    return Detokenizer(
        lambda ids: decoder.decode(ids, skip_special_tokens=skip_special_tokens), is_silent
    )


class TextStream:
    """One row's text as it grows.

    Text that may be the beginning of a stop string is held back until it is decided; the text
    ends before the stop string, and `is_stopped` says that one was found.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(stop)
        self._num_tokens = 0
        self._held: list[tuple[str, int]] = []  # (text, index of the token that completed it)
        self._released: list[tuple[str, int]] = []
        self.is_stopped = False

    def push(self, token: int) -> None:
        """One more token; after it, `is_stopped` may be True."""
        assert not self.is_stopped, "a stopped text takes no more tokens"
        text = self._detokenizer.push(token)
        self._num_tokens += 1
        self._append(text)

    def finish(self) -> None:
        """No more tokens come: whatever was held back is released."""
        if not self.is_stopped:
            self._append(self._detokenizer.flush())
        if not self.is_stopped:
            self._release(len(self._held_text))

    def take(self) -> list[tuple[str, int]]:
        """The text released since the last call, as (text, index of its last token)."""
        released, self._released = self._released, []
        return released

    @property
    def _held_text(self) -> str:
        return "".join(text for text, _ in self._held)

    def _append(self, text: str) -> None:
        if not text:
            return
        self._held.append((text, self._num_tokens - 1))
        if not self._stop:
            self._release(len(text))
            return
        held = self._held_text
        found = [start for start in (held.find(stop) for stop in self._stop) if start >= 0]
        if found:
            self._release(min(found))
            self._held.clear()
            self.is_stopped = True
        else:
            self._release(len(held) - self._undecided(held))

    def _undecided(self, held: str) -> int:
        """Length of the longest end of `held` that a stop string could begin with."""
        longest = min(max(map(len, self._stop)) - 1, len(held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stop):
                return length
        return 0

    def _release(self, num_chars: int) -> None:
        while num_chars > 0:
            text, token = self._held.pop(0)
            if len(text) > num_chars:
                self._held.insert(0, (text[num_chars:], token))
                text = text[:num_chars]
            num_chars -= len(text)
            self._released.append((text, token))
