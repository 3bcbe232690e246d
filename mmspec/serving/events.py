"""Server-sent events: an answer as it comes, over one HTTP response."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mmspec.serving.call import Call, Step
from mmspec.serving.errors import ApiError
from mmspec.serving.form import Form

_SILENCE_S = 10.0  # after which it is said that more will come: proxies close silent connections


class EventStream(StreamingResponse):
    """Tells when it has ended, however that was: also where it never began."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def events(
    form: Form,
    call: Call,
    first: asyncio.Future[Step],
    steps: AsyncIterator[Step],
    as_told: Callable[[Exception], ApiError],
) -> AsyncIterator[str]:
    """One event an object, the error of a call that fails among them. `first` is the
    first of `steps`, which are read on behind it; `as_told` makes an error its client's."""
    coming = first
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=_SILENCE_S)
            if not done:
                yield ": still there\n\n"
                continue
            try:
                step = coming.result()
            except StopAsyncIteration:
                break
            if step.progress.num_tokens and step.progress.result is None:
                for event in form.events(step):
                    yield _written(event)
            coming = asyncio.ensure_future(anext(steps))
        for event in await asyncio.to_thread(list, form.last_events(call)):
            yield _written(event)
    except Exception as error:
        call.failure = as_told(error)
        yield _written(form.failure(call.failure))
    finally:
        coming.cancel()
    yield form.last_line


def _written(body: dict[str, object]) -> str:
    kind = f"event: {body['type']}\n" if "type" in body else ""
    return f"{kind}data: {json.dumps(body, ensure_ascii=False)}\n\n"
