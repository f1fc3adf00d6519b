"""The rules of what is sold: buying, redeeming, subscribing, and changing or ending that.

What the catalog says is read from the price version in force, under the account's lock, and copied
into the entry: nothing that runs ever looks at the catalog again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tillroll.ledger import calendar
from tillroll.ledger import commands as c
from tillroll.ledger.book import Case
from tillroll.ledger.entitlements import period_end
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.granting import granted
from tillroll.ledger.moves import entry_of
from tillroll.ledger.products import (
    Allowance,
    Pack,
    Pass,
    Plan,
    Products,
    unit_price,
    value_problems,
)
from tillroll.ledger.refuse import no_entitlement, refuse
from tillroll.ledger.types import (
    NEVER,
    WALLET_DEFAULT,
    Entitlement,
    Entry,
    Feature,
    PlanGrant,
    Refusal,
    Standing,
)
from tillroll.ledger.units import UNITS_MAX, parse_limit, parse_units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

# Of one account; each is about 300 bytes of its state document.
ENTITLEMENTS_MAX = 1_000


def _catalog(case: Case, version: int | None) -> tuple[int, Products]:
    """Return the number and the products of the version asked for, or of the one in force."""
    book = case.rules.prices
    number = book.current if version is None else version
    if number == 0:
        raise InvalidInput("there is no catalog yet; apply a tillroll.toml")
    return number, book.version(number).products


def _buy(case: Case, command: c.Buy) -> Entry:
    number, products = _catalog(case, command.version)
    pack = products.packs.get(command.product)
    if pack is not None:
        return _buy_pack(case, command, pack, number)
    timed = products.passes.get(command.product)
    if timed is None:
        known = ", ".join([*products.packs, *products.passes][:20]) or "none"
        raise InvalidInput(
            f"version {number} of the catalog has no pack or pass {command.product!r}; it has "
            f"{known}"
        )
    return _buy_pass(case, command, timed, number)


def _buy_pack(case: Case, command: c.Buy, pack: Pack, number: int) -> Entry:
    grant = c.Grant(
        units=_units(case, pack.units, command.quantity),
        wallet=pack.wallet,
        category=pack.category,
        priority=pack.priority,
        expires_in=pack.expires,
        applies_to=pack.applies_to,
        cost_basis=command.cost_basis or unit_price(pack.price, pack.units),
        source=command.source,
    )
    return granted(case, grant, product=command.product, version=number)


def _buy_pass(case: Case, command: c.Buy, timed: Pass, number: int) -> Entry:
    """Begin a time pass, or prolong the one that runs; it ends later, never sooner.

    One that has no end keeps none.
    """
    held = case.account.entitlements.get(command.product)
    if held is not None and held.kind != "time_pass":
        raise InvalidInput(f"{command.product!r} names an entitlement that is no time pass")
    if held is None:
        _check_count(case)
    from_then = case.at if held is None else held.ends_at
    bought = Entitlement(
        name=command.product,
        kind="time_pass",
        product=command.product,
        version=number,
        features=_sorted(timed.features),
        anchor=held.anchor if held else _local(case, case.at),
        starts_at=held.starts_at if held else case.at,
        ends_at=None if from_then is None else _later(from_then, timed.lasts * command.quantity),
        source=command.source,
    )
    return _entitled(case, bought)


def _redeem(case: Case, command: c.Redeem) -> Entry | Refusal:
    number, products = _catalog(case, None)
    coupon = products.coupons.get(command.coupon)
    if coupon is None:
        raise InvalidInput(f"version {number} of the catalog has no coupon {command.coupon!r}")
    times = case.account.redeemed.get(command.coupon, 0)
    if times >= coupon.most:
        often = "once" if times == 1 else f"{times} times"
        return refuse(
            case,
            "coupon_used",
            f"the account redeemed {command.coupon!r} {often} before, which is all it may",
            details={"coupon": command.coupon, "times": str(times), "most": str(coupon.most)},
        )
    grant = c.Grant(
        units=_units(case, coupon.units, 1),
        wallet=coupon.wallet,
        category="promo",
        priority=coupon.priority,
        expires_in=coupon.expires,
        applies_to=coupon.applies_to,
        source=f"coupon {command.coupon}",
    )
    return granted(case, grant, product=command.coupon, version=number, coupon=command.coupon)


def _subscribe(case: Case, command: c.Subscribe) -> Entry:
    number, products = _catalog(case, command.version)
    plan = products.plans.get(command.plan)
    if plan is None:
        known = ", ".join([*products.plans][:20]) or "none"
        raise InvalidInput(
            f"version {number} of the catalog has no plan {command.plan!r}; it has {known}"
        )
    terms = {
        "kind": "subscription",
        "product": command.plan,
        "version": number,
        "features": _sorted(plan.features),
        "grants": tuple(_plan_grant(case, grant) for grant in plan.grants),
        "every": plan.every,
        "count": plan.count,
    }
    held = case.account.entitlements.get(command.name)
    if held is None:
        return _begin(case, command, terms, _trial_end(case, command, plan))
    return _move(case, command, held, terms)


def _entitle(case: Case, command: c.Entitle) -> Entry:
    _check_features(case, command)
    terms = {
        "kind": command.kind,
        "product": command.product,
        "features": command.features,
        "grants": command.grants,
        "every": command.every,
        "count": command.count,
    }
    held = case.account.entitlements.get(command.name)
    if command.lasts is not None:
        from_then = case.at if held is None else held.ends_at
        ends_at = None if from_then is None else _later(from_then, command.lasts)
        command = replace(command, ends_at=ends_at, lasts=None)
    if held is None:
        return _begin(case, command, terms, command.trial_ends_at)
    return _move(case, command, held, terms)


def _check_features(case: Case, command: c.Entitle) -> None:
    """Refuse features that no version of the catalog declared, or not with such a value.

    A feature that a later version dropped stays what it was for whom it was sold to. A project that
    declares none names them as it likes; what was given with neither features nor grants, and is no
    feature, has its own name for one.
    """
    if command.kind != "feature" and command.features == {command.name: True}:
        return
    book = case.rules.prices
    declared = [book.versions[number].products.features for number in sorted(book.versions)]
    if not any(declared):
        return
    for name, value in command.features.items():
        kinds = [terms[name].kind for terms in declared if name in terms]
        if not kinds:
            known = ", ".join(sorted(declared[-1])[:20]) or "none"
            raise InvalidInput(
                f"the catalog has no feature {name!r}; it has {known}. Add [feature.{name}] and "
                f"apply it, or correct the name"
            )
        told = [list(value_problems(f"features.{name}", kind, value)) for kind in kinds]
        if all(told):
            raise InvalidInput(f"{told[-1][0]}: the catalog has it as {kinds[-1]!r}")


def _begin(
    case: Case, command: c.Subscribe | c.Entitle, terms: dict[str, Any], trial_ends_at: int | None
) -> Entry:
    """Give an entitlement that the account does not have."""
    _check_count(case)
    started_at = _started(case, command)
    trying: Standing = "active" if trial_ends_at is None else "trialing"
    status = command.status or trying
    fresh = Entitlement(
        name=command.name,
        status=status,
        anchor=_local(case, started_at),
        starts_at=started_at,
        trial_ends_at=trial_ends_at if status == "trialing" else None,
        ends_at=_open_end(command.ends_at),
        paid_until=_open_end(command.paid_until),
        source=command.source,
        **terms,
    )
    return _entitled(case, fresh)


def _move(
    case: Case, command: c.Subscribe | c.Entitle, held: Entitlement, terms: dict[str, Any]
) -> Entry:
    """Move an entitlement to other terms, now or when the period at hand ends.

    Another product begins a period of its own, and its first grants take the place of what is left
    of those of the same name. The same product, in another version or again, keeps the period: its
    features count at once, its grants from the next renewal on.
    """
    status = command.status or held.status
    trial_ends_at = held.trial_ends_at if command.trial_ends_at is None else command.trial_ends_at
    standing = replace(
        held,
        status=status,
        trial_ends_at=trial_ends_at if status == "trialing" else None,
        ends_at=_changed(held.ends_at, command.ends_at),
        paid_until=_changed(held.paid_until, command.paid_until),
        source=held.source if command.source is None else command.source,
        next=None,
        next_at=None,
    )
    if isinstance(command, c.Subscribe) and command.when == "period_end":
        return _entitled(case, _planned(case, standing, terms))
    anew = terms["product"] != held.product or command.started_at is not None
    anchor = _local(case, _started(case, command)) if anew else held.anchor
    return _entitled(case, replace(standing, anchor=anchor, **terms))


def _planned(case: Case, held: Entitlement, terms: dict[str, Any]) -> Entitlement:
    """Return the entitlement with other terms to come when its period at hand ends."""
    moves_at = period_end(case.account, held, case.at)
    if held.ends_at is not None and held.ends_at <= moves_at:
        raise InvalidInput("the entitlement ends before its next period; take its end back first")
    same = (terms["every"], terms["count"]) == (held.every, held.count)
    anchor = held.anchor if same else _local(case, moves_at)
    return replace(held, next=Entitlement(name=held.name, anchor=anchor, **terms), next_at=moves_at)


def _change(case: Case, command: c.ChangeEntitlement) -> Entry | Refusal:
    held = case.account.entitlements.get(command.name)
    if held is None:
        return no_entitlement(case, command.name)
    status = command.status or held.status
    trial_ends_at = _changed(held.trial_ends_at, command.trial_ends_at)
    changed = replace(
        held,
        status=status,
        trial_ends_at=trial_ends_at if status == "trialing" else None,
        ends_at=_changed(held.ends_at, command.ends_at),
        paid_until=_changed(held.paid_until, command.paid_until),
    )
    return _entitled(case, changed)


def _end(case: Case, command: c.EndEntitlement) -> Entry | Refusal:
    held = case.account.entitlements.get(command.name)
    if held is None:
        return no_entitlement(case, command.name)
    if command.when == "period_end":
        ends_at = period_end(case.account, held, case.at)
        sooner = ends_at if held.ends_at is None else min(held.ends_at, ends_at)
        return _entitled(case, replace(held, ends_at=sooner, next=None, next_at=None))
    return entry_of(
        case, "entitlement_ended", WALLET_DEFAULT, 0, (), ref=held.ref, entitlement=held
    )


def _entitled(case: Case, held: Entitlement) -> Entry:
    """Return the entry that has an entitlement stand so from now on."""
    if held.ends_at is not None and held.ends_at <= case.at:
        raise InvalidInput("the entitlement would be over before it begins")
    for grant in held.grants:
        other = case.account.recurring.get(f"{held.name}/{grant.name}")
        if other is not None and other.terms.entitlement != held.name:
            raise InvalidInput(f"the account has a recurring grant {other.terms.name!r} of its own")
    return entry_of(case, "entitlement", WALLET_DEFAULT, 0, (), ref=held.ref, entitlement=held)


def _check_count(case: Case) -> None:
    if len(case.account.entitlements) >= ENTITLEMENTS_MAX:
        raise InvalidInput(f"an account may have {ENTITLEMENTS_MAX:,} entitlements at the most")


# ---------------------------------------------------------------- from the catalog


def _plan_grant(case: Case, grant: Allowance) -> PlanGrant:
    scale = case.rules.scale
    return PlanGrant(
        name=grant.called,
        units=parse_units(grant.units, scale),
        every=grant.every,
        count=grant.count,
        rollover_min=parse_limit(grant.rollover_min, scale, "rollover_min"),
        rollover_max=parse_limit(grant.rollover_max, scale, "rollover_max"),
        wallet=grant.wallet,
        priority=grant.priority,
        applies_to=grant.applies_to,
    )


def _sorted(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Return features in the order that an entry's canonical bytes have them in."""
    return dict(sorted(features.items()))


def _units(case: Case, units: Decimal, quantity: int) -> int:
    """Return what so many of a pack bring, in the smallest unit."""
    total = parse_units(units, case.rules.scale) * quantity
    if total > UNITS_MAX:
        raise InvalidInput("so many packs would be 2^53 of the smallest unit or more")
    return total


def _trial_end(case: Case, command: c.Subscribe, plan: Plan) -> int | None:
    """Return when a trial ends: as asked for, or after the plan's from its beginning."""
    trial = plan.trial_of(command.plan in case.account.tried)
    if command.trial_ends_at is not None or not command.trial or trial is None:
        return command.trial_ends_at
    return _later(_started(case, command), trial)


# ---------------------------------------------------------------- times


def _started(case: Case, command: c.Subscribe | c.Entitle) -> int:
    if command.started_at is None:
        return case.at
    if command.started_at > case.at:
        raise InvalidInput("an entitlement begins when it is given, or began before")
    return command.started_at


def _local(case: Case, at: int) -> str:
    """Return an instant as the local time that periods are counted from."""
    return calendar.local_text(at, case.account.settings.time_zone)


def _later(at: int, span: int) -> int:
    later = at + span
    if later >= calendar.INSTANT_END:
        raise InvalidInput("the entitlement would last beyond the year 9999; leave its end out")
    return later


def _open_end(at: int | None) -> int | None:
    return None if at == NEVER else at


def _changed(old: int | None, new: int | None) -> int | None:
    """Return a time after a change: the old one stays where none is given."""
    return old if new is None else _open_end(new)


RULES: dict[type[c.Command], Callable[[Case, Any], Entry | Refusal]] = {
    c.Buy: _buy,
    c.Redeem: _redeem,
    c.Subscribe: _subscribe,
    c.Entitle: _entitle,
    c.ChangeEntitlement: _change,
    c.EndEntitlement: _end,
}
