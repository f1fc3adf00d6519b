"""What is sold beside single operations: packs, plans, passes, features, coupons, alerts.

These are the terms of the catalog, one immutable copy a price version. What an account was given is
a copy of its own (`types.Entitlement`, `types.Terms`): a later version never touches it.

Source: docs/concepts/entitlements.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Context, Decimal
from typing import Any, Literal, TypeAlias

import msgspec

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import Every, Feature

FeatureKind: TypeAlias = Literal["boolean", "limit", "config"]
UNLIMITED = "unlimited"

NAME_RULE = "1 to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit at both ends"
PRODUCTS_MAX = 1_000  # of each kind
GRANTS_MAX = 20  # of one plan
COUNT_MAX = 1_000  # of periods, as for recurring grants
MOST_MAX = 1_000_000
TEXT_MAX = 255

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z", re.ASCII)
# C0 and C1 controls, and surrogates, which no valid text has alone.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CURRENCY = re.compile(r"[A-Z]{3}\Z", re.ASCII)
_WIDE = Context(prec=18)  # digits of a price a unit, where a division does not end


class Money(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An amount of real money: exact, with its ISO 4217 code."""

    amount: Decimal
    currency: str


class Pack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units that are bought once. `expires` is in microseconds from the purchase."""

    units: Decimal
    price: Money | None = None
    expires: int | None = None
    wallet: str = "credits"
    category: Literal["paid", "promo", "plan", "adjustment"] = "paid"
    priority: int = 0
    applies_to: tuple[str, ...] = ()
    stripe_price: str = ""


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units that a plan brings each period. Its name is its wallet's unless it has another."""

    units: Decimal
    name: str = ""
    every: Every = "month"
    count: int = 1
    rollover_min: Decimal = Decimal(0)
    rollover_max: Decimal = Decimal(0)
    wallet: str = "credits"
    priority: int = 0
    applies_to: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """The name that tells it from the plan's others."""
        return self.name or self.wallet


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a subscription brings; its period is every `count` days, weeks, months or years.

    An account has its trial once, or each time that it begins anew with `trial_again`.
    """

    grants: tuple[Allowance, ...] = ()
    features: Mapping[str, Feature] = {}
    every: Every = "month"
    count: int = 1
    trial: int | None = None
    price: Money | None = None
    stripe_price: str = ""
    trial_again: bool = False

    def trial_of(self, tried: bool) -> int | None:  # noqa: FBT001 - read as a question
        """Return how long an account may try it, in microseconds; None where it did before."""
        return None if tried and not self.trial_again else self.trial


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Features for a time, in microseconds; buying it again prolongs it."""

    lasts: int
    features: Mapping[str, Feature] = {}
    price: Money | None = None
    stripe_price: str = ""


class FeatureTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What kind of value a feature has, and what it is for who has no entitlement to it."""

    kind: FeatureKind = "boolean"
    default: Feature | None = None


class Coupon(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units for who knows its name, `most` times an account."""

    units: Decimal
    expires: int | None = None
    most: int = 1
    wallet: str = "credits"
    priority: int = 0
    applies_to: tuple[str, ...] = ()


class AlertTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When to tell about a wallet: exactly one of the five is set.

    `below` in units; `percent` of what live grants brought; `days_left` at the present pace;
    `budget` in percent of every budget; `expiring` in days before a grant ends.
    """

    wallet: str = "credits"
    below: Decimal | None = None
    percent: int | None = None
    days_left: int | None = None
    budget: tuple[int, ...] = ()
    expiring: tuple[int, ...] = ()


class Products(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that one version of the catalog sells, by name."""

    packs: Mapping[str, Pack] = {}
    plans: Mapping[str, Plan] = {}
    passes: Mapping[str, Pass] = {}
    features: Mapping[str, FeatureTerms] = {}
    coupons: Mapping[str, Coupon] = {}
    alerts: Mapping[str, AlertTerms] = {}

    def __bool__(self) -> bool:
        """Return whether there is anything in it."""
        return self != NOTHING

    def bringing(self, feature: str) -> Iterator[tuple[str, str]]:
        """Yield the kind and name of each plan and pass that brings a feature."""
        for name, plan in self.plans.items():
            if is_on(plan.features.get(feature)):
                yield "plan", name
        for name, timed in self.passes.items():
            if is_on(timed.features.get(feature)):
                yield "pass", name


NOTHING = Products()


def is_on(value: Feature | None) -> bool:
    """Return whether a feature of this value may be used: neither missing, false nor a limit of 0.

    A text is a setting; one that is there is on.
    """
    return value is not None and value is not False and value != 0


def best(values: list[Feature]) -> Feature | None:
    """Return the value that counts where several entitlements bring a feature, the oldest first.

    The greatest limit, `UNLIMITED` above all; a switch that any of them turns on; of settings the
    one given last.
    """
    if UNLIMITED in values:
        return UNLIMITED
    numbers = [value for value in values if not isinstance(value, str)]
    texts = [value for value in values if isinstance(value, str)]
    return texts[-1] if texts else max(numbers, default=None)


def unit_price(price: Money | None, units: Decimal) -> str | None:
    """Return what one unit of a pack is sold for, None where it has no price."""
    if price is None:
        return None
    each = _WIDE.divide(price.amount, units)
    return format(each.normalize(_WIDE), "f")


# --- checks ----------------------------------------------------------------------------------

SECTIONS: dict[str, str] = {
    "packs": "pack",
    "plans": "plan",
    "passes": "pass",
    "features": "feature",
    "coupons": "coupon",
    "alerts": "alert",
}


def check_products(products: Products, scale: int | None = None) -> None:
    """Raise `InvalidInput`, which names the table, where products make no sense."""
    for section, name, problem in problems_of_products(products, scale):
        raise InvalidInput(f"[{section}.{name}] {problem}")


def problems_of_products(
    products: Products, scale: int | None = None
) -> Iterator[tuple[str, str, str]]:
    """Yield the table, the name and what is wrong there, in the order of the file."""
    seen: dict[str, str] = {}
    for field, section in SECTIONS.items():
        table: Mapping[str, msgspec.Struct] = getattr(products, field)
        if len(table) > PRODUCTS_MAX:
            yield section, "*", f"at most {PRODUCTS_MAX:,} of a kind, not {len(table):,}"
        for name, terms in table.items():
            if not is_product_name(name):
                yield section, name, f"a name has {NAME_RULE}"
            if section in _SOLD:
                # Each is asked for by its name alone: at a checkout, and on what was granted.
                if name in seen:
                    yield section, name, f"there is a {seen[name]} of this name"
                seen[name] = section
            for problem in _PROBLEMS[section](terms, products, scale):
                yield section, name, problem


_SOLD = ("pack", "plan", "pass", "coupon")


def is_product_name(name: str) -> bool:
    """Say whether a text can name a product, a feature, a coupon, an alert."""
    return _NAME.match(name) is not None


def _pack_problems(pack: Pack, _products: Products, scale: int | None) -> Iterator[str]:
    yield from _units_problems("units", pack.units, scale)
    yield from _money_problems(pack.price)
    yield from _shared_problems(pack.wallet, pack.priority, pack.applies_to)
    yield from _text_problems("stripe_price", pack.stripe_price)


def _plan_problems(plan: Plan, products: Products, scale: int | None) -> Iterator[str]:
    if len(plan.grants) > GRANTS_MAX:
        yield f"grants: at most {GRANTS_MAX}, not {len(plan.grants)}"
    seen = set()
    for n, grant in enumerate(plan.grants, start=1):
        at = f"grants[{n}]"
        if not is_product_name(grant.called):
            yield f"{at}.name: a name has {NAME_RULE}"
        if grant.called in seen:
            yield f"{at}: two grants are called {grant.called!r}; give one a name"
        seen.add(grant.called)
        yield from (f"{at}.{said}" for said in _allowance_problems(grant, scale))
    yield from _period_problems(plan.count)
    yield from _feature_problems(plan.features, products)
    yield from _money_problems(plan.price)
    yield from _text_problems("stripe_price", plan.stripe_price)


def _allowance_problems(grant: Allowance, scale: int | None) -> Iterator[str]:
    yield from _units_problems("units", grant.units, scale)
    for name in ("rollover_min", "rollover_max"):
        amount: Decimal = getattr(grant, name)
        if amount:
            yield from _units_problems(name, amount, scale)
    if grant.rollover_min > grant.rollover_max:
        yield "rollover_min must not exceed rollover_max"
    yield from _period_problems(grant.count)
    yield from _shared_problems(grant.wallet, grant.priority, grant.applies_to)


def _pass_problems(timed: Pass, products: Products, _scale: int | None) -> Iterator[str]:
    yield from _feature_problems(timed.features, products)
    yield from _money_problems(timed.price)
    yield from _text_problems("stripe_price", timed.stripe_price)


def _terms_problems(terms: FeatureTerms, _products: Products, _scale: int | None) -> Iterator[str]:
    if terms.default is not None:
        yield from value_problems("default", terms.kind, terms.default)


def _coupon_problems(coupon: Coupon, _products: Products, scale: int | None) -> Iterator[str]:
    yield from _units_problems("units", coupon.units, scale)
    if not 1 <= coupon.most <= MOST_MAX:
        yield f"most must be from 1 to {MOST_MAX:,}"
    yield from _shared_problems(coupon.wallet, coupon.priority, coupon.applies_to)


def _alert_problems(alert: AlertTerms, _products: Products, scale: int | None) -> Iterator[str]:
    rules = ("below", "percent", "days_left", "budget", "expiring")
    given = [name for name in rules if getattr(alert, name) not in (None, ())]
    if len(given) != 1:
        yield f"give exactly one of {', '.join(rules)}"
    if alert.below is not None:
        yield from _units_problems("below", alert.below, scale)
    percents = alert.budget if alert.percent is None else (*alert.budget, alert.percent)
    if any(not 1 <= percent <= PERCENT_MAX for percent in percents):
        yield f"a percentage is from 1 to {PERCENT_MAX}"
    days = alert.expiring if alert.days_left is None else (*alert.expiring, alert.days_left)
    if any(not 1 <= day <= DAYS_MAX for day in days):
        yield f"days are from 1 to {DAYS_MAX:,}"
    yield from _shared_problems(alert.wallet, 0, ())


PERCENT_MAX = 100
DAYS_MAX = 3_650
PRIORITY_MAX = 1_000
AMOUNT_MAX = Decimal(2**53)
PLACES_MAX = 12


def _units_problems(name: str, units: Decimal, scale: int | None) -> Iterator[str]:
    places = PLACES_MAX if scale is None else scale
    if not units.is_finite() or not 0 < units < AMOUNT_MAX:
        yield f"{name} must be greater than 0 and below 2^53"
    elif units != units.quantize(Decimal(1).scaleb(-places), context=_BROAD):
        yield f"{name} has more than {places} decimals"
    elif scale is not None and units.scaleb(scale) >= AMOUNT_MAX:
        yield f"{name} must stay below 2^53 of the smallest unit"


_BROAD = Context(prec=60)


def _money_problems(price: Money | None) -> Iterator[str]:
    if price is None:
        return
    if not price.amount.is_finite() or not 0 <= price.amount < AMOUNT_MAX:
        yield "price.amount must be 0 or more, and below 2^53"
    if not _CURRENCY.match(price.currency):
        yield 'price.currency must be a code of three letters such as "USD"'


def _shared_problems(wallet: str, priority: int, applies_to: tuple[str, ...]) -> Iterator[str]:
    if not _NAME.match(wallet):
        yield "wallet must be 1 to 64 of a-z, 0-9, dot, dash and underscore"
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        yield f"priority must be from -{PRIORITY_MAX} to {PRIORITY_MAX}"
    for operation in applies_to:
        yield from _text_problems("applies_to", operation, least=1)


def _period_problems(count: int) -> Iterator[str]:
    if not 1 <= count <= COUNT_MAX:
        yield f"count must be from 1 to {COUNT_MAX:,}"


def _feature_problems(features: Mapping[str, Feature], products: Products) -> Iterator[str]:
    for name, value in features.items():
        terms = products.features.get(name)
        if terms is None:
            yield f"features.{name}: there is no [feature.{name}]"
        else:
            yield from value_problems(f"features.{name}", terms.kind, value)


def value_problems(where: str, kind: FeatureKind, value: Feature) -> Iterator[str]:
    """Yield what is wrong with a feature's value; a bool is an int to Python, not to us."""
    if kind == "boolean":
        if not isinstance(value, bool):
            yield f"{where} must be true or false"
    elif kind == "limit":
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value != UNLIMITED and not (whole and 0 <= int(value) < AMOUNT_MAX):
            yield f'{where} must be a whole number, 0 or more, or "{UNLIMITED}"'
    elif not isinstance(value, str):
        yield f"{where} must be a text"
    else:
        yield from _text_problems(where, value, least=1)


def _text_problems(name: str, text: str, *, least: int = 0) -> Iterator[str]:
    if not least <= len(text) <= TEXT_MAX or _UNFIT.search(text):
        yield f"{name} must have {least} to {TEXT_MAX} characters, no control characters"


# Any: each looks at the terms of its own kind.
_PROBLEMS: dict[str, Callable[[Any, Products, int | None], Iterator[str]]] = {
    "pack": _pack_problems,
    "plan": _plan_problems,
    "pass": _pass_problems,
    "feature": _terms_problems,
    "coupon": _coupon_problems,
    "alert": _alert_problems,
}
