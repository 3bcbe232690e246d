"""The matrix's cells with score calls recorded by a `TapeRecorder`, with attention that reads
tensors alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matrix
import pytest
from matrix import Cell, Outcome, run_cell
from tape import TapeRecorder
from tensor_rung import TensorRung
from torch import Tensor

import mmspec.attention.interface
import mmspec.build
import mmspec.drafters.glide.glimpse
import mmspec.drafters.heads.attention
import mmspec.target.graphs.bucket
from mmspec.target.graphs import ScoreGraphs

Attend = Callable[..., Tensor]
BY_TENSORS: Attend = TensorRung().attend


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
def graphed(attend: Attend | None = BY_TENSORS) -> Iterator[Graphed]:
    """Within it, every model that is loaded records its score calls, drafts' models too. `attend`
    takes the place of `tree_attention`, unless it is None."""
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
        if attend is not None:
            for place in (
                mmspec.attention.interface,
                mmspec.drafters.heads.attention,
                mmspec.drafters.glide.glimpse,
            ):
                patch.setattr(place, "tree_attention", attend)
        patch.setattr(mmspec.build, "probed_target", recording)
        patch.setattr(ScoreGraphs, "__init__", remembered)
        patch.setattr(mmspec.target.graphs.bucket, "_LEAST_COLUMNS", 64)  # so that texts outgrow it
        matrix.draft_model.cache_clear()
        yield seen
        matrix.draft_model.cache_clear()


def run_graphed(cell: Cell, attend: Attend | None = BY_TENSORS) -> tuple[Outcome, Graphed]:
    """The cell against plain decoding, which runs without graphs."""
    for place in matrix._places(cell):
        matrix._plain(cell.family, cell.dtype, cell.sampling, *place)
    with graphed(attend) as seen:
        return run_cell(cell), seen
