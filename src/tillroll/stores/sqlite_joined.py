"""SQLite within a host's transaction: the driver's statements on a connection that is not ours.

Only where the ledger itself uses the same copy of SQLite (`library="sqlite3"`): two copies in one
process do not see each other's locks, and write at once (decisions/0010).

Each use takes the write lock before it reads, and is a savepoint, so that what errs leaves nothing
behind.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import apsw
import msgspec

from tillroll.ledger.errors import (
    InvalidInput,
    SchemaMismatch,
    StoreBusy,
    StoreCorrupt,
)
from tillroll.stores import sqlite_library
from tillroll.stores.hosts import BEGIN, JoinedStore, wrong_driver
from tillroll.stores.sqlite import GUILTY, SqliteStore, translated
from tillroll.stores.sqlite_rows import SqliteReader, SqliteWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tillroll.stores.base import Store
    from tillroll.stores.bridge import Bridge
    from tillroll.stores.hosts import Host
    from tillroll.stores.sqlite_library import LibraryConnection

# Changes nothing, and takes the lock that changing something would take. `main`, since a commit to
# an attached file does not take place together with one to the host's own
# (https://www.sqlite.org/lang_attach.html).
_LOCK = "UPDATE main.tillroll_meta SET value = value WHERE name = ''"
_SECRET = "SELECT value FROM main.tillroll_meta WHERE name = 'secret'"  # noqa: S105 - no secret


class JoinedSqlite(JoinedStore):
    """A ledger in a SQLite file, within the transactions of a host's connection."""

    def __init__(self, origin: Store, host: Host, bridge: Bridge | None) -> None:
        """Join the transactions of this host to the ledger in `origin`.

        Raises:
            InvalidInput: The ledger uses another copy of SQLite than the host does.
        """
        super().__init__(origin, host, bridge)
        assert isinstance(origin, SqliteStore)
        if origin.module != "sqlite3":
            raise InvalidInput(
                f"{self.url} is open through another copy of SQLite than your connection, and the "
                f"two do not see each other's locks: open the ledger with library='sqlite3', and "
                f"close this one first"
            )
        if host.plain:
            self._check_driver(host.given)

    def _check_driver(self, connection: object) -> None:
        if self._bridge is None:
            if not sqlite_library.is_connection(connection):
                raise wrong_driver(connection, f"a sqlite3.Connection to {self.url}")
        elif type(connection).__module__.split(".")[0] != "aiosqlite":
            raise wrong_driver(connection, f"an aiosqlite.Connection to {self.url}")

    def _enter(self) -> LibraryConnection:
        """Return the connection that the host has now, within a transaction that may write."""
        raw = self._reach()
        self._check_driver(raw)
        connection = (
            sqlite_library.LibraryConnection(raw)
            if self._bridge is None
            else sqlite_library.AwaitedConnection(raw, self._bridge)
        )
        if not connection.in_transaction:
            # Python's module begins a transaction by itself before a statement that changes
            # something, unless it was told not to: so do we, with the lock that it will need.
            if raw.isolation_level is None or getattr(raw, "autocommit", -1) is True:
                raise InvalidInput(BEGIN)
            connection.execute("BEGIN IMMEDIATE")
        return connection

    @contextmanager
    def write(self) -> Iterator[SqliteWriter]:
        """Write within the host's transaction; see `JoinedStore`."""
        with self._translating():
            connection = self._enter()
            connection.execute("SAVEPOINT tillroll")
            try:
                connection.execute(_LOCK)
                self._check_ledger(connection)
                yield SqliteWriter(connection, {}, {}, {}, {})
                connection.execute("RELEASE tillroll")
            except GeneratorExit:
                raise  # the garbage collector, at any later time: there may be another transaction
            except BaseException:
                _undo(connection)
                raise

    @contextmanager
    def read(self) -> Iterator[SqliteReader]:
        """Read what the host's transaction sees."""
        with self._translating():
            connection = self._enter()
            self._check_ledger(connection)
            try:
                yield SqliteReader(connection)
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(
                    f"{self.url} holds a document that cannot be read ({error}): restore a "
                    f"backup; nothing was written"
                ) from error

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except GUILTY:
            raise
        except apsw.SQLError as error:
            if "no such table" in str(error):
                raise SchemaMismatch(
                    f"the connection leads to a file without a ledger, not to {self.url}; "
                    f"nothing was written"
                ) from error
            raise translated(error, self.url) from error
        except apsw.BusyError as error:
            raise StoreBusy(
                f"{self.url} is being written by another transaction, or was since yours began to "
                f"read; nothing was written. Roll back your transaction and try it again as a whole"
            ) from error
        except apsw.Error as error:
            raise translated(error, self.url) from error

    def _check_ledger(self, connection: LibraryConnection) -> None:
        if connection.execute(_SECRET).get != self.secret.hex():
            raise SchemaMismatch(
                f"the connection leads to another ledger than {self.url}: connect it to that "
                f"file, or open the ledger that it leads to; nothing was written"
            )


def _undo(connection: LibraryConnection) -> None:
    """Leave nothing of this use behind; on a full disk SQLite has rolled back all by itself."""
    connection.last = True
    with suppress(apsw.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK TO tillroll")
            connection.execute("RELEASE tillroll")


__all__ = ["JoinedSqlite"]
