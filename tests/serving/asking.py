"""What the tests of the server share: bodies, streams read back, clients side by side."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import httpx2
import pytest
from integrations.frameworks import TOOL_TEMPLATE, with_tools
from starlette.applications import Starlette

import mmspec

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SAMPLED = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
needs_guided = pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")


def asked(text: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """A chat's body."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": 24, **SAMPLED, **fields}


def events(text: str) -> list[dict[str, Any]]:
    """The objects of a stream, which must have ended as it should."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def with_template(engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's chat template knows tools."""
    prepare, arguments = engine.prepare, {"chat_template": TOOL_TEMPLATE}
    monkeypatch.setattr(
        engine, "prepare", lambda request: prepare(request, template_arguments=arguments)
    )


def make_it_say(
    engine: mmspec.Engine, words: str, monkeypatch: pytest.MonkeyPatch
) -> list[str | None]:
    """The model has no other answer. Gives the texts of the prompts to come."""
    options, prepare, prompts = with_tools(engine, words), engine.prepare, list[str | None]()
    options.pop("max_tokens")

    def prepared(request: mmspec.Request) -> mmspec.Request:
        made = prepare(replace(request, **options))
        prompts.append(made.prompt.text)  # type: ignore[union-attr]
        return made

    monkeypatch.setattr(engine, "prepare", prepared)
    return prompts


@asynccontextmanager
async def side_by_side(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client whose requests are answered together."""
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://mmspec", timeout=60
        ) as client,
    ):
        yield client


async def until(is_so: Callable[[], bool]) -> None:
    """Waits, but not for ever."""
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.002)


class Visitor:
    """One request to an app that may leave in the middle: what ASGI servers do, by hand."""

    def __init__(self, app: Starlette, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._leaves = asyncio.Event()
        self._inbox: list[dict[str, Any]] = [
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        ]
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
            "http_version": "1.1", "scheme": "http", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [], "client": ("test", 1), "server": ("mmspec", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._leaves.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def _receive(self) -> dict[str, Any]:
        if self._inbox:
            return self._inbox.pop()
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
