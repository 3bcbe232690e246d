"""Tool calls in a model's text, in the form that most chat templates teach:

<tool_call>{"name": "search", "arguments": {"query": "rain"}}</tool_call>
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """One call that the model wants made."""

    name: str
    arguments: Mapping[str, object]
    id: str


def called(name: str, arguments: object, call_id: str | None) -> dict[str, object]:
    """A call as it stands in an earlier message, whichever framework's that was."""
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": call_id, "function": function}


class ToolCallReader:
    """Parts an answer, as it comes, into its text and the calls in it.

    What may be the beginning of a call is held back until it is decided. What is between the tags
    and is no call stays text, tags included.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._held = ""

    def push(self, text: str) -> str:
        """The text that has become certain with some more of the answer."""
        self._held += text
        certain = ""
        while (start := self._held.find(_OPEN)) >= 0:
            certain += self._held[:start]
            self._held = self._held[start:]
            end = self._held.find(_CLOSE)
            if end < 0:
                return certain
            block, self._held = self._held[: end + len(_CLOSE)], self._held[end + len(_CLOSE) :]
            certain += self._read(block)
        undecided = _overlap(self._held, _OPEN)
        cut = len(self._held) - undecided
        certain, self._held = certain + self._held[:cut], self._held[cut:]
        return certain

    def finish(self) -> str:
        """The answer has ended: the text that was held back. Some models end on the call itself,
        so that the closing tag is missing."""
        held, self._held = self._held, ""
        return self._read(held) if held.startswith(_OPEN) else held

    def _read(self, block: str) -> str:
        """Joins `calls` what the block says; returns the block where that is no call."""
        call = _parsed(block.removeprefix(_OPEN).removesuffix(_CLOSE))
        if call is None:
            return block
        self.calls.append(call)
        return ""


def _parsed(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, AttributeError):
        return None
    name = call.get("name")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, f"call_{uuid.uuid4().hex}")


def read_answer(text: str, *, has_tools: bool = True) -> tuple[str, list[ToolCall]]:
    """A whole answer's text without the calls, and the calls; without tools there are none."""
    if not has_tools:
        return text, []
    reader = ToolCallReader()
    certain = reader.push(text)
    certain += reader.finish()
    return (certain.strip() if reader.calls else certain), reader.calls


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
