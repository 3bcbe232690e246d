"""Kernels are compiled by as many processes as there are cores to spare, for the GPU here."""

import os
import time
from pathlib import Path

import pytest

from mmspec.gpu_check import compiling
from mmspec.gpu_check.compiling import Compiling

SCRIPT = """
import os, sys, time
print(*sys.argv[1:], repr(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
time.sleep(float(os.environ["SECONDS"]))
"""


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> Compiling:
    """On four cores, beside a GPU of another generation."""
    script, asked = tmp_path / "compile.py", tmp_path / "nvidia-smi"
    script.write_text(SCRIPT)
    asked.write_text("#!/bin/sh\necho 10.0\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SECONDS", str(seconds))
    monkeypatch.setattr(compiling, "_SCRIPT", script)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    return Compiling(tmp_path / "deep" / "compiled.log")


def test_each_process_compiles_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(tmp_path, monkeypatch, seconds=0)
    made.wait()
    made.stop()
    told = sorted((tmp_path / "deep" / "compiled.log").read_text().splitlines())
    assert told == ["100 --part 1/2 ''", "100 --part 2/2 ''"]


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_WAITED_S", 0.5)
    made, begun = started(tmp_path, monkeypatch, seconds=600), time.monotonic()
    made.wait()
    made.stop()
    assert time.monotonic() - begun < 60


def test_without_a_gpu_to_ask_it_is_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert compiling._capability() == 90
