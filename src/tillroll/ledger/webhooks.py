"""Webhook endpoints: who wants to hear of what, how it is signed, and when it is tried again.

Endpoints are documents in the store's registry, of the kind `ENDPOINT`; what the sender finds out
about one is another document, of the kind `HEALTH`, so that neither is lost when the other is
written. Signing follows Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, field

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.events import TOPICS
from tillroll.ledger.types import DAY, HOUR, MINUTE, SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENDPOINT = "endpoint"
HEALTH = "endpoint_health"
SECRET = "whsec_"  # noqa: S105 - what every secret begins with
SECRET_BYTES = 32  # 24 to 64 by the specification
ENDPOINTS_MAX = 50  # of one project and mode
FILTERS_MAX = 100

# The first attempt is made at once; after each that failed, the next waits for so long. Ten in
# all, over three days and a bit (https://www.standardwebhooks.com, "retries").
SCHEDULE = (
    *(5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR),
    *(10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR),
)
ATTEMPTS_MAX = len(SCHEDULE) + 1
JITTER = 0.2  # a wait is up to so much longer, so that what failed together comes back spread
FAILING_MAX = 5 * DAY  # an endpoint that took nothing for so long is disabled

Format = Literal["tillroll", "licenzy"]


class Secret(Struct, frozen=True):
    """A secret that bodies are signed with, and until when; None for as long as there is none."""

    value: str
    ends_at: int | None = None


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where events of one project and mode are sent.

    Attributes:
        project: The name of the ledger, which says the mode as well.
        events: Types of events, or their beginnings, such as "grant.*"; "*" is all.
        format: In whose words.
        secrets: The newest first.
        asked: SHA-256 of what it was made from, hexadecimal, by which a repeat is told from another
            request of the same id; empty where a version before this one made it.
    """

    id: str
    project: str
    url: str
    events: tuple[str, ...] = ("*",)
    format: Format = "tillroll"
    secrets: tuple[Secret, ...] = ()
    description: str | None = None
    disabled: bool = False
    created_at: int = 0
    asked: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """What the sender found out: since when an endpoint fails, and why it was disabled."""

    failing_since: int | None = None
    disabled_at: int | None = None
    reason: str | None = None


class Place(Struct, frozen=True):
    """An endpoint and its health."""

    endpoint: Endpoint
    health: Health = field(default_factory=Health)

    @property
    def is_open(self) -> bool:
        """Whether anything is sent to it."""
        return not self.endpoint.disabled and self.health.disabled_at is None


def places(endpoints: Mapping[str, str], healths: Mapping[str, str]) -> list[Place]:
    """Return all endpoints, the oldest first, from the documents of the two kinds."""
    found = [
        Place(
            msgspec.json.decode(text, type=Endpoint),
            msgspec.json.decode(healths.get(name, "{}"), type=Health),
        )
        for name, text in endpoints.items()
    ]
    return sorted(found, key=lambda place: (place.endpoint.created_at, place.endpoint.id))


def topics_of(found: Iterable[Place], project: str) -> frozenset[str]:
    """Return the types of events that some endpoint of a project and mode wants."""
    mine = [p.endpoint for p in found if p.is_open and p.endpoint.project == project]
    return frozenset(topic for topic in TOPICS if any(wants(one, topic) for one in mine))


def wants(endpoint: Endpoint, topic: str) -> bool:
    """Return whether an endpoint is sent events of a type."""
    if endpoint.format == "licenzy" and topic not in LICENZY:
        return False
    return any(_covers(pattern, topic) for pattern in endpoint.events)


def goes_to(endpoint: Endpoint, topic: str, payload: str) -> bool:
    """Return whether an event is sent to an endpoint.

    In Licenzy's words a grant that was not bought is no purchase, and a payment that is not a
    subscription's has no invoice, so they have no word there.
    """
    if not wants(endpoint, topic):
        return False
    if endpoint.format == "licenzy" and topic in _NOT_ALL:
        field, wanted = _NOT_ALL[topic]
        found = msgspec.json.decode(payload)["data"][field]
        return bool(found == wanted if wanted else found)
    return True


def _covers(pattern: str, topic: str) -> bool:
    return pattern in ("*", topic) or (pattern.endswith(".*") and topic.startswith(pattern[:-1]))


def check_filters(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return filters of an endpoint, sorted.

    Raises:
        InvalidInput: One covers no type of the catalog, or there are none or too many.
    """
    found = tuple(sorted(set(patterns)))
    if not 1 <= len(found) <= FILTERS_MAX:
        raise InvalidInput(f"events must be 1 to {FILTERS_MAX} types, such as 'grant.*' or '*'")
    for pattern in found:
        if not any(_covers(pattern, topic) for topic in TOPICS):
            raise InvalidInput(f"there is no type of events {pattern!r:.50}")
    return found


# ---------------------------------------------------------------- signing


def show_secret(raw: bytes) -> str:
    """Return random bytes as a secret."""
    return SECRET + base64.b64encode(raw).decode()


def signatures(secrets: Iterable[Secret], event_id: str, at: int, body: bytes) -> str:
    """Return the signature of a body with every secret that is good at that time.

    Args:
        secrets: Of the endpoint.
        event_id: The header webhook-id.
        at: When it is sent, microseconds since 1970; whole seconds are signed.
        body: The bytes that are sent.
    """
    content = b"%b.%d.%b" % (event_id.encode(), at // SECOND, body)
    good = [one.value for one in secrets if one.ends_at is None or at < one.ends_at]
    return " ".join(f"v1,{_signature(value, content)}" for value in good)


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET))
    return base64.b64encode(hmac.digest(key, content, "sha256")).decode()


def next_attempt(attempts: int, at: int, chance: float) -> int | None:
    """Return when to try again after so many attempts; None where it was the last.

    Args:
        attempts: Made so far.
        at: When the last one failed.
        chance: 0 to 1, drawn by the caller.
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    return at + int(SCHEDULE[attempts - 1] * (1 + JITTER * chance))


# ---------------------------------------------------------------- in Licenzy's words

# What theirs are called. A subscription is told by the data of an entitlement.
LICENZY = {
    "grant.created": "purchase.finalized",
    "grant.expired": "entitlement.updated",
    "grant.voided": "entitlement.updated",
    "usage.consumed": "usage.consumed",
    "entitlement.updated": "entitlement.updated",
    "entitlement.ended": "entitlement.updated",
    "payment.succeeded": "invoice.payment_succeeded",
    "payment.failed": "invoice.payment_failed",
}
# Of these, only those whose data has this under that name: None for anything at all.
_NOT_ALL: dict[str, tuple[str, str | None]] = {
    "grant.created": ("category", "paid"),
    "payment.succeeded": ("subscription", None),
    "payment.failed": ("subscription", None),
}
_SUBSCRIPTIONS = {
    "entitlement.updated": "subscription.updated",
    "entitlement.ended": "subscription.deleted",
}


def in_words_of(format_: Format, payload: str) -> bytes:
    """Return the body that is sent of an event."""
    if format_ == "tillroll":
        return payload.encode()
    told: dict[str, Any] = msgspec.json.decode(payload)
    data: dict[str, Any] = told["data"]
    name = LICENZY[told["type"]]
    if data.get("kind") == "subscription":
        name = _SUBSCRIPTIONS.get(told["type"], name)
    body = {
        "id": told["id"],
        "type": name,
        "created_at": told["occurred_at"],
        "subject_ref": told["account"],
        "source": "stripe" if data.get("provider") == "stripe" else "runtime",
        "reason": data.get("reason") or told["type"],
        "actor_user_id": data.get("actor"),
        "sequence": told["seq"],
        "data": data,
    }
    return msgspec.json.encode(body)


__all__ = ["Endpoint", "Health", "Place", "Secret", "in_words_of", "next_attempt", "signatures"]
