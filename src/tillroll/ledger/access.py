"""May this account do that now, why, for how long, and what would help?

The answer to work is what `decide` says of it, so that a check and the charge after it can differ
only by what happens between the two; `consume` and `hold` with `feature=` leave nothing between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from tillroll.ledger import budgets, calendar
from tillroll.ledger import commands as c
from tillroll.ledger.book import Book, Case, Rules
from tillroll.ledger.burn import headroom, pays, spendable
from tillroll.ledger.decide import decide, gate
from tillroll.ledger.entitlements import BRINGING, bringing, period_end, show_end, value_of
from tillroll.ledger.products import is_on
from tillroll.ledger.types import NEVER, Account, Entitlement, Entry, Feature, Refusal
from tillroll.ledger.units import show_units

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING_LEFT = "nothing_left"


class Access(Struct, frozen=True):
    """Whether an account may do something, and all that is known of why.

    Attributes:
        allowed: Yes or no.
        reason: Why: "allowed", "nothing_left", or the code of the refusal it would meet.
        message: The same in words.
        feature: What was asked for, None where none was.
        value: The feature's value: a switch, a limit, a setting.
        needed: Units that the work would take; None where no work was asked for.
        available: Units that may pay for it.
        tightest: What is nearest to its end or stands in the way: a wallet, a budget, a feature.
        left: Units left there.
        ends_at: When the answer turns to no by the clock alone; None where it does not.
        ways_out: What would help, each with at least "kind" and "text".
        by: The entitlements that bring it, by name.
        as_of: The moment the answer is of.
        seq: The last entry that it knows.
    """

    account: str
    allowed: bool
    reason: str
    message: str
    feature: str | None
    value: Feature | None
    needed: str | None
    available: str | None
    tightest: str | None
    left: str | None
    ends_at: str | None
    ways_out: tuple[dict[str, str], ...]
    by: tuple[str, ...]
    as_of: str
    seq: int

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        shown: dict[str, object] = {name: getattr(self, name) for name in self.__struct_fields__}
        return shown | {"ways_out": list(self.ways_out), "by": list(self.by)}


def access(account: Account, request: c.Request, at: int, rules: Rules) -> Access:
    """Answer for an account that was advanced to `at`.

    Args:
        account: As it stands at `at`.
        request: A consume, for what it asks: a feature, work, both, or neither (a consume without
            operation and units), which asks whether there is anything active or spendable.
        at: The moment.
        rules: The prices and products in force then.
    """
    command = request.command
    assert isinstance(command, c.Consume), "access is asked about a consume"
    case = Case(account, request, at, rules, Book())
    if command.operation is not None or command.units is not None:
        return _of_work(case, command)
    if command.feature is not None:
        return _of_feature(case, command.feature)
    return _of_anything(case)


def _of_work(case: Case, command: c.Consume) -> Access:
    outcome = decide(case)
    if isinstance(outcome, Refusal):
        return _no(case, outcome, command.feature)
    assert isinstance(outcome, Entry), "a consume is never answered with an earlier entry"
    scale = case.rules.scale
    wallet, units = outcome.wallet, outcome.units
    free = spendable(case.account, wallet, command.operation, case.at)
    tightest, left = wallet, free
    spend = budgets.Spend(wallet, command.operation, command.model, command.tags)
    room = budgets.tightest(case.account, spend, case.at)
    if room is not None and room.left < free:
        tightest, left = f"budget {room.budget}", room.left
    ends = [_runs_dry(case, wallet, command.operation, units)]
    if command.feature is not None:
        ends.append(_feature_ends(case, command.feature))
    return _answer(
        case,
        reason="allowed",
        message=f"{show_units(units, scale)} {wallet} are there",
        feature=command.feature,
        needed=units,
        available=free,
        tightest=tightest,
        left=left,
        ends_at=min(ends),
    )


def _of_feature(case: Case, feature: str) -> Access:
    refusal = gate(case)
    if refusal is not None:
        return _no(case, refusal, feature)
    return _answer(
        case,
        reason="allowed",
        message=f"the account has {feature!r}",
        feature=feature,
        tightest=f"feature {feature}",
        ends_at=_feature_ends(case, feature),
    )


def _of_anything(case: Case) -> Access:
    """Answer whether anything is active or spendable, as a gate before a whole product asks."""
    refusal = gate(case)
    if refusal is not None:
        return _no(case, refusal, None)
    account = case.account
    active = [held for held in account.entitlements.values() if held.status in BRINGING]
    wallets = [name for name in account.wallets if headroom(account, name)]
    ends = [_never(held.ends_at) for held in active]
    ends += [
        _never(grant.terms.expires_at)
        for grant in account.grants.values()
        if grant.remaining and not grant.scheduled
    ]
    ends += [NEVER for _ in wallets]
    if not ends:
        ways = _sold(case)
        return _answer(
            case,
            reason=NOTHING_LEFT,
            message="the account has no entitlement and nothing to spend",
            ways_out=ways,
            allowed=False,
        )
    return _answer(
        case,
        reason="allowed",
        message="the account has something active or spendable",
        by=tuple(held.name for held in active),
        ends_at=max(ends),
    )


def _sold(case: Case) -> tuple[dict[str, str], ...]:
    products = case.rules.prices.products
    ways = [
        {"kind": kind, "text": f"the {kind} {name!r} would help", "product": name}
        for kind, table in (
            ("plan", products.plans),
            ("pass", products.passes),
            ("pack", products.packs),
        )
        for name in table
    ]
    return tuple(ways[:20]) or ({"kind": "top_up", "text": "grant units"},)


def _no(case: Case, refusal: Refusal, feature: str | None) -> Access:
    return _answer(
        case,
        allowed=False,
        reason=refusal.code,
        message=refusal.message,
        feature=feature,
        needed=refusal.needed,
        available=refusal.available,
        tightest=refusal.tightest,
        left=refusal.available,
        ways_out=refusal.ways_out,
    )


def _answer(
    case: Case,
    *,
    reason: str,
    message: str,
    allowed: bool = True,
    feature: str | None = None,
    needed: int | None = None,
    available: int | None = None,
    tightest: str | None = None,
    left: int | None = None,
    ends_at: int = NEVER,
    ways_out: tuple[dict[str, str], ...] = (),
    by: tuple[str, ...] = (),
) -> Access:
    scale = case.rules.scale

    def units(amount: int | None) -> str | None:
        return None if amount is None else show_units(amount, scale)

    value = None
    if feature is not None:
        value = value_of(case.account, feature, case.rules.prices.products)
        held = bringing(case.account, feature)
        by = tuple(one.name for one in held if is_on(one.features[feature]))
    return Access(
        account=case.account.account,
        allowed=allowed,
        reason=reason,
        message=message,
        feature=feature,
        value=value,
        needed=units(needed),
        available=units(available),
        tightest=tightest,
        left=units(left),
        ends_at=None if ends_at >= calendar.INSTANT_END else calendar.show_instant(ends_at),
        ways_out=ways_out,
        by=by,
        as_of=calendar.show_instant(case.at),
        seq=case.account.seq,
    )


# ---------------------------------------------------------------- when it ends


def _never(at: int | None) -> int:
    return NEVER if at is None else at


def _feature_ends(case: Case, feature: str) -> int:
    """Return when the last entitlement that brings a feature ends, as things stand."""
    terms = case.rules.prices.products.features.get(feature)
    if terms is not None and is_on(terms.default):
        return NEVER
    return max((_stops(held, feature) for held in bringing(case.account, feature)), default=NEVER)


def _stops(held: Entitlement, feature: str) -> int:
    """Return when an entitlement stops bringing a feature: at its end, or by what comes next."""
    ends_at = _never(held.ends_at)
    if not is_on(held.features[feature]):
        return 0
    if held.next is not None and not is_on(held.next.features.get(feature)):
        return min(ends_at, _never(held.next_at))
    return ends_at


def _runs_dry(case: Case, wallet: str, operation: str | None, units: int) -> int:
    """Return when grants will have expired until less than `units` is left, `NEVER` for never.

    What comes back is there as long as it does.
    """
    account = case.account
    left = spendable(account, wallet, operation, case.at)
    renewed = {one.current: one for one in account.recurring.values() if one.next_at < NEVER}
    ends = sorted(
        (
            _never(renewed[grant.terms.id].terms.ends_at)
            if grant.terms.id in renewed
            else _never(grant.terms.expires_at),
            grant.remaining,
        )
        for grant in account.grants.values()
        if pays(grant, wallet, operation, case.at)
    )
    for expires_at, remaining in ends:
        left -= remaining
        if left < units:
            return expires_at
    return NEVER


# ---------------------------------------------------------------- what there is


def holdings(account: Account, scale: int, at: int) -> Iterator[dict[str, object]]:
    """Yield everything the account may use: subscriptions, passes, features, packs of units."""
    for held in sorted(account.entitlements.values(), key=lambda one: (one.starts_at, one.name)):
        yield _held(account, held, scale, at)
    for grant in account.grants.values():
        terms = grant.terms
        if terms.product is None:
            continue
        yield {
            "name": terms.id,
            "kind": "usage_pack",
            "status": "scheduled" if grant.scheduled else "active",
            "product": terms.product,
            "version": terms.version,
            "wallet": terms.wallet,
            "units": show_units(terms.units, scale),
            "available": show_units(grant.remaining, scale),
            "held": show_units(grant.pinned, scale),
            "starts_at": calendar.show_instant(terms.effective_at),
            "ends_at": show_end(terms.expires_at),
            "source": terms.source,
        }


def _held(account: Account, held: Entitlement, scale: int, at: int) -> dict[str, object]:
    period_ends_at = None
    if held.kind == "subscription":
        period_ends_at = calendar.show_instant(period_end(account, held, at))
    return {
        "name": held.name,
        "kind": held.kind,
        "status": held.status,
        "product": held.product,
        "version": held.version,
        "features": dict(held.features),
        "grants": list(_granting(account, held, scale)),
        "starts_at": calendar.show_instant(held.starts_at),
        "period_ends_at": period_ends_at,
        "trial_ends_at": show_end(held.trial_ends_at),
        "ends_at": show_end(held.ends_at),
        "paid_until": show_end(held.paid_until),
        "next": None
        if held.next is None
        else {
            "product": held.next.product,
            "version": held.next.version,
            "at": show_end(held.next_at),
        },
        "source": held.source,
    }


def _granting(account: Account, held: Entitlement, scale: int) -> Iterator[dict[str, object]]:
    for grant in held.grants:
        recurring = account.recurring.get(f"{held.name}/{grant.name}")
        current = account.grants.get(recurring.current or "") if recurring else None
        yield {
            "name": grant.name,
            "units": show_units(grant.units, scale),
            "wallet": grant.wallet,
            "available": show_units(current.remaining if current else 0, scale),
            "renews_at": show_end(
                recurring.next_at if recurring and recurring.next_at < NEVER else None
            ),
        }
