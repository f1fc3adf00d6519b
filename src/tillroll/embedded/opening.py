"""Opening ledgers: from a URL to a store, from a store to an engine, and closing at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import weakref
from typing import TYPE_CHECKING, Literal

from tillroll.embedded.ledger import AsyncLedger, Ledger
from tillroll.engine import WAITING_MAX, Engine, now
from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput, OutcomeUnknown, TillrollError
from tillroll.stores.base import CommitUncertain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from tillroll.copying import Copied
    from tillroll.stores.base import Library, Migrated, Store


def open_store(
    url: str | os.PathLike[str],
    *,
    scale: int | None = None,
    create: bool = True,
    library: Library = "apsw",
    project: str | None = None,
    read_url: str | None = None,
) -> Store:
    """Return the store of a URL: SQLite (or the path of a file), PostgreSQL, or `memory://`.

    Args:
        url: `sqlite:///file.db`, `file.db`, `postgresql://user@host/database`, `memory://`.
        scale: Decimals of the units, fixed when the store is made.
        create: Make the file or the tables where there are none.
        library: Which copy of SQLite opens a file; see `open_ledger`.
        project: Which one it is opened for, where not for all; PostgreSQL may have to be told.
        read_url: PostgreSQL only: where to read from, such as a standby.

    Raises:
        InvalidInput: No such kind of store.
        StoreUnavailable: The store cannot be used; nothing was written.
    """
    check_urls(url, read_url)
    kind, place = _place(url)
    if library != "apsw" and kind != "sqlite":
        raise InvalidInput("a library can be chosen for SQLite only")
    if kind == "postgresql":
        with _needing_psycopg():
            from tillroll.stores.postgres import PostgresStore  # noqa: PLC0415 - an extra
        where = None if read_url is None else _read_place(read_url)
        return PostgresStore(place, scale=scale, read_url=where, project=project, migrate=create)
    if kind == "memory":
        from tillroll.stores.memory import MemoryStore  # noqa: PLC0415 - only who uses it loads it

        return MemoryStore(scale=scale)
    from tillroll.stores.sqlite import SqliteStore  # noqa: PLC0415 - only who uses it loads it

    return SqliteStore(place, scale=scale, create=create, library=library)


def check_urls(url: str | os.PathLike[str], read_url: str | None = None) -> None:
    """Make sure that these name a kind of store, and one that can be read from elsewhere.

    Raises:
        InvalidInput: They do not.
    """
    kind, _ = _place(url)
    if read_url is None:
        return
    if kind != "postgresql":
        raise InvalidInput(f"read_url is for standbys of PostgreSQL; {kind} has none")
    _read_place(read_url)


def _place(url: str | os.PathLike[str]) -> tuple[str, str]:
    """Return what kind of store a URL names, and where it is: a path, or a URL of libpq's."""
    text = os.fspath(url)
    if isinstance(url, str) and text == "memory://":
        return "memory", ""
    if isinstance(url, str) and text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    elif isinstance(url, str) and text.startswith(_POSTGRES):
        return "postgresql", text.replace("+psycopg://", "://", 1)
    elif isinstance(url, str) and "://" in text:
        raise InvalidInput(
            f"no store for {text.split('://')[0]!r}: use sqlite:///file.db, "
            f"postgresql://user@host/database or memory://"
        )
    if text in ("", ":memory:"):
        raise InvalidInput("name a file, such as sqlite:///credits.db, or use memory://")
    return "sqlite", text


def copy_ledger(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    keep: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> Copied:
    """Copy a whole ledger to another store, all projects, and have new writes go there.

    Every entry is checked on the way, both sides are compared, and the source is read-only at the
    end. Open ledgers notice by an error at their next write: open them at the target.

    Args:
        source: The URL of the store to copy.
        target: The URL of an empty store, or of one that an earlier copy of this ledger began, or
            that this ledger once came from.
        keep: Leave the source in use; copy again to catch up.
        progress: Called with what is being done and how many of it so far.

    Raises:
        CopyMismatch: The two hold different histories; the source stays in use.
        InvalidInput: The two have different scales, or are the same.
        StoreUnavailable, OutcomeUnknown: Copy again; it goes on where it was.
    """
    from tillroll import copying  # noqa: PLC0415 - only who copies loads it

    with (
        contextlib.closing(open_store(source, create=False)) as one,
        contextlib.closing(open_store(target, scale=one.scale)) as other,
    ):
        if one.url == other.url:
            raise InvalidInput(f"source and target are both {one.url}")
        try:
            return copying.copy(one, other, keep=keep, progress=progress or copying.tell_nobody)
        except CommitUncertain as problem:
            raise OutcomeUnknown(f"{problem}: copy again, it goes on where it was") from problem


def migrate_store(
    url: str | os.PathLike[str],
    *,
    plan: bool = False,
    scale: int | None = None,
    role: str | None = None,
    row_level_security: bool | None = None,
    writing: Literal["locks", "append"] | None = None,
    distributed: Literal["citus"] | None = None,
) -> Migrated:
    """Bring the tables of a store up to date, making them where there are none.

    `open` does so too, where it may. This is for whoever wants to see it first, or has the
    application use a role that may not make tables.

    Args:
        url: The store, as for `open`.
        plan: Only return what would be done; nothing is written, no file is made.
        scale: Decimals of the units, fixed when the store is made; 6 if left out.
        role: PostgreSQL only: give this role what the application needs, and nothing else.
        row_level_security: PostgreSQL only: True shows roles other than the owner no rows but
            those of the project that their session names; False ends that; None leaves it.
        writing: PostgreSQL only: how all processes write from now on, by locks or by appending
            (decisions/0011); None leaves it. Safe while others write.
        distributed: PostgreSQL only: spread a new ledger over a Citus cluster, by account; once.

    Raises:
        StoreUnavailable: The store cannot be used; nothing was written.
        StoreBusy: Another process is migrating, or keeps a table locked; what is not in the
            answer to a plan now was written. Migrate again.
        OutcomeUnknown: The connection was lost on the way. Migrate again.
        SchemaMismatch: The store is newer than this tillroll, or a step was altered since.
        InvalidInput: No such kind of store, or no such role.
    """
    kind, place = _place(url)
    if kind == "postgresql":
        with _needing_psycopg():
            from tillroll.stores import postgres_schema  # noqa: PLC0415 - an extra
        try:
            return postgres_schema.migrate(
                place,
                plan=plan,
                scale=scale,
                role=role,
                row_level_security=row_level_security,
                writing=writing,
                distributed=distributed,
            )
        except CommitUncertain as problem:
            raise OutcomeUnknown(f"{problem}: migrate again") from problem
    if kind == "memory":
        raise InvalidInput("a ledger in memory has no tables to migrate")
    if (role, row_level_security, writing, distributed) != (None, None, None, None):
        raise InvalidInput("that is PostgreSQL's: a SQLite file has one writer and the file's mode")
    from tillroll.stores import sqlite  # noqa: PLC0415 - only who uses it loads it

    return sqlite.migrate(place, plan=plan, scale=scale)


_POSTGRES = ("postgresql://", "postgres://", "postgresql+psycopg://")


def _read_place(url: str) -> str:
    kind, place = _place(url)
    if kind != "postgresql":
        raise InvalidInput("read_url must name a PostgreSQL server, as the url does")
    return place


@contextlib.contextmanager
def _needing_psycopg() -> Iterator[None]:
    try:
        yield
    except ImportError as problem:
        raise InvalidInput(
            f"PostgreSQL needs psycopg: pip install 'tillroll[postgres]' ({problem})"
        ) from None


def open_ledger(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
    library: Library = "apsw",
    read_url: str | None = None,
    create: bool = True,
) -> Ledger:
    """Open a ledger, creating its store where there is none.

    Args:
        url: `sqlite:///credits.db` (a file beside you), `sqlite:////var/lib/credits.db`
            (absolute), a path, `postgresql://user@host/database`, or `memory://`.
        project: The isolation boundary; accounts of two projects never meet.
        scale: Decimals of the units, fixed when the store is made; 6 if left out.
        clock: Returns the time as an aware datetime; the system's clock if left out.
        waiting_max: How many requests may wait before new ones are turned away.
        library: Which copy of SQLite to use: "apsw", which carries a current one, or "sqlite3",
            Python's own. A process that opens the file by other means as well, as whoever joins
            does, must use the copy that those use.
        read_url: PostgreSQL only: a standby, for whatever only looks (balances, statements, usage,
            explanations, verification, previews, quotes). It may be behind; a balance says by its
            `seq` how far it came. What writes never reads from there.
        create: False opens only what is there: a file or database without a ledger is an error,
            and the tables of a PostgreSQL are not brought up to date.

    Raises:
        StoreUnavailable: The store cannot be used; nothing was written.
        SchemaMismatch: It was written by a newer tillroll.
        InvalidInput: No such kind of store, or another scale than the store has.
    """
    how = project, scale, clock, waiting_max, library, read_url
    return Ledger(open_engine(url, *how, create=create))


def open_async(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
    library: Library = "apsw",
    read_url: str | None = None,
    create: bool = True,
) -> AsyncLedger:
    """Open a ledger for an event loop; see `open`."""
    how = project, scale, clock, waiting_max, library, read_url
    return AsyncLedger(open_engine(url, *how, create=create))


def open_engine(
    url: str | os.PathLike[str],
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
    library: Library = "apsw",
    read_url: str | None = None,
    *,
    create: bool = True,
) -> Engine:
    """Open the engine of a store, for whoever serves several projects; see `open`."""
    ticks = now if clock is None else functools.partial(_ticks, clock)
    engine = Engine(
        open_store(
            url, scale=scale, project=project, read_url=read_url, library=library, create=create
        ),
        project=project,
        clock=ticks,
        waiting_max=waiting_max,
    )
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
