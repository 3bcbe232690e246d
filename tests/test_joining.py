"""Requests that join and leave a running batch: nobody's text depends on who else is there."""

import threading
from collections.abc import Iterator

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import LAYOUTS, Cell, run_cell

import mmspec
from mmspec import Request
from mmspec.errors import InputError
from mmspec.kv import KVCache
from mmspec.requests import Progress

NUM_REQUESTS = 6


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    return mmspec.load(
        FAMILIES["llama"].build(torch.float64),
        overrides={"decode.max_rows": 3, "decode.controller": "fixed", "decode.prefill_chunk": 8},
    )


def request(number: int, **options: object) -> Request:
    """Each of its own length, seed, and kind of sampling."""
    inputs = prompt_inputs(
        FAMILIES["llama"], "text", num_text_tokens=9 + 7 * number, seed=number % 4
    )
    return Request(
        inputs,
        seed=number,
        temperature=float(number % 2),
        max_new_tokens=4 + 5 * (number % 3),
        ignore_eos=True,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def alone(engine: mmspec.Engine) -> list[tuple[int, ...]]:
    return [engine.generate(request(n), reuse=False).tokens for n in range(NUM_REQUESTS)]


def results(steps: list[Progress]) -> dict[int, mmspec.Result]:
    return {step.index: step.result for step in steps if step.result is not None}


@pytest.mark.parametrize(
    ("family", "drafter", "reuse", "sampling"),
    [
        ("llama", "adversary", "chunks", "t1"),
        ("gemma3_text", "compressed_snapkv", "none", "warped"),
        ("qwen2_5_vl", "draft_same", "chunks_and_prefixes", "greedy"),
        ("qwen2_5_vl", "layer_skip", "chunks", "t1"),
        ("llava", "cascade", "chunks_and_prefixes", "warped"),
    ],
)
def test_whoever_joins_or_leaves_the_tokens_are_those_of_plain_decoding_alone(
    family: str, drafter: str, reuse: str, sampling: str
) -> None:
    layout = LAYOUTS[FAMILIES[family].kind][-1]
    cell = Cell(family, drafter, sampling, 3, layout, reuse=reuse)
    outcome = run_cell(cell, joins=True)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted > 0, "no drafted token was accepted: this cell proves nothing"


@pytest.mark.parametrize("pauses", [0, 1, 3])
def test_a_text_does_not_depend_on_when_its_request_joins(
    engine: mmspec.Engine, alone: list[tuple[int, ...]], pauses: int
) -> None:
    def arriving() -> Iterator[Request | None]:
        for number in range(NUM_REQUESTS):
            yield request(number)
            yield from [None] * pauses

    steps = list(engine.stream_each(arriving()))
    assert {n: r.tokens for n, r in results(steps).items()} == dict(enumerate(alone))
    if pauses == 3:  # the last one came when the first was on its way or done, not before
        first_of_last = next(i for i, step in enumerate(steps) if step.index == NUM_REQUESTS - 1)
        assert any(step.index == 0 and step.num_tokens > 1 for step in steps[:first_of_last])


def test_who_leaves_costs_the_others_nothing_and_its_slots_are_free(
    engine: mmspec.Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = engine.target.new_cache()
    monkeypatch.setattr(engine.target, "new_cache", lambda **_: cache)
    is_wanted = threading.Event()
    is_wanted.set()
    leaving = request(5, is_wanted=is_wanted.is_set)
    steps = []
    for step in engine.stream_each([request(0), leaving, *map(request, range(1, 5))]):
        steps.append(step)
        if step.index == 1 and step.num_tokens >= 2:
            is_wanted.clear()
        if any(one.index == 1 and one.finish_reason for one in steps[:-1]):
            assert len(cache.rows) <= 3
    found = results(steps)
    assert found[1].finish_reason == "closed" and found[1].error is None
    assert 2 <= len(found[1].tokens) < len(alone[5])
    assert found[1].tokens == alone[5][: len(found[1].tokens)]
    others = [found[0], *(found[n] for n in range(2, 6))]
    assert [one.tokens for one in others] == alone[:5]


def test_a_prompt_that_nobody_waits_for_is_not_read_to_its_end(engine: mmspec.Engine) -> None:
    read: list[int] = []
    long = request(
        5,
        reuse=False,
        is_wanted=lambda: len(read) < 2,
        on_prefill=lambda done, _: read.append(done),
    )
    found = results(list(engine.stream_each([long, request(0)])))
    assert read == [8, 16], "chunks of 8, and no third"
    assert found[0].finish_reason == "closed" and found[0].tokens == ()
    assert found[1].finish_reason == "length"


def test_closing_frees_all_kv(engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[KVCache] = []
    new_cache = engine.target.new_cache
    monkeypatch.setattr(
        engine.target, "new_cache", lambda **o: caches.append(new_cache(**o)) or caches[-1]
    )
    steps = engine.stream_each(map(request, range(3)))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert [cache.rows for cache in caches] == [()]


def test_a_failing_prompt_is_told_though_nothing_else_is_decoded(engine: mmspec.Engine) -> None:
    wrong = Request("a text, and there is no tokenizer")
    steps = list(engine.stream_each([None, request(0)]))
    assert steps == [], "none now, and none is decoded: the end"
    for prompts in ([wrong, None], [wrong, request(0), None], [request(0), None, wrong, None]):
        found = results(list(engine.stream_each(iter(prompts))))
        index = [p for p in prompts if p is not None].index(wrong)
        assert isinstance(found.pop(index).error, InputError)
        assert all(one.error is None for one in found.values())


def test_a_none_takes_no_prompts_media(engine: mmspec.Engine) -> None:
    prompts = [request(0), None, request(1)]
    found = results(list(engine.stream_each(prompts, images=[None, []])))
    assert sorted(found) == [0, 1] and all(one.error is None for one in found.values())


def test_steps_add_up_to_the_answer_with_its_samples_and_logprobs(engine: mmspec.Engine) -> None:
    asked = [request(1, n=3, logprobs=2), request(2)]
    steps = list(engine.stream_each(asked))
    found = results(steps)
    assert len(found[0].samples) == 3
    for result, index in ((sample, 0) for sample in found[0].samples):
        own = [s for s in steps if (s.index, s.sample) == (index, result.sample) and not s.result]
        assert tuple(place for step in own for place in step.logprobs) == result.logprobs
        assert [s.finish_reason for s in own] == [None] * (len(own) - 1) + ["length"]
        assert own[-1].num_tokens == len(result.tokens)
    assert not any(step.logprobs for step in steps if step.index == 1)
