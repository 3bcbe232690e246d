"""The evaluation of a bundled model as its card and docs/bundled_model.md show it."""

from typing import Any

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
