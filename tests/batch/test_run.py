"""What a run tells of tasks that failed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integrations.frameworks import THINKING_TEMPLATE, TOOL_TEMPLATE, saying
from PIL import Image
from reading.families import thinking_engine

from mmspec.answers import unbegun_result
from mmspec.batch import Ledger, Task, run_batch
from mmspec.batch.run import question_digest
from mmspec.errors import InputError
from mmspec.requests import Request, Result


class Refusing:
    """An engine that answers nothing."""

    def generate_each(self, asked: Iterator[Request], **_: object) -> Iterator[tuple[int, Result]]:
        for number, _request in enumerate(asked):
            yield number, unbegun_result("error", InputError("4 images, expected 1"))


@pytest.mark.parametrize("prompt", ["", [{"role": "user", "content": [{"type": "image"}]}]])
def test_an_answer_about_an_image_alone_is_read_too(prompt: Any, tmp_path: Path) -> None:
    engine, image = thinking_engine(), Image.new("RGB", (32, 32))
    options = saying(engine, "<think>Hm.</think>Well.")
    options["max_new_tokens"] = options.pop("max_tokens")
    part = "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    shown = THINKING_TEMPLATE.replace("{{ part['text'] }}", part)
    options["template_arguments"] = {"chat_template": shown}
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        tasks = [Task("a", Request(prompt, images=(image,)))]
        assert not run_batch(engine, tasks, ledger, options=options, seed=0).failures
    assert '"reasoning": "Hm.", "answer": "Well."' in (tmp_path / "out.jsonl").read_text()


def test_each_answer_is_read_behind_its_own_prompt(tmp_path: Path) -> None:
    """Some templates open the reasoning, or do not, by what is said."""
    engine = thinking_engine()
    options = saying(engine, "<think>Hm.</think>Well.")
    options["max_new_tokens"] = options.pop("max_tokens")
    opens = "{% if messages[-1]['content'][0]['text'] == 'a' %}<think>{% endif %}"
    options["template_arguments"] = {"chat_template": THINKING_TEMPLATE + opens}
    options["images"] = iter([None, None])
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    tasks = [Task("a", Request(messages)), Task("b", Request("b"))]
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        assert not run_batch(engine, tasks, ledger, options=options, seed=0).failures
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = {line["id"]: line for line in lines if "id" in line}
    assert answers["a"]["text"] == "Hm.</think>Well."
    for name in ("a", "b"):
        assert (answers[name]["reasoning"], answers[name]["answer"]) == ("Hm.", "Well.")


def test_of_a_model_that_never_reasons_no_prompt_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, made = thinking_engine(), list[object]()
    options = saying(engine, "<think>Hm.</think>Well.")
    options["max_new_tokens"] = options.pop("max_tokens")
    options["template_arguments"] = {"chat_template": TOOL_TEMPLATE}
    monkeypatch.setattr(engine, "prepare", lambda *asked, **_: made.append(asked))
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        tally = run_batch(engine, [Task("a", Request("a"))], ledger, options=options, seed=0)
    assert not tally.failures and not made
    assert '"text": "<think>Hm.</think>Well."' in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (THINKING_TEMPLATE, "<think>Hm.</think>Well."),
        (f"{THINKING_TEMPLATE}<think>", "Hm.</think>Well."),  # the prompt has opened it
        (THINKING_TEMPLATE, "Well."),
    ],
)
def test_reasoning_and_answer_stand_apart(template: str, said: str, tmp_path: Path) -> None:
    engine = thinking_engine()
    behind = template.removeprefix(THINKING_TEMPLATE)
    options = saying(engine, behind + said)
    options["max_new_tokens"] = options.pop("max_tokens")
    options["template_arguments"] = {"chat_template": template}
    tasks = [Task(name, Request(name)) for name in ("a", "b")]
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        tally = run_batch(engine, tasks, ledger, options=options, seed=0)
    assert not tally.failures
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = [line for line in lines if "id" in line]
    assert {line["id"] for line in answers} == {"a", "b"}
    for line in answers:
        assert line["text"] == said
        if "Hm" in said:
            assert (line["reasoning"], line["answer"]) == ("Hm.", "Well.")
        else:
            assert "reasoning" not in line and "answer" not in line


def test_a_question_without_options_of_its_own_is_known_as_ever() -> None:
    """By ledgers that were begun before there were any."""
    request = Request("abc", images=("a.png",))
    assert question_digest(Task("a", request)) == "71aa38e9610c"
    told = ({}, {"top_k": 1}, {"top_k": 2})
    assert len({question_digest(Task("a", request, options=own)) for own in told}) == 3
    media = (Path("a.png"), Path("b.png"), b"a", b"b", "b.png")  # the last is the second
    asked = [question_digest(Task("a", Request("abc", images=(one,)))) for one in media]
    assert asked[0] == question_digest(Task("a", request)) and asked[1] == asked[4]
    assert len(set(asked)) == 4


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Task("4", Request("a")), "4: 4 images, expected 1"),
        (Task("a.png", Request("a")), "a.png: 4 images, expected 1"),
        (Task("4", None, InputError("p.csv, row 3: is no CSV")), "p.csv, row 3: is no CSV"),
        (Task("4", Request("a"), where="p.csv, row 3"), "4: 4 images, expected 1"),
    ],
)
def test_a_failure_is_told_with_its_place_once(tmp_path: Path, task: Task, told: str) -> None:
    made: Any = Refusing
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        tally = run_batch(made, [task, task], ledger, options={}, seed=0)
    again = f"{task.where or task.id}: the id {task.id!r} was there before; give each its own"
    assert tally.failures == [told, again]
