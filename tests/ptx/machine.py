"""A multiprocessor that runs compiled kernels on a CPU, one block of threads after the other.

All threads of a block go together, one instruction at a time; where they part, those go on that are
furthest behind. It says what an interpreter of Triton cannot: that the compiled code reads and
writes what it may, where it may, behind the barriers that it needs, and that nothing hangs on the
order of blocks or warps. It knows nothing of time, and of what `ptxas` makes of the code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptx.memory import GlobalMemory, IllegalAccess, SharedMemory, Who
from ptx.program import Address, Instruction, Operand, Program, Register
from ptx.registers import Mask, Registers
from ptx.steps import Step, step_of

_SHARED_BYTES = 227 * 1024  # that a block may have


class Machine:
    """Runs one kernel."""

    def __init__(self, program: Program, shared_bytes: int) -> None:
        assert shared_bytes <= _SHARED_BYTES, f"{shared_bytes} bytes of shared memory"
        self.program = program
        self._shared_bytes = shared_bytes
        self._steps = [step_of(one) for one in program.instructions]

    def run(
        self,
        arguments: list[int],
        *,
        grid: tuple[int, ...],
        memory: GlobalMemory,
        is_late: bool,
        blocks: int | None = None,
        shared_memory: type[SharedMemory] = SharedMemory,
    ) -> None:
        """`arguments`: the bits of each parameter. `is_late`: copies and products that run beside a
        thread are made when it waits for them, else at once: a GPU may do either. `blocks`: so many
        of them alone."""
        assert max(grid[1:]) < 2**16, f"a grid of {grid}"
        places = list(np.ndindex(*reversed(grid)))
        apart = 1 if blocks is None else -(-len(places) // blocks)
        for number, (z, y, x) in list(enumerate(places))[::apart]:
            shared = shared_memory(self._shared_bytes)
            registers = Registers(self.program, (x, y, z), grid, shared.base)
            Block(
                number, self.program, self._steps, arguments, registers, memory, shared, is_late
            ).run()
        memory.check_order()


@dataclass
class Block:
    number: int
    program: Program
    steps: list[Step]
    arguments: list[int]
    registers: Registers
    memory: GlobalMemory
    shared: SharedMemory
    is_late: bool
    place: int = 0  # of the next instruction, for all threads
    places: NDArray[np.int64] | None = None  # of each thread's, where they have parted
    # Copies and products that run beside the threads, in groups: the last one is open.
    groups: dict[str, list[list[Callable[[], None]]]] = field(
        default_factory=lambda: {"cp": [[]], "wgmma": [[]]}
    )
    has_waited: bool = False  # for the kernel ahead

    def run(self) -> None:
        instructions, last = self.program.instructions, len(self.steps)
        while True:
            mask: Mask = None
            if self.places is not None:
                self.place = int(self.places.min())
                mask = self.places == self.place
                if mask.all():
                    self.places = mask = None
            if self.place == last:
                break
            one = instructions[self.place]
            try:
                if one.name in ("bra", "bra.uni", "ret"):
                    self._jump(one, mask)
                else:
                    self._step(one, mask)
            except Exception as error:
                error.add_note(f"at {self.place} of {self.program.name}: {one.text}")
                raise

    def _step(self, one: Instruction, mask: Mask) -> None:
        own = self._guarded(one, mask)
        if own is None or own.any():
            self.steps[self.place](self, own)
        if self.places is None:
            self.place += 1
        else:
            self.places[mask] += 1

    def _jump(self, one: Instruction, mask: Mask) -> None:
        to = len(self.steps) if one.name == "ret" else self.program.labels[str(one.operands[0])]
        goes = self._guarded(one, mask)
        if goes is None:
            self.place = to
            return
        if self.places is None:
            self.places = np.full(len(goes), self.place)
        stays = ~goes if mask is None else mask & ~goes
        self.places[goes] = to
        self.places[stays] += 1

    def _guarded(self, one: Instruction, mask: Mask) -> Mask:
        """The threads that do it; None: all."""
        if one.guard is None:
            return mask
        holds = self.registers.get(one.guard, "pred") ^ one.is_negated
        if mask is None:
            return None if holds.all() else holds
        return holds & mask

    def close(self, kind: str, mask: Mask) -> None:
        assert mask is None, "threads have parted"
        self.groups[kind].append([])

    def finish(self, kind: str, left: int, mask: Mask) -> None:
        """All but so many of the groups that are closed."""
        assert mask is None, "threads have parted"
        groups = self.groups[kind]
        for group in groups[: max(0, len(groups) - 1 - left)]:
            for one in group:
                one()
            group.clear()

    def who(self, lanes: NDArray[np.int64]) -> Who:
        """Touches global memory; which a kernel that begins early may not before it has waited."""
        if self.program.waits and not self.has_waited:
            raise IllegalAccess("global memory is touched before the kernel ahead has ended")
        return Who(self.number, self.shared.epoch, self.registers.warps[lanes])

    def lanes(self, mask: Mask) -> NDArray[np.int64]:
        return np.arange(len(self.registers.warps)) if mask is None else np.flatnonzero(mask)

    def addresses(self, operand: Operand, lanes: NDArray[np.int64]) -> NDArray[np.int64]:
        assert isinstance(operand, Address), operand
        base = operand.base
        kind = "u32" if isinstance(base, Register) and base.kind == "r" else "u64"
        return self.registers.each(base, kind)[lanes].astype(np.int64) + operand.offset
