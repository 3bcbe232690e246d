"""What each instruction does to a block of threads, made once from its text (PTX ISA 8.7, chapter
9.7); arithmetic and tensor cores are beside this file."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptx import arithmetic
from ptx.products import matrices, multiply_in_groups, multiply_in_warps
from ptx.program import Address, Instruction, Number
from ptx.registers import Mask

if TYPE_CHECKING:
    from ptx.machine import Block

Step = Callable[["Block", Mask], None]
_NOTHING = (
    "griddepcontrol.launch", "bar.warp", "wgmma.fence",
    "bra", "ret",  # the machine's own
)  # fmt: skip


@cache
def step_of(one: Instruction) -> Step:
    parts = one.parts
    if one.name.startswith(_NOTHING):
        return lambda block, mask: None
    for prefix, make in _MAKERS.items():
        if one.name == prefix or one.name.startswith(prefix + "."):
            return make(one, parts)
    found = arithmetic.of(one.name, len(one.operands) - 1)
    if found is None:
        raise NotImplementedError(one.text)
    kinds, kind, function = found
    target, *sources = one.operands

    def compute(block: "Block", mask: Mask) -> None:
        get = block.registers.get
        values = [get(source, own) for source, own in zip(sources, kinds, strict=True)]
        block.registers.set(target, kind, function(*values), mask)

    return compute


def _move(one: Instruction, parts: list[str]) -> Step:
    kind = parts[-1]
    target, source = one.operands

    def apart(block: "Block", mask: Mask) -> None:
        assert isinstance(target, tuple)
        size = int(kind[1:]) // len(target)
        whole = np.ascontiguousarray(block.registers.each(source, kind))
        words = whole.view(f"u{size // 8}")
        for index, one in enumerate(target):
            block.registers.set(one, f"b{size}", words[index :: len(target)], mask)

    def together(block: "Block", mask: Mask) -> None:
        assert isinstance(source, tuple)
        size = int(kind[1:]) // len(source)
        words = [block.registers.each(one, f"b{size}") for one in source]
        both = np.ascontiguousarray(np.stack(words, axis=-1)).reshape(-1)
        block.registers.set(target, kind, both.view(f"u{size * len(source) // 8}"), mask)

    def alone(block: "Block", mask: Mask) -> None:
        block.registers.set(target, kind, block.registers.get(source, kind), mask)

    return apart if isinstance(target, tuple) else together if isinstance(source, tuple) else alone


def _compare(one: Instruction, parts: list[str]) -> Step:
    kind, function = arithmetic.comparison(one.name)
    target, *sources = one.operands
    assert len(sources) == 2, one.text

    def compare(block: "Block", mask: Mask) -> None:
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

    def parameter(block: "Block", mask: Mask) -> None:
        bits = block.arguments[block.program.parameters[str(source.base)]]
        value = np.array([bits & (2 ** (8 * width) - 1)], f"u{width}")
        block.registers.set(
            target, kind, value if kind[0] != "s" else value.view(f"i{width}"), mask
        )

    def memory(block: "Block", mask: Mask) -> None:
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

    def store(block: "Block", mask: Mask) -> None:
        lanes = block.lanes(mask)
        at = block.addresses(target, lanes)
        words = np.stack([block.registers.each(x, bits)[lanes] for x in sources], axis=1)
        if "global" in parts:
            block.memory.write(at, words, who=block.who(lanes))
        else:
            block.shared.write(at, words, warps=block.registers.warps[lanes])

    return store


def _copy(one: Instruction, parts: list[str]) -> Step:
    target, source, size, *given = one.operands
    assert isinstance(size, Number) and "shared" in parts, one.text

    def copy(block: "Block", mask: Mask) -> None:
        lanes = block.lanes(mask)
        to, origin = block.addresses(target, lanes), block.addresses(source, lanes)
        there = np.full(len(lanes), size.bits)
        if given:
            there = block.registers.each(given[0], "u32")[lanes].astype(int)
        who = block.who(lanes)
        assert np.isin(there, (0, size.bits)).all()

        def fetch() -> NDArray[np.uint32]:
            words = np.zeros((len(lanes), size.bits // 4), np.uint32)
            whole = there == size.bits
            if whole.any():
                own = replace(who, warps=who.warps[whole])
                words[whole] = block.memory.read(origin[whole], 4, size.bits // 4, who=own)
            return words

        block.shared.begin_copy(to, size.bits, warps=who.warps)
        early = None if block.is_late else fetch()
        # A thread knows of its own copies when it has waited; others after the next barrier.
        block.groups["cp"][-1].append(
            lambda: block.shared.end_copy(to, fetch() if early is None else early, warps=who.warps)
        )

    return copy


def _close(one: Instruction, parts: list[str]) -> Step:
    return lambda block, mask: block.close(parts[0], mask)


def _finish(one: Instruction, parts: list[str]) -> Step:
    (left,) = one.operands
    assert isinstance(left, Number)
    return lambda block, mask: block.finish(parts[0], left.bits, mask)


def _barrier(one: Instruction, parts: list[str]) -> Step:
    def wait(block: "Block", mask: Mask) -> None:
        assert mask is None, "threads wait at a barrier that others do not reach"
        block.shared.epoch += 1

    assert parts[1] == "sync" and one.operands == (Number(0),), one.text
    return wait


def _shuffle(one: Instruction, parts: list[str]) -> Step:
    how = parts[2]
    target, source, by, clamp, members = one.operands
    assert members == Number(-1), one.text

    def shuffle(block: "Block", mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        values, amount, given = (
            block.registers.each(x, "u32").astype(np.int64) for x in (source, by, clamp)
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
    target, source, members = one.operands

    def reduce(block: "Block", mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        assert (block.registers.get(members, "s32") == -1).all(), "not of a whole warp"
        values = block.registers.each(source, parts[-1])
        found = function.reduce(values.reshape(-1, 32), axis=1, dtype=values.dtype)
        block.registers.set(target, parts[-1], np.repeat(found, 32), None)

    return reduce


def _fence(one: Instruction, parts: list[str]) -> Step:
    def fence(block: "Block", mask: Mask) -> None:
        assert mask is None, "threads have parted"
        block.shared.fence()

    return fence


def _prefetch(one: Instruction, parts: list[str]) -> Step:
    def look(block: "Block", mask: Mask) -> None:
        block.memory.check(block.addresses(one.operands[0], block.lanes(mask)))

    return look


def _wait_ahead(one: Instruction, parts: list[str]) -> Step:
    def wait(block: "Block", mask: Mask) -> None:
        assert mask is None, "threads have parted"
        block.has_waited = True

    return wait


_MAKERS: dict[str, Callable[[Instruction, list[str]], Step]] = {
    "mov": _move, "setp": _compare, "ld": _load, "st": _store,
    "cp.async.commit_group": _close, "wgmma.commit_group": _close,
    "cp.async.wait_group": _finish, "wgmma.wait_group": _finish,
    "cp.async": _copy, "bar": _barrier, "shfl": _shuffle, "redux": _reduce, "ldmatrix": matrices,
    "stmatrix": matrices, "mma.sync": multiply_in_warps, "wgmma": multiply_in_groups,
    "fence.proxy.async": _fence, "prefetch": _prefetch, "griddepcontrol.wait": _wait_ahead,
}  # fmt: skip
