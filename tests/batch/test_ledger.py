import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmspec.batch import Ledger
from mmspec.errors import InputError


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """A disk that is full beyond them."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_what_was_answered_stays_and_failures_and_half_a_line_go(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="r") as ledger:
        ledger.write({"id": "a", "text": "\u00e9\n"})
        ledger.write({"id": "b", "error": "no such file"})
        ledger.write({"id": "c", "text": "C"})
    with path.open("ab") as file:
        file.write(b'{"id": "d", "te')
    with Ledger(path, run="r") as ledger:
        assert ledger.answered == {"a", "c"}
        ledger.write({"id": "d", "text": "D"})
    assert [line["id"] for line in lines(path)] == ["a", "c", "d"]
    assert lines(path)[0] == {"id": "a", "text": "\u00e9\n", "run": "r"}


def test_an_answer_may_have_any_names_of_its_own(tmp_path: Path) -> None:
    """As `run_batch(told=...)` gives them: no form of OpenAI's is meant."""
    path = tmp_path / "out.jsonl"
    for _ in range(2):
        with Ledger(path, run="r") as ledger:
            ledger.write({"id": "a", "response": "A"})
            ledger.write({"id": "b", "response": {"text": "B"}})
    assert [line["id"] for line in lines(path)] == ["a", "b"]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_whole_last_line_without_its_end_is_an_answer(tmp_path: Path, end: bytes) -> None:
    """Editors take it off; and a disk may be full before it."""
    path = tmp_path / "out.jsonl"
    whole = b'{"id": "a", "text": "A", "run": "r"}'
    path.write_bytes(b'{"id": "b", "error": "no such file", "run": "r"}\n' + whole + end)
    with Ledger(path, run="r") as ledger:
        assert ledger.answered == {"a"}
        ledger.write({"id": "b", "text": "B"})
        assert [line["id"] for line in lines(path)] == ["a", "b"], "a kill costs nothing"


@pytest.mark.parametrize("name", ["out.csv", "out.TSV", "out.parquet", "out.jsonl.gz"])
def test_a_file_is_not_named_as_what_it_is_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"such as out\.jsonl"):
        Ledger(tmp_path / name, run="r")
    assert not list(tmp_path.iterdir())


def test_another_question_under_an_id_is_no_question_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="r") as ledger:
        ledger.write({"id": "a", "text": "A", "asked": "1"})
        ledger.write({"id": "b", "text": "B"})  # by a version that did not write it
    with Ledger(path, run="r") as ledger:
        assert ledger.holds("a", "1") and ledger.holds("b", "1") and not ledger.holds("c", "1")
        assert not ledger.holds("a", "2")
        ledger.write({"id": "a", "error": "it was there before"})
        ledger.write({"id": "a", "text": "new", "asked": "2"})
    assert [line.get("text") for line in lines(path)] == ["B", None, "new"]
    path.write_bytes(
        path.read_bytes() + b'{"id": "b", "text": "killed", "run": "r", "asked": "3"}\n'
    )
    with Ledger(path, run="r") as ledger:
        assert ledger.holds("a", "2") and ledger.holds("b", "3")
    assert [line["text"] for line in lines(path)] == ["new", "killed"]


def test_a_question_that_failed_leaves_no_answer_of_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="r") as ledger:
        ledger.write({"id": "a", "text": "A", "asked": "1"})
        ledger.write({"id": "b", "text": "B", "asked": "1"})
        ledger.write({"id": "b", "error": "this id was there before"})  # none was asked
    before = path.read_bytes()
    with Ledger(path, run="r") as ledger:
        ledger.write({"id": "a", "error": "no such picture", "asked": "2"})
        assert ledger.answered == {"b"}
    assert [(line["id"], "text" in line) for line in lines(path)] == [("b", True), ("a", False)]
    path.write_bytes(before + b'{"id": "a", "error": "killed", "asked": "2", "run": "r"}\n')
    with Ledger(path, run="r") as ledger:
        assert ledger.answered == {"b"}
    assert [line["id"] for line in lines(path)] == ["b"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "text", ["my notes", '{"text": "x"}', "[1]", '{"id": 1, "prompt": "x"}', "[" * 99999]
)
@pytest.mark.parametrize("end", ["", "\n", "\nnotes"])
def test_a_file_of_someone_else_is_refused_and_left_as_it_is(
    tmp_path: Path, text: str, end: str, fresh: bool
) -> None:
    path = tmp_path / "notes.json"
    path.write_text(text + end)
    with pytest.raises(InputError, match="line 1: was not written by mmspec batch"):
        Ledger(path, run="r", fresh=fresh)
    assert path.read_text() == text + end


@pytest.mark.parametrize("text", ["", "{", '{"id": "d', '{"id": "d", "text": "'])
def test_a_first_line_that_was_cut_off_anywhere_goes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with Ledger(path, run="r") as ledger:
        assert not ledger.answered
    assert path.read_text() == ""


def test_half_a_character_is_written_all_the_same(tmp_path: Path) -> None:
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        ledger.write({"id": "caf\udce9", "text": ""})
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        assert ledger.answered == {"caf\udce9"}


def test_answers_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="one", fresh=True) as ledger:  # there is nothing to drop yet
        ledger.write({"id": "a", "text": "A"})
    with pytest.raises(InputError, match="another model, prompt or settings"):
        Ledger(path, run="two")
    assert len(lines(path)) == 1
    with Ledger(path, run="two", fresh=True) as ledger:
        assert not ledger.answered
    assert path.read_bytes() == b""


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="r"), pytest.raises(InputError, match="another run writes this file"):
        Ledger(path, run="r")
    Ledger(path, run="r").close()  # the first one is done


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            Ledger(path, run="r")


def test_a_file_that_could_not_be_opened_can_be_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a", "error": "x", "run": "r"}\n')
    (beside := tmp_path / ".out.jsonl.kept").mkdir()  # where the answers without it would go
    with pytest.raises(InputError, match="cannot be written"):
        Ledger(path, run="r")
    beside.rmdir()
    Ledger(path, run="r").close()
    assert path.read_text() == ""


def test_a_full_disk_is_told_and_what_was_answered_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    ledger = Ledger(path, run="r")
    with files_of_at_most(2000), pytest.raises(InputError, match=r"cannot be written.*goes on"):
        for number in range(100):
            ledger.write({"id": str(number), "text": "x" * 100})
    with files_of_at_most(2000), pytest.raises(InputError, match="cannot be written"):
        ledger.close()  # what is left to be written still cannot be
    with Ledger(path, run="r") as ledger:
        num_whole = len(ledger.answered)
        ledger.write({"id": "next", "text": ""})
    assert 10 < num_whole < 20
    assert len(lines(path)) == num_whole + 1


def test_a_disk_too_full_to_be_tidied_is_not_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path, run="r") as ledger:
        for number in range(30):
            ledger.write({"id": str(number), "text": "x" * 100})
        ledger.write({"id": "a", "error": "no such file"})
    before = path.read_bytes()
    with files_of_at_most(2000), pytest.raises(InputError, match=r"cannot be written.*goes on"):
        Ledger(path, run="r")
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"out.jsonl", ".out.jsonl.lock"}


@pytest.mark.parametrize("place", ["/dev/zero", "folder"])
def test_what_is_no_file_is_refused_before_it_is_read(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written: no regular file"):
        Ledger(tmp_path / place, run="a")
