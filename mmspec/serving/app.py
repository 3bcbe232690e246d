"""The ASGI application: which route leads where."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mmspec.engine import Engine
from mmspec.integrations.answer import model_name
from mmspec.serving.errors import ApiError
from mmspec.serving.forms import CHATS, RESPONSES, TEXTS, forms
from mmspec.serving.service import Service, error_response
from mmspec.serving.settings import ServerSettings


def build_app(engine: Engine, settings: ServerSettings) -> Starlette:
    """Its lifespan starts and ends the thread that decodes; `app.state.scheduler` feeds it."""
    service = Service(engine, replace(settings, name=settings.name or model_name(engine)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.scheduler.close)

    asked = forms(service.kept).items()
    app = Starlette(
        routes=[
            *(Route(path, service.answering(form), methods=["POST"]) for path, form in asked),
            Route(f"{RESPONSES}/{{id}}", service.response, methods=["GET", "DELETE"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.models),
            Route("/health", service.health),
            Route("/metrics", service.metrics),
        ],
        middleware=_cross_origin(settings),
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_route, Exception: _failed},
    )
    app.state.scheduler = service.scheduler
    return app


def _cross_origin(settings: ServerSettings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],  # OpenAI's client in a browser sends some of its own
        expose_headers=["Retry-After", "x-should-retry"],
    )
    return [allowed]


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    expected = ", ".join(f"POST {path}" for path in (CHATS, RESPONSES, TEXTS))
    asked = f"{request.method} {request.url.path}"
    message = f"{asked}: {error.detail}; expected {expected} or GET /v1/models"
    return error_response(ApiError(error.status_code, message, headers=error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(error)
