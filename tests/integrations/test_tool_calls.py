"""Calls that are asked for, and what cannot be called."""

import json
from typing import Any

import pytest

from mmspec.errors import InputError
from mmspec.integrations.tool_calls import call_schema

TOOLS = [{"type": "function", "function": {"name": name}} for name in "fg"]


@pytest.mark.parametrize("choice", ["required", "h", {"type": "web_search"}, ["f"]])
def test_a_call_that_cannot_be_made_is_refused(choice: object) -> None:
    unnamed = {"type": "web_search"}  # which frameworks pass on as it is
    tools = [unnamed] if choice == "required" else [unnamed, *TOOLS]
    with pytest.raises(InputError, match=r"tool_choice=.* expected one of .*'required'"):
        call_schema(tools, choice)


def untold(word):  # type: ignore[no-untyped-def]
    return word


@pytest.mark.parametrize("tool", [3, untold, "f"])
def test_what_is_no_tool_is_refused_where_it_has_to_be_called(tool: Any) -> None:
    with pytest.raises(InputError, match=r"tools: got .*; expected JSON schemas, or functions"):
        call_schema([tool], "required")


def test_a_tool_that_is_nothing_cannot_be_called() -> None:
    nothing: Any = {"type": "function", "function": "f"}
    with pytest.raises(InputError, match="tool_choice='f'"):
        call_schema([nothing], "f")


def test_schemas_of_calls_keep_what_they_refer_to() -> None:
    guidance = pytest.importorskip("llguidance", reason="needs the extra 'guided'")

    def tool(name: str, values: list[int]) -> dict[str, object]:
        properties = {"x": {"$ref": "#/$defs/X"}}
        parameters = {"type": "object", "properties": properties, "$defs": {"X": {"enum": values}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool("f", [1]), tool("g", [2])]
    for choice, names in (("required", ["f", "g"]), ("g", ["g"]), (None, []), ("none", [])):
        schema = call_schema(tools, choice)
        found = [] if schema is None else schema["anyOf"]
        assert [one["properties"]["name"]["const"] for one in found] == names
        if schema is not None:
            grammar = guidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            assert guidance.LLMatcher.validate_grammar_with_warnings(grammar, None) == (False, [])
