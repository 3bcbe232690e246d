"""Scheduler: one thread and one decode loop, which requests join as they come.

A thread sleeps while nobody asks. With the first ticket it decodes; between two steps it takes
more, as far as there are places, and lets go of those that nobody waits for any more. When the last
one has ended the loop ends too, and its KV goes back to the target's pool.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from mmspec.engine import Engine
from mmspec.errors import DecodeError
from mmspec.requests import Progress, Request
from mmspec.serving.errors import ApiError, busy, closing

logger = logging.getLogger(__name__)

_SICK_AFTER = 3  # loops that broke, one after the other


class Ticket:
    """One prompt on its way. `tell` is called in the scheduler's thread, with each step or with
    what ended all of it."""

    def __init__(self, tell: Callable[[Progress | Exception], None]) -> None:
        self.arrived_at = time.monotonic()
        self.begun_at: float | None = None  # a place became free
        self.first_token_at: float | None = None
        self.is_wanted = True  # set to False from any thread: it leaves between two steps
        self._tell = tell

    def tell(self, news: Progress | Exception) -> None:
        if isinstance(news, Progress) and news.num_tokens and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self._tell(news)


class Scheduler:
    """Feeds the engine's decode loop. All methods but those of its own thread return at once."""

    def __init__(self, engine: Engine, *, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._admitted: set[Ticket] = set()  # being prepared, or waiting
        self._waiting: deque[tuple[Ticket, Request]] = deque()
        self._decoded: dict[int, Ticket] = {}  # by their numbers in the loop
        self._num_broken = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="mmspec-decode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # What is asked of it, from any thread

    def admit(self, tell: Callable[[Progress | Exception], None]) -> Ticket:
        """A place among those that wait, for a prompt that is yet to be prepared; `submit` or
        `forget` it. Raises ApiError where too many wait, or the server shuts down."""
        with self._changed:
            if self._is_closing:
                raise closing()
            num_free = max(self._engine.max_rows - len(self._decoded), 0)
            if len(self._admitted) >= self._max_waiting + num_free:
                raise busy(f"{self._max_waiting} prompts are waiting already")
            ticket = Ticket(tell)
            self._admitted.add(ticket)
            return ticket

    def submit(self, ticket: Ticket, request: Request) -> None:
        """The ticket's prompt is ready to be decoded."""
        wanted = replace(request, is_wanted=lambda: ticket.is_wanted)
        with self._changed:
            if self._is_closing and ticket not in self._admitted:  # it was told already
                return
            self._waiting.append((ticket, wanted))
            self._changed.notify()

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits for it any more, whether it has ended or not. Its prompt is let go of."""
        ticket.is_wanted = False
        with self._changed:
            self._admitted.discard(ticket)
            self._waiting = deque(held for held in self._waiting if held[0] is not ticket)
            self._changed.notify()

    def drain(self, grace_s: float) -> None:
        """Takes no more tickets; those that are there have `grace_s` to end."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
            self._changed.notify()
        timer = threading.Timer(grace_s, self._cut)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Ends all at once, and waits for the thread."""
        self.drain(0)
        self._cut()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def num_waiting(self) -> int:
        return len(self._admitted)

    @property
    def num_decoded(self) -> int:
        return len(self._decoded)

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def is_well(self) -> bool:
        """False once the thread has died, or its loop breaks again and again."""
        return self._thread.is_alive() and self._num_broken < _SICK_AFTER

    # Its thread

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # whatever ended it: nobody is left to wait for a thread that is gone
            self._is_closing = True
            self._cut()

    def _serve(self) -> None:
        while self._wait():
            try:
                for step in self._engine.stream_each(self._arriving()):
                    self._deliver(step)
            except Exception as error:  # of the whole loop; each of its requests is told
                logger.exception("the decode loop broke; its requests failed, the next ones begin")
                self._num_broken += 1
                failure = DecodeError(f"the decode loop broke: {type(error).__name__}: {error}")
                self._end_all(failure)

    def _wait(self) -> bool:
        """For a ticket; False where none will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or (self._is_closing and self._is_empty))
            return bool(self._waiting)

    @property
    def _is_empty(self) -> bool:
        return not (self._admitted or self._waiting)

    def _arriving(self) -> Iterator[Request | None]:
        """Requests in the order of their coming, None while there is none."""
        number = 0
        while True:
            with self._changed:
                ticket, request = self._waiting.popleft() if self._waiting else (None, None)
                if ticket is not None:
                    self._admitted.discard(ticket)
                    if not ticket.is_wanted:
                        continue
                    ticket.begun_at = time.monotonic()
                    self._decoded[number] = ticket
                    number += 1
            yield request

    def _deliver(self, step: Progress) -> None:
        ticket = self._decoded[step.index]
        if step.result is not None:
            self._num_broken = 0
            with self._changed:
                del self._decoded[step.index]
        ticket.tell(step)

    def _end_all(self, why: Exception) -> None:
        """Of those that were decoded."""
        with self._changed:
            ended = list(self._decoded.values())
            self._decoded.clear()
        for ticket in ended:
            ticket.tell(why)

    def _cut(self) -> None:
        """The time is over: whoever is left is told so."""
        with self._changed:
            left = {*self._admitted, *self._decoded.values()}
            self._admitted.clear()
            self._waiting.clear()
            self._changed.notify()
        why: ApiError = closing()
        for ticket in left:
            ticket.is_wanted = False
            ticket.tell(why)
