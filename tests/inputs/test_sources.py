"""Fetching by http: off unless allowed, bounded in bytes and time, never leaving http."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmspec.errors import InputError
from mmspec.inputs import InputLimits, open_image
from mmspec.inputs.sources import read_source

ALLOWED = InputLimits(allow_http=True, max_image_bytes=1000, http_timeout_s=1.0)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path in ("/file", "/ftp"):  # a redirect that leaves http
            self.send_response(302)
            self.send_header("Location", f"{self.path[1:]}://127.0.0.1/etc/hostname")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path.startswith("/endless"):
                while True:
                    self.wfile.write(b"x" * 400)
            if self.path.startswith("/slow"):
                for _ in range(40):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.wfile.write(b"hello")
        except ConnectionError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_an_allowed_address_is_read(server: str) -> None:
    assert read_source(f"{server}/hello", limits=ALLOWED) == b"hello"


def test_nothing_is_fetched_unless_allowed(server: str) -> None:
    with pytest.raises(InputError, match=r"inputs\.allow_http=true"):
        read_source(f"{server}/hello", limits=InputLimits())


@pytest.mark.parametrize(
    ("page", "word"),
    [
        ("missing", "404"),
        ("endless", "max_image_bytes"),
        ("slow", "http_timeout_s"),
        ("file", "not allowed"),
        ("ftp", "unknown url type"),
    ],
)
def test_a_bad_answer_is_a_clear_error(server: str, page: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        read_source(f"{server}/{page}", limits=ALLOWED)


def test_a_dead_address_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="cannot fetch"):
        open_image("http://127.0.0.1:9/a.png", limits=ALLOWED)
