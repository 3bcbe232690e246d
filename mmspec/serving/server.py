"""The app under uvicorn: an address, signals, and an end that lets requests finish."""

import math
import socket
from types import FrameType

import uvicorn

from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.serving.app import build_app
from mmspec.serving.scheduler import Scheduler
from mmspec.serving.settings import ServerSettings

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
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_s) + _AFTER_CUT_S,
    )
    _Server(config, app.state.scheduler, settings.grace_s).run(sockets=[sock])


class _Server(uvicorn.Server):
    """With the first signal no more requests are taken, and the grace time begins."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, grace_s: float) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._grace_s = grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._scheduler.drain(self._grace_s)
        super().handle_exit(sig, frame)
