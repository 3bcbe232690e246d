"""Linear layers at few rows: each weight is read once, at the memory's speed, whole rows at a time.

A library's product is tiled for many rows. Here a program computes some outputs of all rows, and
layers that read the same states share one launch, without their weights being copied together.
"""

# What a kernel is given has no type before it is compiled.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.attention.kernels.early import (
    LINE,
    fetch,
    launch_options,
    let_next_begin,
    wait_for_previous,
)
from mmspec.attention.kernels.fence import let_tensor_cores_see
from mmspec.target.kernels.arguments import launching
from mmspec.target.kernels.gate import activate
from mmspec.target.parts import Activation

PADDED_ROWS = (1, 16, 64)
MAX_ROWS = PADDED_ROWS[-1]
MAX_LAYERS = 3
_EARLY_BYTES = 2**24  # of weights, fetched while the kernel ahead ends: some 4 microseconds
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # what tensor cores multiply


@dataclass(frozen=True)
class Tiling:
    """What one program reads at a time."""

    outputs: int  # power of two; 16 or more beside several rows
    inputs: int  # power of two, 16 or more
    warps: int
    stages: int  # loads under way at the same time
    shares: int = 1  # programs that divide an output's inputs among them


def multiply(
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    tiling: Tiling,
    *,
    is_early: bool = False,
) -> Tensor:
    """Up to 3 linear layers of `rows` (rows, in_features), at most 64, by weights (out_features,
    in_features) of its dtype and biases (out_features,), of all or none -> (rows, all
    out_features). Sums in float32, one rounding; of a tiling with shares, which takes no biases,
    (shares, rows, all out_features) float32, their sum not yet made."""
    rows = rows.contiguous()
    count, width = rows.shape
    sizes = [weight.shape[0] for weight in weights]
    shares = tiling.shares
    assert shares == 1 or biases is None, "a bias is added once"
    out = rows.new_empty(count, sum(sizes))
    if shares > 1:
        out = rows.new_empty(shares, count, sum(sizes), dtype=torch.float32)
    absent = [0] * (MAX_LAYERS - len(sizes))
    held = [*weights, *[weights[0] for _ in absent]]
    added = held if biases is None else [*biases, *[biases[0] for _ in absent]]
    tiles = sum(triton.cdiv(size, tiling.outputs) for size in sizes)
    with launching(rows):
        _multiply[(tiles, shares)](
            rows,
            *held,
            *added,
            out,
            count,
            *sizes,
            *absent,
            sum(sizes),
            LAYERS=len(sizes),
            HAS_BIAS=biases is not None,
            SHARES=shares,
            **_early(tiles * shares, rows, tiling, is_early=is_early),
            **_tile(count, width, tiling),
        )
    return out


def multiply_gated(
    rows: Tensor,
    gate: Tensor,
    up: Tensor,
    *,
    tiling: Tiling,
    activation: Activation,
    is_early: bool = False,
) -> Tensor:
    """activation(rows @ gate.T) * (rows @ up.T): (rows, in_features) -> (rows, out_features).
    Rounded where two layers and two more operations round."""
    rows = rows.contiguous()
    count, width = rows.shape
    size = gate.shape[0]
    out = rows.new_empty(count, size)
    tiles = triton.cdiv(size, tiling.outputs)
    with launching(rows):
        _multiply_gated[(tiles,)](
            rows,
            gate,
            up,
            out,
            count,
            size,
            ACTIVATION=activation,
            **_early(2 * tiles, rows, tiling, is_early=is_early),
            **_tile(count, width, tiling),
        )
    return out


def _early(tiles: int, rows: Tensor, tiling: Tiling, *, is_early: bool) -> dict[str, object]:
    if not is_early:
        return {"EARLY": 0, "EARLY_LINES": 0, **launch_options(is_early)}
    line = LINE // rows.element_size()
    columns = _EARLY_BYTES // (tiles * tiling.outputs * rows.element_size())
    share = -(-rows.shape[1] // tiling.shares)
    most = triton.next_power_of_2(share) // 2  # within a weight's row
    columns = max(min(1 << columns.bit_length() >> 1, most), line)
    return {"EARLY": columns, "EARLY_LINES": columns // line, **launch_options(is_early)}


def padded_rows(count: int) -> int:
    """What so many rows are computed as: few numbers, each of which is compiled and measured."""
    return next(padded for padded in PADDED_ROWS if count <= padded)


def _tile(count: int, width: int, tiling: Tiling) -> dict[str, object]:
    return {
        "WIDTH": width,  # constant: a loop whose length the compiler knows
        "ROWS": padded_rows(count),
        "OUTPUTS": tiling.outputs,
        "INPUTS": tiling.inputs,
        "STAGES": tiling.stages,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


@triton.jit
def _products(
    rows,
    weight,
    other,
    tile,
    count,
    size,
    IS_PAIR: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,  # columns of each weight that are fetched ahead, if IS_EARLY
    EARLY_LINES: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """One tile of weight @ rows.T in float32, (OUTPUTS, ROWS), and of other @ rows.T, for which
    the rows are not read again; where there is no pair, the first one twice. Of SHARES programs
    each sums up some of the inputs."""
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    # Beyond the last output the last one is read again: whole loads without a mask.
    first = tl.minimum(output, size - 1).to(tl.int64)[:, None] * WIDTH
    column = tl.arange(0, INPUTS)[None, :]
    index = tl.arange(0, ROWS)[:, None]
    SHARE: tl.constexpr = (WIDTH + SHARES * INPUTS - 1) // (SHARES * INPUTS) * INPUTS
    IS_WHOLE: tl.constexpr = WIDTH == SHARES * SHARE
    low = tl.program_id(1) * SHARE if SHARES > 1 else 0
    if IS_EARLY:
        lines = low + tl.arange(0, EARLY_LINES)[None, :] * (EARLY // EARLY_LINES)
        if not IS_WHOLE:
            lines = tl.minimum(lines, WIDTH - 1)
        fetch(weight + first + lines)
        if IS_PAIR:
            fetch(other + first + lines)
    wait_for_previous(IS_EARLY)
    SUMS: tl.constexpr = INPUTS if ROWS == 1 else ROWS
    total = tl.zeros((OUTPUTS, SUMS), dtype=tl.float32)
    other_total = tl.zeros((OUTPUTS, SUMS), dtype=tl.float32)
    # As long as the compiler knows: in a loop that may be empty each product waits for the last.
    for start in tl.range(0, SHARE, INPUTS, num_stages=STAGES):
        at = low + start + column
        inside = at < WIDTH
        if IS_WHOLE:
            part = tl.load(weight + first + at)
        else:
            part = tl.load(weight + first + at, mask=inside, other=0.0)
        if ROWS == 1:
            block = tl.load(rows + at, mask=inside, other=0.0).to(tl.float32)
            total += part.to(tl.float32) * block
        else:
            block = tl.load(rows + index * WIDTH + at, mask=inside & (index < count), other=0.0)
            let_tensor_cores_see()
            total = tl.dot(part, tl.trans(block), total, input_precision="ieee")
        if IS_PAIR:
            if IS_WHOLE:
                part = tl.load(other + first + at)
            else:
                part = tl.load(other + first + at, mask=inside, other=0.0)
            if ROWS == 1:
                other_total += part.to(tl.float32) * block
            else:
                other_total = tl.dot(part, tl.trans(block), other_total, input_precision="ieee")
    # Not before: what the next one fetches would be gone from the cache when it is wanted.
    let_next_begin(IS_EARLY)
    if ROWS == 1:
        total = tl.sum(total, axis=1)[:, None]
        other_total = tl.sum(other_total, axis=1)[:, None]
    return total, other_total


# Compiled once for all numbers of rows that are padded to the same.
@triton.jit(do_not_specialize=["count"])
def _multiply(
    rows,
    weight_0,
    weight_1,
    weight_2,
    bias_0,
    bias_1,
    bias_2,
    out,
    count,
    size_0,
    size_1,
    size_2,
    out_width,
    LAYERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,  # columns of each weight that are fetched ahead, if IS_EARLY
    EARLY_LINES: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    tile = tl.program_id(0)
    weight, bias, size, before = weight_0, bias_0, size_0, size_0 * 0
    if LAYERS > 1:
        tiles_0 = tl.cdiv(size_0, OUTPUTS)
        tiles_1 = tl.cdiv(size_1, OUTPUTS)
        if tile >= tiles_0 + tiles_1:
            tile -= tiles_0 + tiles_1
            weight, bias, size, before = weight_2, bias_2, size_2, size_0 + size_1
        elif tile >= tiles_0:
            tile -= tiles_0
            weight, bias, size, before = weight_1, bias_1, size_1, size_0
    total, _ = _products(
        rows, weight, weight, tile, count, size, False, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES,
        SHARES, EARLY, EARLY_LINES, IS_EARLY,
    )  # fmt: skip
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=output < size, other=0.0).to(tl.float32)[:, None]
    index = tl.arange(0, ROWS)
    if SHARES > 1:
        out += tl.program_id(1).to(tl.int64) * count * out_width
    to = out + index[None, :] * out_width + before + output[:, None]
    is_kept = (output < size)[:, None] & (index < count)[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=is_kept)


@triton.jit(do_not_specialize=["count"])
def _multiply_gated(
    rows,
    gate,
    up,
    out,
    count,
    size,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,  # columns of each weight that are fetched ahead, if IS_EARLY
    EARLY_LINES: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    tile = tl.program_id(0)
    dtype = out.dtype.element_ty
    opened, through = _products(
        rows, gate, up, tile, count, size, True, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES,
        1, EARLY, EARLY_LINES, IS_EARLY,
    )  # fmt: skip
    opened = activate(opened.to(dtype).to(tl.float32), ACTIVATION).to(dtype)
    product = (opened.to(tl.float32) * through.to(dtype).to(tl.float32)).to(dtype)
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    index = tl.arange(0, ROWS)
    is_kept = (output < size)[:, None] & (index < count)[None, :]
    tl.store(out + index[None, :] * size + output[:, None], product, mask=is_kept)
