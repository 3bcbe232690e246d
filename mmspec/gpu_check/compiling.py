"""Compiles the kernels that sections are going to launch on all cores, while the first sections
run: one after the other, as they are launched, they take minutes."""

import os
import subprocess
import sys
import time
from pathlib import Path

_SCRIPT = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
_HOPPER = 90
_LEFT_CORES = 2  # for the sections
_WAITED_S = 60.0


class Compiling:
    """Processes that fill Triton's cache. Without a checkout, or on one core, there are none."""

    def __init__(self, log: Path) -> None:
        """`log`: a file for what they say."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        parts = max(cores - _LEFT_CORES, 0) if _SCRIPT.is_file() else 0
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        # It needs no GPU, and takes none of its memory.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        log.parent.mkdir(parents=True, exist_ok=True)
        capability = str(_capability())
        with log.open("wb") as file:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, str(_SCRIPT), capability, "--part", f"{part}/{parts}"],
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                for part in range(1, parts + 1)
            ]

    def wait(self) -> None:
        """Until all are compiled, or as long as they may take."""
        ends = time.monotonic() + _WAITED_S
        while any(own.poll() is None for own in self._processes) and time.monotonic() < ends:
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends what still runs; what is compiled by then stays."""
        for own in self._processes:
            own.kill()
            own.wait()


def _capability() -> int:
    """Of the first GPU, asked past torch, which would take memory of it."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(said.stdout.split()[0].replace(".", ""))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return _HOPPER
