"""What tensor cores see of shared memory. From Hopper on they read it by a way of their own, where
a copy is sure to show only behind a fence; Triton before 3.7.1 sets none behind asynchronous copies
(its pull requests 9610 and 10537)."""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from packaging.version import Version
from triton.language.target_info import cuda_capability_geq

_SETS_NONE = tl.constexpr(Version(triton.__version__).release < (3, 7, 1))


@triton.jit
def let_tensor_cores_see():
    """To be called between a loop's reads and its first product."""
    if _SETS_NONE:
        if cuda_capability_geq(9, 0):
            tl.inline_asm_elementwise(
                "fence.proxy.async.shared::cta; mov.u32 $0, 0;",
                "=r",
                [],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
