"""Webhook endpoints as they are administered: made, changed, rotated, looked at, sent to again.

What an endpoint is and how it is signed to is said by `ledger.webhooks`; what became of each event
by `stores.outbox`. Here is what the API and the command line do with the two. Sending is a job.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from tillroll.ledger.calendar import show_instant
from tillroll.ledger.errors import IdempotencyConflict, InvalidInput, NotFound
from tillroll.ledger.events import id_of, place_of
from tillroll.ledger.types import DAY
from tillroll.ledger.webhooks import (
    ENDPOINT,
    ENDPOINTS_MAX,
    HEALTH,
    SECRET_BYTES,
    Endpoint,
    Format,
    Place,
    Secret,
    check_filters,
    places,
    show_secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tillroll.stores.base import Reader, Writer
    from tillroll.stores.outbox import Delivery, State

OVERLAP = DAY  # how long the secret before stays good, unless it is said otherwise
OVERLAP_MAX = 30 * DAY
SECRETS_MAX = 5  # good at a time: each is one more signature in a header
DESCRIPTION_MAX = 255
PAGE_MAX = 1_000
# Sent again in one database transaction: some 50 ms for which others wait.
REQUEUED_MAX = 1_000
REQUEUE_TIMES_MAX = 10  # such transactions by one call
URL_MAX = 2_000


def new_id() -> str:
    """Return an id for an endpoint."""
    return f"we_{secrets.token_hex(8)}"


def all_places(reader: Reader) -> list[Place]:
    """Return the endpoints of all projects, the oldest first."""
    return places(reader.documents(ENDPOINT), reader.documents(HEALTH))


def places_of(reader: Reader, project: str) -> list[Place]:
    """Return the endpoints of a project and mode, the oldest first."""
    return [place for place in all_places(reader) if place.endpoint.project == project]


def place_in(reader: Reader, project: str, endpoint_id: str) -> Place:
    """Return one endpoint.

    Raises:
        NotFound: There is no such endpoint in this project and mode.
    """
    document = reader.document(ENDPOINT, endpoint_id)
    health = reader.document(HEALTH, endpoint_id)
    if document is not None:
        [place] = places({endpoint_id: document}, {} if health is None else {endpoint_id: health})
        if place.endpoint.project == project:
            return place
    raise NotFound(f"there is no webhook endpoint {endpoint_id!r} here")


def make(
    tx: Writer,
    project: str,
    url: str,
    *,
    at: int,
    endpoint_id: str | None = None,
    events: Iterable[str] = ("*",),
    format_: Format = "tillroll",
    description: str | None = None,
    private: bool = False,
) -> tuple[Place, str | None]:
    """Write a new endpoint.

    Returns:
        The endpoint and its secret; None for the secret where it was made before.

    Raises:
        InvalidInput: It cannot be one, or there are too many.
        IdempotencyConflict: The id was used for another endpoint. Nothing was written.
    """
    filters = check_filters(events)
    asked = sha256(msgspec.json.encode((url, filters, format_, description))).hexdigest()
    known = None if endpoint_id is None else tx.document(ENDPOINT, endpoint_id)
    if endpoint_id is not None and known is not None:
        place = place_in(tx, project, endpoint_id)
        if place.endpoint.asked not in ("", asked):
            raise IdempotencyConflict(
                f"this id made {endpoint_id} from another request: take a new one to make another"
            )
        return place, None
    if len(places_of(tx, project)) >= ENDPOINTS_MAX:
        raise InvalidInput(f"a project may have {ENDPOINTS_MAX} webhook endpoints at the most")
    secret = show_secret(secrets.token_bytes(SECRET_BYTES))
    endpoint = Endpoint(
        id=endpoint_id or new_id(),
        project=project,
        url=check_url(url, private=private),
        events=filters,
        format=_format(format_),
        secrets=(Secret(secret),),
        description=_described(description),
        created_at=at,
        asked=asked,
    )
    _put(tx, endpoint)
    return Place(endpoint), secret


def change(
    tx: Writer, project: str, endpoint_id: str, *, private: bool = False, **wanted: Any
) -> Place:
    """Change an endpoint; what is not given stays. To enable it clears what the sender found.

    Args:
        tx: The transaction to write in.
        project: Whose it must be.
        endpoint_id: Which.
        private: As for `make`.
        **wanted: `url`, `events`, `format`, `description`, `disabled`.

    Raises:
        NotFound, InvalidInput: Nothing was changed.
    """
    endpoint = place_in(tx, project, endpoint_id).endpoint
    if "url" in wanted:
        wanted["url"] = check_url(wanted["url"], private=private)
    if "events" in wanted:
        wanted["events"] = check_filters(wanted["events"])
    if "format" in wanted:
        wanted["format"] = _format(wanted["format"])
    if "description" in wanted:
        wanted["description"] = _described(wanted["description"])
    _put(tx, replace(endpoint, **wanted))
    if wanted.get("disabled") is False:
        tx.put_document(HEALTH, endpoint_id, None)
    return place_in(tx, project, endpoint_id)


def rotate(
    tx: Writer, project: str, endpoint_id: str, *, at: int, overlap: int = OVERLAP
) -> tuple[Place, str]:
    """Give an endpoint a new secret; the ones before stay good for the overlap.

    Raises:
        NotFound, InvalidInput: Nothing was changed.
    """
    if not 0 <= overlap <= OVERLAP_MAX:
        raise InvalidInput("an overlap may last 30 days at the most")
    endpoint = place_in(tx, project, endpoint_id).endpoint
    secret = show_secret(secrets.token_bytes(SECRET_BYTES))
    ends_at = at + overlap
    older = [replace(s, ends_at=min(s.ends_at or ends_at, ends_at)) for s in endpoint.secrets]
    good = [one for one in older if one.ends_at is not None and one.ends_at > at]
    kept = (Secret(secret), *good[: SECRETS_MAX - 1])
    _put(tx, replace(endpoint, secrets=kept))
    return place_in(tx, project, endpoint_id), secret


def remove(tx: Writer, project: str, endpoint_id: str) -> Place:
    """Remove an endpoint; what was not delivered to it by now is given up.

    Raises:
        NotFound: There is no such endpoint in this project and mode.
    """
    place = place_in(tx, project, endpoint_id)
    tx.put_document(ENDPOINT, endpoint_id, None)
    tx.put_document(HEALTH, endpoint_id, None)
    return place


class Queued(NamedTuple):
    """How many deliveries are tried again, and whether more are left that were asked for."""

    queued: int
    more: bool


def send_all_again(
    perform: Callable[[Callable[[Writer], Queued]], Queued],
    project: str,
    at: int,
    endpoint_id: str | None = None,
) -> Queued:
    """Have what is dead tried again, so many in one database transaction, so many in all.

    Where it fails half-way, what was queued by then stays queued.

    Args:
        perform: Does something in a database transaction of its own.
        project: Whose.
        at: From when on.
        endpoint_id: Of this endpoint only; of all without it.

    Raises:
        NotFound: There is no such endpoint.
    """
    total = 0
    for _ in range(REQUEUE_TIMES_MAX):
        queued, more = perform(lambda tx: send_again(tx, project, at, endpoint_id))
        total += queued
        if not more:
            return Queued(total, more=False)
    return Queued(total, more=True)


def send_again(
    tx: Writer, project: str, at: int, endpoint_id: str | None = None, event_id: str | None = None
) -> Queued:
    """Have deliveries tried again, from the first attempt on, a bounded number of them.

    Args:
        tx: The transaction to write in.
        project: Whose.
        at: From when on.
        endpoint_id: Of this endpoint only.
        event_id: This event only, to that endpoint, whatever came of it; without it, all that is
            dead.

    Raises:
        NotFound: There is no such endpoint, or no such delivery.
        InvalidInput: An event without an endpoint.
    """
    if endpoint_id is not None:
        place_in(tx, project, endpoint_id)
    if event_id is None:
        return Queued(*tx.requeue(project, at, endpoint_id, REQUEUED_MAX))
    if endpoint_id is None:
        raise InvalidInput("to send one event again, say to which endpoint")
    found = tx.requeue_one(project, at, (*place_of(event_id), endpoint_id))
    if not found:
        raise NotFound(f"{event_id} has no delivery to {endpoint_id} here")
    return Queued(found, more=False)


def check_url(url: str, *, private: bool) -> str:
    """Return where an endpoint is, if it may be there.

    Args:
        url: What was given.
        private: Whether plain HTTP is allowed, too.

    Raises:
        InvalidInput: It may not.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise InvalidInput(f"url is none: {problem}") from None
    schemes = ("https", "http") if private else ("https",)
    if parts.scheme not in schemes or not parts.hostname:
        more = "" if private else "; plain HTTP is for endpoints that may be private"
        raise InvalidInput(f"url must begin with {' or '.join(f'{s}://' for s in schemes)}{more}")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInput("url must have neither a user nor a fragment")
    if not (url.isascii() and url.isprintable()) or " " in url or len(url) > URL_MAX or port == 0:
        raise InvalidInput(f"url must be at most {URL_MAX} printable ASCII characters")
    return url


def _put(tx: Writer, endpoint: Endpoint) -> None:
    tx.put_document(ENDPOINT, endpoint.id, msgspec.json.encode(endpoint).decode())


def _format(name: str) -> Format:
    if name not in ("tillroll", "licenzy"):
        raise InvalidInput(f"format must be 'tillroll' or 'licenzy', not {name!r:.40}")
    return "licenzy" if name == "licenzy" else "tillroll"


def _described(text: str | None) -> str | None:
    if text is not None and not (text.isprintable() and len(text) <= DESCRIPTION_MAX):
        raise InvalidInput(f"description must be at most {DESCRIPTION_MAX} printable characters")
    return text


# ---------------------------------------------------------------- looking


def shown(place: Place, secret: str | None = None) -> dict[str, Any]:
    """Return an endpoint as it may be shown: with no secret but the one just made."""
    endpoint, health = place.endpoint, place.health

    def when(at: int | None) -> str | None:
        return None if at is None else show_instant(at)

    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "format": endpoint.format,
        "description": endpoint.description,
        "disabled": not place.is_open,
        "disabled_at": when(health.disabled_at),
        "disabled_reason": health.reason,
        "failing_since": when(health.failing_since),
        "secrets": len(endpoint.secrets),
        "created_at": show_instant(endpoint.created_at),
        "secret": secret,
    }


def shown_delivery(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery as it may be shown, its attempts too."""
    pending = delivery.state == "pending"
    return {
        "event": id_of(*delivery[:3]),
        "type": delivery.topic,
        "endpoint": delivery.endpoint,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "next_at": show_instant(delivery.next_at) if pending else None,
        "created_at": show_instant(delivery.created_at),
        "log": msgspec.json.decode(delivery.log),
    }


def page(
    reader: Reader,
    project: str,
    *,
    endpoint: str | None = None,
    state: State | None = None,
    event: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[Delivery], str | None]:
    """Return deliveries, the newest first, and where to go on; None where there are no more.

    Raises:
        InvalidInput: A place is none, or the limit is out of bounds.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidInput(f"limit must be 1 to {PAGE_MAX}")
    found = reader.delivery_page(
        project,
        endpoint=endpoint,
        state=state,
        event=None if event is None else place_of(event),
        before=None if after is None else _place(after),
        limit=limit + 1,
    )
    more = len(found) > limit
    last = found[limit - 1] if more else None
    going_on = None if last is None else f"{last.created_at}~{id_of(*last[:3])}~{last.endpoint}"
    return found[:limit], going_on


def _place(text: str) -> tuple[int, bytes, int, int, str]:
    parts = text.split("~")
    if len(parts) != len(("at", "event", "endpoint")) or not parts[0].isdecimal():
        raise InvalidInput("that is not a place in the list of deliveries")
    return (min(int(parts[0]), 2**62), *place_of(parts[1]), parts[2])


__all__ = [
    "Queued",
    "change",
    "make",
    "page",
    "places_of",
    "remove",
    "rotate",
    "send_again",
    "send_all_again",
    "shown",
]
