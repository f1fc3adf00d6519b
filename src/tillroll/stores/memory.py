"""The memory driver: the contract in its smallest form, for tests and for trying things out.

It keeps what the other drivers keep, encoded as they encode it, so that nothing can be shared by
accident; a database transaction is a copy that replaces the original on commit.
"""

from __future__ import annotations

import bisect
import secrets
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tillroll.ledger.chain import (
    decode_account,
    decode_entry,
    decode_refusal,
    encode,
    encode_state,
)
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import InvalidInput, StoreClosed
from tillroll.ledger.pricing import PriceBook
from tillroll.ledger.types import NEVER, Account, Entry, Refusal
from tillroll.ledger.units import SCALE_DEFAULT, SCALE_MAX
from tillroll.stores.base import (
    SEQ_MAX,
    Key,
    Note,
    NoteKey,
    Remembrance,
    Repeats,
    Retry,
    Stored,
    Story,
    low_notes,
)
from tillroll.stores.outbox import (
    SPANS_MAX,
    Backlog,
    Delivery,
    DeliveryKey,
    EventKey,
    Lease,
    State,
    Waiting,
    topics_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from tillroll.ledger.book import Book, Event
    from tillroll.ledger.pricing import PriceVersion


class MemoryStore:
    """Ledgers in this process's memory; gone when it ends."""

    def __init__(self, *, scale: int | None = None) -> None:
        """Start empty, with units of `scale` decimals."""
        self.url = "memory://"
        self.scale = SCALE_DEFAULT if scale is None else scale
        if type(self.scale) is not int or not 0 <= self.scale <= SCALE_MAX:
            raise InvalidInput(f"scale must be 0 to {SCALE_MAX}")
        self.secret = secrets.token_bytes(32)
        self._lock = threading.RLock()
        self._closed = False
        self.histories: dict[bytes, list[tuple[bytes, bytes, str | None]]] = {}
        self.by_request: dict[Key, int] = {}
        self.by_ref: dict[Key, list[int]] = {}
        self.states: dict[bytes, tuple[str, int, bytes, int, str]] = {}
        self.names: dict[tuple[str, str], bytes] = {}
        self.refusals: dict[Key, tuple[str, bytes]] = {}
        self.repeats: dict[Key, tuple[int, int]] = {}
        self.books: dict[str, PriceBook] = {}
        self.gone: str | None = None
        self.brought: str | None = None
        self.format = 1
        self.registry: dict[tuple[str, str], str] = {}
        self.registry_version = 0
        self.outbox: dict[EventKey, Waiting] = {}
        self.deliveries: dict[DeliveryKey, Delivery] = {}
        self.leases: dict[str, Lease] = {}
        self.notes: dict[NoteKey, Note] = {}

    @contextmanager
    def write(self) -> Iterator[MemoryWriter]:
        """Open the only database transaction; what it gathers is kept when it ends well."""
        with self._lock:
            writer = MemoryWriter(self._open())
            yield writer
            for act in writer.acts:
                act()

    @contextmanager
    def read(self) -> Iterator[MemoryReader]:
        """Open one consistent view: nobody writes meanwhile."""
        with self._lock:
            yield MemoryReader(self._open())

    read_primary = read

    def _open(self) -> MemoryStore:
        if self._closed:
            raise StoreClosed("the ledger is closed; nothing was written")
        return self

    def wait_for_writers(self) -> None:
        """Do nothing: they take turns."""

    def adopt(self, secret: bytes) -> None:
        """Sign quotes with this secret from now on."""
        self.secret = secret

    def recover(self) -> None:
        """Do nothing: a commit to memory cannot err."""

    def check(self) -> list[str]:
        """Return nothing: there is no file to be unhealthy."""
        return []

    def facts(self) -> list[tuple[str, str, bool]]:
        """Return what `doctor` wants to know."""
        return [("memory", "gone when this process ends", True), ("scale", str(self.scale), True)]

    def before_fork(self) -> None:
        """Do nothing: the engine keeps writers out, so that the child's copy is a whole one."""

    def fork_done(self) -> None:
        """Do nothing: nothing was stopped."""

    def after_fork(self) -> None:
        """Go on alone: the child has its own copy."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Refuse further work."""
        self._closed = True


class MemoryReader:
    """What may be read."""

    states_trail = False

    def __init__(self, store: MemoryStore) -> None:
        """Read this store."""
        self._store = store
        self._registry = store.registry
        self._registry_version = store.registry_version
        self._deliveries = store.deliveries
        self._notes = store.notes

    def accounts(self, wanted: Iterable[tuple[bytes, str]]) -> dict[bytes, Account]:
        """Return each account, decoded anew; an empty one where it is new."""
        return {owner: self._account(owner, name) for owner, name in wanted}

    def _account(self, owner: bytes, name: str) -> Account:
        row = self.stored_state(owner)
        if row is None:
            return Account(name)
        account = decode_account(row[2])
        account.head = row[1]
        account.next_due_at = next_due(account)
        return account

    def first_metadata(self, account_ids: Collection[bytes]) -> dict[bytes, int]:
        """Return where the metadata of each account begins."""
        histories = self._store.histories
        found = {}
        for owner in account_ids:
            for seq, row in enumerate(histories.get(owner, []), 1):
                if row[2] is not None:
                    found[owner] = seq
                    break
        return found

    def stored_state(self, account_id: bytes) -> tuple[int, bytes, str] | None:
        """Return seq, chain head and state document."""
        row = self._store.states.get(account_id)
        return None if row is None else (row[1], row[2], row[4])

    def answers(self, keys: Sequence[Key]) -> dict[Key, Entry | Refusal]:
        """Return what was answered to these keys; an entry wins."""
        found: dict[Key, Entry | Refusal] = {}
        for key in keys:
            if key in self._store.by_request:
                found[key] = self._entry(key[0], self._store.by_request[key])
            elif key in self._store.refusals:
                found[key] = decode_refusal(self._store.refusals[key][1])
        return found

    def _entry(self, owner: bytes, seq: int) -> Entry:
        return decode_entry(self._store.histories[owner][seq - 1][0])

    def load(
        self, _project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Return these accounts, and what was answered to these keys."""
        return self.accounts(wanted.items()), self.answers(keys)

    def stories(self, keys: Collection[Key]) -> dict[Key, Story]:
        """Return, for each id, the entry that made it and those that refer to it."""
        return {key: self._story(key) for key in keys}

    def _story(self, key: Key) -> Story:
        seq = self._store.by_request.get(key)
        acts = [self._entry(key[0], found) for found in self._store.by_ref.get(key, [])]
        return (None if seq is None else self._entry(key[0], seq)), acts

    def entries(self, account_id: bytes, after: int = 0, limit: int = 1_000) -> list[Stored]:
        """Return the entries with a seq above `after`, oldest first."""
        rows = self._store.histories.get(account_id, [])[after : after + limit]
        return [_stored(*row) for row in rows]

    def entries_before(self, account_id: bytes, before: int, limit: int) -> list[Stored]:
        """Return the entries with a seq below `before`, newest first."""
        rows = self._store.histories.get(account_id, [])[: max(before - 1, 0)][-limit:]
        return [_stored(*row) for row in reversed(rows)]

    def find(self, project: str, request_id: str) -> list[str]:
        """Return the accounts that know this request id, sorted."""
        owners = {owner: name for (of, name), owner in self._store.names.items() if of == project}
        known = [*self._store.by_request, *self._store.refusals]
        return sorted({owners[o] for o, name in known if name == request_id and o in owners})

    def replays(self, key: Key) -> tuple[int, int]:
        """Return how often a request was repeated and when last."""
        return self._store.repeats.get(key, (0, 0))

    def names(self, project: str, after: str = "", limit: int = 1_000) -> list[str]:
        """Return account names in order, above `after`."""
        rows = sorted(name for of, name in self._store.names if of == project)
        rows = [name for name in rows if self._store.names[project, name] in self._store.states]
        first = bisect.bisect_right(rows, after)
        return rows[first : first + limit]

    def due(self, project: str, at: int, limit: int = 1_000) -> list[str]:
        """Return accounts that something fell due on by `at`, the longest due first."""
        rows = sorted(
            (self._store.states[owner][3], name)
            for (of, name), owner in self._store.names.items()
            if of == project and owner in self._store.states
        )
        return [name for when, name in rows if when <= at][:limit]

    def prices(self, project: str) -> PriceBook:
        """Return all price versions."""
        return self._store.books.get(project, PriceBook())

    def projects(self) -> list[str]:
        """Return the projects that have anything here."""
        return sorted({project for project, _ in self._store.names} | set(self._store.books))

    def refusals(self, after: Key | None = None, limit: int = 1_000) -> list[Remembrance]:
        """Return remembered refusals in order."""
        names = {owner: place for place, owner in self._store.names.items()}
        return [
            Remembrance(*names[owner], owner, decode_refusal(self._store.refusals[owner, name][1]))
            for name, owner in _page(self._store.refusals, after, limit)
        ]

    def repeats(self, after: Key | None = None, limit: int = 1_000) -> list[Repeats]:
        """Return how often requests were repeated."""
        return [
            Repeats(owner, name, *self._store.repeats[owner, name])
            for name, owner in _page(self._store.repeats, after, limit)
        ]

    def brought(self) -> str | None:
        """Return what the last copy said of what it brought."""
        return self._store.brought

    def needs(self) -> int:
        """Return the lowest format that a tillroll must know."""
        return self._store.format

    def moved_to(self) -> str | None:
        """Return where this ledger went."""
        return self._store.gone

    def registry_version(self) -> int:
        """Return how many transactions have put a document."""
        return self._registry_version

    def kinds(self) -> list[str]:
        """Return the kinds that there are documents of, sorted."""
        return sorted({kind for kind, _ in self._registry})

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by their names, sorted by name."""
        registry = self._registry
        return {name: registry[of, name] for of, name in sorted(registry) if of == kind}

    def document(self, kind: str, name: str) -> str | None:
        """Return one document."""
        return self._registry.get((kind, name))

    # ------------------------------------------------------------ the outbox

    def topics(self, project: str) -> frozenset[str]:
        """Return the types of events that some endpoint of the project wants."""
        return topics_in(self, project)

    def unspread(self, limit: int = 1_000) -> list[Event]:
        """Return events that no delivery was made of yet, the oldest first."""
        rows = [row.event for row in self._store.outbox.values() if not row.spread]
        return sorted(rows, key=lambda event: event.at)[:limit]

    def event_at(self, key: EventKey) -> Event | None:
        """Return one event."""
        row = self._store.outbox.get(key)
        return None if row is None else row.event

    def events(self, after: EventKey | None = None, limit: int = 1_000) -> list[Waiting]:
        """Return what is in the outbox in order."""
        keys = sorted(key for key in self._store.outbox if after is None or key > after)
        return [self._store.outbox[key] for key in keys[:limit]]

    def deliveries(self, after: DeliveryKey | None = None, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries in order."""
        keys = sorted(key for key in self._deliveries if after is None or key > after)
        return [self._deliveries[key] for key in keys[:limit]]

    def due_deliveries(self, at: int, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries that are to be tried by that time."""
        due = [row for row in self._pending() if row.next_at <= at]
        return sorted(due, key=lambda row: row.next_at)[:limit]

    def due_at(self, endpoints: Collection[str], at: int, limit: int) -> list[Delivery]:
        """Return what is to be tried by that time at each of these endpoints."""
        due = self.due_deliveries(at, len(self._deliveries))
        of_each = ([row for row in due if row.endpoint == name][:limit] for name in endpoints)
        return [row for rows in of_each for row in rows]

    def _pending(self) -> list[Delivery]:
        return [row for row in self._deliveries.values() if row.state == "pending"]

    def delivery_page(
        self,
        project: str,
        *,
        endpoint: str | None = None,
        state: State | None = None,
        event: EventKey | None = None,
        before: tuple[int, bytes, int, int, str] | None = None,
        limit: int = 100,
    ) -> list[Delivery]:
        """Return deliveries of a project, the newest first."""
        rows = [
            row
            for row in self._deliveries.values()
            if row.project == project
            and endpoint in (None, row.endpoint)
            and state in (None, row.state)
            and event in (None, row.key[:3])
            and (before is None or row.place < before)
        ]
        return sorted(rows, key=lambda row: row.place, reverse=True)[:limit]

    def backlog(self) -> Backlog:
        """Return how much waits."""
        new = [row.event.at for row in self._store.outbox.values() if not row.spread]
        pending = self._pending()
        began = new + [row.created_at for row in pending]
        dead = sum(row.state == "dead" for row in self._deliveries.values())
        next_at = min((row.next_at for row in pending), default=None)
        return Backlog(len(began), dead, min(began, default=None), next_at)

    def leases(self) -> list[Lease]:
        """Return who does which job."""
        return [self._store.leases[name] for name in sorted(self._store.leases)]

    def note(self, key: NoteKey) -> Note | None:
        """Return one note."""
        return self._notes.get(key)

    def notes(self, after: NoteKey | None = None, limit: int = 1_000) -> list[Note]:
        """Return all notes in order."""
        keys = sorted(key for key in self._notes if after is None or key > after)
        return [self._notes[key] for key in keys[:limit]]

    def notes_due(self, project: str, kind: str, at: int, limit: int = 1_000) -> list[Note]:
        """Return what is due, the longest due first."""
        due = [note for note in self._notes.values() if note.due_at <= at]
        found = [note for note in due if (note.project, note.kind) == (project, kind)]
        return sorted(found, key=lambda note: (note.due_at, note.key))[:limit]

    def notes_of(
        self, project: str, account: str, kind: str, after: str = "", limit: int = 1_000
    ) -> list[Note]:
        """Return an account's notes of a kind."""
        wanted = project, account, kind
        found = [n for n in self._notes.values() if (n.project, n.account, n.kind) == wanted]
        return sorted((n for n in found if n.name > after), key=lambda n: n.name)[:limit]


class MemoryWriter(MemoryReader):
    """What may be written: gathered as acts, done when the database transaction ends well."""

    part = 0

    def __init__(self, store: MemoryStore) -> None:
        """Gather acts on this store."""
        super().__init__(store)
        self.acts: list[Callable[[], object]] = []

    def load_locked(self, _project: str, wanted: Mapping[bytes, str]) -> dict[bytes, Account]:
        """Return these accounts; nobody else writes meanwhile."""
        return self.accounts(wanted.items())

    def send(self, book: Book) -> None:
        """Do nothing: there is nobody who could write meanwhile."""

    def append(self, project: str, book: Book) -> None:
        """Write what the book gathered."""
        for sealed in book.appended:
            if (sealed.account_id, sealed.entry.request_id) in self._store.by_request:
                raise ValueError(f"the id {sealed.entry.request_id!r} is taken")
        self.acts.append(lambda: self._append(project, book))
        for key in low_notes(book):
            note = self._notes.get(key)
            if note is not None and book.at < note.due_at < NEVER:
                self.copy_notes([replace(note, due_at=book.at, version=note.version + 1)])

    def _append(self, project: str, book: Book) -> None:
        store = self._store
        for sealed in book.appended:
            owner, entry = sealed.account_id, sealed.entry
            history = store.histories.setdefault(owner, [])
            assert len(history) == entry.seq - 1, "entries have no gaps"
            history.append((sealed.body, sealed.hash, sealed.metadata))
            if entry.request_id is not None:
                store.by_request[owner, entry.request_id] = entry.seq
            if entry.ref is not None:
                store.by_ref.setdefault((owner, entry.ref), []).append(entry.seq)
        for owner in {sealed.account_id for sealed in book.appended}:
            account = book.accounts[owner]
            state = encode_state(account).decode()
            store.states[owner] = (
                account.account,
                account.seq,
                account.head,
                account.next_due_at,
                state,
            )
            store.names[project, account.account] = owner
        for owner, refusal in book.refused:
            name = book.accounts[owner].account
            store.names[project, name] = owner
            store.refusals[owner, refusal.request_id] = (name, encode(refusal))
        for owner, request_id, at in book.replayed:
            times, last_at = store.repeats.get((owner, request_id), (0, 0))
            store.repeats[owner, request_id] = (times + 1, max(last_at, at))
        for event in book.events:
            waiting = Waiting(event, spread=False)
            store.outbox[waiting.key] = waiting

    def add_price_version(self, project: str, version: PriceVersion) -> None:
        """Write a new price version."""
        book = self.prices(project).adding(version)
        self.acts.append(lambda: self._store.books.__setitem__(project, book))

    def erase_metadata(self, account_id: bytes, before: int = SEQ_MAX) -> int:
        """Erase the metadata of an account's entries below that seq."""
        rows = self._store.histories.get(account_id, [])
        erased: list[tuple[bytes, bytes, str | None]] = [
            (body, hash_, None if seq < before else metadata)
            for seq, (body, hash_, metadata) in enumerate(rows, 1)
        ]
        self.acts.append(lambda: self._store.histories.__setitem__(account_id, erased))
        return sum(1 for row, new in zip(rows, erased, strict=True) if row != new)

    def prune_refusals(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest refusals recorded before that time."""
        store = self._store
        ages = {key: decode_refusal(body).at for key, (_, body) in store.refusals.items()}
        old = sorted((key for key, at in ages.items() if at < before), key=ages.__getitem__)[:limit]
        self.acts.extend(partial(store.refusals.pop, key) for key in old)
        unknown = [key for key in old if key not in store.by_request]
        self.acts.extend(partial(store.repeats.pop, key, None) for key in unknown)
        return len(old)

    def add_repeats(self, repeats: Sequence[Repeats]) -> None:
        """Write how often requests were repeated."""
        for owner, name, times, last_at in repeats:
            self.acts.append(
                partial(self._store.repeats.__setitem__, (owner, name), (times, last_at))
            )

    def add_events(self, events: Sequence[Waiting]) -> None:
        """Write events."""
        self.acts.append(lambda: self._store.outbox.update({row.key: row for row in events}))

    def spread(self, keys: Collection[EventKey], deliveries: Sequence[Delivery]) -> None:
        """Write the deliveries of these events, where they are not there."""
        self.put_deliveries([row for row in deliveries if row.key not in self._deliveries])

        def act() -> None:
            for key in keys:
                self._store.outbox[key] = self._store.outbox[key]._replace(spread=True)

        self.acts.append(act)

    def put_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries in place of what was known of them."""
        self._own_deliveries().update({row.key: row for row in deliveries})

    def _own_deliveries(self) -> dict[DeliveryKey, Delivery]:
        """Return the deliveries as this transaction has them, which are kept when it ends well."""
        if self._deliveries is self._store.deliveries:
            self._deliveries = dict(self._deliveries)
            self.acts.append(lambda: setattr(self._store, "deliveries", self._deliveries))
        return self._deliveries

    def claim(self, deliveries: Sequence[Delivery], until: int) -> list[Delivery]:
        """Take deliveries to work on until then; return those that nobody took meanwhile."""
        known = self._deliveries
        alike = [
            known[row.key]._replace(lease=row.lease + 1, next_at=until)
            for row in deliveries
            if row.key in known
            and known[row.key].lease == row.lease
            and known[row.key].state == "pending"
        ]
        self.put_deliveries(alike)
        return alike

    def record(self, deliveries: Sequence[Delivery]) -> int:
        """Write what came of deliveries that one holds."""
        known = self._deliveries
        held = [r for r in deliveries if r.key in known and known[r.key].lease == r.lease]
        self.put_deliveries(held)
        return len(held)

    def requeue(
        self, project: str, at: int, endpoint: str | None = None, limit: int = 1_000
    ) -> tuple[int, bool]:
        """Have what is dead tried again, at most `limit` of it."""
        rows = self.delivery_page(project, endpoint=endpoint, state="dead", limit=limit + 1)
        return self._requeue(rows[:limit], at), len(rows) > limit

    def requeue_one(self, project: str, at: int, key: DeliveryKey) -> int:
        """Have one delivery tried again."""
        row = self._deliveries.get(key)
        return self._requeue([row] if row is not None and row.project == project else [], at)

    def _requeue(self, rows: Sequence[Delivery], at: int) -> int:
        self.put_deliveries(
            [r._replace(state="pending", attempts=0, next_at=at, lease=r.lease + 1) for r in rows]
        )
        return len(rows)

    def prune_events(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest events written before that time."""
        store = self._store
        pending = {row.key[:3] for row in self._pending()}
        rows = [row for row in store.outbox.values() if row.spread and row.event.at < before]
        old = sorted((row.event.at, row.key) for row in rows if row.key not in pending)[:limit]
        gone = {key for _, key in old}
        for key in [key for key in self._deliveries if key[:3] in gone]:
            del self._own_deliveries()[key]
        self.acts.extend(partial(store.outbox.pop, key) for key in gone)
        return len(old)

    def take_lease(self, name: str, holder: str, at: int, ends_at: int) -> bool:
        """Take a job until then, or prolong it."""
        known = self._store.leases.get(name)
        latest = at + SPANS_MAX * (ends_at - at)
        if known is not None and known.holder != holder and at < known.ends_at <= latest:
            return False
        lease = Lease(name, holder, ends_at, at, "" if known is None else known.told)
        self.acts.append(lambda: self._store.leases.__setitem__(name, lease))
        return True

    def end_lease(self, name: str, holder: str, at: int, ends_at: int, told: str) -> None:
        """Say what came of a job, and until when it is kept."""
        known = self._store.leases.get(name)
        if known is not None and known.holder == holder:
            lease = Lease(name, holder, ends_at, at, told)
            self.acts.append(lambda: self._store.leases.__setitem__(name, lease))

    def set_moved(self, to: str | None) -> None:
        """Mark the ledger as gone to another place, or as here again."""
        self.acts.append(lambda: setattr(self._store, "gone", to))

    def set_brought(self, told: str) -> None:
        """Say what a copy brought."""
        self.acts.append(lambda: setattr(self._store, "brought", told))

    def put_document(self, kind: str, name: str, document: str | None) -> None:
        """Insert or replace a document; None removes it."""
        if self._registry is self._store.registry:
            self.set_registry_version(self._registry_version + 1)
        if document is None:
            self._registry.pop((kind, name), None)
        else:
            self._registry[kind, name] = document

    def need(self, format_: int) -> None:
        """Note the format; nobody else opens this store."""
        self.acts.append(lambda: setattr(self._store, "format", max(self._store.format, format_)))

    def set_registry_version(self, version: int) -> None:
        """Have the registry go on from this version."""
        if self._registry is self._store.registry:
            self._registry = dict(self._registry)
            self.acts.append(self._keep_registry)
        self._registry_version = version

    def put_note(self, note: Note) -> None:
        """Write a note, where its version is the one that is there."""
        known = self._notes.get(note.key)
        if note.version != (0 if known is None else known.version):
            raise Retry("a note was written by somebody else")
        self.copy_notes([replace(note, version=note.version + 1)])

    def drop_note(self, note: Note) -> None:
        """Delete a note, where its version is the one that is there."""
        known = self._notes.get(note.key)
        if known is None or known.version != note.version:
            raise Retry("a note was written by somebody else")
        del self._own_notes()[note.key]

    def copy_notes(self, notes: Sequence[Note]) -> None:
        """Write notes as they are."""
        self._own_notes().update((note.key, note) for note in notes)

    def _own_notes(self) -> dict[NoteKey, Note]:
        """Return the notes of this transaction, which are the store's once it commits."""
        if self._notes is self._store.notes:
            self._notes = dict(self._notes)
            self.acts.append(lambda: setattr(self._store, "notes", self._notes))
        return self._notes

    def _keep_registry(self) -> None:
        self._store.registry = self._registry
        self._store.registry_version = self._registry_version


def _page(rows: Iterable[Key], after: Key | None, limit: int) -> list[tuple[str, bytes]]:
    """Return keys turned round and in order, above one of them."""
    keys = sorted((name, owner) for owner, name in rows)
    first = 0 if after is None else bisect.bisect_right(keys, (after[1], after[0]))
    return keys[first : first + limit]


def _stored(body: bytes, hash_: bytes, metadata: str | None) -> Stored:
    entry = decode_entry(body)
    return Stored(
        body,
        hash_,
        metadata,
        entry.seq,
        entry.request_id,
        entry.ref,
        entry.kind,
        entry.at,
        entry.effective_at,
    )
