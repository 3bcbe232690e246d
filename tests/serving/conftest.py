from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

import mmspec
from mmspec.training.tiny.build import build_model, build_processor

if TYPE_CHECKING:
    from starlette.testclient import TestClient

HAS_EXTRA = all(map(find_spec, ("starlette", "uvicorn", "prometheus_client", "httpx2")))
collect_ignore_glob = [] if HAS_EXTRA else ["test_*.py"]  # without the extra 'serve'


@pytest.fixture(scope="session")
def engine() -> mmspec.Engine:
    """What it says is noise, but exact: nothing foretells it, and hardly anything ends it."""
    return mmspec.load(
        build_model("nano").double().eval(),
        build_processor(),
        overrides={"decode.controller": "fixed", "decode.max_rows": 3},
    )


@pytest.fixture(scope="session")
def client(engine: mmspec.Engine) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from mmspec.serving import ServerSettings, create_app

    settings = ServerSettings(name="nano", max_samples=4, max_body_bytes=2**20)
    with TestClient(create_app(engine, settings)) as client:
        yield client
