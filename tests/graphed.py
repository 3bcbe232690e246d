"""The matrix's cells with score calls recorded by a `TapeRecorder`, attention by a `TensorRung`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matrix
import pytest
from matrix import Cell, Outcome, run_cell
from tape import TapeRecorder
from tensor_rung import TensorRung

import mmspec.attention.tree
import mmspec.build
from mmspec.target import Target
from mmspec.target.graphs import Computed, ScoreGraphs

RUNGS = (TensorRung(),)


@dataclass
class Graphed:
    """Whose graphs there were."""

    graphs: list[ScoreGraphs] = field(default_factory=list)

    @property
    def replayed(self) -> int:
        return sum(graphs.info.replayed for graphs in self.graphs)

    @property
    def given_up(self) -> list[str]:
        return [graphs.info.given_up for graphs in self.graphs if graphs.info.given_up]


@contextmanager
def graphed() -> Iterator[Graphed]:
    """Within it, every model that is loaded records its score calls, drafts' models too."""
    seen = Graphed()
    probed, made = mmspec.build.probed_target, ScoreGraphs.__init__

    def recording(*args: Any) -> Any:
        target, shape = probed(*args)
        if target.attachments.attention == "tree":
            target.use_graphs(TapeRecorder())
        return target, shape

    def remembered(self: ScoreGraphs, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        seen.graphs.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmspec.attention.tree, "LADDER", RUNGS)
        patch.setattr(mmspec.build, "probed_target", recording)
        patch.setattr(ScoreGraphs, "__init__", remembered)
        matrix.draft_model.cache_clear()
        yield seen
        matrix.draft_model.cache_clear()


def run_graphed(cell: Cell) -> tuple[Outcome, Graphed]:
    """The cell against plain decoding, which runs without graphs."""
    for place in matrix._places(cell):
        matrix._plain(cell.family, cell.dtype, cell.sampling, *place)
    with graphed() as seen:
        return run_cell(cell), seen


def scored(target: Target, *args: Any, **options: Any) -> Computed | None:
    """A score call's result, and None in its place if it came without a graph."""
    assert target.graphs is not None
    before = target.graphs.info.replayed
    scores = target.score(*args, **options)
    return scores if target.graphs.info.replayed > before else None  # type: ignore[return-value]
