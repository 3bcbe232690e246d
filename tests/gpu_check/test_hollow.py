"""gpu_check at its real sizes, on a device that computes nothing: all of it runs to its end, and
nothing is left to be compiled while it measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="needs triton")
# Bars that it settles.
_BARS = {"smoke": 0, "kernels": 1, "attention": 4, "plain": 2, "timings": 2, "speed": 2,
         "exactness": 4}  # fmt: skip
_MEASURING = ("plain", "timings", "speed")


@pytest.mark.slow
@pytest.mark.parametrize("section", _BARS)
def test_a_section_ends_and_compiles_nothing_late(section: str) -> None:
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, "-m", "pretend.hollow", section],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["error"] is None, found["error"]
    assert not [text for name, text in found["found"].items() if name.endswith(": traceback")]
    assert sum(bar["verdict"] != "not measured" for bar in found["bars"]) == _BARS[section]
    assert found["told"]
    if section in _MEASURING:
        assert not found["compiled late"]
