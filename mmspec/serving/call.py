"""Call: one HTTP request on its way through the engine: its prompts, their steps, its end."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from mmspec.engine import Engine
from mmspec.logprobs import TokenLogprobs
from mmspec.params import requested_max_new_tokens
from mmspec.requests import Progress, Request, Result
from mmspec.running_loop import Ticket
from mmspec.serving.errors import ApiError, timed_out
from mmspec.serving.logprobs import told_places
from mmspec.serving.pictures import Pictures, has_media, num_pixels
from mmspec.serving.scheduler import Scheduler
from mmspec.serving.settings import ServerSettings

T = TypeVar("T")
Prepare: TypeAlias = Callable[[Engine, Request], Request]


class Step(NamedTuple):
    """What came of one of the call's prompts."""

    prompt: int  # its number in the call
    progress: Progress

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.progress.pieces)

    @property
    def places(self) -> Sequence[TokenLogprobs]:
        return told_places(self.progress.logprobs, self.progress.finish_reason)

    @property
    def is_end(self) -> bool:
        """Whether the sample has ended in a way that its client is told as an end."""
        return self.progress.finish_reason not in (None, "error", "closed")


class Call:
    """To be closed in any case: it frees its places, also where they are in use."""

    def __init__(
        self,
        requests: Sequence[Request],
        scheduler: Scheduler,
        settings: ServerSettings,
        pictures: Pictures,
        *,
        prepare: Prepare,
        tells_steps: bool,
    ) -> None:
        """In an event loop. Without `tells_steps` it hears of the ends alone. Raises ApiError where
        too many wait."""
        self.requests = list(requests)
        self.results: list[Result | None] = [None] * len(requests)
        self.predicted: list[tuple[int, ...]] = [()] * len(requests)  # tokens of the predictions
        self.failure: ApiError | None = None  # what its client was told in a stream
        self.tickets: list[Ticket] = []
        self._scheduler = scheduler
        self._settings = settings
        self._pictures = pictures
        self._num_pixels = 0  # that its prompts hold
        self._prepare = prepare
        self._tells_steps = tells_steps
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()
        self._ends_at = self._loop.time() + settings.timeout_s
        try:
            for number in range(len(requests)):
                self.tickets.append(scheduler.admit(partial(self._tell, number)))
        except BaseException:
            self.close()
            raise

    async def begin(self, engine: Engine) -> None:
        """Opens images and tokenises, in other threads; then they wait for a place. Raises
        InputError, ApiError."""
        for number, request in enumerate(self.requests):
            processed = self._prepared(engine, request)
            self.requests[number], self.predicted[number] = await self._in_time(processed)
        for ticket, request in zip(self.tickets, self.requests, strict=True):
            self._scheduler.submit(ticket, request)

    async def steps(self) -> AsyncIterator[Step]:
        """Until all prompts have their results. Raises what ended one of them otherwise."""
        while None in self.results:
            number, news = await self._in_time(self._news.get())
            if isinstance(news, Exception):
                raise news
            if news.result is not None:
                for sample in news.result.samples:
                    if sample.error is not None:
                        raise sample.error
                self.results[number] = news.result
            yield Step(number, news)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._pictures.allowance.give_back(self._num_pixels)
        self._num_pixels = 0
        for ticket in self.tickets:
            self._scheduler.forget(ticket)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.tickets[0].arrived_at

    async def _prepared(self, engine: Engine, request: Request) -> tuple[Request, tuple[int, ...]]:
        prepare = partial(prepared, self._prepare, engine, request, self._settings)
        if not has_media(request):
            return await asyncio.to_thread(prepare)
        # A thread goes on where nobody waits for it any more, and keeps its place for so long.
        await self._pictures.opening.acquire()
        opened = asyncio.ensure_future(asyncio.to_thread(prepare))
        opened.add_done_callback(lambda _: self._pictures.opening.release())
        processed, predicted = await asyncio.shield(opened)
        held = num_pixels(processed.prompt)  # type: ignore[arg-type]
        self._pictures.allowance.take(held)
        self._num_pixels += held
        return processed, predicted

    def _tell(self, number: int, news: Progress | Exception) -> None:
        """In the scheduler's thread."""
        if not self._tells_steps and isinstance(news, Progress) and news.result is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, (number, news))
        except RuntimeError:  # the event loop is closed: nobody waits for anything
            self.tickets[number].is_wanted = False

    async def _in_time(self, waited_for: Awaitable[T]) -> T:
        """Raises ApiError where the time is over before."""
        try:
            async with asyncio.timeout_at(self._ends_at):
                return await waited_for
        except TimeoutError as late:
            raise timed_out(self._settings.timeout_s) from late


def prepared(
    prepare: Prepare, engine: Engine, request: Request, settings: ServerSettings
) -> tuple[Request, tuple[int, ...]]:
    """The processed request, with a bound on its answer, and the tokens of its prediction."""
    predicted: tuple[int, ...] = ()
    if request.prediction and engine.inputs is not None:
        predicted = engine.inputs.answer_tokens(request.prediction)
    processed = prepare(engine, request)
    length, model = processed.prompt.num_tokens, engine.target.model  # type: ignore[union-attr]
    if requested_max_new_tokens(model, processed, prompt_length=length) is None:
        room = settings.default_max_tokens
        if engine.target.max_positions is not None:
            room = min(room, engine.target.max_positions - length)
        processed = replace(processed, max_new_tokens=room)
    return processed, predicted
