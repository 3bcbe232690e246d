"""The evaluation as a file: evaluation.json beside the weights."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny.acceptance import Acceptance, accept
from mmspec.training.tiny.evaluate import SUITE, Score, evaluate

FILE = "evaluation.json"


def write_report(
    folder: Path,
    *,
    num_samples: int,
    tasks: Sequence[str] = tuple(SUITE),
    target: Path | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, Score | Acceptance]]:
    """Evaluates the model in `folder`, and its acceptance by `target` if that is given.

    Yields a row as soon as it is measured and written; rows of other tasks, and what the file says
    about the training, stay as they are.
    """
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval().to(device)
    report = read_report(folder)
    scores = report.setdefault("scores", {})
    for task, score, _ in evaluate(model, num_samples=num_samples, tasks=tasks):
        scores[task] = asdict(score)
        save_report(folder, report)
        yield task, score
    if target is None:
        return
    larger = LlavaForConditionalGeneration.from_pretrained(target).eval().to(device)
    report["target"] = target.name
    rows = report.setdefault("acceptance", {})
    for task, acceptance in accept(larger, model, num_samples=num_samples, tasks=tasks):
        rows[task] = asdict(acceptance)
        save_report(folder, report)
        yield task, acceptance


def read_report(folder: Path) -> dict[str, Any]:
    """What evaluation.json says, nothing if there is none."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def save_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes evaluation.json, its rows in the suite's order, with the share of looping answers."""
    ordered = dict(report)
    for part in ("scores", "acceptance"):
        if part in report:
            ordered[part] = {task: report[part][task] for task in SUITE if task in report[part]}
    if ordered.get("scores"):
        ordered["loops"] = loop_share(ordered)
    (folder / FILE).write_text(json.dumps(ordered, indent=2) + "\n")


def loop_share(report: dict[str, Any]) -> float:
    """Share of all answers, of whatever task, that have a loop."""
    rows = report["scores"].values()
    return sum(row["samples"] * row["loops"] for row in rows) / sum(row["samples"] for row in rows)
