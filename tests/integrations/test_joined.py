"""Calls of several threads and tasks join one running loop, and nobody's answer depends on it."""

import asyncio
import errno
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from integrations.frameworks import LEDGER, Calls

import mmspec
from mmspec.engine import Engine
from mmspec.errors import DecodeError, InputError
from mmspec.integrations import joined_loop
from mmspec.integrations.answer_stream import ask_async
from mmspec.integrations.joined import answer, answer_async
from mmspec.requests import Request

NAMES = ("Bob", "Eve", "Ada", "Tim", "Zoe", "Max", "Kim", "Leo", "Amy", "Jim", "Pam", "Ned")
ASKED = [
    Request(LEDGER.replace("Bob", name), seed=i, temperature=float(i % 2), max_new_tokens=24)
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[tuple[int, ...]]:
    return [engine.generate(request).tokens for request in ASKED]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until = time.monotonic() + 30
    while any(thread.name == "mmspec-joined" for thread in threading.enumerate()):
        assert time.monotonic() < until, "a thread is left"
        time.sleep(0.01)


async def gathered(engine: Engine, requests: list[Request]) -> list[Any]:
    calls = (answer_async(engine, lambda one=one: one) for one in requests)  # type: ignore[misc]
    found = await asyncio.gather(*calls, return_exceptions=True)
    return [one if isinstance(one, BaseException) else one[1].tokens for one in found]


def test_tasks_are_decoded_together(
    engine: Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than asyncio has threads."""
    calls = Calls(engine, monkeypatch.setattr)
    assert asyncio.run(gathered(engine, ASKED)) == alone
    assert sum(calls.sizes) == len(ASKED) and len(calls.sizes) < 4, calls.sizes


def test_threads_are_decoded_together(
    engine: Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(engine, monkeypatch.setattr)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: answer(engine, one).tokens, ASKED))
    assert found == alone
    assert sum(calls.sizes) == len(ASKED) and len(calls.sizes) < 6, calls.sizes


def test_the_main_thread_decodes_for_itself(
    engine: Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_loop.JoinedLoop, "submit", None)
    assert answer(engine, ASKED[0]).tokens == alone[0]


@pytest.mark.parametrize(
    "ask", [answer, lambda *of: asyncio.run(answer_async(of[0], lambda: of[1]))]
)
def test_what_fails_while_a_prompt_is_prepared_is_no_mistake_of_its(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    def lost(*prompt: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(engine.inputs, "encode", lost)
    with pytest.raises(DecodeError, match=r"before its first token: OSError: .*Input/output error"):
        ask(engine, ASKED[0])


def test_a_request_that_fails_fails_alone(engine: Engine, alone: list[tuple[int, ...]]) -> None:
    def breaks(ids: Any, scores: Any) -> Any:
        raise ZeroDivisionError("mine")

    long, broken = Request("x" * 40_000), replace(ASKED[2], logits_processors=[breaks])
    found = asyncio.run(gathered(engine, [ASKED[0], long, broken, ASKED[1]]))
    assert isinstance(found[1], InputError) and "context" in str(found[1])
    with pytest.raises(type(found[2]), match="mine"):
        engine.generate(broken)
    assert [found[0], found[3]] == alone[:2]


def test_who_is_cancelled_leaves_the_others(engine: Engine, alone: list[tuple[int, ...]]) -> None:
    begun = threading.Event()
    endless = replace(
        ASKED[0], max_new_tokens=3000, ignore_eos=True, on_prefill=lambda *_: begun.set()
    )

    async def leave() -> list[Any]:
        left = asyncio.ensure_future(answer_async(engine, lambda: endless))
        await asyncio.to_thread(begun.wait, 60)
        others = asyncio.ensure_future(gathered(engine, ASKED[:3]))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        return await others

    assert asyncio.run(leave()) == alone[:3]


def test_a_loop_that_breaks_is_told_and_the_next_one_works(
    engine: Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = engine._each

    def broken(prompts: Any, shares: Any, **options: Any) -> Any:
        next(each(prompts, shares, tells_steps=True))
        raise MemoryError("no more")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_each", broken)
        found = asyncio.run(gathered(engine, ASKED[:1]))
    assert isinstance(found[0], DecodeError) and isinstance(found[0].__cause__, MemoryError)
    assert asyncio.run(gathered(engine, ASKED[:2])) == alone[:2]


def test_a_requests_own_callback_may_ask(engine: Engine, alone: list[tuple[int, ...]]) -> None:
    """The loop waits for the callback, so what it asks cannot join the loop."""
    asked = []

    def ask(done: int, of: int) -> None:
        if not asked:
            asked.append(answer(engine, ASKED[1]).tokens)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(answer, engine, replace(ASKED[0], on_prefill=ask, reuse=False))
        assert found.result(60).tokens == alone[0]
    assert asked == [alone[1]]


def test_a_requests_own_callback_may_ask_in_an_event_loop(
    engine: Engine, alone: list[tuple[int, ...]]
) -> None:
    asked: list[Any] = []

    def ask(done: int, of: int) -> None:
        if not asked:
            asked.append([])
            asked[0] = asyncio.run(gathered(engine, ASKED[1:3]))

    calling = replace(ASKED[0], on_prefill=ask, reuse=False)

    async def in_time() -> list[Any]:
        return await asyncio.wait_for(gathered(engine, [calling]), 20)

    assert asyncio.run(in_time()) == alone[:1]
    assert asked == [alone[1:3]]


async def read(engine: Engine, requests: list[Request]) -> list[Any]:
    """As frameworks ask."""
    return await asyncio.gather(*(ask_async(engine, partial(replace, one)) for one in requests))


@pytest.mark.parametrize("gathered", [gathered, read])
def test_no_more_prompts_are_held_ready_than_soon_have_a_place(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, gathered: Callable[..., Any]
) -> None:
    """Their pixels lie in memory."""
    held, most, lock, loops = 0, 0, threading.Lock(), weakref.WeakSet[Any]()
    each, prepare = engine._each, engine.prepare

    def preparing(*prompt: Any, **options: Any) -> Any:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return prepare(*prompt, **options)

    def ending(prompts: Any, shares: Any, **options: Any) -> Iterator[Any]:
        nonlocal held
        for step in each(prompts, shares, **options):
            with lock:
                held -= step.result is not None
            yield step

    monkeypatch.setattr(engine, "prepare", preparing)
    monkeypatch.setattr(engine, "_each", ending)
    many = [replace(ASKED[i % 12], max_new_tokens=2) for i in range(40)]

    async def ask() -> int:
        loops.add(asyncio.get_running_loop())
        return len(await gathered(engine, many))

    assert asyncio.run(ask()) == 40
    assert 0 < most <= 2 * engine.max_rows
    ends = time.monotonic() + 10  # the thread that has told the last answer may be about to end
    while loops and time.monotonic() < ends:
        time.sleep(0.01)
        gc.collect()
    assert not loops


def test_nothing_keeps_an_engine_that_is_gone() -> None:
    engine = mmspec.load("tiny-vlm")
    asyncio.run(gathered(engine, ASKED[:2]))
    gone = weakref.ref(engine)
    while any(thread.name == "mmspec-joined" for thread in threading.enumerate()):
        time.sleep(0.01)
    del engine
    gc.collect()
    assert gone() is None


def test_threads_go_on_where_no_other_can_be_begun(
    engine: Engine, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12.0 and 3.12.1 begin none once the main thread has ended."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: both.wait(timeout=60), range(2)))
        monkeypatch.setattr(threading.Thread, "start", start)
        told = list(pool.map(lambda one: answer(engine, one).tokens, ASKED[:6]))
        lasting = replace(ASKED[0], stopping_criteria=[lambda ids, scores, **_: False])
        assert pool.submit(lambda: answer(engine, lasting).tokens).result(60) == alone[0]
    assert told == alone[:6]


def test_an_interpreter_that_ends_waits_for_threads_that_are_no_daemons() -> None:
    """And for no endless request of a daemon's, which nobody will ever hear of."""
    script = """
import atexit, threading, mmspec
from mmspec.integrations.joined import answer
tokens, begun = [], threading.Event()
def token(ids, scores, **_):
    tokens.append(1)
    begun.set()
    return False
engine = mmspec.load("tiny-vlm")
asked = mmspec.Request("a", max_new_tokens=3500, ignore_eos=True, stopping_criteria=[token])
threading.Thread(target=answer, args=(engine, asked), daemon=True).start()
begun.wait()
atexit.register(lambda: print(len(tokens)))  # called once all threads but daemons have ended
short = mmspec.Request("a", max_new_tokens=90, ignore_eos=True)
def say():
    print(f"{len(answer(engine, short).tokens)}\\n", end="")  # at once: they end at the same step
for _ in range(2):
    threading.Thread(target=say).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *said, endless = done.stdout.split()
    assert said == ["90", "90"] and 0 < int(endless) < 1000
