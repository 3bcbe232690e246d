"""What instructions compute, each from the values of its operands (PTX ISA 8.7, chapter 9.7).

The rounded ones are exact, so their bits are those of a GPU; what PTX calls approximate
(`ex2.approx` and the like) is rounded to the nearest here, which no GPU promises.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def of(name: str, count: int) -> tuple[list[str], str, Callable[..., Values]] | None:
    """(types of the `count` operands, of the result, what it computes); None: not known here."""
    op, *rest = name.split(".")
    kind = rest[-1] if rest else ""
    is_mixed = op in ("add", "sub", "fma") and rest[-2:-1] == ["f32"]  # 16 bits into a sum of 32
    if not set(rest[: -2 if op == "cvt" or is_mixed else -1]) <= _SUFFIXES:
        return None
    if is_mixed:
        own = _FLOATS.get(op, _fused32)
        return [kind] * (count - 1) + ["f32"], "f32", _as_floats(own, rest)
    if op == "cvt":
        to, source = rest[-2], rest[-1]
        return [source] * (2 if to.endswith("x2") else 1), to, _conversion(to, source, rest[:-2])
    if op == "selp":
        return [kind, kind, "pred"], kind, lambda a, b, p: np.where(p, a, b)
    if op == "mul" and "wide" in rest:
        wide = _WIDER[kind]
        return [kind] * 2, wide, lambda a, b: a.astype(_DTYPES[wide]) * b.astype(_DTYPES[wide])
    if op == "mad" and "wide" in rest:
        wide = _WIDER[kind]
        return (
            [kind, kind, wide],
            wide,
            lambda a, b, c: a.astype(_DTYPES[wide]) * b.astype(_DTYPES[wide]) + c,
        )
    if op == "mul" and "hi" in rest:
        return [kind] * 2, kind, _high_product
    if op in ("shl", "shr"):
        return [kind, "u32"], kind, _shift_left if op == "shl" else _shift_right
    if op == "prmt":
        return [kind] * 3, kind, _permuted
    if op == "bfe":
        return [kind, "u32", "u32"], kind, _field
    if op == "fma":
        fused = {"f32": _fused32, "f32x2": _fused32, "f64": _fused64}.get(kind, _fused16)
        return [kind] * 3, kind, _as_floats(fused, rest)
    if op == "mad":
        return [kind] * 3, kind, lambda a, b, c: a * b + c
    if op in _FLOATS and kind[0] in "fb" and kind not in ("b16", "b32", "b64"):
        return [kind] * count, kind, _as_floats(_FLOATS[op], rest)
    if op in _INTEGERS:
        return [kind] * count, kind, _INTEGERS[op]
    return None


def comparison(name: str) -> tuple[str, Callable[[Values, Values], Values]]:
    """(type, what it computes) of `setp`."""
    _, how, kind = name.split(".")
    if kind[0] == "f" or kind.startswith("bf"):
        return kind, _FLOAT_COMPARISONS[how]
    return kind, _COMPARISONS[how]


_DTYPES = {"s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64}
_WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


_SUFFIXES = {"rn", "ftz", "approx", "full", "lo", "hi", "wide", "rzi", "rpi"}
_NAN = np.array([0x7FFFFFFF], np.uint32).view(np.float32)  # the one that a GPU makes


def _as_floats(function: Callable[..., Values], suffixes: list[str]) -> Callable[..., Values]:
    """With the subnormals and the NaN of a GPU."""
    flush = _flushed if "ftz" in suffixes else lambda values: values

    def compute(*operands: Values) -> Values:
        found = flush(function(*map(flush, operands)))
        return np.where(found == found, found, _NAN) if found.dtype == np.float32 else found

    return compute


def _flushed(values: Values) -> Values:
    tiny = np.finfo(values.dtype).tiny
    return np.where(np.abs(values) < tiny, np.copysign(values.dtype.type(0), values), values)


def _high_product(a: Values, b: Values) -> Values:
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    assert a.dtype.itemsize == 4
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def _shift_left(a: Values, by: Values) -> Values:
    bits = 8 * a.dtype.itemsize
    kept = np.minimum(by, bits - 1).astype(a.dtype)
    return np.where(by >= bits, a.dtype.type(0), a << kept)


def _shift_right(a: Values, by: Values) -> Values:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by >= bits, a.dtype.type(0), shifted)


def _field(a: Values, place: Values, length: Values) -> Values:
    bits = 8 * a.dtype.itemsize
    place, length = (np.asarray(x, np.int64) & 0xFF for x in (place, length))
    wide = a.astype(np.int64) if a.dtype.kind == "i" else a.astype(np.uint64)
    top = np.minimum(place + length - 1, bits - 1)
    shifted = wide >> np.minimum(place, 63).astype(wide.dtype)
    kept = shifted & ((wide.dtype.type(1) << length.astype(wide.dtype)) - wide.dtype.type(1))
    if a.dtype.kind == "i":
        sign = (wide >> top) & 1
        kept = np.where((sign == 1) & (length > 0), kept | (np.int64(-1) << length), kept)
    return kept.astype(a.dtype)


def _permuted(a: Values, b: Values, selector: Values) -> Values:
    """Four of eight bytes, each by four bits of the selector; the fourth: its sign, eight times."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    found = np.zeros(1, np.uint64)
    for place in range(4):
        nibble = selector.astype(np.uint64) >> np.uint64(4 * place) & np.uint64(15)
        byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        signs = np.where(byte >> np.uint64(7) == 1, np.uint64(255), np.uint64(0))
        byte = np.where(nibble > 7, signs, byte)
        found = found | byte << np.uint64(8 * place)
    return found.astype(np.uint32)


def _two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Values, b: Values) -> tuple[Values, Values]:
    """Dekker's, after Veltkamp's splitting."""

    def halves(x: Values) -> tuple[Values, Values]:
        c = 134217729.0 * x
        high = c - (c - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = halves(a), halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _odd_sum(a: Values, b: Values) -> Values:
    """Of float64, rounded to odd: rounding it again loses nothing."""
    return _to_odd(*_two_sum(a, b))


def _to_odd(near: Values, rest: Values) -> Values:
    """near + rest, where near is that sum to the nearest."""
    bits = np.ascontiguousarray(near).view(f"u{near.dtype.itemsize}")
    towards = np.nextafter(near, np.where(rest > 0, np.inf, -np.inf).astype(near.dtype))
    return np.where((rest != 0) & (bits % 2 == 0) & np.isfinite(near), towards, near)


def _fused64(a: Values, b: Values, c: Values) -> Values:
    """Rounded once (Boldo and Melquiond, Emulation of FMA, 2008)."""
    high, low = _two_product(a, b)
    t, t_low = _two_sum(c, low)
    v, v_low = _two_sum(high, t)
    plain = a * b + c
    exact = v + _odd_sum(t_low, v_low)
    return np.where(np.isfinite(plain) & np.isfinite(exact), exact, plain)


def _fused16(a: Values, b: Values, c: Values) -> Values:
    """As a float32 whose rounding loses nothing."""
    exact = _odd_sum(a.astype(np.float64) * b, c.astype(np.float64))
    near = exact.astype(np.float32)
    return _to_odd(near, exact - near)


def _fused32(a: Values, b: Values, c: Values) -> Values:
    return _odd_sum(a.astype(np.float64) * b, c.astype(np.float64)).astype(np.float32)


def _quotient(a: Values, b: Values) -> Values:
    """Towards zero; a GPU gives all ones for a division by zero."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    found = np.abs(a.astype(np.int64)) // np.abs(safe.astype(np.int64))
    found = np.where((a < 0) != (safe < 0), -found, found)
    return np.where(b == 0, -1, found).astype(a.dtype)


def _reciprocal(a: Values) -> Values:
    """Of float64, the upper 32 bits of which are all that it reads and gives."""
    return _upper(1 / _upper(a))


def _upper(a: Values) -> Values:
    return (np.ascontiguousarray(a).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(
        np.float64
    )


def _ones(a: Values) -> Values:
    return np.unpackbits(a.reshape(-1, 1).view(np.uint8), axis=1).sum(axis=1, dtype=np.uint32)


def _conversion(to: str, source: str, suffixes: list[str]) -> Callable[..., Values]:
    def to_float(values: Values) -> Values:
        return values.astype(np.float64 if to == "f64" else np.float32)

    if to.endswith("x2"):  # the first operand is the upper half
        return lambda high, low: np.stack(np.broadcast_arrays(low, high))
    if source in ("bf16", "f16", "f32", "f64"):
        if "rpi" in suffixes:
            return _as_floats(np.ceil, suffixes)
        if to[0] in "fb" and to not in ("b16", "b32"):
            return to_float
        assert (to, source, suffixes) == ("s32", "f32", ["rzi"])
        return lambda values: np.clip(
            np.nan_to_num(np.trunc(values).astype(np.float64)), -(2**31), 2**31 - 1
        ).astype(np.int32)
    if to[0] == "f":
        return to_float
    bits = np.dtype(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
    return lambda values: values.astype(bits)


def _extreme(function: Callable[..., Values], zero: Callable[..., Values]) -> Callable[..., Values]:
    """Of two or three. Of 0 and -0 the first is the larger."""

    def compute(a: Values, b: Values) -> Values:
        return np.where(a == b, zero(a.view("u4"), b.view("u4")).view("f4"), function(a, b))

    return lambda *operands: reduce(compute, operands)


_FLOATS: dict[str, Callable[..., Values]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "min": _extreme(np.fmin, np.bitwise_or), "max": _extreme(np.fmax, np.bitwise_and),
    "neg": np.negative, "abs": np.abs, "ex2": np.exp2, "rcp": _reciprocal,
    "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(a.dtype),
}  # fmt: skip
_INTEGERS: dict[str, Callable[..., Values]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _quotient,
    "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "not": np.bitwise_not, "popc": _ones, "neg": np.negative, "abs": np.abs,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


def _nan(a: Values, b: Values) -> Values:
    return np.isnan(a) | np.isnan(b)


_FLOAT_COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    **_COMPARISONS,
    "ne": lambda a, b: (a != b) & ~_nan(a, b),
    "nan": _nan,
    "num": lambda a, b: ~_nan(a, b),
    **{
        f"{name}u": lambda a, b, how=how: how(a, b) | _nan(a, b)
        for name, how in _COMPARISONS.items()
    },
}  # fmt: skip
