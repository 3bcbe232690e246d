"""What comes from a client: a body of bounded size, and perhaps its leaving."""

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from mmspec.serving.allowance import Allowance
from mmspec.serving.errors import ApiError, busy, not_asked, too_slow
from mmspec.serving.settings import ServerSettings
from mmspec.words import counted

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair, or of none


class Mailroom:
    """Takes bodies in, no more at a time than `settings` allow: a client that sends slowly, or many
    that send much, must not take the memory of the others."""

    def __init__(self, settings: ServerSettings, *, max_requests: int) -> None:
        """In one event loop. `max_requests` are read, prepared or answered at a time."""
        self.settings = settings
        self.num_requests = 0
        self._max_requests = max_requests
        told = "too many large requests are under way already"
        self.allowance = Allowance(settings.max_held_bytes, told=told)

    def open(self) -> "Mail":
        """For one request. Raises ApiError where too many are open."""
        if self.num_requests >= self._max_requests:
            raise busy(f"{counted(self.num_requests, 'request')} under way already")
        self.num_requests += 1
        return Mail(self)


class Mail:
    """One request's place, and what of its body is in memory. To be closed, at the latest when it
    is answered."""

    def __init__(self, room: Mailroom) -> None:
        self._room = room
        self._num_bytes = 0
        self._is_open = True

    async def read_json(self, request: Request) -> object:
        """Raises ApiError for a body that is too large or too slow, or no JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if "origin" in request.headers and kind != "application/json":
            raise not_asked(kind)
        data = await self._read(request)
        try:
            return await asyncio.to_thread(_parsed, data)  # images make it long
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}") from error

    async def _read(self, request: Request) -> bytearray:
        """Raises ApiError."""
        settings, data = self._room.settings, bytearray()
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > settings.max_body_bytes:
            raise _too_large(settings)  # before a byte of it is read
        try:
            async with asyncio.timeout(settings.receive_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > settings.max_body_bytes:
                        raise _too_large(settings)
                    self._room.allowance.take(len(chunk))
                    self._num_bytes += len(chunk)
        except TimeoutError as late:
            raise too_slow(settings.receive_s) from late
        return data

    def close(self) -> None:
        """Its images are open and its texts are tokens: the body is not needed any more."""
        if self._is_open:
            self._is_open = False
            self._room.num_requests -= 1
            self._room.allowance.give_back(self._num_bytes)


def _too_large(settings: ServerSettings) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {settings.max_body_bytes} bytes; send smaller images, or fewer",
        code="request_too_large",
    )


def _parsed(data: bytearray) -> object:
    """Raises ValueError, also for what is not UTF-8, for a number that is none, and for half a
    character, which no tokenizer and no answer takes."""
    text = data.decode("utf-8-sig")
    body: object = json.loads(text, parse_constant=_no_number)
    if _HALF.search(text):
        json.dumps(body, ensure_ascii=False).encode()
    return body


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no number")


class Leaving:
    """Watches whether the client leaves; its body was read. A context manager."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __aenter__(self) -> "Leaving":
        self._left = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._left.cancel()
        with suppress(asyncio.CancelledError):
            await self._left

    async def unless(self, waited_for: Awaitable[object]) -> None:
        """Waits. Raises ClientDisconnect where the client leaves before."""
        task = asyncio.ensure_future(waited_for)
        try:
            await asyncio.wait([task, self._left], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect()
            task.result()
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
