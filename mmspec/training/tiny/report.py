"""The evaluation as a file: evaluation.json beside the weights, and its rows for reading."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny.acceptance import Acceptance, accept
from mmspec.training.tiny.evaluate import SUITE, Score, evaluate

FILE = "evaluation.json"
WHAT = {
    "receipt": "receipt, text layer in the prompt",
    "scan": "page or receipt from the picture alone",
    "caption": "coloured shapes, region by region",
    "count": "coloured shapes, numbered, with their total",
    "chart": "bar chart",
    "quote_500": "entry of a ledger of 500 characters",
    "quote_1k": "the same, 1,000",
    "quote_2k": "the same, 2,000",
    "quote_4k": "the same, 4,000",
    "quote_8k": "the same, 8,000",
    "span_1k": "words to go on from, in a text of 1,000",
    "span_4k": "the same, 4,000",
    "passage_500": "line of a real text of 500",
    "passage_1k": "the same, 1,000",
    "extract_500": "field as JSON, from a text of 500",
    "extract_1k": "the same, 1,000",
    "story": "story (no right answer)",
}


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if 0 < share < 0.1 else f"{100 * share:.0f}%"


def score_table(report: dict[str, Any]) -> str:
    """The scores as a Markdown table, as the model card and the documentation show it."""
    rows = [
        "| task | samples | exact | character error | lines right | loops |",
        "|---|---|---|---|---|---|",
    ]
    for task, row in report["scores"].items():
        cells = [_percent(row[name]) for name in ("exact", "character_error", "lines_right")]
        if task == "story":
            cells = ["–"] * len(cells)
        cells = [WHAT[task], str(row["samples"]), *cells, _percent(row["loops"])]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def loop_share(report: dict[str, Any]) -> float:
    """Share of all answers, of whatever task, that have a loop."""
    rows = report["scores"].values()
    return sum(row["samples"] * row["loops"] for row in rows) / sum(row["samples"] for row in rows)


def acceptance_table(report: dict[str, Any]) -> str:
    """The acceptance as a Markdown table."""
    rows = [
        "| task | tokens | top 1 | top 4 | overlap | tokens a step |",
        "|---|---|---|---|---|---|",
    ]
    for task, row in report["acceptance"].items():
        cells = [_percent(row[name]) for name in ("top_1", "top_4", "overlap")]
        cells = [WHAT[task], f"{row['tokens']:,}", *cells, f"{row['tokens_a_step']:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
