"""JoinedLoop: an engine's running loop, which requests of several threads and tasks join."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from mmspec.engine import Engine
from mmspec.errors import DecodeError
from mmspec.integrations.guided import GrammarProcessor
from mmspec.requests import Progress, Request, while_wanted
from mmspec.running_loop import RunningLoop, Ticket

logger = logging.getLogger(__name__)
Tell: TypeAlias = Callable[[Progress | Exception], None]

_LASTING_S = 1.0  # after which others do not wait for a callback
_TOLD_S = 30.0  # and after which it is told of
_MAKING = threading.Lock()
_LOOPS: WeakKeyDictionary[Engine, dict[bool, "JoinedLoop"]] = WeakKeyDictionary()


class JoinedLoop:
    """With a thread for as long as anybody waits. Keeps no engine."""

    def __init__(self, *, calls_back: bool) -> None:
        """`calls_back`: its requests have callbacks, one of which may ask the same engine from any
        thread and wait for what its own loop cannot come to meanwhile."""
        self._calls_back = calls_back
        # Also for who has it: the collector may close a stream, anywhere, that nobody holds.
        self._lock = threading.RLock()
        self._loop = RunningLoop()  # the one that is joined
        self._is_running = False
        self._threads: set[threading.Thread] = set()  # of that loop, and of those that stand still
        # Of event loops in use: a semaphore keeps its loop, and those who are in it keep it.
        self._ahead: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._ahead = WeakValueDictionary()

    def ahead(self, engine: Engine) -> asyncio.Semaphore:
        """For those that the running event loop prepares and waits for."""
        with self._lock:
            places = asyncio.Semaphore(num_ahead(engine))
            return self._ahead.setdefault(asyncio.get_running_loop(), places)

    @property
    def is_mine(self) -> bool:
        """Whether it runs in the thread that asks."""
        return threading.current_thread() in self._threads

    def submit(self, engine: Engine, request: Request, tell: Tell) -> Ticket:
        """Decoded in this thread, with what joins it, where no other can be begun any more."""
        if threading.current_thread().daemon:
            request, tell = _unless_it_ends(request, tell)
        ticket = Ticket(tell)
        with self._lock:
            loop = self._loop
            loop.put(ticket, request)
            if self._is_running or self._begin(engine):
                return ticket
            self._threads.add(threading.current_thread())
            self._is_running = True
        self._run(engine, loop, threading.Event())
        return ticket

    def forget(self, ticket: Ticket) -> bool:
        """Returns whether it had yet to begin."""
        with self._lock:
            return ticket.is_wanted and self._loop.drop(ticket)

    def _begin(self, engine: Engine) -> bool:
        """Returns whether a thread could be begun: Python 3.12.1 begins none once it ends."""
        ended = threading.Event()
        # No daemon, as one that a daemon begins would be: it would be torn out of a forward when
        # the interpreter ends.
        thread = threading.Thread(
            target=self._run, args=(engine, self._loop, ended), name="mmspec-joined", daemon=False
        )
        try:
            thread.start()
        except RuntimeError:
            return False
        self._threads.add(thread)
        self._is_running = True
        if self._calls_back:
            watching = (engine, self._loop, ended)
            with suppress(RuntimeError):  # it could begin none for those that wait either
                threading.Thread(target=self._watch, args=watching, daemon=True).start()
        return True

    def _run(self, engine: Engine, loop: RunningLoop, ended: threading.Event) -> None:
        try:
            while self._has_more(loop):
                loop.run(engine)
        except BaseException as error:  # of the thread itself: nobody waits for one that is gone
            with self._lock:
                left = [*loop.take_decoded(), *(ticket for ticket, _ in loop.take_waiting())]
                self._leave(loop)
            for ticket in left:
                ticket.tell(DecodeError(f"the thread that decodes has ended: {error!r}"))
            raise
        finally:
            ended.set()

    def _has_more(self, loop: RunningLoop) -> bool:
        """Where not, the thread is given up at once: the next request begins another."""
        with self._lock:
            if not loop.waiting:
                self._leave(loop)
            return bool(loop.waiting)

    def _leave(self, loop: RunningLoop) -> None:
        self._threads.discard(threading.current_thread())
        if loop is self._loop:
            self._is_running = False

    def _watch(self, engine: Engine, loop: RunningLoop, ended: threading.Event) -> None:
        """A callback that lasts may be waiting for one of those that wait for a place in its loop:
        they get a loop of their own."""
        told_of: float | None = None
        while not ended.wait(_LASTING_S / 2):
            since = loop.callbacks.since
            lasted_s = 0.0 if since is None else time.monotonic() - since
            with self._lock:
                if lasted_s >= _LASTING_S and loop is self._loop:
                    self._go_on_without(engine, loop)
            if lasted_s >= _TOLD_S and since != told_of:
                told_of = since
                logger.warning(
                    "requests that are decoded together have waited %.0f s for a callback of one "
                    "of them; should it wait for the answer to another of them, none will end",
                    lasted_s,
                )

    def _go_on_without(self, engine: Engine, loop: RunningLoop) -> None:
        for event_loop, ahead in self._ahead.items():  # it may be one that is yet to be prepared
            with suppress(RuntimeError):  # closed
                event_loop.call_soon_threadsafe(_let_one_in, ahead)
        if loop.waiting:
            self._loop = RunningLoop()
            if not self._begin(engine):  # they wait on
                self._loop = loop
                return
            for ticket, request in loop.take_waiting():
                self._loop.put(ticket, request)


def _let_one_in(ahead: asyncio.Semaphore) -> None:
    if ahead.locked():  # somebody waits, or the next one would
        ahead.release()


def _unless_it_ends(request: Request, tell: Tell) -> tuple[Request, Tell]:
    """For one of a daemon thread, which Python does not wait for when it ends: nor for its answer,
    which is not told then, as such threads had better not go on."""
    is_alive = threading.main_thread().is_alive
    return while_wanted(request, is_alive), lambda news: tell(news) if is_alive() else None


def joined_loop(engine: Engine, *requests: Request) -> JoinedLoop:
    """The loop that these join: of requests whose callbacks may keep it, or of all others, which so
    wait for nobody's callback."""
    calls_back = any(map(_calls_back, requests))
    with _MAKING:
        loops = _LOOPS.setdefault(engine, {})
        if calls_back not in loops:
            loops[calls_back] = JoinedLoop(calls_back=calls_back)
        return loops[calls_back]


def num_ahead(engine: Engine) -> int:
    """How many prompts, with their pixels, a thread or an event loop has ready at a time."""
    return 2 * engine.max_rows


def _calls_back(request: Request) -> bool:
    """Whether anything but mmspec's own is called while it is decoded."""
    processors = [p for p in request.logits_processors if not isinstance(p, GrammarProcessor)]
    criteria, allowed = request.stopping_criteria, request.prefix_allowed_tokens_fn
    return any((processors, criteria, allowed, request.on_prefill, request.is_wanted))
