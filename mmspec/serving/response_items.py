"""Items of OpenAI's responses: those of an input -> messages; an answer -> those of its output."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from mmspec.inputs.template import ToolSpec
from mmspec.integrations.tool_calls import ToolCall, ToolCallReader
from mmspec.logprobs import TokenLogprobs
from mmspec.serving.errors import refused
from mmspec.serving.logprobs import of_chat
from mmspec.serving.messages import check_media, read_call, read_message

_OF_ITEMS = ("id", "type", "status", "phase")  # of a message that say nothing to the model


def read_input(given: object, *, max_media: int) -> list[dict[str, Any]]:
    """Messages, of a text or a list of items. Raises ApiError."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise refused("input", f"got {given!r:.80}; expected a text or a list of items")
    messages = list[dict[str, Any]]()
    for index, item in enumerate(items):
        _join(messages, item, f"input[{index}]")
    check_media(messages, "input", max_media=max_media)
    return messages


def _join(messages: list[dict[str, Any]], item: object, where: str) -> None:
    """What the item says is added to the chat; calls belong to the message before them."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if not isinstance(item, dict) or kind == "message":
        own = item
        if isinstance(item, dict):
            own = {name: value for name, value in item.items() if name not in _OF_ITEMS}
        messages.append(read_message(own, where))
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        call = read_call(item, item.get("call_id"), where)
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        told = {"role": "tool", "tool_call_id": item.get("call_id"), "name": item.get("name")}
        messages.append(read_message({**told, "content": item.get("output")}, where))
    elif kind != "reasoning":  # which is no part of what was said
        raise refused(
            where,
            f"got an item of type {kind!r:.40}; expected message, function_call or "
            "function_call_output: no items are kept here, and the server has no tools of its own",
        )


class Output:
    """The items of one answer, and the events that tell of them, as its text comes.

    Blank text beside calls is not told.
    """

    def __init__(self, tools: Sequence[ToolSpec] | None) -> None:
        self.items: list[dict[str, Any]] = []  # which are whole
        self._reader = ToolCallReader(tools) if tools else None
        self._held = ""  # text that is yet to be told, and the log-probabilities of its tokens
        self._places: list[dict[str, Any]] = []
        self._message: _Message | None = None  # which goes on

    def push(self, text: str, places: Sequence[TokenLogprobs] = ()) -> Iterator[dict[str, Any]]:
        """Some more of the answer."""
        self._places += of_chat(places)["content"]
        yield from self._read(self._reader.parts(text) if self._reader else [text])

    def finish(self, *, is_cut: bool) -> Iterator[dict[str, Any]]:
        """The answer has ended."""
        yield from self._read(self._reader.parts("", is_last=True) if self._reader else [])
        if not self.items:
            yield from self._say()
        yield from self._close("incomplete" if is_cut else "completed")

    def _read(self, parts: Sequence[str | ToolCall]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if isinstance(part, ToolCall):
                yield from self._close("completed")
                yield from self._call(part)
                continue
            self._held += part
            if self._held.strip() or (self._held and self._message):
                yield from self._say()

    def _say(self) -> Iterator[dict[str, Any]]:
        """What is held."""
        if self._message is None:
            self._message = _Message(len(self.items))
            yield from self._message.begin()
        yield from self._message.say(self._held, self._places)
        self._held, self._places = "", []

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """The message, where there is one."""
        if self._message is not None:
            yield from self._message.end(status)
            self.items.append(self._message.item(status))
        self._held, self._places, self._message = "", [], None

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


class _Message:
    """An item of text."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._id = _new_id("msg")
        self._text = ""
        self._places: list[dict[str, Any]] = []

    def begin(self) -> Iterator[dict[str, Any]]:
        item = {**self.item("in_progress"), "content": []}
        yield self._event("output_item.added", item=item)
        yield self._event("content_part.added", part=self._part)

    def say(self, text: str, places: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._text += text
        self._places += places
        if text:
            yield self._event("output_text.delta", delta=text, logprobs=places)

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        yield self._event("output_text.done", text=self._text, logprobs=self._places)
        yield self._event("content_part.done", part=self._part)
        yield self._event("output_item.done", item=self.item(status))

    def item(self, status: str) -> dict[str, Any]:
        told = {"type": "message", "id": self._id, "status": status, "role": "assistant"}
        return {**told, "content": [self._part]}

    @property
    def _part(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self._text, "annotations": []}
        return {**part, "logprobs": self._places}

    def _event(self, kind: str, **values: object) -> dict[str, Any]:
        place: dict[str, object] = {"output_index": self._index}
        if "item" not in values:
            place |= {"item_id": self._id, "content_index": 0}
        return {"type": f"response.{kind}", **place, **values}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
