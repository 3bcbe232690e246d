"""Many clients at once: who comes, leaves, fails or waits costs the others nothing."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving.asking import CHAT, SAMPLED, TEXT, Visitor, asked, events, side_by_side, until
from starlette.applications import Starlette

import mmspec
from mmspec.kv import KVCache
from mmspec.serving import ServerSettings, create_app

LONG = 2000  # tokens: under way for as long as a test looks


@pytest.fixture
def app(engine: mmspec.Engine) -> Starlette:
    return create_app(engine, ServerSettings(name="nano", max_waiting=4))


@pytest.fixture
def caches(engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch) -> list[KVCache]:
    """Those of the decode loops to come."""
    made, new_cache = list[KVCache](), engine.target.new_cache

    def new(**options: int) -> KVCache:
        made.append(new_cache(**options))
        return made[-1]

    monkeypatch.setattr(engine.target, "new_cache", new)
    return made


def test_each_text_is_what_it_is_alone(engine: mmspec.Engine, app: Starlette) -> None:
    questions = [
        "Say a.",
        "Say something quite long, and say it twice.",
        "b",
        "Say more of it.",
    ] * 2
    lengths = [3, 40, 17, 9, 28, 2, 33, 12]

    async def ask() -> list[str]:
        async with side_by_side(app) as client:

            async def one(number: int) -> str:
                await asyncio.sleep(0.03 * number)
                body = asked(questions[number], max_tokens=lengths[number], seed=number)
                if number % 2:
                    found = events((await client.post(CHAT, json={**body, "stream": True})).text)
                    return "".join(e["choices"][0]["delta"].get("content", "") for e in found)
                answer = (await client.post(CHAT, json=body)).json()
                return answer["choices"][0]["message"]["content"]

            # The first 7: three are decoded, four wait.
            return await asyncio.gather(*map(one, range(7)))

    alone = [
        engine.generate(q, max_new_tokens=n, temperature=1.0, seed=i, ignore_eos=True).text
        for i, (q, n) in enumerate(zip(questions, lengths, strict=True))
    ]
    assert asyncio.run(ask()) == alone[:7]


def test_requests_join_a_running_batch(app: Starlette) -> None:
    async def ask() -> None:
        async with side_by_side(app) as client:
            long = Visitor(app, CHAT, asked(max_tokens=LONG, stream=True))
            await until(lambda: "content" in long.text)
            short = await client.post(CHAT, json=asked(max_tokens=3))
            assert short.status_code == 200
            assert not long.task.done(), "the short one did not wait for the long one"
            long.leave()
            await long.task

    asyncio.run(ask())


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_its_place(app: Starlette, caches: list[KVCache], stream: bool) -> None:
    scheduler = app.state.scheduler

    async def ask() -> None:
        async with side_by_side(app):
            stays = Visitor(app, CHAT, asked(max_tokens=LONG, stream=True))
            leaves = Visitor(app, CHAT, asked("Other.", max_tokens=LONG, stream=stream))
            await until(lambda: scheduler.num_decoded == 2 and len(caches[-1].rows) == 2)
            leaves.leave()
            await leaves.task
            await until(lambda: scheduler.num_decoded == 1 and len(caches[-1].rows) == 1)
            before = len(stays.sent)
            await until(lambda: len(stays.sent) > before)
            stays.leave()
            await stays.task
            await until(lambda: scheduler.num_decoded == 0 and not caches[-1].rows)

    asyncio.run(ask())
    assert scheduler.num_waiting == 0


def test_who_leaves_while_waiting_is_never_decoded(app: Starlette, engine: mmspec.Engine) -> None:
    scheduler = app.state.scheduler

    async def ask() -> int:
        async with side_by_side(app):
            rows = [Visitor(app, CHAT, asked(max_tokens=LONG, n=n, stream=True)) for n in (1, 1, 1)]
            await until(lambda: scheduler.num_decoded == 3)
            waits = Visitor(app, CHAT, asked("Never read.", max_tokens=3))
            await until(lambda: scheduler.num_waiting == 1)
            waits.leave()
            await waits.task
            waiting = scheduler.num_waiting
            for row in rows:
                row.leave()
                await row.task
            return waiting

    assert asyncio.run(ask()) == 0


def test_who_leaves_while_waiting_leaves_no_prompt_behind(
    app: Starlette, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, held = app.state.scheduler, list[weakref.ref[Any]]()
    prepare = engine.prepare

    def prepared(request: mmspec.Request) -> mmspec.Request:
        made = prepare(request)
        held.append(weakref.ref(made.prompt))
        return made

    monkeypatch.setattr(engine, "prepare", prepared)

    async def ask() -> list[bool]:
        async with side_by_side(app):
            rows = [Visitor(app, CHAT, asked(max_tokens=LONG)) for _ in range(3)]
            await until(lambda: scheduler.num_decoded == 3)
            for _ in range(3):
                waits = Visitor(app, CHAT, asked("Never read.", max_tokens=3))
                await until(lambda: len(scheduler._loop.waiting) == 1)
                waits.leave()
                await waits.task
            gc.collect()
            are_held = [one() is not None for one in held]
            for row in rows:
                row.leave()
                await row.task
            return are_held

    assert asyncio.run(ask()) == [True] * 3 + [False] * 3


def test_a_stream_that_waits_says_that_it_is_there(
    app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmspec.serving.service._OPENING_S", 0.01)
    monkeypatch.setattr("mmspec.serving.events._SILENCE_S", 0.01)
    scheduler = app.state.scheduler

    async def ask() -> str:
        async with side_by_side(app):
            there = [Visitor(app, CHAT, asked(max_tokens=LONG)) for _ in range(3)]
            await until(lambda: scheduler.num_decoded == 3)
            waits = Visitor(app, CHAT, asked(max_tokens=3, stream=True))
            await until(lambda: waits.text.count(": still there") > 2)
            for visitor in there:
                visitor.leave()
            await asyncio.gather(*(visitor.task for visitor in there), waits.task)
            return waits.text

    said = asyncio.run(ask())
    assert said.endswith("data: [DONE]\n\n") and '"finish_reason": "length"' in said


def test_more_than_may_wait_are_told_to_come_back(app: Starlette) -> None:
    scheduler = app.state.scheduler

    async def ask() -> None:
        async with side_by_side(app) as client:
            there = [Visitor(app, CHAT, asked(max_tokens=LONG)) for _ in range(7)]
            await until(lambda: scheduler.num_decoded + scheduler.num_waiting == 7)
            await until(lambda: scheduler.num_decoded == 3)
            refused = await client.post(CHAT, json=asked())
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "server_busy"
            several = await client.post(TEXT, json={"prompt": ["a", "b"], "max_tokens": 1})
            assert several.status_code == 429
            assert scheduler.num_waiting == 4, "nothing of what was refused stays"
            there[-1].leave()
            await there[-1].task
            there.append(Visitor(app, CHAT, asked(max_tokens=LONG)))
            await until(lambda: scheduler.num_waiting == 4)
            for visitor in there:
                visitor.leave()
            await asyncio.gather(*(visitor.task for visitor in there))

    asyncio.run(ask())


def test_a_request_that_takes_too_long_ends_and_frees_its_place(
    engine: mmspec.Engine,
) -> None:
    app = create_app(engine, ServerSettings(name="nano", timeout_s=0.3))

    async def ask() -> None:
        async with side_by_side(app) as client:
            late = await client.post(CHAT, json=asked(max_tokens=LONG))
            assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
            cut = await client.post(CHAT, json=asked(max_tokens=LONG, stream=True))
            assert cut.status_code == 200
            *parts, error = events(cut.text)
            assert parts and error["error"]["code"] == "timeout"
            page = (await client.get("/metrics")).text
            assert f'mmspec_requests_total{{path="{CHAT}",status="504"}} 2.0' in page
            await until(lambda: app.state.scheduler.num_decoded == 0)

    asyncio.run(ask())


def failing(engine: mmspec.Engine, word: str) -> Callable[..., Any]:
    """The engine's `prepare`, whose requests fail in their third token where they say `word`."""
    prepare = engine.prepare

    def fails(_: int, ids: Any) -> list[int]:
        fails.count += 1  # type: ignore[attr-defined]
        if fails.count > 2:  # type: ignore[attr-defined]
            raise RuntimeError("a secret of the server")
        return [70]

    def prepared(request: mmspec.Request) -> mmspec.Request:
        fails.count = 0  # type: ignore[attr-defined]
        is_meant = word in str(request.prompt)
        return prepare(request, **({"prefix_allowed_tokens_fn": fails} if is_meant else {}))

    return prepared


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_fails_fails_alone_and_tells_no_secret(
    app: Starlette, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(engine, "prepare", failing(engine, "Fail"))

    async def ask() -> None:
        async with side_by_side(app) as client:
            good, bad = await asyncio.gather(
                client.post(CHAT, json=asked(max_tokens=30)),
                client.post(CHAT, json=asked("Fail.", stream=stream)),
            )
            assert good.status_code == 200
            if stream:
                error = events(bad.text)[-1]["error"]
            else:
                assert bad.status_code == 500
                error = bad.json()["error"]
            assert error["code"] == "internal_error" and "secret" not in bad.text
            plain = engine.generate("Say something.", max_new_tokens=30, **SAMPLED)
            assert good.json()["choices"][0]["message"]["content"] == plain.text

    asyncio.run(ask())


def test_a_loop_that_breaks_is_begun_again(
    app: Starlette, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, breaks = type(engine.target).score, threading.Event()

    def broken(self: object, *args: Any, **options: Any) -> Any:
        if breaks.is_set():
            raise RuntimeError("out of memory")
        return score(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(engine.target), "score", broken)

    async def ask() -> list[int]:
        async with side_by_side(app) as client:
            breaks.set()
            failed = [(await client.post(CHAT, json=asked())).status_code for _ in range(3)]
            sick = (await client.get("/health")).status_code
            breaks.clear()
            well = [(await client.post(CHAT, json=asked())).status_code]
            return [*failed, sick, *well, (await client.get("/health")).status_code]

    assert asyncio.run(ask()) == [500, 500, 500, 503, 200, 200]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [True, False])
def test_nobody_waits_for_a_thread_that_has_died(
    app: Starlette, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def die(prompts: Iterator[Any]) -> Iterator[Any]:
        next(prompts)
        raise SystemExit

    monkeypatch.setattr(engine, "stream_each", die)

    async def ask() -> list[int]:
        async with side_by_side(app) as client:
            found = [await client.post(CHAT, json=asked(stream=stream)) for _ in range(2)]
            return [*(one.status_code for one in found), (await client.get("/health")).status_code]

    assert asyncio.run(ask()) == [503] * 3


def test_a_shutdown_lets_requests_end_and_takes_no_more(app: Starlette) -> None:
    scheduler = app.state.scheduler

    async def ask() -> None:
        async with side_by_side(app) as client:
            ends = asyncio.ensure_future(client.post(CHAT, json=asked(max_tokens=30)))
            await until(lambda: scheduler.num_decoded == 1)
            scheduler.drain(30)
            refused = await client.post(CHAT, json=asked())
            assert refused.status_code == 503 and "retry-after" in refused.headers
            assert (await client.get("/health")).status_code == 503
            assert (await ends).status_code == 200

    asyncio.run(ask())


def test_what_outlasts_the_grace_time_is_cut_and_told(app: Starlette) -> None:
    scheduler = app.state.scheduler

    async def ask() -> None:
        async with side_by_side(app) as client:
            there = list[asyncio.Future[Any]]()
            for stream in (True, False, False, False):  # the first has a place, another waits
                body = asked(max_tokens=LONG, stream=stream)
                there.append(asyncio.ensure_future(client.post(CHAT, json=body)))
                await until(lambda: scheduler.num_decoded > 0)
            await until(lambda: scheduler.num_decoded == 3 and scheduler.num_waiting == 1)
            held = list(scheduler._loop.decoded.values())
            await until(lambda: all(ticket.first_token_at for ticket in held))  # streams begin
            scheduler.drain(0.05)
            streamed, *others = await asyncio.gather(*there)
            assert events(streamed.text)[-1]["error"]["code"] == "shutting_down"
            assert [one.status_code for one in others] == [503] * 3

    asyncio.run(ask())
    assert scheduler.num_decoded == scheduler.num_waiting == 0


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    left = [one.name for one in threading.enumerate() if one.name == "mmspec-decode"]
    assert len(left) <= 1, "but for the shared client's"
