"""The application that a server runs: opens the engine, serves the API, closes in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

import tillroll
from tillroll import jobs
from tillroll.api.app import Service
from tillroll.api.calls import Answer
from tillroll.embedded import open_engine
from tillroll.ledger.errors import NotFound, TillrollError
from tillroll.server import logs, metrics, paying, traces
from tillroll.server.settings import Settings
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from tillroll.api.agents import Agents
    from tillroll.api.calls import Call
    from tillroll.engine import Batch, Engine
    from tillroll.jobs import Turn

GIVEN = "TILLROLL_SETTINGS"  # where the parent leaves the settings for its workers
PARENT = "TILLROLL_PARENT"  # where it leaves its process id, if it has several
SERVED = "served"  # the file by which workers tell their parent that they began to serve
PARENT_SECONDS = 1.0  # between two looks at whether it is still there
MCP_PATH = "/mcp"
READY_SECONDS = 5.0
SLOW_SECONDS = 1.0
# Garbage is looked for when so many objects are new: what lives as long as the process (the
# remembered accounts, the routes) is not gone through again and again.
GC_THRESHOLD = (50_000, 20, 100)

log = structlog.get_logger("tillroll")


def create() -> Application:
    """Return the application of a worker, with the settings that its parent left."""
    settings = msgspec.json.decode(os.environ[GIVEN], type=Settings)
    logs.configure(settings)
    return Application(settings)


class Application:
    """An ASGI application: the lifespan of the engine around the calls of the API."""

    def __init__(self, settings: Settings) -> None:
        """Be ready to start; nothing is opened yet."""
        self.settings = settings
        self._metrics = metrics.Metrics(settings.waiting_max)
        self._traces: traces.Traces | None = None
        self._engine: Engine | None = None
        self._service: Service | None = None
        self._agents: Agents | None = None
        self._stack = contextlib.AsyncExitStack()
        self._worker: jobs.Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve a call, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert scope["type"] == "http", "no other is asked for"
        assert self._service is not None
        if self._agents is not None and scope["path"] == MCP_PATH:
            await self._agents(scope, receive, send)
        else:
            await self._service(scope, receive, send)

    async def _live(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        await receive()
        try:
            await self.start()
        except TillrollError as problem:
            log.critical("cannot start", code=problem.code, problem=str(problem))
            await send({"type": "lifespan.startup.failed", "message": str(problem)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def start(self) -> None:
        """Open the engine and begin the jobs.

        Raises:
            StoreUnavailable, SchemaMismatch: The store cannot be used.
        """
        settings = self.settings
        self._traces = traces.begin()
        self._engine = engine = await asyncio.to_thread(
            open_engine,
            settings.database_url,
            waiting_max=settings.waiting_max,
            read_url=settings.read_database_url,
        )
        desks = paying.desks(settings, engine)
        self._service = service = Service(
            engine,
            desks=desks,
            public={"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._page},
            topup_url=settings.topup_url,
            per_key_max=settings.per_key_max,
            webhooks_private=settings.webhooks_private,
            done=self._called,
        )
        engine.observe = self._observe
        self._worker = jobs.Worker(
            engine,
            [
                *jobs.standard(
                    engine,
                    upkeep_seconds=settings.upkeep_seconds,
                    event_days=settings.event_days,
                    private=settings.webhooks_private,
                ),
                *paying.jobs(desks),
            ],
            tell=self._turned,
        )
        self._task = asyncio.create_task(self._worker.run())
        if PARENT in os.environ:
            self._watch = asyncio.create_task(stop_without(int(os.environ[PARENT])))
            _tell_parent()
        self._agents = _agents(service) if settings.mcp else None
        if self._agents is not None:
            await self._stack.enter_async_context(self._agents.run())
        _on_stop(service.stop)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        log.info("serving", store=engine.store.url, version=tillroll.__version__, pid=os.getpid())

    async def stop(self) -> None:
        """End the jobs, answer what waits, close the store."""
        assert self._engine is not None
        assert self._worker is not None
        assert self._task is not None
        assert self._service is not None
        if self._watch is not None:
            self._watch.cancel()
        self._service.stop()
        await self._stack.aclose()
        self._worker.stop()
        await self._task
        with contextlib.suppress(TillrollError):  # others find the leases over a little later
            await asyncio.to_thread(self._worker.close)
        await asyncio.to_thread(self._service.close)
        await asyncio.to_thread(self._engine.close)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        log.info("stopped", pid=os.getpid())

    # ------------------------------------------------------------ what needs no key

    async def _livez(self) -> Answer:
        return Answer(render({"ok": True, "checks": {"process": "ok"}}))

    async def _readyz(self) -> Answer:
        checks = await self._checks()
        ok = all(found == "ok" for found in checks.values())
        return Answer(render({"ok": ok, "checks": checks}), 200 if ok else 503)

    async def _checks(self) -> dict[str, str]:
        """Return what is ready, and what is the matter with the rest."""
        assert self._engine is not None
        assert self._worker is not None
        try:
            async with asyncio.timeout(READY_SECONDS):
                moved = await asyncio.to_thread(_look, self._engine)
            database = "ok"
            writing = "ok" if moved is None else f"the ledger was moved to {moved}"
        except (TillrollError, TimeoutError) as problem:
            database = f"{type(problem).__name__}: {problem}"
            writing = "unknown"
        return {
            "database": database,
            "schema": "ok" if database == "ok" else "unknown",  # opening refuses any other
            "writing": writing,
            "upkeep": "ok" if self._worker.is_alive() else "has not done a round for too long",
        }

    async def _page(self) -> Answer:
        if not self.settings.metrics:
            raise NotFound("there is nothing at this address")
        page = await asyncio.to_thread(self._metrics.page)
        return Answer(page, media_type=metrics.MEDIA_TYPE)

    # ------------------------------------------------------------ what is told

    def _observe(self, batch: Batch) -> None:
        assert self._service is not None
        self._metrics.batch(batch)
        if self._traces is not None:
            self._traces.batch(batch)
        self._service.notice(batch)

    def _turned(self, turn: Turn) -> None:
        self._metrics.turned(turn)
        problem = turn.problem
        if isinstance(problem, TillrollError):
            name = f"{turn.job} failed"  # "upkeep failed" is what the runbook looks for
            log.warning(name, code=problem.code, problem=str(problem))
        elif problem is not None:
            log.error("job failed", job=turn.job, exc_info=problem)

    def _called(
        self, call: Call | None, status: int, seconds: float, problem: Exception | None
    ) -> None:
        route = "none" if call is None else call.route.name
        self._metrics.called(route, status, seconds)
        if self._traces is not None and call is not None:
            self._traces.called(call, status, seconds, problem)
        failed = status >= 500  # noqa: PLR2004 - where the service is at fault
        if not (failed or self.settings.access_log or seconds > SLOW_SECONDS):
            return
        facts: dict[str, Any] = {"route": route, "status": status, "seconds": round(seconds, 6)}
        if call is not None and call.key is not None:
            facts |= {"key": call.key.id, "project": call.key.project, "mode": call.key.mode}
        if isinstance(problem, TillrollError):
            facts["code"] = problem.code
        if failed and problem is not None and not isinstance(problem, TillrollError):
            log.error("call failed", exc_info=problem, **facts)
        elif failed:
            log.error("call failed", problem=str(problem), **facts)
        else:
            log.info("call", **facts)


def _look(engine: Engine) -> str | None:
    """Read from the store; return where the ledger was moved to, None where it is here."""
    with engine.store.read() as reader:
        return reader.moved_to()


def _tell_parent() -> None:
    """Have the parent know that one of its workers could start."""
    Path(os.environ[metrics.FOLDER], SERVED).touch()


async def stop_without(parent: int) -> None:
    """Have this process stop in order once its parent is gone.

    One that was killed tells its workers nothing. They would keep the port, so that no other could
    take its place, and nobody would end or replace them.
    """
    while os.getppid() == parent:  # noqa: ASYNC110 - who was killed sets no event
        await asyncio.sleep(PARENT_SECONDS)
    log.critical("the parent process is gone; stopping", parent=parent, pid=os.getpid())
    signal.raise_signal(signal.SIGTERM)


def _agents(service: Service) -> Agents | None:
    """Return what answers agents, None where the package is not there."""
    if importlib.util.find_spec("mcp") is None:
        return None
    from tillroll.api.agents import Agents  # noqa: PLC0415 - an extra, and slow to import

    return Agents(service, MCP_PATH)


def _on_stop(act: Callable[[], None]) -> None:
    """Have something done as soon as the server is told to stop, before it waits for its calls."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not the main thread: the host stops us
            signal.signal(number, _first(act, signal.getsignal(number)))


def _first(act: Callable[[], None], then: Any) -> Callable[[int, Any], None]:
    def handle(number: int, frame: Any) -> None:
        act()
        if callable(then):
            then(number, frame)

    return handle
