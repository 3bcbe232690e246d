"""A request's row of a drafter's own cache."""

import threading

import pytest
import torch

from mmspec.drafters.own_row import OwnRow
from mmspec.kv import KVCache


def test_the_last_row_gives_the_memory_back_and_a_closed_one_stays_closed() -> None:
    cache, lock = KVCache(2), threading.RLock()
    first, second = OwnRow(cache, lock), OwnRow(cache, lock)
    assert not first.is_open
    numbers = [first.open(4), second.open(9)]
    assert [first.number, second.number] == numbers == list(cache.rows)
    cache.append(numbers[1], [(torch.ones(3, 1, 2),) * 2] * 2, count=3)
    first.close()
    assert list(cache.rows) == numbers[1:] and not first.is_open and cache.num_bytes
    second.close()
    second.close()
    assert not cache.rows and cache.num_bytes == 0
    with pytest.raises(AssertionError, match="closed"):
        first.open(4)


def test_a_row_that_was_never_opened_closes_no_other() -> None:
    cache, lock = KVCache(1), threading.RLock()
    used, unused = OwnRow(cache, lock), OwnRow(cache, lock)
    used.open(3)
    unused.close()
    assert used.number in cache.rows
    with pytest.raises(AssertionError, match="nothing was read"):
        _ = unused.number
