"""Triton kernels on CPU tensors, where there is no GPU: import this before what imports triton.
With `pytest --compiled` they are compiled and run by a machine of ours, else interpreted.

Three things are mended that Triton's interpreter does otherwise than a GPU: a scalar is an array of
one element, which numpy 2.4 takes for no integer; bfloat16 is cut, not rounded to the nearest, and
multiplied as if its bits were an integer's; and a comparison of scalars, spread over a mask, makes
integers of it, which Triton 3.9 takes for no mask.

And what it makes anew for each operation or call of a function is made once, which takes half of
the time: shapes, and the language's functions as they are interpreted.
"""

import inspect
import os
from functools import cache, wraps
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels are tested
IS_INTERPRETED = triton.knobs.runtime.interpret  # else they are compiled (tests/ptx)
# Whose `run` launches a kernel, for tests that count or record that.
LAUNCHER = InterpretedFunction if IS_INTERPRETED else JITFunction

_patch_tensor = interpreter._patch_lang_tensor
_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


@wraps(_patch_tensor)
def _patch_with_index(tensor: Any, scope: Any) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _rounding_cast(self: Any, source: Any, to: Any) -> Any:
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        exact = torch.from_numpy(np.ascontiguousarray(source.data))
        return TensorHandle(exact.bfloat16().view(torch.uint16).numpy(), tl.bfloat16)
    return _cast(self, source, to)


def _wide_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (_rounding_cast(self, x, tl.float32) for x in (a, b))
    return _dot(self, a, b, *rest)


def _splat(self: Any, type: Any, scalar: Any) -> Any:
    return TensorHandle(np.full(type.shape, scalar.data, scalar.data.dtype), scalar.dtype.scalar)


_patch_lang, _patched = interpreter._patch_lang, set[int]()


def _patch_once(fn: Any) -> Any:
    """Within a launch the language is patched already, for the functions that a kernel calls."""
    langs = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
    if langs <= _patched:
        return interpreter._LangPatchScope()
    scope = _patch_lang(fn)
    restore = scope.restore
    _patched.update(langs)

    def restored() -> None:
        _patched.clear()
        restore()

    scope.restore = restored
    return scope


@cache
def _builtins(package: Any) -> list[tuple[str, Any]]:
    members = inspect.getmembers(package)
    return [(name, member) for name, member in members if tl.core.is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    for name, member in _builtins(package):
        interpreter._patch_attr(package, name, member, builder, scope)


class _Shape(tl.tuple):  # type: ignore[misc]
    """Two of the same sizes are one object: that they are equal is seen at once."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        self.text = str(tl.tuple(sizes))
        self.count = tl.core.validate_block_shape(sizes)
        self.constants = tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(self.count)

    def __eq__(self, other: object) -> Any:
        return self is other or self.values == list(other)  # type: ignore[call-overload]


_shape = cache(_Shape)


def _init_block(self: Any, element_ty: Any, shape: Any) -> None:
    known = _shape(tuple(map(tl.core._unwrap_if_constexpr, shape)))
    if not known.values:
        raise TypeError("0d block_type is forbidden")
    self.element_ty, self.shape, self.numel = element_ty, known, known.count
    self.name = f"<{known.text}, {element_ty}>"


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = (type.shape if type.is_block() else _shape(())).constants


_of_scalars = cache(interpreter._get_np_dtype)


def _as_numpys(type: Any) -> Any:
    is_address = isinstance(type.scalar, tl.pointer_type)
    return _of_scalars(tl.uint64 if is_address else type.scalar)


if IS_INTERPRETED:
    interpreter._patch_lang = _patch_once
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _as_numpys
    tl.block_type.__init__, tl.tensor.__init__ = _init_block, _init_tensor
    interpreter._patch_lang_tensor = _patch_with_index
    for name in ("cast_impl", "create_fp_trunc", "create_fp_ext"):
        setattr(InterpreterBuilder, name, _rounding_cast)
    InterpreterBuilder.create_dot, InterpreterBuilder.create_splat = _wide_dot, _splat
