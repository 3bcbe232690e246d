"""The app under uvicorn: an address, signals, and an end that lets requests finish."""

import asyncio
import json
import logging
import math
import signal
import socket
from http import HTTPStatus
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.serving.app import build_app
from mmspec.serving.errors import ApiError, busy
from mmspec.serving.scheduler import Scheduler
from mmspec.serving.settings import ServerSettings
from mmspec.words import counted

logger = logging.getLogger(__name__)
_AFTER_CUT_S = 5  # for what was cut to be told so


def listening(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host}:{port} ({why}); expected an address of this machine and a "
            "free port: --host, --port"
        ) from error


def serve_at(sock: socket.socket, engine: Engine, settings: ServerSettings) -> None:
    """Until a signal."""
    app = build_app(engine, settings)
    _Server(uvicorn_config(app, settings), app.state.scheduler, settings.grace_s).run(
        sockets=[sock]
    )


def uvicorn_config(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(settings),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_s) + _AFTER_CUT_S,
    )


def _protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """uvicorn's own, for as many connections as `settings` allow, each of which must have sent the
    head of a request in time, and read on what it is sent."""

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at run time
        is_refused = False
        answered: object = None  # the request behind which another one has begun to come
        unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            if len(self.connections) >= settings.max_connections:
                self.is_refused = True
                transport.write(_as_http(busy("too many connections are open already")))
                transport.close()
                return
            super().connection_made(transport)
            self.wait_for_request()

        def data_received(self, data: bytes) -> None:
            if self.is_refused:
                return
            super().data_received(data)
            is_over = self.cycle is not None and self.cycle.response_complete
            if is_over and self.cycle is not self.answered:
                self.answered = self.cycle
                self.wait_for_request()

        def connection_lost(self, error: Exception | None) -> None:
            if self.unread is not None:
                self.unread.cancel()
            if not self.is_refused:
                super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.unread = self.loop.call_later(settings.receive_s, self.transport.abort)

        def resume_writing(self) -> None:
            if self.unread is not None:
                self.unread.cancel()
            super().resume_writing()

        def wait_for_request(self) -> None:
            """Not for ever: its head may come byte by byte."""
            self.loop.call_later(settings.receive_s, self.leave_silent, self.cycle)

        def leave_silent(self, before: object) -> None:
            """Nothing was asked by now, behind the request `before`."""
            if self.cycle is before and not self.transport.is_closing():
                self.transport.close()

    return Bounded


def _as_http(error: ApiError) -> bytes:
    """A whole response, where no request was read."""
    body = json.dumps(error.body).encode()
    heads = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error.headers,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in heads.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Server(uvicorn.Server):
    """With the first signal no more requests are taken, and the grace time begins, which a later
    Ctrl-C ends."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, grace_s: float) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._grace_s = grace_s
        self._is_cut = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT and not self._is_cut:
            self._is_cut = True
            self._scheduler.drain(0)
            return
        self._scheduler.drain(self._grace_s)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if num_left := self._scheduler.num_decoded + self._scheduler.num_waiting:
            logger.warning(
                "shutting down: %s under way, %g s to end; Ctrl-C cuts off what is left",
                counted(num_left, "prompt"),
                self._grace_s,
            )
        await super().shutdown(sockets)
