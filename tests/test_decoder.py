"""The decode loop: small enough to read, general enough to name nothing, right at every step."""

import inspect
import io
import re
import tokenize
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from adversary import Adversary
from families import FAMILIES, prompt_inputs
from torch import Tensor
from transformers import LogitsProcessor

import mmspec
from mmspec import decoder
from mmspec.config import Config, DecodeConfig
from mmspec.controller import FixedController
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafting import DraftSettings
from mmspec.engine import Engine
from mmspec.kv import KVCache, PrefixStore
from mmspec.prefiller import PrefillSettings
from mmspec.requests import Request, build_request
from mmspec.row import Row
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.stream import Detokenizer
from mmspec.tree import TokenTree
from mmspec.verify import coupled

SCREEN_LINES = 60


def test_the_loop_fits_on_one_screen() -> None:
    assert len(inspect.getsource(decoder.decode).splitlines()) <= SCREEN_LINES


def test_the_loop_names_no_modality_drafter_or_rule() -> None:
    source = inspect.getsource(decoder)
    names = {
        token.string.lower()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME
    }
    named = re.compile(r"image|video|audio|pixel|lookup|medusa|eagle|coupled|greedy|typical|gumbel")
    assert not [name for name in names if named.search(name)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = FAMILIES["llama"].build(torch.float64)
    config = Config(decode=DecodeConfig(max_rows=2))
    plain = mmspec.load(model, config=config)
    truths = {
        tuple(request.prompt["input_ids"][0].tolist()): plain.generate(request).tokens
        for request in requests()
    }
    return mmspec.load(model, config=config, drafter=Adversary(truths, 112))


def requests() -> list[Request]:
    lengths = (20, 33, 9, 14, 27)
    return [
        Request(
            prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=n, seed=n),
            temperature=0.0,
            max_new_tokens=4 * index + 1,
        )
        for index, n in enumerate(lengths)
    ]


def test_a_row_has_committed_all_but_its_last_token_after_every_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = engine.target.new_cache()
    monkeypatch.setattr(engine.target, "new_cache", lambda **_: cache)
    commit, checked = KVCache.commit, 0

    def checked_commit(self: KVCache, paths: object) -> None:
        commit(self, paths)  # type: ignore[arg-type]
        self.check_integrity()

    monkeypatch.setattr(KVCache, "commit", checked_commit)
    rows = [engine._row(build_request(r, {}), i) for i, r in enumerate(requests())]
    steps = steps_of(engine, rows, max_rows=2, max_nodes=12)
    for row in steps:
        assert len(cache.rows) <= 2, "more rows than places"
        if row.placement.row in cache.rows:
            committed = cache.length(row.placement.row)
            assert committed == row.prompt.num_tokens + row.num_chosen - 1
            checked += 1
    assert checked > 10
    assert not cache.rows and cache.num_bytes == 0


def test_rows_begin_as_places_become_free_in_order(engine: Engine) -> None:
    rows = [engine._row(build_request(r, {}), i) for i, r in enumerate(requests())]
    begun: list[int] = []
    for row in steps_of(engine, rows, max_rows=2):
        if row.index not in begun:
            begun.append(row.index)
    assert begun == list(range(5))
    assert [row.num_chosen for row in rows] == [1, 5, 9, 13, 17]


class Counting:
    """A drafter that proposes nothing, and counts what is opened and closed."""

    name = "counting"

    def __init__(self, failure: Exception | None = None) -> None:
        self.open: list[int] = []  # the prompts' lengths
        self.failure = failure  # of each session's close

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> DraftSession:
        counting, length = self, prompt.num_tokens
        self.open.append(length)

        class Session:
            def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
                return TokenTree.root(tokens[-1])

            def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
                pass

            def close(self) -> None:
                counting.open.remove(length)
                if counting.failure is not None:
                    raise counting.failure

        return Session()


def steps_of(
    engine: Engine, rows: Sequence[Row], *, max_rows: int, max_nodes: int = 4, **options: Any
) -> Generator[Row]:
    drafts = DraftSettings(FixedController(), lambda t: t, max_nodes)
    return decoder.decode(
        engine.target, rows, verify=coupled, drafts=drafts, max_rows=max_rows, **options
    )


def leases(store: PrefixStore) -> int:
    return sum(node.num_users for root in store._roots.values() for node in root.below())


class Refusing(LogitsProcessor):
    """Raises when it is called for the third time."""

    calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise ValueError("no third token")
        return scores


@pytest.mark.parametrize("ending", ["closed", "error"])
def test_whoever_ends_leaves_no_session_no_slot_and_no_lease(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is closed while a row decodes, one is read and one waits; or the first row fails,
    and the others go on."""
    drafter, store = Counting(), PrefixStore(2**20)
    engine = mmspec.load(FAMILIES["llama"].build(torch.float64), drafter=drafter)
    cache = engine.target.new_cache()
    monkeypatch.setattr(engine.target, "new_cache", lambda **_: cache)
    own = {"logits_processors": [Refusing()]} if ending == "error" else {}
    given = [
        Request(
            prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=length),
            temperature=0.0,
            max_new_tokens=6,
            **(own if index == 0 else {}),
        )
        for index, length in enumerate((10, 60, 20))
    ]
    rows = [engine._row(build_request(request, {}), i) for i, request in enumerate(given)]
    steps = steps_of(engine, rows, max_rows=2, prefill=PrefillSettings(store, chunk_tokens=8))

    for row in steps:
        if rows[0].num_chosen == 2 and ending == "closed":
            break
        if rows[0].is_done and row is not rows[0]:  # the step after
            assert len(cache.rows) <= 2 and 10 not in drafter.open
    if ending == "closed":
        assert drafter.open == [10] and len(cache.rows) == 2, "one decodes, one is read"
        steps.close()
        assert [row.finish_reason for row in rows] == ["closed", "closed", None]
    else:
        assert [row.finish_reason for row in rows] == ["error", "length", "length"]
        assert "no third token" in str(rows[0].error) and rows[0].num_chosen == 2
        monkeypatch.undo()
        alone = [engine.generate(request, reuse=False).tokens for request in given[1:]]
        assert [tuple(row.chosen) for row in rows[1:]] == alone
    assert drafter.open == [] and leases(store) == 0
    assert cache.rows == () and cache.num_bytes == 0


def test_a_token_that_the_tokenizer_fails_at_ends_its_own_row_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As slow tokenizers may at a token beyond their vocabulary."""
    own, other = (replace(request, max_new_tokens=6) for request in requests()[:2])
    bad = engine.generate(own).tokens[3]
    right = engine.generate(other)
    assert bad not in right.tokens

    def decode(ids: list[int]) -> str:
        if bad in ids:
            raise TypeError("expected str instance, NoneType found")
        return "x" * len(ids)

    made = "mmspec.engine.build_detokenizer"
    monkeypatch.setattr(made, lambda *_, **__: Detokenizer(decode))
    failed, went_on = engine.generate([own, other])
    assert "NoneType" in str(failed.error) and failed.text == "xxx"
    assert went_on.error is None and went_on.tokens == right.tokens


def test_an_error_in_the_targets_forward_frees_all_kv(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = engine.target.new_cache()
    monkeypatch.setattr(engine.target, "new_cache", lambda **_: cache)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.target, "score", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate(requests()[1])
    assert not cache.rows and cache.num_bytes == 0


def test_where_a_device_is_lost_at_the_end_everything_is_closed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("CUDA error: unspecified launch failure")
    drafter, store = Counting(lost), PrefixStore(2**20)
    engine = mmspec.load(FAMILIES["llama"].build(torch.float64), drafter=drafter)
    cache = engine.target.new_cache()
    monkeypatch.setattr(engine.target, "new_cache", lambda **_: cache)
    rows = [engine._row(build_request(requests()[1], {}), i) for i in range(3)]
    steps = steps_of(engine, rows, max_rows=3, prefill=PrefillSettings(store))
    while not all(row.num_chosen for row in rows):
        next(steps)
    assert len(drafter.open) == len(cache.rows) == 3 and leases(store) > 0
    with pytest.raises(RuntimeError, match="launch failure"):
        steps.close()
    assert [row.finish_reason for row in rows] == ["closed"] * 3
    assert drafter.open == [] and leases(store) == 0
    assert cache.rows == () and cache.num_bytes == 0


def test_a_text_that_cannot_be_stored_holds_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    store = PrefixStore(2**20)
    engine = mmspec.load(FAMILIES["llama"].build(torch.float64))

    def again() -> Iterator[Row]:
        row = engine._row(build_request(requests()[1], {}), 0)
        return steps_of(engine, [row], max_rows=1, prefill=PrefillSettings(store))

    list(again())
    steps = again()
    next(steps)
    assert leases(store) > 0
    monkeypatch.setattr(store, "insert", lost)
    with pytest.raises(RuntimeError, match="launch failure"):
        list(steps)
    assert leases(store) == 0
