import json
from pathlib import Path

import pytest

from mmspec.bench.harness import in_turns, turned, without_folders, write_report
from mmspec.bench.machine import this_machine


def test_each_turn_begins_with_another_way() -> None:
    assert [turned("abc", turn) for turn in range(4)] == [[*"abc"], [*"bca"], [*"cab"], [*"abc"]]
    assert turned([], 3) == []


def test_the_round_that_warms_up_is_not_counted() -> None:
    asked: list[str] = []

    def measure(way: str) -> int:
        asked.append(way)
        return len(asked)

    found = in_turns(["one", "other"], measure, rounds=2)
    assert asked == ["other", "one", "one", "other", "other", "one"]
    assert found == {"one": [3, 6], "other": [4, 5]}


def test_a_report_says_by_which_command_and_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/a/checkout/scripts/bench_it.py", "--model", "/a/smol"])
    out = tmp_path / "build" / "it.json"
    write_report(out, this_machine(threads=3), {"rows": [1, 2]})
    report = json.loads(out.read_text())
    assert list(report) == ["command", "machine", "rows"] and report["rows"] == [1, 2]
    assert report["command"] == "scripts/bench_it.py --model smol"
    assert report["machine"]["threads"] == 3 and report["machine"]["torch"]


def test_a_command_is_written_down_without_folders() -> None:
    shown = [
        without_folders(word)
        for word in ("/a/smol", "../data/x", "--out=/tmp/a.json", "data", "x: a.path=/m/nano b.c=2")
    ]
    assert shown == ["smol", "x", "--out=a.json", "data", "x: a.path=nano b.c=2"]
    assert without_folders("HuggingFaceTB/SmolLM2") == "HuggingFaceTB/SmolLM2"
