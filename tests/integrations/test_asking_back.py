"""What a request calls (a processor, a criterion, a stream's consumer) may ask its own engine."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from integrations.frameworks import LEDGER, Calls
from transformers import LogitsProcessor

from mmspec.engine import Engine
from mmspec.integrations import joined_loop
from mmspec.integrations.joined import answer, answer_async
from mmspec.requests import Request

OUTER = Request(LEDGER, temperature=0, max_new_tokens=12, reuse=False)
INNER = Request(LEDGER.replace("Bob", "Eve"), temperature=0, max_new_tokens=8, reuse=False)
HUNG_S = 20


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[tuple[int, ...]]:
    return [engine.generate(request).tokens for request in (OUTER, INNER)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def calling(ask: Callable[[], object], place: str) -> Request:
    """The outer request, which asks once from one of its callbacks."""
    asked: list[object] = []

    def once(*_: object) -> None:
        if not asked:
            asked.append(None)
            asked[0] = ask()

    def processor(ids: Any, scores: Any) -> Any:
        once()
        return scores

    def criterion(ids: Any, scores: Any, **_: Any) -> bool:
        once()
        return False

    def allowed(index: int, ids: Any) -> list[int]:
        once()
        return list(range(256))

    def is_wanted() -> bool:
        once()
        return True

    class Forcing(LogitsProcessor):
        def __call__(self, ids: Any, scores: Any) -> Any:
            return scores

        def forced_tokens(self, ids: Any) -> list[int]:
            once()
            return []

    if place == "forced_tokens":
        return replace(OUTER, logits_processors=[Forcing()], speculate=True)
    made: dict[str, Any] = {
        "on_prefill": once,
        "logits_processors": [processor],
        "stopping_criteria": [criterion],
        "prefix_allowed_tokens_fn": allowed,
        "is_wanted": is_wanted,
    }
    return replace(OUTER, **{place: made[place]})


PLACES = [
    "on_prefill",
    "logits_processors",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "is_wanted",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("inner", ["same thread", "joined here", "joined", "alone"])
@pytest.mark.parametrize("outer", ["main", "thread", "task"])
def test_a_callback_may_ask_from_any_thread(
    engine: Engine,
    alone: list[tuple[int, ...]],
    pool: ThreadPoolExecutor,
    place: str,
    inner: str,
    outer: str,
) -> None:
    asked: list[Any] = []

    def ask() -> None:
        if inner == "same thread":
            asked.append(engine.generate(INNER).tokens)
        elif inner == "joined here":
            asked.append(answer(engine, INNER).tokens)
        else:
            way = engine.generate if inner == "alone" else (lambda r: answer(engine, r))
            asked.append(pool.submit(way, INNER).result(HUNG_S).tokens)

    request = calling(ask, place)
    if outer == "main":
        found = answer(engine, request)
    elif outer == "thread":
        found = pool.submit(answer, engine, request).result(2 * HUNG_S)
    else:
        _, found = asyncio.run(answer_async(engine, lambda: request))
    assert [found.tokens, *asked] == alone


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_loop, "_LASTING_S", 0.1)


@pytest.mark.parametrize("place", ["stopping_criteria", "forced_tokens"])
@pytest.mark.parametrize("outer", ["thread", "task"])
def test_so_may_the_callbacks_of_what_is_asked(
    engine: Engine,
    alone: list[tuple[int, ...]],
    pool: ThreadPoolExecutor,
    impatient: None,
    outer: str,
    place: str,
) -> None:
    """Three deep: the middle one waits for a place in the loop that its own caller keeps."""
    asked: list[Any] = []

    def ask_inner() -> None:
        asked.append(pool.submit(answer, engine, INNER).result(HUNG_S).tokens)

    def ask_middle() -> None:
        middle = calling(ask_inner, "logits_processors")
        asked.append(pool.submit(answer, engine, middle).result(HUNG_S).tokens)

    request = calling(ask_middle, place)
    if outer == "thread":
        found = pool.submit(answer, engine, request).result(2 * HUNG_S)
    else:
        _, found = asyncio.run(answer_async(engine, lambda: request))
    assert [found.tokens, *asked] == [alone[0], alone[1], alone[0]]


@pytest.mark.parametrize("with_callback", [False, True])
def test_a_callback_may_ask_the_event_loop_that_waits_for_it(
    engine: Engine, alone: list[tuple[int, ...]], impatient: None, with_callback: bool
) -> None:
    """As many as the event loop prepares at a time, each of which asks it for one more."""
    inner = calling(lambda: None, "is_wanted") if with_callback else INNER
    num_asking = 2 * engine.max_rows if with_callback else 2
    asked: list[Any] = []

    async def ask_all() -> list[tuple[int, ...]]:
        loop = asyncio.get_running_loop()

        def ask() -> None:
            coming = asyncio.run_coroutine_threadsafe(answer_async(engine, lambda: inner), loop)
            asked.append(coming.result(2 * HUNG_S)[1].tokens)

        asking = [calling(ask, "on_prefill") for _ in range(num_asking)]
        calls = (answer_async(engine, lambda one=one: one) for one in asking)  # type: ignore[misc]
        return [result.tokens for _, result in await asyncio.gather(*calls)]

    assert asyncio.run(ask_all()) == [alone[0]] * num_asking
    assert asked == [alone[0] if with_callback else alone[1]] * num_asking


def test_a_loop_that_stands_still_lets_in_no_more_than_wait(
    engine: Engine, alone: list[tuple[int, ...]], impatient: None
) -> None:
    """Or the prompts that are ready at a time grow with each slow callback."""

    async def ask() -> tuple[tuple[int, ...], int]:
        one = calling(lambda: time.sleep(1), "on_prefill")
        places = joined_loop.joined_loop(engine, one).ahead(engine)
        _, result = await answer_async(engine, lambda: one)
        await asyncio.sleep(0)
        return result.tokens, places._value

    assert asyncio.run(ask()) == (alone[0], joined_loop.num_ahead(engine))


def test_a_loop_s_lock_may_be_asked_for_within_it(engine: Engine) -> None:
    """A stream that nobody holds is closed by the collector, in any thread and at any time."""
    joined = joined_loop.JoinedLoop(calls_back=False)
    left = joined.submit(engine, replace(INNER, max_new_tokens=2), lambda news: None)

    def begin_place() -> None:
        with joined._lock:
            joined.forget(left)

    thread = threading.Thread(target=begin_place, daemon=True)
    thread.start()
    thread.join(HUNG_S)
    assert not thread.is_alive()


def test_a_long_forward_is_no_callback(
    engine: Engine,
    alone: list[tuple[int, ...]],
    pool: ThreadPoolExecutor,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who comes meanwhile waits for its end, and joins its loop."""
    calls, begun = Calls(engine, monkeypatch.setattr), threading.Event()
    prefill = engine.target.prefill

    def long(*given: Any, **options: Any) -> Any:
        begun.set()
        time.sleep(1)
        return prefill(*given, **options)

    monkeypatch.setattr(engine.target, "prefill", long)
    asked = [replace(one, stopping_criteria=[lambda ids, scores: False]) for one in (OUTER, INNER)]
    first = pool.submit(answer, engine, asked[0])
    assert begun.wait(HUNG_S)
    second = pool.submit(answer, engine, asked[1])
    assert [first.result(HUNG_S).tokens, second.result(HUNG_S).tokens] == alone
    assert calls.sizes == [2]


def test_nobody_waits_for_the_callback_of_another(
    engine: Engine, alone: list[tuple[int, ...]], pool: ThreadPoolExecutor
) -> None:
    """An answer that was asked for before, too."""
    told, is_over = threading.Event(), threading.Event()

    def keep() -> None:
        told.set()
        assert is_over.wait(HUNG_S)

    kept = pool.submit(answer, engine, calling(keep, "stopping_criteria"))
    assert told.wait(HUNG_S)
    assert pool.submit(answer, engine, INNER).result(HUNG_S).tokens == alone[1]
    is_over.set()
    assert kept.result(HUNG_S).tokens == alone[0]


def test_those_who_wait_for_each_others_answers_are_told_of(
    engine: Engine,
    pool: ThreadPoolExecutor,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(joined_loop, "_TOLD_S", 0.3)
    until = threading.Event()
    kept = pool.submit(answer, engine, calling(lambda: until.wait(HUNG_S), "is_wanted"))
    begun = time.monotonic()
    while "waited" not in caplog.text and time.monotonic() < begun + HUNG_S:
        time.sleep(0.01)
    until.set()
    kept.result(HUNG_S)
    assert caplog.text.count("for a callback of one of them") == 1
