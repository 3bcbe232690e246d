"""Tensor cores: products of tiles that a warp, or four of them, hold among their threads."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptx.memory import SharedMemory
from ptx.program import Instruction, Number, Operand
from ptx.registers import Mask

if TYPE_CHECKING:
    from ptx.machine import Block

Floats = NDArray[np.float32]
_LANE = np.arange(32)
_ROW, _PAIR = _LANE // 4, 2 * (_LANE % 4)


def fragments(words: NDArray[np.uint32], kind: str) -> Floats:
    """(words, 2, threads) values of (words, threads) that each hold two."""
    halves = np.stack([words & 0xFFFF, words >> 16], axis=1).astype(np.uint16)
    return to_floats(halves, kind)


def to_floats(bits: NDArray[np.uint16], kind: str) -> Floats:
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def a_of_words(words: NDArray[np.uint32], kind: str) -> Floats:
    """(warps, 16, 16): what four words of each thread hold."""
    values = fragments(words, kind)  # (4, 2, threads)
    warps = words.shape[1] // 32
    own = values.reshape(4, 2, warps, 32)
    found = np.empty((warps, 16, 16), np.float32)
    for word in range(4):
        for half in range(2):
            found[:, _ROW + 8 * (word % 2), _PAIR + half + 8 * (word // 2)] = own[word, half]
    return found


def b_of_words(words: NDArray[np.uint32], kind: str) -> Floats:
    """(warps, 16, 8): what two words of each thread hold."""
    values = fragments(words, kind)
    warps = words.shape[1] // 32
    own = values.reshape(2, 2, warps, 32)
    found = np.empty((warps, 16, 8), np.float32)
    for word in range(2):
        for half in range(2):
            found[:, _PAIR + half + 8 * word, _ROW] = own[word, half]
    return found


def sums_of_words(words: Floats) -> Floats:
    """(warps, 16, columns) of (columns / 2, threads)."""
    count, threads = words.shape
    own = words.reshape(count, threads // 32, 32)
    found = np.empty((threads // 32, 16, 2 * count), np.float32)
    for word in range(count):
        rows, columns = _ROW + 8 * (word // 2 % 2), _PAIR + word % 2 + 8 * (word // 4)
        found[:, rows, columns] = own[word]
    return found


def words_of_sums(sums: Floats) -> Floats:
    warps, _, columns = sums.shape
    found = np.empty((columns // 2, warps, 32), np.float32)
    for word in range(columns // 2):
        rows, places = _ROW + 8 * (word // 2 % 2), _PAIR + word % 2 + 8 * (word // 4)
        found[word] = sums[:, rows, places]
    return found.reshape(columns // 2, warps * 32)


def places_of(
    descriptor: int, rows: int, shared: SharedMemory, *, is_transposed: bool
) -> NDArray[np.int64]:
    """(rows, 16): where the values lie that a wgmma's descriptor names, rows of M or N and 16 of K
    (PTX ISA, Matrix descriptor and its canonical layouts)."""
    start = (descriptor & 0x3FFF) << 4
    leading, stride = (((descriptor >> place) & 0x3FFF) << 4 for place in (16, 32))
    assert (descriptor >> 49) & 7 == 0, "base offset"
    swizzle = {0: 0, 1: 128, 2: 64, 3: 32}[(descriptor >> 62) & 3]
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if is_transposed:  # K outside: rows of K, `swizzle` bytes of M or N each
        assert swizzle, "no swizzle"
        wide = swizzle // 2
        at = start + row // wide * leading + k // 8 * stride + k % 8 * swizzle + row % wide * 2
    elif swizzle:
        at = start + row // 8 * stride + row % 8 * swizzle + k * 2
    else:
        at = start + row // 8 * stride + k // 8 * leading + row % 8 * 16 + k % 8 * 2
    if swizzle:
        at = at ^ ((at >> 7 & (swizzle // 16 - 1)) << 4)
    assert at.min() >= shared.base and at.max() < len(shared.data) - 1, "descriptor"
    return at


def matrices(one: Instruction, parts: list[str]) -> Callable[["Block", Mask], None]:
    """ldmatrix and stmatrix: 8 x 8 tiles of 16 bits, a row's address from each of 8 threads."""
    is_load, is_transposed = one.name.startswith("ldmatrix"), "trans" in parts
    target, source = one.operands if is_load else one.operands[::-1]
    names = target if isinstance(target, tuple) else (target,)
    lane = np.arange(32)

    def move(block: "Block", mask: Mask) -> None:
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


def _words(block: "Block", operands: Operand, kind: str) -> NDArray[Any]:
    assert isinstance(operands, tuple)
    return np.stack([block.registers.each(x, kind) for x in operands])


def multiply_in_warps(one: Instruction, parts: list[str]) -> Callable[["Block", Mask], None]:
    assert parts[3:6] == ["m16n8k16", "row", "col"] and parts[-1] == "f32", one.text
    kind = parts[7]
    target, left, right, sums = one.operands

    def multiply(block: "Block", mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        a = a_of_words(_words(block, left, "u32"), kind)
        b = b_of_words(_words(block, right, "u32"), kind)
        found = sums_of_words(_words(block, sums, "f32")) + a @ b
        for name, word in zip(target, words_of_sums(found), strict=True):  # type: ignore[arg-type]
            block.registers.set(name, "f32", word, None)

    return multiply


def multiply_in_groups(one: Instruction, parts: list[str]) -> Callable[["Block", Mask], None]:
    """wgmma: four warps together, one or both factors in shared memory."""
    shape, kind = parts[4], parts[6]
    columns = int(shape.split("n")[1].split("k")[0])
    assert shape.startswith("m64") and shape.endswith("k16") and parts[5] == "f32", one.text
    target, a, b, goes_on, *scales = one.operands
    signs, transposed = scales[:2], scales[2:]
    assert signs == [Number(1)] * 2, one.text
    assert isinstance(target, tuple)

    def multiply(block: "Block", mask: Mask) -> None:
        assert mask is None, "a warp has parted"
        number, shared = len(block.groups["wgmma"]), block.shared
        (before,) = _words(block, (goes_on,), "pred")

        def places(operand: Operand, rows: int, trans: Operand) -> NDArray[np.int64]:
            """(groups, rows, 16)"""
            found = []
            for own in _words(block, (operand,), "u64").reshape(-1, 128):
                (descriptor,) = set(own.tolist())
                found.append(places_of(descriptor, rows, shared, is_transposed=trans == Number(1)))
            return np.stack(found)

        right = places(b, columns, transposed[-1])
        left = None if isinstance(a, tuple) else places(a, 64, transposed[0])
        read = right if left is None else np.concatenate([left, right], axis=1)
        touched = np.stack([read, read + 1]).reshape(-1)
        shared.begin_product(touched, number)

        def compute() -> None:
            values = shared.data.view(np.uint16)
            if left is None:
                own = a_of_words(_words(block, a, "u32"), kind).reshape(-1, 64, 16)
            else:
                own = to_floats(values[left // 2], kind)
            found = own @ to_floats(values[right // 2], kind).swapaxes(1, 2)
            sums = np.where(before, _words(block, target, "f32"), np.float32(0))
            every = found.reshape(-1, 16, columns) + sums_of_words(sums)
            for name, word in zip(target, words_of_sums(every), strict=True):
                block.registers.set(name, "f32", word, None)

        def finish() -> None:
            if block.is_late:
                compute()
            shared.end_product(touched, number)

        if not block.is_late:
            compute()
        block.groups["wgmma"][-1].append(finish)

    return multiply
