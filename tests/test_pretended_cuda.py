"""The GPU's path on a machine without a GPU: every step on a pretended device."""

import pytest
from matrix import Cell, covering_cells
from pretend.cells import Run, run_on_cuda

pytest.importorskip("triton", reason="needs triton")

CELLS = [
    Cell("llama", "adversary", "t1", 3, "text", dtype="float32"),
    Cell("qwen2_5_vl", "compressed_window", "greedy", 3, "image_middle", dtype="float32"),
]


def assert_as_plain(run: Run) -> None:
    outcome = run.outcome
    assert not outcome.mismatches, f"{outcome.cell}: {outcome.mismatches}"
    for waits in run.steps:
        after = [str(wait) for stage in waits if stage != "propose" for wait in waits[stage]]
        assert len(after) <= 1, f"{outcome.cell}: a step waits for {after}"


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_texts_are_the_cpus_and_a_step_waits_once(cell: Cell) -> None:
    run = run_on_cuda(cell)
    assert_as_plain(run)
    assert run.outcome.accepted > 0
    assert not any(graphs.given_up for graphs in run.graphs)
    assert sum(graphs.replayed for graphs in run.graphs) > len(run.steps) / 2


@pytest.mark.slow
@pytest.mark.parametrize("cell", covering_cells(), ids=str)
def test_in_every_family(cell: Cell) -> None:
    assert_as_plain(run_on_cuda(cell))
