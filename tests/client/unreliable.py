"""A transport that fails on purpose, in front of a service that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import httpx2

Fault = Literal["fine", "refuse", "cut", "lose", "busy", "gateway", "garbage"]


class Unreliable(httpx2.BaseTransport):
    """Passes requests on as told, and remembers them.

    `faults` are used up first, then `always` holds: refuse a connection, cut before the service
    has the request, lose the answer after it has, or answer in its place.
    """

    def __init__(self, behind: httpx2.BaseTransport, always: Fault = "fine") -> None:
        self.behind = behind
        self.always: Fault = always
        self.faults: list[Fault] = []
        self.spared: Callable[[httpx2.Request], bool] = lambda _: False
        self.requests: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        spared = self.spared(request)
        fault = "fine" if spared else self.faults.pop(0) if self.faults else self.always
        match fault:
            case "refuse":
                raise httpx2.ConnectError("refused on purpose")
            case "cut":
                raise httpx2.WriteError("cut on purpose")
            case "busy":
                return httpx2.Response(503, headers={"retry-after": "0"}, content=b"")
            case "gateway":
                return httpx2.Response(502, html="<h1>Bad gateway</h1>")
        response = self.behind.handle_request(request)
        if fault == "lose":
            raise httpx2.ReadError("lost on purpose")
        if fault == "garbage":
            return httpx2.Response(200, content=response.read()[:20])
        return response

    @property
    def keys(self) -> list[str]:
        """The request ids of the writes that were sent."""
        found = [request.headers.get("idempotency-key") for request in self.requests]
        return [key for key in found if key is not None]

    def close(self) -> None:
        self.behind.close()
