"""What SQLite is asked and told: each statement, and the reader and writer that use them."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

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
    StoreCorrupt,
)
from tillroll.ledger.pricing import PriceBook, PriceVersion, decode_version, encode_version
from tillroll.ledger.types import NEVER, Account, Entry, Refusal
from tillroll.stores.base import (
    SEQ_MAX,
    Key,
    Note,
    NoteKey,
    Remembered,
    Remembrance,
    Repeats,
    Retry,
    Stored,
    Story,
    bad_refusals,
    bad_versions,
    catch_up,
    least,
    low_notes,
    note_of,
    note_row,
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

    import apsw

    from tillroll.ledger.book import Book, Sealed
    from tillroll.stores.outbox import Rows, Statement
    from tillroll.stores.sqlite_library import LibraryConnection

    Connection = apsw.Connection | LibraryConnection

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
NEEDS = "SELECT value FROM tillroll_meta WHERE name = 'needs'"
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
        found: str | None = self.connection.execute(NEEDS).get
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


def contradictions(connection: Connection) -> Iterator[str]:
    """Yield what no refolding finds: rows without an owner, and columns that repeat it wrongly."""
    if gone := connection.execute(_ENTRIES_GONE).get:
        yield f"{gone} entries are missing between the first and the last one written"
    for (owner,) in connection.execute(_ORPHANS):
        yield f"account_id {owner} has entries but no account"
    yield from _bad_accounts(connection)
    yield from bad_refusals(connection.execute(_REFUSAL_COLUMNS))
    yield from bad_versions(connection.execute(_PRICE_COLUMNS))


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
