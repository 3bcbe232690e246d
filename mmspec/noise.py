"""Counter-based noise: (seed, sample, position, stream) -> Gumbel noise over the vocabulary, or
uniform numbers; the same bits on every device.

The bits are Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"),
in int64 tensor operations that wrap around. One block of four words serves four neighbouring
tokens, so the noise of any few tokens can be had without that of the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
WORDS_PER_BLOCK = 4

# The counter's fourth word tells apart what must be independent at one place of one text.
TARGET_STREAM = 0  # chooses the target's tokens
ACCEPT_STREAM = 1  # accepts and rejects drafted ones
DRAFT_STREAM = 2  # and on: draws drafted ones, a stream for each node of a tree


class Place(NamedTuple):
    """Whose noise, and for which token of the generated text."""

    seed: int
    sample: int
    position: int


def gumbel(
    seed: int,
    position: int,
    vocab_size: int,
    *,
    sample: int = 0,
    stream: int = TARGET_STREAM,
    token_ids: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard Gumbel noise g(seed, sample, position, stream), float32.

    `position` is the index of the token in the generated text, from 0. Without `token_ids` the
    result is (vocab_size,); with `token_ids` (tokens,) int64 it holds just their entries, which
    are the same bits as in the whole vector.
    """
    if token_ids is None:
        blocks = torch.arange(-(-vocab_size // WORDS_PER_BLOCK), device=device)
        words = philox((blocks, position, sample, stream), _key(seed))
        bits = torch.stack(words, dim=-1).view(-1)[:vocab_size]
    else:
        blocks = token_ids // WORDS_PER_BLOCK
        words = philox((blocks, position, sample, stream), _key(seed))
        columns = (token_ids % WORDS_PER_BLOCK).unsqueeze(-1)
        bits = torch.stack(words, dim=-1).gather(-1, columns).squeeze(-1)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-32  # in (0, 1), both ends excluded
    return uniform.log_().neg_().log_().neg_().to(torch.float32)


def gumbel_at(
    places: Sequence[Place], vocab_size: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """(places, vocab_size) float32: the target's noise at each place, as `gumbel` makes it."""
    each = [gumbel(p.seed, p.position, vocab_size, sample=p.sample, device=device) for p in places]
    return torch.stack(each)


def uniforms(seed: int, position: int, count: int, *, sample: int = 0) -> list[float]:
    """`count` independent numbers, uniform in (0, 1), 52 bits each, of the stream that accepts."""
    words = philox((torch.arange(count), position, sample, ACCEPT_STREAM), _key(seed))
    bits = (words[0] << 20) | (words[1] >> 12)
    return ((bits.to(torch.float64) + 0.5) * 2.0**-52).tolist()


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK, (seed >> 32) & _MASK


def philox(
    counter: tuple[Tensor, int, int, int], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of 32 random bits, each (blocks,) int64 in [0, 2^32).

    `counter` is four 32-bit words, the first a tensor (blocks,) int64; `key` two 32-bit words.
    """
    first, *rest = counter
    c0 = first & _MASK
    c1, c2, c3 = (torch.full_like(first, word & _MASK) for word in rest)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 -> 64 bits; the int64 product wraps, but its bits are the right ones.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1 = high1.bitwise_xor_(c1).bitwise_xor_(k0), product1.bitwise_and_(_MASK)
        c2, c3 = high0.bitwise_xor_(c3).bitwise_xor_(k1), product0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3
