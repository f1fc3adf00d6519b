"""The refusals in words and figures: what is missing, what is in the way, what would help."""

from __future__ import annotations

from tillroll.ledger import budgets, calendar
from tillroll.ledger.book import Case
from tillroll.ledger.burn import spendable
from tillroll.ledger.commands import Work
from tillroll.ledger.moves import ending_of
from tillroll.ledger.products import is_on
from tillroll.ledger.types import (
    Entry,
    Refusal,
)
from tillroll.ledger.units import show_units

WAYS_MAX = 20  # of a refusal that could name as many as the catalog has


def refuse(case: Case, code: str, message: str, **facts: object) -> Refusal:
    """Return a refusal of this request with its code, its message and what else it knows."""
    command = case.request.command
    return Refusal(
        code=code,
        message=message,
        at=case.at,
        seq=case.account.seq,
        request_id=case.request.request_id,
        fingerprint=case.request.fingerprint,
        operation=command.operation if isinstance(command, Work) else None,
        reason=command.reason,
        actor=case.request.actor,
        **facts,  # type: ignore[arg-type]  # the callers name Refusal's own fields
    )


def not_entitled(case: Case, feature: str) -> Refusal:
    """Refuse work whose feature no entitlement brings, and say which would."""
    ways = [
        {
            "kind": "resume",
            "text": f"the entitlement {held.name!r} is paused; resuming it would help",
            "entitlement": held.name,
        }
        for held in case.account.entitlements.values()
        if held.status == "paused" and is_on(held.features.get(feature))
    ]
    for kind, name in case.rules.prices.products.bringing(feature):
        text = f"{'subscribe to the plan' if kind == 'plan' else 'buy the pass'} {name!r}"
        ways.append({"kind": kind, "text": text, "product": name})
    return refuse(
        case,
        "not_entitled",
        f"no entitlement of the account brings {feature!r}",
        tightest=f"feature {feature}",
        ways_out=tuple(ways[:WAYS_MAX]),
        details={"feature": feature},
    )


def no_entitlement(case: Case, name: str) -> Refusal:
    """Refuse to change or end what the account does not have."""
    return refuse(
        case,
        "entitlement_not_found",
        f"the account has no entitlement {name!r}",
        details={"known": ", ".join([*case.account.entitlements][:WAYS_MAX])},
    )


def no_hold(case: Case, hold_id: str) -> Refusal:
    """Refuse what names a hold that never was."""
    return refuse(case, "hold_not_found", f"the account has no hold {hold_id!r}")


def not_open(case: Case, hold_id: str) -> Refusal:
    """Refuse what needs an open hold, and say what became of it."""
    ending = ending_of(case.story(hold_id))
    if ending is None:
        return no_hold(case, hold_id)
    if ending.kind == "hold_expired":
        return hold_expired(case, ending)
    return finalized(case, ending)


def finalized(case: Case, ending: Entry) -> Refusal:
    """Refuse to act on a hold that was settled or released."""
    state = "settled" if ending.kind == "settle" else "released"
    return refuse(
        case,
        "hold_finalized",
        f"the hold was {state} before",
        details={"state": state, "by_seq": str(ending.seq), "by": ending.request_id or "clock"},
    )


def hold_expired(case: Case, ending: Entry) -> Refusal:
    """Refuse to act on a hold whose deadline passed, and say how to recover."""
    when = calendar.show_instant(ending.effective_at)
    return refuse(
        case,
        "hold_expired",
        f"the hold expired at {when} and its units went back",
        details={"state": "expired", "by_seq": str(ending.seq), "expired_at": when},
        ways_out=(
            {
                "kind": "consume",
                "text": "if the work was done, consume under an id made from the hold's",
            },
        ),
    )


def exceeds_hold(case: Case, units: int, held: int) -> Refusal:
    """Refuse to settle more than is held, or was held before the hold expired."""
    asked, there = (show_units(n, case.rules.scale) for n in (units, held))
    return refuse(
        case,
        "settle_exceeds_hold",
        f"{asked} to be settled, {there} held",
        needed=units,
        available=held,
        held=held,
        tightest="hold",
        ways_out=({"kind": "policy", "text": "settle with above='available'"},),
    )


def exceeds_charge(case: Case, units: int, left: int) -> Refusal:
    """Refuse to give back more than a charge has left, after what was given back before."""
    asked, there = (show_units(n, case.rules.scale) for n in (units, left))
    return refuse(
        case,
        "refund_exceeds_charge",
        f"{asked} to be refunded, {there} left of the charge"
        if left
        else "nothing is left of the charge",
        needed=units,
        available=left,
        tightest="charge",
    )


def over_budget(case: Case, tight: budgets.Room, units: int, wallet: str) -> Refusal:
    """Refuse what a budget has no room for: which one, how much is left, when it resets."""
    scale = case.rules.scale
    resets = (
        "" if tight.resets_at >= calendar.INSTANT_MAX else calendar.show_instant(tight.resets_at)
    )
    ways = [{"kind": "raise", "text": f"an operator may raise the budget {tight.budget!r}"}]
    if resets:
        ways.insert(0, {"kind": "wait", "text": f"the budget resets at {resets}", "until": resets})
    if tight.left:
        text = show_units(tight.left, scale)
        ways.insert(0, {"kind": "less", "text": f"{text} would fit", "units": text})
    return refuse(
        case,
        "budget_exceeded",
        f"budget {tight.budget!r} has {show_units(tight.left, scale)} of "
        f"{show_units(tight.cap, scale)} left, {show_units(units, scale)} needed",
        needed=units,
        available=tight.left,
        held=case.account.wallet(wallet).held,
        tightest=f"budget {tight.budget}",
        details={
            "budget": tight.budget,
            "node": tight.node,
            "cap": show_units(tight.cap, scale),
            "spent": show_units(tight.spent, scale),
            "resets_at": resets,
        },
        ways_out=tuple(ways),
    )


def insufficient(
    case: Case, units: int, wallet: str, operation: str | None, *, free: int | None = None
) -> Refusal:
    """Refuse what the account cannot pay: what is missing, and the ways out."""
    account = case.account
    scale = case.rules.scale
    line = account.wallet(wallet)
    may_owe = 0
    if free is None:
        may_owe = line.overdraft_limit
        free = spendable(account, wallet, operation, case.at)
    beyond = max(-line.overdraft - may_owe, 0)  # a grant repays this first
    missing = show_units(units - free + beyond, scale)
    ways = [{"kind": "top_up", "text": f"grant {missing} more", "units": missing}]
    if free > 0:
        less = show_units(free, scale)
        ways.append({"kind": "less", "text": f"{less} would fit", "units": less})
    ends = min((h.deadline for h in account.holds.values() if h.wallet == wallet), default=None)
    if ends is not None:
        until = calendar.show_instant(ends)
        ways.append(
            {"kind": "wait", "text": f"a hold ends by {until} at the latest", "until": until}
        )
    begins = [g.terms for g in account.grants.values() if g.scheduled and g.terms.wallet == wallet]
    if begins:
        until = calendar.show_instant(min(terms.effective_at for terms in begins))
        ways.append({"kind": "wait", "text": f"a grant begins at {until}", "until": until})
    return refuse(
        case,
        "insufficient_units",
        f"{show_units(units, scale)} {wallet} needed, {show_units(max(free, 0), scale)} available",
        needed=units,
        available=free,
        held=account.wallet(wallet).held,
        tightest=wallet,
        ways_out=tuple(ways),
    )
