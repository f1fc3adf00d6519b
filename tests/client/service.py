"""A whole service in this process: the API over an engine, reached without sockets.

`Service` is driven on an event loop in a thread of its own, so that a blocking client can speak
with it. Its clock is the test's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

import httpx2

import tillroll
from tillroll.api import keys
from tillroll.api.app import Service
from tillroll.embedded import open_engine

Clock = Callable[[], datetime]
PROJECT = "default"


def now() -> datetime:
    return datetime.now(UTC)


class Running:
    """A service over a ledger in memory or in a file; a context manager."""

    def __init__(
        self, url: str = "memory://", clock: Clock = now, scopes: tuple[str, ...] = ("admin",)
    ) -> None:
        self.engine = open_engine(url, clock=clock)
        self.service = Service(self.engine)
        self.ledger = tillroll.Ledger(self.engine)
        self.api_key = self.engine.perform(lambda tx: self._key(tx, scopes))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service")
        self._thread.start()

    def _key(self, tx: Any, scopes: tuple[str, ...]) -> str:
        at = self.engine.clock()
        keys.put_project(tx, PROJECT, at)
        key, secret = keys.new_key(PROJECT, "live", name="test", scopes=list(scopes), at=at)
        keys.put_key(tx, key)
        return secret

    def client(self, **options: Any) -> tillroll.Client:
        """Return a client of this service, of which no request leaves the process."""
        options = {"transport": self.transport(), **options}
        return tillroll.Client("http://service", api_key=self.api_key, **options)

    def transport(self) -> httpx2.BaseTransport:
        return _Threaded(self._loop, httpx2.ASGITransport(self.service))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Threaded(httpx2.BaseTransport):
    """Carries the requests of blocking clients to the loop of a service."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: httpx2.AsyncBaseTransport
    ) -> None:
        self._loop = loop
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return asyncio.run_coroutine_threadsafe(self._handle(request), self._loop).result(60)

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        whole = httpx2.Request(
            request.method, request.url, headers=request.headers.raw, content=request.read()
        )
        response = await self._transport.handle_async_request(whole)
        body = await response.aread()
        return httpx2.Response(response.status_code, headers=response.headers.raw, content=body)
