"""One HTTP request to an address that a stranger chose: bounded, and to no place of ours.

The standard library, not the HTTP client that the service's own client uses: what matters here is
to which address the socket goes. The name is resolved once, every address that comes back is
checked, and the socket goes to a checked one, so that a name which resolves otherwise a moment
later (DNS rebinding) gains nothing. Redirects are not followed, proxies are not asked, and one
deadline holds for all of it, however slowly the other side speaks or its name resolves.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple
from urllib.parse import urlsplit

SECONDS = 15.0  # for one attempt in all: the specification says 15 to 30
RESPONSE_BYTES_MAX = 16 * 1024  # read of an answer; what is kept of it is less
_PART = 4 * 1024
# Of names, under way in this process. The system's resolver cannot be told to stop: it goes on for
# half a minute or so after its attempt has ended, so twice as many as attempts, and some to spare.
LOOK_UPS_MAX = 256
# Addresses of IPv6 that carry one of IPv4: what that is decides (RFC 6052, 3056).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HTTPS, _HTTP = 443, 80

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """The address is one that nothing is sent to."""


class Said(NamedTuple):
    """What came of an attempt.

    Attributes:
        status: The status, None where there was no answer.
        body: The beginning of the answer's body.
        error: What went wrong, None where there was an answer.
        seconds: How long it took.
    """

    status: int | None
    body: bytes
    error: str | None
    seconds: float


class Sender:
    """Posts bodies; holds no state but its settings, so any number of threads may use one."""

    def __init__(
        self,
        *,
        private: bool = False,
        seconds: float = SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Send only where anybody could.

        Args:
            private: Send to private addresses and over plain HTTP, too; for tests and for
                receivers within one's own network.
            seconds: How long one attempt may take.
            tls: Whose certificates are taken; the system's authorities where nothing is said.
        """
        self._private = private
        self._seconds = seconds
        self._tls = tls or ssl.create_default_context()

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Said:
        """Post a body once, and return what came of it; never raises for the other side's sake."""
        began = time.monotonic()
        try:
            status, answer = self._post(url, headers, body, began + self._seconds)
        except (OSError, http.client.HTTPException, Refused, ValueError) as problem:
            why = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
            return Said(None, b"", why, time.monotonic() - began)
        return Said(status, answer, None, time.monotonic() - began)

    def _post(
        self, url: str, headers: dict[str, str], body: bytes, until: float
    ) -> tuple[int, bytes]:
        parts = urlsplit(url)
        host = parts.hostname or ""
        secure = parts.scheme == "https"
        if not (secure or (parts.scheme == "http" and self._private)):
            raise Refused("only https is sent to")
        port = parts.port or (_HTTPS if secure else _HTTP)
        connection = self._connect(host, port, until)
        try:
            if secure:
                connection.settimeout(_left(until))
                connection = self._tls.wrap_socket(connection, server_hostname=host)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            head = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
            head += [f"{name}: {value}" for name, value in headers.items()]
            head += [f"Content-Length: {len(body)}", "", ""]
            connection.settimeout(_left(until))
            connection.sendall("\r\n".join(head).encode("ascii") + body)
            return _answer(connection, until)
        finally:
            connection.close()

    def _connect(self, host: str, port: int, until: float) -> socket.socket:
        """Return a socket to a checked address; the first that takes it."""
        addresses = self.resolve(host, port, until)
        problem: OSError | None = None
        for address in addresses:
            try:
                return socket.create_connection((str(address), port), timeout=_left(until))
            except OSError as failed:
                problem = failed
        raise problem or OSError(f"{host} has no address")

    def resolve(self, host: str, port: int, until: float) -> list[Address]:
        """Return the addresses of a host, each of which may be sent to.

        Raises:
            Refused: One of them may not; a name of ours among others is no accident. Which address
                that is, is not said: who asks may be a stranger to the network he asks about.
            OSError: There are none, or none by that moment of the monotonic clock.
        """
        found = _looked_up(host, port, until)
        addresses = [ipaddress.ip_address(text) for text in found]
        if not (self._private or all(map(is_public, addresses))):
            raise Refused(f"{host} is not at a public address")
        return addresses


def is_public(address: Address) -> bool:
    """Return whether anybody could be at an address: it is not ours, the machine's, a network's."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


_look_ups = threading.BoundedSemaphore(LOOK_UPS_MAX)


def _looked_up(host: str, port: int, until: float) -> list[str]:
    """Return the addresses that a name resolves to, as texts, each once.

    On a thread of its own, which is left behind where it takes too long.
    """
    answer: Future[list[str]] = Future()
    look_ups = _look_ups

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            texts = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found)
            answer.set_result(list(texts))
        except Exception as problem:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(problem)
        finally:
            look_ups.release()

    if not look_ups.acquire(timeout=_left(until)):
        raise TimeoutError("too many names are being resolved")
    threading.Thread(target=look_up, name="tillroll-resolve", daemon=True).start()
    try:
        return answer.result(_left(until))
    except TimeoutError:
        raise TimeoutError(f"{host} was not resolved in time") from None


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left


def _answer(connection: socket.socket, until: float) -> tuple[int, bytes]:
    """Return the status and the beginning of the body.

    Read by ourselves up to the end or the bound, within the one deadline, and only then parsed.
    """
    read = b""
    while len(read) < RESPONSE_BYTES_MAX and not _is_whole(read):
        connection.settimeout(_left(until))
        part = connection.recv(_PART)
        if not part:
            break
        read += part
    response = http.client.HTTPResponse(_Read(read), method="POST")  # type: ignore[arg-type]
    response.begin()
    try:
        body = response.read(RESPONSE_BYTES_MAX)
    except http.client.IncompleteRead as cut:
        body = cut.partial
    return response.status, body


def _is_whole(read: bytes) -> bool:
    """Return whether an answer has ended, as far as its head tells; a close always ends it."""
    head, ended, body = read.partition(b"\r\n\r\n")
    if not ended:
        return False
    if head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):
        return _is_whole(body)  # an interim answer: the real one follows
    if head[9:12] in (b"204", b"304"):
        return True
    lower = head.lower()
    if b"\r\ntransfer-encoding:" in lower:
        return body.endswith(b"0\r\n\r\n")
    _, found, rest = lower.partition(b"\r\ncontent-length:")
    length = rest.partition(b"\r\n")[0].strip()
    return bool(found) and length.isdigit() and len(body) >= int(length)


class _Read:
    """What was read, for the standard library's parser, which asks a socket for a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


__all__ = ["Refused", "Said", "Sender", "is_public"]
