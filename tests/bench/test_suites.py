import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmspec.bench.folder import folder_tasks
from mmspec.bench.suites import Question, bundled_tasks, file_tasks
from mmspec.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two meetings, a speech, a table of keys and prompts, in small."""
    for name in ("qmsum", "state_union", "kv_lookup", "prompts"):
        (tmp_path / name).mkdir()

    def lines(name: str, *values: object) -> None:
        (tmp_path / name).write_text("\n".join(map(json.dumps, values)) + "\n")

    meeting = {
        "meeting_transcripts": [{"speaker": f"S{n}", "content": f"turn {n} ."} for n in range(80)],
        "general_query_list": [{"query": "Summarize the whole meeting.", "answer": "."}],
        "specific_query_list": [
            {"query": "What about turn 50?", "answer": ".", "relevant_text_span": [["50", "52"]]}
        ],
    }
    lines("qmsum/test.jsonl", meeting, meeting)
    speech = "\n".join(f"Paragraph {n} " + "of many words " * 20 for n in range(12))
    (tmp_path / "state_union" / "speech.txt").write_text("(Title)\n" + speech)
    pairs = [[f"k{n}", f"v{n}"] for n in range(75)]
    lines("kv_lookup/pairs.jsonl", {"ordered_kv_records": pairs, "key": "k70"})
    lines("prompts/humaneval.jsonl", {"category": "code", "turns": ["def f():"]})
    lines("prompts/gsm8k.jsonl", {"category": "math", "turns": ["1 + 1?"]})
    lines(
        "prompts/mt_bench.jsonl",
        {"category": "writing", "turns": ["A poem.", "Another."]},
        {"category": "stem", "turns": ["Why?"]},
    )
    lines("prompts/riddles.jsonl", {"prompt": "What has keys?"})
    return tmp_path


def test_a_folder_gives_each_task_that_it_has_prompts_for(folder: Path) -> None:
    tasks = {task.name: task for task in folder_tasks(folder, 2)}
    assert list(tasks) == [
        "quoting", "summarising", "answering from passages", "quoting a speech", "translating",
        "looking up", "maths", "code", "open-ended", "chat", "riddles",
    ]  # fmt: skip
    assert len(tasks["quoting"].questions) == 2
    assert len(tasks["translating"].questions) == 2
    assert tasks["open-ended"].questions == (Question("A poem."),)
    assert tasks["quoting"].max_new_tokens == 200 and tasks["code"].max_new_tokens == 128
    summary = tasks["summarising"].questions[0]
    assert summary.document.startswith("S0: turn 0 .\nS1: turn 1 .")
    assert summary.after.endswith("Summarize the whole meeting.")


def test_the_relevant_passage_is_among_those_that_are_given(folder: Path) -> None:
    tasks = {task.name: task for task in folder_tasks(folder, 1)}
    question = tasks["answering from passages"].questions[0]
    assert "S50: turn 50 .\nS51: turn 51 ." in question.document
    assert question.document.count("[") == 6
    assert question.after == "\n\nQuestion: What about turn 50?"


def test_a_look_up_is_among_the_keys_near_it(folder: Path) -> None:
    tasks = {task.name: task for task in folder_tasks(folder, 1)}
    question = tasks["looking up"].questions[0]
    assert list(json.loads(question.document)) == [f"k{n}" for n in range(60, 75)]
    assert 'Key: "k70"' in question.after


def test_a_part_of_the_folder_is_enough_and_none_is_told(folder: Path, tmp_path: Path) -> None:
    for name in ("qmsum/test.jsonl", "state_union/speech.txt", "kv_lookup/pairs.jsonl"):
        (folder / name).unlink()
    assert [task.name for task in folder_tasks(folder, 1)] == [
        "maths", "code", "open-ended", "chat", "riddles",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no prompts found; expected a folder with"):
        folder_tasks(tmp_path / "qmsum", 1)


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("qmsum", '{"meetings": 1}', "line 1: got the keys ['meetings']; expected a meeting"),
        ("kv_lookup", '{"ordered_kv_records": []}', "expected a 'key' of 'ordered_kv_records'"),
        ("qmsum", '{"meeting_transcripts": [1]}', "expected a meeting"),
        ("kv_lookup", '{"key": "a", "ordered_kv_records": []}', "(ValueError: "),
        ("qmsum", '{"meeting_transcripts": []}', "KeyError: 'general_query_list'"),
        ("kv_lookup", "no JSON", "line 1: is not JSON"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, name: str, line: str, told: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text(line)
    with pytest.raises(InputError) as raised:
        folder_tasks(tmp_path, 4)
    assert told in str(raised.value) and "a.jsonl" in str(raised.value)


def test_a_speech_of_short_lines_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "state_union").mkdir()
    (tmp_path / "state_union" / "a.txt").write_text("Too short.")
    with pytest.raises(InputError, match="no prompts found"):
        folder_tasks(tmp_path, 4)


def test_a_users_file_is_gathered_by_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    values = [{"prompt": "a", "task": "x"}, {"prompt": "b"}, {"prompt": "c", "task": "x"}]
    file.write_text("\n".join(map(json.dumps, values)))
    tasks = file_tasks(file, None)
    assert [(t.name, [q.before for q in t.questions]) for t in tasks] == [
        ("x", ["a", "c"]),
        ("prompts", ["b"]),
    ]
    assert len(file_tasks(file, 1)[0].questions) == 1


def test_what_a_record_shows_and_plays_is_a_part_of_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    file = tmp_path / "prompts" / "mine.jsonl"
    file.write_text(
        json.dumps({"prompt": "a", "image": "a.png", "video": "b.gif", "audio": "c.wav"})
    )
    given: list[dict[str, Any]] = []
    inputs: Any = SimpleNamespace(encode=lambda prompt, **media: given.append(media))
    for task in (*file_tasks(file, None), *folder_tasks(tmp_path, 1)):
        task.questions[0].encode(inputs)
    paths = {"images": "a.png", "videos": "b.gif", "audio": "c.wav"}
    wanted = {name: (str(file.parent / path),) for name, path in paths.items()}
    assert given == [wanted, wanted]


def test_the_bundled_suite_is_the_same_each_time_and_held_out() -> None:
    first, second = bundled_tasks(2), bundled_tasks(2)
    assert [t.name for t in first] == [
        "transcribing, text layer given", "quoting, 1k", "quoting, 4k", "describing", "open-ended",
    ]  # fmt: skip
    for one, other in zip(first, second, strict=True):
        assert [q.before for q in one.questions] == [q.before for q in other.questions]
    assert (
        len({q.before for task in first for q in task.questions}) == 9
    )  # pictures are asked alike
    assert all(len(question.images) == 1 for question in first[0].questions)
    assert 3900 < len(first[2].questions[0].before) < 4200
