"""Programs that have a database transaction of their own, one for each way to have one.

Each is a context manager that takes the ledger's URL and gives a `Side`: what is to be joined, a
transaction that ends as such programs end theirs, and a statement within it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from typing import Any

import aiosqlite
import psycopg
import sqlalchemy
from django.apps import apps
from django.conf import UserSettingsHolder, global_settings, settings
from django.db import connections, transaction
from django.utils.connection import ConnectionProxy
from psycopg.adapt import Loader
from psycopg.rows import dict_row, tuple_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

ORDERS = "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)"


@dataclass
class Side:
    """A program's own side of a transaction."""

    given: Any
    transaction: Callable[[], AbstractContextManager[object]]
    run: Callable[[str], list[tuple[Any, ...]]]

    def orders(self) -> list[str]:
        with self.transaction():
            return [name for (name,) in self.run("SELECT id FROM orders ORDER BY id")]

    def order(self, name: str) -> None:
        self.run(f"INSERT INTO orders VALUES ('{name}')")  # noqa: S608 - names of our own

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        with suppress(GaveUp), self.transaction():
            yield
            raise GaveUp


@dataclass
class AsyncSide:
    """The same for an event loop."""

    given: Any
    transaction: Callable[[], AbstractAsyncContextManager[object]]
    run: Callable[[str], Any]


class GaveUp(Exception):
    """What a program raises to have its transaction rolled back."""


class Shouting(Loader):
    """What a program may have made of texts and numbers on its own connection."""

    def load(self, data: Any) -> str:
        return bytes(data).decode().upper() + "!"


def path_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


def ended(connection: Any) -> Callable[[], AbstractContextManager[object]]:
    """Return a transaction that is ended by commit() and rollback(), and begins by itself."""

    @contextmanager
    def transaction() -> Iterator[None]:
        try:
            yield
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    return transaction


# ---------------------------------------------------------------- PostgreSQL


@contextmanager
def psycopg_implicit(url: str) -> Iterator[Side]:
    with psycopg.connect(url) as connection:
        run = connection.execute
        yield Side(connection, ended(connection), lambda sql: _rows(run(sql.encode())))


@contextmanager
def psycopg_block(url: str) -> Iterator[Side]:
    """Autocommit, with blocks; with rows, texts and cursors of its own kind."""
    with psycopg.connect(
        url, autocommit=True, row_factory=dict_row, cursor_factory=psycopg.ClientCursor
    ) as connection:
        for name in ("text", "int8", "bytea"):
            connection.adapters.register_loader(name, Shouting)

        def run(sql: str) -> list[tuple[Any, ...]]:
            with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
                rows = _rows(cursor.execute(sql.encode()))
            return [tuple(str(value).lower().rstrip("!") for value in row) for row in rows]

        yield Side(connection, connection.transaction, run)


def _rows(cursor: Any) -> list[tuple[Any, ...]]:
    return cursor.fetchall() if cursor.description else []


def _engine(url: str) -> sqlalchemy.Engine:
    if url.startswith("sqlite"):
        return sqlalchemy.create_engine(f"sqlite:///{path_of(url)}")
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))


def _all(result: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def sqlalchemy_session(url: str) -> Iterator[Side]:
    engine = _engine(url)
    with Session(engine) as session:
        yield Side(session, session.begin, lambda sql: _all(session.execute(sqlalchemy.text(sql))))
    engine.dispose()


@contextmanager
def sqlalchemy_autobegin(url: str) -> Iterator[Side]:
    """The session of a thread, as web frameworks hand it out; begun by its first statement."""
    engine = _engine(url)
    session = scoped_session(sessionmaker(engine))
    run = session.execute
    yield Side(session, ended(session), lambda sql: _all(run(sqlalchemy.text(sql))))
    session.remove()
    engine.dispose()


@contextmanager
def sqlalchemy_connection(url: str) -> Iterator[Side]:
    engine = _engine(url)
    with engine.connect() as connection:
        run = connection.execute
        yield Side(connection, ended(connection), lambda sql: _all(run(sqlalchemy.text(sql))))
    engine.dispose()


@contextmanager
def django(url: str) -> Iterator[Side]:
    """`django.db.connection` of a database that is set up for the time being."""
    configured, settings._wrapped = settings._wrapped, UserSettingsHolder(global_settings)
    alias = "joined"
    if url.startswith("sqlite"):
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": path_of(url)}
    else:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts["user"],
            "HOST": parts["host"],
            "PORT": parts["port"],
        }
    if not apps.ready:
        apps.populate([])
    databases = connections.configure_settings({"default": {}, alias: database})
    connections.databases[alias] = databases[alias]
    wrapper = connections[alias]

    def run(sql: str) -> list[tuple[Any, ...]]:
        with wrapper.cursor() as cursor:
            cursor.execute(sql)
            return _rows(cursor)

    try:
        yield Side(ConnectionProxy(connections, alias), lambda: transaction.atomic(alias), run)
    finally:
        wrapper.close()
        del connections[alias], connections.databases[alias]
        settings._wrapped = configured


# ---------------------------------------------------------------- SQLite


@contextmanager
def sqlite_legacy(url: str) -> Iterator[Side]:
    connection = sqlite3.connect(path_of(url))
    connection.row_factory = sqlite3.Row
    connection.text_factory = bytes

    def run(sql: str) -> list[tuple[Any, ...]]:
        rows = connection.execute(sql).fetchall()
        return [tuple(v.decode() if isinstance(v, bytes) else v for v in row) for row in rows]

    yield Side(connection, ended(connection), run)
    assert connection.text_factory is bytes
    connection.close()


@contextmanager
def sqlite_explicit(url: str) -> Iterator[Side]:
    connection = sqlite3.connect(path_of(url), isolation_level=None)

    @contextmanager
    def transaction() -> Iterator[None]:
        connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    yield Side(connection, transaction, lambda sql: connection.execute(sql).fetchall())
    connection.close()


POSTGRES = [
    psycopg_implicit,
    psycopg_block,
    sqlalchemy_session,
    sqlalchemy_autobegin,
    sqlalchemy_connection,
    django,
]
SQLITE = [
    sqlite_legacy,
    sqlite_explicit,
    sqlalchemy_session,
    sqlalchemy_autobegin,
    sqlalchemy_connection,
    django,
]

# ---------------------------------------------------------------- event loops


def _ended(connection: Any) -> Callable[[], AbstractAsyncContextManager[object]]:
    @asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await connection.rollback()
            raise
        await connection.commit()

    return transaction


@asynccontextmanager
async def psycopg_implicit_async(url: str) -> AsyncIterator[AsyncSide]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield AsyncSide(connection, _ended(connection), lambda s: connection.execute(s.encode()))


@asynccontextmanager
async def psycopg_block_async(url: str) -> AsyncIterator[AsyncSide]:
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, row_factory=dict_row
    ) as connection:
        yield AsyncSide(
            connection, connection.transaction, lambda s: connection.execute(s.encode())
        )


def _async_engine(url: str) -> Any:
    if url.startswith("sqlite"):
        return create_async_engine(f"sqlite+aiosqlite:///{path_of(url)}")
    return create_async_engine(
        "postgresql+psycopg_async://",
        async_creator=lambda: psycopg.AsyncConnection.connect(url),
    )


@asynccontextmanager
async def sqlalchemy_session_async(url: str) -> AsyncIterator[AsyncSide]:
    engine = _async_engine(url)
    async with AsyncSession(engine) as session:
        yield AsyncSide(session, session.begin, lambda s: session.execute(sqlalchemy.text(s)))
    await engine.dispose()


@asynccontextmanager
async def sqlalchemy_connection_async(url: str) -> AsyncIterator[AsyncSide]:
    engine = _async_engine(url)
    async with engine.connect() as connection:
        yield AsyncSide(
            connection, _ended(connection), lambda s: connection.execute(sqlalchemy.text(s))
        )
    await engine.dispose()


@asynccontextmanager
async def aiosqlite_legacy(url: str) -> AsyncIterator[AsyncSide]:
    async with aiosqlite.connect(path_of(url)) as connection:
        connection.row_factory = sqlite3.Row
        yield AsyncSide(connection, _ended(connection), connection.execute)


POSTGRES_ASYNC = [
    psycopg_implicit_async,
    psycopg_block_async,
    sqlalchemy_session_async,
    sqlalchemy_connection_async,
]
SQLITE_ASYNC = [aiosqlite_legacy, sqlalchemy_session_async, sqlalchemy_connection_async]
