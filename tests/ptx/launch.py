"""Kernels are compiled as a GPU would have them, and run by the machine beside this file, on CPU
tensors. A process compiles them or interprets them: before anything imports triton,
`compile_kernels` chooses the first."""

import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ptx.machine import Machine
from ptx.memory import GlobalMemory
from ptx.program import Program


def compile_kernels(capability: int, *, is_late: bool) -> None:
    """From here on, for GPUs of this compute capability. `is_late`: see Machine.run."""
    os.environ.pop("TRITON_INTERPRET", None)
    import triton
    from triton.runtime.jit import JITFunction

    os.environ["TRITON_INTERPRET"] = "1"  # for mmspec: CPU tensors are no reason to decline
    triton.knobs.runtime.interpret = False
    sys.path.append(str(Path(__file__).parents[2] / "scripts"))
    from compile_kernels import AbsentGpu

    triton.runtime.driver.set_active(AbsentGpu(capability))
    compile_one, machines = JITFunction.run, dict[str, Machine]()

    def run(kernel: Any, *args: Any, grid: Any, **kwargs: Any) -> Any:
        made = compile_one(kernel, *args, grid=grid, **{**kwargs, "warmup": True})
        if made.hash not in machines:
            machines[made.hash] = Machine(Program.of(made.asm["ptx"]), made.metadata.shared)
        own = {name: value for name, value in kwargs.items() if name in kernel.signature.parameters}
        bound = kernel.signature.bind(*args, **own)
        bound.apply_defaults()
        given = [
            (value, kind) for name, value in bound.arguments.items()
            if (kind := made.src.signature[name]) != "constexpr"
        ]  # fmt: skip
        size = tuple(grid(bound.arguments) if callable(grid) else grid)
        launch(machines[made.hash], given, (*size, 1, 1)[:3], is_late=is_late)
        return made

    JITFunction.run = run


def launch(
    machine: Machine, given: Sequence[tuple[Any, str]], grid: tuple[int, ...], *, is_late: bool
) -> None:
    """With arguments and their types."""
    memory = GlobalMemory([value for value, _ in given if isinstance(value, Tensor)])
    try:
        with np.errstate(all="ignore"):
            machine.run(bits_of(machine, given), grid=grid, memory=memory, is_late=is_late)
    except Exception as error:  # which a driver would call so, and no fallback may hide
        name = machine.program.name
        raise RuntimeError(f"illegal memory access or instruction, {name}: {error!r}") from error


def bits_of(machine: Machine, given: Sequence[tuple[Any, str]]) -> list[int]:
    arguments = [_bits(value, kind) for value, kind in given]
    scratch = len(machine.program.parameters) - len(arguments)  # that no kernel here asks for
    return arguments + [0] * scratch


def _bits(value: Any, kind: str) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if kind == "fp32":
        return int.from_bytes(struct.pack("<f", value), "little")
    return int(value)
