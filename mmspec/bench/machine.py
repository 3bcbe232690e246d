"""Where a measurement was made: without it a figure says nothing."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from mmspec.errors import ConfigError
from mmspec.words import counted

_QUIET_LOAD = 0.5  # processes: what a desktop or a daemon needs now and then
_QUIET_SHARE = 0.25  # of the cores that the measurement leaves free


@dataclass(frozen=True)
class Machine:
    """The machine and the versions, as they were before anything was loaded."""

    cpu: str
    cores: int  # that this process may use
    gpu: str | None
    threads: int
    load_before: float | None  # runnable processes, mean of the last minute; None: not known here
    python: str
    torch: str
    transformers: str
    commit: str | None  # of a checkout; "+" behind it: with changes


def this_machine(*, threads: int) -> Machine:
    return Machine(
        cpu=_cpu_name(),
        cores=num_cores(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        threads=threads,
        load_before=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        commit=_commit(),
    )


def refuse_if_busy(machine: Machine) -> None:
    """Raises ConfigError where other work would disturb the measurement."""
    free = max(machine.cores - machine.threads, 0)
    allowed = max(_QUIET_LOAD, _QUIET_SHARE * free)
    if machine.load_before is not None and machine.load_before > allowed:
        raise ConfigError(
            f"this machine's load is {machine.load_before:.2f}; expected at most {allowed:.2f} "
            f"for {counted(machine.threads, 'thread')} on {counted(machine.cores, 'core')}: other "
            "work would be measured too. Wait until it is quiet (it is a mean over a minute), or "
            "measure anyway with --force"
        )


def num_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str | None:
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")
