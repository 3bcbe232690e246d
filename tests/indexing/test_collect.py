"""Collecting: each token's key is the state that it is chosen from, whatever comes between."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from adversary import Adversary
from families import FAMILIES, prompt_inputs
from listener import Listener
from matrix import model_of
from stores import add, documents
from transformers import PreTrainedModel

import mmspec
from mmspec.errors import ConfigError, DatastoreError, InputError
from mmspec.indexing import MixedReader, PromptedReader, Reader, TextReader, collect_keys
from mmspec.inputs import from_inputs
from mmspec.retrieval import Datastore
from mmspec.retrieval.corpus import DocumentName
from mmspec.target import Target
from mmspec.target.fingerprint import probe_state, states_fingerprint, weights_fingerprint

VOCAB, TAP = 112, 2


def texts_of(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, 90, (n,), generator=draw).tolist() for n in lengths]


def store_of(folder: Path, texts: Sequence[Sequence[int]]) -> Datastore:
    return add(folder, documents(texts), vocab_size=VOCAB)


def target_of(family: str = "llama") -> Target:
    return Target(model_of(family, "float64"))


def keys_of(reader: Reader, store: Datastore, start: int = 0) -> dict[int, np.ndarray]:
    """By position; each may come once, in order."""
    batches = list(reader.read(store.documents_from(start), start))
    positions = np.concatenate([batch.positions for batch in batches]).tolist()
    assert positions == sorted(set(positions))
    return dict(zip(positions, np.concatenate([batch.keys for batch in batches]), strict=True))


def native(model: PreTrainedModel, tokens: Sequence[int], tap: int = TAP) -> torch.Tensor:
    """(seq, hidden) of a forward without anything of ours."""
    with torch.no_grad():
        output = model(torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True)
    return output.hidden_states[tap][0]


def assert_near(got: np.ndarray, expected: torch.Tensor) -> None:
    assert np.abs(got - expected.numpy()).max() < 1e-5


# Text


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_vl", "llava"])
@pytest.mark.parametrize("tap", [1, 2])
def test_a_token_s_key_is_the_state_before_it(tmp_path: Path, family: str, tap: int) -> None:
    texts, lead = texts_of(9, 1, 30, 4), [7, 8]
    texts[2][11] = -1  # a separator: not read, and no key
    store = store_of(tmp_path / "s", texts)
    keys = keys_of(TextReader(target_of(family), tap=tap, lead=lead, batch_tokens=64), store)
    expected: set[int] = set()
    for document in store.documents_from():
        places = [n for n, token in enumerate(document.tokens) if token >= 0]
        read = [document.tokens[n] for n in places]
        states = native(model_of(family, "float64"), [*lead, *read], tap)
        for index in range(1, len(read)):
            position = document.position + places[index]
            expected.add(position)
            assert_near(keys[position], states[len(lead) + index - 1])
    assert keys.keys() == expected and len(expected) == 8 + 0 + 28 + 3


def test_long_documents_are_read_by_overlapping_windows(tmp_path: Path) -> None:
    (text,) = texts_of(50)
    store, target = store_of(tmp_path / "s", [text]), target_of()
    keys = keys_of(TextReader(target, tap=TAP, window_tokens=20, overlap_tokens=6), store)
    assert list(keys) == list(range(1, 50))
    for begin in (0, 14, 28, 42):  # each window's first 6 tokens are context, but for the first's
        states = native(target.model, text[begin : begin + 20])
        for index in range(1 if begin == 0 else 6, min(20, 50 - begin)):
            assert_near(keys[begin + index], states[index - 1])


def test_from_a_position_on_the_keys_are_the_same(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", texts_of(50, 12))
    reader = TextReader(target_of(), tap=TAP, window_tokens=20, overlap_tokens=6)
    whole = keys_of(reader, store)
    for start in (1, 19, 20, 21, 49, 51):
        part = keys_of(reader, store, start)
        assert list(part) == [position for position in whole if position >= start]
        for position, key in part.items():
            assert np.allclose(key, whole[position], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "overlap"), [(1, 1), (8, 8), (8, 0), (9000, 8)])
def test_windows_that_cannot_be_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="expected 2 to 8192 tokens"):
        TextReader(target_of(), tap=TAP, window_tokens=size, overlap_tokens=overlap)


# With prompts


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_an_answer_s_keys_are_the_states_of_answering(tmp_path: Path, family: str) -> None:
    """The listener hears the states of two requests with images as they are answered; reading the
    answers behind their prompts gives the same, the first token's too."""
    model = model_of(family, "float64")
    inputs = [
        prompt_inputs(FAMILIES[family], "image_middle", num_text_tokens=n, seed=n) for n in (20, 31)
    ]
    tap = Target(model).last_tap
    listener = Listener((tap,), Adversary({}, VOCAB))
    engine = mmspec.load(model, drafter=[listener], overrides=["decode.controller=fixed"])
    requests = zip(inputs, (14, 9), strict=True)
    answers = [engine.generate(one, max_new_tokens=n).tokens for one, n in requests]
    store = store_of(tmp_path / "s", answers)
    prompts = {f"d{n}": from_inputs(one, model.config) for n, one in enumerate(inputs)}
    reader = PromptedReader(engine.target, lambda name: prompts[name.id], tap=tap)
    keys = keys_of(reader, store)
    assert list(keys) == [*range(14), *range(15, 15 + 9)]
    for number, first in ((0, 0), (1, 15)):
        heard = listener.heard[tuple(inputs[number]["input_ids"][0].tolist())]
        assert_near(keys[first], heard.prompt[tap][0])
        for index, states in heard.steps:
            offset = first + index - inputs[number]["input_ids"].shape[1] + 1
            for n, state in enumerate(states[tap]):
                if offset + n < first + len(answers[number]):
                    assert_near(keys[offset + n], state)


def test_an_answer_longer_than_a_forward_takes_is_read_in_parts(tmp_path: Path) -> None:
    (text,) = texts_of(300)
    target, store = target_of(), store_of(tmp_path / "s", [text])
    prompt = from_inputs({"input_ids": torch.tensor([[5, 6, 7]])}, target.model.config)
    keys = keys_of(PromptedReader(target, lambda name: prompt, tap=TAP), store)
    states = native(target.model, [5, 6, 7, *text])
    for position in range(300):
        assert_near(keys[position], states[position + 2])


def test_documents_with_and_without_a_prompt_keep_their_order(tmp_path: Path) -> None:
    store, target = store_of(tmp_path / "s", texts_of(5, 6, 7, 8)), target_of()
    prompt = from_inputs({"input_ids": torch.tensor([[5, 6, 7]])}, target.model.config)
    reader = MixedReader(
        PromptedReader(target, lambda name: prompt, tap=TAP),
        TextReader(target, tap=TAP),
        has_prompt=lambda name: name.id in ("d1", "d2"),
    )
    first = {document.name.id: document.position for document in store.documents_from()}
    ends = {first[name] - 1 for name in ("d1", "d2", "d3")}  # separators have a position too
    assert set(keys_of(reader, store)) == set(range(29)) - ends - {first["d0"], first["d3"]}


# Into the datastore


class Interrupted(Exception):
    pass


def collected(folder: Path, *, commit_keys: int = 2**16, stop_at: int | None = None) -> Datastore:
    def tell(done: int, total: int) -> None:
        assert 0 < done <= total
        if stop_at is not None and done >= stop_at:
            raise Interrupted

    reader = TextReader(target_of(), tap=TAP, lead=[7], batch_tokens=40)
    collect_keys(folder, target_of(), reader, commit_keys=commit_keys, on_progress=tell)
    return Datastore.open(folder)


def test_interrupted_it_goes_on_behind_the_last_commit(tmp_path: Path) -> None:
    texts = texts_of(30, 17, 3, 44, 1, 25, 38)
    store_of(tmp_path / "one", texts)
    store_of(tmp_path / "many", texts)
    whole = collected(tmp_path / "one")
    reached = []
    for stop_at in (40, 60, 90, 130):
        with pytest.raises(Interrupted):
            collected(tmp_path / "many", commit_keys=20, stop_at=stop_at)
        dense = Datastore.open(tmp_path / "many").manifest.dense
        reached.append(dense.num_keys if dense else 0)
    assert reached == sorted(reached) and reached[-1] > reached[0] > 0
    again = collected(tmp_path / "many", commit_keys=20)
    assert whole.manifest.dense is not None and again.manifest.dense is not None
    assert again.manifest.dense.num_keys == whole.manifest.dense.num_keys == 158 - len(texts)
    queries = native(target_of().model, [7, *texts[3]]).numpy().astype(np.float32)
    found, expected = again.nearest(queries, limit=3), whole.nearest(queries, limit=3)
    assert np.array_equal(found.positions, expected.positions)
    assert np.array_equal(
        found.positions[1:-1, 0], np.arange(54, 97)
    )  # d3's: a position a separator
    before = again.manifest.generation
    assert collected(tmp_path / "many").manifest.generation == before  # all of it is there


def test_so_many_keys_are_committed_at_once(tmp_path: Path) -> None:
    store_of(tmp_path / "s", texts_of(11, 11, 11, 11))  # ten keys each
    reader, told = TextReader(target_of(), tap=TAP, batch_tokens=11), list[int]()
    collect_keys(
        tmp_path / "s", target_of(), reader, commit_keys=20, on_progress=lambda *p: told.extend(p)
    )
    assert told == [11, 48, 23, 48, 35, 48, 47, 48]
    manifest = Datastore.open(tmp_path / "s").manifest
    assert manifest.generation == 3, "the documents, and twenty keys twice"
    add(tmp_path / "s", documents(texts_of(11), prefix="late"), vocab_size=VOCAB)
    assert collect_keys(tmp_path / "s", target_of(), reader).generation == 5


def test_what_was_added_later_is_read_later(tmp_path: Path) -> None:
    store_of(tmp_path / "s", texts_of(30))
    collected(tmp_path / "s")
    add(tmp_path / "s", documents(texts_of(20), prefix="late"), vocab_size=VOCAB)
    dense = collected(tmp_path / "s").manifest.dense
    assert dense is not None and (dense.num_keys, dense.next_position) == (29 + 19, 51)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    store_of(tmp_path / "s", [])
    with pytest.raises(DatastoreError, match="holds no documents"):
        collected(tmp_path / "s")


# Whose hidden states


def test_other_weights_and_other_layers_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path / "s", texts_of(30))
    collected(tmp_path / "s")
    other = Target(FAMILIES["llama"].build(torch.float64))
    with torch.no_grad():
        other.model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    for target, tap in ((other, TAP), (target_of(), 1), (target_of("qwen2"), TAP)):
        reader = TextReader(target, tap=tap)
        with pytest.raises(DatastoreError, match="hidden states of other weights"):
            collect_keys(tmp_path / "s", target, reader, tap=tap)


def test_weights_that_no_sample_shows_are_told_by_the_probe(tmp_path: Path) -> None:
    """The fingerprint looks at some values of each weight: here at none that was changed."""
    store_of(tmp_path / "s", texts_of(30))
    store = collected(tmp_path / "s")
    other = Target(FAMILIES["llama"].build(torch.float64))
    weight = other.model.model.layers[0].self_attn.o_proj.weight
    step = weight.numel() // 64
    is_sampled = torch.arange(weight.numel()) % step == 0
    with torch.no_grad():
        weight.copy_(torch.where(is_sampled.view_as(weight), weight, -weight))
    fingerprint = states_fingerprint(other, tap=TAP)
    assert fingerprint == states_fingerprint(target_of(), tap=TAP)
    with pytest.raises(DatastoreError, match="got cosine"):
        store.check_target(fingerprint=fingerprint, probe=probe_state(other, tap=TAP))
    store.check_target(fingerprint=fingerprint, probe=probe_state(target_of(), tap=TAP))


def test_a_fingerprint_is_the_weights_alone() -> None:
    model = model_of("llama", "float64")
    same = FAMILIES["llama"].build(torch.float64)
    assert weights_fingerprint(model) == weights_fingerprint(same)
    assert weights_fingerprint(model) != weights_fingerprint(model_of("qwen2", "float64"))
    low = copy.deepcopy(same).to(torch.bfloat16)
    assert weights_fingerprint(low) == weights_fingerprint(low.to(torch.float32))
    with torch.no_grad():
        same.lm_head.weight[0, 0] += 1.0
    assert weights_fingerprint(model) != weights_fingerprint(same)


def test_a_document_s_prompt_is_asked_for_by_its_name(tmp_path: Path) -> None:
    store, asked = store_of(tmp_path / "s", texts_of(3, 4)), list[DocumentName]()
    target = target_of()
    prompt = from_inputs({"input_ids": torch.tensor([[5, 6, 7]])}, target.model.config)

    def prompt_of(name: DocumentName) -> object:
        asked.append(name)
        return prompt

    keys_of(PromptedReader(target, prompt_of, tap=TAP, max_rows=1), store)  # type: ignore[arg-type]
    assert asked == [DocumentName("d0", "d0.txt"), DocumentName("d1", "d1.txt")]


def test_what_the_context_does_not_hold_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, target = store_of(tmp_path / "s", texts_of(20, 5)), target_of()
    monkeypatch.setattr(target.model.config, "max_position_embeddings", 12)
    prompt = from_inputs({"input_ids": torch.tensor([[5, 6, 7]])}, target.model.config)
    keys = keys_of(PromptedReader(target, lambda name: prompt, tap=TAP), store)
    assert list(keys) == [*range(9), *range(21, 26)]
    assert "only 9 of its 20 tokens fit" in caplog.text
    monkeypatch.setattr(target.model.config, "max_position_embeddings", 3)
    with pytest.raises(InputError, match="the prompt of 'd0' has 3 tokens"):
        keys_of(PromptedReader(target, lambda name: prompt, tap=TAP), store)
