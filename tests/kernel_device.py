"""Where kernels are tested: on a GPU, or by Triton's interpreter on CPU tensors, whose bfloat16 is
mended first (it cuts where hardware rounds to the nearest, and multiplies bit patterns)."""

from typing import Any

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def mend_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test; does nothing on a GPU."""
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    own_cast, own_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast(self: Any, src: Any, to: Any) -> Any:
        if src.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            exact = torch.from_numpy(np.ascontiguousarray(src.data))
            rounded = exact.to(torch.bfloat16).view(torch.uint16).numpy()
            return TensorHandle(rounded, tl.bfloat16)
        return own_cast(self, src, to)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (cast(self, x, tl.float32) for x in (a, b))
        return own_dot(self, a, b, *rest)

    for name in ("cast_impl", "create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(InterpreterBuilder, name, cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
