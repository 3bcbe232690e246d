"""What came out, in lines of plain text: a section's state, what did not hold, what was missing."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmspec.gpu_check.bars import LARGE, bars
from mmspec.gpu_check.tables import attention_table, bar_table, step_table, suggestions

Found = Mapping[str, Any]  # a section, as `SectionResult` is written

_SHOWN = 6  # of a list; all of it is in the file
_WIDTH = 160
_FAILED = ("failed", "error", "crashed", "out of time")


def report_lines(sections: Mapping[str, Found], *, is_small: bool) -> Iterator[str]:
    """All of it. The end of an output is what one sees: what is longest comes first, what did not
    hold and the bars last."""
    parts = {
        "Attention, microseconds a call": attention_table(sections),
        "Score calls, milliseconds (expected)": step_table(sections),
        f"CUDA_ORDERS by this run ({LARGE} and others)": suggestions(sections),
        "Sections": summary_lines(sections),
        "Bars": bar_table(sections),
    }
    for heading, lines in parts.items():
        if (heading == "Sections" or not is_small) and (found := list(lines)):
            yield from ("", f"### {heading}", "", *found)


def summary_lines(results: Mapping[str, Found]) -> Iterator[str]:
    """Of all sections, the worst news last."""
    for name, result in results.items():
        yield f"{name:10} {result['status']:8} {result['seconds']:6.1f} s  {result['title']}"
        yield from _listed("missing", result["missing"])
        yield from _listed("FAILED", result["failures"])
        if result["error"]:
            told = result["error"].strip().splitlines()
            yield f"    ERROR    {' ... '.join(dict.fromkeys((told[0], told[-1])))[:_WIDTH]}"


def has_failed(results: Mapping[str, Found], *, is_small: bool) -> bool:
    """Whether a section found something wrong or ended early, or a bar is missed."""
    if any(result["status"] in _FAILED for result in results.values()):
        return True
    return not is_small and any(bar.verdict == "missed" for bar in bars(results))


def _listed(what: str, lines: list[str]) -> Iterator[str]:
    for line in lines[:_SHOWN]:
        yield f"    {what:8} {' '.join(line.split())[:_WIDTH]}"
    if len(lines) > _SHOWN:
        yield f"    {what:8} and {len(lines) - _SHOWN} more"
