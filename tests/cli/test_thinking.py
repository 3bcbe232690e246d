"""What a thinking model's answer looks like in a terminal and in a file."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from integrations.frameworks import THINKING_TEMPLATE, saying
from reading.families import thinking_engine
from typer.testing import CliRunner, Result

import mmspec
from mmspec.cli import app
from mmspec.cli.loading import Loading
from mmspec.requests import build_request
from mmspec.row import Row
from mmspec.stream import Piece

HARMONY = THINKING_TEMPLATE + "{# <|channel|> #}"
ANSWER = (
    "<|channel|>analysis<|message|>Hm, Hm, Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
    "Well."
)
TERMINAL = {"FORCE_COLOR": "1", "NO_COLOR": "", "TERM": "xterm-256color", "COLUMNS": "200"}
Say = Callable[..., None]


@pytest.fixture(scope="module")
def thinker() -> mmspec.Engine:
    return thinking_engine()


@pytest.fixture
def prompts(thinker: mmspec.Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The model has one answer. Gives the texts of the prompts to come."""
    prepare, asked = thinker.prepare, list[str]()
    options = {**saying(thinker, ANSWER), "template_arguments": {"chat_template": HARMONY}}
    options.pop("max_tokens")

    def prepared(prompt: Any, **more: Any) -> mmspec.Request:
        made = prepare(replace(build_request(prompt, more), **options))
        asked.append(str(made.prompt.text))  # type: ignore[union-attr]
        return made

    monkeypatch.setattr(thinker, "prepare", prepared)
    monkeypatch.setattr(Loading, "load", lambda _: thinker)
    return asked


def run(*words: str, text: str | None = None, env: dict[str, str] | None = None) -> Result:
    done = CliRunner().invoke(app, list(words), input=text, env={"NO_COLOR": "1", **(env or {})})
    assert done.exit_code == 0, done.stderr
    return done


def test_what_is_thought_goes_to_stderr_and_marks_go_nowhere(prompts: list[str]) -> None:
    made = run("generate", "model", "Hi", "--compare")
    assert made.stdout == "Well.\n"
    assert made.stderr.startswith("Hm, Hm, Hm.\n\n") and "<|" not in made.stderr
    assert "identical texts" in made.stderr
    values = json.loads(run("generate", "model", "Hi", "--json", "--compare").stdout)
    assert values["reasoning"] == "Hm, Hm, Hm." and values["compare"]["identical"]
    assert values["answer"] == "Well."
    assert values["text"] == "analysisHm, Hm, Hm.assistantfinalWell.", "as it is"


def test_what_is_thought_is_dim_in_its_drafters_colours(prompts: list[str]) -> None:
    made = run("generate", "model", "Hm, Hm, Hm. Well. Hm, Hm, Hm", "--speculate", env=TERMINAL)
    thought, _, _ = made.stderr.partition("\n\n")
    assert "\x1b[2;32m" in thought and "\x1b[2m" in thought
    assert "\x1b[2" not in made.stdout and "<|" not in made.output


def test_a_conversation_goes_on_with_answer_and_reasoning_apart(prompts: list[str]) -> None:
    made = run("chat", "model", text="Hi\n/help\nSo?\n/new\nAnd?\n")
    assert made.stdout == "Well.\n" * 3 and made.stderr.count("Hm, Hm, Hm.\n\n") == 3
    before = "<|user|>Hi<|assistant|><think>Hm, Hm, Hm.</think>Well.<|user|>So?<|assistant|>"
    assert prompts[1].endswith(before) and prompts[2] == prompts[0].replace("Hi", "And?")


def interrupt_a_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    take, calls = Row.take_pieces, list[object]()

    def interrupted(self: Row) -> list[Piece]:
        calls.append(self)
        if len(calls) == 16:
            raise KeyboardInterrupt
        return take(self)

    monkeypatch.setattr(Row, "take_pieces", interrupted)


def test_what_was_thought_until_an_interrupt_is_told_apart(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_a_thought(monkeypatch)
    made = CliRunner().invoke(app, ["generate", "model", "Hi", "--json", "--no-speculate"])
    values = json.loads(made.stdout)
    assert (made.exit_code, values["finish_reason"]) == (130, "interrupted")
    assert values["reasoning"] and "Hm, Hm, Hm.".startswith(values["reasoning"])
    assert values["answer"] == "" and len(values["tokens"]) == values["stats"]["new_tokens"]


def test_a_thought_that_is_interrupted_ends_its_line(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what there is of it stays in the conversation."""
    interrupt_a_thought(monkeypatch)
    made = run("chat", "model", text="Hi\nSo?\n")
    assert made.stdout == "Well.\n"
    thought, _, _ = made.stderr.partition("\ninterrupted\n")
    assert thought and "Hm, Hm, Hm.".startswith(thought)
    assert f"<think>{thought}" in prompts[1]
