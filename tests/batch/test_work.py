from pathlib import Path

import pytest
from PIL import Image

from mmspec.batch import Task, count_tasks, find_inputs, read_tasks
from mmspec.errors import InputError
from mmspec.requests import Request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("The fox.")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.jsonl").write_text('{"id": "owl", "text": "An owl."}\nnonsense\n')
    (tmp_path / "e.md").write_text(" \n")
    (tmp_path / "f.bin").write_bytes(b"\0")  # of no known kind: left out
    return tmp_path


def asked(task: Task) -> Request:
    assert task.request is not None
    return task.request


def test_a_prompt_is_asked_about_each_document_and_image(folder: Path) -> None:
    files = find_inputs([str(folder)])
    tasks = list(read_tasks(files, prompt="What?"))
    assert [task.id.removeprefix(f"{folder}/") for task in tasks] == [
        *("a.png", "b.txt", "c.txt", "owl", "d.jsonl, line 2", "e.md")
    ]
    assert count_tasks(files, prompt="What?") == len(tasks)
    image, text, latin, owl, nonsense, empty = tasks
    assert asked(image).images == (str(folder / "a.png"),)
    assert asked(text).passages[0].text == "The fox."  # type: ignore[union-attr,index]
    assert asked(owl).passages[0].text == "An owl."  # type: ignore[union-attr,index]
    for broken, why in ((latin, "UTF-8"), (nonsense, "JSON"), (empty, "no text")):
        assert broken.request is None and why in str(broken.error)


def test_without_a_prompt_files_hold_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"id": 7, "prompt": "One?", "images": ["x.png"]}\n\n{"turns": ["Two?"]}\n{}\n'
    )
    (tmp_path / "q.txt").write_text("Three?\n\nFour?\n")
    files = find_inputs([str(tmp_path)])
    tasks = list(read_tasks(files, prompt=None))
    first, second, broken, third, fourth = tasks
    assert [task.id.rpartition("/")[2] for task in tasks] == [
        *("7", "p.jsonl#3", "p.jsonl#4", "q.txt#1", "q.txt#3")
    ]
    assert (asked(first).prompt, asked(first).images) == ("One?", (str(tmp_path / "x.png"),))
    assert [asked(t).prompt for t in (second, third, fourth)] == ["Two?", "Three?", "Four?"]
    assert isinstance(broken.error, InputError)
    assert count_tasks(files, prompt=None) == 5
