"""What comes from a client: a body of bounded size, and perhaps its leaving."""

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from mmspec.serving.errors import ApiError

_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # of a pair, or of none


async def read_json(request: Request, *, max_bytes: int) -> object:
    """Raises ApiError for a body that is too large, or no JSON."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise ApiError(
                413, f"the body has more than {max_bytes} bytes; send smaller images, or fewer"
            )
    try:
        return await asyncio.to_thread(_parsed, data)  # images make it long
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from error


def _parsed(data: bytearray) -> object:
    """Raises ValueError, also for half a character, which no tokenizer and no answer takes."""
    body: object = json.loads(data)
    if _HALF.search(data):
        json.dumps(body, ensure_ascii=False).encode()
    return body


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
