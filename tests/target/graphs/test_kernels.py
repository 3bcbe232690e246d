"""All kernels of a recorded call together, by Triton's interpreter: what a GPU repeats."""

import interpreted
import matrix
import pytest
from graphed import run_graphed
from matrix import Cell

import mmspec.kv.cache
import mmspec.kv.kernels
import mmspec.kv.layer
import mmspec.kv.slots
from mmspec.attention.triton_tree import TritonTree

assert interpreted


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        Cell("llama", "compressed_window", "greedy", 3, "text", dtype="float32"),
        Cell("qwen2_sliding", "draft_same", "greedy", 3, "text", dtype="float32"),
    ],
    ids=str,
)
def test_recorded_kernels_give_the_plain_tokens(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "NEW_TOKENS", 16)
    matrix._plain.cache_clear()
    for module in (mmspec.kv.slots, mmspec.kv.layer, mmspec.kv.cache):
        monkeypatch.setattr(module, "has_kernels", lambda device: True)
    outcome, graphed = run_graphed(cell, TritonTree().attend)
    matrix._plain.cache_clear()
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert graphed.replayed > 0 and not graphed.given_up
