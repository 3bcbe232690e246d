"""A multiprocessor that runs compiled kernels on a CPU, one block of threads after the other.

All threads of a block go together, one instruction at a time; where they part, those go on that are
furthest behind. It says what an interpreter of Triton cannot: that the compiled code reads and
writes what it may, where it may, behind the barriers that it needs, and that nothing hangs on the
order of blocks or warps. It knows nothing of time, and of what `ptxas` makes of the code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx import arithmetic, products
from ptx.memory import GlobalMemory, IllegalAccess, SharedMemory, Who
from ptx.program import Address, Instruction, Number, Operand, Program, Register
from ptx.registers import Mask, Registers

Step = Callable[["_Block", Mask], None]
_NOTHING = (
    "fence", "membar", "griddepcontrol.launch", "bar.warp", "nanosleep", "wgmma.fence", "pragma",
)  # fmt: skip


class Machine:
    """Runs one kernel."""

    def __init__(self, program: Program, shared_bytes: int) -> None:
        self.program = program
        self._shared_bytes = shared_bytes
        self._steps = [_step_of(one) for one in program.instructions]

    def run(
        self, arguments: list[int], *, grid: tuple[int, ...], memory: GlobalMemory, is_late: bool
    ) -> None:
        """`arguments`: the bits of each parameter. `is_late`: copies and products that run beside a
        thread are made when it waits for them, else at once: a GPU may do either."""
        for number, (z, y, x) in enumerate(np.ndindex(*reversed(grid))):
            shared = SharedMemory(self._shared_bytes)
            registers = Registers(self.program, (x, y, z), grid, shared.base)
            _Block(
                number, self.program, self._steps, arguments, registers, memory, shared, is_late
            ).run()
        memory.check_order()


@dataclass
class _Block:
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
    copies: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])  # by group
    multiplied: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])
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
                assert mask is None or mask.all(), "threads end apart"
                break
            here, one = self.place, instructions[self.place]
            try:
                if one.guard is not None and not one.name.startswith(("bra", "ret")):
                    holds = self.registers.get(one.guard, "pred") ^ one.is_negated
                    holds = holds if mask is None else holds & mask
                    if holds.any():
                        self.steps[here](self, None if holds.all() else holds)
                else:
                    self.steps[here](self, mask)
            except Exception as error:
                error.add_note(f"at {here} of {self.program.name}: {one.text}")
                raise
            if self.places is None:
                self.place += self.place == here
            else:
                stayed = (self.places == here) & (True if mask is None else mask)
                self.places[stayed] += 1

    def jump(self, instruction: Instruction, to: int, mask: Mask) -> None:
        guard = instruction.guard
        goes = np.ones(len(self.registers.warps), bool) if guard is None else (
            self.registers.get(guard, "pred") ^ instruction.is_negated
        )  # fmt: skip
        if mask is None and goes.all():
            self.place = to - (to == self.place)
            return
        if mask is None and not goes.any():
            return
        if self.places is None:
            self.places = np.full(len(goes), self.place)
        own = goes if mask is None else goes & mask
        self.places[own] = to

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
        start = np.broadcast_to(self.registers.get(base, kind), self.registers.warps.shape)
        return start[lanes].astype(np.int64) + operand.offset


@cache
def _step_of(one: Instruction) -> Step:
    parts = one.parts
    if one.name.startswith(_NOTHING):
        return lambda block, mask: None
    for prefix, make in _MAKERS.items():
        if one.name == prefix or one.name.startswith(prefix + "."):
            return make(one, parts)
    found = arithmetic.of(one.name)
    if found is None:
        raise NotImplementedError(one.text)
    kinds, kind, function = found
    target, *sources = one.operands

    def compute(block: _Block, mask: Mask) -> None:
        get = block.registers.get
        values = [get(source, own) for source, own in zip(sources, kinds, strict=True)]
        block.registers.set(target, kind, function(*values), mask)

    return compute


def _jump(one: Instruction, parts: list[str]) -> Step:
    label = one.operands[0]
    return lambda block, mask: block.jump(one, block.program.labels[str(label)], mask)


def _return(one: Instruction, parts: list[str]) -> Step:
    return lambda block, mask: block.jump(one, len(block.steps), mask)


def _move(one: Instruction, parts: list[str]) -> Step:
    kind = parts[-1]
    target, source = one.operands

    def apart(block: _Block, mask: Mask) -> None:
        assert isinstance(target, tuple)
        size = int(kind[1:]) // len(target)
        words = np.ascontiguousarray(
            np.broadcast_to(block.registers.get(source, kind), block.registers.warps.shape)
        ).view(f"u{size // 8}")
        for index, one in enumerate(target):
            block.registers.set(one, f"b{size}", words[index :: len(target)], mask)

    def together(block: _Block, mask: Mask) -> None:
        assert isinstance(source, tuple)
        size = int(kind[1:]) // len(source)
        words = [
            np.broadcast_to(block.registers.get(one, f"b{size}"), block.registers.warps.shape)
            for one in source
        ]
        both = np.ascontiguousarray(np.stack(words, axis=-1)).reshape(-1)
        block.registers.set(target, kind, both.view(f"u{size * len(source) // 8}"), mask)

    def alone(block: _Block, mask: Mask) -> None:
        block.registers.set(target, kind, block.registers.get(source, kind), mask)

    return apart if isinstance(target, tuple) else together if isinstance(source, tuple) else alone


def _compare(one: Instruction, parts: list[str]) -> Step:
    kind, function = arithmetic.comparison(one.name)
    target, *sources = one.operands
    assert len(sources) == 2, one.text

    def compare(block: _Block, mask: Mask) -> None:
        found = function(*(block.registers.get(source, kind) for source in sources))
        if isinstance(target, tuple):
            for own, half in zip(target, found, strict=True):
                block.registers.set(own, "pred", half, mask)
        else:
            block.registers.set(target, "pred", found, mask)

    return compare


def _vector(parts: list[str]) -> tuple[int, str]:
    count = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
    return count, parts[-1]


def _load(one: Instruction, parts: list[str]) -> Step:
    count, kind = _vector(parts)
    width = int(kind[1:]) // 8
    target, source = one.operands[:2]
    targets = target if isinstance(target, tuple) else (target,)
    assert isinstance(source, Address) and len(targets) == count, one.text

    def parameter(block: _Block, mask: Mask) -> None:
        bits = block.arguments[block.program.parameters[str(source.base)]]
        value = np.array([bits & (2 ** (8 * width) - 1)], f"u{width}")
        block.registers.set(
            target, kind, value if kind[0] != "s" else value.view(f"i{width}"), mask
        )

    def memory(block: _Block, mask: Mask) -> None:
        lanes = block.lanes(mask)
        at = block.addresses(source, lanes)
        if "global" in parts:
            words = block.memory.read(at, width, count, who=block.who(lanes))
        else:
            words = block.shared.read(at, width, count, warps=block.registers.warps[lanes])
        for index, own in enumerate(targets):
            whole = np.zeros(len(block.registers.warps), words.dtype)
            whole[lanes] = words[:, index]
            block.registers.set(
                own, kind, whole.view(f"i{width}") if kind[0] == "s" else whole, mask
            )

    return parameter if "param" in parts else memory


def _store(one: Instruction, parts: list[str]) -> Step:
    count, kind = _vector(parts)
    target, source = one.operands[:2]
    sources = source if isinstance(source, tuple) else (source,)
    assert len(sources) == count, one.text
    bits = f"b{kind[1:]}"

    def store(block: _Block, mask: Mask) -> None:
        lanes = block.lanes(mask)
        at, threads = block.addresses(target, lanes), block.registers.warps.shape
        own = [np.broadcast_to(block.registers.get(x, bits), threads)[lanes] for x in sources]
        words = np.stack(own, axis=1)
        if "global" in parts:
            block.memory.write(at, words, who=block.who(lanes))
        else:
            block.shared.write(at, words, warps=block.registers.warps[lanes])

    return store


def _copy(one: Instruction, parts: list[str]) -> Step:
    if "commit_group" in parts:
        return lambda block, mask: block.copies.append([])
    if "wait_group" in parts or "wait_all" in parts:
        assert "wait_group" in parts
        (left,) = one.operands
        assert isinstance(left, Number)
        return lambda block, mask: _finish(block.copies, left.bits)
    target, source, size, *given = one.operands
    assert isinstance(size, Number)

    def copy(block: _Block, mask: Mask) -> None:
        lanes = block.lanes(mask)
        to, origin = block.addresses(target, lanes), block.addresses(source, lanes)
        there = np.full(len(lanes), size.bits)
        if given:
            threads = block.registers.warps.shape
            there = np.broadcast_to(block.registers.get(given[0], "u32"), threads)[lanes].astype(
                int
            )
        who = block.who(lanes)
        assert np.isin(there, (0, size.bits)).all()

        def fetch() -> None:
            words = np.zeros((len(lanes), size.bits // 4), np.uint32)
            whole = there == size.bits
            if whole.any():
                own = replace(who, warps=who.warps[whole])
                words[whole] = block.memory.read(origin[whole], 4, size.bits // 4, who=own)
            block.shared.write(to, words, warps=who.warps)

        if not block.is_late:
            fetch()
        # A thread knows of its own copies when it has waited; others after the next barrier.
        block.copies[-1].append(fetch)

    return copy


def _finish(groups: list[list[Callable[[], None]]], left: int) -> None:
    """All but so many of the groups that are closed."""
    for group in groups[: len(groups) - 1 - left]:
        for one in group:
            one()
        group.clear()


def _barrier(one: Instruction, parts: list[str]) -> Step:
    def wait(block: _Block, mask: Mask) -> None:
        assert mask is None, "threads wait at a barrier that others do not reach"
        block.shared.epoch += 1

    assert parts[1] == "sync" and one.operands == (Number(0),), one.text
    return wait


def _shuffle(one: Instruction, parts: list[str]) -> Step:
    how = parts[2]
    target, source, by, clamp = one.operands[:4]

    def shuffle(block: _Block, mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        get, threads = block.registers.get, block.registers.warps.shape
        values, amount, given = (
            np.broadcast_to(get(x, "u32"), threads).astype(np.int64) for x in (source, by, clamp)
        )
        lane = np.arange(len(values)) % 32
        amount, bound, segment = amount & 31, given & 31, (given >> 8) & 31
        low, high = lane & segment, (lane & segment) | (bound & ~segment)
        place = {
            "up": lane - amount, "down": lane + amount, "bfly": lane ^ amount,
            "idx": low | (amount & ~segment),
        }[how]  # fmt: skip
        is_there = place >= high if how == "up" else place <= high
        place = np.where(is_there, place, lane) + np.arange(len(values)) // 32 * 32
        names = target if isinstance(target, tuple) else (target,)
        block.registers.set(names[0], "u32", values[place].astype(np.uint32), None)
        if len(names) == 2:
            block.registers.set(names[1], "pred", is_there, None)

    return shuffle


def _reduce(one: Instruction, parts: list[str]) -> Step:
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[parts[2]]
    target, source = one.operands[:2]

    def reduce(block: _Block, mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        values = np.broadcast_to(
            block.registers.get(source, parts[-1]), block.registers.warps.shape
        )
        found = function.reduce(values.reshape(-1, 32), axis=1, dtype=values.dtype)
        block.registers.set(target, parts[-1], np.repeat(found, 32), None)

    return reduce


def _matrices(one: Instruction, parts: list[str]) -> Step:
    """ldmatrix and stmatrix: 8 x 8 tiles of 16 bits, a row's address from each of 8 threads."""
    is_load, is_transposed = one.name.startswith("ldmatrix"), "trans" in parts
    target, source = one.operands if is_load else one.operands[::-1]
    names = target if isinstance(target, tuple) else (target,)
    lane = np.arange(32)

    def move(block: _Block, mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        warps = block.registers.warps
        every = block.addresses(source, np.arange(len(warps))).reshape(-1, 32)
        for index, name in enumerate(names):
            rows = every[:, 8 * index : 8 * index + 8]  # (warps, 8)
            own = np.repeat(np.arange(len(rows), dtype=np.int32), 8)
            row, column = np.broadcast_arrays(lane // 4, 2 * (lane % 4))
            if is_load:
                tiles = block.shared.read(rows.reshape(-1), 2, 8, warps=own).reshape(-1, 8, 8)
                if is_transposed:
                    tiles = tiles.swapaxes(1, 2)
                low, high = (tiles[:, row, column + half].astype(np.uint32) for half in (0, 1))
                block.registers.set(name, "u32", (low | high << 16).reshape(-1), None)
            else:
                words = block.registers.get(name, "u32").reshape(-1, 32)
                tiles = np.empty((len(rows), 8, 8), np.uint16)
                tiles[:, row, column], tiles[:, row, column + 1] = words & 0xFFFF, words >> 16
                if is_transposed:
                    tiles = tiles.swapaxes(1, 2)
                block.shared.write(rows.reshape(-1), tiles.reshape(-1, 8), warps=own)

    return move


def _words(block: _Block, operands: Operand, kind: str) -> NDArray[Any]:
    assert isinstance(operands, tuple)
    threads = block.registers.warps.shape
    return np.stack([np.broadcast_to(block.registers.get(x, kind), threads) for x in operands])


def _multiply_in_warps(one: Instruction, parts: list[str]) -> Step:
    assert parts[3:6] == ["m16n8k16", "row", "col"] and parts[-1] == "f32", one.text
    kind = parts[7]
    target, left, right, sums = one.operands

    def multiply(block: _Block, mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        a = products.a_of_words(_words(block, left, "u32"), kind)
        b = products.b_of_words(_words(block, right, "u32"), kind)
        found = products.sums_of_words(_words(block, sums, "f32")) + a @ b
        for name, word in zip(target, products.words_of_sums(found), strict=True):  # type: ignore[arg-type]
            block.registers.set(name, "f32", word, None)

    return multiply


def _multiply_in_groups(one: Instruction, parts: list[str]) -> Step:
    """wgmma: four warps together, one or both factors in shared memory."""
    if "commit_group" in parts:
        return lambda block, mask: block.multiplied.append([])
    if "wait_group" in parts:
        (left,) = one.operands
        assert isinstance(left, Number)
        return lambda block, mask: _finish(block.multiplied, left.bits)
    shape, kind = parts[4], parts[6]
    columns = int(shape.split("n")[1].split("k")[0])
    assert shape.startswith("m64") and shape.endswith("k16") and parts[5] == "f32", one.text
    target, a, b, goes_on, *scales = one.operands
    signs, transposed = scales[:2], scales[2:]
    assert signs == [Number(1)] * 2, one.text
    assert isinstance(target, tuple)

    def multiply(block: _Block, mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        warps = block.registers.warps

        def own(group: slice) -> NDArray[Any]:
            def tile(operand: Operand, rows: int, trans: Operand) -> NDArray[Any]:
                (descriptor,) = set(
                    np.broadcast_to(block.registers.get(operand, "u64"), warps.shape)[group]
                )
                found, touched = products.tile_at(
                    int(descriptor), rows, kind, block.shared, is_transposed=trans == Number(1)
                )
                block.shared.note_read(touched, -1)
                return found

            right = tile(b, columns, transposed[-1])
            if isinstance(a, tuple):
                left = products.a_of_words(_words(block, a, "u32")[:, group], kind).reshape(64, 16)
            else:
                left = tile(a, 64, transposed[0])
            return (left @ right.T).reshape(4, 16, columns)

        def compute() -> None:
            before = np.ones(len(warps), bool) & (
                bool(goes_on.bits)
                if isinstance(goes_on, Number)
                else block.registers.get(goes_on, "pred")
            )
            found = np.concatenate([own(slice(at, at + 128)) for at in range(0, len(warps), 128)])
            sums = np.where(before, _words(block, target, "f32"), 0)
            found = found + products.sums_of_words(sums.astype(np.float32))
            for name, word in zip(target, products.words_of_sums(found), strict=True):
                block.registers.set(name, "f32", word, None)

        if block.is_late:
            block.multiplied[-1].append(compute)
        else:
            compute()

    return multiply


def _prefetch(one: Instruction, parts: list[str]) -> Step:
    def look(block: _Block, mask: Mask) -> None:
        block.memory.check(block.addresses(one.operands[0], block.lanes(mask)))

    return look


def _wait_ahead(one: Instruction, parts: list[str]) -> Step:
    def wait(block: _Block, mask: Mask) -> None:
        block.has_waited = True

    return wait


_MAKERS: dict[str, Callable[[Instruction, list[str]], Step]] = {
    "bra": _jump, "ret": _return, "mov": _move, "setp": _compare, "ld": _load, "st": _store,
    "cp.async": _copy, "bar": _barrier, "shfl": _shuffle, "redux": _reduce, "ldmatrix": _matrices,
    "stmatrix": _matrices, "mma.sync": _multiply_in_warps, "wgmma": _multiply_in_groups,
    "prefetch": _prefetch, "griddepcontrol.wait": _wait_ahead,
}  # fmt: skip
