"""What both drivers know of httpx2: how a call becomes a request, and what its errors mean.

Imported when a client is made, not with tillroll: httpx2 is an extra.
"""

from __future__ import annotations

import time

import httpx2

from tillroll.client.conversation import Call, Lost, Reply
from tillroll.ledger.errors import InvalidInput

ANSWER_BYTES_MAX = 256 * 2**20  # 1,000 entries are about 1 MB; this only ends what never ends
IDLE_SECONDS = 15.0  # a connection unused for longer is not used again: servers close them
KEY_LENGTH_MAX = 512

# What is raised before any of the request has left.
_UNSENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.LocalProtocolError,
    httpx2.UnsupportedProtocol,
)


class Wire:
    """Where the service is, and how a call is put on the wire."""

    RequestError = httpx2.RequestError

    def __init__(self, url: str, api_key: str, version: str, connections_max: int) -> None:
        """Speak with the service at this address.

        Raises:
            InvalidInput: It is none, or the key cannot be one.
        """
        self.base = _base(url)
        self.limits = _limits(connections_max)
        sound = isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
        if not (sound and 1 <= len(api_key) <= KEY_LENGTH_MAX and " " not in api_key):
            raise InvalidInput("api_key must be a key of the service, such as tr_live_...")
        self.headers = {
            "Authorization": f"Bearer {api_key}",
            "Accept": "application/json",
            "User-Agent": f"tillroll-python/{version}",
        }

    def client(self, transport: httpx2.BaseTransport | None) -> httpx2.Client:
        """Return what keeps connections for threads."""
        return httpx2.Client(headers=self.headers, limits=self.limits, transport=transport)

    def async_client(self, transport: httpx2.AsyncBaseTransport | None) -> httpx2.AsyncClient:
        """Return what keeps connections for an event loop."""
        return httpx2.AsyncClient(headers=self.headers, limits=self.limits, transport=transport)

    def request(
        self, http: httpx2.Client | httpx2.AsyncClient, call: Call, seconds: float
    ) -> httpx2.Request:
        """Return the request that carries a call; equal in every attempt."""
        headers: list[tuple[bytes, bytes]] = []
        if call.body is not None:
            headers.append((b"Content-Type", b"application/json"))
        if call.request_id is not None:
            headers.append((b"Idempotency-Key", call.request_id.encode()))
        return http.build_request(
            call.method,
            self.base + call.path,
            content=call.body,
            headers=headers,
            timeout=httpx2.Timeout(seconds),
        )

    @staticmethod
    def answer(seconds: float) -> Answer:
        """Return what collects an answer that has so many seconds."""
        return Answer(seconds)

    @staticmethod
    def lost(error: httpx2.RequestError) -> Lost:
        """Return what an error of the transport says of the request."""
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return Lost(sent=not isinstance(error, _UNSENT), why=why)


def _base(url: str) -> str:
    """Return the address of a service without a slash at its end."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as problem:
        raise InvalidInput(f"that is no address of a service: {problem}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"a service is at http:// or https://, not at {url[:40]!r}")
    if parsed.query or parsed.fragment or parsed.userinfo:
        raise InvalidInput("the address of a service has no query, fragment or password")
    return url.rstrip("/")


def _limits(connections_max: int) -> httpx2.Limits:
    """Return how many connections are kept, and for how long."""
    if type(connections_max) is not int or connections_max < 1:
        raise InvalidInput("connections_max must be a whole number greater than zero")
    return httpx2.Limits(
        max_connections=connections_max,
        max_keepalive_connections=connections_max,
        keepalive_expiry=IDLE_SECONDS,
    )


class Answer:
    """An answer as it comes in, piece by piece, within a time and a size."""

    def __init__(self, seconds: float) -> None:
        """Give it so many seconds from now."""
        self._ends = time.monotonic() + seconds
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> Lost | None:
        """Take a piece; return why this is not going to be an answer, if it is not."""
        self._parts.append(part)
        self._size += len(part)
        if time.monotonic() > self._ends:
            return Lost(sent=True, why="the answer did not end in time")
        if self._size > ANSWER_BYTES_MAX:
            return Lost(sent=True, why=f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
        return None

    def reply(self, response: httpx2.Response) -> Reply:
        """Return it whole."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, b"".join(self._parts))
