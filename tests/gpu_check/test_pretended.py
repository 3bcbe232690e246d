"""gpu_check on a pretended device: what a first run on a GPU comes by, but for speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="needs triton")


@pytest.mark.slow
@pytest.mark.parametrize("section", ["kernels", "plain", "timings", "speed"])
def test_a_section_passes(section: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretend", "scripts/gpu_check.py", "--small"]
    run = subprocess.run(
        [*command, "--only", section, "--out", str(tmp_path / "found.json"), "--minutes", "20"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    found = json.loads((tmp_path / "found.json").read_text())["sections"][section]
    assert run.returncode == 0 and found["status"] == "passed", found
