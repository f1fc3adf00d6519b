"""Why was this charged? The whole story of one id, from stored entries alone.

Everything here is re-derived: the arithmetic from the pinned price version, what each grant paid
from the postings, the hold's life from the entries that refer to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from tillroll.ledger.calendar import say_span, show_instant
from tillroll.ledger.entitlements import of_entry
from tillroll.ledger.moves import available_before, is_void, paid_lines
from tillroll.ledger.pricing import explain_price
from tillroll.ledger.types import (
    OVERDRAFT,
    TOPUP,
    AlertTerms,
    BudgetTerms,
    Entry,
    RecurringTerms,
    Refusal,
    Settings,
    Terms,
)
from tillroll.ledger.units import show_units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tillroll.ledger.pricing import PriceBook


class Facts(Struct):
    """What is known of one id: loaded by the read side, turned into words here."""

    account: str
    request_id: str
    root: Entry | Refusal
    acts: Sequence[Entry]
    terms: Mapping[str, Terms]
    replays: int
    last_replay_at: int
    prices: PriceBook
    scale: int
    metadata: str | None = None


def explain(facts: Facts) -> dict[str, object]:
    """Return the story as plain values; `sentences` says it in words."""
    if isinstance(facts.root, Refusal):
        return _explain_refusal(facts, facts.root)
    root = facts.root
    story = [root, *facts.acts]
    charged, refunded = _charged(story)
    return {
        "account": facts.account,
        "request_id": facts.request_id,
        "outcome": outcome_of(root, facts.acts),
        "charged": show_units(charged - refunded, facts.scale),
        "refunded": show_units(refunded, facts.scale),
        "wallet": root.wallet,
        "operation": root.operation,
        "actor": root.actor,
        "reason": root.reason,
        "recorded_at": show_instant(root.at),
        "effective_at": show_instant(root.effective_at),
        "price": _price(facts, story),
        "paid_by": _paid_by(facts, story),
        "available_before": show_units(available_before(root), facts.scale),
        "available_after": show_units(story[-1].available, facts.scale),
        "timeline": [_line(entry, facts.scale) for entry in story],
        "replays": facts.replays,
        "last_replay_at": show_instant(facts.last_replay_at) if facts.replays else None,
        "metadata": None if facts.metadata is None else msgspec.json.decode(facts.metadata),
        "sentences": _sentences(facts, root, story),
    }


def _explain_refusal(facts: Facts, refusal: Refusal) -> dict[str, object]:
    def units(amount: int | None) -> str | None:
        return None if amount is None else show_units(amount, facts.scale)

    when = show_instant(refusal.at)
    sentences = [
        f"Request {facts.request_id} of {facts.account} was refused on {when}: {refusal.message}.",
        "Nothing was charged.",
    ]
    if refusal.ways_out:
        sentences.append("What would help: " + "; ".join(w["text"] for w in refusal.ways_out) + ".")
    if facts.replays:
        sentences.append(_absorbed(facts))
    return {
        "account": facts.account,
        "request_id": facts.request_id,
        "outcome": "refused",
        "charged": "0",
        "refunded": "0",
        "operation": refusal.operation,
        "actor": refusal.actor,
        "reason": refusal.reason,
        "code": refusal.code,
        "message": refusal.message,
        "needed": units(refusal.needed),
        "available": units(refusal.available),
        "held": units(refusal.held),
        "tightest": refusal.tightest,
        "ways_out": list(refusal.ways_out),
        "details": refusal.details,
        "seq": refusal.seq,
        "recorded_at": show_instant(refusal.at),
        "replays": facts.replays,
        "last_replay_at": show_instant(facts.last_replay_at) if facts.replays else None,
        "sentences": sentences,
    }


def _charged(story: Sequence[Entry]) -> tuple[int, int]:
    """Return what was charged in all, and what was given back since."""
    charged = refunded = 0
    for entry in story:
        for posting in entry.postings:
            if posting.target == "used":
                charged += posting.units
            elif posting.source == "used":
                refunded += posting.units
    return charged, refunded


def outcome_of(root: Entry, acts: Sequence[Entry]) -> str:
    """Return the state of the thing that an entry made, after what acted on it, in one word."""
    if root.kind == "consume":
        return "charged"
    if root.kind != "hold":
        return root.kind
    state = "open"
    for entry in acts:
        if entry.kind == "in_doubt":
            state = "in_doubt"
        elif entry.final:
            state = {"settle": "settled", "release": "released"}.get(entry.kind, "expired")
    return state


def _price(facts: Facts, story: Sequence[Entry]) -> dict[str, object] | None:
    """Return the version, rule and arithmetic behind the amount that was charged."""
    charges = [e for e in story if e.price is not None and e.kind in ("consume", "settle")]
    priced = charges[-1] if charges else next((e for e in story if e.price is not None), None)
    if priced is None or priced.price is None:
        return None
    by = priced.price
    version = facts.prices.versions.get(by.version)
    root = story[0]
    lines = (
        []
        if version is None
        else explain_price(
            facts.prices,
            priced.operation or "",
            priced.meters or {},
            model=priced.model,
            attributes=priced.attributes or root.attributes,
            account_ref=facts.account,
            at=root.effective_at,
            version=by.version,
            scale=facts.scale,
        )
    )
    return {
        "version": by.version,
        "digest": version.digest if version else None,
        "applied_at": show_instant(version.applied_at) if version else None,
        "author": version.author if version else None,
        "rule": by.rule,
        "exact": format(by.exact, "f"),
        "arithmetic": list(lines),
    }


def _paid_by(facts: Facts, story: Sequence[Entry]) -> list[dict[str, object]]:
    """Return what each grant paid, in burn order, with what the grant is."""
    rows: list[dict[str, object]] = []
    for line, units in paid_lines(story).items():
        terms = facts.terms.get(line)
        row: dict[str, object] = {"grant": line, "units": show_units(units, facts.scale)}
        if terms is not None:
            row |= {
                "category": terms.category,
                "source": terms.source,
                "expires_at": None if terms.expires_at is None else show_instant(terms.expires_at),
            }
        else:
            assert line == OVERDRAFT, f"no entry granted {line}"
            row["category"] = "overdraft"
        rows.append(row)
    return rows


def _line(entry: Entry, scale: int) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "kind": entry.kind,
        "units": show_units(entry.units, scale),
        "shortfall": show_units(entry.shortfall, scale),
        "available": show_units(entry.available, scale),
        "held": show_units(entry.held, scale),
        "recorded_at": show_instant(entry.at),
        "effective_at": show_instant(entry.effective_at),
        "request_id": entry.request_id,
        "reason": entry.reason,
        "actor": entry.actor,
        "late": entry.late,
        "deadline": None if entry.deadline is None else show_instant(entry.deadline),
    }


_SAID = {
    "consume": "{units} {wallet} were charged",
    "hold": "{units} {wallet} were held",
    "extend": "the hold was prolonged until {deadline}",
    "settle": "{units} {wallet} were charged from the hold",
    "release": "the hold was released and {units} {wallet} went back",
    "in_doubt": "the outcome was marked as unknown; {units} {wallet} stay held until {deadline}",
    "hold_expired": "the hold's time ran out and {units} {wallet} went back",
    "refund": "{units} {wallet} were refunded",
    "grant": "{units} {wallet} were granted",
    "grant_activated": "{units} {wallet} became available",
    "grant_renewed": "{units} {wallet} were granted for the next period",
    "grant_expired": "{units} {wallet} expired",
    "void": "the {units} {wallet} that were left were taken out of issue",
    "grant_expiring": "it was told that {units} {wallet} expire on {deadline}",
    "void_part": "{units} {wallet} of what was left were taken out of issue",
    "adjust": "the balance was corrected by {units} {wallet}",
    "freeze": "the account was frozen",
    "unfreeze": "the account's freeze ended",
    "close": "the account was closed",
}
_PERIODS = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}
_SHORT = {
    "settle": "; {units} more were used than could be charged",
    "void": "; {units} more were asked for that were not there any more",
}


def _of_entitlement(entry: Entry) -> str:
    """Say what an entry did to an entitlement: how it stands from then on."""
    held = of_entry(entry)
    what = f"the {held.kind.replace('_', ' ')} {held.name!r}"
    if held.product is not None and held.product != held.name:
        what += f" on {held.product!r}"
    if held.version:
        what += f" (version {held.version} of the catalog)"
    if entry.kind == "entitlement_ended":
        return f"{what} ended"
    parts = [f"{what} is {held.status.replace('_', ' ')}"]
    if held.trial_ends_at is not None:
        parts.append(f"its trial ends at {show_instant(held.trial_ends_at)}")
    if held.paid_until is not None:
        parts.append(f"it is paid until {show_instant(held.paid_until)}")
    if held.ends_at is not None:
        parts.append(f"it ends at {show_instant(held.ends_at)}")
    if held.next is not None and held.next_at is not None:
        parts.append(f"it moves to {held.next.product!r} at {show_instant(held.next_at)}")
    return ", ".join(parts)


def _of_budget(terms: BudgetTerms, scale: int) -> str:
    if terms.cap is None:
        return f"the budget {terms.name!r} was removed"
    period = _PERIODS.get(terms.period) or f"in any {say_span(terms.window)}"
    said = f"the budget {terms.name!r} was set to {show_units(terms.cap, scale)} {terms.wallet}"
    match = ", ".join(f"{name}={value}" for name, value in terms.match.items())
    return f"{said} {period}" + (f" for {match}" if match else "")


def _of_recurring(terms: RecurringTerms, scale: int) -> str:
    if terms.stopped:
        return f"the recurring grant {terms.name!r} was stopped"
    every = terms.every if terms.count == 1 else f"{terms.count} {terms.every}s"
    said = (
        f"the recurring grant {terms.name!r} was set to {show_units(terms.units, scale)} "
        f"{terms.wallet} every {every}, counted from {terms.anchor}"
    )
    if terms.rollover_max:
        least, most = (show_units(n, scale) for n in (terms.rollover_min, terms.rollover_max))
        said += f", with {least} to {most} carried over"
    return said if terms.ends_at is None else f"{said}, until {show_instant(terms.ends_at)}"


def _of_alert(terms: AlertTerms, scale: int) -> str:
    if terms.on == TOPUP:
        return "it was set where the account is topped up"
    if terms.removed:
        return f"the alert {terms.name!r} was removed"
    level = show_units(terms.threshold, scale) if terms.on == "balance" else str(terms.threshold)
    said = f"the alert {terms.name!r} was set on {terms.on.replace('_', ' ')}"
    return said if terms.on == "depleted" else f"{said}, at {level}"


def _of_settings(settings: Settings) -> str:
    late = "may" if settings.late_settlement else "may not"
    return (
        f"the account's settings are: time zone {settings.time_zone}, a hold {late} be settled "
        f"after its deadline, usage may be told {say_span(settings.late_usage)} late and "
        f"{say_span(settings.early_usage)} ahead"
    )


def _governed(entry: Entry, scale: int) -> str | None:
    """Say what an entry changed of what may happen from then on; None where it is none such."""
    if entry.budget is not None:
        return _of_budget(entry.budget, scale)
    if entry.kind == "recurring" and entry.recurring is not None:
        return _of_recurring(entry.recurring, scale)
    if entry.alert is not None:
        return _of_alert(entry.alert, scale)
    if entry.settings is not None:
        return _of_settings(entry.settings)
    if entry.kind == "overdraft":
        return f"up to {show_units(entry.limit or 0, scale)} {entry.wallet} may be owed"
    return None


def _words(entry: Entry, scale: int) -> str:
    if entry.entitlement is not None:
        return _of_entitlement(entry)
    governed = _governed(entry, scale)
    if governed is not None:
        return governed
    kind = "void_part" if entry.kind == "void" and not is_void(entry) else entry.kind
    said = _SAID[kind].format(
        units=show_units(entry.units, scale),
        wallet=entry.wallet,
        deadline="" if entry.deadline is None else show_instant(entry.deadline),
    )
    if entry.opens and entry.opens[0].product is not None:
        terms = entry.opens[0]
        said += f" for {terms.product!r} (version {terms.version} of the catalog)"
    return said


def _sentences(facts: Facts, root: Entry, story: Sequence[Entry]) -> list[str]:
    """Say the story in words, one sentence an entry."""
    scale = facts.scale
    said = []
    for entry in story:
        words = _words(entry, scale)
        doing = f" for {entry.operation}" if entry.operation and entry is root else ""
        if entry.feature is not None:
            doing += f", which needs {entry.feature!r}"
        because = f" ({entry.reason})" if entry.reason else ""
        short = ""
        if entry.shortfall:
            short = _SHORT["void" if entry.kind == "void" else "settle"].format(
                units=show_units(entry.shortfall, scale)
            )
        # What the clock brought happened when it fell due, whenever it was booked or is looked at.
        when = show_instant(entry.effective_at if entry.request_id is None else entry.at)
        said.append(f"{when}: {words}{doing}{because}{short}.")
    charged, refunded = _charged(story)
    if root.kind in ("consume", "hold"):
        total = show_units(charged - refunded, scale)
        said.append(
            f"In all, {facts.account} paid {total} {root.wallet} for request {facts.request_id}."
        )
    if facts.replays:
        said.append(_absorbed(facts))
    return said


def _absorbed(facts: Facts) -> str:
    times = "once" if facts.replays == 1 else f"{facts.replays} times"
    return (
        f"The request was repeated {times}, last at {show_instant(facts.last_replay_at)}; "
        f"{'that' if facts.replays == 1 else 'the repeats'} changed nothing."
    )


__all__ = ["Facts", "explain", "outcome_of"]
