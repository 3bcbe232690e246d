"""DenseIndex: exact while small, near enough when large; adds, deletes, damage, no faiss."""

import logging
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from stores import add, documents

from mmspec.errors import DatastoreError, MissingExtraError
from mmspec.retrieval import dense_index
from mmspec.retrieval.continuations import Continuation
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.dense_builder import DenseBuilder
from mmspec.retrieval.dense_index import DenseIndex
from mmspec.retrieval.dense_keys import KeyBatch
from mmspec.retrieval.writer import DatastoreWriter

DIM = 24
WEIGHTS = "weights-a"


@pytest.fixture
def with_faiss() -> None:
    pytest.importorskip("faiss", reason="needs faiss: install mmspec[cpu]")


@pytest.fixture(params=["faiss", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs faiss: install mmspec[cpu]")
    else:
        hide_faiss(monkeypatch)
    return request.param


def hide_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)


def states(count: int, seed: int = 0) -> np.ndarray:
    """Like hidden states: clusters along few directions, and noise. (count, DIM)"""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(8, DIM))
    centres = np.random.default_rng(8).normal(size=(60, 8))
    latent = centres[rng.integers(0, 60, count)] + 0.4 * rng.normal(size=(count, 8))
    return (latent @ directions + 0.2 * rng.normal(size=(count, DIM)) + 1.0).astype(np.float32)


def built(builder: DenseBuilder, path: Path) -> DenseIndex:
    path = path.with_suffix(builder.suffix)
    with path.open("wb") as file:
        builder.write(file)
    return DenseIndex.open(path, dim=builder.dim)


def cosine_order(keys: np.ndarray, query: np.ndarray) -> np.ndarray:
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return np.argsort(-(unit @ (query / np.linalg.norm(query))), kind="stable")


# ORACLE


def test_few_keys_are_searched_exactly(either: str, tmp_path: Path) -> None:
    keys = states(90)
    builder = DenseBuilder(DIM)
    builder.add(np.arange(90) * 10**10, keys)
    index = built(builder, tmp_path / "x")
    queries = states(5, seed=1)
    found = index.search(queries, limit=7)
    for row, query in enumerate(queries):
        assert found.positions[row].tolist() == (cosine_order(keys, query)[:7] * 10**10).tolist()
        assert (np.diff(found.distances[row]) >= 0).all()
    itself = index.search(keys[3:4], limit=1)
    assert itself.positions.tolist() == [[3 * 10**10]]
    assert itself.distances[0, 0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.usefixtures("with_faiss")
def test_the_compressed_index_agrees_with_the_exact_one(tmp_path: Path) -> None:
    keys = states(4000)
    flat, codes = (DenseBuilder(DIM, components=8, exact_below=n) for n in (10**6, 1000))
    for builder in (flat, codes):
        for start in range(0, 4000, 1000):
            part = slice(start, start + 1000)
            builder.add(np.arange(4000)[part], keys[part])
    queries = states(100, seed=1)
    exact, near = (
        built(builder, tmp_path / name).search(queries, limit=10).positions
        for builder, name in ((flat, "flat"), (codes, "codes"))
    )
    assert (tmp_path / "codes.faiss").stat().st_size < (tmp_path / "flat.faiss").stat().st_size / 2
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, near, strict=True)])
    assert recall >= 0.9, recall


# LAW


@pytest.mark.usefixtures("with_faiss")
def test_it_grows_from_a_handful_to_compressed_and_keeps_every_key(tmp_path: Path) -> None:
    keys = states(900)
    builder = DenseBuilder(DIM, components=8, exact_below=500)
    path = tmp_path / "none"
    sizes = [0, 5, 60, 200, 450, 900]
    for start, stop in pairwise(sizes):
        builder.add(np.arange(start, stop), keys[start:stop])
        assert len(builder) == stop
        found = built(builder, tmp_path / str(stop)).search(keys[:stop], limit=3).positions
        hits = np.mean([n in row for n, row in enumerate(found)])
        assert hits >= 0.98, (stop, hits)
        path = tmp_path / f"{stop}.faiss"
        builder = DenseBuilder(DIM, components=8, exact_below=500)
        builder.load(path)
    assert len(builder) == 900


@pytest.mark.usefixtures("with_faiss")
def test_a_part_of_a_large_index_forgets_keys_as_any_other(tmp_path: Path) -> None:
    """Of 900 keys no more lists are learnt than of 700, though a million are to come."""
    keys = states(900)
    builder = DenseBuilder(DIM, components=8, exact_below=500)
    for name, stop in (("first", 700), ("second", 900)):
        builder.add(np.arange(len(builder), stop), keys[len(builder) : stop], expected=10**6)
        with (tmp_path / f"{name}.faiss").open("wb") as file:
            builder.write(file, expected=10**6)
    builder = DenseBuilder(DIM)
    builder.load(tmp_path / "second.faiss")
    builder.remove(range(0, 900, 2))
    found = built(builder, tmp_path / "left").search(keys[:9], limit=1).positions
    assert len(builder) == 450 and (found % 2 == 1).all()


@pytest.mark.usefixtures("with_faiss")
def test_an_index_that_has_outgrown_its_lists_is_laid_out_anew(tmp_path: Path) -> None:
    import faiss

    keys = states(12_000)
    builder = DenseBuilder(DIM, components=8, exact_below=500)
    lists = []
    for stop in (600, 12_000):
        builder.add(np.arange(len(builder), stop), keys[len(builder) : stop])
        index = built(builder, tmp_path / str(stop))
        lists.append(faiss.extract_index_ivf(index._index._index).nlist)
    assert lists[0] < 40 and lists[1] >= 8 * lists[0]
    found = index.search(keys[::50], limit=3).positions
    assert np.mean([50 * n in row for n, row in enumerate(found)]) >= 0.98


def test_removed_keys_are_not_found(either: str, tmp_path: Path) -> None:
    keys = states(50)
    builder = DenseBuilder(DIM)
    builder.add(np.arange(50), keys)
    built(builder, tmp_path / "a")
    builder.remove([3, 7, 999])
    assert len(builder) == 48
    found = built(builder, tmp_path / "b").search(keys[3:4], limit=50).positions[0].tolist()
    assert sorted(found) == [-1, -1, *(n for n in range(50) if n not in (3, 7))]


@pytest.mark.parametrize("bad", [np.zeros((2, DIM + 1)), np.full((2, DIM), np.nan)])
def test_keys_that_are_none_are_refused(either: str, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected finite values"):
        DenseBuilder(DIM).add(np.arange(2), bad.astype(np.float32))


def test_queries_of_another_size_are_refused(either: str, tmp_path: Path) -> None:
    builder = DenseBuilder(DIM)
    builder.add(np.arange(4), states(4))
    with pytest.raises(ValueError, match=f"expected \\(rows, {DIM}\\)"):
        built(builder, tmp_path / "x").search(np.zeros((1, DIM + 2), np.float32), limit=1)


def test_without_faiss_it_says_so_once_and_takes_no_more_than_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hide_faiss(monkeypatch)
    with caplog.at_level(logging.WARNING):
        builder = DenseBuilder(DIM, exact_below=20)
        builder.add(np.arange(10), states(10))
        builder.add(np.arange(10, 20), states(10))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "mmspec[cpu]" in caplog.text
    with pytest.raises(MissingExtraError, match="more than 20 keys"):
        builder.add(np.arange(1), states(1))


@pytest.mark.usefixtures("with_faiss")
def test_a_gpu_is_used_where_this_faiss_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    builder = DenseBuilder(DIM)
    builder.add(np.arange(9), states(9))
    built(builder, tmp_path / "x")
    path = tmp_path / "x.faiss"
    if not hasattr(faiss, "index_cpu_to_gpu"):
        with pytest.raises(MissingExtraError, match="this faiss has no GPU"):
            DenseIndex.open(path, dim=DIM, use_gpu=True)
    moved = with_one_gpu(monkeypatch)
    assert DenseIndex.open(path, dim=DIM).search(states(9), limit=1).positions.shape == (9, 1)
    assert moved == [0]
    DenseIndex.open(path, dim=DIM, use_gpu=False)
    assert len(moved) == 1


def with_one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A faiss with the interface of the GPU builds, whose GPU is this CPU. `clone_index` is what
    moves an index there too, and declines the same parts. Returns the devices moved to."""
    import faiss

    moved: list[int] = []

    def index_cpu_to_gpu(resources: object, device: int, index: object) -> object:
        assert resources == "gpu"
        copy = faiss.clone_index(index)
        copy.nprobe = index.nprobe  # type: ignore[attr-defined]
        moved.append(device)
        return copy

    for name, value in (
        ("get_num_gpus", lambda: 1),
        ("StandardGpuResources", lambda: "gpu"),
        ("index_cpu_to_gpu", index_cpu_to_gpu),
    ):
        monkeypatch.setattr(faiss, name, value, raising=False)
    return moved


@pytest.mark.usefixtures("with_faiss")
@pytest.mark.parametrize("count, exact_below", [(9, 10**6), (600, 10**6), (4000, 1000)])
def test_the_gpu_finds_what_the_cpu_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, exact_below: int
) -> None:
    """Unprojected, projected, and 8-bit codes in lists."""
    builder = DenseBuilder(DIM, components=8, exact_below=exact_below)
    builder.add(np.arange(count) * 7, states(count))
    on_cpu = built(builder, tmp_path / "x")
    moved = with_one_gpu(monkeypatch)
    on_gpu = DenseIndex.open(tmp_path / "x.faiss", dim=DIM, use_gpu=True)
    assert moved == [0]
    queries = states(20, seed=1)
    expected, found = (index.search(queries, limit=5) for index in (on_cpu, on_gpu))
    assert np.array_equal(found.positions, expected.positions)
    assert np.allclose(found.distances, expected.distances, atol=1e-6)


@pytest.mark.usefixtures("with_faiss")
def test_a_gpu_that_cannot_take_the_index_is_said_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import faiss

    builder = DenseBuilder(DIM)
    builder.add(np.arange(9), states(9))
    expected = built(builder, tmp_path / "x").search(states(9), limit=1)
    with_one_gpu(monkeypatch)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", fail)
    with caplog.at_level(logging.WARNING):
        found = DenseIndex.open(tmp_path / "x.faiss", dim=DIM).search(states(9), limit=1)
    assert np.array_equal(found.positions, expected.positions)
    assert "searched on the CPU, as faiss says: out of memory" in caplog.text
    with pytest.raises(DatastoreError, match="use_gpu=True: out of memory"):
        DenseIndex.open(tmp_path / "x.faiss", dim=DIM, use_gpu=True)


# LAW: in a datastore


def datastore(folder: Path) -> tuple[Datastore, np.ndarray]:
    """Documents 1 2 3 and so on; the key of a position is the state of its number."""
    add(folder, documents([[n, n + 1, n + 2] for n in range(0, 30, 3)]))
    keys = states(40)
    with DatastoreWriter.open(folder) as writer:
        positions = np.array([p for p in range(40) if p % 4 < 3])
        halves = np.array_split(positions, 2)
        writer.add_keys(
            (KeyBatch(half, keys[half]) for half in halves),
            dim=DIM,
            fingerprint=WEIGHTS,
            probe=keys[0],
        )
    return Datastore.open(folder), keys


def test_a_hidden_state_finds_what_followed_it(either: str, tmp_path: Path) -> None:
    store, keys = datastore(tmp_path / "s")
    found = store.nearest(keys[[5, 8]], limit=4)
    assert found.positions[:, 0].tolist() == [5, 8]
    place = store.place_of(5)
    assert store.tokens_from(place, 9) == [4, 5]
    assert store.tokens_before(place, 9) == [3]
    one = Continuation(store.tokens_from(place, 9), 1, "dense", float(found.distances[0, 0]))
    assert one.weight() > 30
    store.check_integrity()


def test_keys_are_added_in_parts_from_where_the_last_part_ended(
    either: str, tmp_path: Path
) -> None:
    folder, keys = tmp_path / "s", states(40)
    add(folder, documents([[n, n + 1, -1, n + 3] for n in range(4)]))
    for _ in range(3):
        store = Datastore.open(folder)
        done = store.manifest.dense.next_position if store.manifest.dense else 0
        batches = [
            KeyBatch(np.arange(d.position, d.position + 4), keys[d.position : d.position + 4])
            for d in store.documents_from(done)
        ]
        with DatastoreWriter.open(folder) as writer:
            writer.add_keys(batches[:2], dim=DIM, fingerprint=WEIGHTS)
    store = Datastore.open(folder)
    assert (store.manifest.dense.num_keys, store.manifest.dense.next_position) == (16, 19)
    assert [d.position for d in store.documents_from(0)] == [0, 5, 10, 15]
    assert [d.tokens for d in store.documents_from(8)] == [
        [1, 2, -1, 4],
        [2, 3, -1, 5],
        [3, 4, -1, 6],
    ]
    assert store.nearest(keys[16:17], limit=1).positions.tolist() == [[16]]


def test_deleted_documents_leave_the_dense_index_too(either: str, tmp_path: Path) -> None:
    store, keys = datastore(tmp_path / "s")
    with DatastoreWriter.open(tmp_path / "s") as writer:
        writer.delete(["d1"])
    now = store.latest()
    assert now.manifest.dense.num_keys == store.manifest.dense.num_keys - 3
    assert not {4, 5, 6} & {*now.nearest(keys[5:6], limit=40).positions[0].tolist()}
    assert store.place_of(5) is not None and now.place_of(5) is None
    with DatastoreWriter.open(tmp_path / "s") as writer:
        writer.purge()
        writer.delete(f"d{n}" for n in range(10) if n != 1)
    gone = now.latest()
    assert gone.manifest.dense is None
    with pytest.raises(DatastoreError, match="has no dense index"):
        gone.nearest(keys[:1])


def test_another_target_s_hidden_states_are_refused(either: str, tmp_path: Path) -> None:
    store, keys = datastore(tmp_path / "s")
    store.check_target(fingerprint=WEIGHTS)
    store.check_target(fingerprint=WEIGHTS, probe=keys[0] * 1.01)
    with pytest.raises(DatastoreError, match="got weights-b, it was built with weights-a"):
        store.check_target(fingerprint="weights-b")
    for probe in (keys[1], keys[0][:-1], np.zeros(DIM), np.full(DIM, np.nan)):
        with pytest.raises(DatastoreError, match="hidden state of the probe"):
            store.check_target(fingerprint=WEIGHTS, probe=probe)
    batch = KeyBatch(np.array([1]), keys[:1])
    with DatastoreWriter.open(tmp_path / "s") as writer:
        with pytest.raises(DatastoreError, match="other weights"):
            writer.add_keys([batch], dim=DIM, fingerprint="weights-b")


def test_a_damaged_dense_index_is_never_read(
    either: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, keys = datastore(tmp_path / "s")
    path = tmp_path / "s" / store.manifest.dense.file.name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def read(*path: object, **how: object) -> None:
        raise AssertionError("read before it was checked")

    monkeypatch.setattr(dense_index.DenseIndex, "open", read)
    unchecked = Datastore.open(tmp_path / "s", verify=False)
    assert unchecked.longest([3, 4]).num_places, "the rest of it works"
    with pytest.raises(DatastoreError, match="SHA-256"):
        unchecked.nearest(keys[:1])
    with DatastoreWriter.open(tmp_path / "s") as writer:
        with pytest.raises(DatastoreError, match="SHA-256"):
            writer.delete(["d1"])


def test_without_faiss_the_tokens_of_a_datastore_are_still_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="needs faiss: install mmspec[cpu]")
    store, keys = datastore(tmp_path / "s")
    hide_faiss(monkeypatch)
    store = Datastore.open(tmp_path / "s")
    assert store.longest([3, 4]).num_places
    with pytest.raises(MissingExtraError, match="mmspec\\[cpu\\]"):
        store.nearest(keys[:1])
