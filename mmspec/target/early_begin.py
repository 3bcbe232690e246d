"""Whether kernels that begin before the one ahead has ended say the same, sooner: tried on a
model's own blocks, when it is loaded."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmspec.target.parts import Added, Entered, Shares
from mmspec.target.tilings import Tilings

logger = logging.getLogger(__name__)
_ROWS = (1, 16)
_LEAST_BYTES = 2**28  # of weights read by one run: several times the cache
_GAINED, _SAME = 0.99, 1.02  # of the time in a row: at some number of rows, and at the others


class Half(Protocol):
    """The second half of a block."""

    @property
    def like(self) -> Tensor: ...

    @property
    def half_bytes(self) -> int: ...

    def gated(self, states: Tensor, added: Added | None) -> Entered: ...

    def down(self, product: Tensor) -> Added: ...


def pays(
    halves: Sequence[Half], tilings: Tilings, clock: Callable[[Callable[[], object]], float]
) -> bool:
    """`clock` tells the time of a run, which it repeats as it will be: in a graph. Leaves
    `tilings.is_early` as it was."""
    before = tilings.is_early
    try:
        shares = [_share_of_time(rows, halves, tilings, clock) for rows in _ROWS]
    finally:
        tilings.is_early = before
    if None in shares:
        logger.warning("kernels that begin early say something else on this GPU; none does")
    told = [share for share in shares if share is not None]
    return len(told) == len(shares) and min(told) < _GAINED and max(told) < _SAME


def _share_of_time(
    rows: int,
    halves: Sequence[Half],
    tilings: Tilings,
    clock: Callable[[Callable[[], object]], float],
) -> float | None:
    """Of early ones, in that of the others; None where they say something else."""
    first = halves[0]
    some = halves[: -(-_LEAST_BYTES // max(first.half_bytes, 1))]
    states = torch.randn(1, rows, len(first.like), device=first.like.device).to(first.like.dtype)
    last: list[Tensor] = []

    def run() -> None:
        stream = states
        added: Added | None = None
        for half in some:
            stream, product = half.gated(stream, added)
            added = half.down(product)
        if added is not None:
            last[:] = [stream, added.each if isinstance(added, Shares) else added]

    times, made = [], []
    for tilings.is_early in (False, True):
        times.append(clock(run))
        made.append([tensor.contiguous().view(torch.uint8).clone() for tensor in last])
    # By bytes: float16 may overflow on such states, and NaN is not equal to itself.
    are_equal = all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    return times[1] / times[0] if are_equal else None
