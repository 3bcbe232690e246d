"""The script that times blocks runs where there is no GPU, on a toy."""

import json
import runpy
import sys
from pathlib import Path

import interpreted
import pytest

assert interpreted
SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_blocks.py"


def test_every_table_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "blocks.json"
    words = [str(SCRIPT), "--device", "cpu", "--small", "--layers", "1", "--nodes", "1", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--contexts", "4", "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads(out.read_text())
    assert [(row["context"], row["nodes"]) for row in report["blocks"]] == [(4, 1), (4, 2)]
    assert all(row["fused_ms"] > 0 and row["own_ms"] > 0 for row in report["blocks"])
    # q, k and v; o; gate and up; down; head. By the library and each tiling.
    assert {len(row["outs"]) for row in report["linears"]} == {1, 2, 3}
    assert {row["rows"] for row in report["linears"]} == {1, 16, 64}
    assert {row["way"] == "library" for row in report["linears"]} == {True, False}
