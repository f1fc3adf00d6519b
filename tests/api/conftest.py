"""The service within the test's own process, on SQLite and on PostgreSQL, and as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tillroll.api import Service, keys
from tillroll.embedded import open_engine
from tillroll.engine import Engine

TEMPLATE = "https://shop.example/{project}/{mode}?account={account}"


class Api:
    """A service and who calls it; `call` is one request, answered.

    Attributes:
        service: The application itself.
        admin: An admin key of the live mode of project `default`.
    """

    def __init__(self, engine: Engine, **how: Any) -> None:
        self.engine = engine
        self.service = Service(engine, topup_url=TEMPLATE, **how)
        engine.observe = self.service.notice
        self.loop = asyncio.new_event_loop()
        self.admin = self.key()
        transport = httpx2.ASGITransport(self.service, raise_app_exceptions=False)
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://tillroll.test")

    def key(
        self, project: str = "default", mode: keys.Mode = "live", scopes: str = "admin", **how: Any
    ) -> str:
        """Make a key of a project, which is made as well; return its secret."""
        at = self.engine.clock()
        key, secret = keys.new_key(project, mode, name="test", scopes=scopes.split(), at=at, **how)
        self.engine.perform(lambda tx: (keys.put_project(tx, project, at), keys.put_key(tx, key)))
        return secret

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        once: str | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx2.Response:
        """Make one call with the admin's key, or another; `once` is the Idempotency-Key."""
        sent = {"authorization": f"Bearer {key or self.admin}"}
        if once is not None:
            sent["idempotency-key"] = once
        how: dict[str, Any] = {"headers": {**sent, **(headers or {})}}
        if content is not None:
            how["content"] = content
            how["headers"].setdefault("content-type", "application/json")
        elif body is not None:
            how["json"] = body
        return self.run(self._client.request(method, path, **how))

    def run(self, work: Any) -> Any:
        """Await something on the loop that the service lives on."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.service.stop()
        self.run(self._client.aclose())
        self.service.close()
        self.engine.close()
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/credits.db"


@pytest.fixture
def api(store_url: str) -> Iterator[Api]:
    service = Api(open_engine(store_url))
    yield service
    service.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """A function that makes a service on SQLite with settings of its own."""
    with contextlib.ExitStack() as stack:

        def make(*, waiting_max: int = 20_000, clock: Any = None, **how: Any) -> Api:
            engine = open_engine(
                f"sqlite:///{tmp_path}/small.db", waiting_max=waiting_max, clock=clock
            )
            made = Api(engine, **how)
            stack.callback(made.close)
            return made

        yield make


class Served:
    """`tillroll serve` as a process of its own, at a port of its own."""

    def __init__(self, url: str, *options: str, **environ: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = [
            *(str(Path(sys.executable).with_name("tillroll")), "serve", "--db", url),
            *("--port", str(self.port), *options),
        ]
        self._environ = {**os.environ, "TILLROLL_LOG_LEVEL": "warning", **environ}
        self.key = ""
        self.start()

    def start(self) -> None:
        """Start, or start again; return when it answers."""
        self.process = subprocess.Popen(
            self._arguments, stdout=subprocess.PIPE, text=True, env=self._environ
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().startswith("tr_"):
                self.key = line.strip()
            if line.startswith("Serving"):
                break
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the service did not start")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """A function that serves a store, ended after the test."""
    served: list[Served] = []

    def start(url: str | None = None, *options: str, **environ: str) -> Served:
        served.append(Served(url or f"sqlite:///{tmp_path}/served.db", *options, **environ))
        return served[-1]

    yield start
    for one in served:
        one.stop(signal.SIGKILL)
