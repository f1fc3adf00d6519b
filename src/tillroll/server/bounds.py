"""HTTP/1.1 with bounds: heads that end, requests that arrive in time, errors as problems.

The server's own protocol parses; this one counts and watches the clock, so that whoever sends
slowly, endlessly or nonsense holds a connection for a while and nothing else.
"""

from __future__ import annotations

import asyncio
import weakref
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tillroll.wire import problems
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from tillroll.ledger.errors import TillrollError

HEAD_MAX = 32 * 1024
LOOK_SECONDS = 1.0
JOINED_MAX = 64 * 1024  # a connection; as much as the buffer below takes before it has one wait


class BoundedHttp(HttpToolsProtocol):
    """One connection; `request_seconds` is how long a request may take to arrive."""

    request_seconds = 30.0
    _all: ClassVar[weakref.WeakSet[BoundedHttp]] = weakref.WeakSet()
    _watching: ClassVar[asyncio.TimerHandle | None] = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a first request."""
        joining = cast("asyncio.Transport", Joining(transport, self.loop))
        super().connection_made(joining)
        self._arriving_since: float | None = self.loop.time()
        self._head_bytes = 0
        self._all.add(self)
        if BoundedHttp._watching is None:
            BoundedHttp._watching = self.loop.call_later(LOOK_SECONDS, _watch, self.loop)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless a head has grown beyond all bounds."""
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_MAX and not self.transport.is_closing():
            self._turn_away(problems.HeadersTooLarge(f"a head may have {HEAD_MAX} bytes"))

    def on_message_begin(self) -> None:
        """Note when a request began to arrive."""
        super().on_message_begin()
        if self._arriving_since is None:
            self._arriving_since = self.loop.time()

    def on_headers_complete(self) -> None:
        """Stop counting the head; what follows is a body, which has bounds of its own."""
        size = len(self.url) + sum(map(len, chain.from_iterable(self.headers)))
        self._head_bytes = -1
        if size > HEAD_MAX:
            self._turn_away(problems.HeadersTooLarge(f"a head may have {HEAD_MAX} bytes"))
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is here."""
        self._arriving_since = None
        self._head_bytes = 0
        if self.cycle is not None:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, where there is somebody to take it."""
        if self.cycle is not None:
            super().on_body(body)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says more
        """Answer what is no HTTP."""
        self._turn_away(problems.MalformedRequest("this is not HTTP/1.1 as it is written"))

    def look(self, now: float) -> None:
        """Close the connection if a request does not get on."""
        since = self._arriving_since
        if since is None or now - since < self.request_seconds or self.transport.is_closing():
            return
        self._turn_away(problems.RequestTimeout("the request did not arrive in time"))

    def _turn_away(self, problem: TillrollError) -> None:
        """Answer with a problem where nothing was answered yet, and hang up."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            shown: dict[str, Any] = problems.document(problem)
            body = render(shown)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (shown["status"], shown["code"].encode(), problems.MEDIA_TYPE, len(body), body)
            )
        self.transport.close()


class Joining:
    """A connection that sends by one call to the system what is written in one turn of the loop.

    The server writes the head and the body of an answer apart, and each call costs as much as
    making the answer: it wakes whoever waits at the other end.

    What waits here is not yet in the buffer below, whose marks have a stream wait for who reads
    slowly: so a stream that writes on without giving way has at most `JOINED_MAX` bytes, and one
    part, waiting here. What is more is sent at once, and then the marks hold.
    """

    def __init__(self, below: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Send through the transport below; everything but sending is its own."""
        self._below = below
        self.is_closing = below.is_closing  # asked with every answer
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        """Return what else a transport can do."""
        return getattr(self._below, name)

    def write(self, data: bytes) -> None:
        """Send this when the loop comes round, or now where too much waits."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)
        self._size += len(data)
        if self._size > JOINED_MAX:
            self._send()

    def close(self) -> None:
        """Send what was written, then hang up."""
        self._send()
        self._below.close()

    def _send(self) -> None:
        if self._parts:
            self._below.write(b"".join(self._parts))
            self._parts.clear()
            self._size = 0


def _watch(loop: asyncio.AbstractEventLoop) -> None:
    now = loop.time()
    for connection in list(BoundedHttp._all):  # noqa: SLF001 - its own module
        if connection.transport is not None:
            connection.look(now)
    BoundedHttp._watching = loop.call_later(LOOK_SECONDS, _watch, loop)  # noqa: SLF001
