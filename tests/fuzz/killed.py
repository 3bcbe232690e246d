"""`mmspec batch` in processes that are killed at any moment; the last one goes on to the end."""

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mmspec
from mmspec.batch.run import task_seed
from mmspec.cli import app
from mmspec.engine import Engine

from .chats import QUESTIONS
from .report import Refused, Report
from .speakers import picture

MODEL = "nano-vlm"
WHOLE_S = 2.5  # about as long as a run takes


@cache
def _plain() -> Engine:
    return mmspec.load(MODEL, dtype="float64", drafter="none", overrides={"decode.max_rows": 1})


def play_killed(draw: random.Random, report: Report, folder: Path) -> None:
    if not hasattr(os, "fork"):
        raise Refused("this system forks no processes")
    tasks, broken = _draw_tasks(draw, folder)
    inputs, out, seed = folder / "prompts.jsonl", folder / "answers.jsonl", draw.randrange(9)
    inputs.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    options: dict[str, Any] = {
        "temperature": draw.choice([0.0, 1.0]), "max_new_tokens": draw.choice([3, 12, 30]),
    }  # fmt: skip
    words = [MODEL, inputs, "--out", out, "--seed", seed, "--dtype", "float64"]
    words += ["--rows", draw.choice([1, 2, 8])]
    words += [w for n, v in options.items() for w in ("--" + n.replace("_", "-"), v)]
    words += draw.choice([[], ["--speculate"], ["--drafter", "retrieval+prompt_lookup"]])
    words += draw.choice([[], [], ["--set", "decode.prefill_chunk=16"]])
    report.title = f"{words[5:]} of {len(tasks)}, {len(broken)} broken"
    for number in range(draw.choice([1, 2, 3])):
        report.begin(number, "mmspec batch, killed")
        before = _answered(out)
        _run(words, folder, _Moment(out, draw))
        kept = _answered(out)
        if not before.keys() <= kept.keys():
            report.wrong.append(f"run {number}: {before.keys() - kept.keys()} were lost")
    report.begin(9, "mmspec batch, to its end")
    code = _run(words, folder, None)
    if code != bool(broken):
        report.wrong.append(f"exit code {code}: {(folder / 'told').read_text()[-2000:]}")
        return
    report.wrong += _wrong(tasks, broken, out, options, seed, report)


def _draw_tasks(draw: random.Random, folder: Path) -> tuple[list[dict[str, Any]], set[str]]:
    tasks: list[dict[str, Any]] = []
    broken = set()
    for number in range(draw.randint(1, 12)):
        task: dict[str, Any] = {"id": f"{draw.choice(['a', 'é', 'x/y'])}{number}"}
        task["prompt"] = draw.choice(QUESTIONS) * draw.choice([1, 1, 5])
        if draw.random() < 0.3:
            task["image"] = f"{number}.png"
            picture(draw.randrange(3)).save(folder / task["image"])
            if draw.random() < 0.3:
                (folder / task["image"]).write_bytes(b"no picture")
                broken.add(task["id"])
        tasks.append(task)
    return tasks, broken


class _Moment:
    """Some time after the beginning, or after an answer has begun to be written."""

    def __init__(self, out: Path, draw: random.Random) -> None:
        self._out, self._is_of_answer = out, draw.random() < 0.7
        self._seconds = draw.uniform(0, 0.05 if self._is_of_answer else WHOLE_S)
        self._more_bytes = draw.choice([1, 1, 300, 900])

    def wait(self) -> None:
        until, size = time.monotonic() + 2 * WHOLE_S, self._size()
        if self._is_of_answer:
            while self._size() < size + self._more_bytes and time.monotonic() < until:
                time.sleep(0.001)
        time.sleep(self._seconds)

    def _size(self) -> int:
        return self._out.stat().st_size if self._out.exists() else 0


def _run(words: Sequence[object], folder: Path, moment: _Moment | None) -> int:
    """The command's exit code; in a process of its own, which is killed at `moment`."""
    child = os.fork()
    if child == 0:
        _become(words, folder)
    if moment is not None:
        moment.wait()
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _become(words: Sequence[object], folder: Path) -> None:
    """The command itself, and nothing behind it."""
    code = 70
    try:
        told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        app(["batch", *map(str, words)])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _answered(out: Path) -> dict[str, Any]:
    """The whole lines there are that hold answers, by id."""
    if not out.exists():
        return {}
    lines = out.read_bytes().split(b"\n")[:-1]
    answers = [json.loads(line) for line in lines if line]
    return {answer["id"]: answer for answer in answers if "text" in answer}


def _wrong(
    tasks: Sequence[dict[str, Any]],
    broken: set[str],
    out: Path,
    options: dict[str, Any],
    seed: int,
    report: Report,
) -> Iterator[str]:
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    if sorted(line["id"] for line in lines) != sorted(task["id"] for task in tasks):
        yield f"answers to {[line['id'] for line in lines]}"
    by_id = {line["id"]: line for line in lines}
    for task in tasks:
        line = by_id.get(task["id"], {})
        if task["id"] in broken:
            if "error" not in line:
                yield f"{task}: {line}, expected its error"
            continue
        images = [out.parent / task["image"]] if "image" in task else []
        own = task_seed(seed, task["id"])
        plain = _plain().generate(task["prompt"], images=images, seed=own, **options)
        report.count(plain)
        if (line.get("text"), line.get("seed")) != (plain.text, own):
            yield f"{task}: {line}, plain {plain.text!r}"
