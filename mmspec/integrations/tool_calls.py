"""Tool calls, as frameworks write earlier ones and ask for the next."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema

from mmspec.errors import InputError
from mmspec.inputs.template import ToolSpec
from mmspec.integrations.closed_schema import closed


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
