"""What one client may take of a server: sizes, time, connections."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from PIL import Image
from serving.asking import CHAT, Visitor, asked, side_by_side, until
from starlette.testclient import TestClient

import mmspec
from mmspec.errors import ConfigError
from mmspec.serving import ServerSettings, create_app
from mmspec.serving.server import listening, uvicorn_config
from mmspec.training.tiny.build import build_processor


def data_url(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def with_images(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return asked(messages=[{"role": "user", "content": parts}], max_tokens=2)


@pytest.fixture(scope="module")
def strict(engine: mmspec.Engine) -> mmspec.Engine:
    """For strangers, who may send addresses."""
    rules = {"inputs.max_request_pixels": 500, "inputs.allow_http": True}
    return mmspec.load(engine.target.model, build_processor(), overrides=rules)


def test_pixels_of_all_images_are_a_413(strict: mmspec.Engine) -> None:
    with TestClient(create_app(strict, ServerSettings(name="nano"))) as client:
        assert client.post(CHAT, json=with_images(data_url(20, 20))).status_code == 200
        response = client.post(CHAT, json=with_images(*[data_url(20, 20)] * 2))
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error["code"] == "request_too_large"
    assert "800 pixels" in error["message"] and "inputs.max_request_pixels" in error["message"]


@pytest.mark.parametrize("path", ["/a.png", "/latest/meta-data"])
def test_nobody_has_the_server_ask_its_own_machine(strict: mmspec.Engine, path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        here.settimeout(0)
        url = f"http://127.0.0.1:{here.getsockname()[1]}{path}"
        with TestClient(create_app(strict, ServerSettings(name="nano"))) as client:
            response = client.post(CHAT, json=with_images(url))
        assert response.status_code == 400
        assert "inputs.allow_private_http" in response.json()["error"]["message"]
        with pytest.raises(BlockingIOError):
            here.accept()  # nobody came


def test_a_body_is_refused_by_what_it_says_of_its_length(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_body_bytes=1000)
    sent: list[bytes] = []

    async def ask() -> int:
        async with side_by_side(create_app(engine, settings)) as client:

            async def body() -> Any:
                sent.append(b" " * 2000)
                yield sent[0]

            headers = {"Content-Length": "2000"}
            response = await client.post(CHAT, content=body(), headers=headers)
            assert response.json()["error"]["code"] == "request_too_large"
            return response.status_code

    assert asyncio.run(ask()) == 413


def test_a_slow_body_is_a_408_and_many_large_ones_a_429(engine: mmspec.Engine) -> None:
    settings = ServerSettings(
        name="nano", max_body_bytes=1000, max_held_bytes=1500, receive_s=0.5, max_waiting=1
    )

    async def ask() -> list[tuple[int, str]]:
        async with side_by_side(create_app(engine, settings)) as client:

            async def slow() -> Any:
                yield b"{" + b" " * 800
                await asyncio.sleep(30)

            first = asyncio.create_task(client.post(CHAT, content=slow()))
            await asyncio.sleep(0.1)
            second = await client.post(CHAT, content=b"{" + b" " * 800)
            small = await client.post(CHAT, json=asked(max_tokens=2))
            told = [await first, second, small]
            after = await client.post(CHAT, json=asked("a" * 700, max_tokens=2))
            return [(r.status_code, r.text) for r in (*told, after)]

    (slow, large, small, after) = asyncio.run(ask())
    assert slow[0] == 408 and "0.5 s" in slow[1]
    assert large[0] == 429 and json.loads(large[1])["error"]["type"] == "rate_limit_error"
    assert small[0] == 200, "it costs others nothing"
    assert after[0] == 200, "what was held is free again"


def test_opened_pictures_are_counted_over_all_requests(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_held_pixels=500)
    app = create_app(engine, settings)

    async def ask() -> list[int]:
        async with side_by_side(app) as client:
            long = {**with_images(data_url(20, 20)), "max_tokens": 2000, "stream": True}
            visitor = Visitor(app, CHAT, long)
            await until(lambda: "content" in visitor.text)
            refused = await client.post(CHAT, json=with_images(data_url(20, 20)))
            assert "too many images" in refused.text
            small = await client.post(CHAT, json=with_images(data_url(10, 10)))
            text = await client.post(CHAT, json=asked(max_tokens=2))
            visitor.leave()
            await visitor.task
            after = await client.post(CHAT, json=with_images(data_url(20, 20)))
            return [r.status_code for r in (refused, small, text, after)]

    assert asyncio.run(ask()) == [429, 200, 200, 200]


def test_who_leaves_while_pictures_are_opened_makes_no_room_for_more(
    engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens them cannot be stopped: it holds its place until it ends."""
    goes_on, begun = threading.Event(), list[bool]()
    right = type(engine).prepare

    def prepare(self: Any, *args: Any, **options: Any) -> Any:
        begun.append(True)
        goes_on.wait(20)
        return right(self, *args, **options)

    monkeypatch.setattr(type(engine), "prepare", prepare)
    app = create_app(engine, ServerSettings(name="nano"))

    async def ask() -> tuple[int, int]:
        async with side_by_side(app) as client:
            for _ in range(6):
                visitor = Visitor(app, CHAT, with_images(data_url(20, 20)))
                before = len(begun)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while len(begun) == before:
                            await asyncio.sleep(0.01)
                visitor.leave()
                await visitor.task
            opened = len(begun)
            goes_on.set()
            after = await client.post(CHAT, json=with_images(data_url(20, 20)))
            return opened, after.status_code

    assert asyncio.run(ask()) == (4, 200)


def test_pictures_that_never_fit_are_not_asked_for_again(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_held_pixels=500)
    with TestClient(create_app(engine, settings)) as client:
        response = client.post(CHAT, json=with_images(data_url(30, 20)))
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == "request_too_large" and "600" in error["message"]


def test_requests_under_way_are_counted_before_they_are_read(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_waiting=0, receive_s=1)

    async def ask() -> tuple[list[int], int]:
        async with side_by_side(create_app(engine, settings)) as client:

            async def never() -> Any:
                yield b"{"
                await asyncio.sleep(30)

            begun = [asyncio.create_task(client.post(CHAT, content=never())) for _ in range(3)]
            await asyncio.sleep(0.1)
            refused = await client.post(CHAT, json=asked(max_tokens=2))
            assert "3 requests under way" in refused.text and refused.headers["retry-after"]
            slow = [(await one).status_code for one in begun]
            assert (await client.post(CHAT, json=asked(max_tokens=2))).status_code == 200
            return slow, refused.status_code

    assert asyncio.run(ask()) == ([408] * 3, 429)


@contextmanager
def running(
    engine: mmspec.Engine, settings: ServerSettings, send_bytes: int | None = None
) -> Iterator[tuple[str, int]]:
    with listening("127.0.0.1", 0) as sock:
        if send_bytes is not None:  # that the system holds of an answer
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        server = uvicorn.Server(uvicorn_config(create_app(engine, settings), settings))
        thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)


def test_connections_are_counted_and_silent_ones_are_left(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_connections=2, receive_s=1)
    with running(engine, settings) as address:
        silent = [socket.create_connection(address, timeout=10) for _ in range(2)]
        silent[1].sendall(b"GET /health HTTP/1.1\r\nHost: ")  # half a head
        time.sleep(0.2)
        with socket.create_connection(address, timeout=10) as third:
            said = b"".join(iter(lambda: third.recv(4096), b""))
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests") and b"Retry-After: 1" in head
        assert json.loads(body)["error"]["code"] == "server_busy"
        for one in silent:
            assert one.recv(100) == b"", "nothing was asked in time"
            one.close()
        with socket.create_connection(address, timeout=10) as fourth:
            fourth.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert fourth.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_second_request_must_be_sent_in_time_too(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", receive_s=1)
    with running(engine, settings) as address:
        with socket.create_connection(address, timeout=10) as sly:

            def is_answered() -> bool:
                said = b""
                while not said.endswith(b"}"):
                    said += sly.recv(4096) or b"}"
                return said.startswith(b"HTTP/1.1 200")

            whole = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
            for _ in range(2):
                sly.sendall(whole)
                assert is_answered()
            time.sleep(1.2)
            sly.sendall(whole)
            assert is_answered(), "it may wait between two of them"
            sly.sendall(b"GET /health HTTP/1.1\r\nX: ")
            assert sly.recv(100) == b"", "the rest did not come in time"


def test_a_limit_that_is_none_is_a_mistake() -> None:
    for wrong in ({"max_connections": 0}, {"receive_s": 0}, {"max_held_bytes": 5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServerSettings(**wrong)


def _wait_for(word: bytes, address: tuple[str, int]) -> None:
    until_then = time.monotonic() + 30
    while word not in _health(address):
        assert time.monotonic() < until_then, word
        time.sleep(0.05)


def _health(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=10) as asking:
        asking.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        told = b""
        while data := asking.recv(4096):
            told += data
    return told


def test_who_does_not_read_is_left(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", receive_s=1)
    body = asked(max_tokens=2000, logprobs=True, top_logprobs=20, stream=True)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
    with running(engine, settings, send_bytes=4096) as address:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(30)
            deaf.connect(address)
            deaf.sendall(head.encode() + data)
            _wait_for(b'"running":1', address)
            _wait_for(b'"running":0', address)
            time.sleep(0.5)
            said = b"".join(iter(lambda: deaf.recv(2**20), b""))
            assert b"data: " in said and b"[DONE]" not in said
