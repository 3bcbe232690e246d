"""What came out, in lines of plain text: a section's state, what did not hold, what was missing."""

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]  # a section, as `SectionResult` is written

_SHOWN = 6  # of a list; all of it is in the file
_WIDTH = 160
_FAILED = ("failed", "error", "crashed", "out of time", "lost")


def summary_lines(results: Mapping[str, Found]) -> Iterator[str]:
    """Of all sections, the worst news last."""
    for name, result in results.items():
        yield f"{name:10} {result['status']:8} {result['seconds']:6.1f} s  {result['title']}"
        yield from _listed("missing", result["missing"])
        yield from _listed("FAILED", result["failures"])
        if result["error"]:
            told = result["error"].strip().splitlines()
            yield f"    ERROR    {' ... '.join(dict.fromkeys((told[0], told[-1])))[:_WIDTH]}"


def has_failed(results: Mapping[str, Found]) -> bool:
    """Whether a section found something wrong, or ended early."""
    return any(result["status"] in _FAILED for result in results.values())


def _listed(what: str, lines: list[str]) -> Iterator[str]:
    for line in lines[:_SHOWN]:
        yield f"    {what:8} {' '.join(line.split())[:_WIDTH]}"
    if len(lines) > _SHOWN:
        yield f"    {what:8} and {len(lines) - _SHOWN} more"
