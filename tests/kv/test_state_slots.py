"""StateSlots: whose a slot is, and where the buffers lie."""

from contextlib import suppress

import torch
from scarce import each_scarcity

from mmspec.kv import BufferPool, StateKey
from mmspec.kv.state_slots import NOWHERE, ZEROS, StateSlots

SUM = StateKey(0, "recurrent", 0)


def state(value: float) -> dict[StateKey, torch.Tensor]:
    return {SUM: torch.full((1, 3), value)}


def test_slots_stay_whose_they_are_while_the_buffers_grow() -> None:
    slots = StateSlots()
    held = slots.take(5)
    for value, one in enumerate(held, 1):
        slots.put(one, state(value))
    more = slots.take(20)
    assert not {one.slot for one in more} & {ZEROS, NOWHERE, *(one.slot for one in held)}
    for value, one in enumerate(held, 1):
        assert (slots.copy(one).tensors[SUM] == value).all()
    assert slots.buffers[SUM].shape[0] == 28, "27, and at most a quarter more"
    size = slots.num_bytes
    del more
    for _ in range(5):  # what nobody holds any more is taken again
        assert len(slots.take(20)) == 20
    assert slots.num_bytes == size and not slots.buffers[SUM][ZEROS].any()


def test_a_slot_that_is_still_held_is_not_the_next_caches() -> None:
    pool, slots = BufferPool(), StateSlots()
    (marked, *_) = slots.take(3)
    slots.put(marked, state(7.0))
    pool.give((), slots)
    _, taken = pool.take()
    assert taken is slots and pool.take() == ((), None)
    assert marked.slot not in {one.slot for one in taken.take(30)}
    assert (taken.copy(marked).tensors[SUM] == 7.0).all()


def test_the_pool_keeps_the_larger_slots_and_counts_them() -> None:
    small, large = StateSlots(), StateSlots()
    for slots, count in ((small, 1), (large, 20)):
        for one in slots.take(count):
            slots.put(one, state(1.0))
    for order in ((small, large), (large, small), (large, None)):
        pool = BufferPool()
        for slots in order:
            pool.give((), slots)
        assert pool.num_bytes == large.num_bytes
        assert pool.take()[1] is large
    pool.give((), large)
    pool.clear()
    assert pool.num_bytes == 0


def test_buffers_of_another_size_are_others_wherever_they_lie() -> None:
    """What was recorded over them reads no further than they reached."""
    slots = StateSlots()
    slots.buffer(SUM, torch.empty(1, 3, device="meta"))  # all of them lie at 0
    before = slots.addresses
    held = slots.take(20)
    assert held and slots.addresses != before


def test_slots_that_find_no_memory_to_grow_grow_once_there_is_some() -> None:
    for scarce in each_scarcity():
        slots = StateSlots()
        (held,) = slots.take(1)
        slots.put(held, {**state(3.0), StateKey(1, "recurrent", 0): torch.full((1, 2), 4.0)})
        with suppress(torch.OutOfMemoryError), scarce:
            slots.take(20)
        more = slots.take(30)
        assert len({one.slot for one in more} - {ZEROS, NOWHERE, held.slot}) == 30
        assert [float(each.mean()) for each in slots.copy(held).tensors.values()] == [3.0, 4.0]
        assert len({buffer.shape[0] for buffer in slots.buffers.values()}) == 1
