"""Triton kernels on CPU tensors, where there is no GPU: import this before what imports triton.

Two things are mended that its interpreter does otherwise than a GPU: a scalar is an array of one
element, which numpy 2.4 takes for no integer; and bfloat16 is cut, not rounded to the nearest, and
multiplied as if its bits were an integer's.
"""

import os
from functools import wraps
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels are tested

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


interpreter._patch_lang_tensor = _patch_with_index
for name in ("cast_impl", "create_fp_trunc", "create_fp_ext"):
    setattr(InterpreterBuilder, name, _rounding_cast)
InterpreterBuilder.create_dot = _wide_dot
