"""ToolCall, and what of an answer is one."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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


def as_calls(value: object) -> Sequence[ToolCall]:
    """The calls of a message as transformers parses it, or of several. Raises ValueError for what
    is none."""
    calls = [_as_call(one) for one in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError("none")
    return calls


def _as_call(value: object) -> ToolCall:
    told = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(told, Mapping):
        raise ValueError("no object")
    name = told.get("name")
    arguments = told.get("arguments", told.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no name, or no arguments")
    name.encode()  # half a character is no part of a name
    own = value.get("id")
    return ToolCall(name, arguments, own if isinstance(own, str) and own else new_id())


def new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
