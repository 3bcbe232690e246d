# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's source: its arguments have no types of Python's.
"""The nucleus of each row of scores (top-p, arXiv 1904.09751 section 3.1) without sorting them.

A sort of the whole vocabulary for each node of a tree is much work. Here a program a row searches
for the smallest score of the nucleus, by eighths of the range that is left, and so reads its row
some fifteen times out of the cache. Imported where there are a GPU and Triton; under Triton's
interpreter it runs on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # scores that a program looks at together
_WAYS = 8  # borders that one reading tries


@triton.jit
def _keys(scores):
    """int32 in the order of float32."""
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _scores(row, first, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    token = first + tl.arange(0, BLOCK)
    return tl.load(row + token, mask=token < VOCAB, other=-float("inf"))


@triton.jit
def _masses_above(
    row, largest, borders, VOCAB: tl.constexpr, WAYS: tl.constexpr, BLOCK: tl.constexpr
):
    """(WAYS,) for each border the sum of exp(score - largest) over the scores of larger keys. Of a
    larger border it is never larger, however it is rounded: the order of the sum is the same."""
    sums = tl.zeros([WAYS, BLOCK], tl.float32)
    for first in range(0, VOCAB, BLOCK):
        scores = _scores(row, first, VOCAB, BLOCK)
        weights = tl.exp(scores - largest)[None, :]
        sums += tl.where(_keys(scores)[None, :] > borders[:, None], weights, 0.0)
    return tl.sum(sums, axis=1)


@triton.jit
def _nucleus_kernel(
    out, scores, top_p, VOCAB: tl.constexpr, WAYS: tl.constexpr, BLOCK: tl.constexpr
):
    row = scores + tl.program_id(0).to(tl.int64) * VOCAB
    out += tl.program_id(0).to(tl.int64) * VOCAB
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    is_nan = tl.zeros([BLOCK], tl.int32)
    for first in range(0, VOCAB, BLOCK):
        own = _scores(row, first, VOCAB, BLOCK)
        is_nan |= (own != own).to(tl.int32)
        most = tl.maximum(most, own)
    largest = tl.max(most)
    # NaN, infinity or nothing to choose from: all stays, for whoever chooses to complain.
    is_odd = (tl.max(is_nan) > 0) | (largest == float("inf")) | (largest == -float("inf"))
    largest = tl.where(is_odd, 0.0, largest)
    ways = tl.arange(0, WAYS).to(tl.int64)
    low = tl.full([], -2139095041, tl.int64)  # the key of -infinity
    high = tl.max(_keys(tl.zeros([BLOCK], tl.float32) + largest)).to(tl.int64)
    whole = _masses_above(row, largest, (low + ways * 0).to(tl.int32), VOCAB, WAYS, BLOCK)
    target, above = top_p * tl.max(whole), 0.0
    # The smallest border with less than the target above it; at `low` there is no less.
    while (high - low > 1) & (is_odd == 0):
        borders = low + (high - low) * ways // WAYS
        masses = _masses_above(row, largest, borders.to(tl.int32), VOCAB, WAYS, BLOCK)
        is_inside = (masses < target) & (borders > low)
        above = tl.where(
            tl.max(is_inside.to(tl.int32)) > 0, tl.max(tl.where(is_inside, masses, 0.0)), above
        )
        low, high = (
            tl.max(tl.where(is_inside, low, borders)),
            tl.min(tl.where(is_inside, borders, high)),
        )
    # Of equal scores at the border as many as reach the target, the last ones: a stable sort's.
    equals = tl.zeros([BLOCK], tl.int32)
    border = high.to(tl.int32)
    for first in range(0, VOCAB, BLOCK):
        is_there = first + tl.arange(0, BLOCK) < VOCAB
        own = _scores(row, first, VOCAB, BLOCK)
        equals += ((_keys(own) == border) & is_there).to(tl.int32)
    count = tl.sum(equals)
    bits = border ^ ((border >> 31) & 0x7FFFFFFF)
    each = tl.exp(bits.to(tl.float32, bitcast=True) - largest)
    needed = tl.ceil((target - above) / tl.maximum(each, 1e-37))
    needed = tl.minimum(tl.maximum(needed, 1.0), count.to(tl.float32))
    dropped = count - tl.where(is_odd, 0.0, needed).to(tl.int32)
    seen = tl.zeros([], tl.int32)
    for first in range(0, VOCAB, BLOCK):
        token = first + tl.arange(0, BLOCK)
        own = _scores(row, first, VOCAB, BLOCK)
        is_border = ((_keys(own) == border) & (token < VOCAB)).to(tl.int32)
        place = seen + tl.cumsum(is_border, 0)
        seen += tl.sum(is_border)
        stays = is_odd | (_keys(own) > border) | ((is_border > 0) & (place > dropped))
        tl.store(out + token, tl.where(stays, own, -float("inf")), mask=token < VOCAB)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """`scores` (nodes, vocab) float32, -inf outside of the fewest tokens that have `top_p` of the
    probability together; of equal ones the last. Each row's are the same bits, however many rows
    there are. Rows with NaN or an infinite maximum stay as they are."""
    scores = scores.contiguous()
    out = torch.empty_like(scores)
    nodes, vocab = scores.shape
    block = min(_BLOCK, triton.next_power_of_2(vocab))
    warps = 16 if block == _BLOCK else 4
    with torch.cuda.device_of(scores):  # Triton launches on the current one
        _nucleus_kernel[(nodes,)](
            out,
            scores,
            top_p,
            VOCAB=vocab,
            WAYS=_WAYS,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    return out
