"""The SQLite driver: one file, one writer connection, readers apart.

Settings and why: WAL, so that readers and the writer do not wait for each other; synchronous=FULL,
so that an acknowledged write survives a power cut; BEGIN IMMEDIATE, so that a writer never has to
upgrade a lock and fail; no mmap; STRICT tables, since a plain column turns an overflow into a
float. Through apsw, which carries a current SQLite: versions before 3.51.3 can corrupt a WAL file
that two connections write at once (https://www.sqlite.org/wal.html#walresetbug).

States of accounts written last are remembered; `PRAGMA data_version` tells when another
connection has written, and then they are forgotten. A row's state trails behind its entries while
the account is at work (decisions/0014), and is brought up to them when the ledger is closed.
"""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import apsw
import msgspec

from tillroll.ledger.errors import (
    InvalidInput,
    SchemaMismatch,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from tillroll.ledger.pricing import PriceBook
from tillroll.ledger.units import SCALE_DEFAULT, SCALE_MAX
from tillroll.stores.base import (
    BUSY_SECONDS,
    CACHED_ACCOUNTS_MAX,
    FORK_SECONDS,
    CommitUncertain,
    Migrated,
    Remembered,
    check_needs,
    migrations,
    pending,
)
from tillroll.stores.sqlite_rows import (
    NEEDS,
    SqliteReader,
    SqliteWriter,
    contradictions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tillroll.stores.base import Library
    from tillroll.stores.sqlite_rows import Connection

_FULL = 2  # what PRAGMA synchronous answers for FULL
# The first SQLite without the WAL-reset bug.
VERSION_MIN = 3_051_003

_PRAGMAS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA trusted_schema = OFF;
PRAGMA mmap_size = 0;
PRAGMA cache_size = -65536;
"""  # cache 64 MiB

CHECKPOINT_PAGES = 4_000  # of 4 KiB: a checkpoint each 16 MB of log

# The first write after a commit that erred; see `SqliteStore.recover`.
_RECOVERED = """
INSERT INTO tillroll_meta (name, value) VALUES ('recoveries', '1')
ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)
"""

# Connections inherited over a fork: never closed here, since closing one would checkpoint and
# delete files that the parent uses (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open).
_ABANDONED: list[object] = []
# Files with such connections: SQLite keeps a process's locks in the process's memory, so the child
# believes that it holds locks which only the parent holds. Nothing here may use these files.
_NOT_OURS: set[str] = set()

# What one request can bring about by its data. Not translated: the engine then writes each request
# of the batch by itself, so that only the guilty one fails.
GUILTY = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, apsw.RangeError)


def translated(error: apsw.Error, path: str) -> StoreUnavailable:
    """Return the error in our words. Only for what is known to have written nothing."""
    nothing = f"nothing was written ({type(error).__name__}: {error})"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return StoreBusy(f"{path} stayed locked by another process; {nothing}")
    if isinstance(error, apsw.FullError):
        return StoreFull(f"the disk of {path} is full: free some space and ask again; {nothing}")
    if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.AuthError):
        return StoreReadOnly(
            f"{path} may not be written: check the permissions of the file and of its folder, "
            f"where even a reader has to find or make the log; {nothing}"
        )
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return StoreCorrupt(f"{path} is not a healthy database: restore a backup; {nothing}")
    if isinstance(error, apsw.CantOpenError):
        return StoreUnavailable(f"{path} cannot be opened: check folder and permissions; {nothing}")
    return StoreUnavailable(f"{path}: the database erred; {nothing}")


class _Translating:
    """Raises errors of SQLite in our words; without a state, so that one serves everybody."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, apsw.Error) and not isinstance(error, GUILTY):
            raise translated(error, self.path) from error


class SqliteStore:
    """Ledgers in one SQLite file, shared by any number of threads and processes."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        scale: int | None = None,
        create: bool = True,
        vfs: str | None = None,
        library: Library = "apsw",
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        """Open the file, creating it and applying migrations where needed.

        Args:
            path: The database file. Its folder must exist.
            scale: Decimals of the units; fixed when the file is made. None: what the file has.
            create: Make the file and the ledger in it where there is none.
            vfs: The name of a VFS registered with apsw, for tests that make writes fail.
            library: "apsw", which carries a current SQLite, or "sqlite3", Python's own, which a
                process that opens the file by other means as well has to use.
            busy_seconds: How long to wait for another process that keeps the file locked.

        Raises:
            StoreUnavailable: The file cannot be used; nothing was written.
            SchemaMismatch: It was written by a newer tillroll.
            InvalidInput: It has another scale than asked for.
        """
        _check_library(library, vfs)
        if scale is not None and not (type(scale) is int and 0 <= scale <= SCALE_MAX):
            raise InvalidInput(f"scale must be 0 to {SCALE_MAX}")
        self.path = os.fspath(path)
        self.url = f"sqlite:///{self.path}"
        self._translating = _Translating(self.path)
        self._create = create
        self._vfs = vfs
        self.module = library
        self._busy_milliseconds = int(busy_seconds * 1000)
        self._calm = threading.Condition()  # guards the two below; told when a reader leaves
        self._idle: list[Connection] = []
        self._lent: dict[Connection, int] = {}  # to the thread of that number
        self._states: dict[bytes, Remembered] = {}
        self._prices: dict[str, PriceBook] = {}
        self._places: dict[Literal["moved_to"], str | None] = {}
        self._topics: dict[str, frozenset[str]] = {}
        self._data_version = -1
        self._writer: Connection | None = None
        self._checkpoint_pages = CHECKPOINT_PAGES
        self._log_pages = 0
        self._dirty = False  # a write is under way, or was interrupted
        self._closed = False
        try:
            with self._translating:
                self._writer = self._connect()
                self._migrate(self._writer, scale)
                meta = dict(self._writer.execute("SELECT name, value FROM tillroll_meta"))
            self.scale = int(meta["scale"])
            self.secret = bytes.fromhex(meta["secret"])
        except (KeyError, ValueError) as error:
            self.close()
            raise StoreCorrupt(
                f"{self.path} has lost its settings: restore a backup; nothing was written"
            ) from error
        except BaseException:
            self.close()
            raise
        if scale is not None and scale != self.scale:
            self.close()
            raise InvalidInput(
                f"{self.path} has scale {self.scale}, not {scale}: it is fixed; nothing was written"
            )

    # ------------------------------------------------------------ connections

    def _connect(self) -> Connection:
        if self._closed:
            raise StoreClosed("the ledger is closed; nothing was written")
        if os.path.realpath(self.path) in _NOT_OURS:
            raise StoreUnavailable(
                f"this process was forked while its parent was reading {self.path}, whose locks "
                f"it cannot share: fork when nobody reads, or spawn; nothing was written"
            )
        if Path(self.path).is_dir():
            raise StoreUnavailable(
                f"{self.path} cannot be opened: it is a folder, name a file; nothing was written"
            )
        if not self._create and not Path(self.path).exists():
            raise StoreUnavailable(
                f"{self.path} cannot be opened: there is no such file. `tillroll init` makes a "
                f"ledger; nothing was written"
            )
        if self.module == "sqlite3":
            connection: Connection = _library().connect(
                self.path, create=self._create, busy_milliseconds=self._busy_milliseconds
            )
        else:
            connection = self._connect_apsw()
        if not self._create:
            self._check_there(connection)
        try:
            # To the end: a cursor stops at each row, and so would never come to the later ones.
            connection.execute(_PRAGMAS).fetchall()
        except apsw.ReadOnlyError:
            # A file that may only be read can still be looked at.
            connection.execute("PRAGMA query_only = ON")
        return connection

    def _check_there(self, connection: Connection) -> None:
        """Refuse a file without a ledger before anything is written to it, be it a setting."""
        there: dict[int, str] = {}
        try:
            there = _applied(connection)
        finally:
            if not there:
                _dispose(connection)
        if not there:
            raise StoreUnavailable(
                f"{self.path} has no ledger: `tillroll init` makes one; nothing was written"
            )

    def _connect_apsw(self) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if self._create else 0)
        try:
            connection = apsw.Connection(self.path, flags=flags, vfs=self._vfs)
        except apsw.CantOpenError:
            if Path(self.path).exists():
                connection = apsw.Connection(
                    self.path, flags=apsw.SQLITE_OPEN_READONLY, vfs=self._vfs
                )
            else:
                raise
        connection.set_busy_timeout(self._busy_milliseconds)
        # SQLite would checkpoint within COMMIT, and an error there is none of the commit.
        connection.set_wal_hook(self._note_log)
        return connection

    def _note_log(self, _: apsw.Connection, __: str, pages: int) -> int:
        """Note, after each commit, how long the log is."""
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _migrate(self, connection: Connection, scale: int | None) -> None:
        """Apply what is pending, one database transaction a step; several processes may race."""
        known = migrations("sqlite")
        if not list(pending(known, _applied(connection))):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            applied = _applied(connection)
            if not applied:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS tillroll_migrations (number INTEGER PRIMARY KEY, "
                    "name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT"
                )
            for step in pending(known, applied):
                connection.execute(step.sql).fetchall()
                connection.execute(
                    "INSERT INTO tillroll_migrations VALUES (?, ?, ?)",
                    (step.number, step.name, step.checksum),
                )
            connection.execute(
                "INSERT OR IGNORE INTO tillroll_meta (name, value) "
                "VALUES ('scale', ?), ('secret', ?)",
                (str(SCALE_DEFAULT if scale is None else scale), secrets.token_hex(32)),
            )
            connection.execute("COMMIT")
        except BaseException:
            _rolled_back(connection)
            raise

    # ------------------------------------------------------------ the contract

    def write(self) -> _Writing:
        """Open a database transaction; see `Store.write`."""
        return _Writing(self)

    def begin(self) -> SqliteWriter:
        """Begin a database transaction; `end` has to follow.

        Where Ctrl-C came between, it does not: the next one cleans up first.
        """
        with self._translating:
            if self._dirty and self._writer is not None:
                self._give_up(self._writer)
            self._dirty = True
            if self._writer is None:
                self._writer = self._connect()
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                version = connection.execute("PRAGMA data_version").get
                if version != self._data_version or len(self._states) > CACHED_ACCOUNTS_MAX:
                    self._forget()
                    check_needs(connection.execute(NEEDS).get)
                    self._data_version = version
                known = self._states, self._prices, self._places, self._topics
                return SqliteWriter(connection, *known)
            except BaseException:
                self._give_up(connection)
                raise

    def end(self, connection: Connection, error: BaseException | None) -> None:
        """Commit, or roll back where there was an error."""
        with self._translating:
            if error is not None:
                self._give_up(connection)
                raise error
            self._commit(connection)
            self._dirty = False

    def _commit(self, connection: Connection) -> None:
        try:
            connection.execute("COMMIT")
        except apsw.FullError:
            # The write that failed belongs before the end of the log, so what would make the
            # transaction count is not there. An error of the sync is never this one.
            self._give_up(connection)
            raise
        except apsw.Error as error:
            self._forget()
            raise CommitUncertain(f"{self.path}: the commit erred: {error}") from error
        except BaseException:
            self._give_up(connection)
            raise
        # Of the other library the length is not known: there SQLite checkpoints by itself, each
        # 1,000 pages, and an error of that is none of the commit either.
        if self._log_pages >= self._checkpoint_pages and isinstance(connection, apsw.Connection):
            self._log_pages = 0
            # One that errs is tried again after the next commit; the log is all that matters.
            with suppress(apsw.Error):
                connection.wal_checkpoint()

    def _give_up(self, connection: Connection) -> None:
        """Roll back; a connection that cannot even do that is thrown away."""
        self._forget()
        if not _rolled_back(connection):
            self._writer = None
            _dispose(connection)

    def _forget(self) -> None:
        self._states.clear()
        self._prices.clear()
        self._places.clear()
        self._topics.clear()
        self._data_version = -1

    @contextmanager
    def read(self) -> Iterator[SqliteReader]:
        """Open one consistent view; see `Store.read`."""
        with self._translating:
            connection = self._lend()
            try:
                connection.execute("BEGIN")
                yield SqliteReader(connection)
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(
                    f"{self.path} holds a document that cannot be read ({error}): restore a "
                    f"backup; nothing was written"
                ) from error
            finally:
                self._take_back(connection)

    read_primary = read

    def _lend(self) -> Connection:
        with self._calm:
            connection = self._idle.pop() if self._idle else self._connect()
            self._lent[connection] = threading.get_ident()
            return connection

    def _take_back(self, connection: Connection) -> None:
        with self._calm:
            if self._lent.pop(connection, None) is None:
                return  # lent in the parent of this forked process
            self._calm.notify_all()
            if _rolled_back(connection) and not self._closed:
                self._idle.append(connection)
            else:
                _dispose(connection)

    def wait_for_writers(self) -> None:
        """Return at once: whoever writes has the file to himself, as whoever marked it had."""

    def adopt(self, secret: bytes) -> None:
        """Sign quotes with this secret from now on."""
        with self.write() as tx:
            sql = "UPDATE tillroll_meta SET value = ? WHERE name = 'secret'"
            tx.connection.execute(sql, (secret.hex(),))
        self.secret = secret

    def recover(self) -> None:
        """Open anew, checkpoint, and write: then what is there stays, and what is not never comes.

        What a look-up finds after a failed sync may be in memory only: the checkpoint writes it
        to the file once more, and syncs that. What a look-up does not find may still lie behind
        the end of the log as a whole transaction, to be found after a crash: the write goes to
        that very place, and is synced. See docs/internals/durability.md.
        """
        with self._calm:
            self._close_own()
        with self._translating:
            self._writer = self._connect()
            busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(FULL)").get
            if busy:
                raise StoreBusy(
                    f"{self.path} is read by others, so its log could not be made durable after "
                    f"a commit that erred; nothing was written"
                )
            self._writer.execute(_RECOVERED)

    def check(self) -> list[str]:
        """Run SQLite's own integrity check, then look for rows that contradict themselves."""
        try:
            with self.read() as reader:
                rows = [row[0] for row in reader.connection.execute("PRAGMA integrity_check")]
                if rows != ["ok"]:
                    return [str(row) for row in rows]
                return list(contradictions(reader.connection))
        except StoreCorrupt as problem:
            return [str(problem)]

    def facts(self) -> list[tuple[str, str, bool]]:
        """Return what `doctor` wants to know: name, value, whether it is as it must be."""
        with self.read() as reader:
            ask = reader.connection.execute
            mode, sync = ask("PRAGMA journal_mode").get, ask("PRAGMA synchronous").get
        version, sound = apsw.sqlite_lib_version(), True
        if self.module == "sqlite3":
            sound = _library().is_sound()
            bug = "" if sound else ", which can corrupt a log that two write at once"
            version = f"{_library().version()} of Python's sqlite3{bug}"
        return [
            ("SQLite", version, sound),
            ("journal_mode", mode, mode == "wal"),
            ("synchronous", "FULL" if sync == _FULL else str(sync), sync == _FULL),
            ("scale", str(self.scale), True),
        ]

    def _close_own(self) -> None:
        """Close the writer and the idle readers; opened again when they are needed.

        What was remembered goes with the writer: a new connection counts `data_version` anew, so
        its number may be the same though another process has written in between.
        """
        self._forget()
        connections, self._idle = self._idle, []
        if self._writer is not None:
            connections.append(self._writer)
            self._writer = None
        for connection in connections:
            _dispose(connection)

    # ------------------------------------------------------------ forks

    def before_fork(self) -> None:
        """Close everything: a child must not inherit an open SQLite file, not even unused.

        Its locks would be the parent's, and it would not know
        (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_).
        Waits for readers in other threads, and keeps new ones out until the fork is done.
        """
        me = threading.get_ident()
        self._calm.acquire()
        self._calm.wait_for(
            lambda: all(thread == me for thread in self._lent.values()), FORK_SECONDS
        )
        if self._writer is None or not self._writer.in_transaction:
            self._close_own()

    def fork_done(self) -> None:
        """Go on, in the parent."""
        self._calm.release()

    def after_fork(self) -> None:
        """Go on, in the child; without the file if there was something left to inherit."""
        if self._writer is not None or self._idle or self._lent:
            _ABANDONED.append((self._writer, self._idle, self._lent))
            _NOT_OURS.add(os.path.realpath(self.path))
        self._writer = None
        self._idle = []
        self._lent = {}
        self._calm = threading.Condition()
        self._forget()

    def close(self) -> None:
        """Close every connection; the last one to leave a file checkpoints it."""
        try:
            self._bring_rows_up()
        finally:
            with self._calm:
                self._closed = True
                self._close_own()

    def _bring_rows_up(self) -> None:
        """Write the states that trail behind, so that a file at rest says the same twice.

        Nothing depends on it: who cannot, because the disk is full or the file was taken away,
        leaves states that the next one folds entries on top of.
        """
        trailing = [
            (owner, known.account.account)
            for owner, known in self._states.items()
            if known.seq != known.account.seq
        ]
        if self._writer is not None and trailing:
            known = CommitUncertain, StoreUnavailable, apsw.Error, msgspec.MsgspecError
            with suppress(*known), self.write() as tx:
                if tx.moved_to() is None:
                    tx.bring_rows_up(trailing)


class _Writing:
    """One database transaction, as a context manager: for a lone caller each microsecond counts."""

    __slots__ = ("_connection", "_store")

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __enter__(self) -> SqliteWriter:
        writer = self._store.begin()
        self._connection = writer.connection
        return writer

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._store.end(self._connection, error)


def _check_library(library: str, vfs: str | None) -> None:
    """Refuse a library that cannot keep a ledger."""
    if library not in ("apsw", "sqlite3"):
        raise InvalidInput(f"there is no library {library!r}: use 'apsw' or 'sqlite3'")
    if library == "sqlite3":
        if vfs is not None:
            raise InvalidInput("a VFS of apsw is not known to the library 'sqlite3'")
        if _library().is_old():
            raise StoreUnavailable(
                f"SQLite {_library().version()} of Python's sqlite3 is too old; nothing was written"
            )
    elif apsw.SQLITE_VERSION_NUMBER < VERSION_MIN:
        raise StoreUnavailable(f"SQLite {apsw.sqlite_lib_version()} can corrupt a WAL file")


def _library() -> ModuleType:
    """Return the adapter of Python's sqlite3, loaded only where it is used."""
    from tillroll.stores import sqlite_library  # noqa: PLC0415

    return sqlite_library


def migrate(path: str, *, scale: int | None = None, plan: bool = False) -> Migrated:
    """Apply what is pending to a file; made where there is none, unless it is only the plan."""
    known = migrations("sqlite")
    file = Path(path).absolute()
    applied: dict[int, str] = {}
    if file.exists():
        # Without a log nobody is at it, and even the log's index need not be made to look.
        alone = "" if Path(f"{file}-wal").exists() else "&immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        try:
            connection = apsw.Connection(f"{file.as_uri()}?mode=ro{alone}", flags=flags)
            try:
                applied = _applied(connection)
            finally:
                _dispose(connection)
        except apsw.Error as error:
            raise translated(error, path) from error
    steps = tuple(pending(known, applied))
    if not plan:
        SqliteStore(path, scale=scale).close()
    return Migrated(f"sqlite:///{path}", plan, steps, (), known[-1].number)


def _applied(connection: Connection) -> dict[int, str]:
    """Return the migrations applied so far; none where the file is new."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if "tillroll_migrations" not in tables:
        if "tillroll_entries" in tables:
            raise SchemaMismatch(
                "the database has tillroll's tables but not their history; nothing was written"
            )
        return {}
    if "tillroll_meta" in tables:
        check_needs(connection.execute(NEEDS).get)
    return dict(connection.execute("SELECT number, checksum FROM tillroll_migrations"))


def _rolled_back(connection: Connection) -> bool:
    """End the database transaction if SQLite has not done so itself (it has, on a full disk)."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except apsw.Error:
        return False
    return True


def _dispose(connection: Connection) -> None:
    """Close a connection, whatever the disk says to it: nothing committed depends on it."""
    with suppress(apsw.Error):
        connection.close(True)  # noqa: FBT003 - apsw's own positional flag: force
