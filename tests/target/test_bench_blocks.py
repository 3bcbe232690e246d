"""The script that times blocks runs where there is no GPU, on a toy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def test_every_table_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "blocks.json"
    command = [
        *(sys.executable, "scripts/bench_blocks.py", "--device", "cpu", "--small"),
        *("--layers", "1", "--nodes", "1", "2", "--contexts", "4", "--out", str(out)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    made = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    report = json.loads(out.read_text())
    assert [(row["context"], row["nodes"]) for row in report["blocks"]] == [(4, 1), (4, 2)]
    assert all(row["fused_ms"] > 0 and row["own_ms"] > 0 for row in report["blocks"])
    # q, k and v; o; gate and up; down; head. By the library and each tiling.
    assert {len(row["outs"]) for row in report["linears"]} == {1, 2, 3}
    assert {row["rows"] for row in report["linears"]} == {1, 16, 64}
    assert {row["way"] == "library" for row in report["linears"]} == {True, False}
