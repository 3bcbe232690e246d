"""Sections in processes of their own: whatever ends one of them, the others' findings are there."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmspec.gpu_check import conduct
from mmspec.gpu_check.conduct import Conductor, Times
from mmspec.gpu_check.recorder import write_json

# Stands in for a section's process: waits to be told its time, and behaves as its name says.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path

name, part, *without = sys.argv[1:]
seconds = float(sys.stdin.readline())
if name == "is_mute":
    os._exit(1)

def write(status, doing=None, **found):
    section = {"title": name, "status": status, "seconds": 0.0, "failures": [], "missing": [],
               "found": {"seconds": seconds, **found}, "error": None, "doing": doing}
    path = Path(part)
    path.with_suffix(".new").write_text(json.dumps({"gpu": "a GPU", "sections": {name: section}}))
    os.replace(path.with_suffix(".new"), path)

write("running", doing="early", early=1)
if name == "hangs":
    time.sleep(600)
if name == "is_killed":
    print("device-side assert", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "breaks_by_flash" and "flash" not in without:
    write("running", doing="flash", before=2)
    os._exit(1)
if name == "warns":
    print("no graphs", flush=True)
write("passed", late=3)
"""


def conducted(tmp_path: Path, *names: str, minutes: float = 1.0) -> dict[str, Any]:
    child, out = tmp_path / "child.py", tmp_path / "found.json"
    child.write_text(CHILD)

    def command(name: str, part: Path, without: Sequence[str]) -> list[str]:
        return [sys.executable, str(child), name, str(part), *without]

    times = Times(minutes, own_s=0.0, grace_s=1.0, least_s=0.2)
    Conductor(dict.fromkeys(names, 1.0), command, out=out, parts=tmp_path, times=times).run()
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["gpu"] == "a GPU" and found["bars"]
    sections: dict[str, Any] = found["sections"]
    assert list(sections) == list(names)
    return sections


def test_a_process_that_ends_keeps_what_it_found_and_costs_no_other(tmp_path: Path) -> None:
    found = conducted(tmp_path, "is_killed", "works")
    killed = found["is_killed"]
    assert killed["status"] == "crashed" and killed["found"]["early"] == 1
    assert "early: crashed: its process ended with signal 11" in killed["failures"][0]
    assert "device-side assert" in killed["error"]
    assert found["works"]["status"] == "passed" and found["works"]["found"]["late"] == 3


def test_a_process_that_finds_nothing_leaves_what_is_known_of_the_machine(tmp_path: Path) -> None:
    found = conducted(tmp_path, "works", "is_mute")
    assert found["is_mute"]["status"] == "crashed"


def test_a_process_that_never_ends_is_ended(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = conducted(tmp_path, "hangs", "works", minutes=0.1)
    assert time.monotonic() - begun < 20
    assert found["hangs"]["status"] == "out of time" and found["hangs"]["found"]["early"] == 1
    assert found["works"]["status"] == "passed"


def test_what_was_at_work_when_it_ended_is_left_out_of_another_try(tmp_path: Path) -> None:
    section = conducted(tmp_path, "breaks_by_flash")["breaks_by_flash"]
    assert section["status"] == "failed"
    assert section["found"]["before"] == 2 and section["found"]["late"] == 3
    assert section["failures"] == ["flash: crashed: its process ended with exit code 1\n"]


def test_what_a_first_try_found_is_in_the_file_while_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def write(path: Path, header: Any, sections: Any) -> None:
        written.append(json.loads(json.dumps(sections))["breaks_by_flash"])
        write_json(path, header, sections)

    monkeypatch.setattr(conduct, "write_json", write)
    conducted(tmp_path, "breaks_by_flash")
    found = [section["found"].get("before") for section in written]
    assert found.count(2) > 1 and found == sorted(found, key=lambda value: value == 2)
    assert written[-1]["failures"]


def test_what_a_process_said_is_kept_beside_what_it_found(tmp_path: Path) -> None:
    """Where no more than the file comes back, warnings are in it."""
    found = conducted(tmp_path, "warns", "works")
    assert (found["warns"]["said"], found["works"]["said"]) == ("no graphs\n", "")


def test_time_is_shared_out_and_what_has_none_left_is_left_out(tmp_path: Path) -> None:
    found = conducted(tmp_path, "works", "too", minutes=0.5)
    first, second = (found[name]["found"]["seconds"] for name in ("works", "too"))
    assert first <= 15 < second <= 30  # what the first one did not need is the second one's


def test_a_conductor_that_is_ended_ends_what_it_has_started(tmp_path: Path) -> None:
    child, pids = tmp_path / "child.py", tmp_path / "pids"
    child.write_text(
        f"import os, time\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(600)"
    )

    def told(line: str) -> None:
        while len(pids.read_text().split() if pids.exists() else []) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    conductor = Conductor(
        {"one": 1.0, "two": 1.0},
        lambda *told: [sys.executable, str(child)],
        out=tmp_path / "found.json",
        parts=tmp_path,
        times=Times(1.0),
        progress=told,
    )
    with pytest.raises(KeyboardInterrupt):
        conductor.run()
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_there_is_no_time_for_is_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    nothing = [sys.executable, "-c", "input()"]
    conductor = Conductor(
        {"late": 1.0}, lambda *told: nothing, out=out, parts=tmp_path, times=Times(0.0)
    )
    assert conductor.run()["late"]["status"] == "left out"
    assert json.loads(out.read_text())["sections"]["late"]["missing"]


def test_what_an_earlier_run_found_is_kept(tmp_path: Path) -> None:
    out, kept = tmp_path / "found.json", {"early": {"status": "passed", "found": {"x": 1}}}
    options: Any = {"out": out, "parts": tmp_path, "times": Times(0.0), "kept": kept}
    Conductor({"late": 1.0}, lambda *told: [sys.executable, "-c", "input()"], **options).run()
    saved = json.loads(out.read_text())["sections"]
    assert saved["early"] == kept["early"] and saved["late"]["status"] == "left out"


def test_what_an_earlier_run_found_outlasts_one_without_time_for_it(tmp_path: Path) -> None:
    kept = {"late": {"status": "passed", "found": {"x": 1}}}
    options: Any = {"out": tmp_path / "found.json", "parts": tmp_path, "kept": kept}
    nothing = [sys.executable, "-c", "input()"]
    conductor = Conductor({"late": 1.0}, lambda *told: nothing, times=Times(0.0), **options)
    assert conductor.run()["late"] == kept["late"]
