"""Python's own sqlite3 in the shape of apsw's connection, as far as the SQLite driver uses it.

So that the driver's statements are written once. Errors become apsw's, which have a class for each
of SQLite's result codes.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import apsw

from tillroll.ledger.errors import TillrollError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tillroll.stores.bridge import Bridge

VERSION_MIN = (3, 37, 0)  # the first with STRICT tables
# The first without the WAL-reset bug; see stores/sqlite.py.
VERSION_SOUND = (3, 51, 3)


class Rows:
    """All that a statement gave, in the shape of apsw's cursor."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        """Hold these rows."""
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Give row after row."""
        return iter(self._rows)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self._rows

    @property
    def get(self) -> Any:
        """The first row, or its value where it has but one; None where there is no row."""
        if not self._rows:
            return None
        return self._rows[0][0] if len(self._rows[0]) == 1 else self._rows[0]


class LibraryConnection:
    """A connection of the module sqlite3, whatever rows and texts its owner wants of it."""

    def __init__(self, raw: Any) -> None:
        """Use this connection."""
        self.raw = raw
        self.last = False  # cleaning up, which a task that was cancelled has to do as well

    @property
    def in_transaction(self) -> bool:
        """Whether a database transaction is under way."""
        with _as_apsw():
            return bool(self.raw.in_transaction)

    def execute(self, sql: str, bindings: Sequence[object] = ()) -> Rows:
        """Run a statement, or several if they take no values; return the rows of the last."""
        with _as_apsw():
            if bindings:
                return Rows(self._run(sql, bindings))
            rows: list[tuple[Any, ...]] = []
            for statement in _statements(sql):
                rows = self._run(statement, ())
            return Rows(rows)

    def _run(self, sql: str, bindings: Sequence[object]) -> list[tuple[Any, ...]]:
        cursor = sqlite3.Cursor(self.raw)
        texts, self.raw.text_factory = self.raw.text_factory, str
        try:
            cursor.row_factory = None
            return cursor.execute(sql, bindings).fetchall()
        finally:
            self.raw.text_factory = texts

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once for each of these."""
        for row in rows:
            self.execute(sql, row)

    def total_changes(self) -> int:
        """Return how many rows this connection has changed."""
        return int(self.raw.total_changes)

    def changes(self) -> int:
        """Return how many rows the last statement changed."""
        count: int = self.execute("SELECT changes()").get
        return count

    def close(self, _force: bool = False) -> None:  # noqa: FBT001, FBT002 - as apsw has it
        """Close the connection."""
        with _as_apsw():
            self.raw.close()


class AwaitedConnection(LibraryConnection):
    """A connection of aiosqlite, reached from a worker thread."""

    def __init__(self, raw: Any, bridge: Bridge) -> None:
        """Use this connection, by way of its event loop."""
        super().__init__(raw)
        self._bridge = bridge

    def _run(self, sql: str, bindings: Sequence[object]) -> list[tuple[Any, ...]]:
        return self._bridge.run(_fetch, self.raw, sql, bindings, last=self.last)


async def _fetch(raw: Any, sql: str, bindings: Sequence[object]) -> list[tuple[Any, ...]]:
    texts, raw.text_factory = raw.text_factory, str
    try:
        async with raw.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(sql, bindings)
            return list(await cursor.fetchall())
    finally:
        raw.text_factory = texts


def connect(path: str, *, create: bool, busy_milliseconds: int) -> LibraryConnection:
    """Open a file that transactions are begun and ended on by statements alone."""
    where = f"file:{quote(path)}?mode={'rwc' if create else 'rw'}"
    with _as_apsw():
        return LibraryConnection(
            sqlite3.connect(
                where,
                uri=True,
                timeout=busy_milliseconds / 1000,
                isolation_level=None,
                check_same_thread=False,
            )
        )


@contextmanager
def _as_apsw() -> Iterator[None]:
    try:
        yield
    except TillrollError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        kind = apsw.Error if code is None else type(apsw.exception_for(code))
        raise kind(str(error)) from error
    except ValueError as error:  # aiosqlite: the connection is not open
        raise apsw.Error(str(error)) from error


def _statements(script: str) -> Iterator[str]:
    """Split a script, but not within the body of a trigger."""
    statement = ""
    for part in script.split(";"):
        statement += part
        if sqlite3.complete_statement(f"{statement};"):
            yield statement
            statement = ""
        else:
            statement += ";"
    if statement.strip(";\n ") and not sqlite3.complete_statement(statement):
        yield statement


def version() -> str:
    """Return the version of SQLite that sqlite3 uses here."""
    return sqlite3.sqlite_version


def is_old() -> bool:
    """Return whether that version lacks what the ledger's tables need."""
    return sqlite3.sqlite_version_info < VERSION_MIN


def is_sound() -> bool:
    """Return whether that version is without the bug that can corrupt a log."""
    return sqlite3.sqlite_version_info >= VERSION_SOUND


def is_connection(thing: object) -> bool:
    """Return whether this is a connection of the module sqlite3."""
    return isinstance(thing, sqlite3.Connection)


__all__ = ["AwaitedConnection", "LibraryConnection", "connect", "is_connection", "is_old"]
