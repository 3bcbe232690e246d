"""How a round of cases reaches the engine; each gives a list of results, a case each."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmspec.engine import Engine
from mmspec.errors import MmspecError
from mmspec.requests import Request, Result

from .cases import Case


def as_batch(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    return engine.generate([case.request() for case in cases])


def prepared(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    """Prompts are processed beforehand, where they can be."""
    requests = []
    for case in cases:
        try:
            requests.append(engine.prepare(case.request()))
        except MmspecError:
            requests.append(case.request())
    return engine.generate(requests)


def one_by_one(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    return [engine.generate([case.request()])[0] for case in cases]


def as_room_comes(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    found = dict(engine.generate_each(case.request() for case in cases))
    return [found[index] for index in range(len(cases))]


def arriving(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    """Others are decoded when they come; what each step tells adds up to the results."""

    def prompts() -> Iterator[Request | None]:
        for case in cases:
            yield case.request()
            yield from [None] * draw.choice([0, 0, 1, 4])

    found: dict[int, Result] = {}
    told: dict[tuple[int, int], str] = {}
    logprobs: dict[tuple[int, int], int] = {}
    waiting = prompts()
    while len(found) < len(cases):  # a None where none is decoded ends the loop
        first = len(found)
        numbers: dict[int, int] = {}
        taken = [first]

        def numbered(numbers: dict[int, int] = numbers, taken: list[int] = taken) -> Iterator[Any]:
            for request in waiting:
                if request is not None:
                    numbers[len(numbers)] = taken[0]
                    taken[0] += 1
                yield request

        for step in engine.stream_each(numbered()):
            key = numbers[step.index], step.sample
            if step.result is not None:
                found[numbers[step.index]] = step.result
            else:
                told[key] = told.get(key, "") + "".join(map(str, step.pieces))
                logprobs[key] = logprobs.get(key, 0) + len(step.logprobs)
        assert taken[0] == len(found), f"{taken[0]} were taken, {len(found)} answered"
    for index, result in found.items():
        for sample in result.samples:
            key = index, sample.sample
            if key in told:
                assert told[key] == sample.text, f"told {told[key]!r} of {sample.text!r}"
                assert logprobs[key] == len(sample.logprobs or ()), "log-probabilities were lost"
    return [found[index] for index in range(len(cases))]


def as_streams(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    """Interleaved, and some closed early."""
    results: dict[int, Result] = {}
    streams: dict[int, Any] = {}
    for index, case in enumerate(cases):
        if len(case.samples) > 1 or draw.random() < 0.2:
            results[index] = engine.generate([case.request()])[0]
            continue
        try:
            streams[index] = engine.stream(case.request())
        except Exception:  # refused: as a batch says it
            results[index] = engine.generate([case.request()])[0]
    while streams:
        index = draw.choice(list(streams))
        stream = streams[index]
        try:
            if cases[index].cancel_after is not None and draw.random() < 0.3:
                stream.close()
            else:
                next(stream)
                continue
        except StopIteration:
            pass
        except Exception as error:
            assert stream.result.error is error, f"raised {error!r}, has {stream.result.error!r}"
        results[index] = stream.result
        del streams[index]
    return [results[index] for index in range(len(cases))]


def in_threads(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    split = draw.randint(0, len(cases))
    requests = [case.request() for case in cases]
    found = at_once([(engine, requests[:split]), (engine, requests[split:])])
    return [result for results in found for result in results]


def by_both(
    engine: Engine, beside: Engine, cases: Sequence[Case], draw: random.Random
) -> list[Result]:
    """Two engines of one model, each in a thread of its own."""
    requests = [case.request() for case in cases]
    found = at_once([(engine, requests[::2]), (beside, requests[1::2])])
    return [found[index % 2][index // 2] for index in range(len(cases))]


def at_once(parts: Sequence[tuple[Engine, Sequence[Request]]]) -> list[list[Result]]:
    """What each engine answers to its requests, in a thread of its own."""
    found: list[list[Result]] = [[] for _ in parts]
    failures: list[BaseException] = []

    def play(number: int, engine: Engine, requests: Sequence[Request]) -> None:
        try:
            found[number] = engine.generate(requests)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=play, args=(n, *part)) for n, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def left_alone(engine: Engine, cases: Sequence[Case], draw: random.Random) -> list[Result]:
    """First an iterator that is closed midway, as by a user who has seen enough."""
    steps = engine.stream_each(case.request() for case in cases)
    for _ in range(draw.randint(0, 6)):
        if next(steps, None) is None:
            break
    steps.close()  # type: ignore[attr-defined]
    return as_batch(engine, cases, draw)


Play = Callable[[Engine, Sequence[Case], random.Random], list[Result]]
PLAYS: dict[str, Play] = {
    "batch": as_batch,
    "prepared": prepared,
    "one_by_one": one_by_one,
    "as_room_comes": as_room_comes,
    "arriving": arriving,
    "streams": as_streams,
    "threads": in_threads,
    "left_alone": left_alone,
}
