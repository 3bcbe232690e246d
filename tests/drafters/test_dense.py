"""The dense source: like states, the same token, and what followed there."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from draft_models import letters
from families import FAMILIES, prompt_inputs
from matrix import model_of
from stores import documents
from torch import Tensor

import mmspec
from mmspec.drafters.own_text import OwnText
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.retrieval.dense import DenseSource
from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.errors import DatastoreError
from mmspec.indexing import PromptedReader, collect_keys
from mmspec.inputs import from_inputs
from mmspec.inputs.text_tokens import TextTokens
from mmspec.retrieval import Continuation, Datastore, DatastoreWriter, KeyBatch
from mmspec.state import Placement, Prefill, Prompt
from mmspec.target import Target
from mmspec.target.fingerprint import states_fingerprint

DIM, TAP = 64, 2
INPUTS: Any = SimpleNamespace(tokenizer=letters())


def llama() -> Target:
    return Target(model_of("llama", "float64"))


def write_texts(folder: Path, texts: Sequence[Sequence[int]], *, prefix: str = "d") -> None:
    with DatastoreWriter.create(
        folder, tokenizer=TextTokens(letters()).hash(), vocab_size=112
    ) as writer:
        writer.begin()
        for document in documents(texts, prefix=prefix):
            writer.append(document)
        writer.commit()


def write_keys(
    folder: Path, keys: dict[int, np.ndarray], *, fingerprint: str | None = None
) -> None:
    fingerprint = fingerprint or states_fingerprint(llama(), tap=TAP)
    batch = KeyBatch(np.array(list(keys)), np.stack(list(keys.values())).astype(np.float32))
    with DatastoreWriter.open(folder) as writer:
        writer.add_keys([batch], dim=DIM, fingerprint=fingerprint)


def direction(number: int, towards: int | None = None, share: float = 0.0) -> np.ndarray:
    """A unit vector, or one a little turned towards another."""
    vector = np.eye(DIM)[number]
    return vector if towards is None else (1 - share) * vector + share * np.eye(DIM)[towards]


def source_of(folder: Path, **limits: int) -> DenseSource:
    return DenseSource([OpenStore(Datastore.open(folder))], llama(), Limits(**limits))


def query(tail: Sequence[int], state: np.ndarray | None) -> Query:
    hidden: dict[int, Tensor] = {} if state is None else {TAP: torch.tensor(state)}
    own = OwnText(Prompt(torch.tensor(list(tail))))
    own.grow(tail)
    return Query(own, None, hidden)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # positions: 0 1 2 3 4 | 6 7 8 9 | 11 12 13
    write_texts(tmp_path / "s", [[10, 11, 12, 13, 14], [20, 12, 21, 22], [30, 31, 32]])
    keys = {
        2: direction(0),  # the state before the 12 of d0
        7: direction(0, towards=1, share=0.2),  # before that of d1
        12: direction(0, towards=1, share=0.1),  # before the 31 of d2: nearer, but another token
        13: direction(5),
    }
    write_keys(tmp_path / "s", keys)
    return tmp_path / "s"


def test_places_count_where_the_same_token_followed(folder: Path) -> None:
    (found,) = source_of(folder).find([query([11, 12], direction(0))], length=8)
    assert [one.tokens for one in found] == [[13, 14], [21, 22]]  # the nearest first
    assert [one.source for one in found] == ["dense"] * 2
    first, second = (one.distance for one in found)
    assert first is not None and second is not None and 0 <= first < 1e-3 < second < 0.2
    (found,) = source_of(folder).find([query([11, 31], direction(0))], length=8)
    assert [one.tokens for one in found] == [[32]]
    assert source_of(folder).find([query([11, 99], direction(0))], length=8) == [[]]


def test_the_tokens_before_that_agree_are_counted(folder: Path) -> None:
    (found,) = source_of(folder).find([query([5, 10, 11, 12], direction(0))], length=1)
    assert [(one.tokens, one.match_length) for one in found] == [([13], 3), ([21], 1)]
    (found,) = source_of(folder, max_match=2).find([query([5, 10, 11, 12], direction(0))], length=1)
    assert [one.match_length for one in found] == [2, 1]
    (found,) = source_of(folder).find([query([12], direction(0))], length=1)
    assert [one.match_length for one in found] == [1, 1]


def test_one_look_up_serves_all_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = source_of(folder), list[int]()
    nearest = Datastore.nearest

    def counted(self: Datastore, queries: Any, *, limit: int) -> Any:
        asked.append(len(queries))
        return nearest(self, queries, limit=limit)

    monkeypatch.setattr(Datastore, "nearest", counted)
    rows = [
        query([9, 12], direction(0)),
        query([9, 12], None),  # a row whose state nobody knows
        query([31, 32], direction(5)),
        query([8, 31], direction(0)),
    ]
    found = source.find(rows, length=4)
    assert asked == [3]
    assert [[one.tokens for one in row] for row in found] == [
        [[13, 14], [21, 22]],
        [],
        [[]],  # the document ends there
        [[32]],
    ]
    assert source.find(rows[1:2], length=4) == [[]] and asked == [3]


def test_no_more_places_than_the_limit(folder: Path) -> None:
    (found,) = source_of(folder, max_places=1).find([query([11, 12], direction(0))], length=8)
    assert [one.tokens for one in found] == [[13, 14]]


def test_several_datastores_are_asked_and_the_nearest_come_first(
    folder: Path, tmp_path: Path
) -> None:
    write_texts(tmp_path / "other", [[40, 12, 41]])
    write_keys(tmp_path / "other", {1: direction(0, towards=1, share=0.1)})
    stores = [OpenStore(Datastore.open(one)) for one in (folder, tmp_path / "other")]
    source = DenseSource(stores, llama(), Limits())
    (found,) = source.find([query([11, 12], direction(0))], length=1)
    assert [one.tokens for one in found] == [[13], [41], [21]]


def test_what_is_added_is_found_after_a_refresh(folder: Path) -> None:
    source, rows = source_of(folder), [query([11, 12], direction(9))]
    write_texts(folder, [[50, 12, 51]], prefix="late")
    write_keys(folder, {16: direction(9)})
    (before,) = source.find(rows, length=1)
    source.refresh()
    (after,) = source.find(rows, length=1)
    assert [51] not in [one.tokens for one in before]
    assert after[0].tokens == [51] and after[0].distance is not None and after[0].distance < 1e-3


def test_an_index_that_a_commit_has_left_alone_is_not_read_again(folder: Path) -> None:
    """Its checksum is that of gigabytes, and a proposal would wait for it."""
    store = OpenStore(Datastore.open(folder))
    before, index = store.current, store.current.dense
    write_texts(folder, [[50, 12, 51]], prefix="late")
    store.refresh()
    assert store.current is not before and store.current.dense is index


def test_where_a_new_index_is_damaged_the_one_before_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mmspec.retrieval.datastore.VERIFY_BYTES", 0)
    source, rows = source_of(folder), [query([11, 12], direction(0))]
    before = source.find(rows, length=8)
    write_keys(folder, {16: direction(9)})
    new = folder / Datastore.open(folder).manifest.dense.file.name  # type: ignore[union-attr]
    new.write_bytes(new.read_bytes()[:-1] + b"x")
    caplog.clear()
    source.refresh()
    assert source.find(rows, length=8) == before
    (record,) = caplog.records
    assert "damaged" in record.message and "as it was opened" in record.message


def test_keys_of_deleted_documents_are_gone(folder: Path) -> None:
    source = source_of(folder)
    with DatastoreWriter.open(folder) as writer:
        writer.delete(["d0"])
    source.refresh()
    (found,) = source.find([query([11, 12], direction(0))], length=8)
    assert [one.tokens for one in found] == [[21, 22]]


def test_an_index_that_another_target_has_replaced_is_left_alone(folder: Path) -> None:
    source = source_of(folder)
    with DatastoreWriter.open(folder) as writer:
        writer.delete(["d0", "d1", "d2"])
    write_texts(folder, [[10, 12, 13]], prefix="new")
    write_keys(folder, {15: direction(0)}, fingerprint=f"sha256:other/{TAP}")
    source.refresh()
    assert source.find([query([11, 12], direction(0))], length=8) == [[]]


# Of which target


def bound(folder: Path, target: Target, **options: Any) -> Any:
    return Retrieval([folder], **options).for_target(target, INPUTS)


def test_it_takes_part_where_a_datastore_has_a_dense_index(folder: Path, tmp_path: Path) -> None:
    drafter = bound(folder, llama())
    assert "dense" in drafter.sources and drafter.taps.layers == {TAP}
    assert not drafter.taps.whole_prompt
    without = bound(folder, llama(), sources=["suffix", "online"])
    assert "dense" not in without.sources and not without.taps.layers
    write_texts(tmp_path / "plain", [[10, 11, 12]])
    none = bound(tmp_path / "plain", llama())
    assert "dense" not in none.sources and not none.taps.layers


def test_a_session_keeps_of_the_prompt_the_last_state_alone(folder: Path) -> None:
    """Others may tap the whole prompt, and further layers: a view would keep all of it."""
    drafter = bound(folder, llama())
    states = {layer: torch.rand(500, DIM) for layer in (0, TAP)}
    prefill = Prefill(torch.zeros(112), Placement(0, (0,)), states)
    session = drafter.start(Prompt(torch.arange(500) % 7), prefill, None)
    hidden = session.query([*(torch.arange(500) % 7).tolist(), 3]).hidden
    assert list(hidden) == [TAP] and torch.equal(hidden[TAP], states[TAP][-1])
    assert hidden[TAP].untyped_storage().nbytes() == 4 * DIM


def test_another_target_is_refused(folder: Path) -> None:
    qwen = Target(model_of("qwen2", "float64"))
    with pytest.raises(DatastoreError, match="hidden states of other weights"):
        bound(folder, qwen)
    bound(folder, qwen, sources=["suffix"])  # the same tokenizer: its texts may be copied


def test_an_index_that_names_no_layer_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "s", [[10, 11, 12]])
    write_keys(tmp_path / "s", {1: direction(0)}, fingerprint="mine")
    with pytest.raises(DatastoreError, match="names no layer"):
        bound(tmp_path / "s", llama())


# At work


@pytest.mark.parametrize(("family", "layout"), [("llama", "text"), ("llava", "image_middle")])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_answer_given_before_is_drafted_by_its_states_alone(
    tmp_path: Path, family: str, layout: str, batch: int
) -> None:
    model = model_of(family, "float64")
    inputs = [
        prompt_inputs(FAMILIES[family], layout, num_text_tokens=n, seed=n)  # type: ignore[arg-type]
        for n in (20, 31, 26)[:batch]
    ]
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 0, "seed": 3}
    plain = mmspec.load(model, letters(), drafter="none")
    expected = [plain.generate(one, **options) for one in inputs]
    write_texts(tmp_path / "s", [result.tokens for result in expected])
    prompts = {f"d{n}": from_inputs(one, model.config) for n, one in enumerate(inputs)}
    target = plain.target
    reader = PromptedReader(target, lambda name: prompts[name.id], tap=target.last_tap)
    collect_keys(tmp_path / "s", target, reader)
    drafter = Retrieval([tmp_path / "s"], sources=["dense"], max_depth=8)
    engine = mmspec.load(model, letters(), drafter=[drafter], overrides=["decode.controller=fixed"])
    requests = [mmspec.Request(one, **options) for one in inputs]
    for result, wanted in zip(engine.generate(requests), expected, strict=True):
        assert result.tokens == wanted.tokens
        assert result.stats.tokens_per_step > 4


def test_a_continuation_s_weight_falls_with_its_distance() -> None:
    weights = [Continuation([1], 1, "dense", distance).weight() for distance in (0.0, 0.2, 1.0)]
    assert weights == sorted(weights, reverse=True) and weights[0] > weights[-1]
