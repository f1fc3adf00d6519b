"""What a paid period of a subscription brought, and what of it is demanded back.

Money that goes back is a part of what was paid for a period, so the same part of the units that
the period brought is demanded back: of each grant that it brought, of none of another period. What
was carried over from it is taken where it is now; it is used first, so what is left of it is known.
All of this is pure: `subscribing` carries it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tillroll.ledger.moves import parts_of, unused
from tillroll.ledger.types import HOUR, SECOND
from tillroll.payments.facts import demanded

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from tillroll.ledger.types import Account, Entry, Terms
    from tillroll.payments.facts import Payment
    from tillroll.payments.provider import InvoiceTold

SHIFT = 2 * HOUR  # what a day's saving time may move a period of the account's own calendar
SHARES_MAX = 120  # of one subscription: as many as invoices, about 250 bytes each


class Share(Struct, frozen=True, omit_defaults=True):
    """Units that a paid period brought by one grant, and how far they were taken back.

    Attributes:
        invoice: What paid for the period.
        grant: The grant's id.
        series: The recurring grant that it is of.
        account: Whose it is: the subscription may have gone to another one since.
        units: What it brought, without what was carried over; once another plan's grant took its
            place, what of that was carried over.
        began: When the grant began, in microseconds since 1970.
        until: When its units end, or those of the grant that took its place.
        lines: The grants that hold what was given back.
        taken: Units that were taken back and not given back since; below zero, so many more were
            given back than another plan's grant would have carried over.
        short: Units that are demanded back and were not there any more.
        taken_at: When units were last taken back.
        refused: Whether the ledger could not follow; then it is left alone.
    """

    invoice: str
    grant: str
    series: str
    account: str
    units: int
    wallet: str
    began: int
    until: int | None
    priority: int = 0
    applies_to: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    taken: int = 0
    short: int = 0
    taken_at: int = 0
    refused: bool = False


class Take(NamedTuple):
    """Units to take of a grant, of those that had come with another one."""

    line: str
    origin: str
    units: int


Shares = dict[str, Share]


def paid_for(
    invoices: Mapping[str, InvoiceTold], returns: Iterable[Payment], invoice: str
) -> tuple[int, int]:
    """Return what was paid for a period, and how much of it went back, at most that.

    What was paid for changes within the period counts with it.
    """
    base = invoices.get(invoice)
    if base is None or not base.paid:
        return 0, 0
    together = {
        one.id: one.amount
        for one in invoices.values()
        if one.id == base.id
        or (one.part and one.paid and base.period_start <= one.period_start < base.period_end)
    }
    paid = sum(together.values())
    # A refund of what is disputed as well is the same money: no more goes back than came.
    asked = dict.fromkeys(together, 0)
    for one in returns:
        if one.invoice in together:
            asked[one.invoice] += demanded(one)
    return paid, sum(min(asked[name], amount) for name, amount in together.items())


def is_returned(
    invoices: Mapping[str, InvoiceTold], returns: Iterable[Payment], invoice: str
) -> bool:
    """Return whether all the money for a period went back."""
    paid, back = paid_for(invoices, returns, invoice)
    return back == paid > 0


def owed(invoices: Mapping[str, InvoiceTold], returns: Iterable[Payment], share: Share) -> int:
    """Return how many units of a share are demanded back, in all: rounded down."""
    paid, back = paid_for(invoices, returns, share.invoice)
    return share.units * back // paid if paid else 0


def brought(
    shares: Shares, invoices: Mapping[str, InvoiceTold], account: Account, renewed: Iterable[Entry]
) -> Shares:
    """Return the shares with what these renewals brought for periods that are paid.

    Args:
        shares: What is known, by the grants that brought it.
        invoices: The periods of the subscription.
        account: Whose renewals they are, as it stands after them.
        renewed: The entries that granted, in any order.
    """
    for entry in sorted(renewed, key=lambda one: one.seq):
        terms, recurring = entry.opens[0], entry.recurring
        invoice = _invoice_of(invoices, terms.effective_at)
        if invoice is None or terms.id in shares or recurring is None:
            continue
        share = _share(invoice, account.account, recurring.units, terms)
        others = [*shares.values()]
        for one in others:
            if _replaces(one, share):
                share = _replaced(share, one.until, account, 0)
        most = recurring.rollover_max
        others = [
            _replaced(one, share.until, account, most) if _replaces(share, one) else one
            for one in others
        ]
        shares = _bounded(one for one in (*others, share) if one.units or one.taken)
    return shares


def _bounded(shares: Iterable[Share]) -> Shares:
    """Return no more shares than are kept: what was not taken of is dropped first, the oldest.

    One that was taken of and forgotten would be taken of once more.
    """
    worth = sorted(shares, key=lambda one: (bool(one.taken or one.short), one.began, one.grant))
    kept = sorted(worth[-SHARES_MAX:], key=lambda one: (one.began, one.grant))
    return {one.grant: one for one in kept}


def _share(invoice: InvoiceTold, account: str, units: int, terms: Terms) -> Share:
    return Share(
        invoice=invoice.id,
        grant=terms.id,
        series=terms.recurring or "",
        account=account,
        units=units,
        wallet=terms.wallet,
        began=terms.effective_at,
        until=terms.expires_at,
        priority=terms.priority,
        applies_to=terms.applies_to,
    )


def _replaces(share: Share, other: Share) -> bool:
    """Return whether a grant took the place of another within the period: the plan was changed."""
    same = (other.account, other.series, other.invoice) == (
        share.account,
        share.series,
        share.invoice,
    )
    return same and (other.until is None or other.until > share.began >= other.began)


def _replaced(share: Share, until: int | None, account: Account, most: int) -> Share:
    """Return a share whose grant another one took the place of: what was carried over is left.

    What had been taken before, or given back since, counts as far as it would have been carried
    over, too: so it is the same whether money went back before the plan was changed or after.

    Args:
        share: As it stood.
        until: When the units of the other grant end.
        account: Whose they are, as it stands after the change.
        most: How many units the other grant carries over at the most.
    """
    carried = sum(
        parts_of(grant).get(share.grant, 0)
        for line, grant in account.grants.items()
        if line != share.grant
    )
    there = carried + sum(
        account.grants[line].remaining for line in share.lines if line in account.grants
    )
    units = min(share.units, max(most, carried), there + share.taken)
    return replace(share, units=units, taken=units - there, short=0, until=until)


def _invoice_of(invoices: Mapping[str, InvoiceTold], at: int) -> InvoiceTold | None:
    """Return the invoice that paid for the period in which a grant began."""
    paid = [
        one
        for one in invoices.values()
        if one.paid and not one.part and one.period_start - SHIFT <= at < one.period_end
    ]
    return max(paid, key=lambda one: (one.period_start, one.id), default=None)


def unnoted(known: Container[str], entitlement: str, account: Account) -> list[str]:
    """Return the grants of an entitlement whose units are there and that are not known.

    The clock may have made them since, and they may have been carried over; they stay when the
    entitlement has ended.
    """
    found = {
        one.current: None
        for one in account.recurring.values()
        if one.terms.entitlement == entitlement and one.current
    }
    for grant in account.grants.values():
        if (grant.terms.recurring or "").startswith(f"{entitlement}/"):
            found |= dict.fromkeys(parts_of(grant))
    return [one for one in found if one and one not in known]


def takes(account: Account, share: Share, units: int) -> tuple[Share, list[Take]]:
    """Return where to take units of a share: what was given back first, then what it brought.

    What was short before is taken as well, if it is there now: a late renewal has carried it over.
    The last of them asks for what is not there as well, so that an entry says it.

    Returns:
        The share without what of its shortfall is taken now, and where to take.
    """
    found = []
    units += share.short
    where = [(line, line) for line in reversed(share.lines)]
    where += [(line, share.grant) for line in account.grants]
    for line, origin in where:
        grant = account.grants.get(line)
        left = 0 if grant is None else unused(parts_of(grant), grant.remaining).get(origin, 0)
        part = min(units, left)
        if part:
            found.append(Take(line, origin, part))
            units -= part
    missing = max(units - share.short, 0)
    if missing:
        last = found.pop() if found else Take(share.grant, share.grant, 0)
        found.append(last._replace(units=last.units + missing))
    return replace(share, short=min(units, share.short)), found


def life_of(share: Share) -> int | None:
    """Return how long what is given back is good for: as long as it would have been."""
    return None if share.until is None else max(share.until - share.taken_at, SECOND)


def counted(share: Share, entry: Entry) -> Share:
    """Return a share with what an entry took of it or gave back."""
    if entry.kind != "void":
        line = entry.request_id or ""
        return replace(share, taken=share.taken - entry.units, lines=(*share.lines, line))
    return replace(
        share,
        taken=share.taken + entry.units,
        short=share.short + entry.shortfall,
        taken_at=entry.at,
    )


__all__ = [
    "SHIFT",
    "Share",
    "Take",
    "brought",
    "counted",
    "is_returned",
    "life_of",
    "owed",
    "paid_for",
    "takes",
    "unnoted",
]
