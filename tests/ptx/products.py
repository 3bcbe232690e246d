"""Tensor cores: products of tiles that a warp, or four of them, hold among their threads."""

import numpy as np
from numpy.typing import NDArray

from ptx.memory import SharedMemory

Floats = NDArray[np.float32]
_LANE = np.arange(32)
_ROW, _PAIR = _LANE // 4, 2 * (_LANE % 4)


def fragments(warps: int, words: NDArray[np.uint32], kind: str) -> Floats:
    """(words, 2, threads) values of (words, threads) that each hold two."""
    halves = np.stack([words & 0xFFFF, words >> 16], axis=1).astype(np.uint16)
    return to_floats(halves, kind)


def to_floats(bits: NDArray[np.uint16], kind: str) -> Floats:
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def a_of_words(words: NDArray[np.uint32], kind: str) -> Floats:
    """(warps, 16, 16): what four words of each thread hold."""
    values = fragments(1, words, kind)  # (4, 2, threads)
    warps = words.shape[1] // 32
    own = values.reshape(4, 2, warps, 32)
    found = np.empty((warps, 16, 16), np.float32)
    for word in range(4):
        for half in range(2):
            found[:, _ROW + 8 * (word % 2), _PAIR + half + 8 * (word // 2)] = own[word, half]
    return found


def b_of_words(words: NDArray[np.uint32], kind: str) -> Floats:
    """(warps, 16, 8): what two words of each thread hold."""
    values = fragments(1, words, kind)
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


def tile_at(
    descriptor: int, rows: int, kind: str, shared: SharedMemory, *, is_transposed: bool
) -> tuple[Floats, NDArray[np.int64]]:
    """((rows, 16) values, the bytes that they were in) of what a wgmma's descriptor names: rows
    of M or N, 16 of K (PTX ISA, Matrix descriptor and its canonical layouts)."""
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
    touched = (at[..., None] + np.arange(2)).reshape(-1)
    assert touched.min() >= shared.base and touched.max() < len(shared.data), "descriptor"
    return to_floats(shared.data.view(np.uint16)[at // 2], kind), touched
