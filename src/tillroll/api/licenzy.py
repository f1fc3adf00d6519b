"""The routes of Licenzy's runtime API, so that a client written for it works unchanged.

Theirs are the shapes, the words and the statuses: one word for an error, 409 where units are
missing. A subject is an account, a usage pack is a grant of the wallet `credits`.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tillroll.api.calls import Answer, Call, answered
from tillroll.api.reads import Query
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


def problem(error: TillrollError) -> Answer:
    """Return an error in their words."""
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
    answer = answered(
        {
            "ok": True,
            "consumed": _number(receipt.units),
            "usage_remaining": _number(max(receipt.available, Decimal(0))),
        }
    )
    if receipt.replayed:
        return answer._replace(headers=((b"idempotent-replayed", b"true"),))
    return answer


async def check(call: Call) -> Answer:
    """Say whether a subject has access now."""
    asked = call.parse(bodies.LicenzySubject)
    call.check_open(asked.subject_ref)
    found = await asyncio.to_thread(call.tenant.reads.balance, asked.subject_ref)
    return answered({"subject_ref": asked.subject_ref, "allowed": _has_access(found)})


async def access(call: Call) -> Answer:
    """Say what a subject has, and whether that is access."""
    call.query(Query)
    call.check_open(call.params[0])
    found = await asyncio.to_thread(call.tenant.reads.balance, call.params[0])
    return answered(
        {
            "subject_ref": found.account,
            "has_access": _has_access(found),
            "status": _status(found),
            "entitlements": _entitlements(found),
        }
    )


async def entitlements(call: Call) -> Answer:
    """List what a subject has."""
    call.query(Query)
    call.check_open(call.params[0])
    found = await asyncio.to_thread(call.tenant.reads.balance, call.params[0])
    return answered({"subject_ref": found.account, "entitlements": _entitlements(found)})


def _has_access(found: Balance) -> bool:
    return found.status == "open" and found.spendable > 0


def _status(found: Balance) -> str:
    if found.status != "open":
        return found.status
    return "active" if found.spendable > 0 else "inactive"


def _entitlements(found: Balance) -> list[dict[str, Any]]:
    return [
        {
            "kind": "usage_pack",
            "status": "active" if _usable(grant) else "inactive",
            "available": found.status == "open" and _usable(grant),
            "usage_total": _number(Decimal(grant["units"])),
            "usage_remaining": _number(Decimal(grant["remaining"])),
            "expires_at": grant["expires_at"],
            "entitlement_id": grant["id"],
        }
        for grant in found.grants
    ]


def _usable(grant: dict[str, Any]) -> bool:
    return not grant["scheduled"] and Decimal(grant["remaining"]) > 0


def _number(units: Decimal) -> int | float:
    """Return units as their clients read them: a number, whole where it is."""
    return int(units) if units == units.to_integral_value() else float(units)
