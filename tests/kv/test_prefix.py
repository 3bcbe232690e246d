"""The prefix store: what it gives is what was put in, shared, bounded and apart by namespace."""

import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scarce import each_scarcity

from mmspec.kv import KVCache, PrefixStore
from mmspec.kv import prefix as prefix_module
from mmspec.kv.cache import Segment

BYTES_PER_TOKEN = 2 * 2 * 8  # two layers, keys and values, one float64 each


def kv_of(keys: Sequence[int]) -> Segment:
    """As a causal model's: each token's depends on all keys up to it."""
    values, state = [], 1
    for key in keys:
        state = (state * 31 + key + 7) % 1_000_003
        values.append(state)
    tokens = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
    return ((tokens, tokens + 0.25), (tokens + 0.5, tokens + 0.75))


def put(store: PrefixStore, keys: Sequence[int], namespace: str = "", weights: int = 0) -> None:
    cache = KVCache(2)
    row = cache.open(max(len(keys), 1))
    cache.append(row, kv_of(keys), count=len(keys))
    store.insert(namespace, weights, keys, cache, row)
    store.check_integrity()


def found(store: PrefixStore, keys: Sequence[int], namespace: str = "", weights: int = 0) -> int:
    """Tokens that are stored; checks that they are the right ones."""
    lease = store.match(namespace, weights, keys)
    cache = KVCache(2)
    row = cache.open(1)
    lease.copy_to(cache, row, count=lease.length)
    lease.release()
    assert cache.length(row) == lease.length
    for got, expected in zip(cache.read(row, 0, lease.length), kv_of(keys), strict=True):
        if lease.length:
            assert got is not None and expected is not None
            assert all(
                torch.equal(a, b[: lease.length]) for a, b in zip(got, expected, strict=True)
            )
    return lease.length


def common(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=12))
def test_the_longest_stored_beginning_is_found(texts: list[list[int]]) -> None:
    store = PrefixStore(2**20)
    for index, text in enumerate(texts):
        assert found(store, text) == max((common(t, text) for t in texts[:index]), default=0)
        put(store, text)
    distinct = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert store.info.num_tokens == len(distinct), "a common beginning is kept once"
    assert store.info.num_bytes == len(distinct) * BYTES_PER_TOKEN


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=15),
    st.integers(0, 20),
    st.integers(1, 5),
)
def test_bytes_are_bounded_and_what_is_left_is_right(
    texts: list[list[int]], max_tokens: int, piece: int
) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(prefix_module, "_PIECE_TOKENS", piece)
    store = PrefixStore(max_tokens * BYTES_PER_TOKEN)
    for text in texts:
        put(store, text)
        found(store, text)
        assert store.info.num_bytes <= max_tokens * BYTES_PER_TOKEN
    patch.undo()


def test_the_longest_unused_text_goes_first() -> None:
    store = PrefixStore(8 * BYTES_PER_TOKEN)
    put(store, [1, 1, 1, 1])
    put(store, [2, 2, 2, 2])
    assert found(store, [1, 1, 1, 1]) == 4
    put(store, [3, 3, 3, 3])
    assert [found(store, [n] * 4) for n in (1, 2, 3)] == [4, 0, 4]


def test_what_is_in_use_is_never_dropped_nor_split_away() -> None:
    store = PrefixStore(8 * BYTES_PER_TOKEN)
    put(store, [1, 1, 1, 1])
    lease = store.match("", 0, [1, 1, 1, 1, 5])
    put(store, [1, 1, 2, 2])  # splits the leased node
    for n in (3, 4, 5, 6):
        put(store, [n] * 4)
    cache = KVCache(2)
    row = cache.open(1)
    lease.copy_to(cache, row, count=4)
    assert found(store, [1, 1, 1, 1]) == 4
    lease.release()
    lease.release()
    put(store, [7] * 4)
    put(store, [8] * 4)
    assert found(store, [1, 1, 1, 1]) == 0
    with pytest.raises(AssertionError, match="the lease has ended"):
        lease.copy_to(cache, cache.open(1), count=4)


def test_a_text_larger_than_the_store_keeps_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_module, "_PIECE_TOKENS", 4)
    store = PrefixStore(10 * BYTES_PER_TOKEN)
    put(store, list(range(30)))
    assert found(store, list(range(30))) == 8


def test_a_text_as_large_as_the_store_is_kept_and_nothing_else() -> None:
    store = PrefixStore(4 * BYTES_PER_TOKEN)
    put(store, [1], "another")
    put(store, [1, 2, 3, 4])
    assert found(store, [1, 2, 3, 4]) == 4
    assert [*store._roots] == [("", 0)], "a namespace that lost its last text leaves nothing"
    put(store, [5, 6, 7, 8, 9], "too long")
    assert [*store._roots] == [("", 0)]
    put(store, [], "empty")
    assert [*store._roots] == [("", 0)]


def test_a_text_that_finds_no_memory_leaves_the_others_as_they_were() -> None:
    """It would split one, and makes another give way."""
    for scarce in each_scarcity():
        store = PrefixStore(7 * BYTES_PER_TOKEN)
        put(store, [9, 9])
        put(store, [1, 2, 3, 4])
        with suppress(torch.OutOfMemoryError), scarce:
            put(store, [1, 2, 5, 6])
        store.check_integrity()
        assert found(store, [1, 2, 3, 4]) == 4
        assert found(store, [1, 2, 5, 6]) == (2 if scarce.has_failed else 4)
        assert found(store, [9, 9]) == (2 if scarce.has_failed else 0)
        store.clear()
        assert store.info.num_bytes == 0


def test_namespaces_and_weights_never_meet() -> None:
    store = PrefixStore(2**20)
    put(store, [1, 2, 3], "a", 1)
    assert found(store, [1, 2, 3], "b", 1) == 0
    assert found(store, [1, 2, 3], "a", 2) == 0
    assert found(store, [1, 2, 3], "a", 1) == 3
    put(store, [1, 2, 3], "b", 1)
    store.clear("a")
    assert (found(store, [1, 2, 3], "a", 1), found(store, [1, 2, 3], "b", 1)) == (0, 3)
    store.clear()
    assert store.info.num_bytes == store.info.num_entries == 0


def test_threads_can_share_a_store() -> None:
    store = PrefixStore(40 * BYTES_PER_TOKEN)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(60):
                text = torch.randint(0, 3, (9,), generator=generator).tolist()
                put(store, text)
                found(store, text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    store.check_integrity()


def test_a_copy_of_a_row_is_its_committed_tokens() -> None:
    cache = KVCache(2)
    first, second = cache.open(2), cache.open(2)
    cache.append(first, kv_of([1, 2, 3]), count=3)  # outgrows its region
    cache.append(second, kv_of([4, 5]), count=1)
    cache.append(second, kv_of([5]), count=1)
    cache.check_integrity()
    assert (cache.length(first), cache.length(second)) == (3, 2)
    (keys, values), _ = cache.read(first, 1, 3)  # type: ignore[misc]
    (expected, more), _ = kv_of([1, 2, 3])  # type: ignore[misc]
    assert torch.equal(keys, expected[1:]) and torch.equal(values, more[1:])
    keys.zero_()
    (again, _), _ = cache.read(first, 1, 3)  # type: ignore[misc]
    assert torch.equal(again, expected[1:])
    with pytest.raises(AssertionError):
        cache.read(second, 0, 3)
