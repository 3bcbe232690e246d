"""KVCache: every row against a plain list of marks, forwards played by marked tensors."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scarce import Scarce, each_scarcity
from torch import Tensor

from mmspec.kv import BufferPool, KVCache, QueryLog

NUM_LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 3


def marked(rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """(batch, kv_heads, nodes, head_dim): each token's mark in all its entries, told apart by layer
    and head; NaN where a short row is padded, for no one may ever read it."""
    nodes = max(map(len, rows))
    states = torch.full((len(rows), KV_HEADS, nodes, HEAD_DIM), torch.nan, dtype=torch.float64)
    for index, row in enumerate(rows):
        for head in range(KV_HEADS):
            marks = torch.tensor(row, dtype=torch.float64) + 1000 * layer + 10_000 * head
            states[index, head, : len(row)] = marks.unsqueeze(-1)
    return states


def forward(
    cache: KVCache, rows: Sequence[int], marks: Sequence[Sequence[int]]
) -> list[list[list[int]]]:
    """One forward that writes `marks[i]` behind `rows[i]`; returns, a layer, the marks that each
    row's attention sees in its columns. Keys and values, heads and layers must agree."""
    seen: list[list[list[int]]] = []
    with cache.writing(rows, [len(row) for row in marks]):
        for layer in range(NUM_LAYERS):
            states = marked(marks, layer)
            keys, values = cache.update(states, -states, layer)
            assert torch.equal(keys, -values), f"layer {layer}: keys and values lie apart"
            assert bool(torch.isfinite(keys).all()), f"layer {layer}: attention sees padding"
            assert torch.equal(keys[:, 1], keys[:, 0] + 10_000), f"layer {layer}: heads mixed up"
            seen.append((keys[:, 0, :, 0] - 1000 * layer).int().tolist())
    assert seen[0] == seen[1], "the layers hold different tokens"
    return seen[0]


def contents(cache: KVCache, row: int) -> list[int]:
    """The row's committed tokens, as the buffers hold them."""
    region = cache._regions.rows[row]
    keys = cache.flat_layers[0].keys
    return keys[region.start : region.start + region.length, 0, 0].int().tolist()


def prefilled(*prompts: Sequence[int], capacity: int = 8) -> tuple[KVCache, list[int]]:
    """A cache with one row a prompt."""
    cache, rows = KVCache(NUM_LAYERS), []
    for prompt in prompts:
        row = cache.open(capacity)
        forward(cache, [row], [prompt])
        cache.commit({row: range(len(prompt))})
        rows.append(row)
    return cache, rows


# LAW


def test_another_plan_holds_as_long_as_it_is_asked_for() -> None:
    cache, (row,) = prefilled([1, 2])
    with cache.writing([row], [2]) as plan:
        other = replace(plan)
        with cache.planned(other):
            assert all(layer.plan is other for layer in cache.flat_layers)
        assert all(layer.plan is plan for layer in cache.flat_layers)
    assert not any(layer.plan for layer in cache.flat_layers)


def test_the_addresses_are_told_anew_until_every_layer_has_its_own() -> None:
    """A layer allocates at its first write; what is recorded before reads no others."""
    cache = KVCache(NUM_LAYERS)
    row, found = cache.open(4), list[tuple[int, ...]]()
    with cache.writing([row], [1]):
        for layer in range(NUM_LAYERS):
            states = marked([[1]], layer)
            cache.update(states, -states, layer)
            found.append(cache.addresses)
    assert [len(addresses) for addresses in found] == [2, 4]


def test_commit_keeps_only_the_accepted_path() -> None:
    #      0:20        the path 0 -> 2 -> 4 is accepted: 20, 22, 24 move together
    #      /  \
    #   1:21  2:22
    #         /  \
    #      3:23  4:24
    cache, (row,) = prefilled([1, 2, 3])
    forward(cache, [row], [[20, 21, 22, 23, 24]])
    cache.commit({row: (0, 2, 4)})
    assert cache.length(row) == 6
    assert contents(cache, row) == [1, 2, 3, 20, 22, 24]
    assert forward(cache, [row], [[30]]) == [[1, 2, 3, 20, 22, 24, 30]]


def test_what_was_written_is_forgotten_by_a_cut_and_by_what_is_appended() -> None:
    """No later forward goes on behind it."""
    cache, (row, other) = prefilled([1, 2, 3], [4, 5])
    copy = cache.read(other, 0, 2)
    for forget in (
        lambda: cache.truncate(row, 3),
        lambda: cache.append(row, copy, count=1),
        lambda: cache.commit({row: ()}),
    ):
        forward(cache, [row], [[20, 21]])
        with cache.writing([row], [1], after=[2]):
            pass
        forget()
        with pytest.raises(AssertionError, match="2 tokens were not written"):
            with cache.writing([row], [1], after=[2]):
                pass


def test_a_cache_that_was_released_holds_nothing_to_commit() -> None:
    """Its rows are numbered anew."""
    cache, (row,) = prefilled([1, 2])
    forward(cache, [row], [[20, 21]])
    cache.release()
    assert cache.open(8) == row
    with pytest.raises(AssertionError, match="of 0 tokens"):
        cache.commit({row: (0,)})


def test_one_forward_is_committed_once() -> None:
    cache, (row,) = prefilled([1, 2])
    forward(cache, [row], [[20, 21]])
    cache.commit({row: (0,)})
    with pytest.raises(AssertionError, match=r"row 0: \(0,\) of 0 tokens"):
        cache.commit({row: (0,)})


@pytest.mark.parametrize("path", [(0, 4), (1, 0), (0, 0), (0, 2, 2), (0, 3, 2)])
def test_commit_refuses_a_path_that_is_not_there(path: tuple[int, ...]) -> None:
    cache, (row,) = prefilled([1, 2])
    forward(cache, [row], [[20, 21, 22, 23]])
    with pytest.raises(AssertionError, match="row 0" if 4 in path else "increasing"):
        cache.commit({row: path})


def test_a_failed_forward_cannot_be_committed() -> None:
    cache, (row,) = prefilled([1, 2])
    forward(cache, [row], [[20, 21]])
    with pytest.raises(RuntimeError), cache.writing([row], [2]):
        cache.update(marked([[30, 31]], 0), marked([[30, 31]], 0), 0)
        raise RuntimeError("the second layer fails")
    with pytest.raises(AssertionError):
        cache.commit({row: (0, 1)})


def test_a_failed_forward_costs_no_committed_token() -> None:
    cache, (row, other) = prefilled([1, 2], [5, 6, 7])
    with pytest.raises(RuntimeError), cache.writing([row, other], [2, 1]):
        cache.update(marked([[30, 31], [32]], 0), marked([[30, 31], [32]], 0), 0)
        raise RuntimeError("the second layer fails")
    assert contents(cache, row) == [1, 2]
    assert forward(cache, [other], [[40]]) == [[5, 6, 7, 40]]


def test_a_forward_outside_of_writing_is_refused() -> None:
    cache, _ = prefilled([1])
    with pytest.raises(AssertionError, match=r"inside `cache\.writing"):
        cache.update(marked([[2]], 0), marked([[2]], 0), 0)


def test_ragged_rows_see_their_own_tokens_in_order() -> None:
    cache, rows = prefilled([1, 2, 3, 4], [5], [6, 7])
    view = forward(cache, rows, [[20], [30, 31, 32], [40, 41]])
    assert view[0] == [1, 2, 3, 4, 20]
    assert view[1][:4] == [5, 30, 31, 32]
    assert view[2][:4] == [6, 7, 40, 41]
    assert [row[4:] for row in view[1:]] == [[5], [6]], "past its end a row shows its first token"


def test_growth_keeps_what_every_row_holds() -> None:
    cache, (row, other) = prefilled([1, 2, 3], [5, 6], capacity=4)
    forward(cache, [other], [[60, 61]])  # not committed yet: they come along
    forward(cache, [row], [[20, 21, 22]])  # 3 + 3 tokens in 4 slots
    cache.commit({row: (0, 1, 2), other: (1,)})
    assert contents(cache, row) == [1, 2, 3, 20, 21, 22]
    assert contents(cache, other) == [5, 6, 61]
    cache.check_integrity()


def test_a_row_grows_for_what_is_appended_too() -> None:
    cache, (row, other) = prefilled([1, 2, 3], [5, 6], capacity=3)
    cache.append(row, cache.read(other, 0, 2), count=2)
    assert contents(cache, row) == [1, 2, 3, 5, 6]
    assert contents(cache, other) == [5, 6]
    cache.check_integrity()


def test_growth_never_holds_all_buffers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, (row,) = prefilled(range(64), capacity=64)
    held = cache.num_bytes
    most, zeros = [0], Tensor.new_zeros

    def counted(self: Tensor, *shape: int) -> Tensor:
        made = zeros(self, *shape)
        most[0] = max(most[0], cache.num_bytes + made.nbytes)
        return made

    monkeypatch.setattr(Tensor, "new_zeros", counted)
    forward(cache, [row], [[100]])
    assert cache.num_bytes == held * 1.5, "half as much again"
    buffer = cache.flat_layers[0].keys.nbytes
    assert most[0] <= cache.num_bytes + buffer, "one new buffer beside the old ones at a time"


def test_room_is_made_behind_what_was_written() -> None:
    """Drafts of several forwards: the last one must not come to lie in the next row."""
    cache, (row, other) = prefilled([1, 2, 3], [4, 5, 6], capacity=8)
    forward(cache, [row], [[20, 21, 22, 23]])
    with cache.writing([row], [3], after=[4]):
        for layer in range(NUM_LAYERS):
            states = marked([[24, 25, 26]], layer)
            cache.update(states, -states, layer)
    cache.commit({row: range(7)})
    cache.check_integrity()
    assert contents(cache, row) == [1, 2, 3, *range(20, 27)]
    assert contents(cache, other) == [4, 5, 6]


@pytest.mark.parametrize("how", ["truncate", "append", "close", "release"])
def test_queries_go_with_their_tokens(how: str) -> None:
    """A view would be chosen by what others asked for."""
    log = QueryLog(4)
    cache = KVCache(1, queries=log)
    row = cache.open(8)
    with cache.writing([row], [3]):
        states = torch.ones(1, KV_HEADS, 3, HEAD_DIM)
        cache.update(states, states, 0)
        log.tap([row], [3]).take(0, states, 1.0)
    cache.commit({row: range(3)})
    assert log.read(row, 0) is not None
    if how == "truncate":
        cache.truncate(row, 2)
    elif how == "append":
        cache.append(row, cache.read(row, 0, 1), count=1)
    elif how == "release":
        cache.release()
    else:
        cache.close(row)
    assert log.read(row, 0) is None and log.num_bytes == 0


@pytest.mark.parametrize("is_last", [False, True])
def test_what_is_read_beside_a_text_goes_with_its_row(is_last: bool) -> None:
    cache = KVCache(2, cross_layers=[1])
    row = cache.open(8)
    cache.cross.see(row, torch.ones(5).bool())
    cache.cross.show([row])
    cache.cross.layers[1].update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    cache.cross.show(())
    assert cache.cross.num_bytes == 80
    if is_last:
        cache.release()
        assert cache.open(8) == row, "rows are numbered anew"
    else:
        cache.close(row)
    assert cache.cross.num_bytes == 0
    assert cache.cross.seen([row]) is None and not cache.cross.holds(row)


def test_the_last_row_grows_where_it_is_while_the_buffers_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though there are holes before it, which moving all rows together would close."""
    cache = KVCache(NUM_LAYERS, pool=BufferPool(least_slots=24))
    gone, other, row = (cache.open(4) for _ in range(3))
    forward(cache, [other, row], [[1, 2], [3, 4]])
    cache.commit({other: (0, 1), row: (0, 1)})
    cache.close(gone)
    with monkeypatch.context() as patch:
        patch.setattr("mmspec.kv.cache.move_slots", None)
        forward(cache, [row], [[*range(10)]])
    forward(cache, [row], [[*range(30)]])  # no room any more
    assert cache.region(row).start == 4
    assert [contents(cache, one) for one in (other, row)] == [[1, 2], [3, 4]]


def test_a_long_row_grows_by_a_bounded_step() -> None:
    cache, (row,) = prefilled(range(9000), capacity=9000)
    forward(cache, [row], [[1]])
    assert cache.flat_layers[0].num_slots == 9000 + 4096


def test_release_gives_all_memory_back_and_the_cache_can_be_used_again() -> None:
    cache, _ = prefilled([1, 2], [3])
    assert cache.num_bytes == 2 * NUM_LAYERS * 16 * KV_HEADS * HEAD_DIM * 8
    cache.release()
    assert cache.num_bytes == 0
    assert cache.rows == ()
    row = cache.open(4)
    assert forward(cache, [row], [[4, 5]]) == [[4, 5]]


def test_a_row_that_finds_no_memory_takes_none_from_those_behind_it() -> None:
    """Its region and its first buffers, if some were made."""
    for scarce in each_scarcity():
        cache = KVCache(NUM_LAYERS)
        large = cache.open(1000)
        with suppress(torch.OutOfMemoryError), scarce:
            forward(cache, [large], [[1, 2, 3]])
        sizes = [1000 if layer.is_initialized else 8 for layer in cache.flat_layers]
        cache.close(large)
        row = cache.open(8)
        assert forward(cache, [row], [[4, 5]]) == [[4, 5]]
        assert [buffer.shape[0] for buffer in cache.buffers[::2]] == sizes
        cache.check_integrity()


def test_a_row_that_finds_no_memory_to_open_is_not_there() -> None:
    for scarce in each_scarcity():
        cache, (row,) = prefilled([1, 2])
        with suppress(torch.OutOfMemoryError), scarce:
            cache.open(1000)
        if scarce.has_failed:
            assert cache.rows == (row,)
        cache.check_integrity()
        assert contents(cache, row) == [1, 2]


def test_buffers_of_which_some_could_not_grow_serve_the_next_cache() -> None:
    for scarce in each_scarcity():
        pool, rows = BufferPool(least_slots=4), list[int]()
        first, second = KVCache(NUM_LAYERS, pool=pool), KVCache(NUM_LAYERS, pool=pool)
        forward(first, [first.open(3)], [[1, 2, 3]])
        with suppress(torch.OutOfMemoryError), scarce:
            first.open(40)
        first.release()
        for marks in (range(3), range(30)):
            rows.append(second.open(len(marks)))
            forward(second, rows[-1:], [marks])
            second.commit({rows[-1]: range(len(marks))})
        assert [contents(second, row) for row in rows] == [[*range(3)], [*range(30)]]
        second.check_integrity()


def test_rows_that_find_no_memory_to_move_stay_where_they_are() -> None:
    """All of them: the one that grows, and those before and behind it with what they wrote."""
    for scarce in each_scarcity():
        cache, (gone, first, row, last) = prefilled([9], [1, 2], [3, 4], [5, 6])
        cache.close(gone)
        forward(cache, [last], [[60, 61, 62]])
        with suppress(torch.OutOfMemoryError), scarce:
            forward(cache, [row], [range(10, 30)])
        cache.commit({last: (0, 2)})
        held = [contents(cache, one) for one in (first, row, last)]
        assert held == [[1, 2], [3, 4], [5, 6, 60, 62]], scarce
        assert forward(cache, [row], [range(10, 30)]) == [[3, 4, *range(10, 30)]]
        cache.check_integrity()


def test_a_commit_that_finds_no_memory_keeps_nothing_of_any_row() -> None:
    """Nor does it let anybody keep later what it may have moved."""
    for scarce in each_scarcity():
        cache, rows = prefilled([1, 2], [3])
        cache.queries = log = QueryLog(3)
        for mark in (20, 30):
            with cache.writing(rows, [3, 2]):
                tap = log.tap(rows, [3, 2])
                for layer in range(NUM_LAYERS):
                    states = marked([[mark, mark + 1, mark + 2], [mark + 5, mark + 6]], layer)
                    cache.update(states, -states, layer)
                    tap.take(layer, states, 1.0)
            if mark == 20:
                cache.commit({rows[0]: (0,), rows[1]: (0,)})
        with suppress(torch.OutOfMemoryError), scarce:
            cache.commit({rows[0]: (0, 2), rows[1]: (1,)})
        new = [[], []] if scarce.has_failed else [[30, 32], [36]]
        held = [contents(cache, row) for row in rows]
        assert held == [[1, 2, 20, *new[0]], [3, 25, *new[1]]], scarce
        for row, marks in zip(rows, held, strict=True):
            read = log.read(row, NUM_LAYERS - 1)
            assert read is not None
            newest = (read.states[:, 0, 0] - 1000).int().tolist()
            assert newest == marks[-len(newest) :], "they are asked for by others' tokens"
        for row in rows:
            with pytest.raises(AssertionError, match="of 0 tokens"):
                cache.commit({row: (0,)})


def test_check_integrity_finds_a_buffer_that_is_too_small() -> None:
    cache, _ = prefilled([1, 2])
    layer = cache.flat_layers[1]
    layer.values = layer.values[:-1]
    with pytest.raises(AssertionError, match="layer 1"):
        cache.check_integrity()


# ORACLE


class RowsAreLists(RuleBasedStateMachine):
    """Opens, closes, writes, commits and rolls back at random; every row is a list of marks."""

    @initialize()
    def start(self) -> None:
        self.cache = KVCache(NUM_LAYERS)
        self.rows: dict[int, list[int]] = {}
        self.next_mark = 1

    def marks(self, count: int) -> list[int]:
        self.next_mark += count
        return list(range(self.next_mark - count, self.next_mark))

    @rule(capacity=st.integers(0, 6))
    def open(self, capacity: int) -> None:
        row = self.cache.open(capacity)
        assert row not in self.rows, f"row {row} was given twice"
        self.rows[row] = []

    @precondition(lambda self: self.cache.num_bytes)
    @rule(failing=st.integers(0, 40), data=st.data())
    def find_no_memory(self, failing: int, data: st.DataObject) -> None:
        """A row opens, or grows, where there is memory for some of what that takes."""
        row = data.draw(st.sampled_from([None, *sorted(self.rows)]))
        with suppress(torch.OutOfMemoryError), Scarce(failing):
            if row is None:
                self.cache.close(self.cache.open(1000))
            else:
                forward(self.cache, [row], [self.marks(1000)])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        self.cache.close(row)
        del self.rows[row]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """A forward over some rows in any order; some then commit a path, the others nothing."""
        rows = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, unique=True))
        written = [self.marks(data.draw(st.integers(1, 4))) for _ in rows]
        view = forward(self.cache, rows, written)
        for row, new, seen in zip(rows, written, view, strict=True):
            expected = self.rows[row] + new
            assert seen[: len(expected)] == expected, f"row {row} sees {seen}, wrote {expected}"
        paths = {}
        for row, new in zip(rows, written, strict=True):
            if data.draw(st.booleans()):
                nodes = st.sets(st.integers(0, len(new) - 1))
                paths[row] = sorted(data.draw(nodes))
                self.rows[row] = self.rows[row] + [new[node] for node in paths[row]]
        self.cache.commit(paths)

    @invariant()
    def the_buffers_hold_the_lists(self) -> None:
        self.cache.check_integrity()
        assert self.cache.rows == tuple(self.rows)
        for row, expected in self.rows.items():
            assert self.cache.length(row) == len(expected)
            if expected:
                assert contents(self.cache, row) == expected, f"row {row}"


TestRowsAreLists = RowsAreLists.TestCase
TestRowsAreLists.settings = settings(max_examples=40, stateful_step_count=30)
