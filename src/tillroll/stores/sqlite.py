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

import itertools
import os
import secrets
import threading
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import apsw
import msgspec

from tillroll.ledger.chain import (
    decode_account,
    decode_entry,
    decode_refusal,
    encode,
    encode_state,
)
from tillroll.ledger.commands import account_id
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import (
    InvalidInput,
    SchemaMismatch,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    TillrollError,
)
from tillroll.ledger.pricing import PriceBook, PriceVersion, decode_version, encode_version
from tillroll.ledger.types import NEVER, Account, Entry, Refusal
from tillroll.ledger.units import SCALE_DEFAULT, SCALE_MAX
from tillroll.stores.base import (
    BUSY_SECONDS,
    CACHED_ACCOUNTS_MAX,
    FORK_SECONDS,
    SEQ_MAX,
    CommitUncertain,
    Key,
    Migrated,
    Note,
    NoteKey,
    Remembered,
    Remembrance,
    Repeats,
    Retry,
    Stored,
    Story,
    catch_up,
    check_needs,
    least,
    low_notes,
    migrations,
    note_of,
    note_row,
    pending,
    revived,
    trail_of,
)
from tillroll.stores.outbox import (
    Dialect,
    OutboxReader,
    OutboxWriter,
    Waiting,
    statements,
    topics_in,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from tillroll.ledger.book import Book, Sealed
    from tillroll.stores.base import Library
    from tillroll.stores.outbox import Rows, Statement
    from tillroll.stores.sqlite_library import LibraryConnection

    Connection = apsw.Connection | LibraryConnection

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

# One statement handles many rows: each step of a statement lets go of Python's lock, and taking
# it back from a busy event loop costs more than the step. {} stands for a list of row values.
_FIND_ANSWERS = """
WITH wanted (request_id, account_id) AS (VALUES {})
SELECT r.account_id, r.request_id, NULL, r.body FROM wanted AS w
CROSS JOIN tillroll_refusals AS r ON (r.request_id, r.account_id) = (w.request_id, w.account_id)
UNION ALL
SELECT e.account_id, e.request_id, e.body, NULL FROM wanted AS w
CROSS JOIN tillroll_entries AS e ON (e.request_id, e.account_id) = (w.request_id, w.account_id)
"""
# The same for a lone caller, at a third of the cost.
_FIND_ANSWER = """
SELECT account_id, request_id, NULL, body FROM tillroll_refusals
WHERE request_id = ?1 AND account_id = ?2
UNION ALL
SELECT account_id, request_id, body, NULL FROM tillroll_entries
WHERE request_id = ?1 AND account_id = ?2
"""
_ADD_ENTRY = """
INSERT INTO tillroll_entries (
    account_id, seq, request_id, ref, kind, recorded_at, effective_at, body, hash, metadata
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_ACCOUNT = """
INSERT INTO tillroll_accounts (
    account_id, project, account, seq, head, at, next_due_at, least, state
) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
"""
_SET_ACCOUNT = """
UPDATE tillroll_accounts SET
    seq = ?4, head = ?5, at = ?6, next_due_at = ?7, least = ?8, state = ?9
WHERE account_id = ?1 AND project = ?2 AND account = ?3
"""
# What falls due next is mostly as before: then a page of the index by it need not be written.
_SET_ACCOUNT_AS_DUE = """
UPDATE tillroll_accounts SET
    seq = ?4, head = ?5, at = ?6, least = ?8, state = ?9
WHERE account_id = ?1 AND project = ?2 AND account = ?3
"""
_SET_REFUSALS = """
INSERT INTO tillroll_refusals (
    request_id, account_id, project, account, recorded_at, body
) VALUES {}
ON CONFLICT (request_id, account_id) DO UPDATE SET
    recorded_at = excluded.recorded_at, body = excluded.body
"""
_COUNT_REPLAYS = """
INSERT INTO tillroll_replays (request_id, account_id, times, last_at) VALUES {}
ON CONFLICT (request_id, account_id) DO UPDATE SET
    times = times + 1, last_at = max(last_at, excluded.last_at)
"""
_DROP_REFUSALS = """
DELETE FROM tillroll_refusals WHERE (request_id, account_id) IN (
    SELECT request_id, account_id FROM tillroll_refusals
    WHERE recorded_at < ? ORDER BY recorded_at LIMIT ?
) RETURNING request_id, account_id
"""
_DROP_REPLAYS = """
DELETE FROM tillroll_replays WHERE request_id = ?1 AND account_id = ?2
AND NOT EXISTS (SELECT 1 FROM tillroll_entries WHERE request_id = ?1 AND account_id = ?2)
"""
_STATE = "SELECT seq, head, state FROM tillroll_accounts WHERE account_id = ?"
# The row, and behind it what was added to the account since.
_STATE_AND_TRAIL = """
SELECT seq, head, next_due_at, state FROM tillroll_accounts WHERE account_id = ?1
UNION ALL
SELECT * FROM (
    SELECT seq, hash, NULL, body FROM tillroll_entries
    WHERE account_id = ?1 AND seq > (SELECT seq FROM tillroll_accounts WHERE account_id = ?1)
    ORDER BY seq
)
"""
# The same of many accounts, all in one row, since each row is a step. A line stands for a row or an
# entry; documents hold no line break, as JSON.
_STATES_AND_TRAILS = """
WITH wanted (account_id) AS (VALUES {})
SELECT group_concat(line, char(10)) FROM (
    SELECT
        hex(a.account_id) || ' ' || a.seq || ' ' || hex(a.head) || ' ' || a.next_due_at
        || ' ' || a.state AS line
    FROM wanted AS w
    CROSS JOIN tillroll_accounts AS a ON a.account_id = w.account_id
    UNION ALL
    SELECT hex(e.account_id) || ' ' || e.seq || ' ' || hex(e.hash) || ' - ' || e.body
    FROM wanted AS w
    CROSS JOIN tillroll_accounts AS a ON a.account_id = w.account_id
    CROSS JOIN tillroll_entries AS e ON e.account_id = a.account_id AND e.seq > a.seq
)
"""
# Rows are added one after the other and never deleted, so their numbers have no gap.
_ENTRIES_GONE = """
SELECT max(rowid) - min(rowid) + 1 - count(*) FROM tillroll_entries
"""
_ORPHANS = """
SELECT DISTINCT hex(account_id) FROM tillroll_entries
WHERE account_id NOT IN (SELECT account_id FROM tillroll_accounts)
"""
_ACCOUNT_COLUMNS = """
SELECT account_id, project, account, at, next_due_at, least, state FROM tillroll_accounts
"""
_REFUSAL_COLUMNS = """
SELECT account_id, project, account, request_id, recorded_at, body FROM tillroll_refusals
"""
_PRICE_COLUMNS = """
SELECT project, number, digest, author, reason, applied_at, body FROM tillroll_price_versions
"""
_PROJECTS = """
SELECT project FROM tillroll_accounts UNION SELECT project FROM tillroll_refusals
UNION SELECT project FROM tillroll_price_versions ORDER BY 1
"""
_REFUSAL_PAGE = """
SELECT project, account, account_id, body FROM tillroll_refusals
WHERE (request_id, account_id) > (?, ?) ORDER BY request_id, account_id LIMIT ?
"""
_REPEATS_PAGE = """
SELECT account_id, request_id, times, last_at FROM tillroll_replays
WHERE (request_id, account_id) > (?, ?) ORDER BY request_id, account_id LIMIT ?
"""
_MOVED_TO = "SELECT value FROM tillroll_meta WHERE name = 'moved_to'"
_NEEDS = "SELECT value FROM tillroll_meta WHERE name = 'needs'"
_BROUGHT = "SELECT value FROM tillroll_meta WHERE name = 'brought'"
_SET_BROUGHT = "REPLACE INTO tillroll_meta (name, value) VALUES ('brought', ?)"
_NEED = """
INSERT INTO tillroll_meta (name, value) VALUES ('needs', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE CAST(tillroll_meta.value AS INTEGER) < CAST(excluded.value AS INTEGER)
"""
_REGISTRY_VERSION = "SELECT value FROM tillroll_meta WHERE name = 'registry_version'"
_SET_REGISTRY_VERSION = """
REPLACE INTO tillroll_meta (name, value) VALUES ('registry_version', ?)
"""
_KINDS = "SELECT DISTINCT kind FROM tillroll_registry ORDER BY kind"
_DOCUMENTS = "SELECT name, document FROM tillroll_registry WHERE kind = ? ORDER BY name"
_DOCUMENT = "SELECT document FROM tillroll_registry WHERE kind = ? AND name = ?"
_PUT_DOCUMENT = "REPLACE INTO tillroll_registry (kind, name, document) VALUES (?, ?, ?)"
_REMOVE_DOCUMENT = "DELETE FROM tillroll_registry WHERE kind = ? AND name = ?"
_NOTE_COLUMNS = """
SELECT account_id, kind, name, project, document, account, version, due_at FROM tillroll_notes
"""
_NOTE = _NOTE_COLUMNS + "WHERE account_id = ? AND kind = ? AND name = ?"
_NOTES = (
    _NOTE_COLUMNS
    + """
WHERE (account_id, kind, name) > (?, ?, ?) ORDER BY account_id, kind, name LIMIT ?
"""
)
_NOTES_DUE = (
    _NOTE_COLUMNS
    + """
WHERE project = ? AND kind = ? AND due_at <= ? ORDER BY due_at, account_id, name LIMIT ?
"""
)
_NOTES_OF = (
    _NOTE_COLUMNS
    + """
WHERE project = ? AND account = ? AND kind = ? AND name > ? ORDER BY name LIMIT ?
"""
)
_SET_NOTE = """
UPDATE tillroll_notes SET
    project = ?4, document = ?5, account = ?6, version = ?7 + 1, due_at = ?8
WHERE account_id = ?1 AND kind = ?2 AND name = ?3 AND version = ?7
"""
_HASTEN_NOTE = """
UPDATE tillroll_notes SET due_at = ?4, version = version + 1
WHERE account_id = ?1 AND kind = ?2 AND name = ?3 AND due_at > ?4 AND due_at < ?5
"""
_DROP_NOTE = """
DELETE FROM tillroll_notes WHERE account_id = ? AND kind = ? AND name = ? AND version = ?
"""
_PUT_NOTE = """
INSERT {} INTO tillroll_notes (
    account_id, kind, name, project, document, account, version, due_at
) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
"""
_ROWS_MAX = 128  # of ten values: far below SQLite's 32,766 parameters


@lru_cache(maxsize=256)
def _for_rows(template: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return template.format(", ".join([row] * rows))


def _many(
    connection: Connection, template: str, rows: Sequence[tuple[object, ...]]
) -> Iterator[tuple[Any, ...]]:
    """Run a statement over rows, many at a time, in powers of two so that few are prepared."""
    first = 0
    while left := len(rows) - first:
        size = min(_ROWS_MAX, 1 << left.bit_length() - 1)
        part = rows[first : first + size]
        sql = _for_rows(template, size, len(part[0]))
        yield from connection.execute(sql, tuple(itertools.chain.from_iterable(part)))
        first += size


_STORED = (
    "SELECT body, hash, metadata, seq, request_id, ref, kind, recorded_at, effective_at "
    "FROM tillroll_entries WHERE account_id = ?1 "
)

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
                    check_needs(connection.execute(_NEEDS).get)
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
                return list(_contradictions(reader.connection))
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


class SqliteReader(OutboxReader):
    """What may be read within one database transaction."""

    states_trail = True
    _sql = statements(Dialect(mark="?", key="?", owner="account_id"))
    _mark = "?"

    def __init__(self, connection: Connection) -> None:
        """Read through this connection."""
        self.connection = connection

    def accounts(self, wanted: Iterable[tuple[bytes, str]]) -> dict[bytes, Account]:
        """Return each account named by (account_id, name); an empty one where it is new."""
        found = self._remember_all(list(wanted))
        return {owner: remembered.account for owner, remembered in found.items()}

    def _remember(self, owner: bytes, name: str) -> Remembered:
        """Return an account: its row, and folded on top what was added since."""
        rows: list[Any] = self.connection.execute(_STATE_AND_TRAIL, (owner,)).fetchall()
        if not rows:
            return Remembered(Account(name))
        found = revived(*rows[0])
        for _, hash_, _, body in rows[1:]:
            catch_up(found.account, decode_entry(body), hash_)
        found.account.next_due_at = next_due(found.account)
        return found

    def _remember_all(self, wanted: Sequence[tuple[bytes, str]]) -> dict[bytes, Remembered]:
        """Return accounts as `_remember` does; many by one statement."""
        if len(wanted) == 1:
            return {owner: self._remember(owner, name) for owner, name in wanted}
        found = {owner: Remembered(Account(name)) for owner, name in wanted}
        trails: list[tuple[bytes, int, str, str]] = []
        for (text,) in _many(self.connection, _STATES_AND_TRAILS, [(owner,) for owner in found]):
            for owner, seq, hash_, due, document in _lines(text):
                if due is None:
                    trails.append((owner, seq, hash_, document))
                else:
                    found[owner] = revived(seq, bytes.fromhex(hash_), due, document)
        for owner, _, hash_, body in sorted(trails):
            catch_up(found[owner].account, decode_entry(body), bytes.fromhex(hash_))
        for remembered in found.values():
            if remembered.seq:
                remembered.account.next_due_at = next_due(remembered.account)
        return found

    def first_metadata(self, account_ids: Collection[bytes]) -> dict[bytes, int]:
        """Return where the metadata of each account begins."""
        sql = (
            "SELECT seq FROM tillroll_entries "
            "WHERE account_id = ? AND metadata IS NOT NULL ORDER BY seq LIMIT 1"
        )
        found = {owner: self.connection.execute(sql, (owner,)).get for owner in account_ids}
        return {owner: seq for owner, seq in found.items() if seq is not None}

    def stored_state(self, account_id: bytes) -> tuple[int, bytes, str] | None:
        """Return seq, chain head and state document as stored."""
        row: tuple[int, bytes, str] | None = self.connection.execute(_STATE, (account_id,)).get
        return row

    def answers(self, keys: Sequence[Key]) -> dict[Key, Entry | Refusal]:
        """Return what was answered to these keys; an entry wins over an older refusal."""
        wanted = [(request_id, owner) for owner, request_id in keys]
        rows: Iterable[tuple[Any, ...]]
        if len(wanted) == 1:
            rows = self.connection.execute(_FIND_ANSWER, wanted[0])
        else:
            rows = _many(self.connection, _FIND_ANSWERS, wanted)
        found: dict[Key, Entry | Refusal] = {}
        for owner, request_id, entry, refusal in rows:
            if entry is not None:
                found[owner, request_id] = decode_entry(entry)
            else:
                found.setdefault((owner, request_id), decode_refusal(refusal))
        return found

    def load(
        self, _project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Return these accounts, and what was answered to these keys."""
        return self.accounts(wanted.items()), self.answers(keys)

    def stories(self, keys: Collection[Key]) -> dict[Key, Story]:
        """Return, for each id, the entry that made it and those that refer to it."""
        return {key: self._story(key) for key in keys}

    def _story(self, key: Key) -> Story:
        owner, name = key
        root = self.connection.execute(
            "SELECT body FROM tillroll_entries WHERE request_id = ? AND account_id = ?",
            (name, owner),
        ).get
        acts = self.connection.execute(
            "SELECT body FROM tillroll_entries WHERE account_id = ? AND ref = ? ORDER BY seq", key
        )
        return (
            None if root is None else decode_entry(root),
            [decode_entry(body) for (body,) in acts],
        )

    def entries(self, account_id: bytes, after: int = 0, limit: int = 1_000) -> list[Stored]:
        """Return the entries with a seq above `after`, oldest first."""
        sql = _STORED + "AND seq > ?2 ORDER BY seq LIMIT ?3"
        return [_stored(row) for row in self.connection.execute(sql, (account_id, after, limit))]

    def entries_before(self, account_id: bytes, before: int, limit: int) -> list[Stored]:
        """Return the entries with a seq below `before`, newest first."""
        sql = _STORED + "AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
        return [_stored(row) for row in self.connection.execute(sql, (account_id, before, limit))]

    def find(self, project: str, request_id: str) -> list[str]:
        """Return the accounts that know this request id, sorted."""
        rows = self.connection.execute(
            "SELECT a.account FROM tillroll_entries AS e JOIN tillroll_accounts AS a "
            "ON e.account_id = a.account_id WHERE e.request_id = ?1 AND a.project = ?2 "
            "UNION SELECT account FROM tillroll_refusals "
            "WHERE request_id = ?1 AND project = ?2 ORDER BY 1",
            (request_id, project),
        )
        return [name for (name,) in rows]

    def replays(self, key: Key) -> tuple[int, int]:
        """Return how often a request was repeated and when last."""
        owner, request_id = key
        row = self.connection.execute(
            "SELECT times, last_at FROM tillroll_replays WHERE request_id = ? AND account_id = ?",
            (request_id, owner),
        ).get
        return row or (0, 0)

    def names(self, project: str, after: str = "", limit: int = 1_000) -> list[str]:
        """Return account names in order, above `after`."""
        rows = self.connection.execute(
            "SELECT account FROM tillroll_accounts WHERE project = ? AND account > ? "
            "ORDER BY account LIMIT ?",
            (project, after, limit),
        )
        return [name for (name,) in rows]

    def due(self, project: str, at: int, limit: int = 1_000) -> list[str]:
        """Return accounts that something fell due on by `at`, the longest due first."""
        rows = self.connection.execute(
            "SELECT account FROM tillroll_accounts WHERE next_due_at <= ? AND project = ? "
            "ORDER BY next_due_at LIMIT ?",
            (at, project, limit),
        )
        return [name for (name,) in rows]

    def prices(self, project: str) -> PriceBook:
        """Return all price versions; the newest is current."""
        rows = self.connection.execute(
            "SELECT body FROM tillroll_price_versions WHERE project = ? ORDER BY number", (project,)
        )
        book = PriceBook()
        for (body,) in rows:
            book = book.adding(decode_version(body.encode()))
        return book

    def projects(self) -> list[str]:
        """Return the projects that have anything here."""
        return [project for (project,) in self.connection.execute(_PROJECTS)]

    def refusals(self, after: Key | None = None, limit: int = 1_000) -> list[Remembrance]:
        """Return remembered refusals in order."""
        owner, name = after or (b"", "")
        rows = self.connection.execute(_REFUSAL_PAGE, (name, owner, limit))
        return [
            Remembrance(project, account, owner, decode_refusal(body))
            for project, account, owner, body in rows
        ]

    def repeats(self, after: Key | None = None, limit: int = 1_000) -> list[Repeats]:
        """Return how often requests were repeated."""
        owner, name = after or (b"", "")
        rows = self.connection.execute(_REPEATS_PAGE, (name, owner, limit))
        return [Repeats(*row) for row in rows]

    def brought(self) -> str | None:
        """Return what the last copy said of what it brought."""
        told: str | None = self.connection.execute(_BROUGHT).get
        return told

    def needs(self) -> int:
        """Return the lowest format that a tillroll must know."""
        found: str | None = self.connection.execute(_NEEDS).get
        return 1 if found is None else int(found)

    def moved_to(self) -> str | None:
        """Return where this ledger went."""
        where: str | None = self.connection.execute(_MOVED_TO).get
        return where

    def registry_version(self) -> int:
        """Return how many transactions have put a document."""
        return int(self.connection.execute(_REGISTRY_VERSION).get or 0)

    def kinds(self) -> list[str]:
        """Return the kinds that there are documents of, sorted."""
        return [kind for (kind,) in self.connection.execute(_KINDS)]

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by their names, sorted by name."""
        return dict(self.connection.execute(_DOCUMENTS, (kind,)))

    def document(self, kind: str, name: str) -> str | None:
        """Return one document."""
        found: str | None = self.connection.execute(_DOCUMENT, (kind, name)).get
        return found

    def topics(self, project: str) -> frozenset[str]:
        """Return the types of events that some endpoint of the project wants."""
        return topics_in(self, project)

    def note(self, key: NoteKey) -> Note | None:
        """Return one note."""
        return next(iter(self._notes(_NOTE, *key)), None)

    def notes(self, after: NoteKey | None = None, limit: int = 1_000) -> list[Note]:
        """Return all notes in order."""
        return self._notes(_NOTES, *(after or (b"", "", "")), limit)

    def notes_due(self, project: str, kind: str, at: int, limit: int = 1_000) -> list[Note]:
        """Return what is due, the longest due first."""
        return self._notes(_NOTES_DUE, project, kind, at, limit)

    def notes_of(
        self, project: str, account: str, kind: str, after: str = "", limit: int = 1_000
    ) -> list[Note]:
        """Return an account's notes of a kind."""
        return self._notes(_NOTES_OF, project, account, kind, after, limit)

    def _notes(self, sql: str, *wanted: object) -> list[Note]:
        return [note_of(row) for row in self.connection.execute(sql, wanted)]

    def _run(self, *statements: Statement) -> list[Rows]:
        return [self.connection.execute(*statement).fetchall() for statement in statements]

    def _key(self, owner: bytes) -> bytes:
        return owner


class SqliteWriter(SqliteReader, OutboxWriter):
    """What may be done within one database transaction that writes."""

    part = 0

    def __init__(
        self,
        connection: Connection,
        states: dict[bytes, Remembered],
        prices: dict[str, PriceBook],
        places: dict[Literal["moved_to"], str | None],
        topics: dict[str, frozenset[str]],
    ) -> None:
        """Write through this connection, with what is remembered of accounts, prices and so on.

        What is remembered is changed on the way: after a rollback it has to be forgotten.
        """
        super().__init__(connection)
        self._states = states
        self._prices = prices
        self._places = places
        self._topics = topics
        self._counted = False  # whether this transaction's documents count in the version

    def accounts(self, wanted: Iterable[tuple[bytes, str]]) -> dict[bytes, Account]:
        """Return accounts, remembered ones first; nobody else has written since."""
        known = self._states
        asked = list(wanted)
        if new := [one for one in asked if one[0] not in known]:
            known.update(self._remember_all(new))
        return {owner: known[owner].account for owner, _ in asked}

    def load_locked(self, _project: str, wanted: Mapping[bytes, str]) -> dict[bytes, Account]:
        """Return these accounts; nobody else writes before this transaction ends."""
        return self.accounts(wanted.items())

    def prices(self, project: str) -> PriceBook:
        """Return the price book, remembered while nobody else has written."""
        known = self._prices
        book = known.get(project)
        if book is None:
            book = known[project] = super().prices(project)
        return book

    def topics(self, project: str) -> frozenset[str]:
        """Return what is listened to, remembered while nobody has put a document."""
        known = self._topics.get(project)
        if known is None:
            known = self._topics[project] = super().topics(project)
        return known

    def need(self, format_: int) -> None:
        """Refuse the ledger to a tillroll that does not know this format."""
        self.connection.execute(_NEED, (str(format_),))

    def moved_to(self) -> str | None:
        """Return where this ledger went, remembered while nobody else has written."""
        if "moved_to" not in self._places:
            self._places["moved_to"] = super().moved_to()
        return self._places["moved_to"]

    def send(self, book: Book) -> None:
        """Do nothing: SQLite works in the thread that decides."""

    def append(self, project: str, book: Book) -> None:
        """Write what the book gathered."""
        if book.appended:
            self.connection.executemany(_ADD_ENTRY, [_entry_row(new) for new in book.appended])
        known = self._states
        stale = [o for o in book.accounts if known[o].is_behind or known[o].is_early(book.at)]
        self.write_states([(owner, project) for owner in stale if known[owner].account.seq])
        if book.refused:
            # A request refused twice in one batch (retry_refused) keeps the last refusal.
            last = {
                (refusal.request_id, owner): (
                    refusal.request_id,
                    owner,
                    project,
                    book.accounts[owner].account,
                    refusal.at,
                    encode(refusal).decode(),
                )
                for owner, refusal in book.refused
            }
            self._write(_SET_REFUSALS, list(last.values()))
        if book.replayed:
            self._write(_COUNT_REPLAYS, [(name, owner, 1, at) for owner, name, at in book.replayed])
        if book.events:
            self.add_events([Waiting(event, spread=False) for event in book.events])
        if book.low:
            rows = [(*key, book.at, NEVER) for key in low_notes(book)]
            self.connection.executemany(_HASTEN_NOTE, rows)

    def write_states(self, stale: Sequence[tuple[bytes, str]]) -> None:
        """Bring the rows of these accounts, each with its project, up to their entries."""
        rows: dict[str, list[tuple[object, ...]]] = {}
        for owner, project in stale:
            remembered = self._states[owner]
            if not remembered.seq:
                sql = _ADD_ACCOUNT
            elif remembered.account.next_due_at == remembered.due:
                sql = _SET_ACCOUNT_AS_DUE
            else:
                sql = _SET_ACCOUNT
            rows.setdefault(sql, []).append(_account_row(owner, project, remembered))
        before = self.connection.total_changes()
        for sql, alike in rows.items():
            self.connection.executemany(sql, alike)
        if self.connection.total_changes() - before != len(stale):
            raise StoreCorrupt("an account has entries but no row; nothing was written")

    def bring_rows_up(self, wanted: Sequence[tuple[bytes, str]]) -> None:
        """Write the states of these accounts where they trail behind their entries."""
        self.accounts(wanted)
        known = self._states
        sql = "SELECT project FROM tillroll_accounts WHERE account_id = ?"
        trailing = [owner for owner, _ in wanted if known[owner].seq != known[owner].account.seq]
        self.write_states([(o, str(self.connection.execute(sql, (o,)).get)) for o in trailing])

    def _write(self, template: str, rows: Sequence[tuple[object, ...]]) -> None:
        for _ in _many(self.connection, template, rows):
            raise AssertionError("a statement that writes returned a row")

    def add_price_version(self, project: str, version: PriceVersion) -> None:
        """Write a new price version."""
        self.connection.execute(
            "INSERT INTO tillroll_price_versions (project, number, digest, author, reason, "
            "applied_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                project,
                version.number,
                version.digest,
                version.author,
                version.reason,
                version.applied_at,
                encode_version(version).decode(),
            ),
        )
        self._prices.clear()

    def erase_metadata(self, account_id: bytes, before: int = SEQ_MAX) -> int:
        """Erase the metadata of an account's entries below that seq."""
        self.connection.execute(
            "UPDATE tillroll_entries SET metadata = NULL "
            "WHERE account_id = ? AND seq < ? AND metadata IS NOT NULL",
            (account_id, before),
        )
        return self.connection.changes()

    def add_repeats(self, repeats: Sequence[Repeats]) -> None:
        """Write how often requests were repeated."""
        rows = [(name, owner, times, last_at) for owner, name, times, last_at in repeats]
        sql = "REPLACE INTO tillroll_replays (request_id, account_id, times, last_at) "
        self.connection.executemany(sql + "VALUES (?, ?, ?, ?)", rows)

    def set_moved(self, to: str | None) -> None:
        """Mark the ledger as gone to another place, or as here again."""
        self._places.clear()
        if to is None:
            self.connection.execute("DELETE FROM tillroll_meta WHERE name = 'moved_to'")
        else:
            sql = "REPLACE INTO tillroll_meta (name, value) VALUES ('moved_to', ?)"
            self.connection.execute(sql, (to,))

    def set_brought(self, told: str) -> None:
        """Say what a copy brought."""
        self.connection.execute(_SET_BROUGHT, (told,))

    def put_document(self, kind: str, name: str, document: str | None) -> None:
        """Insert or replace a document; None removes it."""
        self._topics.clear()
        if not self._counted:
            self.set_registry_version(self.registry_version() + 1)
        if document is None:
            self.connection.execute(_REMOVE_DOCUMENT, (kind, name))
        else:
            self.connection.execute(_PUT_DOCUMENT, (kind, name, document))

    def set_registry_version(self, version: int) -> None:
        """Have the registry go on from this version; nobody else writes to the file meanwhile."""
        self.connection.execute(_SET_REGISTRY_VERSION, (str(version),))
        self._counted = True
        self._topics.clear()

    def put_note(self, note: Note) -> None:
        """Write a note, where its version is the one that is there."""
        row = note_row(note)
        if note.version == 0:
            self.connection.execute(_PUT_NOTE.format("OR IGNORE"), (*row[:6], 1, row[7]))
        else:
            self.connection.execute(_SET_NOTE, row)
        if self.connection.changes() != 1:
            raise Retry("a note was written by somebody else")

    def drop_note(self, note: Note) -> None:
        """Delete a note, where its version is the one that is there."""
        self.connection.execute(_DROP_NOTE, (*note.key, note.version))
        if self.connection.changes() != 1:
            raise Retry("a note was written by somebody else")

    def copy_notes(self, notes: Sequence[Note]) -> None:
        """Write notes as they are."""
        sql = _PUT_NOTE.format("OR REPLACE")
        self.connection.executemany(sql, [note_row(note) for note in notes])

    def prune_refusals(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest refusals recorded before that time."""
        old = self.connection.execute(_DROP_REFUSALS, (before, limit)).fetchall()
        self.connection.executemany(_DROP_REPLAYS, old)
        return len(old)


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


def _contradictions(connection: Connection) -> Iterator[str]:
    """Yield what no refolding finds: rows without an owner, and columns that repeat it wrongly."""
    if gone := connection.execute(_ENTRIES_GONE).get:
        yield f"{gone} entries are missing between the first and the last one written"
    for (owner,) in connection.execute(_ORPHANS):
        yield f"account_id {owner} has entries but no account"
    yield from _bad_accounts(connection)
    for owner, project, name, request_id, at, body in connection.execute(_REFUSAL_COLUMNS):
        try:
            refusal = decode_refusal(body)
        except msgspec.MsgspecError as problem:
            yield f"refusal {request_id!r} of {name!r} cannot be read: {problem}"
            continue
        columns = (account_id(project, name), refusal.request_id, refusal.at)
        if columns != (owner, request_id, at):
            yield f"refusal {request_id!r} of {name!r}: a column differs from it"
    for project, number, *told, body in connection.execute(_PRICE_COLUMNS):
        try:
            version = decode_version(body.encode())
        except TillrollError as problem:
            yield f"price version {number} of {project!r} cannot be read: {problem}"
            continue
        repeated_ = [version.digest, version.author, version.reason, version.applied_at]
        if version.number != number or repeated_ != told:
            yield f"price version {number} of {project!r}: a column differs from it"


def _bad_accounts(connection: Connection) -> Iterator[str]:
    for owner, project, name, at, due, least_, state in connection.execute(_ACCOUNT_COLUMNS):
        try:
            account = decode_account(state)
        except msgspec.MsgspecError as problem:
            yield f"account {name!r}: its state cannot be read: {problem}"
            continue
        repeated = (account_id(project, name), name, account.at, next_due(account), least(account))
        if repeated != (owner, account.account, at, due, least_):
            yield f"account {name!r}: a column differs from its state"


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
        check_needs(connection.execute(_NEEDS).get)
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


def _lines(text: str | None) -> Iterator[tuple[bytes, int, str, int | None, str]]:
    """Yield what lies in `_STATES_AND_TRAILS`: owner, seq, hash, due date of a row, document."""
    for line in text.split("\n") if text else ():
        try:
            owner, seq, hash_, due, document = line.split(" ", 4)
            yield bytes.fromhex(owner), int(seq), hash_, None if due == "-" else int(due), document
        except ValueError as error:
            raise StoreCorrupt(
                "an account's state or an entry cannot be read: restore a backup; nothing was "
                "written"
            ) from error


def _account_row(owner: bytes, project: str, remembered: Remembered) -> tuple[object, ...]:
    """Return the row of an account as it has to be now, and note that it is."""
    account = remembered.account
    state = encode_state(account).decode()
    remembered.seq, remembered.due = account.seq, account.next_due_at
    remembered.trail = trail_of(state)
    return (
        owner,
        project,
        account.account,
        account.seq,
        account.head,
        account.at,
        account.next_due_at,
        least(account),
        state,
    )


def _entry_row(sealed: Sealed) -> tuple[object, ...]:
    entry = sealed.entry
    return (
        sealed.account_id,
        entry.seq,
        entry.request_id,
        entry.ref,
        entry.kind,
        entry.at,
        entry.effective_at,
        sealed.body.decode(),
        sealed.hash,
        sealed.metadata,
    )


def _stored(
    row: tuple[str, bytes, str | None, int, str | None, str | None, str, int, int],
) -> Stored:
    return Stored(row[0].encode(), *row[1:])
