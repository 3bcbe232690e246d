"""The values of a block's threads: read as what an instruction takes them for, and written back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.program import Number, Operand, Program, Register, Special

Values = NDArray[Any]  # (threads,), or (2, threads) of a type that holds two
Mask = NDArray[np.bool_] | None  # None: all threads

TYPES: dict[str, type] = {
    **{f"{letter}{8 * size}": np.dtype(f"{kind}{size}").type
       for letter, kind in (("b", "u"), ("u", "u"), ("s", "i")) for size in (1, 2, 4, 8)},
    "f32": np.float32, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip
_SIZES = {"bf16": 2, "f16": 2, "bf16x2": 4, "f16x2": 4, "f32x2": 8}  # of what numpy lacks
_HOLDERS: dict[str, type] = {"p": np.bool_, "rs": np.uint16, "r": np.uint32, "rd": np.uint64}


class Registers:
    def __init__(self, program: Program, block: tuple[int, ...], grid: tuple[int, ...], base: int):
        self._files = {  # NaN, -1 or true: nobody wrote them
            kind: ~np.zeros((count, program.threads), _HOLDERS[kind])
            for kind, count in program.registers.items()
        }
        thread = np.arange(program.threads, dtype=np.uint32)
        self._special: dict[str, Any] = {"tid.x": thread}
        for axis, here, size in zip("xyz", block, grid, strict=True):
            self._special[f"ctaid.{axis}"] = np.uint32(here)
            self._special[f"nctaid.{axis}"] = np.uint32(size)
        self._symbols = {"global_smem": base}
        self.warps = (thread // 32).astype(np.int32)

    def get(self, operand: Operand, kind: str) -> Values:
        if isinstance(operand, Register):
            return _as_type(self._files[operand.kind][operand.index], kind)
        if isinstance(operand, Number):
            return _as_type(_bits(operand, kind), kind)[..., 0:1]
        if isinstance(operand, Special):
            return np.broadcast_to(self._special[operand.name], self.warps.shape)
        if isinstance(operand, str):
            return np.full(1, self._symbols[operand], TYPES[kind])
        raise NotImplementedError(operand)

    def each(self, operand: Operand, kind: str) -> Values:
        """(threads,): a value for each, where all have the same, too."""
        return np.broadcast_to(self.get(operand, kind), self.warps.shape)

    def set(self, operand: Operand, kind: str, values: Values, mask: Mask) -> None:
        if isinstance(operand, str):  # `_`, or a name that only drops it
            return
        assert isinstance(operand, Register), operand
        row = self._files[operand.kind][operand.index]
        bits = _as_bits(values, kind, row.dtype)
        if mask is None:
            row[:] = bits
        else:
            np.copyto(row, bits, where=mask)


def _bits(number: Number, kind: str) -> Values:
    size = _SIZES.get(kind) or np.dtype(TYPES[kind]).itemsize
    unsigned = np.dtype(f"u{size}")
    return np.array([number.bits & (2 ** (8 * size) - 1)], unsigned)


def _as_type(row: Values, kind: str) -> Values:
    if kind == "bf16":
        return (row.astype(np.uint32) << 16).view(np.float32)
    if kind == "f16":
        return row.view(np.float16).astype(np.float32)
    if kind.endswith("x2"):
        both = row.view(f"u{_SIZES[kind] // 2}")
        return np.stack([_as_type(both[half::2], kind[:-2]) for half in (0, 1)])
    dtype = np.dtype(TYPES[kind])
    if dtype.itemsize < row.dtype.itemsize:
        row = row.astype(f"u{dtype.itemsize}")
    return row if dtype == row.dtype else row.view(dtype)


def _as_bits(values: Values, kind: str, holder: Any) -> Values:
    if kind.endswith("x2"):
        half_holder = np.dtype(f"u{holder.itemsize // 2}")
        both = [_as_bits(half, kind[:-2], half_holder) for half in values]
        return np.stack(both, axis=-1).reshape(-1).view(holder)
    if kind == "bf16":
        return rounded_to_bfloat16(values)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if values.dtype.itemsize == holder.itemsize:
        return values if values.dtype == holder else values.view(holder)
    if values.dtype.kind == "i":
        return values.astype(f"i{holder.itemsize}").view(holder)
    return values.astype(holder)


def rounded_to_bfloat16(values: Values) -> Values:
    """To the nearest, the even one of two."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)
