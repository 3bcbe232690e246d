# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's source: its arguments have no types of Python's.
"""The noise of `mmspec.noise` as Triton kernels: many places in one launch, the same bits.

`choose` never writes the noise: it adds it to the scores and keeps the best of each part. No
product is fused with a sum, so that neither a compiler nor one of the kernels rounds otherwise than
another. Imported where there are a GPU and Triton; under Triton's interpreter it runs on a CPU.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmspec.noise import Place
from mmspec.uploads import upload

_BLOCKS = 256  # of four tokens that a program makes
_PART = 4 * _BLOCKS


@triton.jit
def _words(place, block):
    """Philox4x32-10 of the counters (block, position, sample, stream): four words a block."""
    same = tl.zeros_like(block)
    position = (same + tl.load(place + 2)).to(tl.uint32)
    sample = (same + tl.load(place + 1)).to(tl.uint32)
    stream = (same + tl.load(place + 3)).to(tl.uint32)
    return tl.philox(tl.load(place), block.to(tl.uint32), position, sample, stream)


@triton.jit
def _noise_of(bits):
    uniform = (bits.to(tl.float64) + 0.5) * (2.0**-32)
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _noise_of_blocks(place, block):
    """(4 * blocks,) float32, in the order of the tokens."""
    a, b, c, d = _words(place, block)
    return _noise_of(tl.interleave(tl.interleave(a, c), tl.interleave(b, d)))


@triton.jit
def _gumbel_kernel(out, places, vocab_size, BLOCKS: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    noise = _noise_of_blocks(places + row * 6, part * BLOCKS + tl.arange(0, BLOCKS))
    token = part * BLOCKS * 4 + tl.arange(0, 4 * BLOCKS)
    tl.store(out + row * vocab_size + token, noise, mask=token < vocab_size)


@triton.jit(do_not_specialize=["count"])
def _gumbel_of_tokens_kernel(out, places, tokens, count, TOKENS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    is_there = at < count
    token = tl.load(tokens + at, mask=is_there, other=0)
    a, b, c, d = _words(places, token // 4)
    word = token % 4
    bits = tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))
    tl.store(out + at, _noise_of(bits), mask=is_there)


@triton.jit(do_not_specialize=["parts"])
def _choose_kernel(
    best,
    best_tokens,
    best_scores,
    scores,
    places,
    vocab_size,
    parts,
    BLOCKS: tl.constexpr,
):
    """The best of one part of the vocabulary, for all nodes that share a place's noise."""
    place = places + tl.program_id(0).to(tl.int64) * 6
    part = tl.program_id(1).to(tl.int64)
    noise = _noise_of_blocks(place, part * BLOCKS + tl.arange(0, BLOCKS))
    token = part * BLOCKS * 4 + tl.arange(0, 4 * BLOCKS)
    is_there = token < vocab_size
    for node in range(tl.load(place + 4), tl.load(place + 5)):
        row = scores + node * vocab_size
        score = tl.load(row + token, mask=is_there, other=-float("inf"))
        # A NaN must not be lost: it counts as largest, as for argmax.
        perturbed = tl.where(score == score, (score + noise).to(tl.float32), float("inf"))
        value, index = tl.max(
            perturbed, axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        chosen = part * BLOCKS * 4 + index
        at = node * parts + part
        tl.store(best + at, value)
        tl.store(best_tokens + at, chosen)
        tl.store(best_scores + at, tl.load(row + chosen))


@triton.jit(do_not_specialize=["parts"])
def _best_part_kernel(tokens, values, best, best_tokens, best_scores, parts, PARTS: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    each = tl.load(best + node * parts + part, mask=part < parts, other=-float("inf"))
    _, index = tl.max(each, axis=0, return_indices=True, return_indices_tie_break_left=True)
    at = node * parts + index
    tl.store(tokens + node, tl.load(best_tokens + at))
    tl.store(values + node, tl.load(best_scores + at))


def gumbel_at(places: Sequence[Place], vocab_size: int, *, device: torch.device | str) -> Tensor:
    """(places, vocab_size) float32, in one launch."""
    out = torch.empty(len(places), vocab_size, device=device)
    grid = (len(places), triton.cdiv(vocab_size, _PART))
    rows = _uploaded([(place, 0) for place in places], device)
    with torch.cuda.device_of(out):  # Triton launches on the current one
        _gumbel_kernel[grid](out, rows, vocab_size, BLOCKS=_BLOCKS, enable_fp_fusion=False)
    return out


def gumbel_of(place: Place, token_ids: Tensor) -> Tensor:
    """(tokens,) float32: the entries of `token_ids` (tokens,) int64."""
    out = torch.empty(token_ids.shape, device=token_ids.device)
    if token_ids.shape[0]:
        rows = _uploaded([(place, 0)], token_ids.device)
        grid = (triton.cdiv(token_ids.shape[0], _PART),)
        with torch.cuda.device_of(out):
            _gumbel_of_tokens_kernel[grid](
                out,
                rows,
                token_ids.contiguous(),
                token_ids.shape[0],
                TOKENS=_PART,
                enable_fp_fusion=False,
            )
    return out


def choose(scores: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """Of each row of `scores` (nodes, vocab) float32 the token (nodes,) int64 that is largest with
    the noise of its place, and its score (nodes,). Neighbours of one place share its noise."""
    nodes, vocab_size = scores.shape
    scores, parts = scores.contiguous(), triton.cdiv(vocab_size, _PART)
    best = torch.empty(nodes, parts, device=scores.device)
    best_scores = scores.new_empty(nodes, parts)
    best_tokens = torch.empty(nodes, parts, dtype=torch.int64, device=scores.device)
    runs = [(place, len(list(same))) for place, same in groupby(places)]
    rows = _uploaded(runs, scores.device)
    tokens = torch.empty(nodes, dtype=torch.int64, device=scores.device)
    values = scores.new_empty(nodes)
    with torch.cuda.device_of(scores):
        _choose_kernel[(len(runs), parts)](
            best,
            best_tokens,
            best_scores,
            scores,
            rows,
            vocab_size,
            parts,
            BLOCKS=_BLOCKS,
            enable_fp_fusion=False,
        )
        _best_part_kernel[(nodes,)](
            tokens,
            values,
            best,
            best_tokens,
            best_scores,
            parts,
            PARTS=triton.next_power_of_2(parts),
            enable_fp_fusion=False,
        )
    return tokens, values


def _uploaded(runs: Sequence[tuple[Place, int]], device: torch.device | str) -> Tensor:
    """(runs, 6) int64: seed, sample, position, stream, and the nodes [first, stop) of each."""
    rows, first = [], 0
    for place, count in runs:
        seed = place.seed if place.seed < 2**63 else place.seed - 2**64  # the same 64 bits
        rows.append([seed, place.sample, place.position, place.stream, first, first + count])
        first += count
    return upload(rows, device)
