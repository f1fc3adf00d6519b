"""What a store must do, and the parts of it that every driver shares.

A driver offers a few primitives inside a database transaction; loading a book of state is
composed from them here, once. A store that errs at the commit raises `CommitUncertain`; what
happened is then found out by `recover` and a look at the ids, never guessed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from msgspec import MsgspecError, Struct

from tillroll.ledger.book import Book
from tillroll.ledger.chain import decode_account, decode_entry, decode_refusal
from tillroll.ledger.commands import account_id
from tillroll.ledger.core import REFUSAL_LIFE, missing_stories
from tillroll.ledger.errors import SchemaMismatch, StoreBusy, StoreCorrupt, TillrollError
from tillroll.ledger.fold import apply
from tillroll.ledger.pricing import decode_version
from tillroll.ledger.types import NEVER, TOPUP, Account, Entry, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tillroll.ledger.book import Event
    from tillroll.ledger.commands import Request
    from tillroll.ledger.pricing import PriceBook, PriceVersion
    from tillroll.stores.outbox import (
        Backlog,
        Delivery,
        DeliveryKey,
        EventKey,
        Lease,
        State,
        Waiting,
    )

T = TypeVar("T")
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)
Key = tuple[bytes, str]
# The entry made by a request id, and the entries that refer to it, oldest first.
Story = tuple["Entry | None", "list[Entry]"]
Library = Literal["apsw", "sqlite3"]  # the copies of SQLite that a process may have

SEQ_MAX = 2**63 - 1
BUSY_SECONDS = 10
# What this tillroll can read and write whole; the documents in the store say nothing of it. Raised
# with a change that a version before would drop or misread, which calls `Writer.need` where it
# first writes such a thing (decisions/0019).
FORMAT = 1
TRIES = 5  # of one batch, where another process was faster each time
FORK_SECONDS = 10  # how long a fork waits for readers of the ledger in other threads
CACHED_ACCOUNTS_MAX = 20_000  # about 3 kB each: 65 MB
# Entries that may lie behind an account's stored state, at the least: so many are decoded and
# folded in the time that a look-up of them takes.
TRAIL_MIN = 16
# One more for each so many bytes of the state, about what an entry has: writing states then costs
# no more bytes than writing entries, however large a state grows.
TRAIL_BYTES = 512


class Retry(Exception):
    """Nothing was written, and the same batch may succeed at once.

    Another process was faster or the connection was gone; the cause says what happened.
    """


class CommitUncertain(Exception):
    """The database erred at the commit. Whether it took place must be looked up."""


class Remembered(Struct, gc=False):
    """An account as this process last saw it, and how its row stands.

    Attributes:
        account: The state, entries folded on top included.
        seq: Where the state stands that is stored in the row; 0 where there is none.
        due: What the row says falls due next; certain under the lock only.
        trail: How many entries may lie behind the row before it is written anew.
    """

    account: Account
    seq: int = 0
    due: int = NEVER
    trail: int = TRAIL_MIN

    @property
    def is_behind(self) -> bool:
        """Whether the row has to be written, now that there are new entries."""
        late = self.account.next_due_at < self.due
        return self.seq == 0 or self.account.seq - self.seq >= self.trail or late

    def is_early(self, at: int) -> bool:
        """Return whether the row names a time that has passed, though nothing fell due then."""
        return self.due <= at and self.due < self.account.next_due_at


def trail_of(state: str) -> int:
    """Return how many entries may lie behind a row with this state."""
    return TRAIL_MIN + len(state) // TRAIL_BYTES


def revived(seq: int, head: bytes, due: int, state: str) -> Remembered:
    """Return an account as its row has it; what was added since is still to be folded on top."""
    try:
        account = decode_account(state)
    except MsgspecError as error:
        raise StoreCorrupt(
            f"an account's state cannot be read ({error}): restore a backup; nothing was written"
        ) from error
    if account.seq != seq:
        raise StoreCorrupt(
            f"the row of account {account.account!r} and its state disagree (seq {seq} and "
            f"{account.seq}): restore a backup; nothing was written"
        )
    account.head = head
    return Remembered(account, seq, due, trail_of(state))


def catch_up(account: Account, entry: Entry, hash_: bytes) -> None:
    """Fold an entry that another process wrote."""
    if entry.seq != account.seq + 1:
        raise StoreCorrupt(
            f"entry {account.seq + 1} of account {account.account!r} is missing: restore a backup; "
            f"nothing was written"
        )
    try:
        apply(account, entry)
    except (AssertionError, KeyError) as error:
        raise StoreCorrupt(
            f"entry {entry.seq} of account {account.account!r} does not fit its history ({error}): "
            f"tillroll verify tells more, a backup is to be restored; nothing was written"
        ) from error
    account.head = hash_


class Stored(NamedTuple):
    """An entry as it lies in the store: its canonical bytes, and the columns that repeat them."""

    body: bytes
    hash: bytes
    metadata: str | None
    seq: int
    request_id: str | None
    ref: str | None
    kind: str
    recorded_at: int
    effective_at: int

    @property
    def entry(self) -> Entry:
        """The entry that the canonical bytes hold."""
        return decode_entry(self.body)

    def columns_agree(self, entry: Entry) -> bool:
        """Return whether the columns say what the canonical bytes say."""
        return self[3:] == (
            entry.seq,
            entry.request_id,
            entry.ref,
            entry.kind,
            entry.at,
            entry.effective_at,
        )


class Remembrance(NamedTuple):
    """A refusal as it is remembered: of which account, and what was said."""

    project: str
    account: str
    account_id: bytes
    refusal: Refusal

    @property
    def key(self) -> Key:
        """Which request of which account was refused."""
        return self.account_id, self.refusal.request_id


class Repeats(NamedTuple):
    """How often a request was repeated, and when last."""

    account_id: bytes
    request_id: str
    times: int
    last_at: int

    @property
    def key(self) -> Key:
        """Which request of which account was repeated."""
        return self.account_id, self.request_id


NoteKey = tuple[bytes, str, str]


class Note(Struct, frozen=True, kw_only=True, gc=False):
    """A document about payments, as it was read or is to be written.

    Attributes:
        owner: What it is stored by, as an account is: the account's own key, or one made alike.
        account: Whose it is; empty as long as nobody knows.
        version: How often it was written; a writer must have seen the last. 0 for a new one.
        due_at: When a job is to look at it.
        document: A text, without NUL, whose meaning is its writer's.
    """

    owner: bytes
    kind: str
    name: str
    project: str
    document: str
    account: str = ""
    version: int = 0
    due_at: int = NEVER

    @property
    def key(self) -> NoteKey:
        """What it is found by."""
        return self.owner, self.kind, self.name


def note_of(row: Sequence[Any]) -> Note:
    """Return the note that a row holds, in the order of `note_row`."""
    owner, kind, name, project, document, account, version, due_at = row
    return Note(
        owner=bytes(owner),
        kind=kind,
        name=name,
        project=project,
        document=document,
        account=account,
        version=version,
        due_at=due_at,
    )


def low_notes(book: Book) -> list[NoteKey]:
    """Return the notes that become due since their balances fell low, in order."""
    return [(owner, TOPUP, wallet) for owner, wallet in sorted(book.low)]


def note_row(note: Note) -> tuple[Any, ...]:
    """Return the columns of a note: the key first, version and due time last."""
    return (*note.key, note.project, note.document, note.account, note.version, note.due_at)


class Reader(Protocol):
    """One consistent view of the store.

    Attributes:
        states_trail: Whether an account's row may stand behind its entries, which are then folded
            on top of it. Where it may not, a row that does is a problem.
    """

    states_trail: bool

    def accounts(self, wanted: Iterable[tuple[bytes, str]]) -> dict[bytes, Account]:
        """Return each account named by (account_id, name); an empty one where it is new."""

    def answers(self, keys: Sequence[Key]) -> dict[Key, Entry | Refusal]:
        """Return what was answered to these (account_id, request_id); an entry wins."""

    def load(
        self, project: str, wanted: Mapping[bytes, str], keys: Sequence[Key]
    ) -> tuple[dict[bytes, Account], dict[Key, Entry | Refusal]]:
        """Return these accounts, and what was answered to these keys, for requests to be decided.

        The accounts come first: where a driver locks rows, an id that another process is answering
        must not be looked up before that process is done, or its answer would be missed. A writer
        so waits for whoever may still be writing the answer to one of the keys.

        A writer may return what it remembers, which another process may have changed: what is
        decided about it has to lead to an entry, whose key says if it was true, or to a refusal.
        Whoever looks at an account for anything else takes `Writer.load_locked`.
        """

    def stories(self, keys: Collection[Key]) -> dict[Key, Story]:
        """Return, for each (account_id, id), what made it and what acted on it."""

    def entries(self, account_id: bytes, after: int = 0, limit: int = 1_000) -> list[Stored]:
        """Return the entries with a seq above `after`, oldest first."""

    def entries_before(self, account_id: bytes, before: int, limit: int) -> list[Stored]:
        """Return the entries with a seq below `before`, newest first."""

    def find(self, project: str, request_id: str) -> list[str]:
        """Return the accounts that know this request id, sorted."""

    def replays(self, key: Key) -> tuple[int, int]:
        """Return how often a request was repeated and when last; (0, 0) where never."""

    def names(self, project: str, after: str = "", limit: int = 1_000) -> list[str]:
        """Return account names in order, above `after`."""

    def due(self, project: str, at: int, limit: int = 1_000) -> list[str]:
        """Return accounts that something fell due on by `at`, the longest due first."""

    def first_metadata(self, account_ids: Collection[bytes]) -> dict[bytes, int]:
        """Return, for each account that has any metadata, the seq where it begins."""

    def stored_state(self, account_id: bytes) -> tuple[int, bytes, str] | None:
        """Return seq, chain head and state document as stored, None where there is no row."""

    def prices(self, project: str) -> PriceBook:
        """Return all price versions; the newest is current."""

    def projects(self) -> list[str]:
        """Return the projects that have accounts, refusals or prices here, sorted."""

    def refusals(self, after: Key | None = None, limit: int = 1_000) -> list[Remembrance]:
        """Return remembered refusals in the order of (request_id, account_id), above `after`."""

    def repeats(self, after: Key | None = None, limit: int = 1_000) -> list[Repeats]:
        """Return how often requests were repeated, in the order of (request_id, account_id)."""

    def moved_to(self) -> str | None:
        """Return where this ledger went, None where it is still here."""

    def brought(self) -> str | None:
        """Return what the last copy into this ledger said of what it brought; None without one."""

    def needs(self) -> int:
        """Return the lowest format that a tillroll must know to use this ledger."""

    def registry_version(self) -> int:
        """Return how many transactions have put a document; 0 where none has.

        Whoever remembers documents asks for this first: they are then at least so new.
        """

    def kinds(self) -> list[str]:
        """Return the kinds that there are documents of, sorted."""

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by their names, sorted by name."""

    def document(self, kind: str, name: str) -> str | None:
        """Return one document, None where there is none."""

    def topics(self, project: str) -> frozenset[str]:
        """Return the types of events that some endpoint of the project wants.

        A writer knows them as they are in the database transaction under way.
        """

    def unspread(self, limit: int = 1_000) -> list[Event]:
        """Return events that no delivery was made of yet, the oldest first."""

    def event_at(self, key: EventKey) -> Event | None:
        """Return one event, None where it is not (or no longer) there."""

    def events(self, after: EventKey | None = None, limit: int = 1_000) -> list[Waiting]:
        """Return what is in the outbox in the order of its places, above `after`."""

    def deliveries(self, after: DeliveryKey | None = None, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries in the order of their places, above `after`."""

    def due_deliveries(self, at: int, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries that are to be tried by that time, the longest due first."""

    def due_at(self, endpoints: Collection[str], at: int, limit: int) -> list[Delivery]:
        """Return, of each of these endpoints, what is to be tried by that time, at most `limit`.

        However much waits for others: it is not looked at.
        """

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
        """Return deliveries of a project, the newest first, below `before`."""

    def backlog(self) -> Backlog:
        """Return how much waits, of all projects."""

    def leases(self) -> list[Lease]:
        """Return who does which job, by the names of the jobs."""

    def note(self, key: NoteKey) -> Note | None:
        """Return one note, None where there is none."""

    def notes(self, after: NoteKey | None = None, limit: int = 1_000) -> list[Note]:
        """Return all notes in the order of their keys, above `after`."""

    def notes_due(self, project: str, kind: str, at: int, limit: int = 1_000) -> list[Note]:
        """Return the notes of a kind that are due by `at`, the longest due first."""

    def notes_of(
        self, project: str, account: str, kind: str, after: str = "", limit: int = 1_000
    ) -> list[Note]:
        """Return an account's notes of a kind, by name, above `after`."""


class Writer(Reader, Protocol):
    """One database transaction that may write.

    Attributes:
        part: How many requests to decide before what they lead to is sent ahead; 0 where nothing
            is gained by that.
    """

    @property
    def part(self) -> int:
        """See the attributes."""

    def load_locked(self, project: str, wanted: Mapping[bytes, str]) -> dict[bytes, Account]:
        """Return these accounts as they stand in the store, locked, whatever is remembered.

        Where others append, locks do not keep them out: it is how the accounts stood just then.

        It is for what leaves no entry that could contradict it: a note that is written, a charge
        that is made or not, a step that is not needed. From then on nothing is remembered in this
        database transaction, so it comes before requests are decided in it.

        Raises:
            Retry: Accounts were loaded from memory before. Nothing was written; the next try goes
                by locks.
        """

    def send(self, book: Book) -> None:
        """Have the entries that are new in the book written while more is decided.

        The accounts come in the order of their ids. What is left to do is done by `append`, which
        has to follow.
        """

    def append(self, project: str, book: Book) -> None:
        """Write what the book gathered: entries, states, refusals, repeats, events.

        The notes of top-ups whose balances fell low become due, those that a job looks at: whoever
        wrote one meanwhile, having seen the balance before, has to look again.
        """

    def add_price_version(self, project: str, version: PriceVersion) -> None:
        """Write a new price version."""

    def erase_metadata(self, account_id: bytes, before: int = SEQ_MAX) -> int:
        """Erase the metadata of an account's entries below that seq; return how many had any."""

    def prune_refusals(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest refusals recorded before that time; return how many, at most `limit`.

        The counts of their repeats go with them, but for ids that became entries since.
        """

    def add_repeats(self, repeats: Sequence[Repeats]) -> None:
        """Write how often requests were repeated, in place of what was known of them."""

    def set_moved(self, to: str | None) -> None:
        """Mark the ledger as gone to another place, or as here again."""

    def set_brought(self, told: str) -> None:
        """Say what a copy brought, so that the next one knows whether it was written to since."""

    def put_document(self, kind: str, name: str, document: str | None) -> None:
        """Insert or replace a document of the registry; None removes it.

        What it says is nobody's business here; a text, without NUL. The first put of a transaction
        has the version grow by one, under the lock of its row: so no two writers give two states
        of the registry one number, and the later of them waits for the first.
        """

    def need(self, format_: int) -> None:
        """Refuse the ledger, from now on, to a tillroll that does not know this format.

        Called within the transaction that first writes what such a one would drop or misread. Its
        processes that run are told with their next write. It is never lowered.
        """

    def set_registry_version(self, version: int) -> None:
        """Have the registry go on from this version, as a copy does that brought it."""

    def add_events(self, events: Sequence[Waiting]) -> None:
        """Write events; of one that is there, only whether its deliveries were made."""

    def spread(self, keys: Collection[EventKey], deliveries: Sequence[Delivery]) -> None:
        """Write the deliveries of these events, where they are not there; each is made once."""

    def put_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries in place of what was known of them."""

    def claim(self, deliveries: Sequence[Delivery], until: int) -> list[Delivery]:
        """Take deliveries to work on until then; return those that nobody took meanwhile."""

    def record(self, deliveries: Sequence[Delivery]) -> int:
        """Write what came of deliveries that one holds; return of how many that was so still."""

    def requeue(
        self, project: str, at: int, endpoint: str | None = None, limit: int = 1_000
    ) -> tuple[int, bool]:
        """Have what is dead tried again, of one endpoint or of all, at most `limit` of it.

        Returns:
            How many, and whether more are left.
        """

    def requeue_one(self, project: str, at: int, key: DeliveryKey) -> int:
        """Have one delivery tried again, whatever came of it; return whether it is there."""

    def prune_events(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest events written before that time; return how many, at most `limit`.

        What is pending stays. The deliveries go with their events, dead ones too.
        """

    def take_lease(self, name: str, holder: str, at: int, ends_at: int) -> bool:
        """Take a job until then, or prolong it; False where somebody else does it.

        A lease that ends more than twice as far ahead is over: it was taken by a clock that was.
        """

    def end_lease(self, name: str, holder: str, at: int, ends_at: int, told: str) -> None:
        """Say what came of a job, and until when it is kept; nothing where it was lost."""

    def put_note(self, note: Note) -> None:
        """Write a note whose version is the one that was read, or 0 where there was none.

        Raises:
            Retry: Somebody else wrote it since; read it again.
        """

    def drop_note(self, note: Note) -> None:
        """Delete a note whose version is the one that was read.

        Raises:
            Retry: Somebody else wrote or deleted it since; read it again.
        """

    def copy_notes(self, notes: Sequence[Note]) -> None:
        """Write notes with their versions, in place of what is there of them."""


class Store(Protocol):
    """A place that keeps ledgers."""

    url: str
    scale: int
    secret: bytes

    def write(self) -> AbstractContextManager[Writer]:
        """Open a database transaction; committed on leaving, rolled back on an exception.

        Raises:
            Retry: Nothing was written; the same again may succeed.
            StoreUnavailable: Nothing was written.
            CommitUncertain: The commit erred; call `recover`, then look up the ids.
        """

    def read(self) -> AbstractContextManager[Reader]:
        """Open one consistent view that blocks no writer; it may be behind what was committed."""

    def read_primary(self) -> AbstractContextManager[Reader]:
        """Open one consistent view of all that was committed, where it is written.

        For whoever acts upon what he reads, without a writer's lock: a standby may be behind.
        """

    def wait_for_writers(self) -> None:
        """Return when nobody writes any more who began before this was called."""

    def adopt(self, secret: bytes) -> None:
        """Sign quotes with this secret from now on, which came with the ledger."""

    def recover(self) -> None:
        """Open the database anew after a commit that erred, and make what is there durable."""

    def check(self) -> list[str]:
        """Return what the database itself finds wrong with its file; empty where it is healthy."""

    def facts(self) -> list[tuple[str, str, bool]]:
        """Return what `doctor` wants to know: name, value, whether it is as it must be."""

    def before_fork(self) -> None:
        """Let go of what a child must not inherit; nobody writes until the fork is done."""

    def fork_done(self) -> None:
        """Go on, in the parent."""

    def after_fork(self) -> None:
        """Go on, in the child, without anything that belongs to the parent."""

    def close(self) -> None:
        """Close every connection."""


class Writes(Protocol[W_co]):
    """The part of a store that `persist` needs, whatever its writer can do besides."""

    def write(self) -> AbstractContextManager[W_co]:
        """Open a database transaction; see `Store.write`."""


def persist(store: Writes[W], act: Callable[[W], T]) -> T:
    """Do something in a database transaction, and again where the store says that it may help.

    Raises:
        StoreBusy: Others were faster each time; nothing was written.
        CommitUncertain, StoreError: As `Store.write`.
    """
    tries = TRIES
    while True:
        try:
            with store.write() as tx:
                return act(tx)
        except Retry as problem:
            tries -= 1
            if not tries:
                raise StoreBusy(
                    f"{problem}, {TRIES} times; nothing was written. Ask again with the same "
                    f"request_id"
                ) from problem


def load_book(reader: Reader, project: str, requests: Sequence[Request], at: int) -> Book:
    """Return all state that deciding these requests may touch: load, then follow the stories."""
    wanted = {request.account_id: request.account for request in requests}
    keys = [(new.account_id, new.request_id) for new in requests if not new.is_new]
    accounts, answers = reader.load(project, wanted, keys)
    live = {
        key: found
        for key, found in answers.items()
        if isinstance(found, Entry) or found.at > at - REFUSAL_LIFE
    }
    book = Book(accounts=accounts, answers=live, at=at)
    follow_stories(reader, book, requests, at)
    return book


def follow_stories(reader: Reader, book: Book, requests: Sequence[Request], at: int) -> None:
    """Put into the book the stories that deciding these requests may ask for."""
    while missing := missing_stories(book, requests, at):
        for key, (root, acts) in reader.stories(missing).items():
            book.stories[key] = acts
            if root is not None:
                book.answers.setdefault(key, root)


def least(account: Account) -> int:
    """Return the least of all that may never be negative on this account; at most 0."""
    lowest = 0
    for grant in account.grants.values():
        lowest = min(lowest, grant.remaining, grant.pinned)
    for hold in account.holds.values():
        lowest = min(lowest, 0, *hold.lines.values())
    for wallet in account.wallets.values():
        lowest = min(lowest, wallet.held)
    return lowest


class Migration(NamedTuple):
    """One numbered step of the schema."""

    number: int
    name: str
    sql: str
    checksum: str


class Migrated(NamedTuple):
    """What was done to a store's tables, or would be.

    Attributes:
        url: The store.
        planned: Whether this is only the plan: nothing was written.
        steps: The steps of the schema that were pending, in order: number, name, SQL, checksum.
        statements: What was run besides: rights of a role, policies of row-level security.
        schema: The number of the newest step that this tillroll knows.
    """

    url: str
    planned: bool
    steps: tuple[Migration, ...]
    statements: tuple[str, ...]
    schema: int

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        steps = [step._asdict() for step in self.steps]
        return {**self._asdict(), "steps": steps, "statements": list(self.statements)}


def migrations(dialect: str) -> list[Migration]:
    """Return the migrations of a dialect in order, read from the package."""
    from importlib.resources import files  # noqa: PLC0415 - slow to import, used once a store

    folder = files("tillroll.stores").joinpath("migrations", dialect)
    steps = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".sql"):
            sql = item.read_text(encoding="utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            steps.append(Migration(int(item.name[:4]), item.name, sql, checksum))
    return steps


def bad_refusals(rows: Iterable[tuple[bytes, str, str, str, int, str]]) -> Iterator[str]:
    """Yield what contradicts itself in rows of refusals.

    A row is an account_id, its project and name, the request id, the time and the body.
    """
    for owner, project, name, request_id, at, body in rows:
        try:
            refusal = decode_refusal(body)
        except MsgspecError as problem:
            yield f"refusal {request_id!r} of {name!r} cannot be read: {problem}"
            continue
        columns = (account_id(project, name), refusal.request_id, refusal.at)
        if columns != (owner, request_id, at):
            yield f"refusal {request_id!r} of {name!r}: a column differs from it"


def bad_versions(rows: Iterable[tuple[str, int, str, str, str, int, str]]) -> Iterator[str]:
    """Yield what contradicts itself in rows of price versions.

    A row is a project, the number, the digest, the author, the reason, the time and the body.
    """
    for project, number, *columns, body in rows:
        try:
            version = decode_version(str(body).encode())
        except TillrollError as problem:
            yield f"price version {number} of {project!r} cannot be read: {problem}"
            continue
        repeated = [version.digest, version.author, version.reason, version.applied_at]
        if version.number != number or repeated != columns:
            yield f"price version {number} of {project!r}: a column differs from it"


def check_needs(needs: object) -> None:
    """Refuse a ledger that holds what this tillroll would drop or misread.

    Args:
        needs: The format that it names; None where it names none.

    Raises:
        SchemaMismatch: It is a later one than this tillroll has.
    """
    if needs is not None and int(str(needs)) > FORMAT:
        raise SchemaMismatch(
            f"the ledger holds what a newer tillroll wrote, in format {needs}; this one knows "
            f"{FORMAT}, and would drop or misread it: upgrade tillroll; nothing was written"
        )


def pending(known: list[Migration], applied: dict[int, str]) -> Iterator[Migration]:
    """Yield what is to be applied. Steps of a newer tillroll only add, and are left alone.

    Raises:
        SchemaMismatch: A step was altered since.
    """
    for step in known:
        if step.number not in applied:
            yield step
        elif applied[step.number] != step.checksum:
            raise SchemaMismatch(
                f"migration {step.name} was altered after it was applied; nothing was written"
            )
