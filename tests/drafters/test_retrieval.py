"""retrieval: what each source proposes, what it never may, and that it learns what is accepted."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stores
import torch
from draft_models import letters
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.retrieval.drafter import BoundRetrieval
from mmspec.drafters.retrieval.session import RetrievalSession
from mmspec.errors import ConfigError, DatastoreError
from mmspec.retrieval import DatastoreWriter
from mmspec.state import MediaSpan, Placement, Prefill, Prompt, Scores, Taps, Verdict
from mmspec.target.taps import LateHidden
from mmspec.tree import TokenTree

GUIDE = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=0)
VOCAB = 112
INPUTS: Any = SimpleNamespace(tokenizer=letters())
TARGET: Any = SimpleNamespace(vocab_size=VOCAB)


def write_store(folder: Path, texts: Iterable[Sequence[int]], *, vocab_size: int = VOCAB) -> Path:
    return stores.write_store(folder, texts, tokenizer=letters(), vocab_size=vocab_size)


def bound(*datastores: Path, **options: Any) -> BoundRetrieval:
    """By default every node is confident enough."""
    settings = Retrieval(datastores, **{"min_confidence": 0.0, **options})
    return settings.for_target(TARGET, INPUTS)


def started(
    drafter: BoundRetrieval,
    text: Sequence[int],
    *,
    media: tuple[MediaSpan, ...] = (),
    namespace: str | None = None,
    beside: Sequence[Sequence[int]] = (),
) -> RetrievalSession:
    prompt = Prompt(
        torch.tensor(text),
        media=media,
        namespace=namespace,
        draft_texts=tuple(map(tuple, beside)),
    )
    return drafter.start(prompt, Prefill(torch.zeros(1), Placement(0, (0,))), GUIDE)


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    nodes = range(1, tree.num_nodes)
    return {tuple(tree.tokens[n] for n in tree.path_to(node)[1:]) for node in nodes}


def observe(session: RetrievalSession, tree: TokenTree, path: tuple[int, ...]) -> None:
    """The target accepted `path`, then went its own way."""
    tokens = (*(tree.tokens[node] for node in path[1:]), 99)
    session.observe(tree, Verdict(path, tokens), Scores(torch.zeros(tree.num_nodes, 1)))


# LAW: the sources


def test_a_datastore_continues_the_longest_end_of_the_text(tmp_path: Path) -> None:
    #  1 2 3 -> 40 41; 9 2 3 -> 50; the text ends in 1 2 3            3
    #                                                               /   \
    #                                                             40     50
    #                                                              |
    #                                                             41
    store = write_store(tmp_path / "s", [[1, 2, 3, 40, 41], [9, 2, 3, 50]])
    drafter = bound(store, sources=["suffix"], min_match=1)
    tree = started(drafter, [7, 1, 2, 3]).propose([7, 1, 2, 3], 8)
    assert paths(tree) == {(40,), (40, 41), (50,)}
    assert tree.tokens[1] == 40, "the longer match is the more confident one"
    assert set(tree.drafters[1:]) == {"retrieval"}


def test_several_datastores_are_asked(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a", [[1, 2, 3, 40]])
    second = write_store(tmp_path / "b", [[1, 2, 3, 50]])
    tree = started(bound(first, second, sources=["suffix"]), [1, 2, 3]).propose([1, 2, 3], 8)
    assert paths(tree) == {(40,), (50,)}


def test_a_match_never_crosses_documents(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[5, 1], [2, 40, 41], [8, 1, 2]])
    drafter = bound(store, sources=["suffix"])
    assert started(drafter, [1, 2]).propose([1, 2], 8) == TokenTree.root(2)


def test_a_copy_never_runs_on_into_the_next_document(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 40], [41, 42]])
    tree = started(bound(store, sources=["suffix"]), [1, 2]).propose([1, 2], 8)
    assert paths(tree) == {(40,)}


@pytest.mark.parametrize("source", ["suffix", "online", "generated"])
def test_no_match_runs_through_an_image(source: str, tmp_path: Path) -> None:
    image, text = 77, [1, 2, 3, 77, 4, 5, 6, 40]
    drafter = bound(write_store(tmp_path / "s", [text]), sources=[source], min_match=3)
    drafter.learn(text, "")  # as if the image's token were a word, in the datastore too
    prompt = [*text, 1, 2, 3, image, 4, 5]
    media = (MediaSpan("image", 3, 4), MediaSpan("image", 11, 12))
    session = started(drafter, prompt, media=media, namespace="")
    assert session.propose(prompt, 8) == TokenTree.root(5), "two tokens since the image"
    assert (40,) in paths(session.propose([*prompt, 6], 8))


@pytest.mark.parametrize("source", ["online", "generated"])
def test_an_image_is_never_proposed(source: str) -> None:
    text = [1, 2, 3, 77, 4, 1, 2, 3]
    drafter, media = bound(sources=[source]), (MediaSpan("image", 3, 4),)
    started(drafter, text, media=media, namespace="").learn([9])  # the prompt's end is kept too
    tree = started(drafter, text, media=media, namespace="").propose(text, 8)
    assert tree.tokens[1:] == (() if source == "online" else (9,))


def test_no_match_crosses_two_texts_beside_the_prompt() -> None:
    session = started(bound(sources=["online"]), [50, 3, 9], beside=[[1, 2, 3], [9, 8, 7], [5, 50]])
    assert session.propose([50, 3, 9], 8) == TokenTree.root(9)


def test_all_sources_join_in_one_tree(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3, 40]])
    drafter = bound(store)
    drafter.learn([1, 2, 3, 50], "")
    text = [1, 2, 3, 60, 1, 2, 3]
    tree = started(drafter, text, namespace="").propose(text, 8)
    assert {path[0] for path in paths(tree)} == {40, 50, 60}
    assert tree.tokens[1] == 60, "of equal matches the request's own text says most"


def test_at_most_32_continuations_are_kept(tmp_path: Path) -> None:
    stores = [
        write_store(tmp_path / str(n), [[1, 2, 3, 10 + 25 * n + k] for k in range(25)])
        for n in range(3)
    ]
    text = [1, 2, 3]
    tree = started(bound(*stores, max_places=32), text).propose(text, 100)
    assert len(paths(tree)) == 32
    own = [token for k in range(20) for token in (1, 2, 3, 85 + k)] + text
    tree = started(bound(*stores, max_places=32), own).propose(own, 100)
    first = {path[0] for path in paths(tree)}
    assert len(first) == 32 and first >= set(range(85, 105)), "the request's own text comes first"


def test_rows_are_asked_for_together(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3, 40], [7, 8, 9, 50]])
    drafter = bound(store)
    texts = [[1, 2, 3], [7, 8, 9], [20]]
    sessions = [started(drafter, text) for text in texts]
    together = drafter.propose_together(sessions, texts, 4)
    assert [paths(tree) for tree in together] == [{(40,)}, {(50,)}, set()]
    assert together == [started(drafter, text).propose(text, 4) for text in texts]


def test_states_that_no_look_up_asks_for_are_not_made() -> None:
    """They are another drafter's."""
    session = started(bound(), [1, 2, 3, 1, 2])

    def never() -> Tensor:
        raise AssertionError("nobody looks at it")

    scores = Scores(torch.zeros(1, 1), hidden=LateHidden({4: never}))
    session.observe(TokenTree.root(2), Verdict((0,), (3,)), scores)
    session.propose([1, 2, 3, 1, 2, 3], 4)


# LAW: what was generated


def generate(drafter: BoundRetrieval, namespace: str | None, chosen: Sequence[int]) -> None:
    session = started(drafter, [90, 91, 92], namespace=namespace)
    session.learn(chosen)
    session.close()


def proposed(drafter: BoundRetrieval, namespace: str | None, text: Sequence[int]) -> set[int]:
    return set(started(drafter, text, namespace=namespace).propose(text, 64).tokens[1:])


def test_the_first_words_of_a_text_are_found_by_the_end_of_its_prompt() -> None:
    drafter = bound()
    started(drafter, range(100, 120), namespace="").learn([1, 2])
    assert proposed(drafter, "", [8, 117, 118, 119]) == {1, 2}


def test_finished_texts_are_drafted_from() -> None:
    drafter = bound()
    generate(drafter, "", [1, 2, 3, 4, 5])
    assert proposed(drafter, "", [8, 1, 2, 3]) == {4, 5}


def test_the_first_words_are_found_by_the_end_of_the_prompt() -> None:
    drafter = bound()
    generate(drafter, "", [1, 2, 3])
    assert proposed(drafter, "", [60, 90, 91, 92]) == {1, 2, 3}


def test_no_text_of_one_namespace_drafts_for_another() -> None:
    drafter = bound()
    texts = {"a": [1, 2, 3, 10, 11], "b": [1, 2, 3, 20, 21], "": [1, 2, 3, 30, 31]}
    for namespace, text in texts.items():
        generate(drafter, namespace, text)
    for namespace, text in texts.items():
        assert proposed(drafter, namespace, [1, 2, 3]) == set(text[3:])
    assert proposed(drafter, "c", [1, 2, 3]) == set()
    assert proposed(drafter, None, [1, 2, 3]) == set(), "reuse is off: nobody's text"


def test_a_request_without_reuse_leaves_nothing() -> None:
    drafter = bound()
    generate(drafter, None, [1, 2, 3, 4, 5])
    source: Any = drafter.sources["generated"]
    assert len(source.store) == 0


def test_what_is_forgotten_is_not_drafted_from() -> None:
    drafter = bound()
    for namespace in ("a", "b", "c"):
        generate(drafter, namespace, [1, 2, 3, 4])
    drafter.forget("a")
    assert [proposed(drafter, n, [1, 2, 3]) for n in "abc"] == [set(), {4}, {4}]
    drafter.forget()
    assert [proposed(drafter, n, [1, 2, 3]) for n in "abc"] == [set()] * 3


def test_what_is_useful_leaves_last() -> None:
    drafter = bound(generated_bytes=10**6)
    store = drafter.sources["generated"].store  # type: ignore[attr-defined]
    for first in (10, 20, 30):
        drafter.learn(range(first, first + 6), "")
    session = started(drafter, [10, 11, 12], namespace="")
    tree = session.propose([10, 11, 12], 4)
    observe(session, tree, (0, 1))
    store.max_bytes = store.num_bytes
    drafter.learn(range(40, 46), "")
    assert proposed(drafter, "", [10, 11, 12]) and proposed(drafter, "", [30, 31, 32])
    assert not proposed(drafter, "", [20, 21, 22]), "10 was accepted: 20 is the least useful"


def test_nothing_is_on_the_disk_unless_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(bound(), "", [1, 2, 3, 4])
    assert list(tmp_path.iterdir()) == []


def test_what_was_generated_is_saved_and_reopened_each_namespace_apart(tmp_path: Path) -> None:
    path = tmp_path / "generated"
    drafter = bound(generated_path=path)
    generate(drafter, "a", [1, 2, 3, 4])
    assert path.exists(), "the first text is saved at once"
    generate(drafter, "b", [1, 2, 3, 5])
    del drafter  # and the last ones at the end
    again = bound(generated_path=path)
    assert [proposed(again, n, [1, 2, 3]) for n in ("a", "b", "")] == [{4}, {5}, set()]
    again.forget("a")
    afterwards = bound(generated_path=path)
    assert [proposed(afterwards, n, [1, 2, 3]) for n in ("a", "b")] == [set(), {5}]


def test_a_file_that_cannot_be_written_costs_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = bound(generated_path=tmp_path / "nowhere" / "generated")
    generate(drafter, "", [1, 2, 3, 4])
    assert "not saved" in caplog.text
    assert proposed(drafter, "", [1, 2, 3]) == {4}


def test_the_same_text_is_kept_once() -> None:
    drafter = bound()
    for _ in range(3):
        generate(drafter, "", [1, 2, 3, 4])
    assert len(drafter.sources["generated"].store) == 1  # type: ignore[attr-defined]


# LAW: the datastore


def test_what_is_added_meanwhile_is_seen_by_the_next_request(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3, 40]])
    drafter = bound(store)
    session = started(drafter, [1, 2, 3])
    before = session.propose([1, 2, 3], 8)
    write_store(store, [[1, 2, 3, 50]])
    assert session.propose([1, 2, 3], 8) == before, "a request goes on with what it began with"
    assert paths(started(drafter, [1, 2, 3]).propose([1, 2, 3], 8)) == {(40,), (50,)}


def test_a_datastore_that_goes_away_is_drafted_from_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3, 40]])
    drafter = bound(store)
    (store / "manifest.json").unlink()
    for _ in range(2):
        assert paths(started(drafter, [1, 2, 3]).propose([1, 2, 3], 8)) == {(40,)}
    assert caplog.text.count("as it was opened") == 1, "said once"


def test_a_datastore_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatastoreError, match="no datastore here"):
        bound(tmp_path / "nothing")
    wide = write_store(tmp_path / "wide", [[1, 2, 3]], vocab_size=VOCAB + 1)
    with pytest.raises(DatastoreError, match=f"go up to {VOCAB}, the target's vocabulary has"):
        bound(wide)
    with DatastoreWriter.create(tmp_path / "o", tokenizer="other", vocab_size=VOCAB) as writer:
        writer.begin()
        writer.commit()
    with pytest.raises(DatastoreError, match="another tokenizer: got sha256"):
        bound(tmp_path / "o")
    for options in ({"datastores": wide}, {"generated_path": tmp_path / "texts"}):
        with pytest.raises(ConfigError, match="no tokenizer"):
            Retrieval(**options).for_target(TARGET, None)
    assert "generated" not in bound(generated_bytes=0).sources


@pytest.mark.parametrize(
    "options",
    [
        {"sources": ["suffix", "dens"]},
        {"sources": ["online", "online"]},
        {"max_places": 33},
        {"min_match": 0},
        {"min_match": 9, "max_match": 8},
        {"max_match": 65},
        {"max_depth": 0},
        {"min_confidence": 15},
        {"generated_bytes": -1},
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"drafter\.retrieval\.{next(iter(options))}=.*expected"):
        Retrieval(**options)


# LAW: confidence


def test_sources_are_calibrated_apart(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3, 40]])
    drafter = bound(store, max_depth=1)
    text = [1, 2, 3, 60, 1, 2, 3]
    session = started(drafter, text)
    tree = session.propose(text, 2)
    before = dict(zip(tree.tokens, tree.confidence, strict=True))
    for _ in range(4):  # 60 is always right, 40 never
        observe(session, tree, (0, tree.tokens.index(60)))
        tree = session.propose(text, 2)
    now = dict(zip(tree.tokens, tree.confidence, strict=True))
    assert now[60] > before[60] and now[40] < before[40]


def test_the_state_that_chose_the_newest_token_is_the_querys() -> None:
    drafter = bound()
    drafter.taps = Taps(frozenset({3}))
    prefill = replace(Prefill(torch.zeros(1), Placement(0, (0,))), hidden={3: torch.eye(4)[[0, 1]]})
    session = drafter.start(Prompt(torch.tensor([1, 2])), prefill, GUIDE)
    assert session.query([1, 2, 5]).hidden[3].tolist() == [0, 1, 0, 0]
    tree = TokenTree.chain(5, [6, 7], [0.5, 0.5], "x")
    scores = Scores(torch.zeros(3, 1), hidden={3: torch.eye(4)[[1, 2, 3]]})
    session.observe(tree, Verdict((0, 1), (6, 8)), scores)
    query = session.query([1, 2, 5, 6, 8])
    assert query.tail == [1, 2, 5, 6, 8]
    assert query.hidden[3].tolist() == [0, 0, 1, 0], "node 1's: after 6 the target chose 8"
    session.observe(TokenTree.root(8), Verdict((0,), (9,)), Scores(torch.zeros(1, 1)))
    assert not session.query([1, 2, 5, 6, 8, 9]).hidden, "a view's forwards have none"
