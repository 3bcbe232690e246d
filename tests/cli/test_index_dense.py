"""`mmspec index build --dense`: the bundled model reads the documents, pictures among them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli.test_index import index

import mmspec
from mmspec.cli.console import EXIT_INTERRUPTED
from mmspec.drafters.retrieval import Retrieval
from mmspec.indexing import TextReader, collect_keys
from mmspec.retrieval import Datastore, KeyBatch
from mmspec.training.tiny.data import caption

MODEL = "tiny-vlm"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.")
    (folder / "cat.md").write_text("A quick brown cat sleeps under the table.")
    return folder


def dense_of(store: Path) -> Any:
    return json.loads(index("info", store, "--json").stdout)["dense"]


def test_texts_get_a_hidden_state_a_token_but_for_the_first(notes: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = index("build", store, notes, "--model", MODEL, "--dense")
    assert "83 hidden states" in run.stdout
    assert dense_of(store)["num_keys"] == 44 - 1 + 41 - 1
    (notes / "owl.txt").write_text("An owl.")
    run = index("add", store, notes / "owl.txt")  # reads on: an index with gaps is of little use
    assert "89 hidden states" in run.stdout
    index("delete", store, notes / "cat.md")
    assert dense_of(store)["num_keys"] == 43 + 6


def test_without_dense_nothing_is_read(notes: Path, tmp_path: Path) -> None:
    run = index("build", tmp_path / "store", notes, "--model", MODEL)
    assert "0 hidden states" in run.stdout


def test_interrupted_the_same_command_goes_on(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = tmp_path / "store", TextReader.read
    given: list[int] = []

    def interrupted(self: TextReader, documents: Any, start: int) -> Iterator[KeyBatch]:
        given.append(start)
        batches: Iterable[KeyBatch] = read(self, documents, start)
        for number, batch in enumerate(batches):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    assert TextReader.__init__.__kwdefaults__ and collect_keys.__kwdefaults__
    monkeypatch.setitem(TextReader.__init__.__kwdefaults__, "batch_tokens", 64)
    monkeypatch.setitem(collect_keys.__kwdefaults__, "commit_keys", 1)
    with monkeypatch.context() as patch:
        patch.setattr(TextReader, "read", interrupted)
        run = index("build", store, notes, "--model", MODEL, "--dense", code=EXIT_INTERRUPTED)
    assert "run the same command again" in run.stderr
    first = dense_of(store)["num_keys"]
    assert 0 < first < 83
    index("build", store, notes, "--model", MODEL, "--dense")
    assert dense_of(store)["num_keys"] == 83


def test_records_with_pictures_are_read_as_their_answers(tmp_path: Path) -> None:
    """The same picture asked about again is drafted by hidden states alone; what stands before the
    answer in the prompt would draft nothing."""
    samples = [caption(Random(f"record/{n}"), held_out=True) for n in range(2)]
    lines = []
    for number, sample in enumerate(samples):
        assert sample.image is not None
        sample.image.save(tmp_path / f"{number}.png")
        lines.append(
            {"prompt": sample.prompt_text, "images": [f"{number}.png"], "text": sample.answer}
        )
    lines.append({"text": "No prompt, no picture."})
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = tmp_path / "store"
    index("build", store, tmp_path / "records.jsonl", "--model", MODEL, "--dense")
    answers = [len(sample.answer) for sample in samples]
    assert dense_of(store)["num_keys"] == sum(answers) + len("No prompt, no picture.") - 1
    drafter = Retrieval([store], sources=["dense"])
    engine = mmspec.load(MODEL, drafter=drafter, overrides=["decode.controller=fixed"])
    result = engine.generate(
        samples[1].prompt_text, images=samples[1].image, temperature=0.0, max_new_tokens=120
    )
    assert result.stats.tokens_per_step > 10
    Datastore.open(store).check_integrity()


def test_a_record_whose_file_has_changed_is_said(tmp_path: Path) -> None:
    record = tmp_path / "records.jsonl"
    record.write_text('{"prompt": "Ask", "text": "An answer."}\n')
    index("build", tmp_path / "s", record, "--model", MODEL)
    record.unlink()
    (tmp_path / "more.txt").write_text("More.")
    run = index("add", tmp_path / "s", tmp_path / "more.txt", "--dense", code=2)
    assert "cannot be read again for its prompts" in run.stderr
