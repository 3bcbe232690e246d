"""Scheduler: one thread and one decode loop, which requests join as they come.

A thread sleeps while nobody asks. With the first ticket it decodes; between two steps it takes
more, as far as there are places, and lets go of those that nobody waits for any more. When the last
one has ended the loop ends too, and its KV goes back to the target's pool.
"""

import threading
from collections.abc import Callable

from mmspec.engine import Engine
from mmspec.requests import Progress, Request
from mmspec.running_loop import RunningLoop, Ticket
from mmspec.serving.errors import ApiError, busy, closing
from mmspec.words import counted

_SICK_AFTER = 3  # loops that broke, one after the other


class Scheduler:
    """Feeds the engine's decode loop. All methods but those of its own thread return at once."""

    def __init__(self, engine: Engine, *, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._loop = RunningLoop()
        self._changed = self._loop.changed
        self._admitted: set[Ticket] = set()  # being prepared
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
            num_free = max(self._engine.max_rows - self.num_decoded, 0)
            if self.num_waiting >= self._max_waiting + num_free:
                raise busy(f"{counted(self._max_waiting, 'prompt')} waiting already")
            ticket = Ticket(tell)
            self._admitted.add(ticket)
            return ticket

    def submit(self, ticket: Ticket, request: Request) -> None:
        """The ticket's prompt is ready to be decoded."""
        with self._changed:
            if self._is_closing and ticket not in self._admitted:  # it was told already
                return
            self._admitted.discard(ticket)
            self._loop.put(ticket, request)

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits for it any more, whether it has ended or not. Its prompt is let go of."""
        with self._changed:
            self._admitted.discard(ticket)
            self._loop.drop(ticket)

    def drain(self, grace_s: float) -> None:
        """Takes no more tickets; those that are there have `grace_s` to end, or what is left of an
        earlier time where that is less."""
        with self._changed:
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
        """Those that are being prepared among them."""
        return len(self._admitted) + len(self._loop.waiting)

    @property
    def num_decoded(self) -> int:
        return len(self._loop.decoded)

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def is_well(self) -> bool:
        """False once the thread has died, or its loop breaks again and again."""
        return self._thread.is_alive() and self._loop.num_broken < _SICK_AFTER

    # Its thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._loop.run(self._engine)
        finally:  # whatever ended it: nobody is left to wait for a thread that is gone
            self._is_closing = True
            self._cut()

    def _wait(self) -> bool:
        """For a ticket; False where none will come any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._loop.waiting or (self._is_closing and not self._admitted)
            )
            return bool(self._loop.waiting)

    def _cut(self) -> None:
        """The time is over: whoever is left is told so."""
        with self._changed:
            waiting = [ticket for ticket, _ in self._loop.take_waiting()]
            left = {*self._admitted, *waiting, *self._loop.decoded.values()}
            self._admitted.clear()
            self._changed.notify()
        why: ApiError = closing()
        for ticket in left:
            ticket.is_wanted = False
            ticket.tell(why)
