"""Events: what an entry has to tell, as webhooks carry it.

`apply_told` applies an entry and returns its events, in the transaction that writes it. `TYPES` is
the catalog: each type with the kinds of entries that make it, the shape of its data and how it is
filled. Only types that somebody wants to hear of are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from tillroll.ledger import alerts
from tillroll.ledger.book import Event, Rules
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.fold import apply
from tillroll.ledger.types import DAY
from tillroll.ledger.units import show_units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tillroll.ledger.types import Account, Entry

_TEST = ":test"  # how the ledger of a project's test mode is named
ID = "evt_"


class Moved(Struct, frozen=True, kw_only=True):
    """What every event about units says; amounts are decimal strings.

    Attributes:
        request_id: The request that led to it; null where the clock did.
        actor: Who acted.
        reason: Why, in the caller's words.
        wallet: The kind of credits.
        units: What it is about.
        available: Free units of the wallet afterwards.
        held: Units of the wallet reserved afterwards.
    """

    request_id: str | None
    actor: str | None
    reason: str | None
    wallet: str
    units: str
    available: str
    held: str


class GrantData(Moved, frozen=True, kw_only=True):
    """A grant: made, begun, renewed, expired or voided. `units` moved, `remaining` are left."""

    grant_id: str
    category: str | None
    source: str | None
    expires_at: str | None
    remaining: str


class UsageData(Moved, frozen=True, kw_only=True):
    """A charge: a consume, or what was settled of a hold."""

    hold_id: str | None
    operation: str | None
    model: str | None
    tags: dict[str, str]
    shortfall: str
    final: bool


class HoldData(Moved, frozen=True, kw_only=True):
    """A hold: opened, released, expired or in doubt."""

    hold_id: str
    operation: str | None
    model: str | None
    tags: dict[str, str]
    expires_at: str | None


class RefundData(Moved, frozen=True, kw_only=True):
    """What came back of a charge."""

    charge: str
    operation: str | None


class AccountData(Struct, frozen=True, kw_only=True):
    """Who changed the account's standing, and why."""

    request_id: str | None
    actor: str | None
    reason: str | None


class EntitlementData(Struct, frozen=True, kw_only=True):
    """An entitlement as it stands from then on; when it ended, as it stood last.

    Attributes:
        request_id: The request that led to it; null where the clock did.
        actor: Who acted.
        reason: Why.
        entitlement: What it is called.
        kind: "subscription", "time_pass" or "feature".
        status: How it stands.
        product: What of the catalog it is a copy of.
        features: What may be used, with the value of each.
        ends_at, trial_ends_at, paid_until: When these end, where they do.
    """

    request_id: str | None
    actor: str | None
    reason: str | None
    entitlement: str
    kind: str
    status: str
    product: str | None
    features: dict[str, bool | int | str]
    ends_at: str | None
    trial_ends_at: str | None
    paid_until: str | None


class AlertData(Struct, frozen=True, kw_only=True):
    """A threshold that was crossed; which of the fields are there depends on `on`.

    Attributes:
        alert: What the alert is called.
        on: What it measures.
        threshold: Units as a decimal string, percent or days.
        value: What was measured, in the same.
        available: Free units of the wallet.
        budget, node: The budget, and which of its nodes.
        grant_id, expires_at, units: The grant that expires soon, when, and what is left of it.
    """

    alert: str
    on: str
    wallet: str
    threshold: str
    value: str
    available: str
    budget: str | None = None
    node: str | None = None
    grant_id: str | None = None
    expires_at: str | None = None
    units: str | None = None


class PaymentData(Struct, frozen=True, kw_only=True):
    """Money: paid or not, given back, withheld. Units are decimal strings.

    Attributes:
        provider: Who took it, such as "stripe".
        payment: The provider's id of it; of a subscription's, of the invoice.
        subscription: The provider's id of the subscription that it is for.
        product: What of the catalog it is for; of a subscription's, the plan.
        units: What it brings; null where a period or a time pass is paid.
        amount: In the currency's smallest unit: what was paid or was to be, what this refund gives
            back, what this dispute is about; null where the provider does not say.
        refund, dispute: The provider's id of the one that it is about.
        state: How that one stands: "pending", "done" or "failed"; "inquiry", "open", "won" or
            "lost".
        reason: Why it failed, in the provider's word.
        taken, shortfall: Units that were taken back of the payment by now, and that were demanded
            and not there; null of a subscription's, whose grants tell it each by itself.
        refused: Why the ledger could not follow, such as "account_closed".
    """

    provider: str
    payment: str | None
    subscription: str | None = None
    product: str | None = None
    units: str | None = None
    amount: int | None = None
    currency: str | None = None
    refund: str | None = None
    dispute: str | None = None
    state: str | None = None
    reason: str | None = None
    taken: str | None = None
    shortfall: str | None = None
    refused: str | None = None


class TopUpData(Struct, frozen=True, kw_only=True):
    """An attempt to top an account up; when it is paused, the last one.

    Attributes:
        wallet: The kind of credits.
        threshold: Units; at or below it the account is topped up.
        target: Up to how many units.
        attempt: Its number, of this account and wallet.
        product: The pack that is bought.
        amount: What is charged, in the currency's smallest unit.
        payment: The provider's id of the payment, where there is one.
        reason: Why it failed or is paused, in one word.
        declined: How many were declined since one was paid.
        not_before: When the next attempt may be, where it has to wait.
    """

    wallet: str
    threshold: str
    target: str
    attempt: int
    product: str | None
    amount: int | None
    currency: str | None
    payment: str | None
    reason: str | None
    declined: int
    not_before: str | None


class EndpointData(Struct, frozen=True, kw_only=True):
    """An endpoint that nothing is sent to any more, and why."""

    endpoint: str
    url: str
    reason: str


class Payload(Struct, frozen=True, kw_only=True):
    """An event as it is sent.

    Attributes:
        id: The same at every attempt, and unlike every other's.
        type: One of the catalog.
        account: Whose it is; null where it is about the project.
        project: The project.
        mode: "live" or "test".
        seq: Its place in the account's history: what has a higher one happened later. Of an event
            that no entry makes, the last entry that was there before it.
        occurred_at: When it was recorded, ISO 8601.
        data: What the type says it is.
    """

    id: str
    type: str
    account: str | None
    project: str
    mode: str
    seq: int
    occurred_at: str
    data: Any  # of the shape that the catalog names for the type


class EventType(NamedTuple):
    """A type of events.

    Attributes:
        topic: What it is called.
        kinds: The kinds of entries that make it; none where something else does.
        shape: The struct of its data.
        summary: When it happens, in a sentence.
        fill: Makes the data of an entry, on the account after it.
    """

    topic: str
    kinds: tuple[str, ...]
    shape: type[Struct]
    summary: str
    fill: Callable[[Entry, Account, int], Struct] | None = None


def _moved(entry: Entry, scale: int) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "actor": entry.actor,
        "reason": entry.reason,
        "wallet": entry.wallet,
        "units": show_units(entry.units, scale),
        "available": show_units(entry.available, scale),
        "held": show_units(entry.held, scale),
    }


def _grant(entry: Entry, account: Account, scale: int) -> GrantData:
    name = entry.opens[0].id if entry.opens else entry.ref or ""
    live = account.grants.get(name)
    terms = entry.opens[0] if entry.opens else live.terms if live else None
    ends = None if terms is None or terms.expires_at is None else show_instant(terms.expires_at)
    return GrantData(
        grant_id=name,
        category=terms.category if terms else None,
        source=terms.source if terms else None,
        expires_at=ends,
        remaining=show_units(live.remaining if live else 0, scale),
        **_moved(entry, scale),
    )


def _usage(entry: Entry, _: Account, scale: int) -> UsageData:
    return UsageData(
        hold_id=entry.ref,
        operation=entry.operation,
        model=entry.model,
        tags=entry.tags or {},
        shortfall=show_units(entry.shortfall, scale),
        final=entry.final or entry.kind == "consume",
        **_moved(entry, scale),
    )


def _hold(entry: Entry, _: Account, scale: int) -> HoldData:
    return HoldData(
        hold_id=entry.ref or entry.request_id or "",
        operation=entry.operation,
        model=entry.model,
        tags=entry.tags or {},
        expires_at=None if entry.deadline is None else show_instant(entry.deadline),
        **_moved(entry, scale),
    )


def _refund(entry: Entry, _: Account, scale: int) -> RefundData:
    return RefundData(charge=entry.ref or "", operation=entry.operation, **_moved(entry, scale))


def _adjustment(entry: Entry, _: Account, scale: int) -> Moved:
    return Moved(**_moved(entry, scale))


def _standing(entry: Entry, _: Account, __: int) -> AccountData:
    return AccountData(request_id=entry.request_id, actor=entry.actor, reason=entry.reason)


def _entitlement(entry: Entry, _: Account, __: int) -> EntitlementData:
    held = entry.entitlement
    assert held is not None

    def when(at: int | None) -> str | None:
        return None if at is None else show_instant(at)

    return EntitlementData(
        request_id=entry.request_id,
        actor=entry.actor,
        reason=entry.reason,
        entitlement=held.name,
        kind=held.kind,
        status=held.status,
        product=held.product,
        features=held.features,
        ends_at=when(held.ends_at),
        trial_ends_at=when(held.trial_ends_at),
        paid_until=when(held.paid_until),
    )


# The order is that of the documentation. Whoever adds a kind of entry that is told adds it here.
TYPES: tuple[EventType, ...] = (
    EventType("grant.created", ("grant",), GrantData, "Units were granted.", _grant),
    EventType("grant.begun", ("grant_activated",), GrantData, "A grant took effect.", _grant),
    EventType(
        *("grant.renewed", ("grant_renewed",), GrantData, "A recurring grant came again.", _grant)
    ),
    EventType(
        *("grant.expired", ("grant_expired",), GrantData, "What was left of a grant ended.", _grant)
    ),
    EventType("grant.voided", ("void",), GrantData, "What was left was cancelled.", _grant),
    EventType(
        *("usage.consumed", ("consume", "settle"), UsageData, "Units were charged."),
        _usage,
    ),
    EventType("hold.opened", ("hold",), HoldData, "Units were reserved.", _hold),
    EventType("hold.released", ("release",), HoldData, "A hold was given back.", _hold),
    EventType("hold.expired", ("hold_expired",), HoldData, "A hold's time ran out.", _hold),
    EventType("hold.in_doubt", ("in_doubt",), HoldData, "Nobody knows what came of it.", _hold),
    EventType("refund.created", ("refund",), RefundData, "Units of a charge came back.", _refund),
    EventType("balance.adjusted", ("adjust",), Moved, "A balance was corrected.", _adjustment),
    EventType("account.frozen", ("freeze",), AccountData, "Nothing new may be taken.", _standing),
    EventType("account.unfrozen", ("unfreeze",), AccountData, "A freeze ended.", _standing),
    EventType("account.closed", ("close",), AccountData, "The account was closed.", _standing),
    EventType(
        *("entitlement.updated", ("entitlement",), EntitlementData),
        *("An entitlement was given or changed.", _entitlement),
    ),
    EventType(
        *("entitlement.ended", ("entitlement_ended",), EntitlementData),
        *("An entitlement ended.", _entitlement),
    ),
    EventType("payment.succeeded", (), PaymentData, "Money for the account has come."),
    EventType("payment.failed", (), PaymentData, "A charge was declined, or an invoice not paid."),
    EventType("payment.refunded", (), PaymentData, "A part or all of it goes back."),
    EventType("payment.refund_failed", (), PaymentData, "A refund did not reach its receiver."),
    EventType("payment.disputed", (), PaymentData, "A bank asks about a payment, or withholds it."),
    EventType("payment.dispute_closed", (), PaymentData, "A dispute was won or lost."),
    EventType("topup.started", (), TopUpData, "An account runs low and is charged."),
    EventType("topup.succeeded", (), TopUpData, "The charge was paid; the units are there."),
    EventType("topup.failed", (), TopUpData, "The charge was declined, or never arrived."),
    EventType("topup.paused", (), TopUpData, "Nothing more is charged until it is resumed."),
    EventType("alert.balance", (), AlertData, "Free units fell below a threshold."),
    EventType("alert.percent", (), AlertData, "Free units fell below a share of the granted."),
    EventType("alert.days_left", (), AlertData, "At this pace, units last for few days."),
    EventType("alert.depleted", (), AlertData, "Nothing is free any more."),
    EventType("alert.budget", (), AlertData, "A share of a budget was spent."),
    EventType("alert.expiring", (), AlertData, "A grant expires soon."),
    EventType("alert.recovered", (), AlertData, "What an alert told of is over."),
    EventType("endpoint.disabled", (), EndpointData, "Nothing is sent to an endpoint any more."),
)
TOPICS = frozenset(found.topic for found in TYPES)
_BY_KIND = {kind: found for found in TYPES for kind in found.kinds}


def apply_told(watch: Rules, owner: bytes, account: Account, entry: Entry) -> list[Event]:
    """Apply an entry to its account, and return what is to be told of it."""
    alerting = any(topic.startswith("alert.") for topic in watch.topics)
    measured = alerting and (watch.alerts or account.alerts or entry.alert is not None)
    before = alerts.levels(account, watch.alerts, entry) if measured else {}
    apply(account, entry)
    told: list[tuple[str, Struct]] = []
    kind = _BY_KIND.get(entry.kind)
    if kind is not None and kind.fill is not None and kind.topic in watch.topics:
        told.append((kind.topic, kind.fill(entry, account, watch.scale)))
    if measured:
        after = alerts.levels(account, watch.alerts, entry)
        told += [_crossing(account, one, watch.scale) for one in alerts.crossed(before, after)]
    if entry.kind == "grant_expiring":
        told.append(("alert.expiring", _expiring(account, entry, watch)))
    told = [one for one in told if one[0] in watch.topics]
    return [
        event(watch.project, owner, entry.seq, n, topic, data, account.account, entry.at)
        for n, (topic, data) in enumerate(told)
    ]


def event(
    project: str,
    owner: bytes,
    seq: int,
    n: int,
    topic: str,
    data: Struct,
    account: str | None,
    at: int,
    *,
    after: int | None = None,
) -> Event:
    """Return an event with what is sent of it.

    Args:
        project: The name of the ledger, which says the mode as well.
        owner: The key of the account; of what no entry makes, one that no account can have.
        seq: Its place in the account's history, or among what was told under that key.
        n: Which one of that entry.
        topic: Its type.
        data: Its data, of the shape of that type.
        account: Whose it is.
        at: When it was recorded.
        after: The account's last entry, where no entry makes it.
    """
    assert topic in TOPICS, f"{topic} is not in the catalog"
    payload = Payload(
        id=id_of(owner, seq, n),
        type=topic,
        account=account,
        project=project.removesuffix(_TEST),
        mode="test" if project.endswith(_TEST) else "live",
        seq=seq if after is None else after,
        occurred_at=show_instant(at),
        data=data,
    )
    return Event(owner, seq, n, project, topic, msgspec.json.encode(payload).decode(), at)


def id_of(owner: bytes, seq: int, n: int) -> str:
    """Return the id of an event, made from its place: the same whoever makes it, whenever."""
    return f"{ID}{owner.hex()}_{seq}_{n}"


def place_of(event_id: str) -> tuple[bytes, int, int]:
    """Return the place of an event in the outbox.

    Raises:
        InvalidInput: The id is none of ours.
    """
    parts = event_id.removeprefix(ID).split("_")
    try:
        owner, seq, n = bytes.fromhex(parts[0]), int(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        owner, seq, n = b"", 0, 0
    if id_of(owner, seq, n) != event_id or len(owner) != len(bytes(16)) or seq >= 2**63:
        raise InvalidInput("that is not the id of an event, such as evt_..._12_0")
    return owner, seq, n


def _crossing(
    account: Account, one: tuple[alerts.Level, bool], scale: int
) -> tuple[str, AlertData]:
    level, beyond = one
    terms = level.terms
    in_units = terms.on in ("balance", "depleted")

    def shown(amount: int) -> str:
        return show_units(amount, scale) if in_units else str(amount)

    data = AlertData(
        alert=terms.name,
        on=terms.on,
        wallet=terms.wallet,
        threshold=shown(terms.threshold),
        value=shown(level.value),
        available=show_units(account.wallet(terms.wallet).available, scale),
        budget=level.budget,
        node=level.node or None,
    )
    return (f"alert.{terms.on}" if beyond else "alert.recovered"), data


def _expiring(account: Account, entry: Entry, watch: Rules) -> AlertData:
    grant = account.grants[entry.ref or ""]
    assert grant.terms.expires_at is not None
    days = (grant.terms.expires_at - entry.effective_at) // DAY
    named = [alert.terms for alert in account.alerts.values()]
    terms = [t for t in (*named, *watch.alerts) if t.on == "expiring" and t.threshold == days]
    return AlertData(
        alert=terms[0].name if terms else "",
        on="expiring",
        wallet=entry.wallet,
        threshold=str(days),
        value=str(max(grant.terms.expires_at - entry.at, 0) // DAY),
        available=show_units(entry.available, watch.scale),
        grant_id=grant.terms.id,
        expires_at=show_instant(grant.terms.expires_at),
        units=show_units(grant.remaining, watch.scale),
    )


def schemas() -> Iterator[tuple[EventType, dict[str, Any]]]:
    """Yield every type with the JSON Schema of its data."""
    for found in TYPES:
        yield found, msgspec.json.schema(found.shape)


__all__ = ["TOPICS", "TYPES", "Payload", "apply_told", "event", "id_of", "place_of", "schemas"]
