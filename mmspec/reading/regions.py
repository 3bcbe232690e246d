"""Regions: an answer parted by its form's marks, as transformers' parser finds them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex  # transformers'
import transformers
from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplate,
    ResponseTemplateField,
    load_response_template,
)

from mmspec.reading.calls import ToolCall, as_calls, as_python_calls
from mmspec.reading.form import is_call

logger = logging.getLogger(__name__)

# What content parsers, transforms and casts fail with, at what a model may write.
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_TAG = regex.compile(r"<[^<>]*>")


class Chunk(NamedTuple):
    """Text of a field; of None where the template has no place for it."""

    field: str | None
    text: str


class Regions(ResponseParser):
    """transformers' parser, with its events as they are needed here: chunks of text, and calls.

    The parser raises at a call that is broken, and its text is lost; here it becomes text of the
    field "content", marks included. So does one that is cut off, unless its JSON is whole.
    """

    def __init__(
        self,
        template: ResponseTemplate,
        beginning: str,
        tools: Sequence[Mapping[str, Any]],
        unseen: Sequence[str] = (),
    ) -> None:
        """`beginning`: what of the answer its prompt has written already. `unseen`: marks that no
        text holds."""
        self.spans: dict[str, list[range]] = {}  # of the answer's text, by fields that are text
        self._opened_at = (0, 0)  # the beginning and the end of the region's opening mark
        self._is_behind_call = False
        self._unseen = unseen
        super().__init__(template, prefix="", tools=list(tools))
        self._num_begun = len(beginning)
        super().feed(beginning)

    def read(self, text: str, *, is_last: bool) -> Iterator[Chunk | ToolCall]:
        """What has become certain with some more of the answer."""
        self._buffer += text
        events = list[Any]()
        self._process(events, eos=is_last)
        return (event for event in events if not isinstance(event, dict))

    @property
    def num_held(self) -> int:
        start = self._opened_at[0] if is_call(self._current) else self._pos
        return len(self._buffer) - max(start, self._num_begun)

    def may_open(self, names: Sequence[str]) -> bool:
        """Whether one of these fields may begin with what comes next."""
        fields = [field for name, field in self._spec.fields.items() if name in names]
        return any(
            field.open_re is not None
            and field.open_re.match(self._buffer, self._pos, partial=True) is not None
            for field in fields
        )

    def _accumulate(self, events: list[Any], text: str) -> None:
        if self._current is not None:
            super()._accumulate([], text)
        if not is_call(self._current):
            self._is_behind_call = False
            events.append(Chunk(self._current, text))

    def _open_explicit(self, events: list[Any], field: ResponseTemplateField, match: Any) -> None:
        self._opened_at = match.span()
        super()._open_explicit(events, field, match)

    def _close_current(self, events: list[Any]) -> None:
        name, start = self._current, self._opened_at[1]
        if not is_call(name):
            stop = start + len(self._body)
            if name is not None and name != self._implicit_name:
                self.spans.setdefault(name, []).append(self._own(start, stop))
            self._reset_to_implicit()
            return
        source = self._buffer[max(self._opened_at[0], self._num_begun) : self._pos]
        try:
            calls = self._calls(self._spec.fields[name])
        except _BROKEN as error:
            why = getattr(error.__cause__, "msg", "")  # of JSON
            is_text = self._mark and not any(one in self._mark for one in self._unseen)
            if is_text and why.startswith("Unterminated string"):
                self._body += self._mark  # which stands in a string, and ends nothing
                return
            events.append(Chunk("content", source))
            calls = ()
        self._is_behind_call = bool(calls)
        events += calls
        self._reset_to_implicit()

    def _calls(self, field: ResponseTemplateField) -> Sequence[ToolCall]:
        """Of the region that ends. Raises what is in `_BROKEN` where it is no call."""
        if field.name == "tool_calls_end" and self._is_behind_call:
            return ()
        told = list[Any]()
        if field.content_args.get("is_python"):
            return as_python_calls(self._body)
        self._check_whole(field)
        super()._close_current(told)
        value = told[-1]["value"]
        if field.content_args.get("by_name"):
            value = [{"name": n, "arguments": a} for one in value for n, a in one.items()]
        return as_calls(value)

    def _check_whole(self, field: ResponseTemplateField) -> None:
        """Raises ValueError for a call that is cut off, and for text between its tags. JSON says
        itself whether it is whole, and some models end on it."""
        pattern = field.content_args.get("tag_pattern", "")
        left = regex.sub(pattern, "", self._body, flags=regex.DOTALL)
        if field.content != "json" and not (self._mark and not _TAG.sub("", left).strip()):
            raise ValueError("no call")

    @property
    def _mark(self) -> str:
        """Behind the region that ends; "" where what follows it has closed it, or the answer's
        end."""
        return self._buffer[self._opened_at[1] + len(self._body) : self._pos]

    def _own(self, start: int, stop: int) -> range:
        """A part of the buffer, as one of the answer."""
        return range(max(0, start - self._num_begun), max(0, stop - self._num_begun))


class Unparted:
    """An answer that nobody parts: all of it is text."""

    spans: Mapping[str, Sequence[range]] = {}
    num_held = 0

    def read(self, text: str, *, is_last: bool) -> Iterator[Chunk | ToolCall]:
        yield Chunk("content", text)

    def may_open(self, names: Sequence[str]) -> bool:
        return False


@cache
def is_as_known() -> bool:
    """Whether `Regions` parts an answer as it should: it builds on what of transformers' parser is
    not promised to stay."""
    call = {"open": "<c>", "close": "</c>", "content": "json"}
    fields = {"a": {"open": "<a>", "close": "</a>"}, "tool_calls": call, "content": {}}
    told, answer = list[object](), 'x<a>y</a>z<c>{"name": "f"}</c>'
    try:
        tried = Regions(load_response_template({"start_anchor": ">", "fields": fields}), "", ())
        may_open = tried.may_open(["a"])
        for number, text in enumerate(answer, start=1):
            found = tried.read(text, is_last=number == len(answer))
            told += [one.name if isinstance(one, ToolCall) else tuple(one) for one in found]
        expected = [("content", "x"), ("a", "y"), ("content", "z"), "f"]
        if told == expected and may_open and tried.spans == {"a": [range(4, 5)]}:
            return True
    except _BROKEN as error:
        logger.debug("the response parser failed", exc_info=error)
    logger.warning(
        "transformers %s has a response parser that mmspec does not know: reasoning and calls that "
        "have marks stay text; a version that is known: 5.23",
        transformers.__version__,
    )
    return False
