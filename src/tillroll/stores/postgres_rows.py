"""The PostgreSQL driver's statements: what is read and written within one database transaction.

Every statement of a decision names the accounts it is about, and a batch takes a fixed number of
round trips whatever its size. Statements go out through a `Session`: the store's own sends them
down a pipeline, that of a joined transaction one by one.

An account's row may stand behind its entries: its state is written when the entries since
outweigh it, and whoever loads it folds those entries on top. So most charges write one row.
"""

from __future__ import annotations

import itertools
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from psycopg.errors import InsufficientPrivilege, LockNotAvailable

from tillroll.ledger.chain import (
    decode_entry,
    decode_refusal,
    encode,
    encode_state,
)
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import StoreReadOnly
from tillroll.ledger.pricing import PriceBook, decode_version, encode_version
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
    catch_up,
    check_needs,
    least,
    low_notes,
    note_of,
    note_row,
    revived,
    trail_of,
)
from tillroll.stores.outbox import Dialect, OutboxReader, OutboxWriter, statements, topics_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tillroll.ledger.book import Book, Event, Sealed
    from tillroll.ledger.pricing import PriceVersion

Statement = tuple[str, "Sequence[object]"]
Rows = list[tuple[Any, ...]]

COPY_MIN = 5  # below, single rows are quicker: they go out together with the commit
# Requests decided while the server writes what those before led to: enough for it to be busy.
PART = 50


class PerRow(NamedTuple):
    """One thing done to many rows: by one statement, or by one for each row.

    On a cluster each account is on one server, and a statement about one account goes straight
    there; one about many that locks or resolves conflicts is refused, or slow
    (docs/operating/citus.md). Both take the same values, in the same order.
    """

    many: str
    one: str


_NEW_ACCOUNTS = PerRow(
    many="""
INSERT INTO tillroll_accounts
SELECT account_id, project, account, 0, '', 0, next_due_at, 0, ''
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bigint[])
    AS w (account_id, project, account, next_due_at) ORDER BY account_id
ON CONFLICT (account_id) DO NOTHING
""",
    one="""
INSERT INTO tillroll_accounts VALUES (%s::uuid, %s, %s, 0, '', 0, %s, 0, '')
ON CONFLICT (account_id) DO NOTHING
""",
)
_LOCK = PerRow(
    many="""
SELECT uuid_send(account_id), next_due_at FROM tillroll_accounts
WHERE account_id = ANY(%s::uuid[]) ORDER BY account_id FOR UPDATE
""",
    one="""
SELECT uuid_send(account_id), next_due_at FROM tillroll_accounts
WHERE account_id = %s::uuid FOR UPDATE
""",
)
# What a row says falls due next is never too late; who appends cannot know what it says by now.
_LOWER_DUE = PerRow(
    many="""
UPDATE tillroll_accounts AS a SET next_due_at = w.next_due_at
FROM unnest(%s::bigint[], %s::uuid[]) AS w (next_due_at, account_id)
WHERE a.account_id = w.account_id AND a.next_due_at > w.next_due_at
""",
    one="""
UPDATE tillroll_accounts SET next_due_at = least(next_due_at, %s) WHERE account_id = %s::uuid
""",
)
_STATES = """
SELECT uuid_send(account_id), seq, head, next_due_at, state FROM tillroll_accounts
WHERE account_id = ANY(%s::uuid[]) AND seq > 0
"""
# The states, and what was added to the accounts since: in one statement, as two may see a state
# that was written anew between them. LATERAL and the order within make the key's index the only
# way to get there.
_STATES_AND_TRAILS = f"""{_STATES} UNION ALL
SELECT uuid_send(e.account_id), e.seq, e.hash, NULL, e.body FROM tillroll_accounts AS a
CROSS JOIN LATERAL (
    SELECT * FROM tillroll_entries AS t WHERE t.account_id = a.account_id AND t.seq > a.seq
    ORDER BY t.account_id, t.seq
) AS e WHERE a.account_id = ANY(%s::uuid[])
"""  # noqa: S608 - only our own constants
# The last entries that are remembered, as they are there.
_LAST_KNOWN = """
SELECT uuid_send(e.account_id), e.hash
FROM unnest(%s::uuid[], %s::bigint[]) AS w (account_id, seq)
INNER JOIN tillroll_entries AS e ON e.account_id = w.account_id AND e.seq = w.seq
"""
# What was added to accounts since a seq that is remembered.
_ADDED = PerRow(
    many="""
SELECT uuid_send(e.account_id), e.seq, e.hash, e.body
FROM unnest(%s::uuid[], %s::bigint[]) AS w (account_id, seq)
CROSS JOIN LATERAL (
    SELECT * FROM tillroll_entries AS t WHERE t.account_id = w.account_id AND t.seq > w.seq
    ORDER BY t.account_id, t.seq
) AS e
""",
    one="""
SELECT uuid_send(account_id), seq, hash, body FROM tillroll_entries
WHERE account_id = %s::uuid AND seq > %s ORDER BY seq
""",
)
# One pair is compared from below and from above, and not for equality: that only fits the index
# that begins with the id. By the account's key, a long history would be read row by row.
_ANSWERS = """
SELECT uuid_send(e.account_id), e.request_id, e.body, NULL
FROM unnest(%s::uuid[], %s::text[]) AS w (account_id, request_id)
INNER JOIN tillroll_entries AS e
    ON (e.request_id, e.account_id) >= (w.request_id, w.account_id)
    AND (e.request_id, e.account_id) <= (w.request_id, w.account_id)
UNION ALL
SELECT uuid_send(r.account_id), r.request_id, NULL, r.body
FROM unnest(%s::uuid[], %s::text[]) AS w (account_id, request_id)
INNER JOIN tillroll_refusals AS r
    ON w.request_id = r.request_id AND w.account_id = r.account_id
"""
_ACTS = """
SELECT uuid_send(e.account_id), e.ref, e.body
FROM unnest(%s::uuid[], %s::text[]) AS w (account_id, ref)
INNER JOIN tillroll_entries AS e
    ON (e.ref, e.account_id) >= (w.ref, w.account_id)
    AND (e.ref, e.account_id) <= (w.ref, w.account_id) AND e.ref IS NOT NULL
ORDER BY e.account_id, e.seq
"""
_PRICES_KNOWN = "SELECT count(*) FROM tillroll_price_versions WHERE project = %s"
_MOVED_TO = "SELECT value FROM tillroll_meta WHERE name = 'moved_to'"
PLACE = """
SELECT name, value FROM tillroll_meta
WHERE name IN ('moved_to', 'writing', 'registry_version', 'needs')
"""
NEEDS = "SELECT value FROM tillroll_meta WHERE name = 'needs'"
_BROUGHT = "SELECT value FROM tillroll_meta WHERE name = 'brought'"
_SET_BROUGHT = """
INSERT INTO tillroll_meta VALUES ('brought', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_NEED = """
INSERT INTO tillroll_meta VALUES ('needs', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE tillroll_meta.value::integer < excluded.value::integer
"""
# Written with each change of those two: an old snapshot that locks this row is told by an error.
TOUCHED = "WHERE name = 'scale'"
_TOUCH: Statement = (f"UPDATE tillroll_meta SET value = value {TOUCHED}", ())  # noqa: S608
_SET_WRITING = """
INSERT INTO tillroll_meta VALUES ('writing', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
# Who appends without locks goes through the gate together; who refuses then, alone.
GATE = 0x7_1110_6A7E
GATE_MILLISECONDS = 200  # longer than a batch with a refusal takes; then locks are quicker
# Who refused within a transaction of his own keeps the gate closed until he ends it, so this lock
# alone is not waited for as long as others.
_SHARE_GATE = f"""
SELECT
    set_config('tillroll.patience', current_setting('lock_timeout'), true),
    set_config('lock_timeout', '{GATE_MILLISECONDS}ms', true),
    pg_advisory_xact_lock_shared({GATE}),
    set_config('lock_timeout', current_setting('tillroll.patience'), true)
"""
_CLOSE_GATE = f"SELECT pg_advisory_xact_lock({GATE})"
_PROJECTS = """
SELECT project FROM tillroll_accounts UNION SELECT project FROM tillroll_refusals
UNION SELECT project FROM tillroll_price_versions ORDER BY 1
"""
_REFUSAL_PAGE = """
SELECT project, account, uuid_send(account_id), body FROM tillroll_refusals
WHERE (request_id, account_id) > (%s, %s::uuid) ORDER BY request_id, account_id LIMIT %s
"""
_REPEATS_PAGE = """
SELECT uuid_send(account_id), request_id, times, last_at FROM tillroll_replays
WHERE (request_id, account_id) > (%s, %s::uuid) ORDER BY request_id, account_id LIMIT %s
"""
_SET_REPEATS = """
INSERT INTO tillroll_replays (request_id, account_id, times, last_at)
SELECT * FROM unnest(%s::text[], %s::uuid[], %s::bigint[], %s::bigint[])
ON CONFLICT (request_id, account_id) DO UPDATE SET
    times = excluded.times, last_at = excluded.last_at
"""
_WRITING: Statement = ("LOCK TABLE tillroll_accounts IN ROW SHARE MODE", ())
_SET_HERE: Statement = ("DELETE FROM tillroll_meta WHERE name = 'moved_to'", ())
_SET_MOVED = """
INSERT INTO tillroll_meta VALUES ('moved_to', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_REGISTRY_VERSION = "SELECT value FROM tillroll_meta WHERE name = 'registry_version'"
# The row's lock has whoever puts a document, too, wait for the end of this transaction.
_COUNT_REGISTRY: Statement = (
    """
INSERT INTO tillroll_meta VALUES ('registry_version', '1')
ON CONFLICT (name) DO UPDATE SET value = (tillroll_meta.value::bigint + 1)::text
""",
    (),
)
_SET_REGISTRY_VERSION = """
INSERT INTO tillroll_meta VALUES ('registry_version', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_KINDS = "SELECT DISTINCT kind FROM tillroll_registry ORDER BY kind"
_DOCUMENTS = "SELECT name, document FROM tillroll_registry WHERE kind = %s ORDER BY name"
_DOCUMENT = "SELECT document FROM tillroll_registry WHERE kind = %s AND name = %s"
_PUT_DOCUMENT = """
INSERT INTO tillroll_registry (kind, name, document) VALUES (%s, %s, %s)
ON CONFLICT (kind, name) DO UPDATE SET document = excluded.document
"""
_REMOVE_DOCUMENT = "DELETE FROM tillroll_registry WHERE kind = %s AND name = %s"
_NOTE_COLUMNS = """
SELECT uuid_send(account_id), kind, name, project, document, account, version, due_at
FROM tillroll_notes
"""
_NOTE = _NOTE_COLUMNS + "WHERE account_id = %s::uuid AND kind = %s AND name = %s"
_NOTES = (
    _NOTE_COLUMNS
    + """
WHERE (account_id, kind, name) > (%s::uuid, %s, %s) ORDER BY account_id, kind, name LIMIT %s
"""
)
_NOTES_DUE = (
    _NOTE_COLUMNS
    + """
WHERE project = %s AND kind = %s AND due_at <= %s ORDER BY due_at, account_id, name LIMIT %s
"""
)
_NOTES_OF = (
    _NOTE_COLUMNS
    + """
WHERE project = %s AND account = %s AND kind = %s AND name > %s ORDER BY name LIMIT %s
"""
)
_SET_NOTE = """
UPDATE tillroll_notes SET
    project = %s, document = %s, account = %s, version = version + 1, due_at = %s
WHERE account_id = %s::uuid AND kind = %s AND name = %s AND version = %s RETURNING 1
"""
_HASTEN_NOTE = """
UPDATE tillroll_notes SET due_at = %s, version = version + 1
WHERE account_id = %s::uuid AND kind = %s AND name = %s AND due_at > %s AND due_at < %s
"""
_DROP_NOTE = """
DELETE FROM tillroll_notes
WHERE account_id = %s::uuid AND kind = %s AND name = %s AND version = %s RETURNING 1
"""
_ADD_NOTE = """
INSERT INTO tillroll_notes (
    account_id, kind, name, project, document, account, version, due_at
) VALUES (%s::uuid, %s, %s, %s, %s, %s, %s, %s)
"""
_NEW_NOTE = _ADD_NOTE + "ON CONFLICT (account_id, kind, name) DO NOTHING RETURNING 1"
_COPY_NOTE = (
    _ADD_NOTE
    + """
ON CONFLICT (account_id, kind, name) DO UPDATE SET
    project = excluded.project, document = excluded.document, account = excluded.account,
    version = excluded.version, due_at = excluded.due_at
"""
)
_ENTRY_COLUMNS = """
account_id, seq, recorded_at, effective_at, request_id, ref, kind, body, hash, metadata
"""
_COPY_ENTRIES = f"COPY tillroll_entries ({_ENTRY_COLUMNS}) FROM STDIN"
_ADD_ENTRY = f"""
INSERT INTO tillroll_entries ({_ENTRY_COLUMNS})
VALUES (%s::uuid, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""  # noqa: S608 - only our own constants
# Where row-level security forbids COPY.
_ADD_ENTRIES = f"""
INSERT INTO tillroll_entries ({_ENTRY_COLUMNS})
SELECT * FROM unnest(
    %s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[],
    %s::text[], %s::bytea[], %s::text[]
)
"""  # noqa: S608 - only our own constants
_SET_STATES = PerRow(
    many="""
INSERT INTO tillroll_accounts
SELECT * FROM unnest(
    %s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::text[]
) AS w (account_id, project, account, seq, head, at, next_due_at, least, state)
ORDER BY w.account_id
ON CONFLICT (account_id) DO UPDATE SET
    seq = excluded.seq, head = excluded.head, at = excluded.at,
    next_due_at = excluded.next_due_at, least = excluded.least, state = excluded.state
WHERE tillroll_accounts.seq <= excluded.seq
""",
    one="""
INSERT INTO tillroll_accounts VALUES (%s::uuid, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (account_id) DO UPDATE SET
    seq = excluded.seq, head = excluded.head, at = excluded.at,
    next_due_at = excluded.next_due_at, least = excluded.least, state = excluded.state
WHERE tillroll_accounts.seq <= excluded.seq
""",
)
_SET_REFUSALS = PerRow(
    many="""
INSERT INTO tillroll_refusals (request_id, account_id, project, account, recorded_at, body)
SELECT * FROM unnest(%s::text[], %s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::text[])
ON CONFLICT (request_id, account_id) DO UPDATE SET
    recorded_at = excluded.recorded_at, body = excluded.body
""",
    one="""
INSERT INTO tillroll_refusals (request_id, account_id, project, account, recorded_at, body)
VALUES (%s, %s::uuid, %s, %s, %s, %s)
ON CONFLICT (request_id, account_id) DO UPDATE SET
    recorded_at = excluded.recorded_at, body = excluded.body
""",
)
_COUNT_REPLAYS = PerRow(
    many="""
INSERT INTO tillroll_replays (request_id, account_id, times, last_at)
SELECT * FROM unnest(%s::text[], %s::uuid[], %s::bigint[], %s::bigint[])
ON CONFLICT (request_id, account_id) DO UPDATE SET
    times = tillroll_replays.times + excluded.times,
    last_at = greatest(tillroll_replays.last_at, excluded.last_at)
""",
    one="""
INSERT INTO tillroll_replays (request_id, account_id, times, last_at)
VALUES (%s, %s::uuid, %s, %s)
ON CONFLICT (request_id, account_id) DO UPDATE SET
    times = tillroll_replays.times + excluded.times,
    last_at = greatest(tillroll_replays.last_at, excluded.last_at)
""",
)
_ADD_EVENTS = PerRow(
    many="""
INSERT INTO tillroll_outbox (account_id, seq, n, project, topic, payload, created_at, spread)
SELECT *, 0 FROM unnest(
    %s::uuid[], %s::bigint[], %s::integer[], %s::text[], %s::text[], %s::text[], %s::bigint[]
)
""",
    one="""
INSERT INTO tillroll_outbox (account_id, seq, n, project, topic, payload, created_at, spread)
VALUES (%s::uuid, %s, %s, %s, %s, %s, %s, 0)
""",
)
_DROP_REFUSALS = """
WITH old AS (
    SELECT request_id, account_id FROM tillroll_refusals
    WHERE recorded_at < %s ORDER BY recorded_at LIMIT %s
), dropped AS (
    DELETE FROM tillroll_refusals AS r USING old
    WHERE (r.request_id, r.account_id) = (old.request_id, old.account_id)
    RETURNING r.request_id, r.account_id
), forgotten AS (
    DELETE FROM tillroll_replays AS p USING dropped AS d
    WHERE (p.request_id, p.account_id) = (d.request_id, d.account_id) AND NOT EXISTS (
        SELECT 1 FROM tillroll_entries AS e
        WHERE e.request_id = d.request_id AND e.account_id = d.account_id
    )
)
SELECT count(*) FROM dropped
"""
_ERASE_METADATA = """
WITH erased AS (
    UPDATE tillroll_entries SET metadata = NULL
    WHERE account_id = %s::uuid AND seq < %s AND metadata IS NOT NULL RETURNING 1
) SELECT count(*) FROM erased
"""
_FIRST_METADATA = """
SELECT uuid_send(w.account_id), e.seq FROM unnest(%s::uuid[]) AS w (account_id)
CROSS JOIN LATERAL (
    SELECT t.seq FROM tillroll_entries AS t
    WHERE t.account_id = w.account_id AND t.metadata IS NOT NULL
    ORDER BY t.account_id, t.seq LIMIT 1
) AS e
"""
_STORED = (
    "SELECT body, hash, metadata, seq, request_id, ref, kind, recorded_at, effective_at "
    "FROM tillroll_entries WHERE account_id = %s::uuid "
)
_FIND = """
SELECT a.account FROM tillroll_entries AS e
INNER JOIN tillroll_accounts AS a ON e.account_id = a.account_id
WHERE e.request_id = %s AND a.project = %s
UNION SELECT account FROM tillroll_refusals WHERE request_id = %s AND project = %s ORDER BY 1
"""


class Session(Protocol):
    """A database transaction under way, as far as statements are concerned.

    Attributes:
        copy_min: From how many entries on they go out by COPY.
    """

    copy_min: int

    def run(self, *statements: Statement) -> list[Rows]:
        """Run statements in order, in one round trip where that can be; return their rows."""

    def copy(self, sql: str, data: str) -> None:
        """Send these lines to a COPY, which begins with the first of them.

        The server writes while we go on; nothing else may be run until `copied`.
        """

    def copied(self) -> None:
        """End the COPY; what the server objects to in its lines is raised here at the latest."""


# How one transaction goes about it: append; lock; lock, and keep out those who append.
Way = Literal["append", "locks", "alone"]
_NEEDLESS: dict[Way, tuple[str, ...]] = {
    "append": ("close", "make", "lock", "added"),
    "locks": ("share", "close"),
    "alone": ("share",),
}


class PostgresReader(OutboxReader):
    """What may be read within one database transaction."""

    states_trail = True
    _sql = statements(Dialect(mark="%s", key="%s::uuid", owner="uuid_send(account_id)"))
    _mark = "%s"

    def __init__(self, session: Session) -> None:
        """Read through this session."""
        self._session = session

    def ask(self, sql: str, *parameters: object) -> Rows:
        """Run one statement; return its rows."""
        return self._session.run((sql, parameters))[0]

    def accounts(self, wanted: Iterable[tuple[bytes, str]]) -> dict[bytes, Account]:
        """Return each account named by (account_id, name); an empty one where it is new."""
        names = dict(wanted)
        ids = _ids(names)
        rows = self.ask(_STATES_AND_TRAILS, ids, ids)
        return {owner: r.account for owner, r in _revive(names, {}, rows, []).items()}

    def load(
        self, _project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Return these accounts, and what was answered to these keys."""
        return self.accounts(wanted.items()), self.answers(keys)

    def first_metadata(self, account_ids: Collection[bytes]) -> dict[bytes, int]:
        """Return where the metadata of each account begins."""
        return dict(self.ask(_FIRST_METADATA, _ids(account_ids)))

    def stored_state(self, account_id: bytes) -> tuple[int, bytes, str] | None:
        """Return seq, chain head and state document as stored."""
        for _, seq, head, _, state in self.ask(_STATES, _ids([account_id])):
            return seq, head, state
        return None

    def answers(self, keys: Sequence[Key]) -> dict[Key, Entry | Refusal]:
        """Return what was answered to these keys; an entry wins over an older refusal."""
        return _found(self.ask(_ANSWERS, *_keys(keys) * 2)) if keys else {}

    def stories(self, keys: Collection[Key]) -> dict[Key, Story]:
        """Return, for each id, the entry that made it and those that refer to it."""
        wanted = _keys(keys)
        roots, acts = self._session.run((_ANSWERS, wanted * 2), (_ACTS, wanted))
        stories: dict[Key, Story] = {key: (None, []) for key in keys}
        for owner, name, body, _ in roots:
            if body is not None:
                stories[owner, name] = (decode_entry(body), [])
        for owner, name, body in acts:
            stories[owner, name][1].append(decode_entry(body))
        return stories

    def entries(self, account_id: bytes, after: int = 0, limit: int = 1_000) -> list[Stored]:
        """Return the entries with a seq above `after`, oldest first."""
        sql = _STORED + "AND seq > %s ORDER BY seq LIMIT %s"
        return [_stored(row) for row in self.ask(sql, account_id.hex(), after, limit)]

    def entries_before(self, account_id: bytes, before: int, limit: int) -> list[Stored]:
        """Return the entries with a seq below `before`, newest first."""
        sql = _STORED + "AND seq < %s ORDER BY seq DESC LIMIT %s"
        return [_stored(row) for row in self.ask(sql, account_id.hex(), before, limit)]

    def find(self, project: str, request_id: str) -> list[str]:
        """Return the accounts that know this request id, sorted."""
        wanted = (request_id, project)
        return [name for (name,) in self.ask(_FIND, *wanted, *wanted)]

    def replays(self, key: Key) -> tuple[int, int]:
        """Return how often a request was repeated and when last."""
        sql = (
            "SELECT times, last_at FROM tillroll_replays WHERE request_id = %s AND account_id = %s"
        )
        for times, last_at in self.ask(sql + "::uuid", key[1], key[0].hex()):
            return times, last_at
        return 0, 0

    def names(self, project: str, after: str = "", limit: int = 1_000) -> list[str]:
        """Return account names in order, above `after`."""
        sql = (
            "SELECT account FROM tillroll_accounts WHERE project = %s AND account > %s "
            "AND seq > 0 ORDER BY account LIMIT %s"
        )
        return [name for (name,) in self.ask(sql, project, after, limit)]

    def due(self, project: str, at: int, limit: int = 1_000) -> list[str]:
        """Return accounts that something may have fallen due on by `at`, the longest due first."""
        sql = (
            "SELECT account FROM tillroll_accounts WHERE next_due_at <= %s AND project = %s "
            "ORDER BY next_due_at LIMIT %s"
        )
        return [name for (name,) in self.ask(sql, at, project, limit)]

    def prices(self, project: str) -> PriceBook:
        """Return all price versions; the newest is current."""
        sql = "SELECT body FROM tillroll_price_versions WHERE project = %s ORDER BY number"
        book = PriceBook()
        for (body,) in self.ask(sql, project):
            book = book.adding(decode_version(body.encode()))
        return book

    def projects(self) -> list[str]:
        """Return the projects that have anything here."""
        return [project for (project,) in self.ask(_PROJECTS)]

    def refusals(self, after: Key | None = None, limit: int = 1_000) -> list[Remembrance]:
        """Return remembered refusals in order."""
        owner, name = after or (bytes(16), "")
        rows = self.ask(_REFUSAL_PAGE, name, owner.hex(), limit)
        return [
            Remembrance(project, account, owner, decode_refusal(body))
            for project, account, owner, body in rows
        ]

    def repeats(self, after: Key | None = None, limit: int = 1_000) -> list[Repeats]:
        """Return how often requests were repeated."""
        owner, name = after or (bytes(16), "")
        return [Repeats(*row) for row in self.ask(_REPEATS_PAGE, name, owner.hex(), limit)]

    def brought(self) -> str | None:
        """Return what the last copy said of what it brought."""
        rows = self.ask(_BROUGHT)
        return rows[0][0] if rows else None

    def needs(self) -> int:
        """Return the lowest format that a tillroll must know."""
        rows = self.ask(NEEDS)
        return int(rows[0][0]) if rows else 1

    def moved_to(self) -> str | None:
        """Return where this ledger went."""
        rows = self.ask(_MOVED_TO)
        return rows[0][0] if rows else None

    def registry_version(self) -> int:
        """Return how many transactions have put a document."""
        rows = self.ask(_REGISTRY_VERSION)
        return int(rows[0][0]) if rows else 0

    def kinds(self) -> list[str]:
        """Return the kinds that there are documents of, sorted."""
        return [kind for (kind,) in self.ask(_KINDS)]

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by their names, sorted by name."""
        return dict(self.ask(_DOCUMENTS, kind))

    def document(self, kind: str, name: str) -> str | None:
        """Return one document."""
        rows = self.ask(_DOCUMENT, kind, name)
        return rows[0][0] if rows else None

    def topics(self, project: str) -> frozenset[str]:
        """Return the types of events that some endpoint of the project wants."""
        return topics_in(self, project)

    def _run(self, *statements: Statement) -> list[Rows]:
        return self._session.run(*statements) if statements else []

    def _key(self, owner: bytes) -> str:
        return owner.hex()

    def note(self, key: NoteKey) -> Note | None:
        """Return one note."""
        owner, kind, name = key
        rows = self.ask(_NOTE, owner.hex(), kind, name)
        return note_of(rows[0]) if rows else None

    def notes(self, after: NoteKey | None = None, limit: int = 1_000) -> list[Note]:
        """Return all notes in order."""
        owner, kind, name = after or (bytes(16), "", "")
        return [note_of(row) for row in self.ask(_NOTES, owner.hex(), kind, name, limit)]

    def notes_due(self, project: str, kind: str, at: int, limit: int = 1_000) -> list[Note]:
        """Return what is due, the longest due first."""
        return [note_of(row) for row in self.ask(_NOTES_DUE, project, kind, at, limit)]

    def notes_of(
        self, project: str, account: str, kind: str, after: str = "", limit: int = 1_000
    ) -> list[Note]:
        """Return an account's notes of a kind."""
        wanted = project, account, kind, after, limit
        return [note_of(row) for row in self.ask(_NOTES_OF, *wanted)]


class Doubt(Retry):
    """What was decided on a remembered state has to be decided again under the locks."""


class PostgresWriter(PostgresReader, OutboxWriter):
    """What may be done within one database transaction that writes.

    There are two ways to write (decisions/0011), and which is allowed is written in the database.
    By locks: accounts are locked, brought up to date, decided about. By appending: nothing is
    locked, what is remembered is taken for true, and the key (account_id, seq) tells at the end
    whether it was; a refusal is never taken from there, since nothing would contradict it.

    Attributes:
        last: What is still to be sent, together with the commit.
        loaded: The accounts that this transaction works on.
        appends: Whether the database lets those append who remember; None before it was asked.
        copies: Whether many entries may go in by COPY.
    """

    copies = True

    def __init__(
        self,
        session: Session,
        states: dict[bytes, Remembered],
        prices: dict[str, tuple[int, PriceBook]],
        way: Way = "locks",
        *,
        spread: bool = False,
        recheck: bool = False,
        topics: dict[str, tuple[int, frozenset[str]]] | None = None,
    ) -> None:
        """Write through this session, with what this process remembers of accounts and prices.

        What is remembered is changed on the way: after a rollback it has to be forgotten. `spread`
        says that the accounts are on several servers; `recheck`, that a server may be another one
        than last time though the connection is the same, so that what is remembered may be lost.
        `topics` is what is listened to, with the version of the registry that it was read at.
        """
        super().__init__(session)
        self._way = way
        self._spread = spread
        self._recheck = recheck
        self._topics = {} if topics is None else topics
        self._registry: int | None = None  # its version, where it was looked up
        self.loaded: set[bytes] = set()
        self.appends: bool | None = None
        self._states = states
        self._prices = prices
        self._versions: dict[str, int] = {}
        self._moved: str | Literal[False] | None = False  # False where it has not been looked up
        self._counted = False  # whether this transaction's documents count in the version
        self._sent = 0  # entries of the book that are on their way
        self.last: list[Statement] = []

    def load_locked(self, project: str, wanted: Mapping[bytes, str]) -> dict[bytes, Account]:
        """Lock these accounts, and return them as they stand."""
        if self._way == "append":
            if self.loaded:
                raise Retry("accounts are to be locked of which some were taken from memory")
            self._way = "locks"
        return self.load(project, wanted, ())[0]

    def load(
        self, project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Lock these accounts, and return them and what was answered to these keys.

        One round trip: rows of accounts never seen are made, all are locked in the order of their
        ids, and only then is looked what they and the keys have become. Of an account that is
        remembered only what others have added since has to come. Who appends locks nothing and
        believes what is remembered, which is contradicted by the entries that follow, or by none.
        """
        known = self._states
        new = [owner for owner in wanted if owner not in known]
        doubtful = self._doubtful(wanted)
        self.loaded.update(wanted)
        plan: dict[str, Callable[[], list[Statement]]] = {
            "share": lambda: [(_SHARE_GATE, ())],
            "close": lambda: [(_CLOSE_GATE, ())],
            "make": lambda: self._each(
                _NEW_ACCOUNTS, [(owner.hex(), project, wanted[owner], NEVER) for owner in new]
            ),
            "lock": lambda: self._each(_LOCK, [(owner.hex(),) for owner in sorted(wanted)]),
            "states": lambda: [(_STATES_AND_TRAILS, [_ids(new)] * 2)] if new else [],
            "doubtful": lambda: [(_LAST_KNOWN, _columns(doubtful))] if doubtful else [],
            "added": lambda: self._each(
                _ADDED, [(o.hex(), known[o].account.seq) for o in wanted if o in known]
            ),
            "answers": lambda: [(_ANSWERS, _keys(keys) * 2)] if keys else [],
            "prices": lambda: [(_PRICES_KNOWN, [project])],
            "place": lambda: [(PLACE, ())],
        }
        rows = self._rows_of(plan)
        self._versions[project] = rows["prices"][0][0]
        place: dict[str, str] = dict(rows["place"])
        check_needs(place.get("needs"))
        self._moved = place.get("moved_to")
        self._registry = int(place.get("registry_version", 0))
        self.appends = place.get("writing") == "append"
        if self._way == "append" and not self.appends:
            raise Doubt("appending was ended")
        if place.get("writing", "locks") == "locks":
            self._way = "alone"  # nobody appends, so there is nobody to keep out
        self._check_last_known(doubtful, rows["doubtful"])
        names = {owner: wanted[owner] for owner in new}
        known.update(_revive(names, known, rows["states"], rows["added"]))
        for owner, due in rows["lock"]:
            known[owner].due = due
        return {owner: known[owner].account for owner in wanted}, _found(rows["answers"])

    def _rows_of(self, plan: Mapping[str, Callable[[], list[Statement]]]) -> dict[str, Rows]:
        """Run what is needed of a plan in one round trip; return the rows of each of its parts."""
        needless = _NEEDLESS[self._way]
        statements = {name: make() for name, make in plan.items() if name not in needless}
        try:
            answers = iter(self._session.run(*itertools.chain.from_iterable(statements.values())))
        except LockNotAvailable as problem:
            if self._way != "append":
                raise
            raise Retry("the gate stayed closed to those who append") from problem
        rows: dict[str, Rows] = {name: [] for name in plan}
        for name, parts in statements.items():
            rows[name] = [row for _ in parts for row in next(answers)]
        return rows

    def _doubtful(self, wanted: Iterable[bytes]) -> list[tuple[str, int]]:
        """Return the last entries that are remembered, where the server may have lost them."""
        if not self._recheck:
            return []
        known = self._states
        fresh = [o for o in wanted if o in known and o not in self.loaded and known[o].account.seq]
        return [(owner.hex(), known[owner].account.seq) for owner in fresh]

    def _check_last_known(self, doubtful: Iterable[tuple[str, int]], rows: Rows) -> None:
        """Believe in nothing that is not there any more.

        Raises:
            Retry: The database went back in time. What was loaded is forgotten.
        """
        there: dict[bytes, bytes] = dict(rows)
        for owner in (bytes.fromhex(name) for name, _ in doubtful):
            if there.get(owner) != self._states[owner].account.head:
                raise Retry("the server has lost what was written before")

    def prices(self, project: str) -> PriceBook:
        """Return the price book, remembered while nobody has added a version."""
        number = self._versions.get(project)
        if number is None:
            number = self.ask(_PRICES_KNOWN, project)[0][0]
        remembered = self._prices.get(project)
        if remembered is None or remembered[0] != number:
            remembered = self._prices[project] = (number, super().prices(project))
        return remembered[1]

    def topics(self, project: str) -> frozenset[str]:
        """Return what is listened to, remembered while nobody has put a document."""
        version = self._registry
        if version is None:
            version = self._registry = self.registry_version()
        if not version:
            return frozenset()  # no document was ever put
        known = self._topics.get(project)
        if known is None or known[0] != version:
            known = self._topics[project] = (version, super().topics(project))
        return known[1]

    @property
    def part(self) -> int:
        """How many requests to decide before what they lead to is sent ahead."""
        return PART if self.copies and self._session.copy_min <= PART else 0

    def send(self, book: Book) -> None:
        """Have the server write these entries while more is decided; see `append`."""
        self._check(book)
        lines = [_entry_line(sealed) for sealed in book.appended[self._sent :]]
        if lines:
            self._session.copy(_COPY_ENTRIES, "".join(lines))
            self._sent += len(lines)

    def _check(self, book: Book) -> None:
        """Raise where what the book gathered must not be written this way."""
        if book.dismissed and self._way == "append":
            raise Retry("what is wrong has to be wrong as things stand")
        if book.refused and self._way != "alone":
            raise Doubt("a refusal has to be decided while nobody appends")

    def append(self, project: str, book: Book) -> None:
        """Write what the book gathered.

        Raises:
            Doubt: Something is refused, and somebody may append to its account meanwhile.
            Retry: Something was dismissed for what is remembered.
        """
        self._check(book)
        if self._sent:
            self._session.copied()
        elif book.appended:
            self._append_entries(sorted(book.appended, key=_owner))
        touched = {sealed.account_id for sealed in book.appended}
        stale = [owner for owner in touched if self._is_behind(owner)]
        stale += [o for o in book.accounts if o not in touched and self._is_early(o, book.at)]
        self.last += self._each(_SET_STATES, [self._state(project, o) for o in sorted(stale)])
        if self._way == "append":
            dues = [(o, self._states[o].account.next_due_at) for o in touched]
            lower = sorted([due for due in dues if due[1] < NEVER])
            self.last += self._each(_LOWER_DUE, [(due, owner.hex()) for owner, due in lower])
        if book.refused:
            # A request refused twice in one batch (retry_refused) keeps the last refusal.
            rows = {
                (refusal.request_id, owner): (
                    refusal.request_id,
                    owner.hex(),
                    project,
                    book.accounts[owner].account,
                    refusal.at,
                    encode(refusal).decode(),
                )
                for owner, refusal in book.refused
            }
            self.last += self._each(_SET_REFUSALS, list(rows.values()))
        if book.replayed:
            times = Counter((name, owner.hex()) for owner, name, _ in book.replayed)
            last = {(name, owner.hex()): at for owner, name, at in book.replayed}
            repeats = [(*key, count, last[key]) for key, count in sorted(times.items())]
            self.last += self._each(_COUNT_REPLAYS, repeats)
        self.last += self._each(_ADD_EVENTS, sorted(_event_row(event) for event in book.events))
        for owner, *name in low_notes(book):  # after the account's own row, as jobs do it
            hasten = book.at, owner.hex(), *name, book.at, NEVER
            self.last.append((_HASTEN_NOTE, hasten))

    def _append_entries(self, entries: Sequence[Sealed]) -> None:
        if len(entries) < self._session.copy_min:
            self.last += [(_ADD_ENTRY, _entry_row(sealed)) for sealed in entries]
        elif not self.copies:
            self.last.append((_ADD_ENTRIES, _entry_columns(entries)))
        else:
            lines = [_entry_line(sealed) for sealed in entries]
            self._session.copy(_COPY_ENTRIES, "".join(lines))
            self._session.copied()

    def _is_behind(self, owner: bytes) -> bool:
        """Return whether the row of an account that got entries has to be written."""
        return self._states[owner].is_behind

    def _is_early(self, owner: bytes, at: int) -> bool:
        """Return whether a row names a time that has passed, though nothing fell due then.

        Raises:
            Doubt: It does, and somebody may append to the account meanwhile.
        """
        early = self._states[owner].is_early(at)
        if early and self._way != "alone":
            raise Doubt("what falls due may only be put off while nobody appends")
        return early

    def _state(self, project: str, owner: bytes) -> tuple[object, ...]:
        """Return the row of an account as it has to be now, and note that it is."""
        known = self._states[owner]
        account = known.account
        state = encode_state(account).decode()
        known.seq, known.due = account.seq, account.next_due_at
        known.trail = trail_of(state)
        return (
            owner.hex(),
            project,
            account.account,
            account.seq,
            account.head,
            account.at,
            account.next_due_at,
            least(account),
            state,
        )

    def _each(self, act: PerRow, rows: Sequence[Sequence[object]]) -> list[Statement]:
        """Return the statements that do something to each of these rows."""
        if not rows:
            return []
        if self._spread:
            return [(act.one, row) for row in rows]
        return [(act.many, _columns(rows))]

    def add_price_version(self, project: str, version: PriceVersion) -> None:
        """Write a new price version; another of its number makes the batch try again."""
        self.ask(
            "INSERT INTO tillroll_price_versions VALUES (%s, %s, %s, %s, %s, %s, %s)",
            project,
            version.number,
            version.digest,
            version.author,
            version.reason,
            version.applied_at,
            encode_version(version).decode(),
        )

    def moved_to(self) -> str | None:
        """Return where this ledger went; known already where accounts were loaded.

        Where none were, a lock on the table has those wait for us who wait for writers.
        """
        if self._moved is False:
            place: dict[str, str] = dict(self._session.run(_WRITING, (PLACE, ()))[1])
            check_needs(place.get("needs"))
            return place.get("moved_to")
        return self._moved

    def need(self, format_: int) -> None:
        """Refuse the ledger to a tillroll that does not know this format."""
        self.ask(_NEED, str(format_))

    def add_repeats(self, repeats: Sequence[Repeats]) -> None:
        """Write how often requests were repeated."""
        if repeats:
            rows = ((name, owner.hex(), times, at) for owner, name, times, at in repeats)
            self.ask(_SET_REPEATS, *_columns(rows))

    def set_moved(self, to: str | None) -> None:
        """Mark the ledger as gone to another place, or as here again."""
        self._session.run(_TOUCH, _SET_HERE if to is None else (_SET_MOVED, [to]))

    def set_brought(self, told: str) -> None:
        """Say what a copy brought."""
        self.ask(_SET_BROUGHT, told)

    def put_document(self, kind: str, name: str, document: str | None) -> None:
        """Insert or replace a document; None removes it."""
        put: Statement = (_PUT_DOCUMENT, (kind, name, document))
        if document is None:
            put = (_REMOVE_DOCUMENT, (kind, name))
        self._session.run(*([] if self._counted else [_COUNT_REGISTRY]), put)
        self._counted = True
        self._registry = None

    def set_registry_version(self, version: int) -> None:
        """Have the registry go on from this version."""
        self.ask(_SET_REGISTRY_VERSION, str(version))
        self._counted = True

    def put_note(self, note: Note) -> None:
        """Write a note, where its version is the one that is there."""
        owner, *rest = note_row(note)
        if note.version == 0:
            written = self.ask(_NEW_NOTE, owner.hex(), *rest[:5], 1, note.due_at)
        else:
            new = note.project, note.document, note.account, note.due_at
            known = owner.hex(), note.kind, note.name, note.version
            written = self.ask(_SET_NOTE, *new, *known)
        if not written:
            raise Retry("a note was written by somebody else")

    def drop_note(self, note: Note) -> None:
        """Delete a note, where its version is the one that is there."""
        if not self.ask(_DROP_NOTE, note.owner.hex(), note.kind, note.name, note.version):
            raise Retry("a note was written by somebody else")

    def copy_notes(self, notes: Sequence[Note]) -> None:
        """Write notes as they are."""
        rows = [note_row(note) for note in notes]
        self._session.run(*((_COPY_NOTE, (owner.hex(), *rest)) for owner, *rest in rows))

    def set_writing(self, way: str) -> None:
        """Write down how the ledger is written from now on (see `PostgresStore.set_writing`)."""
        self._session.run(_TOUCH, (_SET_WRITING, [way]))

    def close_gate(self) -> None:
        """Wait for those who append, and keep others from it until the commit."""
        self.ask(_CLOSE_GATE)

    def erase_metadata(self, account_id: bytes, before: int = SEQ_MAX) -> int:
        """Erase the metadata of an account's entries below that seq."""
        try:
            count: int = self.ask(_ERASE_METADATA, account_id.hex(), before)[0][0]
        except InsufficientPrivilege as problem:
            raise StoreReadOnly(
                "erasing metadata changes rows of the history, which only the owner of the tables "
                "may do: open the ledger with that role; nothing was written"
            ) from problem
        return count

    def prune_refusals(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest refusals recorded before that time."""
        count: int = self.ask(_DROP_REFUSALS, before, limit)[0][0]
        return count


# ---------------------------------------------------------------- rows to values


def _revive(
    names: Mapping[bytes, str],
    known: Mapping[bytes, Remembered],
    states: Rows,
    added: Rows,
) -> dict[bytes, Remembered]:
    """Return accounts from their rows; fold what was added since onto these and onto known ones."""
    fresh = {owner: Remembered(Account(name)) for owner, name in names.items()}
    trails = list(added)
    for owner, seq, head, due, state in states:
        if due is None:
            trails.append((owner, seq, head, state))
            continue
        fresh[owner] = revived(seq, head, due, state)
    changed = set(fresh)
    for owner, _, hash_, body in sorted(trails):
        remembered = fresh.get(owner) or known[owner]
        catch_up(remembered.account, decode_entry(body), hash_)
        changed.add(owner)
    for owner in changed:
        account = (fresh.get(owner) or known[owner]).account
        account.next_due_at = next_due(account)
    return fresh


def _found(rows: Rows) -> dict[Key, Entry | Refusal]:
    found: dict[Key, Entry | Refusal] = {}
    for owner, name, entry, refusal in rows:
        if entry is not None:
            found[owner, name] = decode_entry(entry)
        else:
            found.setdefault((owner, name), decode_refusal(refusal))
    return found


def _stored(row: tuple[Any, ...]) -> Stored:
    return Stored(row[0].encode(), *row[1:])


# ---------------------------------------------------------------- values to parameters


def _array(items: Iterable[str]) -> str:
    """Return an array literal of items that need no quoting."""
    return "{" + ",".join(items) + "}"


def _quoted(items: Sequence[str]) -> str:
    """Return an array literal of any texts: psycopg's own takes longer than the look-up."""
    text = '","'.join(items)
    if "\\" in text or text.count('"') > 2 * (len(items) - 1):
        text = '","'.join(i.replace("\\", "\\\\").replace('"', '\\"') for i in items)
    return '{"' + text + '"}' if items else "{}"


def _ids(owners: Iterable[bytes]) -> str:
    return _array([owner.hex() for owner in owners])


def _keys(keys: Collection[Key]) -> list[object]:
    return [_ids([owner for owner, _ in keys]), _quoted([name for _, name in keys])]


def _columns(rows: Iterable[Sequence[object]]) -> list[object]:
    """Return rows as arrays, a column each, none of whose values is absent."""
    return [_column(column) for column in zip(*rows, strict=True)]


def _column(values: tuple[Any, ...]) -> object:
    """Return values of one kind as an array: numbers and texts as a literal of our own."""
    if type(values[0]) is int:
        return _array(map(str, values))
    return _quoted(values) if type(values[0]) is str else list(values)


# All write in the order of accounts, so that none waits in a circle; those of one account stand in
# the order of their seq already.
_owner = attrgetter("account_id")


def _entry_row(sealed: Sealed) -> list[object]:
    entry = sealed.entry
    return [
        sealed.account_id.hex(),
        entry.seq,
        entry.at,
        entry.effective_at,
        entry.request_id,
        entry.ref,
        entry.kind,
        sealed.body.decode(),
        sealed.hash,
        sealed.metadata,
    ]


def _event_row(event: Event) -> tuple[str, int, int, str, str, str, int]:
    told = event.project, event.topic, event.payload, event.at
    return event.account_id.hex(), event.seq, event.n, *told


def _entry_columns(sealed: Sequence[Sealed]) -> list[object]:
    """Return entries as arrays, a column each; psycopg's own take as long as all the rest."""
    owners, seqs, ats, effective, *texts = zip(*map(_entry_row, sealed), strict=True)
    request_ids, refs, kinds, bodies, hashes, metadata = texts
    return [
        _array(owners),
        *(_array(map(str, numbers)) for numbers in (seqs, ats, effective)),
        *(_texts(column) for column in (request_ids, refs, kinds, bodies)),
        _texts([f"\\x{hash_.hex()}" for hash_ in hashes]),
        _texts(metadata),
    ]


def _texts(items: Iterable[str | None]) -> str:
    """Return an array literal of texts, some of which may be absent."""
    return _array(
        "NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for item in items
    )


def _entry_line(sealed: Sealed) -> str:
    """Return an entry as one line of COPY's text format."""
    entry = sealed.entry
    request_id = "\\N" if entry.request_id is None else _escaped(entry.request_id)
    ref = "\\N" if entry.ref is None else _escaped(entry.ref)
    meta = "\\N" if sealed.metadata is None else _escaped(sealed.metadata)
    return (
        f"{sealed.account_id.hex()}\t{entry.seq}\t{entry.at}\t{entry.effective_at}\t{request_id}"
        f"\t{ref}\t{entry.kind}\t{_escaped(sealed.body.decode())}\t\\\\x{sealed.hash.hex()}"
        f"\t{meta}\n"
    )


def _escaped(text: str) -> str:
    """Escape what COPY's text format gives a meaning; ids and JSON hold no raw tab or newline."""
    return text.replace("\\", "\\\\") if "\\" in text else text


__all__ = ["PostgresReader", "PostgresWriter", "Remembered", "Session", "Statement"]
