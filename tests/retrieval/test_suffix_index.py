"""The suffix array and its look-ups, against sorting and searching place by place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import VOCAB, add, documents, searched

from mmspec.errors import DatastoreError
from mmspec.retrieval import suffix_sort
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.places import Longest
from mmspec.retrieval.suffix_sort import DEPTH, sort_ends
from mmspec.retrieval.writer import DatastoreWriter

SEPARATOR = -1

tokens = st.lists(st.sampled_from([0, 0, 1, 1, 2]), max_size=30)
separated = st.lists(st.sampled_from([SEPARATOR, 0, 0, 1, 1, 2]), max_size=30)


def sorted_by_python(text: np.ndarray, vocab_size: int) -> list[int]:
    def key(end: int) -> tuple[list[int], int]:
        before = text[max(end - DEPTH, 0) : end][::-1]
        return np.minimum(before, vocab_size).tolist(), end

    return sorted(range(len(text)), key=key)


# ORACLE


@pytest.mark.parametrize("vocab_size", [3, 50, 40_000, 150_000, 2**31 - 1])
@pytest.mark.parametrize("kind", ["random", "one token", "periods", "copies", "long copies"])
def test_the_order_is_that_of_the_reversed_contexts(vocab_size: int, kind: str) -> None:
    rng = np.random.default_rng(5)
    count = 400
    text = {
        "random": rng.integers(0, min(vocab_size + 1, 5), count),
        "one token": np.full(count, 2),
        "periods": np.arange(count) % 3,
        "copies": np.tile(rng.integers(0, vocab_size, 100), 4),
        # What tells them apart lies further back than the order looks.
        "long copies": np.concatenate([[n, *np.arange(80) % 3] for n in (2, 1, 0)]),
    }[kind].astype(np.uint32)
    assert sort_ends(text, vocab_size=vocab_size).tolist() == sorted_by_python(text, vocab_size)


@given(st.lists(st.integers(0, 3), max_size=80))
def test_any_text_is_ordered_as_python_orders_it(text: list[int]) -> None:
    array = np.array(text, np.uint16)
    assert sort_ends(array, vocab_size=3).tolist() == sorted_by_python(array, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@settings(max_examples=40)  # each is a folder written
@given(
    texts=st.lists(separated, min_size=1, max_size=6),
    query=st.lists(st.sampled_from([SEPARATOR, 0, 1, 2, 3, VOCAB]), max_size=12),
    copied=st.integers(0, 30),
    max_match=st.integers(1, 10),
    deleted=st.sets(st.integers(0, 5)),
    segment_tokens=st.sampled_from([40, 1000]),
)
def test_a_look_up_finds_what_a_search_of_every_place_finds(
    folder: Path,
    texts: list[list[int]],
    query: list[int],
    copied: int,
    max_match: int,
    deleted: set[int],
    segment_tokens: int,
) -> None:
    """Of a text that ends as one of them begins: else few tokens would agree."""
    query = [*query, *texts[0][:copied]]
    path = folder / str(len(list(folder.iterdir())))
    add(path, documents(texts), segment_tokens=segment_tokens)
    gone = {number for number in deleted if number < len(texts)}
    with DatastoreWriter.open(path) as writer:
        assert writer.delete(f"d{number}" for number in gone) == len(gone)
    store = Datastore.open(path)
    kept = [[] if number in gone else text for number, text in enumerate(texts)]
    expected = searched(kept, query, max_match)
    longest = store.longest(query, max_match=max_match)
    assert (longest.length, longest.num_places) == (
        expected[0][0] if expected else 0,
        len(expected),
    )
    places = store.places(longest, limit=1000)
    found = [(longest.length, int(store.document_of(place).id[1:]), place) for place in places]
    assert len(set(found)) == len(found) == len(expected)
    starts = [text_start(store, place) for _, _, place in found]
    assert {
        (length, number, place.offset - start)
        for (length, number, place), start in zip(found, starts, strict=True)
    } == set(expected)
    for (_, number, place), start in zip(found, starts, strict=True):
        follows = [*kept[number][place.offset - start :], SEPARATOR]
        assert store.tokens_from(place, 99) == follows[: follows.index(SEPARATOR)]
        assert store.tokens_before(place, longest.length) == query[-longest.length :]


def text_start(store: Datastore, place) -> int:
    shard = store.segments[place.segment].shard
    return int(shard.documents["start"][shard.document_of(place.offset)])


# LAW


@pytest.mark.parametrize("segment_tokens", [6, 1000])
def test_the_longest_end_wins_over_more_places(tmp_path: Path, segment_tokens: int) -> None:
    texts = [[1, 2, 3, 4], [9, 2, 3, 5], [9, 3, 6]]
    store = add(tmp_path / "s", documents(texts), segment_tokens=segment_tokens)
    assert len(store.segments) == (3 if segment_tokens == 6 else 1)
    assert follows(store, [1, 2, 3]) == (3, [[4]])
    assert follows(store, [7, 2, 3]) == (2, [[4], [5]])
    assert follows(store, [7, 3]) == (1, [[4], [5], [6]])
    assert follows(store, [7]) == (0, [])


def follows(store: Datastore, query: list[int]) -> tuple[int, list[list[int]]]:
    longest = store.longest(query)
    return longest.length, sorted(
        store.tokens_from(place, 9) for place in store.places(longest, limit=9)
    )


def test_no_match_crosses_from_one_document_into_the_next(tmp_path: Path) -> None:
    store = add(tmp_path / "s", documents([[1, 2], [3, 4], [2, 9, 3, 5]]))
    assert store.longest([1, 2, 3]).length == 1
    assert follows(store, [2]) == (1, [[9, 3, 5]]), "nothing follows the 2 that ends a document"


def test_nothing_is_found_in_an_empty_datastore(tmp_path: Path) -> None:
    store = add(tmp_path / "s", [])
    assert store.longest([1, 2]) == Longest(0, 0, ())
    assert store.continuations([1, 2]) == []
    store = add(tmp_path / "t", documents([[], [5]]))
    assert not store.longest([5]).num_places
    store.check_integrity()


def test_an_even_sample_takes_from_every_segment(tmp_path: Path) -> None:
    texts = [[1, 2, 10 + n] for n in range(30)]
    store = add(tmp_path / "s", documents(texts), segment_tokens=41)
    longest = store.longest([1, 2])
    assert longest.num_places == 30
    places = store.places(longest, limit=6)
    assert {place.segment for place in places} == set(range(len(store.segments)))
    assert len(set(places)) == 6
    for limit in range(1, len(store.segments) + 1):
        few = store.places(longest, limit=limit)
        assert len({place.segment for place in few}) == len(few) == limit


def test_separators_within_a_document_and_behind_it_are_no_tokens(tmp_path: Path) -> None:
    store = add(tmp_path / "s", documents([[1], [2, SEPARATOR, 6], [3, 4, 5]]))
    (place,) = store.places(store.longest([3, 4]))
    assert store.tokens_before(place, 99) == [3, 4], "behind the nearest of several"
    first = [document.position for document in store.documents_from()]
    whole = store.tokens_at(np.arange(first[0], first[-1] + 3))
    assert whole.tolist() == [1, -1, 2, -1, 6, -1, 3, 4, 5]
    with DatastoreWriter.open(tmp_path / "s") as writer:
        writer.delete(["d1"])
    left = [document.name.id for document in store.latest().documents_from()]
    assert left == ["d0", "d2"]


def test_a_sample_is_spread_evenly_over_what_stood_before(tmp_path: Path) -> None:
    store = add(tmp_path / "s", documents([[10 + n, 1, 2] for n in range(20)]))
    places = store.places(store.longest([1]), limit=5)
    assert [store.document_of(place).id for place in places] == ["d0", "d4", "d8", "d12", "d16"]


@pytest.mark.parametrize("count", range(1, 20))
def test_a_match_is_followed_to_the_first_place_of_all(tmp_path: Path, count: int) -> None:
    store = add(tmp_path / "s", documents([[1, 0] * count + [3]]))
    longest = store.longest([2, 0])  # 0, the least token, stands before the first places
    assert (longest.length, longest.num_places) == (1, count)


@pytest.mark.parametrize("outside", [2**16 - 1, 2**16, 2**40])
def test_a_number_that_is_no_token_matches_nothing(tmp_path: Path, outside: int) -> None:
    """Nor does that of the separator on the disk."""
    store = add(tmp_path / "s", documents([[1, 2, 9], [3, 4]]))
    assert store.longest([outside, 3]).length == 1
    assert store.longest([2, outside]).length == 0


def test_shorter_ends_are_half_as_long_and_never_too_many(tmp_path: Path) -> None:
    query = list(range(1, 9))
    texts = [[20, *query[-length:], 30 + length] for length in range(1, 9)]
    store = add(tmp_path / "s", documents(texts))
    found = store.continuations(query, min_match=1, limit=100)
    halves = [8] + [4] * 4 + [2] * 2 + [1]  # those of the longer ends have the shorter ones, too
    assert [one.match_length for one in found] == halves
    few = store.continuations(query, min_match=1, limit=3)
    assert [one.match_length for one in few] == halves[:3]


def test_shorter_ends_fill_up_what_the_longest_leaves(tmp_path: Path) -> None:
    texts = [[1, 2, 3, 4, 30], [9, 3, 4, 31], [8, 8, 4, 32]]
    store = add(tmp_path / "s", documents(texts))
    found = store.continuations([1, 2, 3, 4], min_match=1)
    assert [(one.tokens, one.match_length) for one in found] == [([30], 4), ([31], 2), ([32], 1)]
    assert {one.source for one in found} == {"suffix"}
    assert store.continuations([1, 2, 3, 4], min_match=0) == found
    found = store.continuations([1, 2, 3, 4], min_match=2)
    assert [one.match_length for one in found] == [4, 2]
    assert len(store.continuations([1, 2, 3, 4], min_match=1, limit=2)) == 2
    assert store.continuations([7, 4], min_match=2) == [], "too short to begin with"


def test_a_match_is_counted_up_to_the_cap_and_no_further_than_the_order(tmp_path: Path) -> None:
    store = add(tmp_path / "s", documents([[n % 7 for n in range(200)]]))
    query = [n % 7 for n in range(100)]
    assert store.longest(query, max_match=5).length == 5
    assert store.longest(query, max_match=DEPTH).length == DEPTH
    with pytest.raises(ValueError, match="max_match=65"):
        store.longest(query, max_match=DEPTH + 1)


@pytest.mark.parametrize("vocab_size", [2**16 - 1, 2**16, 2**31 - 1])
def test_a_vocabulary_s_last_token_is_no_separator(tmp_path: Path, vocab_size: int) -> None:
    last = vocab_size - 1
    store = add(tmp_path / "s", documents([[last, last, 1]]), vocab_size=vocab_size)
    assert follows(store, [last]) == (1, [[1], [last, 1]])
    assert follows(store, [last, last]) == (2, [[1]])
    store.check_integrity()


@pytest.mark.parametrize("damage", ["swapped", "doubled", "outside"])
def test_a_damaged_suffix_array_is_noticed(tmp_path: Path, damage: str) -> None:
    add(tmp_path / "s", documents([[1, 2, 3, 1, 2, 4]]))
    (path,) = (tmp_path / "s").glob("*.suffixes")
    places = np.fromfile(path, np.uint32)
    if damage == "swapped":
        places[:2] = places[1::-1]
    else:
        places[-1] = places[-2] if damage == "doubled" else 1000
    places.tofile(path)
    store = Datastore.open(tmp_path / "s", verify=False)
    with pytest.raises(DatastoreError, match="out of order"):
        store.segments[0].check_integrity()


def test_a_text_too_long_for_one_array_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Long:
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(ValueError, match="2\\^32"):
        suffix_sort.sort_ends(Long(), vocab_size=3)  # type: ignore[arg-type]
