"""Calls of several threads and tasks, decoded together: they join one running loop an engine."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from mmspec.answers import failed_result
from mmspec.engine import Engine
from mmspec.errors import DecodeError, InputError, MmspecError
from mmspec.requests import Progress, Request, Result, while_wanted
from mmspec.running_loop import RunningLoop, Ticket

Tell: TypeAlias = Callable[[Progress | Exception], None]

_MAKING = threading.Lock()
_LOOPS: WeakKeyDictionary[Engine, "_Joined"] = WeakKeyDictionary()


def answer(engine: Engine, request: Request) -> Result:
    """As `engine.generate(request)`, together with what other threads ask for."""
    (result,) = answers(engine, [request])
    return _whole(result)


def answers(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """As `engine.generate(requests)`, together with what other threads ask for."""
    joined = _joined(engine)
    # The main thread needs no other; and the loop waits for what a request's own callback asks.
    if joined.is_mine or threading.current_thread() is threading.main_thread():
        return engine.generate(requests)
    futures: list[Future[Result]] = []
    tickets: list[Ticket] = []
    ahead = threading.Semaphore(_num_ahead(engine))
    try:
        for request in requests:
            ahead.acquire()
            future: Future[Result] = Future()
            future.add_done_callback(lambda _: ahead.release())
            futures.append(future)
            try:
                prepared = _prepared(engine, request)
            except MmspecError as error:
                future.set_result(failed_result(error))
            else:
                tickets.append(joined.submit(engine, prepared, _Teller(future).tell))
        return [future.result() for future in futures]
    finally:
        for ticket in tickets:
            joined.forget(ticket)


async def answer_async(engine: Engine, make: Callable[[], Request]) -> tuple[Request, Result]:
    """What `make` makes, in another thread, and its answer; any number of them wait without a
    thread. Cancelling it ends the decoding at the next step."""
    joined, loop = _joined(engine), asyncio.get_running_loop()
    async with joined.ahead(loop, _num_ahead(engine)):
        request = await asyncio.to_thread(lambda: _prepared(engine, make()))
        if joined.is_mine:  # an event loop within a request's own callback, as in `answers`
            return request, engine.generate(request)
        future: asyncio.Future[Result] = loop.create_future()
        teller = _Teller(future)

        def tell(news: Progress | Exception) -> None:
            if isinstance(news, Exception) or news.result is not None:
                with suppress(RuntimeError):  # the event loop is closed: nobody waits for anything
                    loop.call_soon_threadsafe(teller.tell, news)

        ticket = joined.submit(engine, request, tell)
        try:
            return request, _whole(await future)
        finally:
            joined.forget(ticket)


def _num_ahead(engine: Engine) -> int:
    """How many prompts, with their pixels, a thread or an event loop has ready at a time."""
    return 2 * engine.max_rows


class _Joined:
    """An engine's running loop, with a thread for as long as anybody waits. Keeps no engine."""

    def __init__(self) -> None:
        self._loop = RunningLoop(tells_steps=False)
        self._thread: threading.Thread | None = None
        # Of event loops in use: a semaphore keeps its loop, and those who are in it keep it.
        self._ahead: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._ahead = WeakValueDictionary()

    def ahead(self, loop: asyncio.AbstractEventLoop, most: int) -> asyncio.Semaphore:
        """For those that `loop` prepares and waits for."""
        with self._loop.changed:
            return self._ahead.setdefault(loop, asyncio.Semaphore(most))

    @property
    def is_mine(self) -> bool:
        """Whether it runs in the thread that asks."""
        return self._thread is threading.current_thread()

    def submit(self, engine: Engine, request: Request, tell: Tell) -> Ticket:
        """Raises RuntimeError where no thread can be begun any more."""
        if threading.current_thread().daemon:
            request, tell = _unless_it_ends(request, tell)
        ticket = Ticket(tell)
        with self._loop.changed:
            if self._thread is None:
                # No daemon, as one that a daemon begins would be: it would be torn out of a forward
                # when the interpreter ends.
                thread = threading.Thread(
                    target=self._run, args=(engine,), name="mmspec-joined", daemon=False
                )
                thread.start()
                self._thread = thread
            self._loop.put(ticket, request)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        if ticket.is_wanted:
            self._loop.drop(ticket)

    def _run(self, engine: Engine) -> None:
        try:
            while self._has_more():
                self._loop.run(engine)
        except BaseException as error:  # of the thread itself: nobody waits for one that is gone
            with self._loop.changed:
                left = [*self._loop.take_decoded(), *self._loop.take_waiting()]
                self._thread = None
            for ticket in left:
                ticket.tell(DecodeError(f"the thread that decodes has ended: {error!r}"))
            raise

    def _has_more(self) -> bool:
        """Where not, the thread is given up at once: the next request begins another."""
        with self._loop.changed:
            if not self._loop.waiting:
                self._thread = None
            return self._thread is not None


def _unless_it_ends(request: Request, tell: Tell) -> tuple[Request, Tell]:
    """For one of a daemon thread, which Python does not wait for when it ends: nor for its answer,
    which is not told then, as such threads had better not go on."""
    is_alive = threading.main_thread().is_alive
    return while_wanted(request, is_alive), lambda news: tell(news) if is_alive() else None


class _Teller:
    """Puts what ended a request into its future."""

    def __init__(self, future: "Future[Result] | asyncio.Future[Result]") -> None:
        self._future = future

    def tell(self, news: Progress | Exception) -> None:
        if self._future.done():  # cancelled
            return
        if isinstance(news, Exception):
            self._future.set_exception(news)
        elif news.result is not None:
            self._future.set_result(news.result)


def _joined(engine: Engine) -> _Joined:
    with _MAKING:
        return _LOOPS.setdefault(engine, _Joined())


def _prepared(engine: Engine, request: Request) -> Request:
    """Its prompt processed here, so that the others need not wait for it. Raises MmspecError."""
    try:
        return engine.prepare(request)
    except MmspecError:
        raise
    except Exception as error:
        raise InputError(f"{type(error).__name__}: {error}") from error


def _whole(result: Result) -> Result:
    """Raises what ended a sample of it."""
    for sample in result.samples:
        if sample.error is not None:
            raise sample.error
    return result
