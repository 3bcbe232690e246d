"""`mmspec index`: build, add, delete, info and query on the bundled model's tokenizer."""

import json
from pathlib import Path

import pytest
from pdfs import pdf
from typer.testing import CliRunner, Result

from mmspec.cli import app
from mmspec.inputs.text_tokens import TextTokens
from mmspec.retrieval import Datastore
from mmspec.retrieval.writer import DatastoreWriter

TERMINAL = {"FORCE_COLOR": "1", "NO_COLOR": "", "TERM": "xterm-256color", "COLUMNS": "200"}
MODEL = "tiny-vlm"


def index(*words: object, env: dict[str, str] | None = None, code: int = 0) -> Result:
    arguments = ["index", *map(str, words)]
    run = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "200", **(env or {})})
    assert run.exit_code == code, run.output
    return run


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.")
    (folder / "cat.md").write_text("A quick brown cat sleeps under the table.")
    (folder / "more.jsonl").write_text('{"id": "owl", "body": "A wise old owl lived in an oak."}\n')
    return folder


@pytest.fixture
def store(notes: Path, tmp_path: Path) -> Path:
    index("build", tmp_path / "store", notes, "--model", MODEL, "--field", "body")
    return tmp_path / "store"


def test_what_was_built_is_found_with_its_continuation(store: Path, notes: Path) -> None:
    run = index("query", store, "See the quick brown fox", "--length", 12)
    assert "18 tokens agree in 1 place\n" in run.stdout
    assert f"he quick brown fox jumps over   [{notes / 'fox.txt'}]" in run.stdout
    values = json.loads(index("query", store, "wise old", "--json").stdout)
    assert (values["match_length"], values["num_places"]) == (8, 1)
    assert values["places"][0]["document"] == "owl"
    assert values["places"][0]["continuation"].startswith(" owl lived")
    assert "No place agrees" in index("query", store, "\u1234").stdout


def test_continuations_are_coloured_on_a_terminal_and_control_characters_spelled_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "evil.txt").write_text("say when \x1b[2Jgone")
    index("build", tmp_path / "s", tmp_path / "evil.txt", "--model", MODEL)
    run = index("query", tmp_path / "s", "say when", env=TERMINAL)
    assert "\x1b[32m" in run.stdout
    assert "\\x1b[2Jgone" in run.stdout and "\x1b[2J" not in run.stdout


def test_documents_are_added_and_deleted(store: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The quick brown fowl.")
    assert "4 documents" in index("add", store, tmp_path / "new.txt").stdout
    assert "in 2 places" in index("query", store, "he quick brown fo").stdout
    assert "3 documents" in index("delete", store, tmp_path / "new.txt", "--purge").stdout
    assert "in 1 place\n" in index("query", store, "he quick brown fo").stdout
    assert "no document with id 'nobody'" in index("delete", store, "nobody", code=2).stderr


def test_a_folder_is_added_again_for_what_is_new_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, store = tmp_path / "notes", tmp_path / "s"
    notes.mkdir()
    (notes / "fox.txt").write_text("The quick brown <image> fox, in several pieces.")
    (notes / "cat.txt").write_text("A cat.")
    index("build", store, notes, "--model", MODEL, "--segment-tokens", 16)
    index("delete", store, notes / "cat.txt")
    (notes / "owl.txt").write_text("A wise old owl.")
    assert "1 document was in already" in index("add", store, notes).stderr
    assert "in 1 place\n" in index("query", store, "wise old").stdout
    (notes / "new.txt").write_text("New.")
    (notes / "fox.txt").write_text("The quick brown <image> fox, in several parts.")
    (notes / "a.txt").write_text("Before the fox.")
    monkeypatch.setattr("mmspec.retrieval.appender._CHECKPOINT_TOKENS", 1)
    told = index("add", store, notes, code=2).stderr
    assert "fox.txt' " in told and "is there already; delete it first" in told
    index("delete", store, notes / "fox.txt")
    index("add", store, notes)
    before = index("info", store, "--documents").stdout
    assert len({line.split("\t")[0] for line in before.splitlines()[1:]}) == 5
    run = index("add", store, notes / "cat.txt", notes / "owl.txt")
    assert "2 documents were in already" in run.stderr
    assert index("info", store, "--documents", "--verify").stdout.count("\n") == 1 + before.count(
        "\n"
    )


def test_an_id_that_stands_twice_leaves_no_unfinished_add(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmspec.retrieval.appender._CHECKPOINT_TOKENS", 1)
    path, one = tmp_path / "new.jsonl", '{"id": "cow", "text": "A cow."}\n'
    path.write_text(one * 2)
    told = index("add", store, path, code=2).stderr
    assert f"the id 'cow' stands twice in what is added, again in {path}, line 2;" in told
    path.write_text(one)
    assert "4 documents" in index("add", store, path).stdout


def test_info_tells_what_is_there_and_whether_it_is_sound(store: Path, notes: Path) -> None:
    run = index("info", store, "--verify", "--documents")
    assert "3 documents" in run.stdout and "for tiny-vlm" in run.stdout
    assert "are right" in run.stdout and f"owl\t{notes / 'more.jsonl'}" in run.stdout
    values = json.loads(index("info", store, "--json", "--documents").stdout)
    assert values["num_documents"] == 3 and values["num_tokens"] == 116
    assert [document["id"] for document in values["documents"]][-1] == "owl"
    path = next(store.glob("*.tokens"))
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    assert f"{path.name}: this file is damaged" in index("info", store, "--verify", code=2).stderr
    assert "no datastore here" in index("info", notes, code=2).stderr


def test_html_and_pdf_go_in_too(tmp_path: Path) -> None:
    for package in ("pypdfium2", "html_text"):
        pytest.importorskip(package, reason=f"needs {package}: install mmspec[docs]")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.html").write_text("<p>Ham and <i>eggs</i></p>")
    (tmp_path / "in" / "b.pdf").write_bytes(pdf("Salt and pepper"))
    index("build", tmp_path / "s", tmp_path / "in", "--model", MODEL)
    found = json.loads(index("query", tmp_path / "s", " and ", "--json").stdout)
    assert {place["continuation"] for place in found["places"]} == {"eggs", "pepper"}


def test_a_blank_at_the_end_of_a_query_does_not_hide_what_agrees(store: Path) -> None:
    assert "8 tokens agree" in index("query", store, "wise old\n ").stdout
    assert "9 tokens agree" in index("query", store, "wise old ").stdout  # where it agrees as well


def test_a_summary_is_one_line_in_a_pipe(store: Path) -> None:
    assert index("info", store, env={"COLUMNS": "40"}).stdout.count("\n") == 1


def test_what_cannot_be_read_is_left_out_where_that_is_asked_for(
    notes: Path, tmp_path: Path
) -> None:
    (notes / "broken.txt").write_bytes(b"caf\xe9")
    with (notes / "more.jsonl").open("a") as file:
        file.write('no JSON\n{"id": "cow", "body": "A brown cow."}\n')
    command = ("build", tmp_path / "s", notes, "--model", MODEL, "--field", "body")
    assert "broken.txt: is not UTF-8" in (refused := index(*command, code=2).stderr)
    assert "--skip-broken" in refused
    run = index(*command, "--skip-broken")
    assert "4 documents" in run.stdout
    assert "Left out 2" in run.stderr
    assert "broken.txt" in run.stderr and "more.jsonl, line 2" in run.stderr
    assert "4 documents" in index(*command).stdout  # all of them are in already


def test_a_mistake_does_not_stand_in_the_way_of_the_right_command(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.jsonl").write_text('{"answer": "Yes."}\n')
    refused = index("add", store, tmp_path / "new.jsonl", code=2)
    assert "got answer; name the field" in refused.stderr
    assert "unfinished" not in index("info", store).stderr
    run = index("add", store, tmp_path / "new.jsonl", "--field", "answer")
    assert "4 documents" in run.stdout


def test_an_interrupted_build_goes_on(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s"
    command = ("build", store, notes, "--model", MODEL, "--field", "body")
    whole = index("build", tmp_path / "whole", *command[2:])
    real = DatastoreWriter.append
    appended = []

    def append(writer: DatastoreWriter, document: object) -> None:
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(document)
        real(writer, document)
        writer._appender.checkpoint()

    monkeypatch.setattr(DatastoreWriter, "append", append)
    assert "run the same command again" in index(*command, code=130).stderr
    assert "no datastore here" in index("info", store, code=2).stderr
    (notes / "zebra.txt").write_text("A zebra came meanwhile.")
    monkeypatch.setattr(DatastoreWriter, "append", real)
    assert "an unfinished build is waiting" in index(*command, code=2).stderr
    (notes / "zebra.txt").unlink()
    again = index(*command)
    assert "Going on after 2 documents" in again.stderr
    assert again.stdout.replace(str(store), "") == whole.stdout.replace(str(tmp_path / "whole"), "")
    for path in store.glob("0*"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    Datastore.open(store).check_integrity()
    index(*command)  # all of it is in
    (notes / "zebra.txt").write_text("A zebra came afterwards.")
    assert "use `mmspec index add`" in index(*command, code=2).stderr


def test_another_model_s_tokenizer_is_refused(
    store: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextTokens, "hash", lambda self: "sha256:other")
    for command in (("add", store, notes), ("query", store, "fox")):
        assert "made with another tokenizer" in index(*command, code=2).stderr
