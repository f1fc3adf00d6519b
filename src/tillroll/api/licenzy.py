"""The routes of Licenzy's runtime API, so that a client written for it works unchanged.

Theirs are the shapes, the words and the statuses: one word for an error, 409 where units are
missing. A subject is an account, a usage pack is a grant of the wallet `credits`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tillroll.api.calls import Answer, Call, answered
from tillroll.api.reads import Query
from tillroll.ledger.entitlements import BRINGING
from tillroll.ledger.errors import TillrollError
from tillroll.wire import bodies, problems
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from tillroll.queries import Balance

# What theirs are called that we call otherwise, and the status that goes with it.
_WORDS = {
    "insufficient_units": ("insufficient_usage", 409),
    "budget_exceeded": ("insufficient_usage", 409),
    "idempotency_conflict": ("idempotency_conflict", 409),
    "idempotency_key_missing": ("missing_idempotency_key", 400),
    "invalid_input": ("invalid_request", 400),
}


def problem(error: TillrollError, path: str) -> Answer:
    """Return an error in their words.

    That payments are not set up is for whoever set the service up, so he is told all of it.
    """
    if isinstance(error, problems.PaymentsNotSetUp):
        whole = problems.document(error, path) | {"error": error.code}
        return Answer(render(whole), whole["status"])
    word, status = _WORDS.get(error.code, (error.code, problems.status_of(error)))
    headers = problems.headers_of(error)
    return Answer(
        render({"error": word}),
        status,
        tuple((name.encode(), value.encode()) for name, value in headers.items()),
    )


async def consume(call: Call) -> Answer:
    """Take units of a subject's usage packs, once for each Idempotency-Key."""
    asked = call.parse(bodies.LicenzyConsume)
    call.check_open(asked.subject_ref)
    receipt = await call.tenant.ledger.consume(
        asked.subject_ref, units=asked.units, request_id=call.request_id(), actor=call.actor()
    )
    return answered(
        {
            "ok": True,
            "consumed": _number(receipt.units),
            "usage_remaining": _number(max(receipt.available, Decimal(0))),
        },
        replayed=receipt.replayed,
    )


async def check(call: Call) -> Answer:
    """Say whether a subject has access now; who asks about something in particular hears why."""
    asked = call.parse(bodies.LicenzySubject)
    call.check_open(asked.subject_ref)
    given = bodies.arguments(asked)
    subject = given.pop("subject_ref")
    found = await call.tenant.ledger.access(subject, **given)
    answer = {"subject_ref": subject, "allowed": found.allowed}
    if given:
        shown = found.to_dict()
        answer |= {name: shown[name] for name in _WHY}
    return answered(answer)


_WHY = ("reason", "message", "value", "tightest", "ends_at", "ways_out")


async def access(call: Call) -> Answer:
    """Say what a subject has, and whether that is access."""
    call.query(Query)
    subject = call.params[0]
    call.check_open(subject)
    found = await call.tenant.ledger.access(subject)
    balance = await call.tenant.ledger.balance(subject)
    inactive = balance.status if balance.status != "open" else "inactive"
    return answered(
        {
            "subject_ref": subject,
            "has_access": found.allowed,
            "status": "active" if found.allowed else inactive,
            "entitlements": await _entitlements(call, balance),
        }
    )


async def entitlements(call: Call) -> Answer:
    """List what a subject has."""
    call.query(Query)
    subject = call.params[0]
    call.check_open(subject)
    balance = await call.tenant.ledger.balance(subject)
    return answered({"subject_ref": subject, "entitlements": await _entitlements(call, balance)})


async def _entitlements(call: Call, balance: Balance) -> list[dict[str, Any]]:
    """Return subscriptions, time passes and features, then every grant as a usage pack."""
    is_open = balance.status == "open"
    held = await call.tenant.ledger.entitlements(balance.account)
    rights: list[dict[str, Any]] = [
        {
            "kind": one["kind"],
            "status": one["status"],
            "available": is_open and one["status"] in BRINGING,
            "expires_at": one["ends_at"],
            "entitlement_id": one["name"],
            **({} if one["product"] is None else {"product_code": one["product"]}),
        }
        for one in held
        if one["kind"] != "usage_pack"
    ]
    sold = {one["name"]: one["product"] for one in held if one["kind"] == "usage_pack"}
    return rights + [
        {
            "kind": "usage_pack",
            "status": "active" if _usable(grant) else "inactive",
            "available": is_open and _usable(grant),
            "usage_total": _number(Decimal(grant["units"])),
            "usage_remaining": _number(Decimal(grant["remaining"])),
            "expires_at": grant["expires_at"],
            "entitlement_id": grant["id"],
            **({"product_code": sold[grant["id"]]} if grant["id"] in sold else {}),
        }
        for grant in balance.grants
    ]


def _usable(grant: dict[str, Any]) -> bool:
    return not grant["scheduled"] and Decimal(grant["remaining"]) > 0


def _number(units: Decimal) -> int | float:
    """Return units as their clients read them: a number, whole where it is."""
    return int(units) if units == units.to_integral_value() else float(units)
