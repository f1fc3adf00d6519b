"""Delivering the outbox: each event to each endpoint that wants it, at least once.

A round makes deliveries of new events, takes what is due, sends it on threads, and writes down
what came of what was sent. Nothing is kept here that is not in the store, but for what is under
way: of a process that is killed, the leases end, and others send again what it may have sent. So
the receiver may get an event twice, with the same `webhook-id`, and never not at all.
"""

from __future__ import annotations

import queue
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tillroll import webhooks
from tillroll.jobs.sending import RESPONSE_BYTES_MAX, SECONDS, Said, Sender
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.commands import account_id
from tillroll.ledger.events import EndpointData, event, id_of
from tillroll.ledger.types import SECOND
from tillroll.ledger.webhooks import (
    ENDPOINT,
    FAILING_MAX,
    HEALTH,
    Health,
    Place,
    goes_to,
    in_words_of,
    next_attempt,
    signatures,
)
from tillroll.stores.outbox import Delivery, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tillroll.engine import Engine
    from tillroll.ledger.book import Event
    from tillroll.stores.base import Reader, Writer

AT_ONCE_MAX = 64  # requests under way in this process
PER_ENDPOINT_MAX = 8  # so that one which hangs does not take all
# Nor does one project: it takes another only while more are free than it has. Alone it has half of
# them; of several that hang each has as much as is left free, so that who comes next finds some.
DUE_MAX = AT_ONCE_MAX * 2  # looked at in a round, besides what is behind that
PLACES_MAX = 200  # endpoints that are asked behind that, others in the next round
SPREAD_MAX = 500  # events that deliveries are made of in one transaction
LEASE_SECONDS = 60.0  # longer than an attempt may take, with what comes before and after
PATIENCE_SECONDS = 0.5  # how long a round waits for something to come back
LOG_MAX = 20  # attempts that are kept of a delivery
SAID_BYTES_MAX = 1_024  # kept of what an endpoint answered
FAILING_ATTEMPTS = 3  # an endpoint fails from here on: what came before may be bad luck
GONE = 410

assert LEASE_SECONDS > 2 * SECONDS
assert SAID_BYTES_MAX <= RESPONSE_BYTES_MAX


class Sent(NamedTuple):
    """What came of one request."""

    delivery: Delivery
    place: Place
    said: Said


class Deliverer:
    """Sends what is due; one object a process, whose rounds are asked for by the loop."""

    def __init__(
        self,
        engine: Engine,
        sender: Sender,
        *,
        lease_seconds: float = LEASE_SECONDS,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Deliver the outbox of this engine's store.

        Args:
            engine: Whose clock and store.
            sender: What posts.
            lease_seconds: How long a delivery is kept from others.
            chance: Draws the jitter of a wait.
        """
        self._engine = engine
        self._sender = sender
        self._lease = int(lease_seconds * SECOND)
        self._chance = chance
        self._pool = ThreadPoolExecutor(AT_ONCE_MAX, thread_name_prefix="tillroll-webhook")
        self._back: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        self._under_way: Counter[str] = Counter()  # by endpoint
        self._of_projects: Counter[str] = Counter()
        self._turn = 0  # whose turn it is among endpoints that are too many for one round

    def round(self) -> dict[str, Any]:
        """Do one round; return what it did, and under `more` whether to go on at once."""
        spread = self._spread()
        sent = self._take_back()
        taken = self._take()
        if not (spread or sent or taken) and self._under_way:
            sent = self._take_back(PATIENCE_SECONDS)
        more = bool(spread or sent or taken or self._under_way)
        return {"events": spread, "sent": sent, "taken": taken, "more": more}

    def close(self) -> None:
        """Wait for what is under way, and write down what came of it."""
        self._pool.shutdown(wait=True)
        self._take_back()

    # ------------------------------------------------------------ events to deliveries

    def _spread(self) -> int:
        """Make the deliveries of new events; twice does no harm."""
        with self._engine.store.read_primary() as reader:
            events = reader.unspread(SPREAD_MAX)
            places = webhooks.all_places(reader) if events else []
        if events:
            at = self._engine.clock()
            made = [d for one in events for d in _deliveries(one, places, at)]
            keys = [(one.account_id, one.seq, one.n) for one in events]
            self._engine.perform(lambda tx: tx.spread(keys, made))
        return len(events)

    # ------------------------------------------------------------ deliveries to requests

    def _take(self) -> int:
        """Take what is due, as much as there is room for, and begin to send it."""
        room = AT_ONCE_MAX - self._under_way.total()
        if room <= 0:
            return 0
        at = self._engine.clock()
        with self._engine.store.read_primary() as reader:
            due = reader.due_deliveries(at, DUE_MAX)
            places = {p.endpoint.id: p for p in webhooks.all_places(reader)} if due else {}
            due += self._due_behind(reader, due, places.values(), at, room)
            lost = [d for d in due if d.endpoint not in places or not places[d.endpoint].is_open]
            chosen = self._choose([d for d in due if d not in lost], room)
            bodies = {d.key: reader.event_at(d.key[:3]) for d in chosen}
        if not due:
            return 0
        until = at + self._lease
        taken = self._engine.perform(lambda tx: _claim(tx, chosen, lost, until, at))
        for delivery in taken:
            told = bodies[delivery.key]
            place = places[delivery.endpoint]
            assert told is not None, "an event goes with its deliveries, pending ones stay"
            self._under_way[delivery.endpoint] += 1
            self._of_projects[delivery.project] += 1
            self._pool.submit(self._send, delivery, place, told.payload)
        return len(taken) + len(lost)

    def _due_behind(
        self, reader: Reader, due: Sequence[Delivery], places: Iterable[Place], at: int, room: int
    ) -> list[Delivery]:
        """Return what is due behind a page that is full of what has to wait."""

        def waits(endpoint: str, project: str) -> bool:
            full = self._under_way[endpoint] >= PER_ENDPOINT_MAX
            return full or self._of_projects[project] >= room

        if len(due) < DUE_MAX or not any(waits(one.endpoint, one.project) for one in due):
            return []
        free = [p.endpoint.id for p in places if not waits(p.endpoint.id, p.endpoint.project)]
        first, self._turn = self._turn % max(len(free), 1), self._turn + PLACES_MAX
        free = (free[first:] + free[:first])[:PLACES_MAX]
        known = {one.key for one in due}
        behind = [one for one in reader.due_at(free, at, PER_ENDPOINT_MAX) if one.key not in known]
        return sorted(behind, key=lambda one: one.next_at)

    def _choose(self, due: Sequence[Delivery], room: int) -> list[Delivery]:
        """Return what to take, no more of one endpoint or project than may be under way to it."""
        counts, of_projects = Counter(self._under_way), Counter(self._of_projects)
        chosen: list[Delivery] = []
        for delivery in due:
            free = room - len(chosen)
            if (
                of_projects[delivery.project] < free
                and counts[delivery.endpoint] < PER_ENDPOINT_MAX
            ):
                counts[delivery.endpoint] += 1
                of_projects[delivery.project] += 1
                chosen.append(delivery)
        return chosen

    def _send(self, delivery: Delivery, place: Place, payload: str) -> None:
        """Send one, on a thread of its own; whatever happens comes back as something said."""
        endpoint = place.endpoint
        try:
            body = in_words_of(endpoint.format, payload)
            event_id = id_of(*delivery[:3])
            at = self._engine.clock()
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "tillroll-webhooks",
                "webhook-id": event_id,
                "webhook-timestamp": str(at // SECOND),
                "webhook-signature": signatures(endpoint.secrets, event_id, at, body),
            }
            said = self._sender.post(endpoint.url, headers, body)
        except Exception as problem:  # noqa: BLE001 - it must come back, or nobody counts it out
            said = Said(None, b"", f"{type(problem).__name__}: {problem}", 0.0)
        self._back.put(Sent(delivery, place, said))

    # ------------------------------------------------------------ what came of them

    def _take_back(self, wait: float = 0.0) -> int:
        """Write down what came back, after waiting for so long where nothing has."""
        back: list[Sent] = []
        until = time.monotonic() + wait
        while True:
            try:
                left = until - time.monotonic()
                back.append(
                    self._back.get(timeout=left)
                    if left > 0 and not back
                    else self._back.get_nowait()
                )
            except queue.Empty:
                break
        if back:
            for one in back:
                self._under_way[one.delivery.endpoint] -= 1
                self._of_projects[one.delivery.project] -= 1
            self._under_way, self._of_projects = +self._under_way, +self._of_projects
            at = self._engine.clock()
            chance = self._chance()
            self._engine.perform(lambda tx: _record(tx, back, at, chance))
        return len(back)


def _deliveries(told: Event, places: Sequence[Place], at: int) -> list[Delivery]:
    """Return the deliveries of an event, one for each endpoint that wants it now."""
    return [
        Delivery(
            told.account_id,
            told.seq,
            told.n,
            place.endpoint.id,
            told.project,
            told.topic,
            "pending",
            0,
            at,
            told.at,
            0,
            "[]",
        )
        for place in places
        if place.is_open
        and place.endpoint.project == told.project
        and goes_to(place.endpoint, told.topic, told.payload)
    ]


def _claim(
    tx: Writer, chosen: Sequence[Delivery], lost: Sequence[Delivery], until: int, at: int
) -> list[Delivery]:
    """Take what is to be sent, and give up what has no endpoint any more."""
    gone = tx.claim(lost, at) if lost else []
    said = Said(None, b"", "the endpoint is disabled or was removed", 0.0)
    if gone:
        tx.record([d._replace(state="dead", log=_logged(d, said, at)) for d in gone])
    return tx.claim(chosen, until) if chosen else []


def _record(tx: Writer, back: Sequence[Sent], at: int, chance: float) -> None:
    """Write down what came of deliveries, and what that says of their endpoints."""
    tx.record([_after(one, at, chance) for one in back])
    by_endpoint: dict[str, list[Sent]] = {}
    for one in back:
        by_endpoint.setdefault(one.delivery.endpoint, []).append(one)
    disabled = 0
    for name, several in by_endpoint.items():
        if tx.document(ENDPOINT, name) is None:
            continue  # it was removed meanwhile
        known = tx.document(HEALTH, name)
        health = msgspec.json.decode(known, type=Health) if known else Health()
        judged = _judged(health, several, at)
        if judged != health and health.disabled_at is None:
            disabled += _put_health(tx, several[0].place, judged, at, disabled)


def _after(one: Sent, at: int, chance: float) -> Delivery:
    """Return a delivery as it stands after an attempt."""
    delivery, said = one.delivery, one.said
    attempts = delivery.attempts + 1
    done = delivery._replace(attempts=attempts, log=_logged(delivery, said, at))
    if _is_taken(said):
        return done._replace(state="delivered")
    next_at = next_attempt(attempts, at, chance)
    if next_at is None or said.status == GONE:
        return done._replace(state="dead")
    return done._replace(next_at=next_at)


def _is_taken(said: Said) -> bool:
    """Return whether an endpoint has taken an event: 2xx, and nothing else."""
    return said.status is not None and said.status // 100 == 2  # noqa: PLR2004 - 2xx


def _logged(delivery: Delivery, said: Said, at: int) -> str:
    """Return the last attempts with one more, each bounded."""
    known: list[Any] = msgspec.json.decode(delivery.log)
    attempt = {
        "at": show_instant(at),
        "status": said.status,
        "response": said.body[:SAID_BYTES_MAX].decode("utf-8", "replace").replace("\0", "\ufffd"),
        "error": None if said.error is None else said.error[:SAID_BYTES_MAX].replace("\0", " "),
        "milliseconds": round(said.seconds * 1_000),
    }
    return msgspec.json.encode([*known, attempt][-LOG_MAX:]).decode()


def _judged(health: Health, several: Sequence[Sent], at: int) -> Health:
    """Return what attempts say of their endpoint."""
    if any(one.said.status == GONE for one in several):
        return replace(health, disabled_at=at, reason="it answered 410 Gone")
    if any(_is_taken(one.said) for one in several):
        return replace(health, failing_since=None)
    if all(one.delivery.attempts + 1 < FAILING_ATTEMPTS for one in several):
        return health
    since = at if health.failing_since is None else health.failing_since
    if at - since >= FAILING_MAX:
        why = f"it took nothing since {show_instant(since)}"
        return replace(health, failing_since=since, disabled_at=at, reason=why)
    return replace(health, failing_since=since)


def _put_health(tx: Writer, place: Place, health: Health, at: int, nth: int) -> int:
    """Write down how an endpoint does; where it was disabled, that is the `nth` event of these."""
    endpoint = place.endpoint
    blank = health == Health()
    tx.put_document(HEALTH, endpoint.id, None if blank else msgspec.json.encode(health).decode())
    if health.disabled_at is None:
        return 0
    # Told under a name that no account can have; its place is the version of the registry, which
    # grew just now, under a lock, and the number among those of this transaction.
    data = EndpointData(endpoint=endpoint.id, url=endpoint.url, reason=health.reason or "")
    owner = account_id(endpoint.project, "\nwebhooks")
    number = tx.registry_version()
    told = event(endpoint.project, owner, number, nth, "endpoint.disabled", data, None, at)
    tx.add_events([Waiting(told, spread=False)])
    return 1


__all__ = ["Deliverer", "Sent"]
