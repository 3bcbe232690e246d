# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's source: its arguments have no types of Python's.
"""The nucleus of each row of scores (top-p, arXiv 1904.09751 section 3.1) without sorting them.

A sort of the whole vocabulary for each node of a tree is much work. Here the smallest score of the
nucleus is searched for: a launch sums up what lies above each of sixteen borders, and the next one
goes on within the sixteenth that is left. A row is read in parts, a program each, so that even one
row keeps much of the device busy. Imported where there are a GPU and Triton; under Triton's
interpreter it runs on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 2048  # scores that a program looks at
_WAYS = 16  # borders that a round tries
_ROUNDS = 7  # until sixteen of all 2^32 scores are left


@triton.jit
def _key(scores):
    """int32 in the order of float32."""
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(keys):
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _part_of(scores, vocab_size, PART: tl.constexpr):
    """The program's row, its tokens there, whether there are such, and their scores."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * PART + tl.arange(0, PART)
    is_there = token < vocab_size
    own = tl.load(scores + row * vocab_size + token, mask=is_there, other=-float("inf"))
    return row, token, is_there, own


@triton.jit
def _border(low, high, way, WAYS: tl.constexpr):
    return low + (high - low) * way // WAYS


@triton.jit
def _largest(maxima, row, PARTS: tl.constexpr):
    parts, part = tl.num_programs(0), tl.arange(0, PARTS)
    own = tl.load(maxima + row * parts + part, mask=part < parts, other=-float("inf"))
    return own, tl.max(own)


@triton.jit
def _held(at):
    """What `_hold` wrote there."""
    low, high = tl.load(at).to(tl.int64), tl.load(at + 1).to(tl.int64)
    target, above = tl.load(at + 2), tl.load(at + 3)
    return low, high, target.to(tl.float32, bitcast=True), above.to(tl.float32, bitcast=True)


@triton.jit
def _hold(ranges, row, turn, low, high, target, above):
    if tl.program_id(0) == 0:
        at = ranges + (turn.to(tl.int64) * tl.num_programs(1) + row) * 4
        tl.store(at, low.to(tl.int32))
        tl.store(at + 1, high.to(tl.int32))
        tl.store(at + 2, target.to(tl.int32, bitcast=True))
        tl.store(at + 3, above.to(tl.int32, bitcast=True))


@triton.jit
def _found(sums, maxima, ranges, row, turn, top_p, WAYS: tl.constexpr, PARTS: tl.constexpr):
    """By the rounds before `turn`: the mass `target` or more lies above the key `low`, and less,
    `above`, above `high`, or `high` is no score's."""
    way, part = tl.arange(0, WAYS), tl.arange(0, PARTS)
    parts, rows = tl.num_programs(0), tl.num_programs(1)
    at = (turn - 1).to(tl.int64) * rows + row
    low, high, target, before = _held(ranges + at * 4)
    each, largest = _largest(maxima + (at - row) * parts, row, PARTS)
    own = tl.load(
        sums + (at * parts + part)[:, None] * WAYS + way[None, :],
        mask=(part < parts)[:, None],
        other=0.0,
    )
    mass = tl.sum(own * tl.exp(each - largest)[:, None], axis=0)
    whole = tl.max(mass)  # what lies above the first border, which is below all scores at first
    target = tl.where(turn == 1, tl.maximum(top_p * whole, 1e-37), target)
    # The larger a border, the less lies above it: those inside are the last ones.
    is_inside = (mass < target) & (_border(low, high, way, WAYS) > low)
    inside = tl.sum(is_inside.to(tl.int32))
    above = tl.where(inside > 0, tl.max(tl.where(is_inside, mass, 0.0)), before)
    first = WAYS - inside
    low, high = _border(low, high, first - 1, WAYS), _border(low, high, first, WAYS)
    return low, high, target, above, largest


@triton.jit(do_not_specialize=["turn"])
def _sum_kernel(
    sums, maxima, ranges, scores, top_p, vocab_size, turn,
    PART: tl.constexpr, PARTS: tl.constexpr, WAYS: tl.constexpr, IS_FIRST: tl.constexpr,
):  # fmt: skip
    """Of exp(score - largest) over the scores above each border; `largest` is at first the part's
    own. Of a larger border it is never larger, however it is rounded: the order is the same."""
    row, _, _, own = _part_of(scores, vocab_size, PART)
    if IS_FIRST:
        low, high = tl.full([], -2139095041, tl.int64), tl.full([], 2139095040, tl.int64)
        target, above = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
        # NaN and infinity mark a row that stays as it is, for whoever chooses to complain.
        largest = tl.max(tl.where(own == own, own, float("inf")))
    else:
        low, high, target, above, largest = _found(
            sums, maxima, ranges, row, turn, top_p, WAYS, PARTS
        )
    _hold(ranges, row, turn, low, high, target, above)
    way = tl.arange(0, WAYS)
    border = _border(low, high, way, WAYS).to(tl.int32)
    weight = tl.exp(own - largest)
    mass = tl.sum(tl.where(_key(own)[None, :] > border[:, None], weight[None, :], 0.0), axis=1)
    at = (turn.to(tl.int64) * tl.num_programs(1) + row) * tl.num_programs(0) + tl.program_id(0)
    tl.store(maxima + at, largest)
    tl.store(sums + at * WAYS + way, mass)


@triton.jit
def _count_kernel(
    counts, sums, maxima, ranges, scores, top_p, vocab_size, turn,
    PART: tl.constexpr, PARTS: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """How often the part has each of the scores that are left."""
    row, _, _, own = _part_of(scores, vocab_size, PART)
    low, high, target, above, _ = _found(sums, maxima, ranges, row, turn, top_p, WAYS, PARTS)
    _hold(ranges, row, turn, low, high, target, above)
    way = tl.arange(0, WAYS)
    is_left = _key(own)[None, :] == (low + 1 + way)[:, None]
    at = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + at * WAYS + way, tl.sum(is_left.to(tl.int32), axis=1))


@triton.jit
def _keep_kernel(
    out, counts, maxima, ranges, scores, vocab_size, turn,
    PART: tl.constexpr, PARTS: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    row, token, is_there, own = _part_of(scores, vocab_size, PART)
    rows, parts = tl.num_programs(1), tl.num_programs(0)
    way, part = tl.arange(0, WAYS), tl.arange(0, PARTS)
    _, largest = _largest(maxima, row, PARTS)
    low, high, target, above = _held(ranges + (turn.to(tl.int64) * rows + row) * 4)
    counted = tl.load(
        counts + (row * parts + part)[:, None] * WAYS + way[None, :],
        mask=(part < parts)[:, None],
        other=0,
    )
    # The smallest border with less than the target above it.
    key = low + 1 + way
    count = tl.sum(counted, axis=0)
    weight = tl.exp(_score(key.to(tl.int32)) - largest)
    mass = tl.where(key <= high, count * weight, 0.0)
    larger = way[None, :] > way[:, None]
    above += tl.sum(tl.where(larger, mass[None, :], 0.0), axis=1)
    border = tl.min(tl.where(above < target, key, high))
    # Of equal scores at the border as many as reach the target, the last ones: a stable sort's.
    is_it = key == border
    above = tl.sum(tl.where(is_it, above, 0.0))
    weight = tl.sum(tl.where(is_it, weight, 0.0))
    count = tl.sum(tl.where(is_it, count, 0))
    earlier = is_it[None, :] & (part < tl.program_id(0))[:, None]
    place = tl.sum(tl.sum(tl.where(earlier, counted, 0), axis=1))
    needed = tl.ceil((target - above) / tl.maximum(weight, 1e-37))
    dropped = count - tl.minimum(tl.maximum(needed, 1.0), count.to(tl.float32)).to(tl.int32)
    is_border = _key(own) == border
    place += tl.cumsum(is_border.to(tl.int32), 0)
    is_odd = (largest == float("inf")) | (largest == -float("inf"))
    stays = is_odd | (_key(own) > border) | (is_border & (place > dropped))
    tl.store(out + row * vocab_size + token, tl.where(stays, own, -float("inf")), mask=is_there)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """`scores` (nodes, vocab) float32, -inf outside of the fewest tokens that have `top_p` of the
    probability together; of equal ones the last. Each row's are the same bits, however many rows
    there are. Rows with NaN or an infinite maximum stay as they are."""
    scores = scores.contiguous()
    out = torch.empty_like(scores)
    nodes, vocab_size = scores.shape
    part = min(_PART, triton.next_power_of_2(vocab_size))
    parts = triton.cdiv(vocab_size, part)
    # Of each round and row: what every part says, and (low, high, target, above) before it.
    sums = scores.new_empty(_ROUNDS, nodes, parts, _WAYS)
    maxima = scores.new_empty(_ROUNDS, nodes, parts)
    ranges = scores.new_empty(_ROUNDS + 1, nodes, 4, dtype=torch.int32)
    counts = scores.new_empty(nodes, parts, _WAYS, dtype=torch.int32)
    grid = (parts, nodes)
    sizes = {"PART": part, "PARTS": triton.next_power_of_2(parts), "WAYS": _WAYS}
    sizes |= {"num_warps": 4, "enable_fp_fusion": True}
    found = (sums, maxima, ranges, scores, top_p, vocab_size)
    with torch.cuda.device_of(scores):  # Triton launches on the current one
        for turn in range(_ROUNDS):
            _sum_kernel[grid](*found, turn, IS_FIRST=turn == 0, **sizes)
        _count_kernel[grid](counts, *found, _ROUNDS, **sizes)
        _keep_kernel[grid](out, counts, maxima, ranges, scores, vocab_size, _ROUNDS, **sizes)
    return out
