"""The write-ahead journal of a client: what must reach the service, whatever becomes of us.

One SQLite file, through apsw, which the core depends on already: it brings durable commits, locks
between the processes that share the file, and a bound checked and taken in one transaction. A file
of our own with an fsync would have needed all three written anew.

A request is written and synced before it is sent, and removed after a definite answer. Whoever
opens the file next delivers what is left. Two processes may deliver one request at once: it has
one request id, so the ledger does it once. Requests of one hold are sent in order, each after the
one before was answered, which keeps that order whoever sends them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Literal

import apsw
import msgspec
from msgspec import Struct

from tillroll.client.conversation import Call
from tillroll.client.exposure import FailOpen
from tillroll.ledger import calendar
from tillroll.ledger.errors import (
    IdempotencyConflict,
    InvalidInput,
    SchemaMismatch,
    StoreClosed,
    StoreFull,
    StoreUnavailable,
    TillrollError,
)

APPLICATION_ID = 0x7472_6A31  # "trj1"
VERSION = 1
BUSY_MILLISECONDS = 10_000
WAITING_MAX = 100_000  # about 100 MB; a service that was away for so many is missed otherwise
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    request_id TEXT NOT NULL,
    queue TEXT NOT NULL,
    call BLOB NOT NULL,
    exposure TEXT,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'refused')),
    problem TEXT,
    code TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    at INTEGER NOT NULL,
    UNIQUE (account, request_id)
) STRICT;
CREATE INDEX calls_in_order ON calls (account, queue, id);
CREATE INDEX calls_by_state ON calls (state);
"""
_COLUMNS = "id, call, exposure, state, problem, code, tries, at"
_calls = msgspec.json.Decoder(Call)

# Journals of this process: closed before a fork, since a child must not inherit an open SQLite file
# (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_).
_OPEN: weakref.WeakSet[Journal] = weakref.WeakSet()


class Pending(Struct, frozen=True):
    """A request in the journal that no definite answer has come for, or that was refused late.

    Attributes:
        state: "waiting" to be delivered; "refused" when it was delivered and the answer was no,
            which nobody may have heard: it stays until `Client.dismiss`.
        problem: What the last attempt to deliver it came to, None where there was none.
        code: The code of that problem.
        tries: How many deliveries were tried.
        exposure: Units that were let through for it; None where it was not.
    """

    account: str
    request_id: str
    verb: str
    hold_id: str | None
    units: Decimal | None
    exposure: Decimal | None
    state: Literal["waiting", "refused"]
    problem: str | None
    code: str | None
    tries: int
    since: str


class Row(Struct, frozen=True):
    """A request as the journal keeps it."""

    id: int
    call: Call
    exposure: Decimal | None
    state: Literal["waiting", "refused"]
    problem: str | None
    code: str | None
    tries: int
    at: int

    @property
    def queue(self) -> tuple[str, str]:
        """What it must keep its order within."""
        return self.call.account, self.call.queue

    def shown(self) -> Pending:
        """Return it as callers see it."""
        call = self.call
        return Pending(
            account=call.account,
            request_id=call.request_id or "",
            verb=call.verb,
            hold_id=None if call.queue == call.request_id else call.queue,
            units=None if call.units is None else Decimal(call.units),
            exposure=self.exposure,
            state=self.state,
            problem=self.problem,
            code=self.code,
            tries=self.tries,
            since=calendar.show_instant(self.at),
        )


Run = Callable[[str, tuple[Any, ...]], list[Any]]


class Journal:
    """The file. Its methods wait for a disk; safe between threads, processes and across forks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the journal at this path, making it where there is none.

        Raises:
            InvalidInput: The path names no file, or a file that is something else.
            StoreUnavailable: The file cannot be used.
        """
        self.path = os.fspath(path)
        if self.path in ("", ":memory:"):
            raise InvalidInput("a journal needs a file: in memory it would not outlive its process")
        self._lock = threading.Lock()
        self._closed = False
        self._connection: apsw.Connection | None = None
        with self._transaction():
            pass
        _OPEN.add(self)

    # ------------------------------------------------------------ what is written

    def write(self, call: Call) -> tuple[Row, bool]:
        """Keep a call until it is answered; return it, and whether it was there before.

        Raises:
            IdempotencyConflict: Another call has its request id.
        """
        with self._transaction() as run:
            return self._entered(run, call, None)

    def let_through(self, call: Call, exposure: Decimal, bounds: FailOpen) -> Row | None:
        """Keep a call that is let through; None where the bounds do not allow it.

        A call that is there already takes nothing more of them.

        Raises:
            IdempotencyConflict: Another call has its request id.
        """
        with self._transaction() as run:
            if self._found(run, call) is None:
                account = self._exposed(run, "account = ?", (call.account,))
                everywhere = account if bounds.total is None else self._exposed(run, "1", ())
                if not bounds.fits(account + exposure, everywhere + exposure):
                    return None
            return self._entered(run, call, exposure)[0]

    def remove(self, row: Row) -> None:
        """Forget a call that was answered. Not synced: delivering it once more does nothing."""
        with self._transaction(synced=False) as run:
            run("DELETE FROM calls WHERE id = ?", (row.id,))

    def fail(self, row: Row, problem: TillrollError, *, final: bool) -> None:
        """Note what became of a delivery; a final answer ends all further ones."""
        with self._transaction(synced=False) as run:
            run(
                "UPDATE calls SET tries = tries + 1, problem = ?, code = ?, "
                "state = CASE WHEN ? THEN 'refused' ELSE state END "  # another may know better
                "WHERE id = ? AND (? OR state = 'waiting')",
                (str(problem), problem.code, final, row.id, final),
            )

    def dismiss(self, account: str, request_id: str) -> bool:
        """Forget a call that was refused; return whether there was one."""
        with self._transaction() as run:
            gone = run(
                "DELETE FROM calls WHERE account = ? AND request_id = ? AND state = 'refused' "
                "RETURNING id",
                (account, request_id),
            )
            return bool(gone)

    def claim(self, project: str, mode: str, scale: int) -> None:
        """Bind the journal to the project whose calls it keeps.

        Raises:
            InvalidInput: It is another project's: its calls must not reach this one.
        """
        with self._transaction() as run:
            known = dict(run("SELECT name, value FROM facts", ()))
            wanted = {"project": project, "mode": mode, "scale": str(scale)}
            if known and known != wanted:
                raise InvalidInput(
                    f"the journal {self.path} is that of project {known.get('project')!r} "
                    f"({known.get('mode')}); use a journal of its own for {project!r} ({mode})"
                )
            if not known:
                for item in wanted.items():
                    run("INSERT INTO facts (name, value) VALUES (?, ?)", item)

    # ------------------------------------------------------------ what is there

    @property
    def scale(self) -> int | None:
        """Decimals of the project's units, None before the first conversation."""
        with self._transaction(writing=False) as run:
            found = run("SELECT value FROM facts WHERE name = 'scale'", ())
        return int(found[0][0]) if found else None

    def rows(self, *, waiting: bool = False) -> list[Row]:
        """Return all calls, or those that wait, oldest first."""
        where = "state = 'waiting'" if waiting else "1"
        with self._transaction(writing=False) as run:
            return self._select(run, where, ())

    def before(self, row: Row) -> list[Row]:
        """Return the calls that wait and must arrive before this one."""
        with self._transaction(writing=False) as run:
            return self._select(
                run,
                "account = ? AND queue = ? AND id < ? AND state = 'waiting'",
                (*row.queue, row.id),
            )

    def find(self, call: Call) -> Row | None:
        """Return what is kept under the request id of a call.

        Raises:
            IdempotencyConflict: It is another call.
        """
        with self._transaction(writing=False) as run:
            return self._found(run, call)

    # ------------------------------------------------------------ within a transaction

    def _entered(self, run: Run, call: Call, exposure: Decimal | None) -> tuple[Row, bool]:
        found = self._found(run, call)
        if found is not None:
            if found.state == "refused":  # asked for anew
                run("UPDATE calls SET state = 'waiting' WHERE id = ?", (found.id,))
            return found, True
        [(waiting,)] = run("SELECT count(*) FROM calls WHERE state = 'waiting'", ())
        if waiting >= WAITING_MAX:
            raise StoreFull(f"the journal {self.path} keeps {waiting} requests, which is its most")
        run(
            "INSERT INTO calls (account, request_id, queue, call, exposure, state, at) "
            "VALUES (?, ?, ?, ?, ?, 'waiting', ?)",
            (
                call.account,
                call.request_id,
                call.queue,
                msgspec.json.encode(call),
                None if exposure is None else format(exposure, "f"),
                time.time_ns() // 1_000,
            ),
        )
        found = self._found(run, call)
        assert found is not None
        return found, False

    def _found(self, run: Run, call: Call) -> Row | None:
        where = "account = ? AND request_id = ?"
        rows = self._select(run, where, (call.account, call.request_id))
        if rows and rows[0].call.fingerprint != call.fingerprint:
            error = IdempotencyConflict("the journal keeps another request under this request_id")
            error.request_id = call.request_id
            raise error
        return rows[0] if rows else None

    def _select(self, run: Run, where: str, values: tuple[Any, ...]) -> list[Row]:
        statement = f"SELECT {_COLUMNS} FROM calls WHERE {where} ORDER BY id"  # noqa: S608 - ours
        return [
            Row(
                number,
                _calls.decode(call),
                None if exposure is None else Decimal(exposure),
                state,
                problem,
                code,
                tries,
                at,
            )
            for number, call, exposure, state, problem, code, tries, at in run(statement, values)
        ]

    def _exposed(self, run: Run, where: str, values: tuple[Any, ...]) -> Decimal:
        let = f"{where} AND state = 'waiting' AND exposure IS NOT NULL"
        found = run(f"SELECT exposure FROM calls WHERE {let}", values)  # noqa: S608 - ours
        return sum((Decimal(text) for (text,) in found), Decimal(0))

    # ------------------------------------------------------------ the file

    @contextlib.contextmanager
    def _transaction(self, *, writing: bool = True, synced: bool = True) -> Iterator[Run]:
        """Run statements in one transaction of the file."""
        with self._lock:
            if self._closed:
                raise StoreClosed("the client is closed; nothing was written")
            try:
                connection = self._connection = self._connection or self._open()
                if writing:
                    connection.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
                try:
                    yield lambda sql, values: connection.execute(sql, values).fetchall()
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except apsw.Error as problem:
                raise StoreUnavailable(f"the journal {self.path}: {problem}") from problem

    def _open(self) -> apsw.Connection:
        with contextlib.suppress(OSError):  # SQLite says better what is wrong
            # What it keeps is the customers' business: for the owner's eyes, as its log will be.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(self.path)
        try:
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA synchronous=FULL")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: apsw.Connection) -> None:
        """Make the tables where there are none."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            identity = connection.pragma("application_id")
            version = connection.pragma("user_version")
            if (identity, version) == (0, 0) and not connection.pragma("schema_version"):
                connection.execute(_SCHEMA)
                connection.pragma("application_id", APPLICATION_ID)
                connection.pragma("user_version", VERSION)
            elif identity != APPLICATION_ID:
                raise InvalidInput(f"{self.path} is another program's file, not a journal")
            elif version != VERSION:
                raise SchemaMismatch(f"{self.path} was written by a newer tillroll")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        with self._lock:
            self._closed = True
            self._leave()

    def _leave(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(apsw.Error):
                self._connection.close()
            self._connection = None

    def before_fork(self) -> None:
        """Close the file; it is opened again on either side when it is needed."""
        self._lock.acquire()
        self._leave()

    def after_fork(self) -> None:
        """Go on, on either side."""
        self._lock.release()


_FORKING: list[Journal] = []


def _before_fork() -> None:
    _FORKING[:] = list(_OPEN)
    for journal in _FORKING:
        journal.before_fork()


def _after_fork() -> None:
    for journal in _FORKING:
        journal.after_fork()
    _FORKING.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
