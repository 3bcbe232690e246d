"""Serving: one engine behind OpenAI's HTTP API, its requests decoded together.

    app = create_app(engine, ServerSettings(api_keys=("...",)))   # any ASGI server runs it
    run(engine, host="127.0.0.1", port=8000)                      # uvicorn

A request's way: `app` (routes, keys, size) -> `chat`, `responses` or `completions` (body ->
requests) -> `call` (admitted, prepared, waited for) -> `scheduler` (one thread, one decode loop) ->
the same form again (results -> body, steps -> events).
"""

from typing import TYPE_CHECKING

from mmspec.serving.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from mmspec.engine import Engine

__all__ = ["ServerSettings", "check_extra", "create_app", "run"]

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


def create_app(engine: "Engine", settings: ServerSettings | None = None) -> "Starlette":
    """The ASGI application. Raises MissingExtraError, ConfigError."""
    check_extra()
    from mmspec.serving.app import build_app

    return build_app(engine, settings or ServerSettings())


def run(
    engine: "Engine",
    settings: ServerSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets what is under way end, for `settings.grace_s`.

    Raises MissingExtraError, ConfigError: also where the address is not to be had."""
    check_extra()
    from mmspec.serving.server import listening, serve_at

    with listening(host, port) as sock:
        serve_at(sock, engine, settings or ServerSettings())


def check_extra() -> None:
    """Raises MissingExtraError where what serving needs is not installed."""
    from importlib.util import find_spec

    from mmspec.errors import MissingExtraError

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"serving needs {', '.join(missing)}, which are not installed: "
            "pip install 'mmspec[serve]'"
        )
