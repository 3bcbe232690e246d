"""Conducts sections, each in a process of its own: what one breaks, or never ends, is no other's.

A kernel that reads beyond its memory takes the GPU from its process, one that waits for itself
never returns, and some packages end the process at an error. Here that costs the rest of one
section. The next section's process is started early and waits, so that its imports cost nothing.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmspec.gpu_check.bars import verdicts
from mmspec.gpu_check.recorder import SectionResult, plain, write_json

# (section, file for what it finds, what to do without) -> a command that does nothing before it
# reads a line of its standard input, the seconds that it has.
Command = Callable[[str, Path, Sequence[str]], Sequence[str]]
Found = dict[str, Any]  # a section, as `SectionResult` is written
_ENDED_EARLY = ("crashed", "out of time", "error")
_LEAST_S = 8.0  # a section is not begun with less time left
_OWN_S = 45.0  # at least, if there are so many left: models are loaded, and kernels compiled
_GRACE_S = 15.0  # beyond its time: a section looks at the clock between two measurements
_POLL_S = 0.5
_KILLED_S = 10.0  # a driver may not let go of a process
_SHOWN = 3000  # characters of the output of a process that ended badly


@dataclass(frozen=True)
class Times:
    """Of a whole run."""

    minutes: float
    own_s: float = _OWN_S
    grace_s: float = _GRACE_S
    least_s: float = _LEAST_S


class Conductor:
    """Runs sections one after the other; the file always holds all that was found until then."""

    def __init__(
        self,
        shares: Mapping[str, float],
        command: Command,
        *,
        out: Path,
        parts: Path,
        times: Times,
        kept: Mapping[str, Found] | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`shares` of the time, by section; `parts`: a folder for what each process finds and says;
        `kept`: sections of an earlier run; `progress` is told
        lines for a reader."""
        self._shares = dict(shares)
        self._command = command
        self._out, self._parts = out, parts
        self._times = times
        self._ends = time.monotonic() + 60 * times.minutes
        self._sections: dict[str, Found] = dict(kept or {})
        self._header: Found = {}
        self._children: list[_Child] = []
        self._progress = progress

    @property
    def sections(self) -> Mapping[str, Found]:
        return self._sections

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def run(self) -> Mapping[str, Found]:
        """All of them."""
        waiting, following = list(self._shares), None
        try:
            while waiting:
                name = waiting.pop(0)
                child = following or self._start(name)
                following = self._start(waiting[0]) if waiting else None
                self._run_one(name, child, [name, *waiting])
        finally:  # also where this process is told to end
            for child in self._children:
                child.stop()
        return self._sections

    def _run_one(self, name: str, child: "_Child", ahead: Sequence[str]) -> None:
        left = self.left_s
        if left < self._times.least_s:
            child.stop()
            left_out = {**_blank(name), "status": "left out", "missing": ["no time left"]}
            self._sections.setdefault(name, left_out)  # or what an earlier run found
            self._save()
            return
        own_s = left * self._shares[name] / sum(self._shares[other] for other in ahead)
        own_s = max(own_s, min(self._times.own_s, left))
        begun = time.monotonic()
        self._sections[name] = _blank(name)
        self._progress(f"{name}: up to {own_s:.0f} s of {left:.0f}")
        section = self._attended(name, child, own_s)
        suspect = section.get("doing")
        rest_s = min(own_s - (time.monotonic() - begun), self.left_s)
        if section["status"] in _ENDED_EARLY and suspect and rest_s > self._times.least_s:
            self._progress(f"{name}: {section['status']} at {suspect}; again without it")
            again = self._start(name, without=[suspect])
            section = self._attended(name, again, rest_s, first=section)
        section["seconds"] = round(time.monotonic() - begun, 2)
        self._sections[name] = section
        self._save()
        self._progress(f"{name}: {section['status']} after {section['seconds']:.0f} s")

    def _attended(
        self, name: str, child: "_Child", seconds: float, *, first: Found | None = None
    ) -> Found:
        """The section at its end, however that comes; with what its first try found, if any."""
        begun = time.monotonic()
        child.begin(seconds)
        is_late = False
        while child.is_running and not is_late:
            is_late = time.monotonic() - begun > seconds + self._times.grace_s
            if child.has_news:
                self._take(name, child, first)
            time.sleep(_POLL_S if seconds > _POLL_S else 0.01)
        child.stop()
        section = self._take(name, child, first)
        if section["status"] == "running":
            section["status"] = "out of time" if is_late else "crashed"
            told = f"it was ended after {seconds + self._times.grace_s:.0f} s"
            ended = told if is_late else f"its process ended with {child.code}"
            section["error"] = f"{ended}\n{child.output}"
        section["said"] = f"{first['said']}\n{child.output}" if first else child.output
        return section

    def _take(self, name: str, child: "_Child", first: Found | None) -> Found:
        part = child.part
        if part:  # else it has ended before it found anything
            self._header = {key: value for key, value in part.items() if key != "sections"}
        section: Found = part.get("sections", {}).get(name) or _blank(name)
        if first is not None:
            section = _with_first(first, section)
        self._sections[name] = section
        self._save()
        return section

    def _save(self) -> None:
        is_measured = not self._header.get("is_small", False)
        told = {"bars": list(verdicts(self._sections))} if is_measured else {}
        write_json(self._out, {**self._header, **told}, self._sections)

    def _start(self, name: str, *, without: Sequence[str] = ()) -> "_Child":
        self._parts.mkdir(parents=True, exist_ok=True)
        part = self._parts / f"{name}{'.again' if without else ''}.json"
        part.unlink(missing_ok=True)
        child = _Child(self._command(name, part, without), part)
        self._children.append(child)
        return child


class _Child:
    """One section's process."""

    def __init__(self, command: Sequence[str], path: Path) -> None:
        self._path, self._log = path, path.with_suffix(".log")
        self._seen, self._is_stopped = 0.0, False
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it may start others, and ends with them
            )

    def begin(self, seconds: float) -> None:
        """Lets it begin, with so much time."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended already
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.close()

    def stop(self) -> None:
        """Ends it and whatever it has started, if it has not ended by itself."""
        if self._is_stopped:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_S)
        self._is_stopped = True

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    @property
    def has_news(self) -> bool:
        """Whether it has found something since the last question."""
        before, self._seen = self._seen, self._path.stat().st_mtime if self._path.exists() else 0.0
        return self._seen != before

    @property
    def part(self) -> Found:
        """What it has written until now."""
        try:
            found: Found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    @property
    def output(self) -> str:
        """The end of what it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-_SHOWN:]


def plan_lines(shares: Mapping[str, float], minutes: float) -> Iterator[str]:
    """What a run is going to do with its time."""
    for name, share in shares.items():
        yield f"{name:10} {60 * minutes * share / sum(shares.values()):5.0f} s"


def _with_first(first: Found, again: Found) -> Found:
    """What two tries found, the second one without what was at work when the first one ended."""
    ended = f"{first['doing']}: {first['status']}: {first['error']}"
    return {
        **again,
        "status": "failed" if again["status"] in ("passed", "missing") else again["status"],
        "failures": [*first["failures"], ended, *again["failures"]],
        "found": {**first["found"], **again["found"]},
    }


def _blank(name: str) -> Found:
    return plain(SectionResult(name))
