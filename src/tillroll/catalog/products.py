"""What is sold, as it stands in `tillroll.toml`: the tables, their reading, their writing.

What a product means is decided in `tillroll.ledger.products`.

Source: docs/reference/price-book.md
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tillroll.catalog.writing import amount, bare, quoted, set_fields, table_lines, texts
from tillroll.ledger import calendar
from tillroll.ledger.products import (
    AlertTerms,
    Allowance,
    Coupon,
    FeatureKind,
    FeatureTerms,
    Money,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY, HOUR, MINUTE, SECOND, Category, Every, Feature

# Integers may stand bare in TOML; everything with a point is quoted, since floats are not exact.
Amount: TypeAlias = int | Decimal


def says(text: str) -> Meta:
    """Describe a field for editors."""
    return Meta(description=text)


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all tables of the file share: unknown fields are refused."""


Wallet: TypeAlias = Annotated[str, says("The wallet that the units are in.")]
Priority: TypeAlias = Annotated[int, says("Lower is burnt first.")]
AppliesTo: TypeAlias = Annotated[
    list[str], says("Operations that the units may pay for, such as `image.*`; empty for all.")
]
StripePrice: TypeAlias = Annotated[str, says("The id of the price at Stripe.")]
Features: TypeAlias = Annotated[
    dict[str, bool | int | str], says("Feature to value: a switch, a limit, or a setting.")
]


class MoneyTable(Table, frozen=True, kw_only=True):
    """An amount of money."""

    amount: Annotated[Amount, says("An exact decimal.")]
    currency: Annotated[str, says("The code of three letters, such as USD.")]


class PackTable(Table, frozen=True, kw_only=True):
    """Units that are bought once."""

    units: Annotated[Amount, says("How many.")]
    price: Annotated[MoneyTable | None, says("What it costs.")] = None
    expires: Annotated[str | None, says("How long the units last, such as 90d.")] = None
    wallet: Wallet = "credits"
    category: Annotated[Category, says("paid, promo, plan or adjustment.")] = "paid"
    priority: Priority = 0
    applies_to: AppliesTo = []
    stripe_price: StripePrice = ""


class GrantTable(Table, frozen=True, kw_only=True):
    """Units that a plan brings each period."""

    units: Annotated[Amount, says("How many.")]
    name: Annotated[str, says("Tells it from the plan's others; the wallet's if left out.")] = ""
    every: Annotated[Every | None, says("day, week, month or year; the plan's if left out.")] = None
    count: Annotated[int | None, says("Every how many of them; as the plan without both.")] = None
    rollover_min: Annotated[Amount, says("The least that a period begins with beside.")] = 0
    rollover_max: Annotated[Amount, says("The most that is carried over.")] = 0
    wallet: Wallet = "credits"
    priority: Priority = 0
    applies_to: AppliesTo = []


class PlanTable(Table, frozen=True, kw_only=True):
    """What a subscription brings."""

    grants: Annotated[list[GrantTable], says("Units that come each period.")] = []
    features: Features = {}
    every: Annotated[Every, says("Its period: day, week, month or year.")] = "month"
    count: Annotated[int, says("Every how many of them.")] = 1
    trial: Annotated[str | None, says("How long it may be tried, such as 14d.")] = None
    price: Annotated[MoneyTable | None, says("What a period costs.")] = None
    stripe_price: StripePrice = ""
    trial_again: Annotated[
        bool, says("Whether an account that had its trial has another when it begins anew.")
    ] = False


class PassTable(Table, frozen=True, kw_only=True):
    """Features for a time."""

    lasts: Annotated[str, says("How long, such as 24h; bought again, it lasts longer.")]
    features: Features = {}
    price: Annotated[MoneyTable | None, says("What it costs.")] = None
    stripe_price: StripePrice = ""


class FeatureTable(Table, frozen=True, kw_only=True):
    """What an account may be entitled to."""

    kind: Annotated[FeatureKind, says("boolean, limit or config.")] = "boolean"
    default: Annotated[
        bool | int | str | None, says("Its value for who has no entitlement to it.")
    ] = None


class CouponTable(Table, frozen=True, kw_only=True):
    """Units for who knows its name."""

    units: Annotated[Amount, says("How many.")]
    expires: Annotated[str | None, says("How long the units last, such as 30d.")] = None
    most: Annotated[int, says("How often one account may redeem it.")] = 1
    wallet: Wallet = "credits"
    priority: Priority = 0
    applies_to: AppliesTo = []


class AlertTable(Table, frozen=True, kw_only=True):
    """When to tell about a wallet; exactly one of the five rules."""

    wallet: Wallet = "credits"
    below: Annotated[Amount | None, says("Fewer units than this are left.")] = None
    percent: Annotated[int | None, says("Less than so many percent of live grants is left.")] = None
    days_left: Annotated[int | None, says("At the present pace it lasts fewer days.")] = None
    budget: Annotated[list[int], says("A budget reached these percentages.")] = []
    expiring: Annotated[list[int], says("A grant ends within so many days.")] = []


TABLES: dict[str, type[Table]] = {
    "pack": PackTable,
    "plan": PlanTable,
    "pass": PassTable,
    "feature": FeatureTable,
    "coupon": CouponTable,
    "alert": AlertTable,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "every": ("day", "week", "month", "year"),
    "kind": ("boolean", "limit", "config"),
    "category": ("paid", "promo", "plan", "adjustment"),
}


# --- reading ---------------------------------------------------------------------------------


def terms_of(row: Table) -> msgspec.Struct:
    """Return the terms that a table states.

    Raises:
        InvalidInput: A span that is none.
    """
    match row:
        case PackTable():
            return Pack(
                units=Decimal(row.units),
                price=_money(row.price),
                expires=_span(row.expires, "expires"),
                wallet=row.wallet,
                category=row.category,
                priority=row.priority,
                applies_to=tuple(row.applies_to),
                stripe_price=row.stripe_price,
            )
        case PlanTable():
            return Plan(
                grants=tuple(_allowance(grant, row) for grant in row.grants),
                features=row.features,
                every=row.every,
                count=row.count,
                trial=_span(row.trial, "trial"),
                price=_money(row.price),
                stripe_price=row.stripe_price,
                trial_again=row.trial_again,
            )
        case PassTable():
            return Pass(
                lasts=calendar.span(row.lasts, "lasts"),
                features=row.features,
                price=_money(row.price),
                stripe_price=row.stripe_price,
            )
        case FeatureTable():
            return FeatureTerms(kind=row.kind, default=row.default)
        case CouponTable():
            return Coupon(
                units=Decimal(row.units),
                expires=_span(row.expires, "expires"),
                most=row.most,
                wallet=row.wallet,
                priority=row.priority,
                applies_to=tuple(row.applies_to),
            )
        case AlertTable():
            return AlertTerms(
                wallet=row.wallet,
                below=None if row.below is None else Decimal(row.below),
                percent=row.percent,
                days_left=row.days_left,
                budget=tuple(row.budget),
                expiring=tuple(row.expiring),
            )
        case _:  # pragma: no cover - TABLES has no other
            raise AssertionError(type(row).__name__)


def _allowance(row: GrantTable, plan: PlanTable) -> Allowance:
    every, count = calendar.period_of(row.every, row.count, plan.every, plan.count)
    return Allowance(
        units=Decimal(row.units),
        name=row.name,
        every=every,
        count=count,
        rollover_min=Decimal(row.rollover_min),
        rollover_max=Decimal(row.rollover_max),
        wallet=row.wallet,
        priority=row.priority,
        applies_to=tuple(row.applies_to),
    )


def _money(row: MoneyTable | None) -> Money | None:
    return None if row is None else Money(Decimal(row.amount), row.currency)


def _span(text: str | None, name: str) -> int | None:
    return None if text is None else calendar.span(text, name)


# --- writing ---------------------------------------------------------------------------------


def tables(products: Products) -> list[str]:
    """Write every product as a table, sections in one order, names in that of the file."""
    written = []
    for section, named in sections(products).items():
        for name, terms in named.items():
            lines = [f"[{section}.{bare(name)}]", *fields_of(terms)]
            written.append("\n".join(lines))
    return written


def sections(products: Products) -> dict[str, Mapping[str, msgspec.Struct]]:
    """Return the products by the section that they stand in, in the order of the file."""
    return {
        "pack": products.packs,
        "plan": products.plans,
        "pass": products.passes,
        "feature": products.features,
        "coupon": products.coupons,
        "alert": products.alerts,
    }


def fields_of(terms: msgspec.Struct) -> list[str]:
    """Write what a product sets, one line a field; what has its default is left out."""
    # Any: each field has its own type, which its writer knows.
    value: Any
    lines: list[str] = []
    defaults = _defaults(type(terms))
    for name in terms.__struct_fields__:
        value = getattr(terms, name)
        if name in defaults and value == defaults[name]:
            continue
        if name == "grants":
            rows = "".join(f"  {{ {', '.join(_grant_fields(one, terms))} }},\n" for one in value)
            lines.append(f"grants = [\n{rows}]")
        elif name == "price":
            money = [("amount", amount(value.amount)), ("currency", quoted(value.currency))]
            lines += table_lines("price", money)
        elif name == "features":
            lines += table_lines("features", [(bare(k), shown(v)) for k, v in value.items()])
        elif name in ("expires", "trial", "lasts"):
            lines.append(f"{name} = {quoted(span_text(value))}")
        elif name == "applies_to":
            lines.append(f"applies_to = {texts(value)}")
        elif isinstance(value, tuple):
            lines.append(f"{name} = [{', '.join(str(n) for n in value)}]")
        elif isinstance(value, Decimal):
            lines.append(f"{name} = {amount(value)}")
        else:
            lines += set_fields((name, value, None, shown))
    return lines


def _grant_fields(grant: msgspec.Struct, plan: msgspec.Struct) -> list[str]:
    """Write what a plan's grant sets; its period only where it is not the plan's."""
    assert isinstance(grant, Allowance)
    assert isinstance(plan, Plan)
    lines = [line for line in fields_of(grant) if not line.startswith(("every =", "count ="))]
    if (grant.every, grant.count) == (plan.every, plan.count):
        return lines
    period = [f"every = {quoted(grant.every)}"]
    period += [f"count = {grant.count}"] if grant.count != 1 else []
    return lines[:1] + period + lines[1:]


def _defaults(kind: type[msgspec.Struct]) -> dict[str, object]:
    """Return each default of a struct; a dict's is kept by msgspec as a factory."""
    given = kind.__struct_defaults__
    names = kind.__struct_fields__[len(kind.__struct_fields__) - len(given) :]
    factories = (
        (name, getattr(one, "factory", None), one) for name, one in zip(names, given, strict=True)
    )
    return {name: one if factory is None else factory() for name, factory, one in factories}


def shown(value: Feature) -> str:
    """Write a feature's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:_}" if isinstance(value, int) else quoted(value)


_PARTS: tuple[tuple[Literal["d", "h", "m", "s"], int], ...] = (
    ("d", DAY),
    ("h", HOUR),
    ("m", MINUTE),
)


def span_text(micros: int) -> str:
    """Write a span as people do: 90d, 1h30m, 2.5s."""
    text = ""
    for letter, size in _PARTS:
        whole, micros = divmod(micros, size)
        text += f"{whole}{letter}" if whole else ""
    if not micros:
        return text
    seconds, part = divmod(micros, SECOND)
    return f"{text}{seconds}.{part:06d}s" if part else f"{text}{seconds}s"
