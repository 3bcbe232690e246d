"""The GPU's path on a machine without a GPU: whole requests on a pretended device."""

import pytest
from matrix import Cell, covering_cells
from pretend.cells import Run, run_on_cuda

pytest.importorskip("triton", reason="needs triton")

_RECORDING = ("target/graphs/recorder.py", "target/graphs/score.py")  # and trying it, once a graph
KERNELS = [
    Cell(family, drafter, sampling, 3, layout, reuse=reuse, dtype="float32")
    for family, drafter, sampling, layout, reuse in (
        ("llama", "adversary", "t1", "text", "none"),
        ("qwen2_5_vl", "compressed_window", "greedy", "image_middle", "none"),
        ("gemma3", "prompt_lookup", "warped", "image_first", "none"),
        ("gpt_oss", "draft_same", "t1", "text", "chunks_and_prefixes"),
        ("llama", "cascade", "warped", "text", "chunks"),
        ("qwen3_vl", "layer_skip", "t1", "image_last", "chunks_and_prefixes"),
        ("llama", "glide", "t1", "text", "none"),
        ("qwen3", "prompt_lookup+lookahead", "t1", "text", "chunks"),
        ("qwen3_5", "medusa", "t1", "image_middle", "none"),
        ("qwen3_vl", "dflash", "t1", "image_middle", "none"),
        ("lfm2", "draft_same", "warped", "text", "chunks_and_prefixes"),
        ("granite_hybrid", "prompt_lookup", "t1", "text", "none"),
    )
]


def assert_as_plain(run: Run) -> None:
    outcome = run.outcome
    assert not outcome.mismatches, f"{outcome.cell}: {outcome.mismatches}"
    for stages in run.steps:
        waits = [w for stage, found in stages.items() if stage != "propose" for w in found]
        own = [str(wait) for wait in waits if not wait.where.startswith(_RECORDING)]
        assert len(own) <= 1, f"{outcome.cell}: a step waits for {own}"


def assert_replayed(run: Run) -> None:
    assert not any(graphs.given_up for graphs in run.graphs)
    assert sum(graphs.replayed for graphs in run.graphs) > 0


def test_texts_are_the_cpus_and_a_step_waits_once() -> None:
    cell = Cell("qwen2_5_vl", "prompt_lookup", "t1", 3, "image_middle")
    assert_as_plain(run_on_cuda(cell, new_tokens=15))


def test_kernels_and_graphs_too() -> None:
    run = run_on_cuda(
        Cell("llama", "prompt_lookup", "t1", 1, "text", dtype="float32"), new_tokens=8
    )
    assert_as_plain(run)
    assert_replayed(run)


@pytest.mark.slow
@pytest.mark.parametrize("cell", KERNELS, ids=str)
def test_kernels_and_graphs_in_batches(cell: Cell) -> None:
    run = run_on_cuda(cell, new_tokens=24)  # enough for calls to come again
    assert_as_plain(run)
    assert_replayed(run)


@pytest.mark.slow
@pytest.mark.parametrize("cell", covering_cells(), ids=str)
def test_in_every_family(cell: Cell) -> None:
    assert_as_plain(run_on_cuda(cell))
