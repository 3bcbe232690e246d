"""Each family's answers: their parts, whole and in pieces, and what only looks like them."""

import random
import re

import pytest

from mmspec.reading.form import form_of
from mmspec.reading.reader import AnswerReader

from .families import FAMILIES, HARMONY, TOOLS, WEATHER, Family, reader_of, tokenizer_of, told

CALLED = ("get_weather", {"city": "Paris", "days": 3, "tags": ["a"]})
NAMES = sorted(FAMILIES)
_CUTS = re.compile(r'(<[^<>]*>|\[[^\[\]]*\]|\s+|[{}",:=])')


@pytest.mark.parametrize("name", NAMES)
def test_reasoning_text_and_typed_calls_are_told_apart(name: str) -> None:
    family = FAMILIES[name]
    whole = reader_of(family)
    parts = told(whole.parts(family.answer, is_last=True))
    assert parts == [("reasoning", "Let me see."), ("text", "Well."), CALLED]
    own_id = {"kimi": "functions.get_weather:0", "mistral": "abcdefghi"}.get(name, "call_")
    assert whole.calls[0].id.startswith(own_id)
    (span,) = whole.reasoning_spans
    assert family.answer[span.start : span.stop] == "Let me see."
    for size in (1, 2, 5):
        reader, pieces = reader_of(family), []
        for start in range(0, len(family.answer), size):
            pieces += reader.parts(family.answer[start : start + size])
        assert told([*pieces, *reader.parts("", is_last=True)]) == parts


@pytest.mark.parametrize("name", NAMES)
def test_without_tools_a_call_stays_text(name: str) -> None:
    family = FAMILIES[name]
    reasoning, (kind, text) = told(reader_of(family, ()).parts(family.answer, is_last=True))
    assert reasoning == ("reasoning", "Let me see.") and kind == "text"
    assert str(text).startswith("Well.") and "Paris" in str(text)
    assert not any(mark in str(text) for mark in family.special)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_is_cut_off_stays_text(name: str) -> None:
    family = FAMILIES[name]
    for cut in ("Par", "3", "["):
        begun = family.answer[: family.answer.rindex(cut) + 1]
        reader = reader_of(family)
        parts = told(reader.parts(begun, is_last=True))
        assert [kind for kind, _ in parts] == ["reasoning", "text"] and not reader.calls
        assert "get_weather" in str(parts[1][1])


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_are_two(name: str) -> None:
    family = FAMILIES[name]
    call = family.answer[family.answer.index("Well.") + len("Well.") :]
    reader = reader_of(family)
    reader.parts(family.answer + call, is_last=True)
    assert [(one.name, one.arguments) for one in reader.calls] == [CALLED, CALLED]
    assert len({one.id for one in reader.calls}) == 2


@pytest.mark.parametrize("name", NAMES)
def test_broken_answers_lose_no_text_and_read_alike_in_any_pieces(name: str) -> None:
    """Marks dropped, doubled and mixed with those of other families."""
    rng = random.Random(name)
    family = FAMILIES[name]
    alphabet = sorted({one for f in FAMILIES.values() for one in _CUTS.split(f.answer) if one})
    for _ in range(150):
        words = _CUTS.split(family.answer)
        if rng.random() < 0.4:
            words = rng.choices(alphabet, k=20)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(words))
            words[place : place + rng.randint(0, 2)] = rng.choices(["", "ü", *alphabet], k=1)
        text = "".join(words)[: rng.choice([10_000, 90, 60])]
        tools = TOOLS if rng.random() < 0.8 else ()
        whole, pieces = reader_of(family, tools), reader_of(family, tools)
        parts, streamed, rest = whole.parts(text, is_last=True), [], text
        while rest:
            size = rng.choice([1, 1, 2, 3, 7, 20])
            streamed += pieces.parts(rest[:size])
            rest = rest[size:]
        streamed += pieces.parts("", is_last=True)
        assert told(streamed) == told(parts), text
        assert pieces.reasoning_spans == whole.reasoning_spans, text
        shown = "".join(str(value) for _, value in told(parts))
        assert not any(mark in shown for mark in family.special), text
        assert shown.count("ü") == text.count("ü") or whole.calls, text


@pytest.mark.parametrize(
    ("beginning", "answer", "expected"),
    [
        ("<think>\n", "hm\n</think>\n\nWell.", [("reasoning", "hm"), ("text", "Well.")]),
        ("<think>\n\n</think>\n\n", "Well.", [("text", "Well.")]),
        ("<think>\n", "hm", [("reasoning", "hm")]),  # it never came to an answer
        ("", "Write <think> first.", [("text", "Write <think> first.")]),
        ("", "<thin", [("text", "<thin")]),
        ("Sure: ", "<think>hm</think>", [("text", "<think>hm</think>")]),
    ],
)
def test_reasoning_is_what_an_answer_begins_with(
    beginning: str, answer: str, expected: list[tuple[str, str]]
) -> None:
    reader = reader_of(FAMILIES["qwen3"], beginning=beginning)
    assert told(reader.parts(answer, is_last=True)) == expected
    thought = "".join(answer[span.start : span.stop] for span in reader.reasoning_spans)
    assert thought == "".join(text for kind, text in expected if kind == "reasoning")


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n", ""),
        ("<｜User｜>Hi<｜Assistant｜></think>", "</think>"),
        ("[INST]Hi[/INST]", ""),
        ("<|CHATBOT_TOKEN|><|START_THINKING|>", "<|START_THINKING|>"),
        ("<seed:bos>user\nHi<seed:eos><seed:bos>assistant\n<seed:think>", "<seed:think>"),
        ("<function_results></function_results>\n\n<think>", "<think>"),
        ("of an unknown family: <think>\n", "<think>\n"),
        ("of an unknown family, <think> and so on", ""),
    ],
)
def test_what_a_prompt_has_begun_of_its_answer_is_found(prompt: str, beginning: str) -> None:
    assert form_of(None, "</think>", has_tools=False).beginning(prompt) == beginning


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call><function=get_weather>Paris</function></tool_call>",
        "<function=get_weather><parameter=city>Paris</parameter>",
        "<tool_call>ping</tool_call>",
        "Say </function> and </tool_call>.",
        "</tool_call> ends it.",
    ],
)
def test_what_looks_like_a_call_of_tags_stays_text(answer: str) -> None:
    parts = reader_of(FAMILIES["qwen3-coder"]).parts(answer, is_last=True)
    assert told(parts) == [("text", answer)]


def test_an_answer_without_its_family_s_marks_is_text() -> None:
    for name in NAMES:
        reader = reader_of(FAMILIES[name])
        assert told(reader.parts("Well, 3 < 4.", is_last=True)) == [("text", "Well, 3 < 4.")]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("before", ["", "<think>Hm <|im_</think>"])
def test_what_a_mark_stood_between_is_no_mark(before: str, size: int) -> None:
    reader, answer = reader_of(FAMILIES["kimi"]), f"{before}a <|im<|im_end|>_end|> b <|im_"
    parts = [p for n in range(0, len(answer), size) for p in reader.parts(answer[n : n + size])]
    thought = [("reasoning", "Hm <|im_")] if before else []
    said = ("text", "a <|im_end|> b <|im_")
    assert told([*parts, *reader.parts("", is_last=True)]) == [*thought, said]


def test_a_bare_call_may_follow_reasoning() -> None:
    reader = reader_of(FAMILIES["qwen3"])
    call = '{"name": "ping", "parameters": {}}'
    parts = told(reader.parts(f"<think>hm</think>\n{call}", is_last=True))
    assert parts == [("reasoning", "hm"), ("ping", {})]


def test_a_template_that_the_tokenizer_brings_goes_first() -> None:
    """As gpt-oss has it: its `content` has marks of its own, and text outside of all is dropped,
    but for an answer that has nothing else."""
    tokenizer = tokenizer_of(tuple(HARMONY))
    content = {"open": "<|channel|>final<|message|>", "close": "<|return|>"}
    thinking = {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"}
    fields = {"thinking": thinking, "content": content}
    tokenizer.response_template = {"start_anchor": "<|start|>assistant", "fields": fields}
    try:
        form = form_of(tokenizer, "</think>", has_tools=True)
    finally:
        tokenizer.response_template = None
    assert form.shows_special and set(form.template.fields) == set(fields)
    for answer, expected in (
        (
            FAMILIES["gpt-oss, to before the channel"].answer.replace(
                "end|><|start|>assistant to", "return|>"
            ),
            None,
        ),
        ("No marks.<|return|>", [("text", "No marks.")]),
    ):
        reader = AnswerReader(form, [WEATHER], unseen=HARMONY)
        parts = told(reader.parts(answer, is_last=True))
        assert parts == (expected or [("reasoning", "Let me see."), ("text", "Well.")])


def test_a_template_that_is_none_is_told_and_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of(("<|left aside|>",))
    tokenizer.response_template = {"fields": {}}
    form = form_of(tokenizer, "</think>", has_tools=False)
    assert "reasoning_content" in form.template.fields and "left aside" in caplog.text
    caplog.clear()
    form_of(tokenizer_of(), "</think>", has_tools=False)
    assert not caplog.text


def test_only_families_with_special_marks_are_decoded_with_them() -> None:
    for name, family in FAMILIES.items():
        form = form_of(tokenizer_of(family.special), family.template, has_tools=True)
        assert form.shows_special == bool(family.special), name
    form = form_of(tokenizer_of(("[TOOL_CALLS]",)), "[TOOL_CALLS]", has_tools=False)
    assert not form.shows_special, "its marks are of calls alone"
    tuned = tokenizer_of(("<tool_call>", "</tool_call>"))  # as some make Hermes' marks
    for has_tools in (False, True):
        assert form_of(tuned, "", has_tools=has_tools).shows_special == has_tools
    plain = Family("", "")
    assert told(reader_of(plain).parts("<think>", is_last=True)) == [("text", "<think>")]
