"""The exactness matrix's cells on a pretended device, and what their steps wait for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matrix
import pytest
from matrix import Cell, Outcome, run_cell

import mmspec.decoder
from mmspec.stats import Stopwatch
from mmspec.target.graphs import GraphInfo, ScoreGraphs
from pretend.device import Device, Wait, device


@dataclass
class Run:
    """What came of a cell on the device."""

    outcome: Outcome
    steps: list[dict[str, list[Wait]]]  # of each step, by stage
    graphs: list[GraphInfo]  # of the target and of draft models


def run_on_cuda(cell: Cell, **options: Any) -> Run:
    """The cell with its models on the device. Plain decoding, which it must agree with, is that of
    the CPU."""
    plain = {
        (cell.family, cell.dtype, cell.sampling, *place): matrix._plain(
            cell.family, cell.dtype, cell.sampling, *place
        )
        for place in matrix._places(cell)
    }
    steps: list[dict[str, list[Wait]]] = []
    made: list[ScoreGraphs] = []
    with device() as cuda, _models_there(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "_plain", lambda *key: plain[key])
        patch.setattr(mmspec.decoder, "Stopwatch", _watch(cuda, steps))
        init = ScoreGraphs.__init__

        def remembered(self: ScoreGraphs, *args: Any, **named: Any) -> None:
            init(self, *args, **named)
            made.append(self)

        patch.setattr(ScoreGraphs, "__init__", remembered)
        outcome = run_cell(cell, **options)
        return Run(outcome, steps, [graphs.info for graphs in made])


@contextmanager
def _models_there() -> Iterator[None]:
    """The matrix's models are on the device, and forgotten afterwards."""
    on_cpu = matrix.model_of
    there: dict[tuple[str, str], Any] = {}

    def model_of(family: str, dtype: str) -> Any:
        if (family, dtype) not in there:
            there[family, dtype] = on_cpu.__wrapped__(family, dtype).to("cuda")
        return there[family, dtype]

    matrix.draft_model.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "model_of", model_of)
        yield
    matrix.draft_model.cache_clear()


def _watch(cuda: Device, steps: list[dict[str, list[Wait]]]) -> type[Stopwatch]:
    class Watch(Stopwatch):
        """Times a step, and tells its waits."""

        def __init__(self) -> None:
            super().__init__()
            self.waits: dict[str, list[Wait]] = {}
            steps.append(self.waits)

        @contextmanager
        def stage(self, name: Any) -> Iterator[None]:
            before = len(cuda.waits)
            with super().stage(name):
                yield
            self.waits[name] = cuda.waits[before:]

    return Watch
