"""Service: what the routes do with one engine, and one line of it in the log."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

import mmspec
from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.integrations.guided import JsonGuide
from mmspec.serving.access import Access
from mmspec.serving.call import Call, Step
from mmspec.serving.errors import ApiError, as_api_error
from mmspec.serving.events import EventStream, events
from mmspec.serving.form import follow_schema
from mmspec.serving.forms import FormType
from mmspec.serving.kept import KeptResponses
from mmspec.serving.metrics import CONTENT_TYPE, Metrics
from mmspec.serving.pictures import Pictures
from mmspec.serving.receiving import Leaving, Mail, Mailroom
from mmspec.serving.scheduler import Scheduler
from mmspec.serving.settings import ServerSettings
from mmspec.words import counted

logger = logging.getLogger(__name__)
access_log = logging.getLogger("mmspec.serving.access")

_OPENING_S = 10.0  # a stream that has nothing to say for so long begins all the same
_GONE = 499  # nginx's word for a client that left


class _Answer(NamedTuple):
    response: Response
    call: Call | None = None


class Service:
    """The routes' methods."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.scheduler = Scheduler(engine, max_waiting=settings.max_waiting)
        self._engine = engine
        self._settings = settings
        self._json = JsonGuide(engine)
        self._access = Access(settings.api_keys)
        most = settings.max_waiting + engine.max_rows
        self._mailroom = Mailroom(settings, max_requests=most)
        self._pictures = Pictures(settings)
        self._metrics = Metrics(self.scheduler)
        self.kept = KeptResponses(settings)
        self._created = int(time.time())

    def answering(self, form: FormType) -> Callable[[Request], Awaitable[Response]]:
        """The method of the route that is asked in this form."""

        async def answer(request: Request) -> Response:
            return await self._told(request, self._answer(request, form))

        return answer

    async def models(self, request: Request) -> Response:
        return await self._told(request, self._models(request))

    async def response(self, request: Request) -> Response:
        return await self._told(request, self._response(request))

    async def health(self, request: Request) -> Response:
        """Open to all: 200 while requests are taken, else 503."""
        word = "ok"
        if self.scheduler.is_closing:
            word = "shutting down"
        elif not self.scheduler.is_well:
            word = "the decode loop breaks"
        found = {
            "status": word,
            "running": self.scheduler.num_decoded,
            "waiting": self.scheduler.num_waiting,
            "version": mmspec.__version__,
        }
        return JSONResponse(found, 200 if word == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        """Open to all."""
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)

    async def _models(self, request: Request) -> _Answer:
        self._access.namespace(request.headers.get("authorization"))
        model = {
            "id": self._settings.name,
            "object": "model",
            "created": self._created,
            "owned_by": "mmspec",
            "max_model_len": self._engine.target.max_positions,
        }
        name = request.path_params.get("name")
        if name not in (None, self._settings.name):
            raise ApiError(404, f"no model {name!r:.80} here", code="model_not_found")
        return _Answer(JSONResponse({"object": "list", "data": [model]} if name is None else model))

    async def _response(self, request: Request) -> _Answer:
        """One that is kept, told or deleted."""
        namespace = self._access.namespace(request.headers.get("authorization"))
        name = request.path_params["id"]
        if request.method == "DELETE":
            self.kept.drop(namespace, name)
            return _Answer(JSONResponse({"id": name, "object": "response", "deleted": True}))
        return _Answer(JSONResponse(self.kept.get(namespace, name).body))

    async def _answer(self, request: Request, kind: FormType) -> _Answer:
        namespace = self._access.namespace(request.headers.get("authorization"))
        with closing(self._mailroom.open()) as mail:
            return await self._answer_mail(request, kind, namespace, mail)

    async def _answer_mail(
        self, request: Request, kind: FormType, namespace: str, mail: Mail
    ) -> _Answer:
        body = await mail.read_json(request)
        # In another thread: a body may hold millions of tokens.
        form = await asyncio.to_thread(kind, body, self._settings, namespace)
        if form.json_schema is not None:
            await asyncio.to_thread(follow_schema, form, self._json)
        call = Call(
            form.requests,
            self.scheduler,
            self._settings,
            self._pictures,
            prepare=form.prepare,
            tells_steps=form.streams,
        )
        steps = self._counted(call)
        first = None
        try:
            async with Leaving(request) as leaving:
                await leaving.unless(call.begin(self._engine))
                mail.close()
                if not form.streams:
                    await leaving.unless(_to_the_end(steps))
                    call.close()
                    return _Answer(JSONResponse(await asyncio.to_thread(form.whole, call)), call)
                # Most mistakes show in the first step: they get a status of their own.
                first = asyncio.ensure_future(anext(steps))
                await leaving.unless(asyncio.wait([first], timeout=_OPENING_S))
                if first.done():
                    first.result()
        except BaseException as error:
            if first is not None:
                first.cancel()
            call.close()
            if isinstance(error, InputError):
                raise as_api_error(error, form.length_name) from error
            raise
        stream = events(form, call, first, steps, _logged)
        return _Answer(EventStream(stream, lambda: self._end(request, call)))

    async def _counted(self, call: Call) -> AsyncIterator[Step]:
        async for step in call.steps():
            if step.progress.result is not None:
                self._metrics.answered(call.tickets[step.prompt], step.progress.result)
            yield step

    def _end(self, request: Request, call: Call) -> None:
        """Of a stream."""
        call.close()
        status = _GONE if None in call.results else 200
        if call.failure is not None:  # which came too late to be the response's own
            status = call.failure.status
        self._tell(request, status, call.seconds, call)

    async def _told(self, request: Request, answer: Awaitable[_Answer]) -> Response:
        """The answer, or the error in its place; a stream tells of itself when it ends."""
        begun, call = time.monotonic(), None
        try:
            response, call = await answer
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        except Exception as error:
            response = error_response(error)
        if not isinstance(response, EventStream):
            self._tell(request, response.status_code, time.monotonic() - begun, call)
        return response

    def _tell(self, request: Request, status: int, seconds: float, call: Call | None) -> None:
        """Counts it, and logs it without a word of any prompt."""
        # A route's own path: what a client wrote is no label, and no line of a log.
        path = request.url.path
        if request.path_params:
            path = "/".join(path.split("/")[:3])
        self._metrics.requests.labels(path, str(status)).inc()
        parts = [f"{request.method} {path} {status}", f"{seconds:.2f} s"]
        done = [] if call is None else [r for r in call.results if r is not None]
        if done:
            samples = [sample for result in done for sample in result.samples]
            tokens = sum(sample.stats.new_tokens for sample in samples)
            accepted = sum(sample.stats.accepted_tokens for sample in samples)
            steps = sum(sample.stats.steps for sample in samples)
            prompt = sum(result.stats.prompt_tokens for result in done)
            reused = sum(result.stats.reused_tokens for result in done)
            parts.append(f"{counted(prompt, 'prompt token')}, {reused:,} reused")
            parts.append(f"{counted(tokens, 'token')}, {1 + accepted / max(steps, 1):.2f} a step")
        access_log.info("%s", " · ".join(parts))


def error_response(error: BaseException) -> Response:
    told = _logged(error)
    return JSONResponse(told.body, told.status, headers=dict(told.headers))


def _logged(error: BaseException) -> ApiError:
    """For the client; what is not its own mistake joins the log."""
    told = as_api_error(error)
    if told.code == "internal_error":
        logger.error("a request failed: %s", error, exc_info=error)
    return told


async def _to_the_end(steps: AsyncIterator[Step]) -> None:
    async for _ in steps:
        pass
