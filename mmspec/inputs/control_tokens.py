"""Control and media tokens inside user text: made harmless, or refused, never parsed."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from mmspec.errors import InputError
from mmspec.inputs.control_strings import control_strings
from mmspec.inputs.messages import check_text

_Nested = TypeVar("_Nested")
ControlMode = Literal["neutralise", "refuse", "parse"]

# Invisible ones first: word joiner, zero-width space, zero-width non-joiner, soft hyphen.
_SEPARATORS = ("\u2060", "\u200b", "\u200c", "\u00ad", " ")


def neutralise(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` with a separator inside every control token, so that none is tokenised as such.

    Text without control tokens comes back unchanged. Raises InputError where no separator helps.
    """
    return ControlTokens(tokenizer, control_strings(tokenizer)).neutralise(text)


def map_text(value: _Nested, change: Callable[[str], str]) -> _Nested:
    """A copy of nested lists and mappings with `change` applied to every string in it; tuples and
    mappings of other types come back as lists and dicts."""
    result: object = value
    if isinstance(value, str):
        result = change(value)
    elif isinstance(value, Mapping):
        result = {map_text(key, change): map_text(item, change) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [map_text(item, change) for item in value]
    return cast(_Nested, result)


class ControlTokens:
    """The control tokens of one tokenizer, and what to do where user text holds one.

    Not locked: the caller lets one thread in at a time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self.strings = frozenset(strings)
        ids = {text: tokenizer.convert_tokens_to_ids(text) for text in self.strings}
        unknown = tokenizer.unk_token_id
        self._unknown_id = unknown
        # An unknown token stands for odd characters of ordinary text, so its id says nothing;
        # byte-level families reuse end-of-text as their unknown token, and there it does.
        is_shared = unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.ids = frozenset(
            token
            for token in ids.values()
            if isinstance(token, int) and (is_shared or token != unknown)
        )
        lengths: dict[str, set[int]] = {}
        for text in self.strings:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(re.escape(first) for first in lengths)
        self._first = re.compile(f"[{firsts}]") if firsts else None
        marks = {char for text in self.strings for char in text if char in "<>|[]{}｜▁@#$^~"}
        self._plain = str.maketrans(dict.fromkeys(marks, "."))

    def apply(self, text: str, mode: ControlMode) -> str:
        """`text` ready for a template: neutralised, or as it is. Raises InputError in `refuse`."""
        if mode == "parse":
            return text
        if mode == "refuse":
            self.refuse(text)
            return text
        return self.neutralise(text)

    def refuse(self, text: str) -> None:
        """Raises InputError where `text` holds a control token."""
        hits = self._hits(text)
        if hits:
            start = max(0, min(hits) - 20)
            raise InputError(
                f"the text holds {len(hits)} control tokens, the first near character "
                f"{min(hits)}: {text[start : min(hits) + 20]!r}; expected plain text: remove "
                "them, or use control_tokens='neutralise'"
            )

    def neutralise(self, text: str) -> str:
        """As the module's function `neutralise`."""
        hits = self._hits(text)
        if not hits:
            return text
        num_unknown = self._ids(text).count(self._unknown_id)
        for separator in _SEPARATORS:
            candidate = self._separate(text, separator)
            if candidate is None:
                continue
            # A separator that the vocabulary lacks would put unknown tokens into the text.
            if separator == " " or self._ids(candidate).count(self._unknown_id) <= num_unknown:
                return candidate
        raise InputError(
            f"the text holds the control token near {text[max(0, min(hits) - 20) :][:40]!r}, and "
            "no separator keeps this tokenizer from parsing it; remove it from the text"
        )

    def beginning(self, text: str) -> str | None:
        """The control string that `text` begins with, blanks aside."""
        text = text.lstrip()
        lengths = self._lengths.get(text[:1], ())
        return next((text[:n] for n in lengths if text[:n] in self.strings), None)

    def plain(self, text: str) -> str:
        """`text` with every character that control tokens are built from replaced by a dot: a
        stand-in of the same length that cannot hold any."""
        return text.translate(self._plain)

    def count(self, text: str) -> Counter[str | int]:
        """How often each control string and each control id occurs in `text`."""
        found: Counter[str | int] = Counter(string for _, string in self._find(text))
        found.update(token for token in self._ids(text) if token in self.ids)
        return found

    def _ids(self, text: str) -> list[int]:
        tokenised = self._tokenizer(check_text(text), add_special_tokens=False, verbose=False)
        return tokenised["input_ids"]

    def _find(self, text: str) -> Iterable[tuple[int, str]]:
        """(start, string) of every occurrence, the longest at each start; they may overlap."""
        for match in self._first.finditer(text) if self._first else ():
            start = match.start()
            for length in self._lengths[match.group()]:
                if text[start : start + length] in self.strings:
                    yield start, text[start : start + length]
                    break

    def _hits(self, text: str) -> list[int]:
        """Where to put a separator: after the first character of each control string, and in the
        middle of what a normaliser turns into a control token."""
        hits = [start + 1 for start, _ in self._find(text)]
        if hits or self.ids.isdisjoint(self._ids(text)):
            return hits
        if not self._tokenizer.is_fast:
            raise InputError(
                f"the text {text[:60]!r} is tokenised to a control token; remove special characters"
            )
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [(start + stop + 1) // 2 for token, (start, stop) in spans if token in self.ids]

    def _separate(self, text: str, separator: str) -> str | None:
        for _ in range(3):  # a round may uncover another control token; more would be a cycle
            hits = self._hits(text)
            if not hits:
                return text
            ends = [*hits[1:], len(text)]
            pieces = (text[start:stop] for start, stop in zip(hits, ends, strict=True))
            text = text[: hits[0]] + "".join(separator + piece for piece in pieces)
        return None if self._hits(text) else text
