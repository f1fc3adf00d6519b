"""PostgreSQL within a host's transaction: the driver's statements on a connection that is not ours.

Each use is a savepoint, so that what errs leaves nothing behind and the host's transaction as it
was. Its last statements and the savepoint's release go out as one message: where the host has
ended its transaction meanwhile, none of them takes place.

In a transaction of READ COMMITTED every statement sees what was committed before it, and so, under
the account's lock, all that there is. A snapshot of REPEATABLE READ or SERIALIZABLE may be older
than what others wrote before they let go of that lock: rows whose keys those took are then tried,
since a unique index knows what a snapshot does not
(https://www.postgresql.org/docs/current/transaction-iso.html#XACT-REPEATABLE-READ).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec
import psycopg
from psycopg import errors
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from tillroll.ledger.errors import (
    InvalidInput,
    SchemaMismatch,
    StoreBusy,
    StoreCorrupt,
    StoreReadOnly,
    StoreUnavailable,
)
from tillroll.stores.base import Retry
from tillroll.stores.hosts import BEGIN, JoinedStore, wrong_driver
from tillroll.stores.postgres import AGAIN, GUILTY, raise_unfit, said, translated
from tillroll.stores.postgres_rows import TOUCHED, Doubt, PostgresReader, PostgresWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tillroll.ledger.types import Account, Entry, Refusal
    from tillroll.stores.base import Key, Store
    from tillroll.stores.bridge import Bridge
    from tillroll.stores.hosts import Host
    from tillroll.stores.postgres_rows import Rows, Statement, Way

_AGAIN_ADVICE = "nothing was written. Roll back your transaction and try it again as a whole"

_SAVEPOINT: Statement = ("SAVEPOINT tillroll", ())
_RELEASE: Statement = ("RELEASE SAVEPOINT tillroll", ())
_UNDO: Statement = ("ROLLBACK TO SAVEPOINT tillroll", ())
_NAME_PROJECT = "SELECT set_config('tillroll.project', %s, true)"
_WHERE = """
SELECT current_setting('transaction_isolation'),
(SELECT value FROM tillroll_meta WHERE name = 'secret')
"""
_PROBE_BEGIN: Statement = ("SAVEPOINT tillroll_probe", ())
_PROBE_END: Statement = ("ROLLBACK TO SAVEPOINT tillroll_probe", ())
_PROBE_ENTRIES = """
INSERT INTO tillroll_entries (account_id, seq, recorded_at, effective_at, kind, body, hash)
SELECT account_id, seq, 0, 0, '', '', decode(repeat('00', 32), 'hex')
FROM unnest(%s::uuid[], %s::bigint[]) AS w (account_id, seq)
"""
_PROBE_REFUSALS = """
INSERT INTO tillroll_refusals (request_id, account_id, project, account, recorded_at, body)
SELECT request_id, account_id, %s, '', 0, ''
FROM unnest(%s::text[], %s::uuid[]) AS w (request_id, account_id)
ON CONFLICT DO NOTHING
"""
_PROBE_PLACE: Statement = (f"SELECT 1 FROM tillroll_meta {TOUCHED} FOR SHARE", ())  # noqa: S608


_SEES_ALL = ("read committed", "read uncommitted")  # what was committed before each statement

# Whatever rows, adapters and kind of cursor the host has chosen, ours are psycopg's own.
_OURS = AdaptersMap(psycopg.adapters)


class _Cursor(psycopg.Cursor[tuple[Any, ...]]):
    @property
    def adapters(self) -> AdaptersMap:
        return _OURS


class _AsyncCursor(psycopg.AsyncCursor[tuple[Any, ...]]):
    @property
    def adapters(self) -> AdaptersMap:
        return _OURS


def _send(connection: psycopg.Connection[Any], statements: Sequence[Statement]) -> list[Rows]:
    cursors = []
    with connection.pipeline():
        for sql, parameters in statements:
            cursor = _Cursor(connection, row_factory=tuple_row)
            cursor.format = Format.BINARY
            cursor.execute(sql, parameters)
            cursors.append(cursor)
    return [cursor.fetchall() if cursor.description else [] for cursor in cursors]


async def _send_awaited(
    connection: psycopg.AsyncConnection[Any], statements: Sequence[Statement]
) -> list[Rows]:
    cursors = []
    async with connection.pipeline():
        for sql, parameters in statements:
            cursor = _AsyncCursor(connection, row_factory=tuple_row)
            cursor.format = Format.BINARY
            await cursor.execute(sql, parameters)
            cursors.append(cursor)
    return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]


class _Send(Protocol):
    def __call__(self, statements: Sequence[Statement], *, last: bool = False) -> list[Rows]:
        """Run statements in one round trip; `last` says that they clean up."""


class _Hosted:
    """The statements of one use; the first of them tell whose database this is."""

    copy_min = sys.maxsize  # no COPY: it could not go out together with the release

    def __init__(
        self,
        send: _Send,
        ahead: Sequence[Statement],
        check: Callable[[str | None], None],
    ) -> None:
        """Send through this; `ahead` goes first of all, and `check` gets the ledger's secret."""
        self._send = send
        self._ahead = (*ahead, (_WHERE, ()))
        self._check = check
        self.isolation = ""  # known once something was sent

    def run(self, *statements: Statement) -> list[Rows]:
        """Run statements in order, in one round trip; return their rows."""
        if self.isolation:
            return self._send(statements)
        first = len(self._ahead)
        rows = self._send((*self._ahead, *statements))
        self.isolation, secret = rows[first - 1][0]
        self._check(secret)
        return rows[first:]

    def undo(self) -> None:
        """Leave nothing of this use behind, if the host's transaction is still there."""
        with suppress(psycopg.Error):
            self._send((_UNDO, _RELEASE), last=True)

    def copy(self, sql: str, data: str) -> None:
        """Not done here; see `copy_min`."""
        raise NotImplementedError

    def copied(self) -> None:
        """Not done here; see `copy_min`."""
        raise NotImplementedError


class _JoinedWriter(PostgresWriter):
    """Writes under the locks of the host's transaction, with nothing remembered."""

    def __init__(self, session: _Hosted, way: Way, *, spread: bool) -> None:
        super().__init__(session, {}, {}, way, spread=spread)
        self._hosted = session

    def load(
        self, project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Lock these accounts, and return them and what was answered to these keys."""
        accounts, answers = super().load(project, wanted, keys)
        if self._hosted.isolation not in _SEES_ALL:
            self._probe(project, accounts, [key for key in keys if key not in answers])
        return accounts, answers

    def put_document(self, kind: str, name: str, document: str | None) -> None:
        """Insert or replace a document; None removes it. Fail where the ledger was moved since."""
        if self._hosted.isolation not in _SEES_ALL:
            self._session.run(_PROBE_BEGIN, _PROBE_PLACE, _PROBE_END)
        super().put_document(kind, name, document)

    def _probe(
        self, project: str, accounts: Mapping[bytes, Account], unknown: Sequence[Key]
    ) -> None:
        """Fail where the snapshot lacks what others wrote to these accounts or about the ledger."""
        owners = [owner.hex() for owner in accounts]
        nexts = [account.seq + 1 for account in accounts.values()]
        names = [name for _, name in unknown]
        self._session.run(
            _PROBE_BEGIN,
            _PROBE_PLACE,
            (_PROBE_ENTRIES, [owners, nexts]),
            (_PROBE_REFUSALS, [project, names, [owner.hex() for owner, _ in unknown]]),
            _PROBE_END,
        )


class JoinedPostgres(JoinedStore):
    """A ledger in PostgreSQL, within the transactions of a host's connection."""

    def __init__(self, origin: Store, host: Host, bridge: Bridge | None) -> None:
        """Join the transactions of this host to the ledger in `origin`."""
        super().__init__(origin, host, bridge)
        self._way: Way = "locks"
        self._spread: bool = getattr(origin, "spread", False)
        # Under row-level security the host's session would see nothing, or another project.
        project: str | None = getattr(origin, "project", None)
        self._naming: list[Statement] = [] if project is None else [(_NAME_PROJECT, (project,))]
        if host.plain:
            self._check_driver(host.given)

    def _check_driver(self, connection: object) -> None:
        wanted = psycopg.Connection if self._bridge is None else psycopg.AsyncConnection
        if not isinstance(connection, wanted):
            raise wrong_driver(connection, f"psycopg 3's {wanted.__name__} to {self.url}")

    def _enter(self, *ahead: Statement) -> _Hosted:
        """Return a session on the connection that the host has now."""
        connection = self._reach()
        self._check_driver(connection)
        _check_transaction(connection)
        bridge = self._bridge

        def send(statements: Sequence[Statement], *, last: bool = False) -> list[Rows]:
            if bridge is None:
                return _send(connection, statements)
            return bridge.run(_send_awaited, connection, statements, last=last)

        return _Hosted(send, (*ahead, *self._naming), self._check_ledger)

    @contextmanager
    def write(self) -> Iterator[PostgresWriter]:
        """Write within the host's transaction; see `JoinedStore`."""
        session = self._enter(_SAVEPOINT)
        try:
            writer = _JoinedWriter(session, self._way, spread=self._spread)
            yield writer
            session.run(*writer.last, _RELEASE)
        except Doubt:
            session.undo()
            self._way = "alone"  # until the host commits, nobody else appends
            raise
        except GeneratorExit:
            raise  # the garbage collector, at any later time: there may be another transaction
        except BaseException as problem:
            session.undo()
            if isinstance(problem, psycopg.Error | Retry):
                self._raise_unwritten(problem)
            raise

    @contextmanager
    def read(self) -> Iterator[PostgresReader]:
        """Read what the host's transaction sees."""
        session = self._enter()
        try:
            yield PostgresReader(session)
        except psycopg.Error as problem:
            self._raise_unwritten(problem)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(
                f"{self.url} holds a document that cannot be read ({error}): restore a "
                f"backup; nothing was written"
            ) from error

    def _check_ledger(self, secret: str | None) -> None:
        if secret != self.secret.hex():
            raise SchemaMismatch(
                f"the connection leads to another ledger than {self.url}: connect it to that "
                f"database, or open the ledger that it leads to; nothing was written"
            )

    def _raise_unwritten(self, problem: psycopg.Error | Retry) -> NoReturn:
        """Raise what an error means, of which nothing is left in the host's transaction."""
        if isinstance(problem, GUILTY):
            raise_unfit(problem)
        if isinstance(problem, Retry):
            raise StoreBusy(f"{self.url}: {problem}; {_AGAIN_ADVICE}") from problem
        if isinstance(problem, AGAIN):
            raise StoreBusy(f"{self.url}: {said(problem)}; {_AGAIN_ADVICE}") from problem
        if isinstance(problem, errors.NoActiveSqlTransaction):
            raise InvalidInput(BEGIN) from problem
        if isinstance(problem, errors.ReadOnlySqlTransaction):
            raise StoreReadOnly(
                f"{self.url}: your transaction may only read; nothing was written"
            ) from problem
        raise translated(self.url, problem) from problem


def _check_transaction(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse a connection that has nothing to join; within a pipeline, only the server knows."""
    if connection.closed:
        raise StoreUnavailable("your connection is closed; nothing was written")
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        return
    status = connection.info.transaction_status
    if status == TransactionStatus.IDLE and connection.autocommit:
        raise InvalidInput(BEGIN)
    if status == TransactionStatus.INERROR:
        raise StoreUnavailable(
            "your transaction has failed before: roll it back; nothing was written"
        )


__all__ = ["JoinedPostgres"]
