"""What a new price book would change: rule by rule, and against real past usage.

`diff` compares rules field by field, `impact` prices recorded usage with both. Both only compute;
applying a plan is the engine's, colouring it the command line's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec

from tillroll.catalog.products import fields_of, sections, shown
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import (
    Meters,
    Price,
    PriceBook,
    Priced,
    PriceVersion,
    Rate,
    Tier,
    Unpriced,
    content_digest,
    plain,
    price_request,
    rule_name,
    utc_text,
)
from tillroll.ledger.products import NOTHING, Pass, Products
from tillroll.ledger.products import Plan as Terms

__all__ = [
    "Change",
    "Effect",
    "FieldChange",
    "Holding",
    "Impact",
    "ImpactRow",
    "Plan",
    "ProductChange",
    "UsageRecord",
    "diff",
    "effects",
    "impact",
]

Sign: TypeAlias = Literal["+", "-", "~"]
Line: TypeAlias = tuple[str, str]

REASONS_MAX = 20  # distinct reasons listed by an impact; the count covers all


class FieldChange(msgspec.Struct, frozen=True):
    """One field that differs; None stands for "not there"."""

    field: str
    old: str | None
    new: str | None

    def text(self) -> str:
        """Write the change as people read it: `per_request 20 -> 25`."""
        if self.old is None:
            return f"{self.field} + {self.new}"
        if self.new is None:
            return f"{self.field} - {self.old}"
        return f"{self.field} {self.old} -> {self.new}"


class Change(msgspec.Struct, frozen=True):
    """One rule that is added (`+`), removed (`-`) or changed (`~`).

    Attributes:
        sign: Which of the three.
        rule: The name of the rule: `llm.chat/gpt-5*`, `image.generate@acme`.
        operation: Of the rule.
        model: Of the rule, if it has one.
        account: The account whose override this is, if it is one.
        fields: What differs; for an added or removed rule, all that it sets.
    """

    sign: Sign
    rule: str
    operation: str
    model: str | None
    account: str | None
    fields: tuple[FieldChange, ...]


class ProductChange(msgspec.Struct, frozen=True):
    """One product that is added (`+`), removed (`-`) or changed (`~`).

    Attributes:
        sign: Which of the three.
        section: pack, plan, pass, feature, coupon or alert.
        name: Of the product.
        fields: What differs; for an added or removed one, all that it sets.
    """

    sign: Sign
    section: str
    name: str
    fields: tuple[FieldChange, ...]

    @property
    def rule(self) -> str:
        """What it is called: `plan.pro`."""
        return f"{self.section}.{self.name}"


def _change_lines(change: Change | ProductChange) -> Iterator[Line]:
    if change.sign == "~":
        yield from (("~", f"{change.rule} {field.text()}") for field in change.fields)
        return
    told = ", ".join(
        f"{field.field} {field.new if change.sign == '+' else field.old}" for field in change.fields
    )
    yield change.sign, f"{change.rule}: {told}" if told else change.rule


class Plan(msgspec.Struct, frozen=True):
    """The difference between the version in force and new rules.

    Attributes:
        old_number: The version compared with; None when the book is empty.
        old_digest: Its digest. Apply only while this is still the one in force.
        new_digest: The digest that the new version will have.
        changes: Rule by rule, in the order of the new book, removed rules last.
        reordered: The rules are the same and stand in another order, which decides between
            rules that fit a request equally well.
    """

    old_number: int | None
    old_digest: str | None
    new_digest: str
    changes: tuple[Change, ...]
    reordered: bool = False
    products: tuple[ProductChange, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to apply."""
        return not self.changes and not self.reordered and not self.products

    def counts(self) -> dict[str, int]:
        """Count the changes by kind."""
        signs = Counter(change.sign for change in self.changes)
        signs.update(product.sign for product in self.products)
        return {"added": signs["+"], "changed": signs["~"], "removed": signs["-"]}

    def lines(self) -> list[Line]:
        """Write the plan as (sign, text) lines; the sign of the closing summary is a blank."""
        lines: list[Line] = []
        for change in self.changes:
            lines += _change_lines(change)
        for product in self.products:
            lines += _change_lines(product)
        if self.reordered:
            lines.append(("~", "the order of the rules"))
        summary = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        lines.append((" ", "no changes" if self.empty else summary))
        return lines

    def to_dict(self) -> dict[str, Any]:  # JSON
        """Return the plan as plain values for JSON."""
        return {**_builtins(self), "empty": self.empty, "counts": self.counts()}


def diff(
    old: PriceVersion | None,
    new_prices: Sequence[Price],
    new_overrides: Mapping[str, Sequence[Price]] | None = None,
    new_products: Products | None = None,
) -> Plan:
    """Compare the version in force with new rules and products.

    Args:
        old: The version in force, or None when there is none yet.
        new_prices: The rules of the new book.
        new_overrides: Account to its own rules.
        new_products: What the new catalog sells.
    """
    overrides = new_overrides or {}
    before: dict[str | None, Sequence[Price]] = {None: () if old is None else old.prices}
    before.update({} if old is None else old.overrides)
    after: dict[str | None, Sequence[Price]] = {None: new_prices}
    after.update(overrides)
    changes: list[Change] = []
    for account in dict.fromkeys([*after, *before]):
        changes += _changes(account, before.get(account, ()), after.get(account, ()))
    changes.sort(key=lambda change: change.sign == "-")
    new = new_products or NOTHING
    digest = content_digest(new_prices, overrides, new)
    sold = tuple(_product_changes(NOTHING if old is None else old.products, new))
    return Plan(
        old_number=None if old is None else old.number,
        old_digest=None if old is None else old.digest,
        new_digest=digest,
        changes=tuple(changes),
        reordered=old is not None
        and not changes
        and content_digest(old.prices, old.overrides) != content_digest(new_prices, overrides),
        products=sold,
    )


def _product_changes(old: Products, new: Products) -> Iterator[ProductChange]:
    """Compare products by section and name, those that are gone last."""
    gone: list[ProductChange] = []
    before, after = sections(old), sections(new)
    for section, named in after.items():
        for name, terms in named.items():
            was = before[section].get(name)
            fields = _compared({} if was is None else _written(was), _written(terms))
            if was is None:
                yield ProductChange("+", section, name, fields)
            elif fields:
                yield ProductChange("~", section, name, fields)
        gone += [
            ProductChange("-", section, name, _compared(_written(terms), {}))
            for name, terms in before[section].items()
            if name not in named
        ]
    yield from gone


def _written(terms: msgspec.Struct) -> dict[str, str]:
    """Write all that a product sets as text, grants and features each by themselves."""
    fields: dict[str, str] = {}
    for line in fields_of(terms):
        name, _, text = line.partition(" = ")
        if name == "grants":
            assert isinstance(terms, Terms)
            for grant in terms.grants:
                fields[f"grants.{grant.called}"] = ", ".join(fields_of(grant))
        elif name.startswith("features"):
            assert isinstance(terms, Terms | Pass)
            for feature, value in terms.features.items():
                fields[f"features.{feature}"] = shown(value)
        else:
            fields[name] = text.strip('"')
    return fields


# --- who is affected -------------------------------------------------------------------------


class Holding(msgspec.Struct, frozen=True):
    """How many accounts hold a product on the terms of one version.

    Attributes:
        section: pack, plan, pass or coupon.
        name: Of the product.
        version: Of the catalog that its terms are of.
        accounts: How many.
    """

    section: str
    name: str
    version: int
    accounts: int


class Effect(msgspec.Struct, frozen=True):
    """What a change means for the accounts that hold the product on one version's terms.

    Attributes:
        section: pack, plan or pass.
        name: Of the product.
        version: Of the catalog that these accounts have their terms of.
        accounts: How many.
        gained: What they would gain if they were moved, or bought again.
        lost: What they would lose.
        gone: The product is not sold any more; they keep what they have.
    """

    section: str
    name: str
    version: int
    accounts: int
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    gone: bool = False

    def lines(self) -> list[Line]:
        """Write the effect as (sign, text) lines."""
        noun = "account holds" if self.accounts == 1 else "accounts hold"
        head = f"{self.section}.{self.name}: {self.accounts:,} {noun} it on version {self.version}"
        if self.gone:
            return [("!", f"{head}; it is sold no more, what is held stays")]
        then = "bought again" if self.section == "pack" else "moved to this version"
        lines = [("!", f"{head}, which stays so; {then}:")]
        lines += [("+", f"  gains {text}") for text in self.gained]
        lines += [("-", f"  loses {text}") for text in self.lost]
        return lines


def effects(holdings: Iterable[Holding], book: PriceBook, new: Products) -> list[Effect]:
    """Return what new products mean for those who hold what differs from them.

    Args:
        holdings: Who holds what, from `Ledger.holdings`.
        book: Every version, for the terms that are held.
        new: What the new catalog sells.
    """
    found = []
    after = sections(new)
    for held in holdings:
        version = book.versions.get(held.version)
        old = sections(NOTHING if version is None else version.products)[held.section]
        was, now = old.get(held.name), after[held.section].get(held.name)
        if was is None or held.section == "coupon":
            continue  # what a coupon gave is given
        if now is None:
            found.append(Effect(**msgspec.structs.asdict(held), gone=True))
            continue
        gained, lost = _gained(_written(was), _written(now))
        if gained or lost:
            found.append(Effect(**msgspec.structs.asdict(held), gained=gained, lost=lost))
    return found


def _gained(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return what is new or other in words, and what was there and is not, or was otherwise."""
    told = ("units", "grants", "features", "expires", "lasts", "applies_to", "wallet")
    gained = []
    lost = []
    for field in _compared(old, new):
        if field.field.split(".")[0] not in told:
            continue
        if field.new not in (None, "false"):
            gained.append(f"{field.field} {field.new}")
        if field.old not in (None, "false"):
            lost.append(f"{field.field} {field.old}")
    return tuple(gained), tuple(lost)


def _changes(account: str | None, old: Sequence[Price], new: Sequence[Price]) -> Iterator[Change]:
    left = list(old)
    # First those whose identity and window agree, so that a rule moved in time is not mistaken
    # for the one beside it; then by identity alone.
    partner: dict[int, Price] = {}
    for same in (_dated, _named):
        for i, price in enumerate(new):
            if i in partner:
                continue
            match = next((other for other in left if same(other) == same(price)), None)
            if match is not None:
                left.remove(match)
                partner[i] = match
    for i, price in enumerate(new):
        if i not in partner:
            yield _change("+", account, price, _compared({}, _fields(price)))
            continue
        fields = _compared(_fields(partner[i]), _fields(price))
        if fields:
            yield _change("~", account, price, fields)
    for price in left:
        yield _change("-", account, price, _compared(_fields(price), {}))


def _change(
    sign: Sign, account: str | None, price: Price, fields: tuple[FieldChange, ...]
) -> Change:
    name = rule_name(price, account)
    return Change(sign, name, price.operation, price.model, account, fields)


def _named(price: Price) -> tuple[object, ...]:
    standing = price.valid_from is None and price.valid_to is None
    return (price.operation, price.model, standing)


def _dated(price: Price) -> tuple[object, ...]:
    return (price.operation, price.model, price.valid_from, price.valid_to)


def _compared(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[FieldChange, ...]:
    names = dict.fromkeys([*new, *old])
    return tuple(
        FieldChange(name, old.get(name), new.get(name))
        for name in names
        if old.get(name) != new.get(name)
    )


def _fields(price: Price) -> dict[str, str]:
    """Write all that a rule sets as text, one entry per line of the file."""
    fields: dict[str, str] = {}
    if price.per_request or not price.rates:
        fields["per_request"] = plain(price.per_request)
    for meter, rate in price.rates.items():
        fields.update(_rate_fields(f"rates.{meter}", rate))
    simple: tuple[tuple[str, Any, Any, Callable[[Any], str]], ...] = (
        ("minimum", price.minimum, None, plain),
        ("maximum", price.maximum, None, plain),
        ("wallet", price.wallet, "credits", str),
        ("rounding", price.rounding, "up", str),
        ("valid_from", price.valid_from, None, utc_text),
        ("valid_to", price.valid_to, None, utc_text),
        ("cached_within_input", price.cached_within_input, False, lambda _: "true"),
        ("reasoning_within_output", price.reasoning_within_output, False, lambda _: "true"),
        *(
            (f"maximum_meters.{m}", most, None, "{:,}".format)
            for m, most in price.maximum_meters.items()
        ),
        ("source", price.source, "", str),
    )
    for name, value, default, write in simple:  # Any: each writer takes its own field's type
        if value != default:
            fields[name] = write(value)
    return fields


def _rate_fields(name: str, rate: Rate) -> dict[str, str]:
    per = f" / {rate.per:,}" if rate.per != 1 else ""
    fields: dict[str, str] = {}
    if isinstance(rate.units, Decimal):
        fields[name] = f"{plain(rate.units)}{per}"
    elif rate.units is not None:
        for value, amount in rate.units.items():
            fields[f"{name}[{rate.by} {value}]"] = f"{plain(amount)}{per}"
    else:
        of = f" of {' + '.join(rate.tiers_by)}" if rate.tiers_by else ""
        for i, tier in enumerate(rate.tiers, start=1):
            fields[f"{name}[{rate.mode} tier {i}{of}]"] = f"{_tier_text(tier)}{per}"
    if rate.within is not None:
        fields[f"{name}.within"] = rate.within
    return fields


def _tier_text(tier: Tier) -> str:
    bound = "" if tier.up_to is None else f"up to {tier.up_to:,}: "
    return f"{bound}{plain(tier.units)}"


# --- impact ----------------------------------------------------------------------------------


class UsageRecord(msgspec.Struct, frozen=True):
    """One past request.

    Attributes:
        account: The account that was charged.
        operation: What was done.
        model: The model that did it, if any.
        meters: The raw quantities.
        attributes: What chose among rates, e.g. `{"size": "1024x1024"}`.
        units: What was charged, in units.
        at: When it took effect, microseconds UTC.
    """

    account: str
    operation: str
    model: str | None = None
    meters: Meters = {}
    attributes: Mapping[str, str] = {}
    units: Decimal = Decimal(0)
    at: int = 0


class ImpactRow(msgspec.Struct, frozen=True):
    """The change for one operation, one account, or all.

    Attributes:
        key: The operation or account; `total` for all.
        count: Requests.
        charged: What was charged at the time, whatever version did it.
        old: What the version in force would charge.
        new: What the new rules would charge.
        newly_unpriced: Requests that have a price now and would have none.
        newly_priced: Requests that have none now and would have one.
    """

    key: str
    count: int = 0
    charged: Decimal = Decimal(0)
    old: Decimal = Decimal(0)
    new: Decimal = Decimal(0)
    newly_unpriced: int = 0
    newly_priced: int = 0

    @property
    def difference(self) -> Decimal:
        """New minus old, in units."""
        return self.new - self.old


class Impact(msgspec.Struct, frozen=True):
    """What new rules would have done to past usage.

    Attributes:
        total: All of it.
        operations: By operation, the largest difference first.
        accounts: By account, the largest difference first.
        reasons: Why requests would be newly unpriced, with how many; the most frequent 20.
    """

    total: ImpactRow
    operations: tuple[ImpactRow, ...]
    accounts: tuple[ImpactRow, ...]
    reasons: tuple[tuple[str, int], ...]

    def lines(self, *, accounts_max: int = 10) -> list[Line]:
        """Write the impact as (sign, text) lines, the sign telling dearer from cheaper."""
        lines = [_row_line(row, "operation ") for row in self.operations]
        lines += [_row_line(row, "account ") for row in self.accounts[:accounts_max]]
        if len(self.accounts) > accounts_max:
            lines.append((" ", f"and {len(self.accounts) - accounts_max:,} more accounts"))
        lines += [("!", f"{count:,} newly unpriced: {reason}") for reason, count in self.reasons]
        return [*lines, _row_line(self.total)]

    def to_dict(self) -> dict[str, Any]:  # JSON
        """Return the impact as plain values for JSON; amounts are decimal strings."""
        return {
            "total": _row_dict(self.total),
            "operations": [_row_dict(row) for row in self.operations],
            "accounts": [_row_dict(row) for row in self.accounts],
            "reasons": [{"reason": reason, "count": count} for reason, count in self.reasons],
        }


class _Sum:
    """A row while it is being added up."""

    __slots__ = ("charged", "count", "new", "newly_priced", "newly_unpriced", "old")

    def __init__(self) -> None:
        self.count = self.newly_unpriced = self.newly_priced = 0
        self.charged = self.old = self.new = Decimal(0)

    def add(self, charged: Decimal, old: Decimal | None, new: Decimal | None) -> None:
        self.count += 1
        self.charged += charged
        self.old += old or 0
        self.new += new or 0
        self.newly_unpriced += old is not None and new is None
        self.newly_priced += old is None and new is not None

    def row(self, key: str) -> ImpactRow:
        return ImpactRow(
            key,
            self.count,
            self.charged,
            self.old,
            self.new,
            self.newly_unpriced,
            self.newly_priced,
        )


class _Pricer:
    """Prices usage in order with one version, carrying residuals as the ledger would."""

    def __init__(self, version: PriceVersion, scale: int) -> None:
        self.book = PriceBook({version.number: version}, version.number)
        self.scale = scale
        self.residuals: dict[tuple[str, str], Decimal] = {}  # by account and rule

    def price(self, usage: UsageRecord) -> Decimal | str:
        """Return the units, or the reason why there is no price."""
        try:
            priced = self._ask(usage, Decimal(0))
            if isinstance(priced, Unpriced):
                return priced.reason
            key = (usage.account, priced.rule)
            carried = self.residuals.get(key)
            if carried:  # only now is it known which rule it is, and so what it carries
                priced = self._ask(usage, carried)
                assert isinstance(priced, Priced)
        except InvalidInput as error:
            return str(error)
        if priced.residual_after or carried:
            self.residuals[key] = priced.residual_after
        return Decimal(priced.units).scaleb(-self.scale)

    def _ask(self, usage: UsageRecord, residual: Decimal) -> Priced | Unpriced:
        return price_request(
            self.book,
            usage.operation,
            usage.meters,
            model=usage.model,
            attributes=usage.attributes,
            account_ref=usage.account,
            at=usage.at,
            residual=residual,
            scale=self.scale,
        )


def impact(
    usage: Iterable[UsageRecord],
    old: PriceVersion | None,
    new: PriceVersion,
    *,
    scale: int = 6,
) -> Impact:
    """Price past usage with the version in force and with a new one.

    Args:
        usage: Past requests in the order in which they took effect; read once.
        old: The version in force; without one, what was charged stands for it.
        new: The version that is planned, from `new_version`.
        scale: Decimal places of the project's units.
    """
    total, reasons = _Sum(), Counter[str]()
    operations: dict[str, _Sum] = {}
    accounts: dict[str, _Sum] = {}
    before = None if old is None else _Pricer(old, scale)
    after = _Pricer(new, scale)
    for record in usage:
        then = record.units if before is None else before.price(record)
        now = after.price(record)
        if isinstance(now, str) and not isinstance(then, str):
            reasons[now] += 1
        amounts = (
            record.units,
            None if isinstance(then, str) else then,
            None if isinstance(now, str) else now,
        )
        total.add(*amounts)
        operations.setdefault(record.operation, _Sum()).add(*amounts)
        accounts.setdefault(record.account, _Sum()).add(*amounts)
    return Impact(
        total.row("total"),
        _rows(operations),
        _rows(accounts),
        tuple(reasons.most_common(REASONS_MAX)),
    )


def _rows(sums: Mapping[str, _Sum]) -> tuple[ImpactRow, ...]:
    rows = [found.row(key) for key, found in sums.items()]
    return tuple(sorted(rows, key=lambda row: (-abs(row.difference), row.key)))


def _row_line(row: ImpactRow, kind: str = "") -> Line:
    more = row.difference
    sign = "+" if more > 0 else "-" if more < 0 else " "
    noun = "request" if row.count == 1 else "requests"
    text = f"{kind}{row.key}: {row.count:,} {noun}, {plain(row.old)} -> {plain(row.new)} units"
    text += f" ({'+' if more > 0 else ''}{plain(more)})"
    if row.newly_unpriced:
        text += f", {row.newly_unpriced:,} newly unpriced"
    return sign, text


def _row_dict(row: ImpactRow) -> dict[str, Any]:  # JSON
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    fields["difference"] = row.difference
    return {k: plain(v) if isinstance(v, Decimal) else v for k, v in fields.items()}


def _builtins(struct: msgspec.Struct) -> dict[str, Any]:  # JSON
    found = msgspec.to_builtins(struct)
    assert isinstance(found, dict)
    return found
