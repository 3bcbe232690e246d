"""DatastoreWriter and Datastore: commits, damage, wrong targets, two at once, full disks, kills."""

import copy
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import TOKENIZER, VOCAB, add, documents

import mmspec
from mmspec.errors import DatastoreError
from mmspec.retrieval import KeyBatch, merging
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.journal import JOURNAL, Journal, read_journal, write_journal
from mmspec.retrieval.manifest import MANIFEST, read_manifest
from mmspec.retrieval.writer import DatastoreWriter

ROOT = Path(mmspec.__file__).parent.parent
TEXTS = [[n % 40, n % 7, n % 5, 41, n % 3, n % 11] for n in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A datastore of sixty documents in a few segments."""
    add(tmp_path / "store", documents(TEXTS), segment_tokens=200)
    return tmp_path / "store"


def everything(folder: Path) -> dict[str, bytes]:
    """All files, the manifest without its times."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "LOCK"}
    if MANIFEST in files:
        values = json.loads(files[MANIFEST])
        del values["created"], values["updated"]
        files[MANIFEST] = json.dumps(values).encode()
    return files


def ids(store: Datastore) -> list[str]:
    return [name.id for segment in store.segments for name in segment.names]


# LAW: what is added and deleted


def test_documents_come_back_as_they_went_in(folder: Path) -> None:
    store = Datastore.open(folder, tokenizer=TOKENIZER, vocab_size=VOCAB)
    assert len(store.segments) == 3
    assert (store.manifest.num_documents, store.manifest.num_tokens) == (60, 360)
    assert ids(store) == [f"d{n}" for n in range(60)]
    for number, segment in enumerate(store.segments):
        for record, name in zip(segment.shard.documents, segment.shard.names, strict=True):
            start, length, position = record.tolist()
            assert segment.shard.read(start, start + length) == TEXTS[int(name.id[1:])]
            assert name.source == f"{name.id}.txt"
            place = store.place_of(position + 2)
            assert place == (number, start + 2)
            assert store.place_of(position + length) is None, "a separator is no place"
            offsets = segment.shard.offsets_of(np.array([position, position + length]))
            assert offsets.tolist() == [start, -1]
    store.check_integrity()


def test_nothing_counts_before_the_commit(folder: Path) -> None:
    before = read_manifest(folder)
    with DatastoreWriter.open(folder) as writer:
        writer.begin()
        writer.append(Document("new", "new", [1, 2, 3]))
        assert read_manifest(folder) == before
    assert Datastore.open(folder).manifest == before


def test_deleted_documents_are_not_found_and_leave_the_disk_when_purged(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    add(folder, documents([[1, 2, 3], [1, 2, 4], [1, 2, 5]]))
    with DatastoreWriter.open(folder) as writer:
        assert writer.delete(["d1", "d1"]) == 1
    store = Datastore.open(folder)
    assert ids(store) == ["d0", "d2"]
    rows = sorted(one.tokens for one in store.continuations([1, 2]))
    assert rows == [[3], [5]]
    places = {name: store.place_of(4 * n) for n, name in enumerate(["d0", "d1", "d2"])}
    assert places["d1"] is None
    store.check_integrity()
    assert (4).to_bytes(2, "little") in next(folder.glob("*.tokens")).read_bytes()
    with DatastoreWriter.open(folder) as writer:
        writer.purge()
    assert (4).to_bytes(2, "little") not in next(folder.glob("*.tokens")).read_bytes()
    purged = Datastore.open(folder)
    purged.check_integrity()
    assert sorted(one.tokens for one in purged.continuations([1, 2])) == rows
    for name in ("d0", "d2"):
        assert purged.document_of(purged.place_of(4 * int(name[1]))).id == name, "positions stay"
    with DatastoreWriter.open(folder) as writer:
        assert writer.delete(["d0", "d2"]) == 2
    assert Datastore.open(folder).segments == ()


def test_an_unknown_id_deletes_nothing(folder: Path) -> None:
    before = everything(folder)
    with DatastoreWriter.open(folder) as writer:
        with pytest.raises(DatastoreError, match="no document with id 'nobody'"):
            writer.delete(["d1", "nobody"])
    assert everything(folder) == before


def test_an_id_is_given_once(folder: Path) -> None:
    with DatastoreWriter.open(folder) as writer:
        writer.begin()
        writer.append(Document("new", "new", [1]))
        for taken in ("new", "d7"):
            with pytest.raises(DatastoreError, match=f"'{taken}'.*is there already"):
                writer.append(Document(taken, "again", [1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Document("new", "new", [1, VOCAB]), f"token {VOCAB} lies outside"),
        (Document("new", "new", [1, 2**63]), "expected integer tokens"),
        (Document("new", "new", [1.0, 2.5]), "got .1.0, 2.5. .*expected integer tokens"),
        (Document("new", "new", [1, None]), "expected integer tokens"),
        (Document("new", "new", "a text"), "expected integer tokens"),
        (Document("new", Path("new.txt"), [1]), "strings as its id and source"),
    ],
)
def test_what_is_no_document_is_refused_and_the_next_one_is_taken(
    folder: Path, wrong: Document, message: str
) -> None:
    with DatastoreWriter.open(folder) as writer:
        writer.begin()
        with pytest.raises(DatastoreError, match=message):
            writer.append(wrong)
        writer.append(Document("new", "new", np.array([[1, 2]], np.uint16)))
        writer.commit()
    assert ids(Datastore.open(folder))[-1] == "new"


@pytest.mark.parametrize(("limit", "merged"), [(12, 1), (2, 5)])
def test_many_small_segments_are_merged_and_nothing_is_lost(
    tmp_path: Path, limit: int, merged: int
) -> None:
    folder, most = tmp_path / "s", merging.MAX_SMALL_SEGMENTS
    sizes = [*range(1, most + 1), merged, merged + 1, merged + 2]
    for n, size in enumerate(sizes):  # a document takes 4 tokens, `limit` fit into a segment
        new = documents([[1, 2, 3 + n]], prefix=f"{n}-")
        store = add(folder, new, segment_tokens=4 * limit + 2)
        assert len(store.segments) == size
        store.check_integrity()
    count = len(sizes)
    assert sorted(one.tokens for one in store.continuations([1, 2])) == [
        [3 + n] for n in range(count)
    ]
    places = [store.place_of(4 * n) for n in range(count)]
    assert [store.document_of(place).id for place in places if place] == [
        f"{n}-0" for n in range(count)
    ]
    listed = {file.name for file in store.manifest.files}
    assert {path.name for path in folder.iterdir()} - {"LOCK"} == {*listed, MANIFEST}


def test_positions_stay_right_whatever_is_merged_purged_and_merged_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    texts = {
        f"{part}{n}": [ord(part) % 32, n, *range(15)] if part in "ab" else [n]
        for part, count in (("z", 1), ("a", 5), ("b", 5), ("c", 9), ("d", 9))
        for n in range(count)
    }

    def add_each(*parts: list[str]) -> None:
        for part in parts:
            add(folder, [Document(id, "", texts[id]) for id in part], segment_tokens=100)

    def purge(*gone: str) -> None:
        with DatastoreWriter.open(folder) as writer:
            assert writer.delete(gone) == len(gone)
            writer.purge()

    a, b = ([f"{part}{n}" for n in range(5)] for part in "ab")
    add_each(["z0"], a, b)
    purge("b0")  # the later one is written anew first
    purge("a0")
    add_each(*([f"c{n}"] for n in range(9)))  # small ones, merged with what is before a
    purge("a1", "a2", "b1", "b2")  # two small ones more
    add_each(*([f"d{n}"] for n in range(9)))
    store = Datastore.open(folder)
    store.check_integrity()
    found = {document.name.id: document for document in store.documents_from()}
    assert found.keys() == texts.keys() - {"a0", "b0", "a1", "a2", "b1", "b2"}
    for id, document in found.items():
        assert document.tokens == texts[id]
        positions = document.position + np.arange(len(texts[id]))
        assert store.tokens_at(positions).tolist() == texts[id]
        places = [store.place_of(position) for position in positions.tolist()]
        assert [store.tokens_from(place, 1) for place in places if place] == [
            [t] for t in texts[id]
        ]


def test_a_document_longer_than_a_segment_is_cut(tmp_path: Path) -> None:
    text, next_one = [n % 40 for n in range(100)], [7] * 16  # with its separator one too many
    given = [Document("long", "", text), Document("next", "", next_one)]
    store = add(tmp_path / "s", given, segment_tokens=30)
    read = [segment.shard.read(0, 30) for segment in store.segments]
    assert [token for piece in read for token in piece] == text + next_one
    assert [*map(len, read)] == [29, 29, 29, 13, 16]
    with DatastoreWriter.open(tmp_path / "s") as writer:
        assert writer.delete(["long"]) == 1


# LAW: readers and other writers


def test_a_reader_keeps_what_it_opened_while_a_writer_adds_and_deletes(folder: Path) -> None:
    store = Datastore.open(folder)
    before = store.continuations([41])
    with DatastoreWriter.open(folder) as writer:
        writer.delete(["d1", "d59"])
        writer.purge()
        writer.begin()
        writer.append(Document("new", "new", [41, 42, 43, 44]))
        writer.commit()
    assert store.continuations([41]) == before
    assert not store.longest([42]).num_places
    with pytest.raises(DatastoreError, match="a writer has replaced this file"):
        store.check_integrity()
    now = store.latest()
    assert now.longest([41, 42]).length == 2
    assert now.latest() is now
    now.check_integrity()


def test_a_reader_that_opens_while_a_writer_commits_sees_one_commit(folder: Path) -> None:
    is_done = threading.Event()

    def write() -> None:
        try:
            for n in range(12):
                with DatastoreWriter.open(folder) as writer:
                    writer.begin()
                    writer.append(Document(f"new{n}", "", [42, 43, n]))
                    writer.commit()
                    writer.delete([f"d{n}"])
                    writer.purge()
        finally:
            is_done.set()

    thread = threading.Thread(target=write)
    thread.start()
    generations = []
    while not is_done.is_set() or not generations:
        store = Datastore.open(folder, verify=False)
        generations.append(store.manifest.generation)
        present = ids(store)
        assert len(present) == store.manifest.num_documents
        added = [name for name in present if name.startswith("new")]
        assert store.longest([42, 43]).num_places == len(added)
    thread.join()
    assert generations == sorted(generations) and len(set(generations)) > 1
    Datastore.open(folder).check_integrity()


def test_a_reader_goes_on_when_the_folder_is_deleted(folder: Path) -> None:
    store = Datastore.open(folder)
    before = store.continuations([41])
    shutil.rmtree(folder)
    assert store.continuations([41]) == before
    assert store.document_of(store.place_of(0)).id == "d0"
    with pytest.raises(DatastoreError, match="no datastore here"):
        store.latest()


def test_a_second_writer_is_told_and_a_dead_one_is_not_in_the_way(folder: Path) -> None:
    with DatastoreWriter.open(folder):
        with pytest.raises(DatastoreError, match="another writer is at work"):
            DatastoreWriter.open(folder)
        with pytest.raises(DatastoreError, match="another writer is at work"):
            DatastoreWriter.create(folder, tokenizer=TOKENIZER, vocab_size=VOCAB)
        assert run(f"DatastoreWriter.open({str(folder)!r})", check=False).returncode == 1
    run(f"w = DatastoreWriter.open({str(folder)!r}); os.kill(os.getpid(), 9)", check=False)
    DatastoreWriter.open(folder).close()


# LAW: what is refused


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"tokenizer": "tokenizer-b"}, "another tokenizer: got tokenizer-b, it holds .*-a"),
        ({"vocab_size": VOCAB - 1}, "go up to 49, the target's vocabulary has 49"),
    ],
)
def test_another_target_is_refused(folder: Path, wanted: dict, message: str) -> None:
    with pytest.raises(DatastoreError, match=message):
        Datastore.open(folder, **wanted)
    Datastore.open(folder, tokenizer=TOKENIZER, vocab_size=VOCAB + 64)  # padded: more is fine
    if "tokenizer" in wanted:
        with pytest.raises(DatastoreError, match=message):
            DatastoreWriter.create(folder, tokenizer="tokenizer-b", vocab_size=VOCAB)


def test_another_format_version_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DatastoreError, match="got format 2, this version of mmspec reads format 1"):
        Datastore.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\xff"])
def test_a_broken_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(DatastoreError, match=MANIFEST):
        Datastore.open(folder)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a JSON text, the whole first."""
    yield path
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("wrong", [{"a": 1}, ["x"], -1])
@pytest.mark.parametrize("name", [MANIFEST, JOURNAL])
def test_a_value_of_another_kind_is_refused(folder: Path, name: str, wrong: Any) -> None:
    """Wherever it stands."""
    with DatastoreWriter.open(folder) as writer:
        writer.add_keys(
            [KeyBatch(np.arange(2), np.eye(2, 4, dtype=np.float32))],
            dim=4, fingerprint="f", probe=(1.0, 0.0, 0.0, 0.0),
        )  # fmt: skip
        writer.begin(inputs="more", segment_tokens=8)
        for document in documents([[1, 2, 3, 4]] * 3, prefix="more"):
            writer.append(document)
        assert writer._appender is not None
        writer._appender.checkpoint()
    values = json.loads((folder / name).read_text())
    for path in places(values):
        mended = copy.deepcopy(values)
        place: Any = mended
        for key in path[:-1]:
            place = place[key]
        if path and not (wrong == -1 and "probe" in path):  # a number like any other
            place[path[-1]] = wrong
            (folder / name).write_text(json.dumps(mended))
            with pytest.raises(DatastoreError, match=name):
                read_journal(folder) if name == JOURNAL else read_manifest(folder)


def test_begun_again_an_add_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """What the first attempt still held in memory does not get into the file any more. What is in
    the segment that was finished, and in the one that was not, is there already."""
    first, lost, second = (documents([[n, 7, 8]] * 3, prefix=f"{n}") for n in range(3))
    folder = tmp_path / "twice"
    with DatastoreWriter.create(folder, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
        writer.begin(inputs="same", segment_tokens=8)
        for document in first:
            writer.append(document)
        assert writer._appender is not None
        writer._appender.checkpoint()
        for document in lost[:1]:
            writer.append(document)
        assert writer.begin(inputs="same", segment_tokens=8) == 3
        for document in first:
            with pytest.raises(DatastoreError, match="is there already"):
                writer.append(document)
        writer.append(second[0])
        writer.commit()
    expected = add(tmp_path / "once", [*first, second[0]], segment_tokens=8)
    assert ids(Datastore.open(folder)) == ids(expected)
    Datastore.open(folder).check_integrity()


def test_an_add_is_safe_up_to_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmspec.retrieval.appender._CHECKPOINT_TOKENS", 8)
    for count, safe in enumerate((0, 0, 2, 2, 4, 4)):  # a separator behind three tokens each
        with DatastoreWriter.create(tmp_path, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
            writer.begin(inputs="same", fresh=True)
            for document in documents([[1, 2, 3]] * count):
                writer.append(document)
            assert writer.begin(inputs="same") == safe


@pytest.mark.parametrize("suffix", [".tokens", ".documents", ".names"])
def test_an_add_that_lost_what_was_safe_is_not_gone_on_with(tmp_path: Path, suffix: str) -> None:
    given = Document("d", "", [1, 2, 3])
    with DatastoreWriter.create(tmp_path, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
        writer.begin(inputs="same")
        writer.append(given)
        assert writer._appender is not None
        writer._appender.checkpoint()
        writer.close()
        (path,) = tmp_path.glob(f"*{suffix}")
        path.write_bytes(path.read_bytes()[:-1])
    with DatastoreWriter.create(tmp_path, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
        with pytest.raises(DatastoreError, match=f"{suffix}: .* shorter than its checkpoint"):
            writer.begin(inputs="same")
        assert writer.begin(inputs="same", fresh=True) == 0
        writer.append(given)
        writer.commit()
    Datastore.open(tmp_path).check_integrity()


def test_a_manifest_names_files_of_its_own_folder_only(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"000001.tokens"', '"../000001.tokens"'))
    with pytest.raises(DatastoreError, match="is not a manifest"):
        Datastore.open(folder)


@pytest.mark.parametrize("suffix", [".tokens", ".documents", ".names", ".suffixes"])
def test_damage_is_named(folder: Path, suffix: str) -> None:
    path = min(folder.glob(f"*{suffix}"))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    for verify in (None, False, True):
        with pytest.raises(DatastoreError, match=f"{path.name}.*damaged: got {len(data) - 1} byte"):
            Datastore.open(folder, verify=verify)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for verify in (None, True):
        with pytest.raises(DatastoreError, match=f"{path.name}.*SHA-256"):
            Datastore.open(folder, verify=verify)
    store = Datastore.open(folder, verify=False)
    with pytest.raises(DatastoreError, match=f"{path.name}.*SHA-256"):
        store.check_integrity()
    path.unlink()
    for looks in (lambda: Datastore.open(folder), store.check_integrity):
        with pytest.raises(DatastoreError, match=f"{path.name}: this file is gone; restore"):
            looks()


def test_tables_of_a_shard_that_contradict_each_other_are_told(folder: Path) -> None:
    def moved(documents: Any) -> None:  # its separator is a token of the next one
        documents["length"][:2] = [7, 5]
        documents["start"][1] += 1

    def longer(documents: Any) -> None:
        documents["length"][-1] += 1

    def elsewhere(documents: Any) -> None:
        documents["start"][1] += 1

    def twice(documents: Any) -> None:
        documents["position"][1] = documents["position"][0]

    (shard, *_) = (segment.shard for segment in Datastore.open(folder).segments)
    for change in (moved, longer, elsewhere, twice):
        broken = copy.copy(shard)
        broken.documents = shard.documents.copy()
        change(broken.documents)
        with pytest.raises(DatastoreError, match="do not add up"):
            broken.check_integrity()
    broken = copy.copy(shard)
    broken.__dict__["names"] = shard.names[:-1]
    with pytest.raises(DatastoreError, match="do not add up"):
        broken.check_integrity()
    shard.check_integrity()


def test_a_damaged_shard_read_unchecked_gives_no_token_outside_of_the_vocabulary(
    folder: Path,
) -> None:
    for path in folder.glob("*.tokens"):
        data = bytearray(path.read_bytes())
        data[9::14] = b"\xf0" * len(data[9::14])
        path.write_bytes(data)
    for path in folder.glob("*.suffixes"):
        data = bytearray(path.read_bytes())
        data[3::8] = b"\xff" * len(data[3::8])  # places far behind the end
        path.write_bytes(data)
    store = Datastore.open(folder, verify=False)
    for query in TEXTS:
        for one in store.continuations(query[:4], min_match=1):
            assert all(0 <= token < VOCAB for token in one.tokens)


@pytest.mark.parametrize("entry", ["notes.txt", ".git"])
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, entry: str) -> None:
    (tmp_path / entry).write_text("mine")
    with pytest.raises(DatastoreError, match=f"holds other files \\({entry}\\)"):
        DatastoreWriter.create(tmp_path, tokenizer=TOKENIZER, vocab_size=VOCAB)
    for refused in (tmp_path, tmp_path / "nowhere", tmp_path / entry):
        with pytest.raises(DatastoreError, match="datastore"):
            DatastoreWriter.open(refused)
        with pytest.raises(DatastoreError, match="datastore"):
            Datastore.open(refused)
    assert [path.name for path in tmp_path.iterdir()] == [entry]


@pytest.mark.parametrize("size", [0, 2**31])
def test_a_vocabulary_of_no_tokens_or_too_many_leaves_no_folder_behind(
    tmp_path: Path, size: int
) -> None:
    with pytest.raises(DatastoreError, match=f"vocab_size={size}"):
        DatastoreWriter.create(tmp_path / "s", tokenizer=TOKENIZER, vocab_size=size)
    assert not (tmp_path / "s").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatastoreError, match="cannot be written: Not a directory"):
        DatastoreWriter.create(tmp_path / "file" / "s", tokenizer=TOKENIZER, vocab_size=VOCAB)
    with pytest.raises(DatastoreError, match="this is a file"):
        DatastoreWriter.create(tmp_path / "file", tokenizer=TOKENIZER, vocab_size=VOCAB)
    (folder / "LOCK").unlink(missing_ok=True)
    (folder / "LOCK").mkdir()  # no file can be opened there
    with pytest.raises(DatastoreError, match="cannot be written"):
        DatastoreWriter.open(folder)


@pytest.mark.parametrize("segment_tokens", [-1, 0, 1, 2**32])
def test_segments_of_no_tokens_or_too_many_are_refused(folder: Path, segment_tokens: int) -> None:
    with DatastoreWriter.open(folder) as writer:
        with pytest.raises(DatastoreError, match=f"segment_tokens={segment_tokens}"):
            writer.begin(segment_tokens=segment_tokens)


# LAW: going on where it was. The programs run without the rest of mmspec, so they start quickly.

PROGRAM = """
import os, sys, types
sys.path.insert(0, {root!r})
package = types.ModuleType("mmspec")
package.__path__ = [{root!r} + "/mmspec"]
sys.modules["mmspec"] = package  # without its __init__, which imports the engine
from pathlib import Path
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.writer import DatastoreWriter
from mmspec.retrieval import appender
appender._CHECKPOINT_TOKENS = 97
assert "torch" not in sys.modules and "transformers" not in sys.modules

def build(folder):
    # Ten adds, whose small segments are merged on the way, a deletion and a purge.
    with DatastoreWriter.create(folder, tokenizer="t", vocab_size=50) as writer:
        for part in range(writer.manifest.generation, 10):
            size = 400 if part else 60
            done = writer.begin(inputs=f"part {{part}}", segment_tokens=size)
            for n in range(done, 14):
                tokens = [(n * k + part) % 47 for k in range(n % 9)]
                if n == 7:
                    tokens = list(range(50)) * 2
                writer.append(Document(f"d{{part}}-{{n}}", f"source {{n}}", tokens))
            writer.commit()
        if writer.manifest.generation == 10:
            writer.delete(["d0-3", "d5-7", "d9-1"])
        if writer.manifest.generation == 11:
            writer.purge()

"""
KILLED = """
import threading
left = {calls}
def count(frame, event, argument):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
sys.setprofile(count)
build({folder!r})
sys.setprofile(None)
print({calls} - left)
"""


def run(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(root=str(ROOT)) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_points_it_ends_as_if_it_had_run_in_one_go(
    tmp_path: Path, kills: int
) -> None:
    calls = int(run(KILLED.format(calls=10**9, folder=str(tmp_path / "whole"))).stdout)
    whole = everything(tmp_path / "whole")
    whole_store = Datastore.open(tmp_path / "whole")
    assert 1 < len(whole_store.segments) < 9, "merged on the way"
    assert whole_store.manifest.num_documents == 138, "140, one of them in two pieces, 3 deleted"
    chance = random.Random(kills)
    killed = 0
    for _ in range(kills):
        # Anywhere in what may be left to do: the first calls after a start are as likely.
        at = int(calls ** chance.uniform(0.5, 1.0))
        done = run(KILLED.format(calls=at, folder=str(tmp_path / "killed")), check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        killed += done.returncode == -signal.SIGKILL
    assert killed >= kills // 2
    run(f"build({str(tmp_path / 'killed')!r})")
    assert everything(tmp_path / "killed") == whole
    Datastore.open(tmp_path / "killed").check_integrity()
    run(f"build({str(tmp_path / 'killed')!r})")  # all of it is in already
    assert everything(tmp_path / "killed") == whole


def test_other_inputs_do_not_go_on_with_an_unfinished_build(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with DatastoreWriter.create(folder, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
        assert writer.begin(inputs="one") == 0
        writer.append(Document("a", "", [1, 2, 3]))
        assert writer._appender is not None
        writer._appender.checkpoint()
    with DatastoreWriter.create(folder, tokenizer=TOKENIZER, vocab_size=VOCAB) as writer:
        with pytest.raises(DatastoreError, match="an unfinished build is waiting here"):
            writer.begin(inputs="two")
        batch = KeyBatch(np.zeros(1, np.int64), np.ones((1, 2), np.float32))
        changes: list[Callable[[], object]] = [
            lambda: writer.delete(["a"]),
            writer.purge,
            lambda: writer.add_keys([batch], dim=2, fingerprint="w"),
        ]
        for change in changes:
            with pytest.raises(DatastoreError, match="unfinished add"):
                change()
        assert writer.begin(inputs="two", fresh=True) == 0
        with pytest.raises(DatastoreError, match="unfinished add"):
            writer.delete(["a"])  # begun, and nothing is written yet
        writer.append(Document("b", "", [4, 5, 6]))
        writer.commit()
    assert ids(Datastore.open(folder)) == ["b"]


def test_what_is_in_is_in_and_an_unfinished_add_is_told_of_before(folder: Path) -> None:
    """Other inputs may wait, or inputs without a name, to which nobody comes back."""

    def leave(writer: DatastoreWriter, inputs: str) -> None:
        writer.begin(inputs=inputs)
        writer.append(Document("left", "", [1, 2, 3]))
        assert writer._appender is not None
        writer._appender.checkpoint()

    with DatastoreWriter.open(folder) as writer:
        writer.begin(inputs="one")
        writer.append(Document("a", "", [1, 2, 3]))
        writer.commit()
        leave(writer, "two")
        with pytest.raises(DatastoreError, match="an unfinished build is waiting here"):
            writer.begin(inputs="one")
        assert writer.begin(inputs="one", fresh=True) == 61
        assert not writer.is_adding and read_journal(folder) is None
        for left in ("", "two"):
            leave(writer, left)
            assert writer.begin(inputs="" if left else "three") == 0
    assert ids(Datastore.open(folder)) == [*(f"d{n}" for n in range(60)), "a"]


def test_a_build_of_which_nothing_was_written_is_in_nobodys_way(folder: Path) -> None:
    with DatastoreWriter.open(folder) as writer:
        writer.begin(inputs="a mistake")
    assert read_journal(folder) is not None
    with DatastoreWriter.open(folder) as writer:
        assert writer.begin(inputs="what was meant") == 0
        writer.append(Document("new", "", [1, 2, 3]))
        writer.commit()
    assert "new" in ids(Datastore.open(folder))


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    import resource

    folder = tmp_path / "s"
    add(folder, documents([[1, 2, 3]]))
    before = everything(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DatastoreWriter.open(folder) as writer:
        writer.begin(inputs="much")
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        try:
            with pytest.raises(DatastoreError, match="no room left to write"):
                for n in range(3000):
                    writer.append(Document(f"m{n}", "", [n % 40] * 9))
                writer.commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {name: data for name, data in everything(folder).items() if name in before} == before
    Datastore.open(folder).check_integrity()
    with DatastoreWriter.open(folder) as writer:  # with room again it goes on
        for n in range(writer.begin(inputs="much"), 3000):
            writer.append(Document(f"m{n}", "", [n % 40] * 9))
        writer.commit()
    store = Datastore.open(folder)
    assert store.manifest.num_documents == 3001
    store.check_integrity()


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("corpus.json.dumps", OSError(errno.ENOSPC, "full")),
        ("segment.sorted_places", MemoryError()),
        ("segment.write_atomically", KeyboardInterrupt()),
    ],
)
def test_what_failed_half_way_is_gone_on_with_from_the_disk_alone(
    folder: Path, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        patch.undo()  # once
        raise error

    new = documents([[1, 2, n] for n in range(8)], prefix="new")
    with DatastoreWriter.open(folder) as writer, monkeypatch.context() as patch:
        assert writer.begin(inputs="new") == 0
        for document in new[:5]:
            writer.append(document)
        patch.setattr(f"mmspec.retrieval.{where}", fails)
        with pytest.raises(DatastoreError if isinstance(error, OSError) else type(error)):
            for document in new[5:]:
                writer.append(document)
            writer.commit()
        for go_on in (lambda: writer.append(Document("other", "", [1])), writer.commit):
            with pytest.raises(DatastoreError, match=r"half-way; begin\(\) again"):
                go_on()
        for document in new[writer.begin(inputs="new") :]:
            writer.append(document)
        writer.commit()
    store = Datastore.open(folder)
    store.check_integrity()
    assert [id for id in ids(store) if id.startswith("new")] == [one.id for one in new]


@pytest.mark.parametrize("change", ["add", "delete"])
def test_what_fails_once_the_manifest_is_there_has_been_done(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synced(place: Path) -> None:
        if read_manifest(place) != before:
            raise KeyboardInterrupt

    before = read_manifest(folder)
    with DatastoreWriter.open(folder) as writer:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mmspec.retrieval.files.sync_folder", synced)
            if change == "add":
                writer.begin()
                writer.append(Document("new", "", [1, 2, 3]))
                writer.commit()
            else:
                writer.delete(["d0"])
        writer.begin()  # drops what is unfinished, and sweeps what no manifest knows
    store = Datastore.open(folder)
    store.check_integrity()
    assert ("new" in ids(store), "d0" in ids(store)) == (change == "add", change == "add")


def test_what_fills_the_disk_can_be_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(folder)
    with DatastoreWriter.open(folder) as writer:
        writer.begin(inputs="much", segment_tokens=50)
        for n in range(30):
            writer.append(Document(f"m{n}", "", [n % 40] * 9))
    assert everything(folder).keys() > before.keys()

    def write(folder: Path, journal: Journal) -> None:
        if everything(folder).keys() > before.keys():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_journal(folder, journal)

    monkeypatch.setattr(mmspec.retrieval.writer, "write_journal", write)
    with DatastoreWriter.open(folder) as writer:
        assert writer.begin(inputs="little", fresh=True) == 0
        writer.append(Document("new", "", [1, 2, 3]))
        writer.commit()
    assert "new" in ids(Datastore.open(folder))


def test_deleting_on_a_full_disk_deletes_nothing(folder: Path) -> None:
    import resource

    before = everything(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DatastoreWriter.open(folder) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        try:
            with pytest.raises(DatastoreError, match="no room left to write"):
                writer.delete(["d3"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert everything(folder) == before
    assert len(os.listdir(folder)) == len(before) + 1  # the lock
