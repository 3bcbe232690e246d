"""Counter-based noise: (seed, sample, position, stream) -> Gumbel noise over the vocabulary, or
uniform numbers; the same bits on every device.

The bits are Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"),
in int64 operations that wrap around, or in Triton on a GPU. One block of four words serves
four neighbouring tokens, so the noise of any few tokens can be had without that of the others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmspec.devices import with_float64
from mmspec.kernels import Kernels
from mmspec.uploads import upload

_KERNELS = Kernels("mmspec.noise_kernels", "noise")
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
    """Whose noise, for which token of the generated text, and what for."""

    seed: int
    sample: int
    position: int
    stream: int = TARGET_STREAM


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
    if (kernels := _KERNELS.on(device)) is not None:
        place = Place(seed, sample, position, stream)
        with _KERNELS.or_else(torch.device(device)):
            if token_ids is None:
                return kernels.gumbel_at([place], vocab_size, device=device)[0]
            return kernels.gumbel_of(place, token_ids.to(device))
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
    """(places, vocab_size) float32, to be read only: the noise at each place, as `gumbel` makes it.
    Equal places, as siblings have them, share one row."""
    rows = {place: row for row, place in enumerate(dict.fromkeys(places))}
    noise = _gumbel_of_places(list(rows), vocab_size, device)
    if len(rows) == 1:
        return noise.expand(len(places), -1)
    if len(rows) < len(places):
        return noise.index_select(0, upload([rows[place] for place in places], noise.device))
    return noise


def _gumbel_of_places(
    places: Sequence[Place], vocab_size: int, device: torch.device | str
) -> Tensor:
    if (kernels := _KERNELS.on(device)) is not None:
        with _KERNELS.or_else(torch.device(device)):
            return kernels.gumbel_at(places, vocab_size, device=device)
    computing = with_float64(device)
    rows = [
        gumbel(seed, position, vocab_size, sample=sample, stream=stream, device=computing)
        for seed, sample, position, stream in places
    ]
    return torch.stack(rows).to(device)


def choose(scores: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """Of each row of `scores` (nodes, vocab) the entry that is largest with the noise of its place,
    in float32, the first among equals, a NaN counting as largest: tokens (nodes,) int64 and their
    scores (nodes,). Nothing waits for the device."""
    if (kernels := _KERNELS.on(scores.device)) is not None:
        with _KERNELS.or_else(scores.device):
            return kernels.choose(scores, places)
    noise = gumbel_at(places, scores.shape[1], device=scores.device)
    tokens = (scores + noise).float().argmax(dim=-1)
    return tokens, scores.gather(1, tokens.unsqueeze(1)).squeeze(1)


def differing_share(
    device: torch.device | str, *, vocab_size: int = 128_256, positions: int = 80
) -> float:
    """Share of the noise's values that differ from the CPU's: the bits are the same everywhere,
    logarithms may round otherwise in their last bit."""
    places = [Place(2**64 - 3, sample=1, position=position) for position in range(positions)]
    differing = sum(
        int(
            (own.cpu() != gumbel(place.seed, place.position, vocab_size, sample=place.sample)).sum()
        )
        for place, own in zip(places, gumbel_at(places, vocab_size, device=device), strict=True)
    )
    return differing / (positions * vocab_size)


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
    if first.device.type == "cpu":  # where numpy computes it sooner
        c0, c1, c2, c3 = map(torch.from_numpy, _rounds((first.numpy(), *rest), key))
    else:
        c0, c1, c2, c3 = _rounds(counter, key)
    return c0, c1, c2, c3


def _rounds(counter: Sequence[Any], key: tuple[int, int]) -> Sequence[Any]:
    """Of tensors and of arrays."""
    c0, c1, c2, c3 = (word & _MASK for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 -> 64 bits; the int64 product wraps, but its bits are the right ones.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1 = high1 ^ c1 ^ k0, product1 & _MASK
        c2, c3 = high0 ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3
