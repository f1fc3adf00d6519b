"""The PostgreSQL driver: one connection that writes, others that read, many processes at once.

Group commit makes one writing connection enough; any number of processes may write the same
accounts, which they lock row by row in the order of their ids. States of accounts seen last are
remembered: under the lock, only what others added since has to be read.

A connection that is lost before the answer to COMMIT leaves the outcome unknown; so does
PostgreSQL's warning that a wait for a synchronous standby was cancelled
(https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION). What happened
is then looked up under the locks, which a writer that still lives would hold.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlencode

import msgspec
import psycopg
from psycopg import conninfo, errors, sql
from psycopg.rows import tuple_row

from tillroll.ledger.chain import decode_account
from tillroll.ledger.commands import account_id
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import (
    DurabilityWarning,
    InvalidInput,
    OutcomeUnknown,
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
    CommitUncertain,
    Migration,
    Retry,
    bad_refusals,
    bad_versions,
    check_needs,
    least,
    migrations,
    pending,
    persist,
)
from tillroll.stores.postgres_rows import (
    COPY_MIN,
    NEEDS,
    PLACE,
    Doubt,
    PostgresReader,
    PostgresWriter,
    Remembered,
    Way,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg import Copy
    from psycopg.abc import RV, PQGen

    from tillroll.stores.postgres_rows import Rows, Statement


class GaveUp(Exception):
    """Tells psycopg to break off a COPY."""


class NoAnswer(psycopg.OperationalError):
    """The server said nothing for too long; the connection was given up."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait for ever.

    The server's own time-outs do not count while a commit waits for a standby, nor where the
    server cannot be heard. It is not asked to cancel, but by psycopg itself on Ctrl-C: a commit
    might then count on this server only, and so is unknown.
    """

    patience: float | None = None
    pooled = False  # whether the server behind it may be another one in each transaction

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for the server, as long as there is patience."""
        if self.patience is not None:
            gen = self._hurried(gen, time.monotonic() + self.patience)
        return super().wait(gen, *args, **kwargs)

    def _hurried(self, gen: PQGen[RV], until: float) -> PQGen[RV]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.close()
                    raise NoAnswer("the server gave no answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: RV = end.value
            return value


VERSION_MIN = 140_000
CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60
CALM_BATCHES = 16  # then a process dares to append again
WAYS: tuple[Way, ...] = ("append", "locks", "alone")
MIGRATE_LOCK_SECONDS = 5  # how long one step may keep others waiting that want the same table
READERS_MAX = 8  # idle connections kept; more are opened while more read at once
# One number that all tillrolls agree on: two that migrate one database wait for each other.
_MIGRATING = 0x7_1110_7011

# A plan made while a table was empty would scan it for ever after; reports use other connections.
# The last two, as a database or a role may have others: without warnings a cancelled wait for a
# standby would look like a success, and psycopg escapes lists of bytes for strings of the standard.
_SESSION = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "client_min_messages": "warning",
    "standard_conforming_strings": "on",
}
# Which schema a connection looks into, as libpq's `options` say it.
_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path\s*=\s*(\S+)")
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_RECOVERED = """
INSERT INTO tillroll_meta VALUES ('recoveries', '1')
ON CONFLICT (name) DO UPDATE SET value = (tillroll_meta.value::bigint + 1)::text
"""
_SECURED = "SELECT row_security_active(to_regclass('tillroll_entries')::oid)"
# The time, and how far the log is written: of a standby, how far it came.
_CLOCK = """
SELECT extract(epoch FROM clock_timestamp())::float8, (
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
)::text
"""
_BEHIND = """
SELECT
    pg_is_in_recovery(),
    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
    greatest(pg_wal_lsn_diff(%s::pg_lsn, pg_last_wal_replay_lsn()), 0)::bigint,
    extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
"""
_IN_USE = "SELECT EXISTS (SELECT 1 FROM tillroll_accounts)"
_STEP_DONE = "INSERT INTO tillroll_migrations (number, name, checksum) VALUES (%s, %s, %s)"
# What must be on for an acknowledged write to survive a power cut.
_DURABLE = ("fsync", "full_page_writes", "synchronous_commit")
_SETTINGS = """
SELECT name, setting FROM pg_settings WHERE name IN (
    'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names',
    'data_checksums', 'server_encoding', 'server_version', 'TimeZone'
)
"""
_ACCOUNT_COLUMNS = """
SELECT uuid_send(account_id), project, account, seq, at, next_due_at, state FROM tillroll_accounts
WHERE account_id > %s::uuid ORDER BY account_id LIMIT 1000
"""
_REFUSAL_COLUMNS = """
SELECT uuid_send(account_id), project, account, request_id, recorded_at, body FROM tillroll_refusals
WHERE (request_id, account_id) > (%s, %s::uuid) ORDER BY request_id, account_id LIMIT 1000
"""
_ORPHANS = """
SELECT DISTINCT e.account_id::text FROM tillroll_entries AS e
LEFT JOIN tillroll_accounts AS a ON e.account_id = a.account_id WHERE a.account_id IS NULL
"""
_PRICE_COLUMNS = """
SELECT project, number, digest, author, reason, applied_at, body FROM tillroll_price_versions
"""

_ADVICE: dict[type[psycopg.Error], tuple[type[StoreUnavailable], str]] = {
    errors.DiskFull: (StoreFull, "the server's disk is full: free some space"),
    errors.LockNotAvailable: (StoreBusy, "another process kept an account locked"),
    errors.QueryCanceled: (StoreBusy, "a statement took too long or was cancelled"),
    errors.ReadOnlySqlTransaction: (StoreReadOnly, "the server takes no writes"),
    errors.InsufficientPrivilege: (
        StoreReadOnly,
        "the role may not do that: see `tillroll migrate --role`",
    ),
    errors.TooManyConnections: (
        StoreUnavailable,
        "the server has no connection left: raise max_connections or put a pooler in front",
    ),
    errors.CannotConnectNow: (StoreUnavailable, "the server is starting up or shutting down"),
    errors.DataCorrupted: (StoreCorrupt, "the database is damaged: restore a backup"),
    errors.IndexCorrupted: (StoreCorrupt, "an index is damaged: REINDEX, then `tillroll verify`"),
    errors.UndefinedTable: (SchemaMismatch, "tables are missing: run `tillroll migrate`"),
    errors.UndefinedColumn: (SchemaMismatch, "columns are missing: run `tillroll migrate`"),
}
# Why a server takes no writes, by what it tells of itself as `in_hot_standby`; a pooler may keep
# that to itself.
_NO_WRITES: dict[str | None, str] = {
    "on": "it is a standby: connect to the primary (target_session_attrs=read-write)",
    "off": "default_transaction_read_only is on for it, the database or the role, as some "
    "providers set it when a disk is nearly full: set it off again",
    None: "it is a standby (connect to the primary, target_session_attrs=read-write), or "
    "default_transaction_read_only is on for it, the database or the role",
}
# Nothing was written, and the same may succeed at once.
AGAIN = (errors.DeadlockDetected, errors.SerializationFailure, errors.UniqueViolation)
# What one request can bring about by its data. Not translated: the engine then writes each request
# of the batch by itself, so that only the guilty one fails.
GUILTY = (errors.DataError, errors.CheckViolation, errors.NotNullViolation)


def raise_unfit(problem: psycopg.Error) -> NoReturn:
    """Raise what one of `GUILTY` means; nothing was written."""
    if isinstance(problem, errors.DataError):
        raise InvalidInput(f"a value cannot be in the database: {said(problem)}") from problem
    raise problem


class PostgresStore:
    """Ledgers in one PostgreSQL database, shared by any number of processes and machines."""

    def __init__(
        self,
        url: str,
        *,
        scale: int | None = None,
        read_url: str | None = None,
        project: str | None = None,
        migrate: bool = True,
        busy_seconds: float = BUSY_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
    ) -> None:
        """Connect, applying migrations where needed.

        Args:
            url: `postgresql://user@host/database`, or anything that libpq takes.
            scale: Decimals of the units; fixed when the tables are made. None: what they have.
            read_url: Where to read from, such as a standby; reads may then be behind. None: `url`.
            project: Whose rows a role under row-level security is to see. The owner of the tables
                sees all, and needs none.
            migrate: Apply pending migrations; where False, tables that are not there are an error.
            busy_seconds: How long to wait for another process that keeps an account locked.
            statement_seconds: How long a statement that writes may take, and how long to wait for
                a commit's answer, such as while a standby is away.

        Raises:
            StoreUnavailable: The server cannot be used; nothing was written.
            OutcomeUnknown: The connection was lost while tables were made; open it again.
            SchemaMismatch: The tables were made by a newer tillroll, or are not there.
            InvalidInput: They have another scale than asked for.
        """
        if scale is not None and not (type(scale) is int and 0 <= scale <= SCALE_MAX):
            raise InvalidInput(f"scale must be 0 to {SCALE_MAX}")
        self._statement_seconds = statement_seconds
        self._session = {
            **_SESSION,
            "lock_timeout": f"{busy_seconds}s",
            "statement_timeout": f"{statement_seconds}s",
            "idle_in_transaction_session_timeout": f"{statement_seconds}s",
        }
        self.project = project
        self._project = {} if project is None else {"tillroll.project": project}
        self._session |= self._project
        self._dsn, self.url = parsed(url)
        self._read_dsn, self._read_url = parsed(read_url) if read_url else (self._dsn, self.url)
        self._mutex = threading.Lock()  # guards the idle readers
        self._idle: dict[str, list[Connection]] = {}  # by where they go
        self._lent: set[Connection] = set()
        self._writer: Connection | None = None
        self._states: dict[bytes, Remembered] = {}
        self._prices: dict[str, tuple[int, PriceBook]] = {}
        self._topics: dict[str, tuple[int, frozenset[str]]] = {}
        self._warned: list[str] = []
        self._pace = _Pace()
        self._secured = self._closed = False  # secured: row-level security counts for our role
        try:
            self._writer = self._connect_writer()
            self._look_at_server(self._writer)
            with self._translating():
                self._migrate(self._writer, scale, apply=migrate)
                meta: dict[str, str] = dict(
                    self._writer.execute("SELECT name, value FROM tillroll_meta")
                )
            self.scale = int(meta["scale"])
            self.secret = bytes.fromhex(meta["secret"])
            self.spread = "spread" in meta
        except (KeyError, ValueError) as error:
            self.close()
            raise StoreCorrupt(
                f"{self.url} has lost its settings: restore a backup; nothing was written"
            ) from error
        except BaseException:
            self.close()
            raise
        if scale is not None and scale != self.scale:
            self.close()
            raise InvalidInput(
                f"{self.url} has scale {self.scale}, not {scale}: it is fixed; nothing was written"
            )

    # ------------------------------------------------------------ connections

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except GUILTY as problem:
            raise_unfit(problem)
        except psycopg.Error as error:
            raise translated(self.url, error) from error

    def _connect(self, dsn: str, url: str) -> Connection:
        if self._closed:
            raise StoreClosed("the ledger is closed; nothing was written")
        connection = connect(dsn, url)
        with self._translating():
            # A pooler in transaction mode answers for another server process than it names; there
            # neither settings nor prepared statements of a session would stay.
            real = connection.execute("SELECT pg_backend_pid()").fetchall()[0][0]
            connection.pooled = real != connection.info.backend_pid
            if connection.pooled:
                connection.prepare_threshold = None
            return connection

    def _connect_writer(self) -> Connection:
        connection = self._connect(self._dsn, self.url)
        connection.patience = self._statement_seconds + 1
        connection.add_notice_handler(self._note)
        with self._translating():
            if not connection.pooled:
                connection.execute(_settings(self._session, local=False))
            # Whoever is subject to row-level security must not COPY into the table.
            self._secured = connection.execute(_SECURED).fetchone() == (True,)
        if self._secured and not self._project:
            connection.close()
            raise StoreReadOnly(
                f"{self.url} shows this role the rows of one project only, and none was named: "
                f"do what is about all of them as the owner of the tables; nothing was written"
            )
        return connection

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warned.append(notice.message_primary or "a warning")

    def _look_at_server(self, connection: Connection) -> None:
        """Refuse a server that cannot keep a ledger; say loudly where it may lose one."""
        if connection.info.server_version < VERSION_MIN:
            raise StoreUnavailable(
                f"PostgreSQL {connection.info.server_version // 10_000} is too old: "
                f"{VERSION_MIN // 10_000} or newer is needed; nothing was written"
            )
        with self._translating():
            settings: dict[str, str] = dict(connection.execute(_SETTINGS))
        if settings["server_encoding"] != "UTF8":
            raise StoreUnavailable(
                f"{self.url} is encoded in {settings['server_encoding']}: make it with "
                f"ENCODING 'UTF8'; nothing was written"
            )
        unsafe = [name for name in _DURABLE if settings[name] in ("off", "local")]
        if unsafe:
            warnings.warn(
                f"{self.url} runs with {', '.join(f'{n}={settings[n]}' for n in unsafe)}: "
                f"acknowledged charges may be lost in a crash or failover. Set it on.",
                DurabilityWarning,
                stacklevel=6,
            )

    # ------------------------------------------------------------ migrations

    def _migrate(self, connection: Connection, scale: int | None, *, apply: bool) -> None:
        """Apply what is pending, one database transaction a step; several processes may race."""
        known = migrations("postgres")
        steps = list(pending(known, applied_steps(connection)))
        if len(steps) == len(known) and not apply:
            raise SchemaMismatch(
                f"{self.url} has no ledger: `tillroll init` or `tillroll migrate` makes one; "
                f"nothing was written"
            )
        if steps and not apply:
            raise SchemaMismatch(
                f"{self.url} lacks {', '.join(step.name for step in steps)}: run "
                f"`tillroll migrate`; nothing was written"
            )
        for step in steps:
            try:
                with known_if_lost(connection, self.url, step.name):
                    apply_step(connection, known, step, scale)
            except errors.LockNotAvailable as problem:
                raise StoreBusy(
                    f"{self.url}: another process is migrating, or keeps a table locked. Migrate "
                    f"again; nothing of {step.name} was written ({said(problem)})"
                ) from problem
            except errors.InsufficientPrivilege as problem:
                raise SchemaMismatch(
                    f"{self.url} lacks {step.name}, and the role may not make it: run `tillroll "
                    f"migrate` as the owner of the tables; nothing was written ({said(problem)})"
                ) from problem
        self._spread_what_is_new(connection, apply=apply)

    def _spread_what_is_new(self, connection: Connection, *, apply: bool) -> None:
        """Spread the tables that came after the ledger was spread; nothing where it was not."""
        done = spread_steps(connection)
        lacking = [step for step in migrations("citus") if done and step.number > done]
        if lacking and not apply:
            raise SchemaMismatch(
                f"{self.url} lacks {', '.join(step.name for step in lacking)} on its cluster: run "
                f"`tillroll migrate`; nothing was written"
            )
        for step in lacking:
            try:
                with known_if_lost(connection, self.url, step.name):
                    spread_step(connection, step, again=True)
            except errors.InsufficientPrivilege as problem:
                raise SchemaMismatch(
                    f"{self.url} lacks {step.name}, and the role may not do it: run `tillroll "
                    f"migrate` as the owner of the tables; nothing was written ({said(problem)})"
                ) from problem

    # ------------------------------------------------------------ the contract

    @contextmanager
    def write(self) -> Iterator[PostgresWriter]:
        """Open a database transaction; see `Store.write`."""
        connection = self._writer
        if connection is None or connection.closed:
            self._forget()
            connection = self._writer = self._connect_writer()
        begin = [_BEGIN]
        if connection.pooled:
            begin.append(_settings(self._session, local=True))
        session = _Pipelined(connection, begin)
        # An appender makes an account's row last; the policies want to see it first.
        way = "locks" if self._secured and self._pace.way == "append" else self._pace.way
        known = self._states, self._prices, way
        # A direct connection ends with its server, and what is remembered with it.
        recheck = connection.pooled or self.spread
        writer = PostgresWriter(
            session, *known, spread=self.spread, recheck=recheck, topics=self._topics
        )
        writer.copies = not self._secured
        try:
            try:
                yield writer
            except BaseException as problem:
                session.give_up()
                self._give_up(connection, writer)
                if isinstance(problem, psycopg.Error):
                    self._raise_unwritten(connection, problem)
                raise
            self._commit(connection, session, writer)
        except Retry as problem:
            self._pace.lost(way, alone=isinstance(problem, Doubt))
            raise
        except StoreBusy:
            if way == "append":  # who has closed the gate may keep it for long; locks need none
                self._pace.lost(way, alone=False)
            raise
        self._pace.won(appends=writer.appends)
        while len(self._states) > CACHED_ACCOUNTS_MAX:
            del self._states[next(iter(self._states))]

    def _commit(self, connection: Connection, session: _Pipelined, writer: PostgresWriter) -> None:
        if not (session.begun or writer.last):
            return
        self._warned.clear()
        try:
            session.run(*writer.last, ("COMMIT", ()))
        except psycopg.Error as problem:
            # A server that answers with an error, and goes on, has rolled back.
            if connection.closed or problem.sqlstate is None:
                self._forget()
                self._drop_writer()
                uncertain = f"{self.url}: the commit erred: {said(problem)}"
                raise CommitUncertain(uncertain) from problem
            self._give_up(connection, writer)
            self._raise_unwritten(connection, problem)
        except BaseException:
            self._forget()
            self._drop_writer()
            raise
        if self._warned:
            self._forget()
            raise CommitUncertain(f"{self.url}: the commit is in doubt: {self._warned[0]}")

    def _raise_unwritten(self, connection: Connection, problem: psycopg.Error) -> NoReturn:
        """Raise what an error before the commit means; nothing was written."""
        if isinstance(problem, GUILTY):
            raise_unfit(problem)
        if isinstance(problem, errors.FeatureNotSupported) and not self._secured:
            self._drop_writer()  # row-level security came meanwhile: the next connection knows
            raise Retry(f"{self.url}: {said(problem)}") from problem
        if isinstance(problem, errors.InvalidSqlStatementName):
            # Prepared in a pipeline that an error ended before the server came to it.
            self._drop_writer()
            raise Retry(f"{self.url}: {said(problem)}") from problem
        if isinstance(problem, AGAIN):
            raise Retry(f"{self.url}: {said(problem)}") from problem
        if connection.closed and not isinstance(problem, NoAnswer):
            raise Retry(f"{self.url}: the connection was lost: {said(problem)}") from problem
        ours = translated(self.url, problem, connection)
        if isinstance(problem, errors.ReadOnlySqlTransaction):
            self._drop_writer()  # what a session was begun with stays: the next one may write
        raise ours from problem

    def _give_up(self, connection: Connection, writer: PostgresWriter) -> None:
        """Roll back, and forget what was changed; a connection that cannot do it is thrown away."""
        for owner in writer.loaded:
            self._states.pop(owner, None)
        self._prices.clear()
        self._topics.clear()
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop_writer()

    def _drop_writer(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _forget(self) -> None:
        self._states.clear()
        self._prices.clear()
        self._topics.clear()

    @contextmanager
    def read(self) -> Iterator[PostgresReader]:
        """Open one consistent view; see `Store.read`."""
        with self._view(self._read_dsn, self._read_url) as reader:
            yield reader

    @contextmanager
    def read_primary(self) -> Iterator[PostgresReader]:
        """Open one consistent view on the server that is written; see `Store.read_primary`."""
        with self._view(self._dsn, self.url) as reader:
            yield reader

    @contextmanager
    def _view(self, dsn: str, url: str) -> Iterator[PostgresReader]:
        with self._translating():
            connection = self._lend(dsn, url)
            try:
                begin = [_BEGIN_READ]
                if connection.pooled and self._project:
                    begin.append(_settings(self._project, local=True))
                yield PostgresReader(_Pipelined(connection, begin))
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(
                    f"{self.url} holds a document that cannot be read ({error}): restore a "
                    f"backup; nothing was written"
                ) from error
            finally:
                self._take_back(connection, dsn)

    def _lend(self, dsn: str, url: str) -> Connection:
        """Return an idle connection, or a new one where none is left or all have died."""
        while True:
            with self._mutex:
                idle = self._idle.get(dsn)
                connection = idle.pop() if idle else None
            if connection is None:
                connection = self._connect(dsn, url)
                if self._project and not connection.pooled:
                    connection.execute(_settings(self._project, local=False))
                break
            with suppress(psycopg.Error):
                connection.execute("SELECT 1")
                break
            connection.close()
        with self._mutex:
            self._lent.add(connection)
        return connection

    def _take_back(self, connection: Connection, dsn: str) -> None:
        with self._mutex:
            if connection not in self._lent:
                return  # lent in the parent of this forked process
            self._lent.remove(connection)
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")
            with self._mutex:
                idle = self._idle.setdefault(dsn, [])
                if not self._closed and len(idle) < READERS_MAX:
                    idle.append(connection)
                    return
        connection.close()

    def set_writing(self, way: Literal["locks", "append"]) -> None:
        """Say how the ledger is written from now on, by every process.

        By locks, any number of processes write the same accounts. By appending, a process that
        mostly is alone with its accounts writes faster; where another one was faster it falls back
        to locks for a while (decisions/0011). It is safe while others write: first nobody appends
        any more and who refuses keeps appenders out, then those are waited for who began before.
        """
        if way not in ("locks", "append"):
            raise InvalidInput(f"a ledger is written by 'locks' or by 'append', not {way!r:.50}")
        persist(self, lambda tx: tx.set_writing("changing"))
        self.wait_for_writers()
        persist(self, lambda tx: tx.set_writing(way))

    def distribute(self) -> None:
        """Spread the ledger's tables over a Citus cluster, by account; once, on the coordinator.

        Tables that later steps of the schema make are spread when those are applied.

        Raises:
            StoreUnavailable: The server has no Citus, or the tables are spread already; nothing
                was changed.
        """
        with self._translating(), self._connect(self._dsn, self.url) as connection:
            for step in migrations("citus"):
                with known_if_lost(connection, self.url, step.name):
                    spread_step(connection, step, again=step.number > 1)
        self.spread = True

    def wait_for_writers(self) -> None:
        """Wait for every transaction that has locked an account, or that appends.

        The gate comes first: who is through it may still have to write to the table.
        """

        def act(tx: PostgresWriter) -> None:
            tx.close_gate()
            tx.ask("LOCK TABLE tillroll_accounts IN EXCLUSIVE MODE")

        persist(self, act)

    def adopt(self, secret: bytes) -> None:
        """Sign quotes with this secret from now on."""
        sql = "UPDATE tillroll_meta SET value = %s WHERE name = 'secret'"
        persist(self, lambda tx: tx.ask(sql, secret.hex()))
        self.secret = secret

    def recover(self) -> None:
        """Connect anew, and commit: then what came before is as durable as that.

        Where a standby has to confirm, it confirms in order: what a look-up finds afterwards was
        confirmed with this commit at the latest. Whether the writer that was lost is still at its
        commit is told by its locks, which the look-up has to wait for.
        """
        self._drop_writer()
        self._forget()
        self._pace.lost("alone", alone=True)  # the look-up waits for who may still be writing
        persist(self, lambda tx: tx.last.append((_RECOVERED, ())))

    # ------------------------------------------------------------ looking

    def check(self) -> list[str]:
        """Look for rows that contradict themselves."""
        try:
            with self.read() as reader:
                return list(_contradictions(reader))
        except StoreCorrupt as problem:
            return [str(problem)]

    def facts(self) -> list[tuple[str, str, bool]]:
        """Return what `doctor` wants to know: name, value, whether it is as it must be."""
        with self._translating(), self._connect(self._dsn, self.url) as connection:
            settings: dict[str, str] = dict(connection.execute(_SETTINGS))
            place: dict[str, str] = dict(connection.execute(PLACE))
            [(clock, here)] = connection.execute(_CLOCK).fetchall()
            pooled = connection.pooled
        reading = [] if self._read_dsn == self._dsn else [self._read_server(here)]
        return [
            ("PostgreSQL", settings["server_version"], True),
            *((name, settings[name], settings[name] not in ("off", "local")) for name in _DURABLE),
            ("data_checksums", settings["data_checksums"], settings["data_checksums"] == "on"),
            ("synchronous standbys", settings["synchronous_standby_names"] or "none", True),
            ("pooler", "transaction mode" if pooled else "none", True),
            ("written by", place.get("writing", "locks"), place.get("writing") != "changing"),
            ("moved to", place.get("moved_to", "nowhere"), "moved_to" not in place),
            ("row-level security", self._project_shown(), True),
            *reading,
            ("server clock", _clock_difference(clock), _clock_agrees(clock)),
            ("scale", str(self.scale), True),
        ]

    def _project_shown(self) -> str:
        return f"project {self._project['tillroll.project']} only" if self._secured else "none"

    def _read_server(self, here: str | None) -> tuple[str, str, bool]:
        """Return how far behind the server is that reads go to, and whether it is one of ours."""
        with self.read() as reader:
            rows = reader.ask("SELECT value FROM tillroll_meta WHERE name = 'secret'")
            standby, paused, behind, since = reader.ask(_BEHIND, here)[0]
        if rows != [(self.secret.hex(),)]:
            return "read server", f"{self._read_url} holds another ledger", False
        if not standby:
            return "read server", f"{self._read_url}, no standby", True
        late = "up to date" if behind == 0 else f"{behind:,} bytes behind"
        if behind and since is not None:
            late += f", last change {since:,.1f} s ago"
        return "read server", f"{late}{', replay paused' if paused else ''}", not paused

    # ------------------------------------------------------------ forks, end

    def before_fork(self) -> None:
        """Do nothing: the engine keeps writers out, and libpq's sockets stay the parent's."""

    def fork_done(self) -> None:
        """Do nothing: nothing was stopped."""

    def after_fork(self) -> None:
        """Go on, in the child, with connections of its own; psycopg never closes the parent's."""
        self._mutex = threading.Lock()
        _INHERITED.append((self._writer, self._idle, self._lent))
        self._writer = None
        self._idle = {}
        self._lent = set()
        self._forget()

    def close(self) -> None:
        """Close every connection."""
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, {}
        self._drop_writer()
        for connection in chain.from_iterable(idle.values()):
            connection.close()


_INHERITED: list[object] = []


class _Pace:
    """Which way the next batch is written, where the database lets a process append.

    One that had to be written again goes by locks, and so do those after it for a while; after a
    second loss nobody may append meanwhile, so the third try gets through.
    """

    def __init__(self) -> None:
        """Begin by locks: the first batch tells what the database allows."""
        self._appends = False
        self._step = 0  # 0: append, 1: locks, 2: alone
        self._calm = 0  # batches that got through since the last loss

    @property
    def way(self) -> Way:
        """How the next batch is to be written."""
        return WAYS[self._step] if self._appends else WAYS[max(self._step, 1)]

    def lost(self, way: Way, *, alone: bool) -> None:
        """Be more careful: the batch was rolled back."""
        self._step = 2 if alone else min(WAYS.index(way) + 1, 2)
        self._calm = 0

    def won(self, *, appends: bool | None) -> None:
        """Be less careful after a while."""
        self._appends = self._appends if appends is None else appends
        self._calm += 1
        if self._calm >= CALM_BATCHES:
            self._step, self._calm = max(self._step - 1, 0), 0


class _Pipelined:
    """A database transaction of the store's own: begun with the first statements it sends."""

    copy_min = COPY_MIN

    def __init__(self, connection: Connection, begin: list[str]) -> None:
        """Send through this connection; `begin` goes ahead of the first statements."""
        self._connection = connection
        self._begin = begin
        self._copying: Copy | None = None
        self._ending = ExitStack()
        self.begun = False

    def run(self, *statements: Statement) -> list[Rows]:
        """Run statements in order, in one round trip; return their rows."""
        assert self._copying is None, "the server listens to a COPY"
        # Without parameters, not with none: a % in a project's name is then no placeholder.
        begin = [] if self.begun else [(statement, None) for statement in self._begin]
        self.begun = True
        cursors = [self._connection.cursor(binary=True) for _ in (*begin, *statements)]
        first: psycopg.Error | None = None
        try:
            with self._connection.pipeline():
                try:
                    for cursor, (text, parameters) in zip(
                        cursors, (*begin, *statements), strict=True
                    ):
                        cursor.execute(text, parameters)
                except psycopg.Error as problem:
                    first = problem  # what follows in the pipeline only says that it was aborted
        except psycopg.Error as problem:
            raise first or problem from None
        if first is not None:
            raise first
        return [c.fetchall() if c.description else [] for c in cursors[len(begin) :]]

    def copy(self, sql: str, data: str) -> None:
        """Send these lines to a COPY, which begins with the first of them."""
        if self._copying is None:
            if not self.begun:
                self.run()
            cursor = self._ending.enter_context(self._connection.cursor())
            self._copying = self._ending.enter_context(cursor.copy(sql))
        self._copying.write(data)

    def copied(self) -> None:
        """End the COPY; what the server objects to in its lines is raised here at the latest."""
        self._copying = None
        self._ending.close()

    def give_up(self) -> None:
        """Break off a COPY that is under way, so that the server listens again."""
        if self._copying is not None:
            self._copying = None
            problem = GaveUp("the batch was given up")
            with suppress(psycopg.Error, GaveUp):
                self._ending.__exit__(GaveUp, problem, None)


def connect(dsn: str, url: str) -> Connection:
    """Connect to what libpq is told; in messages it is called by its URL."""
    try:
        return Connection.connect(dsn, autocommit=True, row_factory=tuple_row)
    except psycopg.Error as error:
        raise StoreUnavailable(
            f"{url} cannot be reached: look whether the server runs, takes this user and has "
            f"connections left (max_connections); nothing was written ({said(error)})"
        ) from error


def parsed(url: str) -> tuple[str, str]:
    """Return what libpq is to connect to, and the same to be shown: without a password."""
    try:
        parts = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as problem:
        raise InvalidInput(f"the URL cannot be read: {problem}") from None
    defaults: dict[str, str | int] = {
        "client_encoding": "UTF8",
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "tillroll",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
    }
    return conninfo.make_conninfo("", **(defaults | parts)), _shown(parts)


def _shown(parts: Mapping[str, Any]) -> str:
    """Return a URL with what tells one ledger from another, and with nothing secret."""
    hosts = str(parts.get("host", "")).split(",")
    ports = str(parts.get("port", "")).split(",")
    told = {name: str(parts[name]) for name in ("hostaddr", "service") if name in parts}
    if hosts[0].startswith(("/", "@")):  # a socket
        told |= {name: str(parts[name]) for name in ("host", "port") if name in parts}
        hosts = ports = [""]
    if len(ports) == 1:
        ports *= len(hosts)
    hosts = [f"[{host}]" if ":" in host else host for host in hosts]
    places = (f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    if schema := _SEARCH_PATH.search(str(parts.get("options", ""))):
        told["options"] = f"-csearch_path={schema[1]}"
    user = f"{parts['user']}@" if "user" in parts else ""
    query = f"?{urlencode(told, safe='/,@')}" if told else ""
    return f"postgresql://{user}{','.join(places)}/{parts.get('dbname', '')}{query}"


def _settings(settings: dict[str, str], *, local: bool) -> str:
    """Return a statement that sets up a session, or only the transaction under way."""
    quoted = {name: sql.Literal(value).as_string(None) for name, value in settings.items()}
    calls = (f"set_config('{name}', {value}, {local})" for name, value in quoted.items())
    return f"SELECT {', '.join(calls)}"


@contextmanager
def known_if_lost(connection: Connection, url: str, what: str) -> Iterator[None]:
    """Say of a change of the tables that nobody knows of it, where the connection was lost."""
    try:
        yield
    except psycopg.OperationalError as problem:
        if problem.diag.severity_nonlocalized == "ERROR" and not connection.closed:
            raise  # rolled back
        raise OutcomeUnknown(
            f"{url}: the connection was lost while {what} was under way, and it may be written: "
            f"migrate again ({said(problem)})"
        ) from problem


def translated(
    url: str, error: psycopg.Error, connection: Connection | None = None
) -> StoreUnavailable:
    """Return the error in our words. Only for what is known to have written nothing."""
    nothing = f"nothing was written ({type(error).__name__}: {said(error)})"
    for kind, (ours, advice) in _ADVICE.items():
        if isinstance(error, kind):
            why = ""
            if kind is errors.ReadOnlySqlTransaction:
                why = f": {_NO_WRITES[_standby(connection)]}"
            return ours(f"{url}: {advice}{why}; {nothing}")
    return StoreUnavailable(f"{url}: {nothing}")


def _standby(connection: Connection | None) -> str | None:
    """Return what the server last said of whether it is a standby, None where nobody knows."""
    if connection is None or connection.closed or connection.pooled:
        return None
    return connection.info.parameter_status("in_hot_standby")


def said(problem: psycopg.Error) -> str:
    """Return what the server said, on one line."""
    return " ".join(str(problem).split()) or type(problem).__name__


def _clock_difference(server: float) -> str:
    return f"{round(server - time.time(), 1) + 0.0:+.1f} s against ours"  # no -0.0


def _clock_agrees(server: float) -> bool:
    return abs(float(_clock_difference(server).split()[0])) < CLOCK_SECONDS_MAX


CLOCK_SECONDS_MAX = 5.0


def applied_steps(connection: Connection) -> dict[int, str]:
    """Return the migrations applied so far; none where there are no tables yet."""
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = ANY(current_schemas(false)) "
            "AND tablename LIKE 'tillroll%'"
        )
    }
    if "tillroll_migrations" not in tables:
        if "tillroll_entries" in tables:
            raise SchemaMismatch(
                "the database has tillroll's tables but not their history; nothing was written"
            )
        return {}
    if "tillroll_meta" in tables:
        check_needs((connection.execute(NEEDS).fetchone() or [None])[0])
    return dict(connection.execute("SELECT number, checksum FROM tillroll_migrations").fetchall())


def apply_step(
    connection: Connection, known: list[Migration], step: Migration, scale: int | None
) -> None:
    """Apply one step, unless another process was faster."""
    beside = " CONCURRENTLY"
    if beside in step.sql and connection.execute(_IN_USE).fetchone() == (True,):
        _apply_beside(connection, known, step)
        return
    with connection.transaction():
        # Whoever waits for a lock on a table keeps everybody after him waiting, too.
        connection.execute(_settings({"lock_timeout": f"{MIGRATE_LOCK_SECONDS}s"}, local=True))
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        applied = applied_steps(connection)
        if step not in pending(known, applied):
            return  # another process was faster
        if not applied:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS tillroll_migrations "
                "(number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
            )
        connection.execute(step.sql.replace(beside, ""))  # nobody waits where nobody is
        connection.execute(_STEP_DONE, (step.number, step.name, step.checksum))
        # With the first step, so that a database has these or no tables.
        connection.execute(
            "INSERT INTO tillroll_meta VALUES ('scale', %s), ('secret', %s) ON CONFLICT DO NOTHING",
            (str(SCALE_DEFAULT if scale is None else scale), secrets.token_hex(32)),
        )


def spread_steps(connection: Connection) -> int:
    """Return the number of the last step by which this ledger was spread; 0 where it was not."""
    meta: dict[str, str] = dict(
        connection.execute(
            "SELECT name, value FROM tillroll_meta WHERE name IN ('spread', 'spread_step')"
        ).fetchall()
    )
    # The first step says no number: it was once the only one.
    return int(meta.get("spread_step", "1")) if meta.get("spread") == "citus" else 0


def spread_step(connection: Connection, step: Migration, *, again: bool) -> None:
    """Spread the tables of one step, unless (`again`) another process was faster."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        if again and spread_steps(connection) >= step.number:
            return
        connection.execute(step.sql)
        connection.execute(
            "INSERT INTO tillroll_meta VALUES ('spread_step', %s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (str(step.number),),
        )


def _apply_beside(connection: Connection, known: list[Migration], step: Migration) -> None:
    """Build indexes beside the work, outside a transaction: each statement is one by itself.

    Building waits for every transaction that is open, so nobody may wait for it inside of one: the
    lock is asked for again and again. One that was cut off leaves an index that does not count;
    such a step begins by dropping it.
    """
    if connection.pooled:
        raise StoreUnavailable(
            f"{step.name} builds an index beside the work, which takes a session of its own: "
            f"migrate past the pooler; nothing was written"
        )
    locked = "SELECT pg_try_advisory_lock(%s)"
    until = time.monotonic() + MIGRATE_LOCK_SECONDS
    while connection.execute(locked, (_MIGRATING,)).fetchone() != (True,):
        if time.monotonic() > until:
            raise StoreBusy("another process is migrating. Migrate again; nothing was written")
        time.sleep(0.1)
    patience, connection.patience = connection.patience, None
    limits = dict.fromkeys(("lock_timeout", "statement_timeout"), "0")
    before = {name: connection.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in limits}
    connection.execute(_settings(limits, local=False))
    try:
        if step in pending(known, applied_steps(connection)):
            for statement in re.sub(r"--.*", "", step.sql).split(";"):
                if statement.strip():
                    connection.execute(statement.encode())
            connection.execute(_STEP_DONE, (step.number, step.name, step.checksum))
    finally:
        if not connection.closed:
            connection.execute(_settings(before, local=False))
            connection.execute("SELECT pg_advisory_unlock(%s)", (_MIGRATING,))
            connection.patience = patience


def _contradictions(reader: PostgresReader) -> Iterator[str]:
    """Yield what no refolding finds: rows without an owner, and columns that repeat it wrongly."""
    for (owner,) in reader.ask(_ORPHANS):
        yield f"account_id {owner} has entries but no account"
    yield from _bad_accounts(reader)
    yield from _bad_refusals(reader)
    yield from bad_versions(reader.ask(_PRICE_COLUMNS))


def _bad_accounts(reader: PostgresReader) -> Iterator[str]:
    last = bytes(16)
    while rows := reader.ask(_ACCOUNT_COLUMNS, last.hex()):
        for owner, project, name, seq, at, due, state in rows:
            last = owner
            if account_id(project, name) != owner:
                yield f"account {name!r}: its account_id is another account's"
            if seq == 0:
                continue
            try:
                account = decode_account(state)
            except msgspec.MsgspecError as problem:
                yield f"account {name!r}: its state cannot be read: {problem}"
                continue
            repeated = (name, seq, account.at, next_due(account))
            if repeated != (account.account, account.seq, at, due) or least(account) < 0:
                yield f"account {name!r}: a column differs from its state"


def _bad_refusals(reader: PostgresReader) -> Iterator[str]:
    last: tuple[str, bytes] = "", bytes(16)
    while rows := reader.ask(_REFUSAL_COLUMNS, last[0], last[1].hex()):
        last = rows[-1][3], rows[-1][0]
        yield from bad_refusals(rows)


__all__ = ["AGAIN", "GUILTY", "PostgresStore", "raise_unfit", "said", "translated"]
