"""LangChain, LlamaIndex and Haystack, asked by threads and tasks at once, some of them cancelled:
each answer is what plain decoding says alone."""

import asyncio
import inspect
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmspec.engine import Engine
from mmspec.requests import Request

from .chats import QUESTIONS
from .drafting import Truths
from .judge import leaks, watched
from .report import Refused, Report, may_refuse
from .speakers import SEEING, WRITING, asked_plainly, draw_engine, plain_speaker

Texts = list[str]  # of the answers to a call's questions
Asking = Callable[[Engine, Texts, dict[str, Any]], Texts]
AsyncAsking = Callable[[Engine, Texts, dict[str, Any]], Awaitable[Texts]]


def _chat_model(engine: Engine) -> Any:
    from mmspec.integrations.langchain import ChatMmspec

    return ChatMmspec(engine=engine)


def invoke(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    return [_chat_model(engine).invoke(one, **options).content for one in asked]


def batch(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    return [answer.content for answer in _chat_model(engine).batch(asked, **options)]


def stream(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    llm = _chat_model(engine)
    return ["".join(chunk.content for chunk in llm.stream(one, **options)) for one in asked]


async def ainvoke(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    llm = _chat_model(engine)
    return [a.content for a in await asyncio.gather(*(llm.ainvoke(q, **options) for q in asked))]


async def abatch(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    return [answer.content for answer in await _chat_model(engine).abatch(asked, **options)]


async def astream(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    llm, told = _chat_model(engine), []
    for one in asked:
        told.append("".join([chunk.content async for chunk in llm.astream(one, **options)]))
    return told


def _generator(engine: Engine, options: dict[str, Any]) -> Any:
    from mmspec.integrations.haystack import MmspecChatGenerator

    return MmspecChatGenerator(engine=engine, generation_kwargs=options)


def run(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    made = _generator(engine, options)
    return [made.run(one)["replies"][0].text for one in asked]


async def run_async(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    made = _generator(engine, options)
    told = await asyncio.gather(*(made.run_async(one) for one in asked))
    return [each["replies"][0].text for each in told]


async def run_streaming(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    made, told = _generator(engine, options), []
    for one in asked:
        pieces: list[str] = []

        async def tell(chunk: Any, pieces: list[str] = pieces) -> None:
            await asyncio.sleep(0)
            pieces.append(chunk.content)

        await made.run_async(one, streaming_callback=tell)
        told.append("".join(pieces))
    return told


def _llm(engine: Engine) -> Any:
    from mmspec.integrations.llamaindex import MmspecLLM

    return MmspecLLM(engine=engine)


def complete(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    return [_llm(engine).complete(one, **options).text for one in asked]


async def acomplete(engine: Engine, asked: Texts, options: dict[str, Any]) -> Texts:
    llm = _llm(engine)
    return [a.text for a in await asyncio.gather(*(llm.acomplete(q, **options) for q in asked))]


SYNC: dict[str, list[Asking]] = {
    "langchain_core": [invoke, batch, stream],
    "haystack": [run],
    "llama_index": [complete],
}
ASYNC: dict[str, list[AsyncAsking]] = {
    "langchain_core": [ainvoke, abatch, astream],
    "haystack": [run_async, run_streaming],
    "llama_index": [acomplete],
}


@dataclass
class Call:
    """`cut_s`: after how long its task is cancelled."""

    how: Any
    asked: Texts
    options: dict[str, Any]
    expected: Texts
    wait_s: float
    cut_s: float | None = None
    told: Texts | BaseException | None = None


def play_frameworks(draw: random.Random, report: Report, folder: Path) -> None:
    installed = [name for name in SYNC if find_spec(name)]
    if not installed:
        raise Refused("no framework is installed")
    name = draw.choice([*WRITING, *SEEING])
    plain, truths = plain_speaker(name), Truths()
    with may_refuse():
        engine, report.title = draw_engine(draw, name, truths)
    with watched([engine]) as caches:
        for number in range(draw.choice([1, 2])):
            report.begin(number, "frameworks")
            calls = [_draw_call(draw, installed) for _ in range(draw.randint(2, 7))]
            for call in calls:
                call.expected += [_said(plain, truths, q, call.options) for q in call.asked]
            _ask(engine, calls)
            report.wrong += [f"round {number}: {each}" for each in _wrong(calls)]
            report.requests += sum(len(call.asked) for call in calls)
            report.wrong += _left_running()
            report.wrong += leaks(engine, caches)


def _draw_call(draw: random.Random, installed: list[str]) -> Call:
    framework = draw.choice(installed)
    is_async = draw.random() < 0.6
    how = draw.choice([*(ASYNC if is_async else SYNC)[framework]])
    options = {"seed": draw.randrange(99), "temperature": draw.choice([0.0, 1.0])}
    options["max_tokens"] = draw.choice([1, 6, 20])
    if draw.random() < 0.3:
        options["prediction"] = "the cat and the hat"
    asked = [draw.choice(QUESTIONS) for _ in range(draw.randint(1, 4))]
    cut = draw.choice([0.0, 0.01, 0.1]) if is_async and draw.random() < 0.25 else None
    return Call(how, asked, options, [], draw.choice([0.0, 0.0, 0.02]), cut)


def _said(plain: Engine, truths: Truths, question: str, options: dict[str, Any]) -> str:
    own = {("max_new_tokens" if n == "max_tokens" else n): v for n, v in options.items()}
    own.pop("prediction", None)
    prompt = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    return asked_plainly(plain, truths, Request(prompt, **own))[0].text


def _ask(engine: Engine, calls: list[Call]) -> None:
    """All at once: threads for the sync ones, an event loop of its own for the others."""

    def in_thread(call: Call) -> None:
        time.sleep(call.wait_s)
        try:
            call.told = call.how(engine, call.asked, call.options)
        except Exception as error:
            call.told = error

    async def task(call: Call) -> None:
        await asyncio.sleep(call.wait_s)
        try:
            call.told = await asyncio.wait_for(
                call.how(engine, call.asked, call.options), timeout=call.cut_s
            )
        except Exception as error:
            call.told = error

    async def tasks(own: list[Call]) -> None:
        await asyncio.gather(*map(task, own))

    are_async = [call for call in calls if inspect.iscoroutinefunction(call.how)]
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        done = [pool.submit(in_thread, call) for call in calls if call not in are_async]
        done.append(pool.submit(asyncio.run, tasks(are_async)))
        for each in done:
            each.result(timeout=120)


def _wrong(calls: list[Call]) -> Iterator[str]:
    for call in calls:
        if call.cut_s is not None and isinstance(call.told, TimeoutError):
            continue
        if call.told != call.expected:
            named = f"{call.how.__name__} of {call.asked}, {call.options}"
            yield f"{named}: {call.told!r}, expected {call.expected}"


def _left_running() -> list[str]:
    until = time.monotonic() + 30
    while any(thread.name == "mmspec-joined" for thread in threading.enumerate()):
        if time.monotonic() > until:
            return ["a thread that decodes is left"]
        time.sleep(0.005)
    return []
