"""Ways to ask an engine from several threads and tasks: what they ask for is decoded together."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import Self, TypeAlias

from mmspec.answers import Stream, unbegun_result
from mmspec.engine import Engine
from mmspec.errors import failed_to_begin
from mmspec.integrations.joined_loop import JoinedLoop, joined_loop
from mmspec.reading import Reading
from mmspec.requests import Progress, Request, Result, check_streamed, while_wanted
from mmspec.running_loop import Ticket
from mmspec.stream import Piece

News: TypeAlias = Progress | Exception
IsWanted: TypeAlias = Callable[[], bool] | None  # as a request's own; one that waits for nothing


def answer(engine: Engine, request: Request, is_wanted: IsWanted = None) -> Result:
    """As `engine.generate(request)`, together with what other threads ask for."""
    joined = joined_loop(engine, request)
    request = request if is_wanted is None else while_wanted(request, is_wanted)
    if _decodes_here(joined):
        return engine.generate(request)
    with closing(JoinedStream(joined, engine, request, tells_pieces=False)) as waited_for:
        for _ in waited_for:
            pass
        return waited_for.result


def stream(engine: Engine, request: Request, is_wanted: IsWanted = None) -> "Stream | JoinedStream":
    """As `engine.stream(request)`, together with what other threads ask for."""
    joined = joined_loop(engine, request)
    request = request if is_wanted is None else while_wanted(request, is_wanted)
    if _decodes_here(joined):
        return engine.stream(request)
    check_streamed(request)
    return JoinedStream(joined, engine, request)


async def answer_async(engine: Engine, make: Callable[[], Request]) -> tuple[Reading, Result]:
    """The answer to what `make` makes, in another thread, and how it is read; any number of them
    wait without a thread. Cancelling it ends the decoding at the next step."""
    async with AsyncAnswer(engine, make) as answer:
        async for _ in answer.news():
            pass
        return answer.reading, answer.result


def _decodes_here(joined: JoinedLoop) -> bool:
    """The main thread needs no other; and the loop waits for what a request's own callback asks."""
    return joined.is_mine or threading.current_thread() is threading.main_thread()


class JoinedStream:
    """The pieces of one answer that is decoded with others, at the pace of the loop: who is slow to
    read them keeps nobody waiting. `result` once it has ended; `close` ends it at its next step."""

    def __init__(
        self, joined: JoinedLoop, engine: Engine, request: Request, *, tells_pieces: bool = True
    ) -> None:
        self.result: Result
        self._joined = joined
        self._tells_pieces = tells_pieces
        self._news: SimpleQueue[News] = SimpleQueue()
        self._ticket = joined.submit(engine, _prepared(engine, request), self._tell)

    def __iter__(self) -> Iterator[Piece]:
        while True:
            progress = _read(self._news.get())
            yield from progress.pieces
            if progress.result is not None:
                self.result = _whole(progress.result)
                return

    def _tell(self, news: News) -> None:
        if _is_heard(news, tells_pieces=self._tells_pieces):  # or it would be woken for nothing
            self._news.put(news)

    def close(self) -> None:
        if self._joined.forget(self._ticket):  # another thread may be reading it
            self._news.put(Progress(0, result=unbegun_result("closed")))


class AsyncAnswer:
    """One answer for an event loop, together with what else is asked: `async with` prepares it in
    another thread, and leaving that, or being cancelled, ends its decoding at the next step."""

    def __init__(
        self, engine: Engine, make: Callable[[], Request], *, tells_pieces: bool = False
    ) -> None:
        """`make` makes the request, in another thread too."""
        self.reading: Reading
        self.result: Result  # once it has ended
        self._engine = engine
        self._make = make
        self._tells_pieces = tells_pieces
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._place: asyncio.Semaphore | None = None  # among those that are prepared or decoded
        self._ticket: Ticket | None = None

    async def __aenter__(self) -> Self:
        made = await asyncio.to_thread(self._make)
        if self._tells_pieces:
            check_streamed(made)
        self._loop, self._joined = asyncio.get_running_loop(), joined_loop(self._engine, made)
        ahead = self._joined.ahead(self._engine)
        await ahead.acquire()
        self._place = ahead
        try:
            self.reading = await asyncio.to_thread(reading_of, self._engine, made)
            request = self.reading.request
            if self._joined.is_mine:  # an event loop within a request's own callback
                result = self._engine.generate(request)
                self._hear(Progress(0, pieces=result.pieces, result=result))
            else:
                self._ticket = self._joined.submit(self._engine, request, self._tell)
        except BaseException:
            self._leave_place()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._leave_place()
        if self._ticket is not None:
            self._joined.forget(self._ticket)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """At the pace of the loop, as `JoinedStream`."""
        async for progress in self.news():
            for piece in progress.pieces:
                yield piece

    async def news(self) -> AsyncIterator[Progress]:
        """Until it has ended. Raises what ended it otherwise."""
        while True:
            progress = _read(await self._news.get())
            yield progress
            if progress.result is not None:
                self.result = _whole(progress.result)
                return

    def _tell(self, news: News) -> None:
        """In the loop's thread."""
        if _is_heard(news, tells_pieces=self._tells_pieces):
            with suppress(RuntimeError):  # the event loop is closed: nobody waits for anything
                self._loop.call_soon_threadsafe(self._hear, news)

    def _hear(self, news: News) -> None:
        if _is_end(news):
            self._leave_place()  # also where it is read slowly
        self._news.put_nowait(news)

    def _leave_place(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.release()


def reading_of(engine: Engine, request: Request) -> Reading:
    """Of the request, prepared. Raises MmspecError."""
    return Reading(engine.inputs, _prepared(engine, request))


def _prepared(engine: Engine, request: Request) -> Request:
    """Its prompt processed here, so that the others need not wait for it. Raises MmspecError."""
    try:
        return engine.prepare(request)
    except Exception as error:
        failure = failed_to_begin(error)
        raise failure from failure.__cause__


def _is_heard(news: News, *, tells_pieces: bool) -> bool:
    return _is_end(news) or (tells_pieces and isinstance(news, Progress) and bool(news.pieces))


def _is_end(news: News) -> bool:
    return isinstance(news, Exception) or news.result is not None


def _read(news: News) -> Progress:
    if isinstance(news, Exception):
        raise news
    return news


def _whole(result: Result) -> Result:
    """Raises what ended a sample of it."""
    for sample in result.samples:
        if sample.error is not None:
            raise sample.error
    return result
