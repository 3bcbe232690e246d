"""Answers as frameworks tell them: what is asked for, decoded with what others ask, and read."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Self

from mmspec.engine import Engine
from mmspec.integrations.joined import (
    AsyncAnswer,
    IsWanted,
    answer,
    answer_async,
    reading_of,
    stream,
)
from mmspec.reading import Answer, Part, Reading, Reasoning
from mmspec.requests import Request, Result


def ask(engine: Engine, request: Request, is_wanted: IsWanted = None) -> list[Answer]:
    """All samples of the request. Raises MmspecError."""
    reading = reading_of(engine, request)
    return _told(reading, answer(engine, reading.request, is_wanted))


async def ask_async(engine: Engine, make: Callable[[], Request]) -> list[Answer]:
    """The same for an event loop, of the request that `make` makes in another thread."""
    reading, result = await answer_async(engine, make)
    return _told(reading, result)


def _told(reading: Reading, result: Result) -> list[Answer]:
    return [reading.answer(replace(one, others=())) for one in result.samples]


class _Stream:
    """Yields text and reasoning; `answer` once it has ended."""

    def __init__(self) -> None:
        self.answer: Answer
        self._reading: Reading

    def _begin(self, reading: Reading) -> None:
        self._reading, self._reader = reading, reading.reader()
        self._parts: list[Part] = []

    def _read(self, text: str, *, is_last: bool = False) -> list[str | Reasoning]:
        parts = self._reader.parts(text, is_last=is_last)
        self._parts += parts
        return [part for part in parts if isinstance(part, str | Reasoning)]

    def _end(self, result: Result) -> list[str | Reasoning]:
        """What might have become a call."""
        rest = self._read("", is_last=True)
        self.answer = self._reading.answer_of(result, self._reader, self._parts)
        return rest


class AnswerStream(_Stream):
    """A context manager; leaving it early ends the decoding."""

    def __init__(self, engine: Engine, request: Request, is_wanted: IsWanted = None) -> None:
        super().__init__()
        self._begin(reading_of(engine, request))
        self._stream = stream(engine, self._reading.request, is_wanted)

    def __iter__(self) -> Iterator[str | Reasoning]:
        for piece in self._stream:
            yield from self._read(piece.text)
        yield from self._end(self._stream.result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


class AsyncAnswerStream(_Stream):
    """The same for an event loop, of the request that `make` makes in another thread."""

    def __init__(self, engine: Engine, make: Callable[[], Request]) -> None:
        super().__init__()
        self._answer = AsyncAnswer(engine, make, tells_pieces=True)

    async def __aiter__(self) -> AsyncIterator[str | Reasoning]:
        async with aclosing(self._answer.pieces()) as pieces:
            async for piece in pieces:
                for part in self._read(piece.text):
                    yield part
        for part in self._end(self._answer.result):
            yield part

    async def __aenter__(self) -> Self:
        await self._answer.__aenter__()
        self._begin(self._answer.reading)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._answer.__aexit__(*error)
