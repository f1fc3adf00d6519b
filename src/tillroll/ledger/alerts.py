"""Alerts: which thresholds an entry crosses, judged on the account before and after it.

A threshold is crossed once: what was below it before is below it still, and nothing is told. Most
alerts need no memory for that; the days that are left do, where an account asks for them.
That grants expire soon is brought by the clock (`due`), since no request need ever come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from tillroll.ledger import budgets
from tillroll.ledger.budgets import Spend
from tillroll.ledger.burn import spendable
from tillroll.ledger.types import DAY, TOPUP, AlertTerms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from decimal import Decimal

    from tillroll.ledger.types import Account, Alert, Entry, Grant, Wallet

PERCENT_MAX = 100
DAYS_MAX = 365
ALERTS_MAX = 100  # of one account; each entry of the account measures all of them
PACE_DAYS = 7  # the days that a projection looks back on


class Level(Struct, frozen=True, gc=False):
    """Where one alert stands: what was measured, and whether that is beyond the threshold."""

    terms: AlertTerms
    value: int
    crossed: bool
    budget: str | None = None
    node: str = ""


Levels = dict[tuple[str, str, str], Level]


def levels(account: Account, defaults: Iterable[AlertTerms], entry: Entry) -> Levels:
    """Return where every alert stands that this entry may move.

    Args:
        account: The account, before the entry or after it.
        defaults: The alerts of the project, which the account's own of that name replace.
        entry: What is about to be applied, or was.
    """
    named = {terms.name: terms for terms in defaults}
    named |= {name: alert.terms for name, alert in account.alerts.items()}
    found: Levels = {}
    for name, terms in named.items():
        if terms.wallet != entry.wallet or terms.on in ("expiring", TOPUP):
            continue
        for level in _measure(account, terms, entry):
            found[name, level.budget or "", level.node] = level
    return found


def crossed(before: Levels, after: Levels) -> Iterator[tuple[Level, bool]]:
    """Yield what changed sides, and whether it went beyond; False where it came back."""
    for key, level in after.items():
        earlier = before.get(key)
        was = earlier is not None and earlier.crossed
        if earlier is not None and earlier.terms != level.terms:
            was = False  # another threshold is another alert
        if level.crossed != was:
            yield level, level.crossed


def is_low(account: Account, wallet: str, at: int) -> bool:
    """Return whether a balance is where it is topped up; False where nothing tops it up."""
    return any(
        alert.terms.on == TOPUP
        and alert.terms.wallet == wallet
        and spendable(account, wallet, None, at) <= alert.terms.threshold
        for alert in account.alerts.values()
    )


def _measure(account: Account, terms: AlertTerms, entry: Entry) -> Iterator[Level]:
    """Yield where one alert stands: nothing where there is nothing to measure."""
    if terms.on == "budget":
        yield from _budgets(account, terms, entry)
        return
    wallet = account.wallets.get(terms.wallet)
    if wallet is None or not wallet.issued:
        return
    free, at = wallet.available, terms.threshold
    if terms.on == "balance":
        yield Level(terms, free, free < at)
    elif terms.on == "depleted":
        yield Level(terms, free, free <= 0)
    elif terms.on == "percent":
        live = _granted(account.grants.values(), terms.wallet)
        percent = max(free, 0) * PERCENT_MAX // live if live else 0
        yield Level(terms, percent, not live or free * PERCENT_MAX < at * live)
    else:
        yield from _days_left(account, wallet, terms, entry.at)


def _granted(grants: Iterable[Grant], wallet: str) -> int:
    """Return what was granted by all that is live."""
    live = [g.terms for g in grants if not (g.scheduled or g.voided)]
    return sum(terms.units for terms in live if terms.wallet == wallet)


def _budgets(account: Account, terms: AlertTerms, entry: Entry) -> Iterator[Level]:
    spend = Spend(entry.wallet, entry.operation, entry.model, entry.tags)
    for name, budget in account.budgets.items():
        if terms.budget not in (None, name):
            continue
        room = budgets.room(account, budget, spend, entry.at)
        if room is None:
            continue
        percent = room.spent * PERCENT_MAX // room.cap if room.cap else PERCENT_MAX
        beyond = room.spent * PERCENT_MAX >= terms.threshold * room.cap
        yield Level(terms, percent, beyond, name, room.node)


def _days_left(account: Account, wallet: Wallet, terms: AlertTerms, at: int) -> Iterator[Level]:
    """Yield for how many days what is free lasts at the pace of late."""
    alert = account.alerts.get(terms.name)
    if alert is None:
        used, time = _pace_of_grants(account, terms.wallet, at)
    else:
        today = at // DAY
        first = min(alert.used, default=today)
        time = min(today - first + 1, PACE_DAYS) * DAY
        used = sum(units for day, units in alert.used.items() if day > today - PACE_DAYS)
    if used > 0:
        left = max(wallet.available, 0) * time // used // DAY
        yield Level(terms, left, left < terms.threshold)


def _pace_of_grants(account: Account, wallet: str, at: int) -> tuple[int, int]:
    """Return what was used of the grants that are live, and in what time.

    The catalog's alert has no count of its own on each account: what live grants have lost since
    the oldest of them began is in their account anyway.
    """
    live = [g for g in account.grants.values() if g.terms.wallet == wallet and not g.scheduled]
    used = sum(g.terms.units - g.remaining - g.pinned for g in live if not g.voided)
    began = min((g.terms.effective_at for g in live), default=at)
    return used, max(at - began, DAY)


def count(account: Account, entry: Entry) -> None:
    """Count what an entry used, for the alerts that project; days that are past are dropped."""
    used = sum(
        (p.target == "used") * p.units - (p.source == "used") * p.units for p in entry.postings
    )
    if not used:
        return
    today = entry.at // DAY
    for alert in account.alerts.values():
        if alert.terms.on != "days_left" or alert.terms.wallet != entry.wallet:
            continue
        alert.used[today] = alert.used.get(today, 0) + used
        for day in [day for day in alert.used if day <= today - PACE_DAYS]:
            del alert.used[day]


# ---------------------------------------------------------------- grants that expire soon


def warning(grant: Grant, alerts: Iterable[Alert]) -> int | None:
    """Return when to warn next that a grant expires; None where nobody wants to know.

    A warning that would have come before the grant began, or before one that was given, does not.
    """
    terms = grant.terms
    if terms.expires_at is None or not grant.remaining or grant.scheduled:
        return None
    wanted = {a.terms.threshold for a in alerts if _warns(a.terms, terms.wallet)}
    moments = [terms.expires_at - days * DAY for days in wanted.union(terms.warn_days)]
    after = max(grant.told, terms.effective_at)
    return min((moment for moment in moments if moment > after), default=None)


def _warns(terms: AlertTerms, wallet: str) -> bool:
    return terms.on == "expiring" and terms.wallet == wallet


def days_of(defaults: Iterable[AlertTerms], wallet: str) -> tuple[int, ...]:
    """Return how many days before its end a new grant of this wallet is to be warned of."""
    return tuple(sorted({terms.threshold for terms in defaults if _warns(terms, wallet)}))


# ---------------------------------------------------------------- of a whole project


class Default(Protocol):
    """An alert as the catalog has it: one of these is set."""

    @property
    def wallet(self) -> str:
        """The kind of credits."""

    @property
    def below(self) -> Decimal | None:
        """Units."""

    @property
    def percent(self) -> int | None:
        """Percent of what is granted and live."""

    @property
    def days_left(self) -> int | None:
        """Days that what is free lasts."""

    @property
    def budget(self) -> tuple[int, ...]:
        """Percents of every budget."""

    @property
    def expiring(self) -> tuple[int, ...]:
        """Days before a grant ends."""


def of_catalog(defaults: Mapping[str, Default], scale: int) -> tuple[AlertTerms, ...]:
    """Return a catalog's alerts; one that has several thresholds is several, with them in the name.

    The days that are left are projected from what live grants have lost since the oldest began.
    """
    found: list[AlertTerms] = []
    for name, one in defaults.items():
        if one.below is not None:
            units = int(one.below.scaleb(scale))
            found.append(AlertTerms(name, "balance", units, one.wallet))
        if one.percent is not None:
            found.append(AlertTerms(name, "percent", one.percent, one.wallet))
        if one.days_left is not None:
            found.append(AlertTerms(name, "days_left", one.days_left, one.wallet))
        found += [AlertTerms(f"{name}/{n}", "budget", n, one.wallet) for n in one.budget]
        found += [AlertTerms(f"{name}/{n}", "expiring", n, one.wallet) for n in one.expiring]
    return tuple(found)


__all__ = ["ALERTS_MAX", "DAYS_MAX", "PERCENT_MAX", "Level", "Levels", "count", "crossed"]
__all__ += ["days_of", "is_low", "levels", "of_catalog", "warning"]
