"""Kernels that begin before the one ahead of them has ended: programmatic dependent launch, from
Hopper on.

A kernel says at its begin that the next one may come as soon as there is room, and waits before it
reads or writes what others do. What it does ahead of that takes no time: fetching weights, most of
all. Each of them waits, so all that came before one has ended when it goes on; a kernel that knows
nothing of this waits for the whole of the one ahead, as always.
"""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

import os

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE = 128  # bytes that the cache fetches together
_HOPPER = (9, 0)


def can_begin_early(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and os.environ.get("TRITON_INTERPRET") != "1"
        and torch.cuda.get_device_capability(device) >= _HOPPER
    )


def launch_options(is_early: bool, *, fuses: bool = True) -> dict[str, bool]:
    """For the launch of a kernel that has IS_EARLY. One that `fuses` rounds a product and the sum
    it goes into once; what Triton does unasked depends on its version."""
    early = {"launch_pdl": True} if is_early else {}
    return {"IS_EARLY": is_early, "enable_fp_fusion": fuses, **early}


@triton.jit
def let_next_begin(IS_EARLY: tl.constexpr):
    if IS_EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(IS_EARLY: tl.constexpr):
    if IS_EARLY:
        gdc_wait()


@triton.jit
def fetch(addresses):
    """The lines at these addresses into the cache that all programs share, without waiting."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [addresses],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
