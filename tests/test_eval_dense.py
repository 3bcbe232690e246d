"""scripts/eval_dense.py: it measures what it says, on questions that no datastore holds."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mmspec

SCRIPT = Path(__file__).parent.parent / "scripts" / "eval_dense.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("eval_dense", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["eval_dense"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    return mmspec.load("tiny-vlm", drafter="none")


def test_no_question_is_in_its_datastore(script: Any) -> None:
    suites = script.bundled_suites(6, 4, seed=0)
    assert {suite.kind for suite in suites} == {"(a)", "(b)", "(c)"}
    for suite in suites:
        assert (len(suite.records), len(suite.questions)) == (6, 4)
        seen = {(record.prompt, bytes_of(record)) for record, _ in suite.records}
        assert not seen & {(one.prompt, bytes_of(one)) for one in suite.questions}
        if suite.kind == "(c)":  # read from the picture: the prompt holds none of the answer
            assert all(one.images and len(one.prompt) < 25 for one in suite.questions)


def bytes_of(request: Any) -> bytes:
    return request.images.tobytes() if request.images else b""


def test_a_suite_is_measured_and_shown(script: Any, engine: mmspec.Engine) -> None:
    suite = next(s for s in script.bundled_suites(3, 1, seed=0) if s.name == "shapes by region")
    (question,) = suite.questions
    suite = replace(suite, questions=[replace(question, max_new_tokens=24)])
    figures = script.evaluate(engine, suite, 1)
    lengths = figures["acceptance_length"]
    assert lengths.keys() == script.METHODS.keys() and min(lengths.values()) >= 1
    assert lengths["dense"] > 1.3, lengths  # the first words of a form seen three times
    assert figures["both_to_suffix"] == lengths["suffix+dense"] / lengths["suffix"]
    held = sum(len(answer) for _, answer in suite.records)
    assert figures["datastore"]["hidden_states"] == figures["datastore"]["tokens"] == held
    assert figures["speed"]["plain"]["ratio"] == 1.0
    assert all(speed["tokens_per_s"] > 0 for speed in figures["speed"].values())
    report = {"suites": {suite.name: figures}}
    for table in (script.table(report), script.speed_table(report)):
        assert table.row_count == 1


def test_real_language_is_answered_first_and_read(
    script: Any, engine: mmspec.Engine, tmp_path: Path
) -> None:
    suites = script.text_suites(engine, 1, 1, seed=0, answer_tokens=6)
    assert [suite.name for suite in suites] == list(script.INSTRUCTIONS)
    (record, answer), (question,) = suites[0].records[0], suites[0].questions
    assert answer and record.prompt != question.prompt
    assert any(text in question.prompt for text in suites[0].texts)  # the passage is there to quote
    held = script.write_datastore(tmp_path / "s", suites[0], engine)
    read = sum(len(text.encode()) - 1 for text in suites[0].texts)
    assert held["hidden_states"] == held["tokens"] - len(suites[0].texts)
    assert held["hidden_states"] > read
