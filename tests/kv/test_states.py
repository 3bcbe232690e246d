"""Running states: a row's and each node's, against a plain list of what was read to come there.

The state here is the text itself, folded to a number, so that a state of another row, node or
length is another number.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mmspec.kv.cache
from mmspec.attention import RowNodes, TreeCall
from mmspec.kv import (
    BufferPool,
    KVCache,
    KVView,
    Levels,
    LevelSlots,
    PrefixStore,
    StateBlock,
    StateKey,
    StateKind,
    ViewSize,
)
from mmspec.kv.policies import Window
from mmspec.kv.state_layer import StateLayer
from mmspec.target.graphs import ScoreCall, StaticInputs

LAYER = 1  # of three: the first attends, this one keeps a state, the last one does both
CONV, SUM = StateKey(LAYER, "conv", 0), StateKey(LAYER, "recurrent", 0)
KINDS = {1: StateKind(), 2: StateKind(has_keys=True)}


def after(text: Sequence[int]) -> float:
    """The state that a text comes to."""
    state = 0.0
    for token in text:
        state = (state * 31 + token + 7) % 10_007
    return state


def opened(*texts: Sequence[int], num_recent: int = 0) -> tuple[KVCache, list[int]]:
    """A cache with a row for each text, read in one go."""
    cache = KVCache(3, states=KINDS, num_recent=num_recent)
    rows = [cache.open(8) for _ in texts]
    for row, text in zip(rows, texts, strict=True):
        read(cache, row, text)
    return cache, rows


def read(cache: KVCache, row: int, tokens: Sequence[int]) -> None:
    """A prompt's part: the layer goes on from the state that it finds."""
    assert cache.states is not None
    with cache.writing([row], [len(tokens)]), cache.states.following():
        layer = cache.states.layers[LAYER]
        found = layer.recurrent_states[0]
        state = 0.0 if found is None else float(found)
        for token in tokens:
            state = (state * 31 + token + 7) % 10_007
        cache.update_conv_state(torch.tensor([[tokens]]).double(), LAYER, conv_kernel_size=3)
        cache.update_recurrent_state(torch.tensor([[state]]).double(), LAYER)
    cache.commit({row: range(len(tokens))})


def score(
    cache: KVCache,
    rows: Sequence[int],
    trees: Sequence[tuple[Sequence[int], Sequence[int]]],
    written: Sequence[int] = (),
    *,
    is_padded: bool = False,
) -> Levels:
    """A score call of (tokens, parents) trees, as a mixer makes it; `is_padded`: as it is
    recorded."""
    assert cache.states is not None
    done = list(written) or [0] * len(rows)
    counts = [len(tokens) - old for (tokens, _), old in zip(trees, done, strict=True)]
    width = max(counts)
    with cache.writing(rows, counts, after=done) as plan:
        flat = torch.zeros(len(rows) * width).double()
        for row, ((tokens, _), old) in enumerate(zip(trees, done, strict=True)):
            new = torch.tensor(tokens[old:]).double()
            flat[row * width : row * width + len(new)] = new
        levels = cache.states.levels([parents for _, parents in trees], done)
        if is_padded:
            ids = flat.long().view(len(rows), width)
            nodes = [
                np.eye(len(p), dtype=np.bool_)[old:]
                for (_, p), old in zip(trees, done, strict=True)
            ]
            told = TreeCall([RowNodes(0, 1, n, np.zeros(n.shape[1])) for n in nodes], (), ())
            call = ScoreCall(ids, ids, told, plan, cache, rows, (), levels=levels)
            inputs = StaticInputs.of(call, flat.device)
            for one in (call, replace(call, levels=levels.varied), call):
                inputs.fill(one)  # what another call left there is overwritten
                assert inputs.levels is not None
                run_levels(cache, inputs.levels, inputs.ids.flatten().double())
        else:
            run_levels(cache, levels.on(flat.device), flat)
    return levels


def run_levels(cache: KVCache, levels: LevelSlots, flat: Tensor) -> None:
    """What a mixer does with the tokens (places,)."""
    assert cache.states is not None
    slots, start = cache.states.slots, 0
    if levels.order is not None:
        flat = flat[levels.order]
    left: dict[StateKey, Tensor] = {}
    for size, source, own in zip(levels.sizes, levels.sources, levels.slots, strict=True):
        tokens, start = flat[start : start + size].unsqueeze(1), start + size
        before = left if source is None else slots.gather([SUM], source)
        left = {SUM: (before[SUM] * 31 + tokens + 7) % 10_007}
        slots.scatter(left, own)


def state_of(cache: KVCache, row: int) -> float:
    assert cache.states is not None
    held = cache.states.held(row)
    return 0.0 if held is None else float(cache.states.slots.copy(held).tensors[SUM])


TREE = ((20, 21, 22, 23, 24), (-1, 0, 0, 1, 1))
#      0:20
#      /  \
#   1:21  2:22
#    / \
# 3:23 4:24


# LAW


@pytest.mark.parametrize("path", [(0,), (0, 1), (0, 2), (0, 1, 3), (0, 1, 4)])
def test_commit_keeps_the_state_of_the_paths_last_node(path: tuple[int, ...]) -> None:
    cache, (row,) = opened([1, 2, 3])
    score(cache, [row], [TREE])
    assert state_of(cache, row) == after([1, 2, 3]), "a score call moved the committed state"
    cache.commit({row: path})
    assert state_of(cache, row) == after([1, 2, 3, *(TREE[0][node] for node in path)])


def test_what_is_not_committed_is_rolled_back() -> None:
    cache, (row,) = opened([1, 2, 3])
    score(cache, [row], [TREE])
    cache.commit({row: ()})
    assert state_of(cache, row) == after([1, 2, 3])
    score(cache, [row], [TREE])
    score(cache, [row], [((9,), (-1,))])  # written over, never committed
    cache.commit({row: (0,)})
    assert state_of(cache, row) == after([1, 2, 3, 9])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_node_has_the_state_of_its_own_path(data: st.DataObject) -> None:
    """Ragged rows, trees of any form, scored in one call or in two, several steps, padded or not;
    a call that is varied, as before a graph is used, leaves no trace."""
    texts = data.draw(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1))
    texts = [list(text) for text in texts[:4]]
    cache, rows = opened(*texts)
    for _ in range(3):
        trees, written = [], []
        for _ in texts:
            size = data.draw(st.integers(1, 6))
            parents = [-1, *(data.draw(st.integers(0, n - 1)) for n in range(1, size))]
            tokens = data.draw(st.lists(st.integers(1, 90), min_size=size, max_size=size))
            trees.append((tokens, parents))
            written.append(data.draw(st.integers(0, size - 1)))
        if any(written):
            first = [(t[:old], p[:old]) for (t, p), old in zip(trees, written, strict=True) if old]
            some = [row for row, old in zip(rows, written, strict=True) if old]
            score(cache, some, first)
        score(cache, rows, trees, written, is_padded=data.draw(st.booleans()))
        paths = {}
        for row, text, (tokens, parents) in zip(rows, texts, trees, strict=True):
            node = data.draw(st.integers(0, len(tokens) - 1))
            path = []
            while node >= 0:
                path.insert(0, node)
                node = parents[node]
            paths[row] = path
            text += [tokens[node] for node in path]
        cache.commit(paths)
        assert [state_of(cache, row) for row in rows] == [after(text) for text in texts]


def test_a_prompt_in_pieces_goes_on_where_it_stood_and_a_row_that_grows_too() -> None:
    cache, (row, other) = opened([1, 2], [5])
    read(cache, row, [3])
    read(cache, row, [4, 6, 7, 8, 9, 10, 11, 12])
    assert state_of(cache, row) == after([1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12])
    assert state_of(cache, other) == after([5])


def test_a_row_that_is_closed_leaves_nothing_to_the_next_of_its_number() -> None:
    cache, (row, other) = opened([1, 2], [5])
    score(cache, [row], [TREE])
    cache.close(row)
    cache.close(row)
    again = cache.open(4)
    assert cache.states is not None
    assert cache.states.held(again) is None
    read(cache, again, [8])
    assert state_of(cache, again) == after([8])
    assert state_of(cache, other) == after([5])
    cache.release()
    assert cache.states.num_bytes == 0


def test_a_forward_that_fails_moves_no_state() -> None:
    cache, (row,) = opened([1, 2])
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_within(cache, row)
    assert state_of(cache, row) == after([1, 2])
    layer = cache.states.layers[LAYER] if cache.states else None
    assert layer is not None and layer.recurrent_states[0] is None, "nothing is left loaded"
    read(cache, row, [3])
    assert state_of(cache, row) == after([1, 2, 3])


def fail_within(cache: KVCache, row: int) -> None:
    assert cache.states is not None
    with cache.writing([row], [1]), cache.states.following():
        found = cache.states.layers[LAYER].recurrent_states[0]
        assert found is not None
        found.fill_(-1.0)  # as a kernel that writes where it reads
        raise RuntimeError("in the middle")


def test_only_what_rows_and_their_nodes_need_stays_in_memory() -> None:
    cache, (row,) = opened([1, 2])
    assert cache.states is not None
    own = cache.states.num_bytes
    for token in range(3, 30):
        score(cache, [row], [((token,), (-1,))])
        cache.commit({row: (0,)})
    assert cache.states.num_bytes <= own


def test_slots_are_free_once_nobody_holds_them_and_stay_where_they_are() -> None:
    cache, (row, other) = opened([1, 2], [3], num_recent=4)
    assert cache.states is not None
    slots = cache.states.slots
    for token in range(40):
        if token == 8:  # as many are remembered as ever
            addresses = slots.addresses
        score(cache, [row, other], [TREE, ((token,), (-1,))])
        cache.commit({row: (0, 1, 3), other: (0,)})
    assert slots.addresses == addresses, "the buffers grew for what nobody has any more"
    held = [slots.take(1)[0] for _ in range(100)]
    assert len({one.slot for one in held} | {0, 1}) == 102
    assert state_of(cache, row) == after([1, 2, *[20, 21, 23] * 40]), "they moved"


def test_what_moves_nodes_is_made_once_for_buffers_that_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = list[int]()

    class Mover:
        def __init__(self, buffers: Sequence[Tensor]) -> None:
            self.addresses = tuple(buffer.data_ptr() for buffer in buffers)
            made.append(len(buffers))

        def move(self, moves: object) -> bool:
            return True

    monkeypatch.setattr(mmspec.kv.cache, "has_kernels", lambda device: True)
    monkeypatch.setattr(mmspec.kv.cache, "PathMover", Mover)
    cache = KVCache(3, states=KINDS)
    read(cache, row := cache.open(80), [1, 2])
    for index in (0, 2):
        cache.flat_layers[index].put(0, torch.ones(2, 1, 1), torch.ones(2, 1, 1))
        for _ in range(3):
            score(cache, [row], [TREE])
            cache.commit({row: (0, 2)})
    assert made == [2, 4], "once more where another layer has its own"


# Going back


def test_a_row_goes_back_as_far_as_it_was_told_to_remember_and_no_further() -> None:
    cache, (row,) = opened([1, 2], num_recent=3)
    for token in range(3, 9):
        score(cache, [row], [((token,), (-1,))])
        cache.commit({row: (0,)})
    cache.truncate(row, 5)
    assert not cache.is_lost(row)
    assert state_of(cache, row) == after([1, 2, 3, 4, 5])
    score(cache, [row], [TREE])
    cache.commit({row: (0, 1, 3)})
    for length in (7, 6, 5):  # once more, to where it had gone back to
        cache.truncate(row, length)
        assert state_of(cache, row) == after([1, 2, 3, 4, 5, 20, 21][:length])
    cache.truncate(row, 4)
    assert cache.is_lost(row), "a state is there that is not this text's"
    with pytest.raises(AssertionError, match="no state is known"):
        read(cache, row, [4])
    cache.truncate(row, 0)
    assert not cache.is_lost(row)
    read(cache, row, [4])
    assert state_of(cache, row) == after([4])


def test_a_row_remembers_where_a_prompts_part_ended_too() -> None:
    cache, (row,) = opened([1, 2], num_recent=3)
    read(cache, row, [3, 4])
    cache.truncate(row, 2)
    assert state_of(cache, row) == after([1, 2])


def test_a_cut_that_forgets_no_token_changes_nothing() -> None:
    cache, (row,) = opened([1, 2])
    epoch = cache.epoch(row)
    score(cache, [row], [TREE])
    cache.truncate(row, 2)
    assert cache.epoch(row) == epoch
    assert state_of(cache, row) == after([1, 2])


def test_slots_go_from_one_cache_to_the_next_and_to_none_that_has_its_own() -> None:
    pool = BufferPool(least_slots=4)
    first, second = (KVCache(3, pool=pool, states=KINDS) for _ in range(2))
    rows = [cache.open(8) for cache in (first, second)]
    read(first, rows[0], [1, 2])
    read(second, rows[1], [5])
    addresses = first.addresses
    first.release()
    assert state_of(second, rows[1]) == after([5])
    second.open(8)  # though some are idle
    assert state_of(second, rows[1]) == after([5])
    for _ in range(9):
        rows = [first.open(8) for _ in range(2)]
        assert first.addresses == addresses, "what was recorded over them is good no more"
        for row in rows:
            read(first, row, [7])
        assert state_of(first, rows[1]) == after([7])
        first.release()


def test_a_view_stands_where_its_source_does_whatever_was_drafted() -> None:
    """It shows some keys alone, but a state has seen the whole text; slots are the source's."""
    text = list(range(1, 21))
    cache, (row, other) = opened(text, [5] * 20)
    cache.pool = BufferPool(least_slots=4)
    view = KVView(cache, Window(sinks=2), ViewSize(8, 3, 4))
    for _ in range(2):  # as often as it is emptied
        for one in (row, other):
            view.follow(one)
            assert view.catch_up(one)
        own, others = view.row_of(row), view.row_of(other)
        assert state_of(view, own) == after(text)
        score(view, [own], [TREE])
        view.commit({own: (0, 2)})
        assert state_of(view, own) == after([*text, 20, 22])
        view.truncate(own, view.length(own) - 2)
        assert state_of(view, own) == after(text), "cut back to what is the source's"
        assert state_of(view, others) == state_of(cache, other) == after([5] * 20)
        score(cache, [row], [TREE])
        cache.commit({row: (0, 1)})
        text += [20, 21]
        assert view.catch_up(row)
        assert state_of(view, view.row_of(row)) == state_of(cache, row) == after(text)
        assert view.num_bytes == 0 < cache.num_bytes, "the source counts them"
        for one in (row, other):
            view.unfollow(one)
        assert cache.pool.num_bytes == 0, "what is the source's is not given away"
    assert state_of(cache, row) == after(text)


def test_a_snapshot_is_a_copy_that_rows_share() -> None:
    cache, (row, other) = opened([1, 2, 3], [4])
    state = cache.snapshot(row)
    assert state is not None
    assert state.num_bytes == 8 * (3 + 1)
    read(cache, row, [9])
    cache.truncate(other, 0)
    cache.append(other, cache.read(row, 0, 3), count=3)
    assert cache.is_lost(other), "keys alone are not enough"
    cache.resume(other, state)
    assert state_of(cache, other) == after([1, 2, 3])
    read(cache, other, [5])
    third = cache.open(4)
    cache.resume(third, state)
    assert state_of(cache, third) == after([1, 2, 3])


def test_states_that_a_text_has_passed_make_room_before_another_text_does() -> None:
    def keep(cache: KVCache, row: int, text: list[int]) -> None:
        store.insert("", 0, text, cache, row)
        store.check_integrity()

    def resumable(text: list[int]) -> int:
        lease = store.match("", 0, text)
        length = lease.resumable(len(text))
        lease.release()
        return length

    num_bytes = 8 * (3 + 1)  # of a state
    store = PrefixStore(3 * num_bytes)
    keep(*_row_of([8, 9]), [8, 9])
    cache, row = _row_of([1, 2])
    keep(cache, row, [1, 2])
    keep(cache, row, [1, 2])  # whose state is there
    for token in (3, 4):
        read(cache, row, [token])
        keep(cache, row, list(range(1, token + 1)))
    assert store.info.num_bytes == 3 * num_bytes
    assert [resumable([1, 2, 3, 4][:n]) for n in (4, 3, 2)] == [4, 3, 0], "not the oldest"
    assert resumable([8, 9]) == 2
    lease = store.match("", 0, [1, 2, 3, 4])
    keep(*_row_of([6]), [6])
    assert lease.resumable(3) == 3, "what is leased stays"
    assert resumable([8, 9]) == 0 and resumable([6]) == 1


def test_of_a_stored_text_the_last_state_alone_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    store, (cache, row) = PrefixStore(10_000), _row_of([1, 2])
    for token in (3, 4, 5):
        read(cache, row, [token])
        store.insert("", 0, list(range(1, token + 1)), cache, row)
    resumed: list[int] = []
    right = KVCache.resume

    def counted(self: KVCache, row: int, state: StateBlock) -> None:
        resumed.append(self.length(row))
        right(self, row, state)

    monkeypatch.setattr(KVCache, "resume", counted)
    lease, (other, third) = store.match("", 0, [1, 2, 3, 4, 5]), (cache.open(8), cache.open(8))
    lease.copy_to(cache, other, count=5)
    lease.copy_to(cache, third, count=4)
    assert resumed == [5, 4]
    assert state_of(cache, other) == after([1, 2, 3, 4, 5])
    assert state_of(cache, third) == after([1, 2, 3, 4])


def test_what_was_read_and_never_committed_is_no_part_of_what_comes_after() -> None:
    cache, (row,) = opened([1, 2])
    assert cache.states is not None
    with cache.writing([row], [1]), cache.states.following():
        cache.update_recurrent_state(torch.tensor([[9.0]]).double(), LAYER)
    score(cache, [row], [([5], [-1])])
    cache.commit({row: [0]})
    assert state_of(cache, row) == after([1, 2, 5])


def test_a_state_is_found_where_it_was_kept_and_nowhere_else() -> None:
    store, text = PrefixStore(10_000), [1, 2, 3, 4]
    cache, row = _row_of(text)
    store.insert("", 0, text[:2], cache, row)
    assert store.match("", 0, text).resumable(2) == 0, "the row has gone on"
    store.insert("", 0, text, cache, row)
    assert store.match("", 0, text).resumable(4) == 4
    part = store.match("", 0, [1, 2, 3, 9])
    assert (part.length, part.resumable(4)) == (3, 0), "it ends within what is stored"
    with pytest.raises(AssertionError, match="no state is kept behind 3 tokens"):
        part.copy_to(cache, cache.open(8), count=3)


def test_a_text_that_has_no_room_leaves_no_state() -> None:
    store, (cache, row) = PrefixStore(8 * (3 + 1)), _row_of([1, 2])  # bytes of a state
    keys = torch.ones(2, 1, 4).double()
    cache.flat_layers[0].put(cache.region(row).start, keys, keys)
    store.insert("", 0, [1, 2], cache, row)
    store.check_integrity()
    assert store.info.num_bytes == 0


def test_a_state_that_is_leased_stays_though_its_text_goes_on() -> None:
    store, (cache, row) = PrefixStore(2 * 8 * (3 + 1)), _row_of([1, 2])
    store.insert("", 0, [1, 2], cache, row)
    lease = store.match("", 0, [1, 2])
    for text in ([1, 2, 3], [1, 2, 3, 4]):
        read(cache, row, text[-1:])
        store.insert("", 0, text, cache, row)
    assert lease.resumable(2) == 2
    last = store.match("", 0, [1, 2, 3, 4])
    assert (last.resumable(4), last.resumable(3)) == (4, 2), "the one between made room"


def _row_of(text: list[int]) -> tuple[KVCache, int]:
    cache, (row,) = opened(text)
    return cache, row


# ORACLE


def test_a_short_convolution_keeps_the_newest_inputs_and_none_of_the_memory_behind() -> None:
    cache, (row,) = opened([1, 2])
    assert cache.states is not None

    def kept() -> Tensor:
        held = cache.states.held(row) if cache.states else None
        assert held is not None
        return cache.states.slots.copy(held).tensors[CONV][0, 0]

    assert kept().tolist() == [0, 1, 2], "a text shorter than the kernel begins with zeros"
    read(cache, row, [3, 4, 5, 6])
    assert kept().tolist() == [4, 5, 6]
    assert kept().untyped_storage().nbytes() == 8 * 3


def test_a_forward_that_names_no_kernel_keeps_all_that_came_first() -> None:
    layer = StateLayer(1)
    assert layer.update_conv_state(torch.ones(1, 2, 4)).shape == (1, 2, 4)
    assert layer.conv_states[0].shape == (1, 2, 4) and layer.written == {("conv", 0)}


def test_a_layer_says_what_a_forward_wrote_and_loads_no_more_than_was_kept() -> None:
    layer = StateLayer(2)
    state = torch.ones(1, 3)
    assert layer.update_recurrent_state(state, 1) is state
    assert layer.written == {("recurrent", 1)} and layer.is_recurrent_states_initialized[1]
    kept = layer.taken(5)
    assert list(kept) == [StateKey(5, "recurrent", 1)]
    assert layer.recurrent_states[1] is None and not layer.written
    layer.load(5, kept)
    assert layer.is_recurrent_states_initialized[1] and not layer.is_recurrent_states_initialized[0]
    assert layer.has_previous_state[1] and not layer.has_previous_state[0]


def test_a_layer_may_have_keys_beside_its_state_and_one_without_keys_has_no_length() -> None:
    cache, (row,) = opened([1, 2])
    with cache.writing([row], [2]):
        assert cache.get_seq_length() == 2
        keys = torch.ones(1, 1, 2, 4)
        cache.update(keys, keys, 2)
    assert cache.flat_layers[2].is_initialized
    assert not cache.flat_layers[LAYER].is_initialized
