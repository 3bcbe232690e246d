"""KVView: what it shows is the source's own, now. Keys say which token, layer and head they are."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scarce import each_scarcity
from torch import Tensor

from mmspec.kv import KVCache, KVView, QueryLog, ViewSize
from mmspec.kv.policies import LayerState, Window

NUM_LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 2
TOKEN_BYTES = NUM_LAYERS * 2 * KV_HEADS * HEAD_DIM * 8  # keys and values in float64
NEWEST_ONLY = (False, True, False)  # the layer in the middle has a window


def write(cache: KVCache, rows: Sequence[int], marks: Sequence[Sequence[int]]) -> None:
    """One forward of all layers. Marks are unique in a test, so that a stale key is seen."""
    with cache.writing(rows, [len(row) for row in marks]):
        width = max(map(len, marks))
        for layer in range(NUM_LAYERS):
            states = torch.full((len(rows), KV_HEADS, width, HEAD_DIM), torch.nan)
            states = states.double()
            for index, row in enumerate(marks):
                for head in range(KV_HEADS):
                    values = torch.tensor(row, dtype=torch.float64)
                    states[index, head, : len(row)] = _mark(values, layer, head)[:, None]
            cache.update(states, -states, layer)


def _mark(marks: Tensor, layer: int, head: int) -> Tensor:
    return marks + 1e6 * layer + 1e7 * head


def shown(view: KVView, source_row: int, layer: int, head: int) -> list[int]:
    """The marks of a head's keys; keys and values must agree."""
    region = view.region(view.row_of(source_row))
    own = view.flat_layers[layer]
    keys, values = (t[region.start : region.start + region.length] for t in (own.keys, own.values))
    assert torch.equal(keys, -values), "keys and values lie apart"
    marks = keys[:, head, 0] - _mark(torch.zeros(1, dtype=torch.float64), layer, head)
    return marks.int().tolist()


class EveryOther:
    """Another choice for each head, and one that moves with the text: easy to say again."""

    watched_queries = 0

    def __init__(self, refresh_every: int | None) -> None:
        self.refresh_every = refresh_every

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        return torch.tensor([every_other(layer.num_tokens, budget, h) for h in range(KV_HEADS)])


def every_other(tokens: int, budget: int, head: int) -> list[int]:
    start = (tokens * 7 + head * 3) % tokens
    return sorted((start + step) % tokens for step in range(budget))


def test_newer_tokens_join_behind_what_was_chosen_until_there_is_no_room() -> None:
    cache = KVCache(NUM_LAYERS)
    row = cache.open(4)
    write(cache, [row], [list(range(20))])
    cache.commit({row: range(20)})
    view = KVView(cache, Window(sinks=2), ViewSize(6, 3, 4), newest_only=NEWEST_ONLY)
    view.follow(row)
    assert view.catch_up(row)
    assert shown(view, row, 0, 0) == [0, 1, 16, 17, 18, 19]
    assert shown(view, row, 1, 1) == [14, 15, 16, 17, 18, 19], "a window's layer shows the newest"
    assert view.num_hidden(row) == 14
    write(cache, [row], [[20, 21, 22]])
    cache.commit({row: [0, 2]})
    view.catch_up(row)
    assert shown(view, row, 2, 1) == [0, 1, 16, 17, 18, 19, 20, 22]
    assert view.num_hidden(row) == 14, "a joined token changes no position"
    write(cache, [row], [[23, 24]])
    cache.commit({row: [0, 1]})
    view.catch_up(row)
    assert shown(view, row, 0, 1) == [0, 1, 20, 22, 23, 24], "no room for a fourth: chosen anew"


def test_a_draft_behind_the_view_never_reaches_it_or_its_source() -> None:
    cache = KVCache(NUM_LAYERS)
    row = cache.open(4)
    write(cache, [row], [list(range(20))])
    cache.commit({row: range(20)})
    before = [layer.keys.clone() for layer in cache.flat_layers]
    view = KVView(cache, Window(sinks=2), ViewSize(6, 3, 4))
    view.follow(row)
    view.catch_up(row)
    write(view, [view.row_of(row)], [[900, 901]])
    with view.writing([view.row_of(row)], [1], after=[2]):
        pass
    view.catch_up(row)
    assert shown(view, row, 0, 0) == [0, 1, 16, 17, 18, 19]
    for layer, old in zip(cache.flat_layers, before, strict=True):
        assert torch.equal(layer.keys, old)


def test_a_view_takes_no_more_than_its_share_and_grows_with_its_text() -> None:
    cache = KVCache(NUM_LAYERS)
    row = cache.open(4)
    view = KVView(cache, Window(sinks=2), ViewSize(50, 4, 4, max_share=0.25))
    view.follow(row)
    sizes = []
    for length in range(10, 400, 10):
        write(cache, [row], [list(range(length - 10, length))])
        cache.commit({row: range(10)})
        if view.catch_up(row):
            region = view.region(view.row_of(row))
            assert region.capacity <= length / 4
            assert view.flat_layers[0].num_slots == region.capacity
            sizes.append(region.length)
        else:
            assert length < 64, "8 tokens and room for 8 are a quarter of 64"
    assert sizes[0] < 16 and max(sizes) >= 40
    view.unfollow(row)
    assert view.num_bytes == 0


def test_a_layer_is_asked_for_by_its_own_number_whichever_layers_keep_keys() -> None:
    """Layer 0 keeps none, as one of cross-attention or with a running state alone."""
    asked: list[float] = []

    class Asked(Window):
        def choose(self, layer: LayerState, budget: int) -> Tensor:
            assert layer.queries is not None, "the queries of a layer that has none"
            asked.append(layer.queries.scaling)
            return super().choose(layer, budget)

    log = QueryLog(4)
    cache = KVCache(3, queries=log, cross_layers=[0])
    row, states = cache.open(20), torch.zeros(1, KV_HEADS, 20, HEAD_DIM)
    tap = log.tap([row], [20])
    with cache.writing([row], [20]):
        for layer in (1, 2):
            cache.update(states + layer, states - layer, layer)
            tap.take(layer, states, float(layer))
    cache.commit({row: range(20)})
    for newest_only, others in (((False, True, False), [2.0]), ((True, False, False), [1.0, 2.0])):
        view = KVView(cache, Asked(), ViewSize(8, 3, 4), newest_only=newest_only)
        view.follow(row)
        assert view.catch_up(row)
        assert asked == others, "which layer's queries its policy looks at"
        asked.clear()


def test_a_view_that_found_no_memory_shows_what_it_should_the_next_time() -> None:
    """Whether it was about to open or to choose anew."""
    for steps in ([20], [20, 8], [20, 2, 12]):
        for scarce in each_scarcity():
            cache = KVCache(NUM_LAYERS)
            row, model = cache.open(50), _Model(size := ViewSize(8, 4, 4), None)
            view, text = KVView(cache, EveryOther(None), size), list[int]()
            view.follow(row)
            for number, count in enumerate(steps, 1):
                marks = list(range(len(text), len(text) + count))
                write(cache, [row], [marks])
                cache.commit({row: range(count)})
                text += marks
                if number == len(steps):
                    with suppress(torch.OutOfMemoryError), scarce:
                        view.catch_up(row)
                view.catch_up(row)
                model.catch_up(text)
            expected = [model.marks(text, False, head) for head in range(KV_HEADS)]
            for layer in range(NUM_LAYERS):
                found = [shown(view, row, layer, head) for head in range(KV_HEADS)]
                assert found == expected, (steps, layer)


@settings(max_examples=40, stateful_step_count=25)
class NeverStale(RuleBasedStateMachine):
    """Rows that open, grow, are cut, drafted for, interrupted and closed in any order, beside a
    model that keeps lists. After each catching up, all that a view shows is what it should be."""

    @initialize(every=st.sampled_from([None, 1, 3]), budget=st.integers(8, 12))
    def begin(self, every: int | None, budget: int) -> None:
        self.cache = KVCache(NUM_LAYERS)
        self.size = ViewSize(budget, 4, 5)
        self.view = KVView(self.cache, EveryOther(every), self.size, newest_only=NEWEST_ONLY)
        self.every = every
        self.texts: dict[int, list[int]] = {}  # source row -> its marks
        self.models: dict[int, _Model] = {}
        self.next_mark = 0

    def fresh(self, count: int) -> list[int]:
        self.next_mark += count
        return list(range(self.next_mark - count, self.next_mark))

    @rule(count=st.integers(1, 40), capacity=st.integers(1, 40))
    def open(self, count: int, capacity: int) -> None:
        if len(self.texts) < 3:
            row = self.cache.open(capacity)
            marks = self.fresh(count)
            write(self.cache, [row], [marks])
            self.cache.commit({row: range(count)})
            self.texts[row], self.models[row] = marks, _Model(self.size, self.every)
            self.view.follow(row)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """A forward of some rows, of which any part is kept."""
        rows = data.draw(st.lists(st.sampled_from(sorted(self.texts)), min_size=1, unique=True))
        marks = [self.fresh(data.draw(st.integers(1, 4))) for _ in rows]
        write(self.cache, rows, marks)
        for row, written in zip(rows, marks, strict=True):
            path = sorted(data.draw(st.sets(st.integers(0, len(written) - 1))))
            self.cache.commit({row: path})
            self.texts[row] += [written[node] for node in path]
            if data.draw(st.booleans()):
                self.check(row)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), counts=st.lists(st.integers(1, 3), min_size=2, max_size=9))
    def decode(self, data: st.DataObject, counts: list[int]) -> None:
        """Step after step, as a drafter follows its text."""
        row = data.draw(st.sampled_from(sorted(self.texts)))
        for count in counts:
            marks = self.fresh(count)
            write(self.cache, [row], [marks])
            self.cache.commit({row: range(count)})
            self.texts[row] += marks
            self.check(row)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.texts)))
        length = data.draw(st.integers(1, len(self.texts[row])))
        if length < len(self.texts[row]):
            self.models[row].is_outdated = True
        self.cache.truncate(row, length)
        del self.texts[row][length:]

    @precondition(lambda self: any(m.length for m in self.models.values()))
    @rule(data=st.data(), count=st.integers(1, 5), is_interrupted=st.booleans())
    def draft(self, data: st.DataObject, count: int, is_interrupted: bool) -> None:
        """Nodes behind the view, of a forward that may be broken off between two layers."""
        ready = [row for row in sorted(self.models) if self.models[row].length]
        row = self.view.row_of(data.draw(st.sampled_from(ready)))
        if not is_interrupted:
            write(self.view, [row], [[-1] * count])
            return
        with pytest.raises(RuntimeError), self.view.writing([row], [count]):
            states = torch.full((1, KV_HEADS, count, HEAD_DIM), -5.0, dtype=torch.float64)
            self.view.update(states, states, 0)
            raise RuntimeError("interrupted")

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.texts)))
        self.view.unfollow(row)
        self.cache.close(row)
        del self.texts[row], self.models[row]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def catch_up(self, data: st.DataObject) -> None:
        self.check(data.draw(st.sampled_from(sorted(self.texts))))

    def check(self, row: int) -> None:
        text, model = self.texts[row], self.models[row]
        due_bytes = self.view.due_bytes(row)
        assert self.view.catch_up(row) == bool(text)
        is_anew = model.catch_up(text)
        expected_bytes = TOKEN_BYTES * (len(text) + 4 * model.chosen) // 2 if is_anew else 0
        assert due_bytes == expected_bytes, "what the choice reads and writes, where it is due"
        for layer in range(NUM_LAYERS):
            for head in range(KV_HEADS):
                expected = model.marks(text, NEWEST_ONLY[layer], head)
                assert shown(self.view, row, layer, head) == expected
        assert self.view.num_hidden(row) == len(text) - model.length

    @invariant()
    def regions_are_whole(self) -> None:
        self.cache.check_integrity()
        self.view.check_integrity()


class _Model:
    """What a view of one row should show: how many tokens there were when it last chose."""

    def __init__(self, size: ViewSize, every: int | None) -> None:
        self.size, self.every = size, every
        self.is_outdated = True
        self.chosen = self.refreshed_at = self.seen = self.updates = 0

    @property
    def length(self) -> int:
        return self.chosen + self.seen - self.refreshed_at

    def catch_up(self, text: list[int]) -> bool:
        """Whether all was chosen anew."""
        length = len(text)
        affordable = min(self.size.budget, length)
        if not self.chosen or length < self.chosen or affordable > 1.25 * self.chosen:
            self.chosen, self.is_outdated = affordable, True
        is_full = length - self.refreshed_at > self.size.recent
        is_time = self.every is not None and length > self.seen and self.updates + 1 >= self.every
        is_anew = self.is_outdated or is_full or is_time
        if is_anew:
            self.refreshed_at, self.updates = length, 0
        elif length > self.seen:
            self.updates += 1
        self.is_outdated, self.seen = False, length
        return is_anew

    def marks(self, text: list[int], is_newest_only: bool, head: int) -> list[int]:
        at = self.refreshed_at
        newest = list(range(at - self.chosen, at))
        chosen = newest if is_newest_only else every_other(at, self.chosen, head)
        return [text[position] for position in [*chosen, *range(at, len(text))]]


test_a_view_is_never_stale = NeverStale.TestCase
