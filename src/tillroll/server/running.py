"""Starting the server, with one worker or several, and making the first key."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvicorn

from tillroll.api import keys
from tillroll.embedded import open_engine
from tillroll.server import logs, metrics
from tillroll.server.app import GIVEN, PARENT, SERVED
from tillroll.server.bounds import BoundedHttp

if TYPE_CHECKING:
    from tillroll.engine import Engine
    from tillroll.server.settings import Settings
    from tillroll.stores.base import Writer

FIRST_PROJECT = "default"
BACKLOG = 2_048


def first_key(settings: Settings) -> str | None:
    """Make the first project and an admin key for it; None where there are keys already.

    Raises:
        StoreUnavailable, OutcomeUnknown: The store cannot be used.
    """
    engine = open_engine(settings.database_url, waiting_max=settings.waiting_max)
    try:
        with engine.store.read_primary() as reader:
            if keys.keys_in(reader):
                return None
        return engine.perform(lambda tx: _first(tx, engine))
    finally:
        engine.close()


def _first(tx: Writer, engine: Engine) -> str | None:
    if keys.keys_in(tx):
        return None  # another process was faster
    at = engine.clock()
    keys.put_project(tx, FIRST_PROJECT, at)
    key, secret = keys.new_key(FIRST_PROJECT, "live", name="first", scopes=["admin"], at=at)
    keys.put_key(tx, key)
    return secret


def serve(settings: Settings) -> bool:
    """Serve until told to stop, and return whether it did; calls under way are answered first.

    SIGHUP replaces the workers one by one, where there are several: none is ended before the one
    that takes its place answers. Where there is one, it stops in order, for whoever started it to
    start it again. Workers whose parent was killed stop by themselves, once they have answered.
    """
    logs.configure(settings)
    if settings.workers == 1 and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    os.environ.pop(PARENT, None)
    os.environ[GIVEN] = msgspec.json.encode(settings).decode()
    BoundedHttp.request_seconds = settings.request_seconds
    if settings.workers == 1:
        return _run(settings)
    with tempfile.TemporaryDirectory(prefix="tillroll-metrics-") as folder:
        os.environ[metrics.FOLDER] = folder
        os.environ[PARENT] = str(os.getpid())
        # Of workers that could not start, the server says nothing to whoever started it.
        return _run(settings) and Path(folder, SERVED).exists()


def _run(settings: Settings) -> bool:
    """Return whether the server could start; it exits where not, with what is a refusal here."""
    try:
        uvicorn.run(
            "tillroll.server.app:create",
            factory=True,
            host=settings.host,
            port=settings.port,
            uds=settings.socket,
            workers=settings.workers,
            http=BoundedHttp,
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,  # nobody asks who called, or how
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=settings.shutdown_seconds or None,
            timeout_keep_alive=75,
            timeout_worker_healthcheck=60,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
    except SystemExit as ended:
        return not ended.code
    return True
