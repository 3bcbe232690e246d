"""Tool calls in an answer's text, however it is cut into pieces."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mmspec.reading import AnswerReader, ToolCall
from mmspec.reading.calls import as_python_calls
from mmspec.reading.form import form_of

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "</tool_call>"}}\n</tool_call>'


def g(y: int) -> None:
    """A tool may be a function."""


TOOLS = [*({"type": "function", "function": {"name": name}} for name in ("f", "天气")), g]
OTHER = '<tool_call>{"name": "g", "why": 1, "parameters": "{\\"y\\": 1}"}</tool_call>'


def hermes(tools: Sequence[Any]) -> AnswerReader:
    return AnswerReader(form_of(None, has_tools=bool(tools)), tools)


def said(reader: AnswerReader, text: str = "", *, is_last: bool = False) -> str:
    parts = reader.parts(text, is_last=is_last)
    return "".join(part for part in parts if isinstance(part, str))


def read_answer(text: str, tools: Sequence[Any]) -> tuple[str, list[ToolCall]]:
    reader = hermes(tools)
    return said(reader, text, is_last=True).strip() if tools else text, reader.calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_give_the_same_text_and_calls(size: int) -> None:
    text = f"a < b <tool {CALL} and {OTHER} end <tool_cal"
    reader, told = hermes(TOOLS), ""
    for start in range(0, len(text), size):
        piece = said(reader, text[start : start + size])
        assert "tool_call>" not in piece
        told += piece
    told += said(reader, is_last=True)
    assert told == "a < b <tool  and  end <tool_cal"
    assert [(call.name, call.arguments) for call in reader.calls] == [
        ("f", {"x": "</tool_call>"}),
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
        '{"name": "f", "arguments": {"x": NaN}}',  # no JSON
        '{"name": "f", "arguments": "{\\"x\\": [1e999]}"}',
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
        ('{"name": "天气", "arguments": {}}', 1),
        ('{"name": "g", "arguments": {}}', 1),
        ('So: {"name": "f", "arguments": {}}', 0),
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
    reader, size = hermes(TOOLS), max(size, len(text) // 999)
    told = "".join(said(reader, text[n : n + size]) for n in range(0, len(text), size))
    told += said(reader, is_last=True)
    assert (told, len(reader.calls)) == ("" if calls else text, calls)


def test_an_answer_that_is_no_call_comes_as_it_is_made() -> None:
    reader = hermes(TOOLS)
    assert said(reader, '{"name": "Bo') == '{"name": "Bo'
    assert said(reader, 'b", "parameters": {') == 'b", "parameters": {'
    assert said(reader, is_last=True) == ""


def test_arguments_that_hold_half_a_character_can_be_sent() -> None:
    _, (call,) = read_answer('{"name": "f", "arguments": {"x": "\\ud83d"}}', TOOLS)
    assert json.loads(call.arguments_json.encode()) == call.arguments == {"x": "\ud83d"}
    _, (call,) = read_answer('{"name": "f", "arguments": {"x": "天气"}}', TOOLS)
    assert call.arguments_json == '{"x": "天气"}'


@pytest.mark.parametrize("before", ["a ", '{"name": "f", '])
def test_parts_stand_in_the_order_of_the_text(before: str) -> None:
    reader, bare = hermes(TOOLS), '{"name": "f", "arguments": {}}'
    parts = reader.parts(f"{before}{CALL}{OTHER}{bare}") + reader.parts("", is_last=True)
    assert [part.name if isinstance(part, ToolCall) else part for part in parts] == [
        before,
        "f",
        "g",
        bare,  # not alone
    ]


def test_what_a_tool_is_matters_only_where_its_call_has_no_marks() -> None:
    nothing: Any = {"type": "function", "function": "f"}
    assert read_answer(CALL, [nothing])[1], "its template may know what it is"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[f(a='b'), g()]", [("f", {"a": "b"}), ("g", {})]),
        ("f(a=-1)\ng.h(b=[true, null, {'c': False}])", [
            ("f", {"a": -1}), ("g.h", {"b": [True, None, {"c": False}]}),
        ]),
        ('[{"name": "f", "arguments": {"a": true}, "id": ""}]', [("f", {"a": True})]),
        ("f(a=(1, 2))", [("f", {"a": [1, 2]})]),
    ],
)  # fmt: skip
def test_calls_in_python_have_values_of_json(
    source: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    calls = as_python_calls(source)
    assert [(one.name, one.arguments) for one in calls] == expected and all(one.id for one in calls)


@pytest.mark.parametrize(
    "source",
    [
        "", "[]", "f", "f(1)", "f(**{'a': 1})", "f(a=g())", "f(a=b)", "f(a={1, 2})", "f(a=b'x')",
        "f(a=1e999)", "f(a=1j)", "x = f(a=1)", '{"function": 1}',
        '{"name": "f", "id": "\\ud83d"}',
        "(lambda: 0)()", "f(a='x' * 9)", "f(a='\0')", "f(a={**{}})", "f(a={(1, 2): 3})",
        "f(a=" + "[" * 99999, "f(a=" + "-" * 99999 + "1)",
        "f(a=" + "9" * 9999 + ")", "import os", "f(a='",
    ],
)  # fmt: skip
def test_what_is_no_call_in_python_is_told_as_that(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        as_python_calls(source)
