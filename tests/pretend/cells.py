"""The exactness matrix's cells on pretended devices, and what their steps wait for."""

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
from pretend.apple import apple
from pretend.device import Device, Wait, device


@dataclass
class Run:
    """What came of a cell on the device."""

    outcome: Outcome
    steps: list[dict[str, list[Wait]]]  # of each step, by stage
    graphs: list[GraphInfo]  # of the target and of draft models


def run_on_cuda(cell: Cell, *, new_tokens: int = matrix.NEW_TOKENS) -> Run:
    """The cell with its models on a GPU. Plain decoding, which it must agree with, is that of the
    CPU."""
    steps: list[dict[str, list[Wait]]] = []
    made: list[ScoreGraphs] = []
    make = ScoreGraphs.__init__

    def remembered(self: ScoreGraphs, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        made.append(self)

    with _plain_here(cell, new_tokens) as patch:
        patch.setattr(ScoreGraphs, "__init__", remembered)
        with device() as cuda, _models_there(patch, "cuda"):
            patch.setattr(mmspec.decoder, "Stopwatch", _watch(cuda, steps))
            outcome = run_cell(cell)
            return Run(outcome, steps, [graphs.info for graphs in made])


def run_on_apple(cell: Cell, *, new_tokens: int = matrix.NEW_TOKENS) -> Outcome:
    """As `run_on_cuda`, on one of Apple's."""
    with _plain_here(cell, new_tokens) as patch, apple(), _models_there(patch, "mps"):
        return run_cell(cell)


@contextmanager
def _plain_here(cell: Cell, new_tokens: int) -> Iterator[pytest.MonkeyPatch]:
    """Within it the cell's plain texts, so long, are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "NEW_TOKENS", new_tokens)
        keys = [(cell.family, cell.dtype, cell.sampling, *p) for p in matrix._places(cell)]
        plain = {key: matrix._plain.__wrapped__(*key) for key in keys}
        patch.setattr(matrix, "_plain", lambda *key: plain[key])
        yield patch


@contextmanager
def _models_there(patch: pytest.MonkeyPatch, place: str) -> Iterator[None]:
    """The matrix's models are on the device; nothing of them is kept."""
    built: dict[tuple[str, str], Any] = {}
    build = matrix.model_of.__wrapped__

    def model_of(family: str, dtype: str) -> Any:
        if (family, dtype) not in built:
            made = built[family, dtype] = build(family, dtype).to(place)
            made.set_experts_implementation("batched_mm")  # eager ones look at values on the device
        return built[family, dtype]

    def on_cpu(make: Any) -> Any:
        """A head that somebody has trained comes from a file."""

        def made(model: Any, *args: Any, **options: Any) -> Any:
            own = next(key for key, known in built.items() if known is model)
            return make(build(*own), *args, **options)

        return made

    matrix.draft_model.cache_clear()
    patch.setattr(matrix, "model_of", model_of)
    for name in ("fitted", "mtp"):
        patch.setattr(matrix, name, on_cpu(getattr(matrix, name)))
    yield
    matrix.draft_model.cache_clear()


def _watch(cuda: Device, steps: list[dict[str, list[Wait]]]) -> type[Stopwatch]:
    class Watch(Stopwatch):
        """Times a step, and tells its waits."""

        def __init__(self) -> None:
            super().__init__()
            self._waits: dict[str, list[Wait]] = {}
            self._num_seen = len(cuda.waits)
            steps.append(self._waits)

        def lap(self, stage: str) -> None:
            super().lap(stage)
            self._waits[stage] = cuda.waits[self._num_seen :]
            self._num_seen = len(cuda.waits)

    return Watch
