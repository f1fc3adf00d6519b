"""Entitlements as they stand on an account: their periods, what they bring, what the clock does.

An entitlement is account state that entries change. It is a copy of the terms that it was given on,
so that a later version of the catalog changes nothing of what runs. What it grants again and again
are recurring grants called `<entitlement>/<grant>`; when it ends they stop, what they granted stays
until it expires, and nothing else of the account is touched (decisions/0016).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tillroll.ledger import calendar
from tillroll.ledger.products import Products, best, is_on
from tillroll.ledger.types import NEVER, Account, Entitlement, Entry, Feature, RecurringTerms
from tillroll.ledger.units import show_units

if TYPE_CHECKING:
    from collections.abc import Iterator

# While it stands so, features may be used; `past_due` is a time of grace, `paused` is none.
BRINGING = ("trialing", "active", "past_due")
# While it stands so, grants are renewed: what was not paid for does not come.
RENEWING = ("trialing", "active")


def bringing(account: Account, feature: str) -> list[Entitlement]:
    """Return the entitlements that bring a feature now, the oldest first."""
    found = [
        held
        for held in account.entitlements.values()
        if feature in held.features and held.status in BRINGING
    ]
    return sorted(found, key=lambda held: (held.starts_at, held.name))


def value_of(account: Account, feature: str, products: Products) -> Feature | None:
    """Return what a feature is for this account now: its entitlements' best, or the default."""
    values = [held.features[feature] for held in bringing(account, feature)]
    if values:
        return best(values)
    terms = products.features.get(feature)
    return None if terms is None else terms.default


def may_use(account: Account, feature: str, products: Products) -> bool:
    """Return whether the account may use a feature now."""
    return is_on(value_of(account, feature, products))


def period_end(account: Account, held: Entitlement, at: int) -> int:
    """Return when the period at hand ends: the first renewal after `at`.

    One that was granted in the account's zone of then ends as it was to.
    """
    shape = held.anchor, held.every, held.count
    for one in account.recurring.values():
        terms = one.terms
        is_its_own = terms.entitlement == held.name and one.until > at
        if is_its_own and (terms.anchor, terms.every, terms.count) == shape:
            return one.until
    zone = account.settings.time_zone
    nth = calendar.current(held.anchor, held.every, held.count, at, zone)
    return calendar.occurrence(held.anchor, held.every, held.count, nth + 1, zone)


def due_of(held: Entitlement) -> int:
    """Return when the clock next changes an entitlement, `NEVER` where it will not."""
    ends_at = NEVER if held.ends_at is None else held.ends_at
    changes_at = NEVER if held.next_at is None else held.next_at
    tried_until = held.trial_ends_at if held.status == "trialing" else None
    return min(ends_at, changes_at, NEVER if tried_until is None else tried_until)


def after(account: Account, held: Entitlement, when: int) -> Entitlement | None:
    """Return what an entitlement is after what falls due at `when`; None where it ends then.

    Terms that count periods of their own count them from then, wherever the account has moved since
    they were planned.
    """
    if held.ends_at is not None and held.ends_at <= when:
        return None
    then = held.next
    if then is not None and held.next_at is not None and held.next_at <= when:
        anchor = then.anchor
        if anchor != held.anchor:
            anchor = calendar.local_text(when, account.settings.time_zone)
        return replace(
            held,
            kind=then.kind,
            product=then.product,
            version=then.version,
            features=then.features,
            grants=then.grants,
            every=then.every,
            count=then.count,
            anchor=anchor,
            next=None,
            next_at=None,
        )
    return replace(held, status="active", trial_ends_at=None)


def grants_of(held: Entitlement) -> Iterator[RecurringTerms]:
    """Yield the recurring grants that an entitlement runs; held back ones end before they begin."""
    ends = [at for at in (held.ends_at, held.paid_until) if at is not None]
    if held.status not in RENEWING:
        ends.append(0)
    for grant in held.grants:
        yield RecurringTerms(
            name=f"{held.name}/{grant.name}",
            units=grant.units,
            every=grant.every,
            count=grant.count,
            anchor=held.anchor,
            rollover_min=grant.rollover_min,
            rollover_max=grant.rollover_max,
            wallet=grant.wallet,
            priority=grant.priority,
            applies_to=grant.applies_to,
            ends_at=min(ends, default=None),
            entitlement=held.name,
        )


def of_entry(entry: Entry) -> Entitlement:
    """Return the entitlement that an entry about one carries."""
    held = entry.entitlement
    assert held is not None, f"entry {entry.seq} is about no entitlement"
    return held


def shown(held: Entitlement, scale: int) -> dict[str, object]:
    """Return an entitlement as an entry carries it, as plain values for JSON."""
    following = held.next
    return {
        "name": held.name,
        "kind": held.kind,
        "status": held.status,
        "product": held.product,
        "version": held.version,
        "features": dict(held.features),
        "grants": [
            {
                "name": grant.name,
                "units": show_units(grant.units, scale),
                "every": grant.every,
                "count": grant.count,
                "rollover_min": show_units(grant.rollover_min, scale),
                "rollover_max": show_units(grant.rollover_max, scale),
                "wallet": grant.wallet,
                "priority": grant.priority,
                "applies_to": list(grant.applies_to),
            }
            for grant in held.grants
        ],
        "every": held.every,
        "count": held.count,
        "anchor": held.anchor,
        "starts_at": calendar.show_instant(held.starts_at),
        "trial_ends_at": show_end(held.trial_ends_at),
        "ends_at": show_end(held.ends_at),
        "paid_until": show_end(held.paid_until),
        "source": held.source,
        "next": None
        if following is None
        else {"product": following.product, "version": following.version},
        "next_at": show_end(held.next_at),
    }


def show_end(at: int | None) -> str | None:
    """Return an instant as text, None where there is none."""
    return None if at is None else calendar.show_instant(at)
