"""Streams of several threads and tasks join one running loop; each is read at its own pace."""

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from integrations.frameworks import LEDGER, Calls, Ends

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.integrations.answer_stream import AnswerStream, AsyncAnswerStream
from mmspec.integrations.joined import JoinedStream, answer_async, stream
from mmspec.requests import Request
from mmspec.stream import Piece

NAMES = ("Bob", "Eve", "Ada", "Tim", "Zoe", "Max", "Kim", "Leo", "Amy", "Jim", "Pam", "Ned")
ASKED = [
    Request(LEDGER.replace("Bob", name), seed=i, temperature=float(i % 2), max_new_tokens=24)
    for i, name in enumerate(NAMES)
]
ENDLESS = replace(ASKED[0], max_new_tokens=3000, ignore_eos=True)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[str]:
    return [engine.generate(request).text for request in ASKED]


async def text_of(engine: Engine, request: Request) -> str:
    async with AsyncAnswerStream(engine, lambda: request) as stream:
        texts = [text async for text in stream]
    assert "".join(texts) == stream.answer.result.text == stream.answer.text
    return "".join(texts)


def text_in_thread(engine: Engine, request: Request) -> str:
    with AnswerStream(engine, request) as stream:
        texts = list(stream)
    assert "".join(texts) == stream.answer.result.text == stream.answer.text
    return "".join(texts)


def test_streams_of_tasks_are_decoded_together_with_answers(
    engine: Engine, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(engine, monkeypatch.setattr)

    async def ask() -> list[str]:
        streams = (text_of(engine, one) for one in ASKED)
        answers = (answer_async(engine, lambda one=one: one) for one in ASKED)  # type: ignore[misc]
        found: list[Any] = await asyncio.gather(*streams, *answers)
        return [one if isinstance(one, str) else one[1].text for one in found]

    assert asyncio.run(ask()) == alone * 2
    assert sum(calls.sizes) == 2 * len(ASKED) and len(calls.sizes) < 4, calls.sizes


def test_streams_of_threads_are_decoded_together(
    engine: Engine, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(engine, monkeypatch.setattr)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda one: text_in_thread(engine, one), ASKED)) == alone
    assert sum(calls.sizes) == len(ASKED) and len(calls.sizes) < 6, calls.sizes


def test_who_reads_slowly_keeps_nobody_waiting(engine: Engine, alone: list[str]) -> None:
    """More of them than are decoded at a time, each of which stops at its first piece."""
    slow = [ASKED[0]] * (engine.max_rows * 3)

    async def ask() -> tuple[list[str], list[str]]:
        go_on = asyncio.Event()

        async def read(request: Request) -> str:
            told = ""
            async with AsyncAnswerStream(engine, lambda: request) as answer:
                async for text in answer:
                    told += text
                    await go_on.wait()
            return told

        reading = [asyncio.ensure_future(read(one)) for one in slow]
        others = [await asyncio.wait_for(text_of(engine, one), 60) for one in ASKED[1:3]]
        go_on.set()
        return others, list(await asyncio.gather(*reading))

    assert asyncio.run(ask()) == (alone[1:3], [alone[0]] * len(slow))


def test_a_thread_that_reads_slowly_keeps_nobody_waiting(engine: Engine, alone: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:

        def read() -> str:
            with AnswerStream(engine, ASKED[0]) as answer:
                pieces = iter(answer)
                first = next(pieces)
                other = pool.submit(text_in_thread, engine, ASKED[1]).result(60)
                return first + "".join(pieces) + other

        assert pool.submit(read).result(60) == alone[0] + alone[1]


@pytest.mark.parametrize("way", ["task", "thread"])
def test_a_stream_that_is_left_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    ends = Ends(engine, monkeypatch.setattr)

    async def leave() -> None:
        async with AsyncAnswerStream(engine, lambda: ENDLESS) as answer:
            async for _ in answer:
                break

    def leave_thread() -> None:
        with AnswerStream(engine, ENDLESS) as answer:
            next(iter(answer))

    if way == "task":
        asyncio.run(leave())
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(leave_thread).result(60)
    assert ends.reasons == ["closed"]


def test_a_stream_that_is_closed_before_it_begins_ends_for_its_reader(engine: Engine) -> None:
    """Whoever closes it; and the others have the text that was read of them."""
    num_asked = engine.max_rows + 1
    with ThreadPoolExecutor(num_asked) as pool:

        def read() -> tuple[JoinedStream, Future[list[Piece]]]:
            made = stream(engine, ENDLESS)
            assert isinstance(made, JoinedStream)
            return made, reading.submit(list, made)

        with ThreadPoolExecutor(num_asked) as reading:
            both = [pool.submit(read).result(60) for _ in range(num_asked)]
            for made, pieces in reversed(both):  # the last one has no place yet
                made.close()
                read_of_it = "".join(piece.text for piece in pieces.result(60))
                assert made.result.finish_reason == "closed" and made.result.text == read_of_it


def test_who_is_cancelled_while_it_waits_for_a_place_is_gone_at_once(
    engine: Engine, alone: list[str]
) -> None:
    async def ask() -> str:
        begun = asyncio.Event()

        async def keep() -> None:
            async with AsyncAnswerStream(engine, lambda: ENDLESS) as answer:
                async for _ in answer:
                    begun.set()

        kept = [asyncio.ensure_future(keep()) for _ in range(engine.max_rows)]
        await begun.wait()
        late = asyncio.ensure_future(text_of(engine, ENDLESS))
        await asyncio.sleep(0.2)
        late.cancel()
        until = time.monotonic() + 1
        with pytest.raises(asyncio.CancelledError):
            await late
        assert time.monotonic() < until
        for one in kept:
            one.cancel()
        await asyncio.wait(kept)
        return await text_of(engine, ASKED[0])

    assert asyncio.run(ask()) == alone[0]


def test_an_error_comes_behind_the_text_before_it(engine: Engine, alone: list[str]) -> None:
    calls = 0

    def breaks(ids: Any, scores: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise ZeroDivisionError("mine")
        return scores

    broken = replace(ASKED[0], logits_processors=[breaks])

    async def ask() -> tuple[str, BaseException]:
        told = ""
        with pytest.raises(Exception, match="mine") as raised:
            async with AsyncAnswerStream(engine, lambda: broken) as answer:
                async for text in answer:
                    told += text
        return told, raised.value

    told, error = asyncio.run(ask())
    assert told and alone[0].startswith(told)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_several_samples_are_no_stream(engine: Engine) -> None:
    several = replace(ASKED[0], n=2)
    with pytest.raises(InputError, match="n=2"):
        asyncio.run(text_of(engine, several))
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="n=2"):
        pool.submit(text_in_thread, engine, several).result(60)


def test_a_stream_s_reader_may_ask_its_own_engine(engine: Engine, alone: list[str]) -> None:
    """From its own thread, and from another that it waits for."""
    with ThreadPoolExecutor(3) as pool:

        def read() -> list[str]:
            found = []
            with AnswerStream(engine, ASKED[0]) as answer:
                pieces = iter(answer)
                found.append(next(pieces))
                found.append(engine.generate(ASKED[1]).text)
                found.append(pool.submit(text_in_thread, engine, ASKED[2]).result(60))
                found[0] += "".join(pieces)
            return found

        assert read() == alone[:3]  # in the main thread
        assert pool.submit(read).result(60) == alone[:3]


def test_an_event_loop_within_a_callback_may_stream(engine: Engine, alone: list[str]) -> None:
    asked: list[str] = []

    def ask(done: int, of: int) -> None:
        if not asked:
            asked.append("")
            asked[0] = asyncio.run(text_of(engine, with_callback))

    with_callback = replace(ASKED[1], on_prefill=lambda *_: None)
    calling = replace(ASKED[0], on_prefill=ask, reuse=False)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(text_in_thread, engine, calling).result(60) == alone[0]
    assert asked == [alone[1]]
