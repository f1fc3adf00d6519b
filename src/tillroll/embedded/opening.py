"""Opening ledgers: from a URL to a store, from a store to an engine, and closing at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import weakref
from typing import TYPE_CHECKING

from tillroll.embedded.ledger import AsyncLedger, Ledger
from tillroll.engine import WAITING_MAX, Engine, now
from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput, TillrollError
from tillroll.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tillroll.stores.base import Library, Store


def open_store(
    url: str | os.PathLike[str], *, scale: int | None = None, library: Library = "apsw"
) -> Store:
    """Return the store of a URL: `sqlite:///file.db`, `memory://`, or a path to a SQLite file.

    Raises:
        InvalidInput: No such kind of store.
        StoreUnavailable: The store cannot be used; nothing was written.
    """
    text = os.fspath(url)
    if library != "apsw" and isinstance(url, str) and text.startswith(("memory://", *_POSTGRES)):
        raise InvalidInput("a library can be chosen for SQLite only")
    if isinstance(url, str) and text == "memory://":
        return MemoryStore(scale=scale)
    if isinstance(url, str) and text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    elif isinstance(url, str) and text.startswith(_POSTGRES):
        return _open_postgres(text, scale=scale)
    elif isinstance(url, str) and "://" in text:
        raise InvalidInput(
            f"no store for {text.split('://')[0]!r}: use sqlite:///file.db, "
            f"postgresql://user@host/database or memory://"
        )
    if text in ("", ":memory:"):
        raise InvalidInput("name a file, such as sqlite:///credits.db, or use memory://")
    from tillroll.stores.sqlite import SqliteStore  # noqa: PLC0415 - only who uses it loads it

    return SqliteStore(text, scale=scale, library=library)


_POSTGRES = ("postgresql://", "postgres://", "postgresql+psycopg://")


def _open_postgres(url: str, *, scale: int | None) -> Store:
    try:
        from tillroll.stores.postgres import PostgresStore  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise InvalidInput(
            f"PostgreSQL needs psycopg: pip install 'tillroll[postgres]' ({problem})"
        ) from None
    return PostgresStore(url.replace("+psycopg://", "://", 1), scale=scale)


def open_ledger(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
    library: Library = "apsw",
) -> Ledger:
    """Open a ledger, creating its store where there is none.

    Args:
        url: `sqlite:///credits.db` (a file beside you), `sqlite:////var/lib/credits.db`
            (absolute), a path, or `memory://`.
        project: The isolation boundary; accounts of two projects never meet.
        scale: Decimals of the units, fixed when the store is made; 6 if left out.
        clock: Returns the time as an aware datetime; the system's clock if left out.
        waiting_max: How many requests may wait before new ones are turned away.
        library: Which copy of SQLite to use: "apsw", which carries a current one, or "sqlite3",
            Python's own. A process that opens the file by other means as well, as whoever joins
            does, must use the copy that those use.

    Raises:
        StoreUnavailable: The store cannot be used; nothing was written.
        SchemaMismatch: It was written by a newer tillroll.
        InvalidInput: No such kind of store, or another scale than the store has.
    """
    return Ledger(_engine(url, project, scale, clock, waiting_max, library))


def open_async(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
    library: Library = "apsw",
) -> AsyncLedger:
    """Open a ledger for an event loop; see `open`."""
    return AsyncLedger(_engine(url, project, scale, clock, waiting_max, library))


def _engine(
    url: str | os.PathLike[str],
    project: str,
    scale: int | None,
    clock: Callable[[], datetime] | None,
    waiting_max: int,
    library: Library,
) -> Engine:
    ticks = now if clock is None else functools.partial(_ticks, clock)
    store = open_store(url, scale=scale, library=library)
    engine = Engine(store, project=project, clock=ticks, waiting_max=waiting_max)
    _OPEN.add(engine)
    return engine


def _ticks(clock: Callable[[], datetime]) -> int:
    return calendar.instant(clock(), "clock")


# Ledgers left open are closed in order when the interpreter ends, so that waiting callers are
# answered and the file is left checkpointed.
_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_OPEN):
        with contextlib.suppress(TillrollError):
            engine.close()
