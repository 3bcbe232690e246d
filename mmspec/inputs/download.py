"""Download: what lies at an http(s) address, fetched from where it may be fetched from.

Who may send addresses to a server could have it ask machines that only the server reaches: a
router's page, a database, the credentials that a cloud's machines find at 169.254.169.254. So a
name is resolved here, each of its addresses is judged, and the connection goes to one that was
judged: what the name means a moment later counts for nothing. A redirect is an address as the
first one is.
"""

import base64
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import Thread, Timer
from typing import Any

from mmspec.errors import InputError
from mmspec.inputs.limits import InputLimits

_CHUNK_BYTES = 2**16
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEPT_IN_PATHS = "/%:=&?~#+!$,;'@()*[]"
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 addresses as IPv6 networks write them
_GIVEN_OUT = IPv6Network("2000::/3")  # all of the internet's own; what is older is local to a site
_NEARBY = (  # that Python's tables do not know as such, or not all of its versions
    IPv4Network("192.0.0.0/24"),  # RFC 6890; Oracle's cloud answers at 192.0.0.192
    IPv4Network("168.63.129.16/32"),  # Azure's, of each machine's own host
)


def download(
    url: str, *, name: str, limits: InputLimits, check_size: Callable[[int], None]
) -> bytes:
    """The bytes at `url`. `check_size` is told how many there are as they come, and raises where
    they are too many; `name` is the address in error messages.

    Raises InputError: not fetched within `limits.http_timeout_s`, redirects included; an address
    that may not be asked, or that does not answer with 200.
    """
    deadline = time.monotonic() + limits.http_timeout_s
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            with _Visit(url, limits, deadline) as visit:
                if visit.response.status not in _REDIRECTS:
                    return visit.read(check_size)
                location = visit.response.headers.get("Location", "")
                url = urllib.parse.urljoin(url, location)
        raise InputError(
            f"cannot fetch {name}: more than {_MOST_REDIRECTS} redirects; give the last address"
        )
    except (HTTPException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if time.monotonic() >= deadline:
            raise InputError(
                f"{name} took longer than {limits.http_timeout_s:g} s; download it yourself, or "
                "raise InputLimits.http_timeout_s"
            ) from error
        raise InputError(
            f"cannot fetch {name}: {error}; check the address and the network, or give a local path"
        ) from error


class _Visit:
    """One request of one address. Leaving it closes the connection, as the deadline does."""

    def __init__(self, url: str, limits: InputLimits, deadline: float) -> None:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise ValueError(f"{url[:80]!r} is no http or https address")
        self._parts = parts
        self._host = host
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._limits = limits
        self._deadline = deadline
        self._socket: socket.socket | None = None
        self._is_late = False
        self._timer = Timer(max(deadline - time.monotonic(), 0), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Visit":
        self._timer.start()
        try:
            self.response = self._answer()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, check_size: Callable[[int], None]) -> bytes:
        if self.response.status != 200:
            raise ValueError(f"HTTP {self.response.status} {self.response.reason}")
        data = bytearray()
        while chunk := self.response.read1(_CHUNK_BYTES):
            data += chunk
            check_size(len(data))
        if time.monotonic() >= self._deadline:  # what was cut off looks like an end
            raise TimeoutError("timed out")
        if self.response.length:
            raise ValueError(f"it ended {self.response.length} bytes before what it had announced")
        return bytes(data)

    def close(self) -> None:
        self._timer.cancel()
        if self._socket is not None:
            self._socket.close()

    def _answer(self) -> HTTPResponse:
        path = urllib.parse.quote(self._parts.path or "/", safe=_KEPT_IN_PATHS)
        if self._parts.query:
            path += "?" + urllib.parse.quote(self._parts.query, safe=_KEPT_IN_PATHS)
        default = self._port == _DEFAULT_PORTS[self._parts.scheme]
        host = _bracketed(self._host) + ("" if default else f":{self._port}")
        headers = {"Host": host, "User-Agent": "mmspec", "Connection": "close"}
        proxy = self._proxy()
        if proxy is None:
            self._socket = self._connected(self._allowed_addresses())
        else:
            where = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
            self._socket = self._connected(self._addresses(where.hostname or "", where.port or 80))
            login = _login(where)
            if self._parts.scheme == "https":
                self._open_tunnel(login)
            else:
                path = f"http://{host}{path}"
                headers |= login
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            self._socket = context.wrap_socket(self._socket, server_hostname=self._host)
        if self._is_late:  # the timer found no socket to cut, and comes but once
            raise TimeoutError("timed out")
        connection = HTTPConnection(self._host, self._port)
        connection.sock = self._socket
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def _proxy(self) -> str | None:
        """The environment's for this address."""
        proxy = urllib.request.getproxies().get(self._parts.scheme)
        if proxy is None or urllib.request.proxy_bypass(self._host):
            return None
        if not self._limits.allow_private_http:
            raise InputError(
                f"cannot fetch {self._parts.geturl()[:120]!r}: a proxy ({self._parts.scheme}_proxy)"
                " would, so that its address cannot be checked here; expected "
                "inputs.allow_private_http=true, where the proxy keeps private networks out"
            )
        return proxy

    def _open_tunnel(self, login: Mapping[str, str]) -> None:
        """Through the proxy that the socket is connected to."""
        assert self._socket is not None
        where = f"{_bracketed(self._host)}:{self._port}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        lines += [f"{name}: {value}" for name, value in login.items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = HTTPResponse(self._socket, method="CONNECT")
        answer.begin()
        if answer.status != 200:
            raise ValueError(f"the proxy said {answer.status} {answer.reason}")

    def _allowed_addresses(self) -> list[tuple[str, int]]:
        found = self._addresses(self._host, self._port)
        if not self._limits.allow_private_http:
            private = [address for address, _ in found if not is_public(address)]
            if private:
                raise InputError(
                    f"{self._parts.geturl()[:120]!r} leads to {private[0]}, an address of this "
                    "machine or of a private network, which is not asked; download it, or allow "
                    "it: --set inputs.allow_private_http=true"
                )
        return found

    def _addresses(self, host: str, port: int) -> list[tuple[str, int]]:
        """All that the name means now. Raises OSError for one that means nothing."""
        answers = SimpleQueue[list[Any] | Exception]()

        def ask() -> None:
            try:
                answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, ValueError) as error:
                answers.put(error)

        # The resolver has no limit of its own that one could set: it is left behind.
        Thread(target=ask, daemon=True, name="mmspec-resolver").start()
        try:
            found = answers.get(timeout=max(self._deadline - time.monotonic(), 0))
        except Empty as error:
            raise TimeoutError("its name was not resolved in time") from error
        if isinstance(found, Exception):
            raise found
        return [(str(place[0]), port) for *_, place in found]

    def _connected(self, addresses: list[tuple[str, int]]) -> socket.socket:
        """To the first of the addresses that takes it."""
        failure: OSError = OSError("the name has no address")
        for address in addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            try:
                return socket.create_connection(address, timeout=left)
            except OSError as error:
                failure = error
        raise failure

    def _cut(self) -> None:
        """At the deadline, from another thread: a trickle of bytes outlasts any timeout of one."""
        self._is_late = True
        if self._socket is not None:
            try:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS
            except OSError:
                pass  # it was closed a moment before


def is_public(address: str) -> bool:
    """Whether an IP address is one of the whole internet: not of this machine, a private or local
    network, or reserved; also for an IPv4 address inside of an IPv6 one."""
    found = ip_address(address)
    held: list[IPv4Address | IPv6Address] = [found]
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            held = [found.ipv4_mapped]
        elif found in _NAT64:
            held.append(IPv4Address(int(found) & 0xFFFFFFFF))
        elif found not in _GIVEN_OUT:
            return False
        held += [one for one in (found.sixtofour, *(found.teredo or ())) if one is not None]
    is_near = any(one in network for one in held for network in _NEARBY)
    return not is_near and all(one.is_global and not one.is_multicast for one in held)


def _login(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = (urllib.parse.unquote(word or "") for word in (proxy.username, proxy.password))
    return {"Proxy-Authorization": f"Basic {base64.b64encode(':'.join(words).encode()).decode()}"}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
