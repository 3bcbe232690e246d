"""Fetching by http: off unless allowed, bounded in bytes and time, never leaving http, and never
from a machine that only this one reaches."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from mmspec.errors import InputError
from mmspec.inputs import InputLimits, open_image
from mmspec.inputs.download import is_public
from mmspec.inputs.sources import read_source

ALLOWED = InputLimits(
    allow_http=True, allow_private_http=True, max_image_bytes=1000, http_timeout_s=1.0
)
PUBLIC = replace(ALLOWED, allow_private_http=False)


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        self.send_error(403)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        if self.path == "/slow-head":
            for _ in range(40):
                self.wfile.write(b"x")
                time.sleep(0.1)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path in ("/file", "/ftp"):  # a redirect that leaves http
            self.send_response(302)
            self.send_header("Location", f"{self.path[1:]}://127.0.0.1/etc/hostname")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/half":
            self.send_header("Content-Length", "10")
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


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    Handler.asked.clear()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each name means, in place of the network's own names; the last address stays."""
    means: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host not in means:
            return real(host, port, *rest, **more)
        found = means[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        return [x for one in address.split() for x in real(one, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return means


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
        ("half", "5 bytes before"),
        ("slow-head", "http_timeout_s|cannot fetch"),
        ("file", "no http or https address"),
        ("ftp", "no http or https address"),
        ("to?/to?/to?/to?/to?/to?/hello", "more than 5 redirects"),
    ],
)
def test_a_bad_answer_is_a_clear_error(server: str, page: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        read_source(f"{server}/{page}", limits=ALLOWED)


def test_a_handshake_that_outlasts_the_deadline_is_the_end(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While TLS begins there is no socket to cut: the request must not be sent after it."""

    class Slow:
        def wrap_socket(self, given: socket.socket, *, server_hostname: str) -> socket.socket:
            wrapped = socket.socket(fileno=given.detach())
            time.sleep(0.4)
            return wrapped

    monkeypatch.setattr("ssl.create_default_context", Slow)
    with pytest.raises(InputError, match="http_timeout_s"):
        limits = replace(ALLOWED, http_timeout_s=0.3)
        read_source(server.replace("http:", "https:") + "/slow", limits=limits)
    assert not Handler.asked


def test_a_name_that_is_not_resolved_in_time_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: released.wait(10))
    limits = replace(ALLOWED, http_timeout_s=0.05)
    with pytest.raises(InputError, match=r"took longer than 0\.05 s"):
        read_source("http://slow.example/a.png", limits=limits)
    released.set()


def test_a_dead_address_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="cannot fetch"):
        open_image("http://127.0.0.1:9/a.png", limits=ALLOWED)


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),  # a provider's own network
        ("169.254.169.254", False),  # a cloud's credentials
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("192.0.0.192", False),  # clouds' own, again
        ("168.63.129.16", False),
        ("fec0::1", False),  # a site's own, before fc00
        ("64:ff9b:1::7f00:1", False),  # a network's own NAT64
        ("::127.0.0.1", False),
        ("::ffff:0:7f00:1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_an_address_is_of_the_internet_or_not(address: str, is_so: bool) -> None:
    assert is_public(address) is is_so


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_this_machine_is_not_asked_by_any_of_its_names(server: str, host: str) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(InputError, match=r"allow_private_http|not known|cannot fetch"):
        read_source(f"http://{host}:{port}/hello", limits=PUBLIC)
    assert not Handler.asked


def test_a_name_is_judged_by_each_address_and_asked_at_one_of_them(
    server: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.rpartition(":")[2]
    url = f"http://pictures.example:{port}/hello"
    for address in ("10.0.0.1", "8.8.8.8 127.0.0.1", "169.254.169.254"):
        names["pictures.example"] = [address]
        with pytest.raises(InputError, match=r"allow_private_http"):
            read_source(url, limits=PUBLIC)
    # A name that means the internet when it is looked at and this machine a moment later.
    names["pictures.example"] = ["8.8.8.8", "127.0.0.1"]
    went_to: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        went_to.append(address)
        raise ConnectionRefusedError("no network here")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(InputError, match="no network here"):
        read_source(url, limits=PUBLIC)
    assert went_to == [("8.8.8.8", int(port))] and not Handler.asked


def test_each_hop_of_a_redirect_is_judged_anew(
    server: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.rpartition(":")[2])
    names["pictures.example"] = ["8.8.8.8"]
    real = socket.create_connection

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address == ("8.8.8.8", port), "nothing else was judged to be of the internet"
        return real(("127.0.0.1", port), timeout)  # the local server stands in for it

    monkeypatch.setattr(socket, "create_connection", connect)
    outside = f"http://pictures.example:{port}"
    assert read_source(f"{outside}/hello", limits=PUBLIC) == b"hello"
    assert read_source(f"{outside}/to?/hello", limits=PUBLIC) == b"hello"
    Handler.asked.clear()
    with pytest.raises(InputError, match=r"leads to 127\.0\.0\.1.*allow_private_http"):
        read_source(f"{outside}/to?{server}/hello", limits=PUBLIC)
    assert Handler.asked == [f"/to?{server}/hello"]


def test_a_proxy_is_asked_where_private_networks_are_its_own_matter(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", server)
        with pytest.raises(InputError, match=r"proxy.*allow_private_http"):
            read_source(f"{scheme}://pictures.example/a", limits=PUBLIC)
    assert not Handler.asked
    assert read_source("http://pictures.example/a", limits=ALLOWED) == b"hello"
    with pytest.raises(InputError, match="the proxy said 403"):
        read_source("https://pictures.example/a", limits=ALLOWED)
    assert Handler.asked == ["http://pictures.example/a", "pictures.example:443"]


def test_an_address_is_written_as_http_wants_it(server: str) -> None:
    assert read_source(f"{server}/ein bild?größe=1#rest", limits=ALLOWED) == b"hello"
    assert Handler.asked == ["/ein%20bild?gr%C3%B6%C3%9Fe=1"]
