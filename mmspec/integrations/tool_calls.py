"""Tool calls in a model's text, in the form that most chat templates teach:

<tool_call>{"name": "search", "arguments": {"query": "rain"}}</tool_call>

or, as Llama 3 writes them, an answer that is the object alone, of a tool that was given.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import get_json_schema

from mmspec.errors import InputError
from mmspec.inputs.template import ToolSpec
from mmspec.integrations.closed_schema import closed

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLANKS = 200  # in the beginning of a call alone; more of them only hold more text back


@dataclass(frozen=True)
class ToolCall:
    """One call that the model wants made."""

    name: str
    arguments: Mapping[str, object]
    id: str

    @property
    def arguments_json(self) -> str:
        told = json.dumps(self.arguments, ensure_ascii=False)
        try:
            told.encode()
        except UnicodeEncodeError:  # half a character
            return json.dumps(self.arguments)
        return told


def called(name: object, arguments: object, call_id: object) -> dict[str, object]:
    """A call as it stands in an earlier message, whichever framework's that was."""
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": call_id, "function": function}


def call_schema(tools: Sequence[ToolSpec], choice: object) -> dict[str, Any] | None:
    """JSON schema of the call that `tool_choice` wants made, whichever framework's word it is: of
    any tool ("required", "any", True), or of one by its name. None for "auto" and "none".

    Raises InputError for one that is no tool's name."""
    if choice in (None, False, "auto", "none"):
        return None
    functions = [one for one in map(_function, tools) if isinstance(one.get("name"), str)]
    names = [function["name"] for function in functions]
    if choice not in ("required", "any", True):
        told = choice.get("function", choice) if isinstance(choice, Mapping) else {"name": choice}
        wanted = told.get("name") if isinstance(told, Mapping) else None
        functions = [one for one in functions if one["name"] == wanted]
    if not functions:
        expected = ["auto", "none", "required", *names]
        raise InputError(f"tool_choice={choice!r:.80}: expected one of {expected}, of given tools")
    return {"anyOf": [_schema(function, number) for number, function in enumerate(functions)]}


def _function(tool: ToolSpec) -> Mapping[str, Any]:
    described = tool
    if not isinstance(described, Mapping):
        try:
            described = get_json_schema(tool)
        except Exception as error:  # it raises nearly anything, of missing types and docs, too
            raise InputError(
                f"tools: got {tool!r:.80}; expected JSON schemas, or functions with types and a "
                f"docstring that tells of each argument: {error}"
            ) from error
    function = described.get("function", described)
    return function if isinstance(function, Mapping) else {}


def _name(tool: ToolSpec) -> object:
    if isinstance(tool, Mapping):
        return _function(tool).get("name")
    return getattr(tool, "__name__", None)


def _schema(function: Mapping[str, Any], number: int) -> dict[str, Any]:
    given = closed(function.get("parameters") or {"type": "object", "properties": {}})
    place = f"#/anyOf/{number}/properties/arguments"
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": _moved(given, place)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema that now stands at this place: what it refers to stands below it."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = moved.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


class ToolCallReader:
    """Parts an answer, as it comes, into its text and the calls in it.

    What may be the beginning of a call is held back until it is decided. What is between the tags
    and is no call stays text, tags included.
    """

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        """`tools` are those that may be called without tags: any other object is an answer."""
        self.calls: list[ToolCall] = []
        self._held = ""
        self._names = [_name(tool) for tool in tools]
        self._heads = [  # what a call alone begins with, blanks aside
            _unspaced(f'{{"name":{json.dumps(name, ensure_ascii=False)},"{key}":')
            for name in self._names
            for key in ("arguments", "parameters")
        ]
        self._looked_at = _BLANKS + max(map(len, self._heads), default=0)
        self._may_be_bare = True  # nothing of the answer is decided yet

    def push(self, text: str) -> str:
        """The text that has become certain with some more of the answer."""
        return _text(self.parts(text))

    def finish(self) -> str:
        """The answer has ended: the text that was held back."""
        return _text(self.parts("", is_last=True))

    def parts(self, text: str, *, is_last: bool = False) -> list[str | ToolCall]:
        """What has become certain with some more of the answer, in its order. Where it has ended,
        its rest: some models end on the call itself, so that the closing tag is missing."""
        self._held += text
        certain = list[str | ToolCall]()
        if self._may_be_bare:
            begun = _unspaced(self._held.lstrip()[: self._looked_at])
            self._may_be_bare = any(
                head.startswith(begun) or begun.startswith(head) for head in self._heads
            )
            if self._may_be_bare and not is_last:
                return certain
            if self._may_be_bare and (call := self._bare()) is not None:
                self.calls.append(call)
                return [call]
        while (start := self._held.find(_OPEN)) >= 0:
            certain.append(self._held[:start])
            self._held = self._held[start:]
            end = self._held.find(_CLOSE)
            if end < 0:
                break
            block, self._held = self._held[: end + len(_CLOSE)], self._held[end + len(_CLOSE) :]
            certain.append(self._read(block))
        is_open = self._held.startswith(_OPEN)
        if is_last:
            certain.append(self._read(self._held) if is_open else self._held)
            self._held = ""
        elif not is_open:
            cut = len(self._held) - _overlap(self._held, _OPEN)
            certain.append(self._held[:cut])
            self._held = self._held[cut:]
        return certain

    def _bare(self) -> ToolCall | None:
        """What is held, where it calls a tool that was given."""
        call = _parsed(self._held, is_bare=True)
        return call if call is not None and call.name in self._names else None

    def _read(self, block: str) -> str | ToolCall:
        """What the block says joins `calls`; the block itself where that is no call."""
        call = _parsed(block.removeprefix(_OPEN).removesuffix(_CLOSE))
        if call is None:
            return block
        self.calls.append(call)
        return call


def _text(parts: Sequence[str | ToolCall]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _parsed(text: str, *, is_bare: bool = False) -> ToolCall | None:
    """A bare one has its two keys and no others."""
    try:
        call = json.loads(text)
        if is_bare and call.keys() not in ({"name", "arguments"}, {"name", "parameters"}):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        name = call.get("name")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        name.encode()
    except (ValueError, AttributeError, RecursionError):  # no JSON, no object, half a character
        return None
    return ToolCall(name, arguments, f"call_{uuid.uuid4().hex}")


def read_answer(text: str, tools: Sequence[ToolSpec] | None) -> tuple[str, list[ToolCall]]:
    """A whole answer's text without the calls, and the calls; without tools there are none."""
    if not tools:
        return text, []
    reader = ToolCallReader(tools)
    certain = reader.push(text)
    certain += reader.finish()
    return (certain.strip() if reader.calls else certain), reader.calls


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
