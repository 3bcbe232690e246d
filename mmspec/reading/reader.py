"""AnswerReader: an answer, as it comes, parted into its reasoning, its text and its calls."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from transformers.utils import get_json_schema

from mmspec.inputs.template import REASONING, ToolSpec
from mmspec.reading.bare_call import BareCall
from mmspec.reading.calls import ToolCall, new_id
from mmspec.reading.form import Form
from mmspec.reading.regions import Chunk, Regions, Unparted, is_as_known


class Reasoning(NamedTuple):
    """Some of what the model thinks before it answers."""

    text: str


Part: TypeAlias = str | Reasoning | ToolCall


class AnswerReader:
    """What may be the beginning of a mark or of a call is held back until it is decided. What only
    looks like a call stays text, marks included. Never raises, whatever the model writes."""

    def __init__(
        self,
        form: Form,
        tools: Sequence[ToolSpec] = (),
        *,
        beginning: str = "",
        unseen: Sequence[str] = (),
    ) -> None:
        """`beginning`: what of the answer its prompt has written. `unseen`: special tokens that are
        in the text for the sake of the marks among them, and that nobody is to see."""
        self.calls: list[ToolCall] = []
        self._regions: Regions | Unparted = Unparted()
        if is_as_known():
            self._regions = Regions(form.template, beginning, [*_schemas(tools)], unseen)
        self._bare = BareCall(tools)
        self._hidden = {False: _Hidden(unseen), True: _Hidden(unseen)}  # by whether it is reasoning
        self._outside = ""  # what the template has no place for
        self._has_told = False

    @property
    def num_held(self) -> int:
        """Characters at the end of the text so far that may yet be a part of a mark or a call."""
        hidden = sum(one.num_held for one in self._hidden.values())
        return self._regions.num_held + hidden + self._bare.num_held

    @property
    def may_reason(self) -> bool:
        """Whether what comes next may be reasoning: of most models, only where nothing is said."""
        return self._regions.may_open(REASONING)

    @property
    def reasoning_spans(self) -> Sequence[range]:
        """Of the text so far, in characters, without the marks."""
        return [span for name in REASONING for span in self._regions.spans.get(name, ())]

    def parts(self, text: str, *, is_last: bool = False) -> list[Part]:
        """What has become certain with some more of the answer, in its order."""
        found = list[Part]()
        for told in self._regions.read(text, is_last=is_last):
            if isinstance(told, ToolCall):
                found += [self._thought(), self._said(), self._own(told)]
                self._bare.give_up()
            elif told.field is None:
                self._outside += told.text
            else:
                found += self._text(told)
        if is_last:
            found += [self._thought(), self._last()]
        parts = [part for part in found if part and part != Reasoning("")]
        self._has_told = self._has_told or bool(parts)
        if is_last and not self._has_told and self._outside:  # it is of another form, then
            shown = self._hidden[False]
            parts += [shown.push(self._outside) + shown.finish()]
        return parts

    def _text(self, chunk: Chunk) -> list[Part]:
        if chunk.field in REASONING:
            return [self._said(), Reasoning(self._hidden[True].push(chunk.text))]
        return [self._thought(), self._bare.push(self._hidden[False].push(chunk.text))]

    def _thought(self) -> Reasoning:
        """What was held back of the reasoning, which does not go on."""
        return Reasoning(self._hidden[True].finish())

    def _said(self) -> str:
        """What was held back of the text, which something else follows."""
        told = self._bare.push(self._hidden[False].finish())
        return told + self._bare.give_up() if self._bare.num_held else told

    def _last(self) -> Part:
        told = self._bare.push(self._hidden[False].finish())
        rest = self._bare.finish()
        return told + rest if isinstance(rest, str) else self._own(rest)

    def _own(self, call: ToolCall) -> ToolCall:
        """With an id that no other call of the answer has."""
        if any(call.id == other.id for other in self.calls):
            call = replace(call, id=new_id())
        self.calls.append(call)
        return call


class _Hidden:
    """Leaves strings out of a text that comes in pieces."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._pattern, self._beginnings = _looked_for(tuple(strings))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    @property
    def num_held(self) -> int:
        return len(self._held)

    def push(self, text: str) -> str:
        text = self._held + text
        *_, end = [0, *(match.end() for match in self._pattern.finditer(text))]
        lengths = range(min(self._longest, len(text) - end), 0, -1)
        cut = len(text) - next((n for n in lengths if text[-n:] in self._beginnings), 0)
        self._held = text[cut:]
        return self._pattern.sub("", text[:cut])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


@lru_cache(maxsize=4)  # of a few models: some have a thousand special tokens
def _looked_for(strings: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str]]:
    """Any of them, and what one of them may begin with."""
    longest_first = sorted(strings, key=len, reverse=True)
    beginnings = frozenset(one[:n] for one in strings for n in range(1, len(one)))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), beginnings


def _schemas(tools: Sequence[ToolSpec]) -> Sequence[Mapping[str, Any]]:
    """Of those that have one: by these the arguments are typed."""
    found = list[Mapping[str, Any]]()
    for tool in tools:
        with suppress(Exception):
            found.append(tool if isinstance(tool, Mapping) else get_json_schema(tool))
    return found
