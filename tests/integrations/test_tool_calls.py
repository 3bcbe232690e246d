"""Tool calls in an answer's text, however it is cut into pieces."""

import json
from typing import Any

import pytest

from mmspec.errors import InputError
from mmspec.integrations.tool_calls import ToolCallReader, call_schema, read_answer

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "<b>"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": name}} for name in "fg"]
OTHER = '<tool_call>{"name": "g", "why": 1, "parameters": "{\\"y\\": 1}"}</tool_call>'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_give_the_same_text_and_calls(size: int) -> None:
    text = f"a < b <tool {CALL} and {OTHER} end <tool_cal"
    reader, told = ToolCallReader(TOOLS), ""
    for start in range(0, len(text), size):
        piece = reader.push(text[start : start + size])
        assert "<tool_call>" not in piece
        told += piece
    told += reader.finish()
    assert told == "a < b <tool  and  end <tool_cal"
    assert [(call.name, call.arguments) for call in reader.calls] == [
        ("f", {"x": "<b>"}),
        ("g", {"y": 1}),
    ]
    assert len({call.id for call in reader.calls}) == 2


@pytest.mark.parametrize(
    "inside",
    [
        "no json",
        "[1]",
        '{"name": 3}',
        '{"name": "f", "arguments": [1]}',
        "{}",
        "null",
        '{"name": "\\ud83d", "arguments": {}}',  # half a character
        '{"name": "f", "arguments": ' + "[" * 99999,
    ],
)
def test_what_is_no_call_stays_text(inside: str) -> None:
    text = f"a <tool_call>{inside}</tool_call> b"
    assert read_answer(text, TOOLS) == (text, [])


def test_a_call_at_the_end_needs_no_closing_tag() -> None:
    told, calls = read_answer('Well. <tool_call>{"name": "f", "arguments": {}}', TOOLS)
    assert told == "Well." and [call.name for call in calls] == ["f"]
    half = '<tool_call>{"name": "f", "argu'
    assert read_answer(half, TOOLS) == (half, [])


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (' {"name": "f", "parameters": {"x": 1}}\n', 1),
        ('{ "name" : "f", "arguments": {}}', 1),
        ('{"name": "Bob", "age": 3}', 0),
        ('{"name": "f", "arguments": {}, "why": 1}', 0),
        ('{"name": "f", "arguments": {}} is how', 0),
        ('{"name": "Bob", "arguments": {}}', 0),  # no tool
        ('{"name": "f", "arguments": ' + "[" * 99999, 0),
        ('{"names": []}', 0),
        ("  ", 0),
        ("", 0),
    ],
)
def test_an_answer_that_is_a_call_alone_needs_no_tags(size: int, text: str, calls: int) -> None:
    reader = ToolCallReader(TOOLS)
    told = "".join(reader.push(text[n : n + size]) for n in range(0, len(text), size))
    told += reader.finish()
    assert (told, len(reader.calls)) == ("" if calls else text, calls)


def test_an_answer_that_is_no_call_comes_as_it_is_made() -> None:
    reader = ToolCallReader(TOOLS)
    assert reader.push('{"name": "Bo') == '{"name": "Bo'
    assert reader.push('b", "parameters": {') == 'b", "parameters": {'
    assert reader.finish() == ""


def test_arguments_that_hold_half_a_character_can_be_sent() -> None:
    _, (call,) = read_answer('{"name": "f", "arguments": {"x": "\\ud83d"}}', TOOLS)
    assert json.loads(call.arguments_json.encode()) == call.arguments == {"x": "\ud83d"}


def test_parts_stand_in_the_order_of_the_text() -> None:
    reader = ToolCallReader(TOOLS)
    parts = reader.parts(f"a {CALL}{OTHER} b") + reader.parts("", is_last=True)
    names = [part if isinstance(part, str) else part.name for part in parts]
    assert [name for name in names if name] == ["a ", "f", "g", " b"]


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
    assert read_answer(CALL, [nothing])[1], "its template may know what it is"


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
