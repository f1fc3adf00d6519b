"""A whole service in this process, for tests of what speaks with one: no port, no second process.

    from tillroll.testing.served import Served

    with Served() as served, served.client() as client:
        client.grant("acme", 100)

The API runs on an event loop in a thread of its own, so that a blocking client can speak with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import httpx2

from tillroll.api import keys
from tillroll.api.app import Service
from tillroll.client import AsyncClient, Client
from tillroll.embedded import Ledger, open_engine

if TYPE_CHECKING:
    from tillroll.stores.base import Writer

PROJECT = "default"
ANSWER_SECONDS_MAX = 60


class Served:
    """A service over a ledger in memory or elsewhere; a context manager.

    Attributes:
        ledger: The ledger that it serves, beside the service.
        service: The application (ASGI).
        api_key: A key of its project `default`, in live mode.
    """

    def __init__(
        self,
        url: str = "memory://",
        *,
        clock: Callable[[], datetime] | None = None,
        scopes: Sequence[str] = ("admin",),
    ) -> None:
        """Serve the ledger of this URL.

        Args:
            url: As for `tillroll.open`.
            clock: Returns the time as an aware datetime; the system's clock if left out.
            scopes: What the key may do: "consume", "read", "grant", "admin".
        """
        self.engine = open_engine(url, clock=clock)
        self.service = Service(self.engine)
        self.ledger = Ledger(self.engine)
        self.api_key = self.engine.perform(lambda tx: self._key(tx, scopes))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)
        self._thread.start()

    def _key(self, tx: Writer, scopes: Sequence[str]) -> str:
        at = self.engine.clock()
        keys.put_project(tx, PROJECT, at)
        key, secret = keys.new_key(PROJECT, "live", name="test", scopes=list(scopes), at=at)
        keys.put_key(tx, key)
        return secret

    def client(self, **options: Any) -> Client:
        """Return a client of this service; options as for `tillroll.Client`."""
        options = {"transport": self.transport(), **options}
        return Client("http://served", api_key=self.api_key, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """Return a client of this service for the event loop of the caller."""
        options = {"transport": httpx2.ASGITransport(self.service), **options}
        return AsyncClient("http://served", api_key=self.api_key, **options)

    def transport(self) -> httpx2.BaseTransport:
        """Return what carries the requests of a blocking client; a test may put faults before."""
        return _Threaded(self._loop, httpx2.ASGITransport(self.service))

    def close(self) -> None:
        """Stop the service and close its ledger."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.engine.close()

    def __enter__(self) -> Self:
        """Use it as a context manager that closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the service."""
        self.close()


class _Threaded(httpx2.BaseTransport):
    """Carries the requests of blocking clients to the loop of a service."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: httpx2.AsyncBaseTransport
    ) -> None:
        """Carry them to a service on this loop."""
        self._loop = loop
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        answer = asyncio.run_coroutine_threadsafe(self._handle(request), self._loop)
        return answer.result(ANSWER_SECONDS_MAX)

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        whole = httpx2.Request(
            request.method, request.url, headers=request.headers.raw, content=request.read()
        )
        response = await self._transport.handle_async_request(whole)
        body = await response.aread()
        return httpx2.Response(response.status_code, headers=response.headers.raw, content=body)
