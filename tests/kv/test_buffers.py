"""Buffers outlive their cache: the next one has them at the same addresses."""

import torch

from mmspec.kv import BufferPool, KVCache, KVView, ViewSize
from mmspec.kv.policies import POLICIES

NUM_LAYERS = 2


def filled(cache: KVCache, tokens: int, *, value: float = 1.0) -> int:
    row = cache.open(tokens)
    with cache.writing([row], [tokens]):
        for layer in range(NUM_LAYERS):
            states = torch.full((1, 2, tokens, 3), value)
            cache.update(states, states, layer)
    cache.commit({row: range(tokens)})
    return row


def test_the_next_cache_takes_over_the_buffers_and_nothing_that_they_held() -> None:
    pool = BufferPool(least_slots=16)
    first = KVCache(NUM_LAYERS, pool=pool)
    filled(first, 9, value=torch.inf)
    addresses = first.addresses
    first.release()
    assert pool.num_bytes == NUM_LAYERS * 2 * 16 * 6 * 4
    second = KVCache(NUM_LAYERS, pool=pool)
    row = filled(second, 5)
    assert second.addresses == addresses and pool.num_bytes == 0
    assert second.length(row) == 5
    assert not second.flat_layers[0].keys[5:].any(), "another request's keys are left"
    second.check_integrity()


def test_buffers_do_not_move_while_rows_come_and_go() -> None:
    cache = KVCache(NUM_LAYERS, pool=BufferPool(least_slots=32))
    filled(cache, 3)
    addresses = cache.addresses
    for _ in range(3):
        cache.close(filled(cache, 9))
        assert cache.addresses == addresses
    filled(cache, 40)
    assert cache.addresses != addresses
    assert cache.flat_layers[0].num_slots == 48  # 43 slots, in quarters of 32
    cache.check_integrity()


def test_two_caches_never_share_buffers() -> None:
    pool = BufferPool(least_slots=16)
    one, other = KVCache(NUM_LAYERS, pool=pool), KVCache(NUM_LAYERS, pool=pool)
    filled(one, 3)
    filled(other, 3)
    assert not set(one.addresses) & set(other.addresses)
    one.release()
    other.release()
    third, fourth = KVCache(NUM_LAYERS, pool=pool), KVCache(NUM_LAYERS, pool=pool)
    filled(third, 3)
    filled(fourth, 3)
    assert not set(third.addresses) & set(fourth.addresses)


def test_buffers_too_small_or_of_another_form_are_not_taken() -> None:
    pool = BufferPool(least_slots=4)
    first = KVCache(NUM_LAYERS, pool=pool)
    filled(first, 3)
    kept = list(first.buffers)
    first.release()
    second = KVCache(NUM_LAYERS, pool=pool)
    filled(second, 9)
    assert not {b.data_ptr() for b in kept} & set(second.addresses)
    assert second.flat_layers[0].num_slots == 10  # in quarters of 8
    second.release()
    third = KVCache(NUM_LAYERS, pool=pool)
    row = third.open(3)
    with third.writing([row], [3]):
        states = torch.ones(1, 2, 3, 5)
        third.update(states, states, 0)
    assert third.flat_layers[0].keys.shape == (4, 2, 5)


def test_buffers_of_another_dtype_are_not_taken() -> None:
    pool = BufferPool(least_slots=4)
    first, second = KVCache(NUM_LAYERS, pool=pool), KVCache(NUM_LAYERS, pool=pool)
    filled(first, 3)
    first.release()
    row = second.open(3)
    with second.writing([row], [3]):
        states = torch.ones(1, 2, 3, 3, dtype=torch.float64)
        second.update(states, states, 0)
    assert second.flat_layers[0].keys.dtype == torch.float64


def test_a_buffer_holds_what_was_asked_for_and_at_most_a_quarter_more() -> None:
    pool = BufferPool(least_slots=8)
    sizes = [pool.rounded(slots) for slots in range(1, 300)]
    assert sizes[:8] == [8] * 8 and sizes == sorted(sizes)
    assert all(slots <= size < 1.25 * slots for slots, size in enumerate(sizes[8:], start=9))
    assert len(set(sizes)) < 25, "texts of nearly the same length share a size"


def test_the_pool_keeps_the_largest_and_can_be_emptied() -> None:
    pool = BufferPool(least_slots=4)
    small, large = KVCache(NUM_LAYERS, pool=pool), KVCache(NUM_LAYERS, pool=pool)
    filled(small, 3)
    filled(large, 50)
    addresses = large.addresses
    large.release()
    small.release()
    again = KVCache(NUM_LAYERS, pool=pool)
    filled(again, 3)
    assert again.addresses == addresses
    again.release()
    pool.clear()
    assert pool.num_bytes == 0


def test_a_view_has_a_pool_of_its_own() -> None:
    source = KVCache(NUM_LAYERS, pool=BufferPool(least_slots=64))
    row = filled(source, 40)
    addresses = []
    for _ in range(2):
        view = KVView(source, POLICIES["window"](), ViewSize(budget=8, recent=4, room=4))
        view.follow(row)
        assert view.catch_up(row)
        addresses.append(view.addresses)
        assert view.flat_layers[0].num_slots == 16
        view.unfollow(row)
    assert addresses[0] == addresses[1]
    assert source.pool is not None and source.pool.num_bytes == NUM_LAYERS * 2 * 16 * 6 * 4
    source.pool.clear()
    assert source.pool.num_bytes == 0
