"""RunningLoop: one decode loop of an engine, which requests of many callers join as they come."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from mmspec.callbacks import Callbacks, noted_in
from mmspec.engine import Engine
from mmspec.errors import DecodeError
from mmspec.requests import Progress, Request, while_wanted

logger = logging.getLogger(__name__)


class Ticket:
    """One prompt on its way. `tell` is called in the loop's thread, with each step or with what
    ended all of it."""

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


class RunningLoop:
    """Tickets that wait, and those that are decoded. `changed` guards both; who calls `run` gives
    it the thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[tuple[Ticket, Request]] = deque()
        self.decoded: dict[int, Ticket] = {}  # by their numbers in the loop
        self.num_broken = 0  # loops that broke, one after the other
        self.callbacks = Callbacks()  # of the requests that are decoded

    def put(self, ticket: Ticket, request: Request) -> None:
        """The ticket's prompt waits for a place."""
        held = (ticket, request)
        with self.changed:
            self.waiting.append(held)
            self.changed.notify()

    def drop(self, ticket: Ticket) -> bool:
        """Nobody waits for it any more, whether it has ended or not. Returns whether it had yet to
        begin: then it is told nothing more."""
        ticket.is_wanted = False
        with self.changed:
            others = deque(held for held in self.waiting if held[0] is not ticket)
            waited = len(others) < len(self.waiting)
            self.waiting = others
            self.changed.notify()
        return waited

    def run(self, engine: Engine) -> None:
        """Decodes until nobody waits. Where the loop breaks, those that it decoded are told so."""
        try:
            with noted_in(self.callbacks):
                for step in engine.stream_each(self._arriving()):
                    self._deliver(step)
        except Exception as error:  # of the whole loop; each of its requests is told
            logger.exception("the decode loop broke; its requests failed, the next ones begin")
            self.num_broken += 1
            failure = DecodeError(f"the decode loop broke: {type(error).__name__}: {error}")
            failure.__cause__ = error
            for ticket in self.take_decoded():
                ticket.tell(failure)

    def take_decoded(self) -> list[Ticket]:
        """All that are decoded, which then are no more."""
        with self.changed:
            taken = list(self.decoded.values())
            self.decoded.clear()
        return taken

    def take_waiting(self) -> list[tuple[Ticket, Request]]:
        """The same of those that wait."""
        with self.changed:
            taken = list(self.waiting)
            self.waiting.clear()
        return taken

    def _arriving(self) -> Iterator[Request | None]:
        """Requests in the order of their coming, None while there is none."""
        number = 0
        while True:
            with self.changed:
                ticket, request = self.waiting.popleft() if self.waiting else (None, None)
                if ticket is not None and request is not None:
                    ticket.begun_at = time.monotonic()
                    self.decoded[number] = ticket
                    number += 1
                    request = _while_wanted(ticket, request)
            yield request

    def _deliver(self, step: Progress) -> None:
        ticket = self.decoded[step.index]
        if step.result is not None:
            self.num_broken = 0
            with self.changed:
                del self.decoded[step.index]
        ticket.tell(step)


def _while_wanted(ticket: Ticket, request: Request) -> Request:
    return while_wanted(request, lambda: ticket.is_wanted)
