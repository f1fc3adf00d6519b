"""The outbox: events that wait, what became of each at each endpoint, and who does which job.

The statements are the same for every SQL driver but for how a parameter and an account's key are
written, so they stand here once; a driver brings `_run` and its `Dialect`. All that is done to a
row names its account, and nothing counts rows across accounts in a decision. No row is locked to
be worked on (`SKIP LOCKED` is not to be had on a cluster): whoever takes a delivery raises its
`lease`, where it still is what was seen, and only who holds that lease may say what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from tillroll.ledger.book import Event
from tillroll.ledger.webhooks import ENDPOINT, HEALTH, places, topics_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


State = Literal["pending", "delivered", "dead"]
STATES: tuple[State, ...] = ("pending", "delivered", "dead")
# A lease that ends later than so many spans from now was taken by a clock that was ahead, and is
# over: who held it may be dead, and nobody would follow until that time has come. Two, so that
# clocks which differ a little take no job from each other.
SPANS_MAX = 2
EventKey = tuple[bytes, int, int]
DeliveryKey = tuple[bytes, int, int, str]
Statement = tuple[str, tuple[object, ...]]
Rows = list[tuple[Any, ...]]


class Delivery(NamedTuple):
    """What became of one event at one endpoint.

    Attributes:
        endpoint: The id of the endpoint.
        attempts: Made so far, since it was last queued.
        next_at: When it is to be tried; of one that somebody works on, when that is over.
        lease: Grows whenever somebody takes it.
        log: The last attempts, a JSON array.
    """

    account_id: bytes
    seq: int
    n: int
    endpoint: str
    project: str
    topic: str
    state: State
    attempts: int
    next_at: int
    created_at: int
    lease: int
    log: str

    @property
    def key(self) -> DeliveryKey:
        """Which event, and where to."""
        return self[:4]

    @property
    def place(self) -> tuple[int, bytes, int, int, str]:
        """Its place in the order of pages: the newest is the greatest."""
        return self.created_at, *self[:4]


class Waiting(NamedTuple):
    """An event as it lies in the outbox, and whether its deliveries were made."""

    event: Event
    spread: bool

    @property
    def key(self) -> EventKey:
        """Which event."""
        return self.event.account_id, self.event.seq, self.event.n


class Backlog(NamedTuple):
    """How much waits.

    Attributes:
        waiting: Events that no delivery was made of yet, and deliveries that are pending.
        dead: Deliveries that were given up.
        oldest_at: When the oldest of what waits was written; None where nothing does.
        next_at: When the next delivery is to be tried; None where none waits.
    """

    waiting: int
    dead: int
    oldest_at: int | None
    next_at: int | None


class Lease(NamedTuple):
    """Who does a job, until when, when he last said so, and what he told."""

    name: str
    holder: str
    ends_at: int
    beat_at: int
    told: str


class Dialect(NamedTuple):
    """How a driver writes a parameter, the key of an account as one, and reads it back."""

    mark: str
    key: str
    owner: str


_PLACE = ("account_id", "seq", "n", "endpoint")
_EVENT = "seq, n, project, topic, payload, created_at"
_DELIVERY = "seq, n, endpoint, project, topic, state, attempts, next_at, created_at, lease, log"
_ONE = "account_id = {key} AND seq = {mark} AND n = {mark}"
# One purpose each; {mark}, {key} and {owner} are the dialect's, the rest stands above.
_SQL = {
    "add_event": "INSERT INTO tillroll_outbox (account_id, {event}, spread) VALUES "
    "({key}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}) "
    "ON CONFLICT (account_id, seq, n) DO UPDATE SET spread = excluded.spread",
    "unspread": "SELECT {owner}, {event} FROM tillroll_outbox WHERE spread = 0 "
    "ORDER BY created_at LIMIT {mark}",
    "event": "SELECT {owner}, {event} FROM tillroll_outbox WHERE {one}",
    "events": "SELECT {owner}, {event}, spread FROM tillroll_outbox "
    "WHERE (account_id, seq, n) > ({key}, {mark}, {mark}) "
    "ORDER BY account_id, seq, n LIMIT {mark}",
    "mark_spread": "UPDATE tillroll_outbox SET spread = 1 WHERE {one}",
    "add_delivery": "INSERT INTO tillroll_deliveries (account_id, {delivery}) VALUES "
    "({key}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, {mark}, "
    "{mark}) ON CONFLICT (account_id, seq, n, endpoint) ",
    "deliveries": "SELECT {owner}, {delivery} FROM tillroll_deliveries "
    "WHERE (account_id, seq, n, endpoint) > ({key}, {mark}, {mark}, {mark}) "
    "ORDER BY account_id, seq, n, endpoint LIMIT {mark}",
    "due": "SELECT {owner}, {delivery} FROM tillroll_deliveries "
    "WHERE state = 'pending' AND next_at <= {mark} ORDER BY next_at LIMIT {mark}",
    "due_at": "SELECT {owner}, {delivery} FROM tillroll_deliveries "
    "WHERE endpoint = {mark} AND state = 'pending' AND next_at <= {mark} "
    "ORDER BY next_at LIMIT {mark}",
    "claim": "UPDATE tillroll_deliveries SET lease = lease + 1, next_at = {mark} "
    "WHERE {one} AND endpoint = {mark} AND lease = {mark} AND state = 'pending' "
    "RETURNING {owner}, {delivery}",
    "record": "UPDATE tillroll_deliveries SET state = {mark}, attempts = {mark}, next_at = {mark}, "
    "log = {mark} WHERE {one} AND endpoint = {mark} AND lease = {mark} RETURNING seq",
    "page": "SELECT {owner}, {delivery} FROM tillroll_deliveries WHERE project = {mark} ",
    "dead_of": "SELECT {owner}, seq, n, endpoint FROM tillroll_deliveries "
    "WHERE project = {mark} AND state = 'dead' ",
    "requeue": "UPDATE tillroll_deliveries SET state = 'pending', attempts = 0, next_at = {mark}, "
    "lease = lease + 1 WHERE project = {mark} AND {one} AND endpoint = {mark} ",
    "new": "SELECT count(*), min(created_at) FROM tillroll_outbox WHERE spread = 0",
    "pending": "SELECT count(*), min(created_at), min(next_at) FROM tillroll_deliveries "
    "WHERE state = 'pending'",
    "dead": "SELECT count(*) FROM tillroll_deliveries WHERE state = 'dead'",
    "old": "SELECT {owner}, seq, n FROM tillroll_outbox AS o WHERE spread = 1 AND "
    "created_at < {mark} AND NOT EXISTS (SELECT 1 FROM tillroll_deliveries AS d "
    "WHERE d.account_id = o.account_id AND d.seq = o.seq AND d.n = o.n AND d.state = 'pending') "
    "ORDER BY created_at LIMIT {mark}",
    "drop_deliveries": "DELETE FROM tillroll_deliveries WHERE {one}",
    "drop_event": "DELETE FROM tillroll_outbox WHERE {one}",
    "leases": "SELECT name, holder, ends_at, beat_at, told FROM tillroll_leases ORDER BY name",
    "take_lease": "INSERT INTO tillroll_leases (name, holder, ends_at, beat_at, told) "
    "VALUES ({mark}, {mark}, {mark}, {mark}, '') ON CONFLICT (name) DO UPDATE SET "
    "holder = excluded.holder, ends_at = excluded.ends_at, beat_at = excluded.beat_at "
    "WHERE tillroll_leases.holder = excluded.holder "
    "OR tillroll_leases.ends_at <= excluded.beat_at OR tillroll_leases.ends_at > {mark} "
    "RETURNING holder",
    "end_lease": "UPDATE tillroll_leases SET ends_at = {mark}, beat_at = {mark}, told = {mark} "
    "WHERE name = {mark} AND holder = {mark}",
}


def statements(dialect: Dialect) -> dict[str, str]:
    """Return all statements in a dialect, and how it writes the key of an account."""
    parts = dialect._asdict() | {"event": _EVENT, "delivery": _DELIVERY}
    parts["one"] = _ONE.format(**parts)
    return {name: text.format(**parts) for name, text in (*_SQL.items(), ("key", "{key}"))}


class OutboxReader:
    """What may be read of the outbox; the driver brings `_run`, `_sql` and `_key`."""

    _sql: Mapping[str, str]
    _mark: str

    def _run(self, *statements: Statement) -> list[Rows]:
        """Run statements in order; return the rows of each."""
        raise NotImplementedError

    def _key(self, owner: bytes) -> object:
        """Return the key of an account as a parameter."""
        raise NotImplementedError

    def _place(self, key: Sequence[Any]) -> tuple[object, ...]:
        """Return a place as parameters: the account's key, then the rest as it is."""
        return (self._key(key[0]), *key[1:])

    def _ask_one(self, name: str, *parameters: object) -> Rows:
        return self._run((self._sql[name], parameters))[0]

    def unspread(self, limit: int = 1_000) -> list[Event]:
        """Return events that no delivery was made of yet, the oldest first."""
        return [_event(row) for row in self._ask_one("unspread", limit)]

    def event_at(self, key: EventKey) -> Event | None:
        """Return one event, None where it is not (or no longer) there."""
        for row in self._ask_one("event", *self._place(key)):
            return _event(row)
        return None

    def events(self, after: EventKey | None = None, limit: int = 1_000) -> list[Waiting]:
        """Return what is in the outbox in the order of its places, above `after`."""
        rows = self._ask_one("events", *self._place(after or (bytes(16), 0, 0)), limit)
        return [Waiting(_event(row[:-1]), bool(row[-1])) for row in rows]

    def deliveries(self, after: DeliveryKey | None = None, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries in the order of their places, above `after`."""
        place = self._place(after or (bytes(16), 0, 0, ""))
        return [Delivery(*row) for row in self._ask_one("deliveries", *place, limit)]

    def due_deliveries(self, at: int, limit: int = 1_000) -> list[Delivery]:
        """Return deliveries that are to be tried by that time, the longest due first."""
        return [Delivery(*row) for row in self._ask_one("due", at, limit)]

    def due_at(self, endpoints: Collection[str], at: int, limit: int) -> list[Delivery]:
        """Return so many of the longest due of each of these endpoints."""
        sql = self._sql["due_at"]
        found = self._run(*[(sql, (endpoint, at, limit)) for endpoint in endpoints])
        return [Delivery(*row) for rows in found for row in rows]

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
        sql, mark = self._sql["page"], self._mark
        given: list[object] = [project]
        for column, value in (("endpoint", endpoint), ("state", state)):
            if value is not None:
                sql += f"AND {column} = {mark} "
                given.append(value)
        if event is not None:
            sql += f"AND{self._sql['event'].partition('WHERE')[2]} "
            given += self._place(event)
        if before is not None:
            key = self._sql["key"]
            sql += (
                "AND (created_at, account_id, seq, n, endpoint) < "
                f"({mark}, {key}, {mark}, {mark}, {mark}) "
            )
            given += [before[0], *self._place(before[1:])]
        order = ", ".join(f"{c} DESC" for c in ("created_at", *_PLACE))
        sql += f"ORDER BY {order} LIMIT {mark}"
        return [Delivery(*row) for row in self._run((sql, (*given, limit)))[0]]

    def backlog(self) -> Backlog:
        """Return how much waits, of all projects."""
        names = ("new", "pending", "dead")
        [(new, oldest)], [(pending, older, next_at)], [(dead,)] = self._run(
            *[(self._sql[name], ()) for name in names]
        )
        began = [at for at in (oldest, older) if at is not None]
        return Backlog(new + pending, dead, min(began, default=None), next_at)

    def leases(self) -> list[Lease]:
        """Return who does which job, by the names of the jobs."""
        return [Lease(*row) for row in self._ask_one("leases")]


class OutboxWriter(OutboxReader):
    """What may be done to the outbox within a database transaction."""

    def add_events(self, events: Sequence[Waiting]) -> None:
        """Write events; of one that is there, only whether its deliveries were made."""
        sql = self._sql["add_event"]
        rows = [(self._key(e.account_id), *_event_row(e), int(spread)) for e, spread in events]
        self._run(*[(sql, row) for row in rows])

    def spread(self, keys: Collection[EventKey], deliveries: Sequence[Delivery]) -> None:
        """Write the deliveries of these events, where they are not there; each is made once."""
        add = self._sql["add_delivery"] + "DO NOTHING"
        done = self._sql["mark_spread"]
        self._run(
            *[(add, self._place(delivery)) for delivery in deliveries],
            *[(done, self._place(key)) for key in sorted(keys)],
        )

    def put_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Write deliveries in place of what was known of them."""
        columns = ("state", "attempts", "next_at", "lease", "log")
        sets = ", ".join(f"{column} = excluded.{column}" for column in columns)
        sql = f"{self._sql['add_delivery']}DO UPDATE SET {sets}"
        self._run(*[(sql, self._place(delivery)) for delivery in deliveries])

    def claim(self, deliveries: Sequence[Delivery], until: int) -> list[Delivery]:
        """Take deliveries to work on until then; return those that nobody took meanwhile."""
        sql = self._sql["claim"]
        rows = self._run(*[(sql, (until, *self._place(d.key), d.lease)) for d in deliveries])
        return [Delivery(*row) for found in rows for row in found]

    def record(self, deliveries: Sequence[Delivery]) -> int:
        """Write what came of deliveries that one holds; return of how many that was so still."""
        sql = self._sql["record"]
        rows = self._run(
            *[
                (sql, (d.state, d.attempts, d.next_at, d.log, *self._place(d.key), d.lease))
                for d in deliveries
            ]
        )
        return sum(len(found) for found in rows)

    def requeue(
        self, project: str, at: int, endpoint: str | None = None, limit: int = 1_000
    ) -> tuple[int, bool]:
        """Have what is dead tried again, of one endpoint or of all, at most `limit` of it.

        Returns:
            How many, and whether more are left.
        """
        which = "" if endpoint is None else f"AND endpoint = {self._mark} "
        given = (project,) if endpoint is None else (project, endpoint)
        [found] = self._run(
            (f"{self._sql['dead_of']}{which}LIMIT {self._mark}", (*given, limit + 1))
        )
        sql = self._sql["requeue"] + "AND state = 'dead' RETURNING seq"
        keys = sorted(tuple(row) for row in found[:limit])  # one order for all who do this
        rows = self._run(*[(sql, (at, project, *self._place(key))) for key in keys])
        return sum(len(row) for row in rows), len(found) > limit

    def requeue_one(self, project: str, at: int, key: DeliveryKey) -> int:
        """Have one delivery tried again, whatever came of it; return whether it is there."""
        sql = self._sql["requeue"] + "RETURNING seq"
        return len(self._run((sql, (at, project, *self._place(key))))[0])

    def prune_events(self, before: int, limit: int = 1_000) -> int:
        """Delete the oldest events written before that time, at most `limit`; return how many.

        What is pending stays. The deliveries go with their events, dead ones too.
        """
        old = [tuple(row) for row in self._ask_one("old", before, limit)]
        self._run(
            *[(self._sql["drop_deliveries"], self._place(key)) for key in old],
            *[(self._sql["drop_event"], self._place(key)) for key in old],
        )
        return len(old)

    def take_lease(self, name: str, holder: str, at: int, ends_at: int) -> bool:
        """Take a job until then, or prolong it; False where somebody else does it."""
        latest = at + SPANS_MAX * (ends_at - at)
        return bool(self._ask_one("take_lease", name, holder, ends_at, at, latest))

    def end_lease(self, name: str, holder: str, at: int, ends_at: int, told: str) -> None:
        """Say what came of a job, and until when it is kept; nothing where it was lost."""
        self._ask_one("end_lease", ends_at, at, told, name, holder)


class Registry(Protocol):
    """Where documents are read."""

    def documents(self, kind: str) -> dict[str, str]:
        """Return the documents of a kind by their names."""


def topics_in(reader: Registry, project: str) -> frozenset[str]:
    """Return the types of events that some endpoint of a project wants."""
    documents = reader.documents(ENDPOINT)
    return topics_of(places(documents, reader.documents(HEALTH)), project) if documents else _NONE


_NONE: frozenset[str] = frozenset()


def _event(row: Sequence[Any]) -> Event:
    owner, seq, n, project, topic, payload, created_at = row
    return Event(owner, seq, n, project, topic, payload, created_at)


def _event_row(event: Event) -> tuple[int, int, str, str, str, int]:
    return event.seq, event.n, event.project, event.topic, event.payload, event.at


__all__ = ["Backlog", "Delivery", "Dialect", "Lease", "OutboxReader", "OutboxWriter", "Waiting"]
