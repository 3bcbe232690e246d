import gzip
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from pdfs import pdf, reads_pdf
from PIL import Image

from mmspec.batch import Task, count_tasks, find_inputs, read_tasks, work
from mmspec.errors import InputError
from mmspec.inputs import Passage, PdfPage, pdf_pages
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
        *("a.png", "b.txt", "c.txt", "owl", "d.jsonl#2", "e.md")
    ]
    assert count_tasks(files, prompt="What?") == len(tasks)
    image, text, latin, owl, nonsense, empty = tasks
    assert asked(image).images == (str(folder / "a.png"),)
    assert asked(text).passages[0].text == "The fox."  # type: ignore[union-attr,index]
    assert asked(owl).passages[0].text == "An owl."  # type: ignore[union-attr,index]
    for broken, why in ((latin, "UTF-8"), (nonsense, "JSON"), (empty, "no text")):
        assert broken.request is None and why in str(broken.error)


@pytest.mark.parametrize(("suffix", "form"), [("txt", "{}"), ("jsonl", '{{"prompt": "{}"}}')])
def test_a_line_that_is_no_utf8_costs_no_other(suffix: str, form: str, tmp_path: Path) -> None:
    lines = [form.format(word).encode("latin-1") for word in ("one", "caf\u00e9", "two")]
    (tmp_path / f"p.{suffix}").write_bytes(b"\r\n".join(lines))
    one, latin, two = read_tasks([tmp_path / f"p.{suffix}"], prompt=None)
    assert (asked(one).prompt, asked(two).prompt) == ("one", "two")
    assert latin.id.endswith(f"p.{suffix}#2")
    assert "line 2: is not UTF-8 text: got the byte b'\\xe9'" in str(latin.error)


def table(*lines: str) -> bytes:
    return "\r\n".join(lines).encode()


TABLE = table("id;prompt", 'a;"Say\n""yes"", please."', f"b;{'x' * 200_000}", "", " ", "c", ";two")


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz"])
def test_a_row_of_csv_is_a_prompt(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(TABLE) if name.endswith("gz") else TABLE)
    assert find_inputs([str(tmp_path)]) == [path]
    tasks = list(read_tasks([path], prompt=None))
    assert count_tasks([path], prompt=None) == len(tasks)
    assert [task.id for task in tasks] == ["a", "b", f"{path}#3", f"{path}#4"]
    said, long, broken, two = tasks
    assert (asked(said).prompt, asked(two).prompt) == ('Say\n"yes", please.', "two")
    assert len(str(asked(long).prompt)) == 200_000
    assert f"{path}, row 3: got 1 column, expected 2" in str(broken.error)


def test_a_column_of_csv_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_bytes(table("id\tbody", "a\tThe fox, he runs."))
    (task,) = read_tasks([tmp_path / "p.tsv"], prompt="Who?", field="body")
    assert asked(task).passages[0].text == "The fox, he runs."  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("name", "lines", "prompts"),
    [
        ("p.csv", ("\ufeff", "prompt", '"b, c"', "d"), ["b, c", "d"]),  # an empty line first
        ("p.csv", ('\ufeff"a,b"\t"prompt"', "1\tx, y"), ["x, y"]),
        ("p.tsv", ("prompt", "b, c; d"), ["b, c; d"]),
        ("p.csv", ("id,prompt",), []),
        ("p.csv", (), []),
    ],
)
def test_a_table_is_read_by_what_parts_its_names(
    name: str, lines: Sequence[str], prompts: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(table(*lines))
    tasks = list(read_tasks([tmp_path / name], prompt=None))
    assert [asked(task).prompt for task in tasks] == prompts
    assert count_tasks([tmp_path / name], prompt=None) == len(prompts)


def test_a_row_that_is_no_csv_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(table("id,prompt", 'a,"one" and', "b,two", "c,three,3", 'd,"four', "e,five"))
    tasks = list(read_tasks([path], prompt=None))
    assert [task.id for task in tasks] == [f"{path}#1", "b", f"{path}#3", f"{path}#4"]
    assert count_tasks([path], prompt=None) == len(tasks)
    for task, why in zip(tasks, ("is no CSV", "None", "3 columns", "is no CSV"), strict=True):
        assert why in str(task.error)
    path.write_bytes(table('"id"s,prompt', "a,one"))
    (task,) = read_tasks([path], prompt=None)
    assert "first row" in str(task.error)


def test_a_record_says_itself_how_it_is_answered(tmp_path: Path) -> None:
    lines = (
        {"prompt": "a", "temperature": 0, "max_new_tokens": 3, "stop": ["x"], "system": ""},
        {"prompt": "a", "temperature": None, "seed": 2**64 - 1, "top_k": 4.0, "category": "b"},
        {"prompt": "a"},
        {"prompt": "a", "stop_sequences": "x", "max_completion_tokens": 3, "max_tokens": None},
        {"prompt": "a", "temperature": "0.7"},
        {"id": 7, "prompt": "a", "max_new_tokens": 2.5},
        {"id": 7, "prompt": "a", "max_output_tokens": 2, "max_new_tokens": 2},
    )
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second, third, fourth, *wrong = read_tasks([path], prompt=None)
    assert not any(task.error for task in (first, second, third, fourth))
    assert fourth.options == {"max_new_tokens": 3, "stop": "x"}
    assert first.options == {"system": "", "stop": ["x"], "max_new_tokens": 3, "temperature": 0}
    assert second.options == {"seed": 2**64 - 1, "top_k": 4} and not third.options
    for task, told in zip(
        wrong,
        (
            "5: temperature='0.7': expected",
            "6: max_new_tokens=2.5: expected",
            "7: got max_output_tokens= and max_new_tokens=, which say the same",
        ),
        strict=True,
    ):
        assert f"p.jsonl, line {told}" in str(task.error)
    for document in read_tasks([path], prompt="What?", field="prompt"):  # where none is an option
        assert document.request is not None and not document.options


def test_cells_are_read_as_the_numbers_that_they_say(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = ("a,20,.5,,,", "a, 7.0 ,1, ,x,", "a,,,9,2,8", "a,,,,,", "a,many,,,,")
    path.write_text("\n".join(("prompt,max_new_tokens,top_p,seed,stop,max_tokens", *rows)))
    *tasks, wrong = read_tasks([path], prompt=None)
    assert not any(task.error for task in tasks)
    assert [task.options for task in tasks] == [
        {"max_new_tokens": 20, "top_p": 0.5},
        {"max_new_tokens": 7, "top_p": 1, "stop": "x"},
        {"max_new_tokens": 8, "seed": 9, "stop": "2"},
        {},
    ]
    assert "row 5: max_new_tokens='many': expected a whole number" in str(wrong.error)


def test_chat_messages_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(table("messages", "[{'role': 'user'; 'content': 'Who?'}]"))
    (task,) = read_tasks([tmp_path / "p.csv"], prompt=None)
    assert "chat messages as a text" in str(task.error)


def test_packed_lines_are_records_and_a_broken_archive_is_told(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"prompt": "one"}\n' * 3)
    (tmp_path / "p.jsonl.gz").write_bytes(packed)
    assert len(list(read_tasks([tmp_path / "p.jsonl.gz"], prompt=None))) == 3
    (tmp_path / "p.jsonl.gz").write_bytes(packed[:-9])
    *_, last = read_tasks([tmp_path / "p.jsonl.gz"], prompt=None)
    assert "cannot be read" in str(last.error)


def test_what_is_no_text_is_not_asked_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "p.docx").write_bytes(b"PK\x03\x04\0\n" + b"\0\n" * 99)
    (task,) = read_tasks([tmp_path / "p.docx"], prompt=None)
    assert "is no text" in str(task.error)


def test_recordings_are_asked_about_too(tmp_path: Path) -> None:
    for name in ("a.wav", "b.FLAC", "c.mp3", "d.xyz"):
        (tmp_path / name).write_bytes(b"")
    tasks = list(read_tasks(find_inputs([str(tmp_path)]), prompt="What is said?"))
    assert [asked(task).audio for task in tasks] == [
        (str(tmp_path / name),) for name in ("a.wav", "b.FLAC", "c.mp3")
    ]
    (tmp_path / "p.jsonl").write_text('{"prompt": "What?", "audio": ["a.wav", "c.mp3"]}\n')
    (task,) = read_tasks([tmp_path / "p.jsonl"], prompt=None)
    assert asked(task).audio == (str(tmp_path / "a.wav"), str(tmp_path / "c.mp3"))


def test_a_video_is_a_document_and_a_field_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (task,) = read_tasks(find_inputs([str(tmp_path)]), prompt="What happens?")
    assert asked(task).videos == (str(tmp_path / "a.mp4"),)
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "What?", "video": "a.mp4"}\n{"prompt": "?", "videos": ["a.mp4", "b.gif"]}\n'
    )
    one, two = read_tasks([tmp_path / "p.jsonl"], prompt=None)
    assert asked(one).videos == (str(tmp_path / "a.mp4"),)
    assert asked(two).videos == (str(tmp_path / "a.mp4"), str(tmp_path / "b.gif"))


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


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_holds_prompts(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    rows = [{"id": "a", "prompt": "Café?"}, {"prompt": "Two?"}, ["?"]]
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    first, second, broken = read_tasks([path], prompt=None)
    assert [(one.id, asked(one).prompt) for one in (first, second)] == [
        ("a", "Café?"),
        (f"{path}#2", "Two?"),
    ]
    assert "row 3: got list, expected an object" in str(broken.error)
    assert count_tasks([path], prompt=None) == 3
    assert count_tasks([path], prompt="Sum it up.") == 1  # one document


def test_a_json_array_that_is_no_utf8_says_where(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes('[\n{"prompt": "café"}]'.encode("latin-1"))
    (broken,) = read_tasks([path], prompt=None)
    assert "line 2: is not UTF-8 text: got the byte b'\\xe9'" in str(broken.error)


@pytest.mark.parametrize("name", ["a.png", "b.wav", "c.mp4", "d.PDF"])
def test_what_can_only_be_asked_about_holds_no_prompt(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89\n\n\xff")
    (task,) = read_tasks([tmp_path / name], prompt=None)
    assert str(task.error).endswith(
        f"{name}: holds no prompt; say what is asked about it: --prompt"
    )
    assert count_tasks([tmp_path / name], prompt=None) == 1


@reads_pdf
def test_pages_of_a_pdf_are_pictures_whose_text_is_drafted_from(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf("first page", "second page", "third page"))
    first, *later = read_tasks([path], prompt="Transcribe.", pages=True)
    assert [task.id for task in (first, *later)] == [f"{path}#{n}" for n in (1, 2, 3)]
    request = asked(first)
    (image,), (passage,) = request.images, request.passages  # type: ignore[misc]
    assert isinstance(image, Image.Image) and image.size == (600, 200)
    assert passage == Passage("first page", f"{path}#1", str(path), in_prompt=False)
    assert count_tasks([path], prompt="Transcribe.", pages=True) == 3
    assert count_tasks([path], prompt="Transcribe.") == 1  # its text layer


@reads_pdf
def test_pages_that_are_answered_are_not_rendered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rendered = tmp_path / "scan.pdf", list[int]()
    path.write_bytes(pdf("first page", "second page", "third page"))

    def noted(path: Path, numbers: Sequence[int]) -> Iterator[PdfPage]:
        for page in pdf_pages(path, numbers):
            rendered.append(page.number)
            yield page

    monkeypatch.setattr(work, "pdf_pages", noted)
    tasks = read_tasks([path], prompt="What?", pages=True, answered={f"{path}#2"})
    told = {task.id.rpartition("#")[2]: task.request is not None for task in tasks}
    assert told == {"1": True, "2": False, "3": True}
    assert rendered == [1, 3]


@reads_pdf
def test_a_page_that_cannot_be_rendered_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf("first page", "second page", "third page"))

    def broken(path: Path, numbers: Sequence[int]) -> Iterator[PdfPage]:
        for number in numbers:
            if number == 2:
                raise InputError("too large")
            yield from pdf_pages(path, [number])

    monkeypatch.setattr(work, "pdf_pages", broken)
    first, second, third = read_tasks([path], prompt="What?", pages=True)
    assert first.request and third.request and second.request is None
    assert (second.id, str(second.error)) == (f"{path}#2", "too large")


@reads_pdf
def test_a_broken_pdf_is_one_failure(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(b"%PDF-1.4 nothing")
    (task,) = read_tasks([path], prompt="What?", pages=True)
    assert task.request is None and "cannot be read as PDF" in str(task.error)
    assert count_tasks([path], prompt="What?", pages=True) == 1


@reads_pdf
def test_what_cannot_be_read_has_the_id_that_it_would_have(tmp_path: Path) -> None:
    for name in ("May: a.pdf", "May: b.pdf"):
        (tmp_path / name).write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "notes.jsonl").write_text('no JSON\n{"id": "seven", "text": 7}\n{"body": "x"}\n')
    tasks = list(read_tasks(find_inputs([str(tmp_path)]), prompt="What?"))
    names = [task.id.removeprefix(f"{tmp_path}/") for task in tasks]
    assert names == [
        "May: a.pdf",
        "May: b.pdf",
        "empty.txt",
        "notes.jsonl#1",
        "seven",
        "notes.jsonl#3",
    ]
    told = [str(task.error).removeprefix(f"{tmp_path}/") for task in tasks]
    assert told[2] == "empty.txt: holds no text"
    assert told[4].startswith("notes.jsonl, line 2: no text in the field 'text': got 7;")
    assert "line 3: no text in the field 'text': got body;" in told[5]


def test_a_body_in_parquet_says_nothing_by_nulls_and_decimals_are_numbers(tmp_path: Path) -> None:
    """All rows have the keys of each there."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    first = {"messages": [{"role": "user", "content": "One?", "name": "a"}], "seed": Decimal("3")}
    second = {"prompt": "Two?", "temperature": Decimal("0.50"), "echo": False}
    rows = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate((first, second))
    ]
    path = tmp_path / "requests.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    bodies = [task.posted.body for task in read_tasks([path], prompt=None) if task.posted]
    assert bodies == [{**first, "seed": 3}, {**second, "temperature": 0.5}]
    assert not any(isinstance(one, Decimal) for body in bodies for one in body.values())
    parquet.write_table(pyarrow.table({"prompt": ["x"], "temperature": [Decimal("0.5")]}), path)
    (task,) = read_tasks([path], prompt=None)
    assert task.error is None and task.options == {"temperature": 0.5}


def test_rows_of_parquet_are_prompts_or_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    rows = [
        {"id": "x", "prompt": "One?", "image": {"bytes": png, "path": None}, "text": "A fox."},
        {"id": None, "prompt": "Two?", "image": {"bytes": None, "path": "a.png"}, "text": "B."},
        {"id": "z", "prompt": None, "image": None, "text": None},
    ]
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second, broken = read_tasks([path], prompt=None)
    assert (first.id, asked(first).prompt, asked(first).images) == ("x", "One?", (png,))
    assert (second.id, asked(second).images) == (f"{path}#2", (str(tmp_path / "a.png"),))
    assert "row 3: got prompt=None" in str(broken.error)
    documents = list(read_tasks([path], prompt="What?"))
    assert [task.request is not None for task in documents] == [True, True, False]
    assert "row 3: no text in the field 'text'" in str(documents[2].error)
    assert count_tasks([path], prompt=None) == 3
    far = pyarrow.array([None, 10**15], pyarrow.timestamp("s"))  # no year of Python's
    columns = {"prompt": ["One?", "Two?"], "when": far}
    parquet.write_table(pyarrow.table(columns), tmp_path / "odd.parquet")
    *_, odd = read_tasks([tmp_path / "odd.parquet"], prompt=None)
    assert "odd.parquet: cannot be read behind row" in str(odd.error)
    path.write_bytes(path.read_bytes()[:-20])
    (cut,) = read_tasks([path], prompt=None)
    assert "cannot be read as Parquet" in str(cut.error)
