import json
from pathlib import Path

import pytest

from mmspec.errors import InputError
from mmspec.inputs.prompt_file import FilePrompt, read_prompts
from mmspec.inputs.records import read_records


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("What is this?\n\n  \nAnd that? {not JSON}\n")
    assert [one.prompt for one in read_prompts(file)] == ["What is this?", "And that? {not JSON}"]


def test_jsonl_is_an_object_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "one", "id": 3}\n'
        '{"messages": [{"role": "user", "content": "two"}], "image": "a.png"}\n\n'
        '{"turns": ["three", "later"], "category": "maths"}\n'
        '{"prompt": "four", "images": ["b.png", "/c.png", "data:image/x"], "task": "t"}\n'
    )
    assert read_prompts(file) == [
        FilePrompt("one"),
        FilePrompt([{"role": "user", "content": "two"}], (str(tmp_path / "a.png"),)),
        FilePrompt("three", task="maths"),
        FilePrompt("four", (str(tmp_path / "b.png"), "/c.png", "data:image/x"), task="t"),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "a"}\n{"prompt": \n', r"line 2: is not JSON: Expecting value at character 13"),
        ('{"prompt": "a\n', "line 1: is not JSON: Invalid control character at character 14;"),
        ("3\n", "line 1: got int, expected an object"),
        ('{"text": "a"}\n', r"line 1: got the keys \['text'\]; expected"),
        ('{"prompt": ["a"]}\n', r"got prompt=\['a'\]; expected a text or chat messages"),
        ('{"prompt": "", "id": 1}\n', "line 1: got prompt=''; expected a text"),
        ('{"turns": []}\n', "expected a text or chat messages"),
        ('{"prompt": "a", "images": [3]}\n', "images: expected paths, got 3"),
        ('{"prompt": "a", "audio": {"rate": 3}}\n', "audio: expected paths, got None"),
        ('{"prompt": "a", "audio": {"array": ["b"]}}\n', "line 1: audio: .*none of numbers"),
        ('{"prompt": "a", "audio": {"array": [[1], [2, 3]]}}\n', "none of numbers"),
        ('{"prompt": "a", "audio": {"array": {"b": 1}}}\n', "none of numbers"),
        ('{"prompt": "a", "audio": {"array": [0, -300]}}\n', "whole numbers up to 300"),
        ('{"turns": "a text"}\n', "expected a text or chat messages"),
    ],
)
def test_a_mistake_names_its_line(content: str, told: str, tmp_path: Path) -> None:
    for name in ("prompts.jsonl", "prompts.json"):
        file = tmp_path / name
        file.write_text(content)
        with pytest.raises(InputError, match=told):
            read_prompts(file)


@pytest.mark.parametrize("name", ["x" * 600, "data:image/png;base64," + "A" * 700, "a/" * 400])
def test_what_no_file_can_be_called_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": [{"type": "image", "image": name}]}
    file.write_text(json.dumps({"messages": [message]}))
    assert read_prompts(file) == [FilePrompt([message])]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="line 1: is not UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    (tmp_path / "wide.txt").write_text("Hi", encoding="utf-16")
    with pytest.raises(InputError, match="is UTF-16; convert it to UTF-8 first"):
        read_prompts(tmp_path / "wide.txt")


def test_a_line_ends_at_its_newline_alone(tmp_path: Path) -> None:
    """Some other characters end a line for str.splitlines; mmspec batch reads the same prompts."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028more\r\ntwo\x0c\n".encode())
    assert [one.prompt for one in read_prompts(tmp_path / "a.txt")] == ["one\u2028more", "two\x0c"]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", '["a"]'],
    ids=["too deep", "too many digits", "no object"],
)
def test_a_line_that_no_reader_takes_is_that_line_s_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{line}\n{{"prompt": "b"}}\n')
    broken, good = read_records(path)
    assert "a.jsonl, line 1" in str(broken.error)
    assert good.error is None and good.values == {"prompt": "b"}


def test_recordings_are_named_as_images_are(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "one", "audio": "a.wav"}\n'
        '{"prompt": "two", "audio": ["/b.wav", "https://a/c.wav"], "image": "d.png"}\n'
        '{"prompt": "three", "audio": {"path": "a.wav", "bytes": null}}\n'
        '{"prompt": "four", "audio": {"array": [0, 0.5], "sampling_rate": 8000}}\n'
        '{"prompt": "five", "audio": [{"array": [1, -1]}, {"array": [2, 0.5]}, {"array": []}]}\n'
    )
    one, two, three, four, five = read_prompts(file)
    assert one.audio == three.audio == (str(tmp_path / "a.wav"),) and not one.images
    assert two.audio == ("/b.wav", "https://a/c.wav") and two.images == (str(tmp_path / "d.png"),)
    (given,) = four.audio
    assert isinstance(given, dict) and given["sampling_rate"] == 8000
    assert given["array"].tolist() == [0, 0.5]
    assert [one["array"].tolist() for one in five.audio] == [[1, -1], [2, 0.5], []]


def test_paths_in_messages_are_from_the_file_s_folder_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    parts = [
        {"type": "image", "path": "a.png"},
        {"type": "image", "path": "elsewhere.png"},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "text", "text": "a.png"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    (found,) = read_prompts(file)
    parts[0]["path"] = str(tmp_path / "a.png")
    assert found.prompt == [{"role": "user", "content": parts}]
