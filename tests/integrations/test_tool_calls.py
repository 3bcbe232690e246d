"""Tool calls in an answer's text, however it is cut into pieces."""

import pytest

from mmspec.integrations.tool_calls import ToolCallReader, read_answer

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "<b>"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "g", "parameters": "{\\"y\\": 1}"}</tool_call>'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_give_the_same_text_and_calls(size: int) -> None:
    text = f"a < b <tool {CALL} and {OTHER} end <tool_cal"
    reader, told = ToolCallReader(), ""
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
    "inside", ["no json", "[1]", '{"name": 3}', '{"name": "f", "arguments": [1]}', "{}", "null"]
)
def test_what_is_no_call_stays_text(inside: str) -> None:
    text = f"a <tool_call>{inside}</tool_call> b"
    assert read_answer(text) == (text, [])


def test_a_call_at_the_end_needs_no_closing_tag() -> None:
    told, calls = read_answer('Well. <tool_call>{"name": "f", "arguments": {}}')
    assert told == "Well." and [call.name for call in calls] == ["f"]
    assert read_answer('<tool_call>{"name": "f", "argu')[0] == '<tool_call>{"name": "f", "argu'
