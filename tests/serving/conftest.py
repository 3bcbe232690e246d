from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
pytest.importorskip("prometheus_client", reason="needs the extra 'serve'")

import httpx
from starlette.applications import Starlette
from starlette.testclient import TestClient

import mmspec
from mmspec.serving import ServerSettings, create_app
from mmspec.training.tiny.build import build_model, build_processor


@pytest.fixture(scope="session")
def engine() -> mmspec.Engine:
    """What it says is noise, but exact: nothing foretells it, and hardly anything ends it."""
    return mmspec.load(
        build_model("nano").double().eval(),
        build_processor(),
        overrides={"decode.controller": "fixed", "decode.max_rows": 3},
    )


@pytest.fixture(scope="session")
def client(engine: mmspec.Engine) -> Iterator[TestClient]:
    settings = ServerSettings(name="nano", max_samples=4, max_body_bytes=2**20)
    with TestClient(create_app(engine, settings)) as client:
        yield client


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests are answered side by side."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://mmspec") as client,
    ):
        yield client


def asked(text: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """A chat's body."""
    defaults = {"max_tokens": 24, "temperature": 1.0, "seed": 7, "ignore_eos": True}
    return {"messages": [{"role": "user", "content": text}], **defaults, **fields}
