"""What came out, in lines of plain text: a section's state, what did not hold, what was missing."""

from collections.abc import Iterator, Mapping

from mmspec.gpu_check.recorder import SectionResult

_SHOWN = 6  # of a list; all of it is in the file
_WIDTH = 160


def summary_lines(results: Mapping[str, SectionResult]) -> Iterator[str]:
    """Of all sections, the worst news last."""
    for name, result in results.items():
        yield f"{name:10} {result.status:8} {result.seconds:6.1f} s  {result.title}"
        yield from _listed("missing", result.missing)
        yield from _listed("FAILED", result.failures)
        if result.error:
            yield f"    ERROR    {result.error.strip().splitlines()[-1][:_WIDTH]}"


def has_failed(results: Mapping[str, SectionResult]) -> bool:
    """Whether a section found something wrong, or ended early."""
    return any(result.status in ("failed", "error") for result in results.values())


def _listed(what: str, lines: list[str]) -> Iterator[str]:
    for line in lines[:_SHOWN]:
        yield f"    {what:8} {' '.join(line.split())[:_WIDTH]}"
    if len(lines) > _SHOWN:
        yield f"    {what:8} and {len(lines) - _SHOWN} more"
