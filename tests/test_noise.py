"""Gumbel noise: the published Philox answers, the right distribution, nothing that repeats."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmspec import noise
from mmspec.noise import ACCEPT_STREAM, DRAFT_STREAM, gumbel, philox, uniforms

ALL_ONES = 0xFFFFFFFF
words = st.integers(0, ALL_ONES)

# The 99.9% quantiles: a right sampler fails one seed in a thousand, and the seeds are fixed.
CHI_SQUARE_6 = 22.46
KOLMOGOROV = 1.95


def philox_block(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    first, *rest = counter
    block = philox((torch.tensor([first]), *rest), key)
    return tuple(int(word) for word in block)


def numpy_philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """(blocks, 4) -> (blocks, 4), written from the paper, in unsigned arithmetic."""
    x0, x1, x2, x3 = counter.T.astype(np.uint64)
    k0, k1 = (np.uint64(word) for word in key)
    low, shift = np.uint64(ALL_ONES), np.uint64(32)
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * x0, np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (
            (product1 >> shift) ^ x1 ^ k0,
            product1 & low,
            (product0 >> shift) ^ x3 ^ k1,
            product0 & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([x0, x1, x2, x3], axis=1)


# LAW


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ALL_ONES,) * 4,
            (ALL_ONES,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox_block(counter, key) == answer


def test_noise_of_some_tokens_is_that_of_the_whole_vocabulary() -> None:
    whole = gumbel(seed=5, position=3, vocab_size=103)
    some = torch.tensor([102, 0, 7, 7, 50, 3, 4])
    assert torch.equal(gumbel(5, 3, 103, token_ids=some), whole[some])


def test_a_token_keeps_its_noise_when_the_vocabulary_grows() -> None:
    assert torch.equal(gumbel(5, 3, 1001)[:103], gumbel(5, 3, 103))


def test_noise_differs_between_seeds_positions_and_samples() -> None:
    seeds = (0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 2, 2**64 - 1)
    places = list(product(seeds, (0, 1, 2, 4096), (0, 1, 2)))
    seen: dict[bytes, tuple[int, int, int]] = {}
    for seed, position, sample in places:
        bits = gumbel(seed, position, 8, sample=sample).numpy().tobytes()
        assert bits not in seen, f"{(seed, position, sample)} repeats {seen[bits]}"
        seen[bits] = (seed, position, sample)
    values = np.frombuffer(b"".join(seen), dtype=np.float32)
    assert len(np.unique(values)) > 0.99 * len(values), "some of the words repeat"


def test_noise_is_finite_at_both_ends_of_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = tuple(torch.tensor([word]) for word in (0, 1, ALL_ONES - 1, ALL_ONES))
    monkeypatch.setattr(noise, "philox", lambda counter, key: ends)
    values = gumbel(0, 0, 4)
    assert values.dtype == torch.float32
    assert bool(torch.isfinite(values).all()), values
    assert values.tolist() == sorted(values.tolist()), "more bits, more noise"


def test_noise_is_standard_gumbel() -> None:
    values = np.sort(gumbel(seed=11, position=0, vocab_size=200_000).double().numpy())
    count = len(values)
    cdf = np.exp(-np.exp(-values))
    steps = np.arange(count)
    distance = max((cdf - steps / count).max(), ((steps + 1) / count - cdf).max())
    assert distance * math.sqrt(count) < KOLMOGOROV, f"Kolmogorov-Smirnov distance {distance}"
    deviation = math.pi / math.sqrt(6)
    assert values.mean() == pytest.approx(np.euler_gamma, abs=4 * deviation / math.sqrt(count))
    # The fourth moment of a Gumbel is 5.4 variances squared.
    spread = math.sqrt(4.4 / count) * deviation**2
    assert values.var() == pytest.approx(deviation**2, abs=4 * spread)


def test_noise_of_neighbours_is_not_correlated() -> None:
    """Tokens of one block, of the next, and the same token at the next position and seed."""
    count = 100_000
    here = gumbel(3, 0, count).double().numpy()
    others = {
        "next token": np.roll(here, 1),
        "next block": np.roll(here, 4),
        "next position": gumbel(3, 1, count).double().numpy(),
        "next seed": gumbel(4, 0, count).double().numpy(),
        "next sample": gumbel(3, 0, count, sample=1).double().numpy(),
    }
    for name, other in others.items():
        correlation = np.corrcoef(here, other)[0, 1]
        assert abs(correlation) < 4 / math.sqrt(count), f"{name}: correlation {correlation}"


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_gumbel_max_chooses_as_often_as_softmax_says(vary: str) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -2.0, 1.5])
    draws = 4000
    counts = torch.zeros(7, dtype=torch.float64)
    for draw in range(draws):
        seed, position = (draw, 9) if vary == "seed" else (9, draw)
        counts[(logits + gumbel(seed, position, 7)).argmax()] += 1
    expected = logits.double().softmax(0) * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < CHI_SQUARE_6, f"{counts.tolist()} for expected {expected.tolist()}"


# ORACLE


@given(
    st.lists(st.tuples(words, words, words, words), min_size=1, max_size=8), st.tuples(words, words)
)
def test_philox_equals_an_unsigned_one(
    counters: list[tuple[int, int, int, int]], key: tuple[int, int]
) -> None:
    expected = numpy_philox(np.array(counters, dtype=np.uint64), key)
    for counter, block in zip(counters, expected, strict=True):
        assert philox_block(counter, key) == tuple(int(word) for word in block), counter


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, ALL_ONES),
    st.integers(0, ALL_ONES),
    st.integers(1, 40),
)
def test_noise_is_minus_log_minus_log_of_the_words(
    seed: int, position: int, sample: int, vocab_size: int
) -> None:
    blocks = -(-vocab_size // 4)
    counter = np.array([[block, position, sample, 0] for block in range(blocks)], dtype=np.uint64)
    bits = numpy_philox(counter, (seed & ALL_ONES, seed >> 32)).reshape(-1)[:vocab_size]
    uniform = (bits.astype(np.float64) + 0.5) / 2**32
    expected = -np.log(-np.log(uniform))
    # Logarithms may differ in the last bit of a float64: nothing of that is left in a float32,
    # but near 0.
    np.testing.assert_allclose(
        gumbel(seed, position, vocab_size, sample=sample).numpy(), expected, rtol=2e-7, atol=1e-12
    )


@given(st.integers(0, 2**64 - 1), st.integers(0, ALL_ONES), st.integers(0, ALL_ONES))
def test_uniforms_are_52_bits_of_the_stream_that_accepts(
    seed: int, position: int, sample: int
) -> None:
    counter = np.array([[n, position, sample, ACCEPT_STREAM] for n in range(3)], dtype=np.uint64)
    words = numpy_philox(counter, (seed & ALL_ONES, seed >> 32))
    expected = [((int(w[0]) << 20 | int(w[1]) >> 12) + 0.5) / 2**52 for w in words]
    assert uniforms(seed, position, 3, sample=sample) == expected
    assert uniforms(seed, position, 1, sample=sample) == expected[:1]


def test_uniforms_are_uniform_and_never_0_or_1() -> None:
    numbers = np.sort([u for position in range(500) for u in uniforms(3, position, 4)])
    grid = (np.arange(len(numbers)) + 0.5) / len(numbers)
    assert np.abs(numbers - grid).max() * len(numbers) ** 0.5 < KOLMOGOROV
    assert 0.0 < numbers[0] and numbers[-1] < 1.0


def test_streams_share_nothing() -> None:
    streams = [
        gumbel(1, 2, 64, stream=s) for s in (0, ACCEPT_STREAM, DRAFT_STREAM, DRAFT_STREAM + 1)
    ]
    assert len(set(torch.stack(streams).flatten().tolist())) == 4 * 64
    assert torch.equal(gumbel(1, 2, 64), streams[0])


@pytest.mark.gpu
def test_the_bits_on_the_gpu_are_those_on_the_cpu() -> None:
    blocks = torch.arange(100_000)
    key = (0xA4093822, 0x299F31D0)
    on_cpu = philox((blocks, 5, 1, 0), key)
    on_gpu = philox((blocks.cuda(), 5, 1, 0), key)
    for expected, got in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(got.cpu(), expected)
