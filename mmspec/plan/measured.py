"""Predictions beside what was measured: the results that `scripts/bench_score.py` writes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmspec.errors import ConfigError
from mmspec.plan.hardware import Hardware
from mmspec.plan.roofline import Forward, Precision
from mmspec.plan.shape import SHAPES, ModelShape, find_shape, read_object

_RANDOM_LLAMA = "random llama"  # what the script calls the model that it makes itself


@dataclass(frozen=True)
class Compared:
    """One score call: seconds by the roofline, and the median of those measured."""

    source: str
    model: str
    context: int
    nodes: int
    predicted_s: float
    measured_s: float

    @property
    def ratio(self) -> float:
        return self.measured_s / self.predicted_s


def compare(
    path: Path, hardware: Hardware, *, precision: Precision, shape: ModelShape | None = None
) -> list[Compared]:
    """What a file of `scripts/bench_score.py` measured, beside what `hardware` should take;
    `shape` for a model that is not known by the name in it. Raises ConfigError for another file.
    """
    report = _report(path)
    name = str(report["model"])
    found = shape or (
        SHAPES["random-llama"] if name.startswith(_RANDOM_LLAMA) else find_shape(name)
    )
    forward = Forward(found, hardware, precision, precision)
    return [
        Compared(
            path.name,
            found.name,
            context,
            nodes,
            forward.seconds(nodes, context=context, batch=1),
            statistics.median(samples) / 1000,
        )
        for context, nodes, samples in _samples(report)
    ]


def slower(compared: Sequence[Compared]) -> float:
    """Measured over predicted, the median of all calls: how far the machine stays behind its
    figures. What a call differs from that is the roofline's own error."""
    return statistics.median(one.ratio for one in compared)


def is_score_report(path: Path) -> bool:
    """Whether the file is one that `compare` reads."""
    try:
        _report(path)
    except ConfigError:
        return False
    return True


def _report(path: Path) -> Mapping[str, object]:
    report = read_object(path)
    rows = report.get("rows")
    is_one = isinstance(rows, list) and all(
        isinstance(row, Mapping) and "samples_ms" in row for row in rows
    )
    if not is_one or "model" not in report:
        raise ConfigError(f"{path}: expected what scripts/bench_score.py writes")
    return report


def _samples(report: Mapping[str, object]) -> list[tuple[int, int, list[float]]]:
    rows = cast(list[dict[str, object]], report["rows"])
    found = []
    for row in rows:
        ways = cast(dict[str, dict[str, list[float]]], row["samples_ms"])
        for nodes, samples in sorted(ways["mmspec"].items(), key=lambda item: int(item[0])):
            found.append((cast(int, row["context"]), int(nodes), samples))
    return found
