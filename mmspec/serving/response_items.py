"""Items of OpenAI's responses: those of an input -> messages; an answer -> those of its output."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmspec.logprobs import TokenLogprobs
from mmspec.reading import AnswerReader, Part, Reasoning, ToolCall
from mmspec.serving.errors import refused
from mmspec.serving.logprobs import of_chat
from mmspec.serving.messages import check_media, read_call, read_message

_OF_ITEMS = ("id", "type", "status", "phase")  # of a message that say nothing to the model


def input_items(given: object) -> list[Any]:
    """Of a text, or as they are. Raises ApiError."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise refused("input", f"got {given!r:.80}; expected a text or a list of items")
    return items


def read_items(
    items: Sequence[object], *, max_media: int, before: Sequence[object] = ()
) -> list[dict[str, Any]]:
    """Messages, of items and of those of the conversation before. Raises ApiError."""
    messages = list[dict[str, Any]]()
    for index, item in enumerate([*before, *items], start=-len(before)):
        _join(messages, item, f"input[{index}]")
    messages = [message for message in messages if not _is_thought(message)]
    check_media(messages, "input", max_media=max_media)
    return messages


def _join(messages: list[dict[str, Any]], item: object, where: str) -> None:
    """What the item says is added to the chat; calls belong to the message before them, reasoning
    to the one behind it."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if not isinstance(item, dict) or kind == "message":
        own = item
        if isinstance(item, dict):
            own = {name: value for name, value in item.items() if name not in _OF_ITEMS}
        message = read_message(own, where)
        if message["role"] == "assistant" and messages and _is_thought(messages[-1]):
            message = {**messages.pop(), **message}
        messages.append(message)
    elif kind == "reasoning":
        thought = _reasoning(item, where)
        if thought:
            before = {"role": "assistant", "content": None}
            messages.append({**before, "reasoning_content": thought})
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        call = read_call(item, item.get("call_id"), where)
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        told = {"role": "tool", "tool_call_id": item.get("call_id"), "name": item.get("name")}
        messages.append(read_message({**told, "content": item.get("output")}, where))
    else:
        raise refused(
            where,
            f"got an item of type {kind!r:.40}; expected message, function_call or "
            "function_call_output: no items are kept here, and the server has no tools of its own",
        )


def _is_thought(message: Mapping[str, Any]) -> bool:
    """Whether it has reasoning alone."""
    return message.keys() == {"role", "content", "reasoning_content"} and not message["content"]


def _reasoning(item: Mapping[str, Any], where: str) -> str:
    """What is told of it: an encrypted one says nothing here."""
    parts = list[object]()
    for name in ("content", "summary"):
        given = item.get(name) or []
        if not isinstance(given, list):
            raise refused(f"{where}.{name}", f"got {given!r:.80}; expected a list of parts")
        parts += given
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n\n".join(text for text in texts if isinstance(text, str))


class Output:
    """The items of one answer, and the events that tell of them, as its text comes.

    Blank text beside calls and reasoning is not told.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self.items: list[dict[str, Any]] = []  # which are whole
        self.reader = reader
        self._held = ""  # text that is yet to be told, and the log-probabilities of its tokens
        self._places: list[dict[str, Any]] = []
        self._text: _Text | None = None  # which goes on

    def push(self, text: str, places: Sequence[TokenLogprobs] = ()) -> Iterator[dict[str, Any]]:
        """Some more of the answer."""
        self._places += of_chat(places)["content"]
        yield from self._read(self.reader.parts(text))

    def finish(self, *, is_cut: bool) -> Iterator[dict[str, Any]]:
        """The answer has ended."""
        yield from self._read(self.reader.parts("", is_last=True))
        if not self.items and self._text is None:
            yield from self._say(_Message)
        yield from self._close("incomplete" if is_cut else "completed")

    def _read(self, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if isinstance(part, ToolCall):
                yield from self._close("completed")
                yield from self._call(part)
                continue
            kind = _ReasoningItem if isinstance(part, Reasoning) else _Message
            if self._text is not None and not isinstance(self._text, kind):
                yield from self._close("completed")
            self._held += part.text if isinstance(part, Reasoning) else part
            if self._held.strip() or (self._held and self._text):
                yield from self._say(kind)

    def _say(self, kind: "type[_Text]") -> Iterator[dict[str, Any]]:
        """What is held."""
        if self._text is None:
            self._text = kind(len(self.items))
            yield from self._text.begin()
        yield from self._text.say(self._held, self._places)
        self._held = ""
        if kind is _Message:  # whose are those of all tokens: reasoning has no place for them
            self._places = []

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """The text, where there is one."""
        if self._text is not None:
            yield from self._text.end(status)
            self.items.append(self._text.item(status))
            if isinstance(self._text, _Message):
                self._places = []
        self._held, self._text = "", None

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        index = len(self.items)
        item = {
            "type": "function_call",
            "id": _new_id("fc"),
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments_json,
            "status": "completed",
        }
        self.items.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": index}
        kind = "response.function_call_arguments"
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        yield {"type": f"{kind}.delta", **place, "delta": call.arguments_json}
        yield {"type": f"{kind}.done", **place, "name": call.name, "arguments": call.arguments_json}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


class _Text:
    """An item of text."""

    prefix: str  # of its id
    word: str  # of its events

    def __init__(self, index: int) -> None:
        self._index = index
        self._id = _new_id(self.prefix)
        self._text = ""

    def begin(self) -> Iterator[dict[str, Any]]:
        item = {**self.item("in_progress"), "content": []}
        yield self._event("output_item.added", item=item)
        yield self._event("content_part.added", part=self.part())

    def say(self, text: str, places: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._text += text
        if text:
            yield self._event(f"{self.word}.delta", delta=text)

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        yield self._event(f"{self.word}.done", text=self._text)
        yield self._event("content_part.done", part=self.part())
        yield self._event("output_item.done", item=self.item(status))

    def item(self, status: str) -> dict[str, Any]:
        raise NotImplementedError

    def part(self) -> dict[str, Any]:
        return {"type": self.word, "text": self._text}

    def _event(self, kind: str, **values: object) -> dict[str, Any]:
        place: dict[str, object] = {"output_index": self._index}
        if "item" not in values:
            place |= {"item_id": self._id, "content_index": 0}
        return {"type": f"response.{kind}", **place, **values}


class _ReasoningItem(_Text):
    """What the model thinks."""

    prefix, word = "rs", "reasoning_text"

    def item(self, status: str) -> dict[str, Any]:
        told = {"type": "reasoning", "id": self._id, "status": status, "summary": []}
        return {**told, "content": [self.part()]}


class _Message(_Text):
    """What it says."""

    prefix, word = "msg", "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._places: list[dict[str, Any]] = []

    def say(self, text: str, places: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._places += places
        for event in super().say(text, places):
            yield {**event, "logprobs": places}

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        done, *others = super().end(status)
        yield {**done, "logprobs": self._places}
        yield from others

    def item(self, status: str) -> dict[str, Any]:
        told = {"type": "message", "id": self._id, "status": status, "role": "assistant"}
        return {**told, "content": [self.part()]}

    def part(self) -> dict[str, Any]:
        return {**super().part(), "annotations": [], "logprobs": self._places}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
