"""Turns of shared memory and sectors, as they are counted; and what the kernels make of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptx.traffic import Traffic

LANES, WARP = np.arange(32), np.zeros(32, np.int32)


@pytest.mark.parametrize(
    ("addresses", "size", "turns", "fewest"),
    [
        (4 * LANES, 4, 1, 1),
        (0 * LANES, 4, 1, 1),  # one word for all
        (8 * LANES, 4, 2, 1),
        (64 * LANES, 4, 16, 1),
        (128 * LANES, 4, 32, 1),
        (16 * LANES, 16, 4, 4),  # eight threads a turn
        (128 * LANES, 16, 32, 4),
        (128 * LANES + 16 * (LANES % 8), 16, 4, 4),  # swizzled
    ],
)
def test_words_of_one_bank_take_turns(
    addresses: np.ndarray, size: int, turns: int, fewest: int
) -> None:
    traffic = Traffic()
    traffic.of_shared(addresses, size, WARP)
    assert (traffic.turns, traffic.fewest_turns) == (turns, fewest)


def test_memory_moves_whole_sectors() -> None:
    traffic = Traffic()
    traffic.of_memory(4 * LANES, 4, WARP)
    assert (traffic.sectors, traffic.fewest_sectors) == (4, 4)
    traffic.of_memory(64 * LANES, 4, WARP)
    assert (traffic.sectors, traffic.fewest_sectors) == (36, 8)


@pytest.mark.slow
def test_no_kernel_waits_for_banks() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "ptx.traffic"]
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"tree_kernel", "merge_kernel", "_multiply", "_sum_kernel"} <= set(done.stdout.split())
