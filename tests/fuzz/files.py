"""A file of answers, whose run is killed and gone on with, compared with each answer alone."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmspec.batch import Ledger, Task, run_batch
from mmspec.batch.run import Tally, task_seed
from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.requests import Request

from .cases import Inputs

if TYPE_CHECKING:
    from .report import Report


class Killed(BaseException):
    """As a signal, between two steps."""


def played_file(
    draw: random.Random,
    engine: Engine,
    plain: Engine,
    report: "Report",
    prompts: list[Inputs],
    folder: Path,
) -> Iterator[str]:
    path, seed = folder / f"answers{draw.random()}.jsonl", draw.randrange(99)
    sampled = {} if engine._rule.is_greedy_only else {"temperature": 1.0, "top_k": 0}
    options: dict[str, Any] = {
        **draw.choice([{"temperature": 0.0}, sampled or {"temperature": 0.0}]),
        "max_new_tokens": draw.choice([1, 5, 12]),
    }
    asked = {f"task {n}": draw.choice(prompts) for n in range(draw.randint(1, 6))}
    broken = {name for name in asked if draw.random() < 0.1}

    def tasks() -> Iterator[Task]:
        for name, prompt in asked.items():
            if name in broken:
                yield Task(name, None, InputError(f"{name}: cannot be read"))
            else:
                yield Task(name, Request(prompt))

    for _ in range(draw.choice([0, 1, 1, 2])):
        left = draw.randint(0, len(asked))

        def kill(tally: Tally, left: int = left) -> None:
            if tally.num_done > left:
                raise Killed

        try:
            with Ledger(path, run="r") as ledger:
                run_batch(engine, tasks(), ledger, options=options, seed=seed, on_progress=kill)
        except Killed:
            pass
        if draw.random() < 0.5 and path.exists():  # a line that was being written
            os.truncate(path, max(path.stat().st_size - draw.randint(1, 40), 0))
    with Ledger(path, run="r") as ledger:
        tally = run_batch(engine, tasks(), ledger, options=options, seed=seed)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if sorted(line["id"] for line in lines) != sorted(asked):
        yield f"answers to {[line['id'] for line in lines]}, asked {sorted(asked)}"
    if (tally.num_done, tally.num_failed) != (len(asked), len(broken)):
        yield f"{tally} of {len(asked)} tasks, {len(broken)} of them broken"
    for line in lines:
        name = line["id"]
        if name in broken:
            if "error" not in line:
                yield f"{name}: {line}, expected its error"
            continue
        own = {**options, "seed": task_seed(seed, name), "speculate": False}
        expected = plain.generate(asked[name], **own)
        report.requests += 1
        report.tokens += len(expected.tokens)
        if (line.get("text"), line.get("seed")) != (expected.text, expected.seed):
            yield f"{name}: {line}, plain {expected.text!r}, {options}"
