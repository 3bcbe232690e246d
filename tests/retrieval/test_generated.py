"""GeneratedStore: matches against a search of every entry, its bound, its order, its namespaces."""

import random
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.errors import DatastoreError
from mmspec.retrieval.generated import GeneratedMatch, GeneratedStore

SEPARATOR = -1
MIN_MATCH = 3

texts = st.lists(
    st.lists(st.sampled_from([SEPARATOR, 0, 0, 1, 1, 2]), max_size=20), min_size=1, max_size=3
)


def store_of(*entries: list[int], max_bytes: int = 2**20) -> GeneratedStore:
    store = GeneratedStore(max_bytes)
    for entry in entries:
        store.add(entry)
    return store


def copies(store: GeneratedStore, query: list[int], **where: str) -> list[list[int]]:
    return [store.continuation(m, 9).tokens for m in store.matches(query, **where)]


def searched(entries: list[list[int]], query: list[int], max_match: int) -> list[GeneratedMatch]:
    found = []
    kept = dict.fromkeys(tuple(entry) for entry in entries if len(entry) > MIN_MATCH)
    for serial, entry in enumerate(kept, start=1):
        for end in range(1, len(entry)):
            length = 0
            while (
                length < min(end, len(query), max_match)
                and entry[end - 1 - length] == query[-1 - length] >= 0
            ):
                length += 1
            if length >= MIN_MATCH and entry[end] >= 0:
                found.append(GeneratedMatch(serial, end, length))
    return sorted(found, key=lambda m: (-m.length, -m.entry, -m.end))


# ORACLE


@st.composite
def queries(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Entries, and a text that ends as one of them begins: else few would be found."""
    entries, before = draw(texts), draw(st.lists(st.sampled_from([SEPARATOR, 0, 1, 2]), max_size=3))
    entry = draw(st.sampled_from(entries))
    return entries, before + entry[: draw(st.integers(0, len(entry)))]


@given(queries(), st.integers(3, 12))
def test_matches_are_those_of_a_search_of_every_entry(
    asked: tuple[list[list[int]], list[int]], max_match: int
) -> None:
    entries, query = asked
    store = store_of(*entries)
    assert len(store) == len({tuple(entry) for entry in entries if len(entry) > MIN_MATCH})
    expected = searched(entries, query, max_match)
    found = store.matches(query, limit=1000, max_match=max_match)
    assert set(found) <= set(expected)
    assert found == sorted(found, key=lambda m: (-m.length, -m.entry, -m.end))
    # Of an n-gram that more than 16 places have the newest are kept.
    assert len(found) >= min(len(expected), 16)
    if len(expected) <= 16:
        assert found == expected
    for limit in (1, 3):
        assert store.matches(query, limit=limit, max_match=max_match) == found[:limit]


# LAW


def test_the_longest_match_comes_first_then_the_latest() -> None:
    store = store_of([1, 2, 3, 4, 10], [9, 2, 3, 4, 11], [8, 2, 3, 4, 12, SEPARATOR, 13])
    assert copies(store, [1, 2, 3, 4]) == [[10], [12], [11]]
    assert store.continuation(store.matches([1, 2, 3, 4])[0], 9).source == "generated"


def test_the_least_recently_useful_leaves_first() -> None:
    entries = [[n, n + 1, n + 2, n + 3, n + 4] for n in (10, 20, 30)]
    store = store_of(*entries)
    store.was_useful(store.matches([10, 11, 12])[0].entry)
    store.max_bytes = store.num_bytes
    store.add([40, 41, 42, 43, 44])
    assert len(store) == 3
    assert copies(store, [10, 11, 12]) == [[13, 14]]
    assert copies(store, [20, 21, 22]) == []
    store.add([50, 51, 52, 53, 54])
    assert copies(store, [30, 31, 32]) == []
    assert copies(store, [10, 11, 12]) == [[13, 14]]
    store.add(entries[0])  # said again: as useful as if it had been copied
    store.add([60, 61, 62, 63, 64])
    assert len(store) == 3
    assert copies(store, [40, 41, 42]) == []
    assert copies(store, [10, 11, 12]) == [[13, 14]]


def test_no_text_of_one_namespace_is_found_from_another() -> None:
    store = GeneratedStore()
    store.add([1, 2, 3, 4], namespace="a")
    store.add([1, 2, 3, 5], namespace="b")
    store.add([1, 2, 3, 6])
    assert copies(store, [1, 2, 3], namespace="a") == [[4]]
    assert copies(store, [1, 2, 3], namespace="b") == [[5]]
    assert copies(store, [1, 2, 3]) == [[6]]
    assert copies(store, [1, 2, 3], namespace="c") == []
    store.forget("a")
    assert copies(store, [1, 2, 3], namespace="a") == []
    assert store.namespaces() == ["", "b"]
    store.forget("nobody")


def test_what_leaves_leaves_nothing_behind() -> None:
    store = GeneratedStore(40_000)
    chance = random.Random(1)
    for n in range(300):
        store.add([chance.randrange(9) for _ in range(30)], namespace=str(n % 3))
        assert store.num_bytes <= store.max_bytes
    assert 0 < len(store) < 10
    for name in store.namespaces():
        store.forget(name)
    assert (len(store), store.num_bytes, store.namespaces()) == (0, 0, [])


@pytest.mark.parametrize("max_bytes", [0, 100, 2000])
def test_what_never_fits_is_cut_or_left_out(max_bytes: int) -> None:
    store = GeneratedStore(max_bytes)
    store.add(list(range(1000)))
    assert store.num_bytes <= max_bytes
    found = copies(store, [996, 997, 998])
    assert found == ([[999]] if max_bytes == 2000 else [])


@pytest.mark.parametrize("kind", ["never repeats", "repeats"])
def test_the_bound_is_one_of_memory(kind: str) -> None:
    chance = random.Random(2)
    tracemalloc.start()
    try:
        store = GeneratedStore(3_000_000)
        for _ in range(100):
            tokens = [chance.randrange(50_000) for _ in range(200)]
            store.add(tokens if kind == "never repeats" else tokens[:20] * 10)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) < 60, "it was filled"
    assert used <= store.max_bytes * 1.1, used / sum(len(store._entry(e)) for e in store._order)


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = GeneratedStore()
    store.add([1, 2, 3, 4, SEPARATOR, 5], namespace="tenant é")
    store.add([1, 2, 3, 2**31 - 1])
    store.was_useful(store.matches([1, 2, 3], namespace="tenant é")[0].entry)
    path = tmp_path / "generated"
    store.save(path, tokenizer="t")
    store.save(path, tokenizer="t")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = GeneratedStore.load(path, tokenizer="t")
    assert (len(again), again.num_bytes) == (len(store), store.num_bytes)
    assert copies(again, [1, 2, 3], namespace="tenant é") == [[4]]
    assert copies(again, [1, 2, 3]) == [[2**31 - 1]]
    small = GeneratedStore.load(path, tokenizer="t", max_bytes=3000)
    assert small.namespaces() == ["tenant é"], "the most useful is kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["generated"]


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "generated"
    store_of([1, 2, 3, 4]).save(path, tokenizer="t")
    with pytest.raises(DatastoreError, match="another tokenizer: got u, it holds tokens of t"):
        GeneratedStore.load(path, tokenizer="u")
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-1] + b"\x01", data[:20], data[:25] + b"x" + data[26:]):
        path.write_bytes(damaged)
        with pytest.raises(DatastoreError, match="damaged"):
            GeneratedStore.load(path, tokenizer="t")
    path.write_bytes(b"something else")
    with pytest.raises(DatastoreError, match="no generated texts of this version"):
        GeneratedStore.load(path, tokenizer="t")
    with pytest.raises(DatastoreError, match="cannot be read"):
        GeneratedStore.load(tmp_path, tokenizer="t")
