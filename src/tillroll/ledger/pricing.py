"""The price book: from an operation and its meters to units, exactly and explainably.

Here live the rules (`Price`), the immutable versions of them (`PriceVersion`), the book that
holds the versions, and the one function that prices a request (`price_request`). Everything is a
pure function of its arguments; files, TOML and proposals from vendors live in `tillroll.catalog`.

How the arithmetic stays exact. A price is compiled once per version: all its rates are brought
to one common denominator, so that pricing a request is a sum of integer products and a single
integer division at the end, where the rounding rule decides. Nothing is rounded on the way, a
rate "per 3" included. `Decimal` appears at the border only, never `float`.

Read next: docs/concepts/prices.md for the ideas, docs/reference/price-book.md for each field.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Clamped, Context, Decimal, DivisionByZero, Inexact, InvalidOperation
from fractions import Fraction
from typing import Literal, TypeAlias, assert_never

import msgspec

from tillroll.ledger.calendar import INSTANT_END, INSTANT_MIN
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.products import NOTHING, Products, check_products

__all__ = [
    "ROUNDINGS",
    "Meters",
    "Price",
    "PriceBook",
    "PriceVersion",
    "Priced",
    "Rate",
    "Rounding",
    "Tier",
    "TierMode",
    "Unpriced",
    "check_meters",
    "clashes_among",
    "content_digest",
    "decode_version",
    "encode_version",
    "explain_price",
    "is_glob",
    "is_name",
    "new_version",
    "plain",
    "price_hold",
    "price_request",
    "problems_of",
    "rule_name",
    "utc_text",
]

Rounding: TypeAlias = Literal["up", "half_even", "carry"]
TierMode: TypeAlias = Literal["graduated", "volume"]
Quantity: TypeAlias = int | Decimal
Meters: TypeAlias = Mapping[str, Quantity]

ROUNDINGS: tuple[Rounding, ...] = ("up", "half_even", "carry")

# Bounds. They keep every exact amount within 60 digits: 16 digits before the point (2^53), at
# most 30 places from rates and `per`, at most 9 from a quantity: 16 + 30 + 9 = 55.
PRECISION = 60
LIMIT = 2**53  # of a quantity, and of an amount in a rule
RATE_PLACES_MAX = 18
CARRY_PLACES_MAX = 30
QUANTITY_PLACES_MAX = 9
PER_MAX = 10**12
METERS_MAX = 64
NAME_LENGTH_MAX = 255
NAME_RULE = "1 to 255 characters without control characters"
WALLET_RULE = "1 to 64 of a-z, 0-9, dot, dash and underscore"
STARS_MAX = 4  # in one glob: matching stays cheap whatever the name
KNOWN_MAX = 50  # names listed in a refusal
LOOKUPS_MAX = 4096  # remembered (operation, model) pairs per version; then forgotten, not grown

# Meters that the shorthands `cached_within_input`, `reasoning_within_output` place in another.
CACHE_METERS = ("cached_tokens", "cache_write_tokens")
REASONING_METERS = ("reasoning_tokens",)

_ZERO = Decimal(0)
# Control characters, and halves of surrogate pairs, which no encoding can store. Not
# str.isprintable(): what is printable depends on the Python version.
_WALLET = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z", re.ASCII)
_UNNAMEABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Contexts carry flags, which are only ever set, never read here: sharing them is harmless.
_ROUNDED = Context(prec=PRECISION, traps=[InvalidOperation, DivisionByZero])
_EXACT = Context(prec=PRECISION, traps=[InvalidOperation, DivisionByZero, Inexact, Clamped])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- the rules -------------------------------------------------------------------------------


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step of a tiered rate.

    Attributes:
        units: Units for `per` of the meter while in this tier.
        up_to: The last quantity in this tier; left out in the last tier only.
    """

    units: Decimal
    up_to: int | None = None


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one meter costs: a flat rate, a rate chosen by an attribute, or tiers.

    Attributes:
        units: Units for `per` of the meter; or, together with `by`, one amount per value of that
            attribute (the key `*` stands for every other value). None when there are tiers.
        per: How many of the meter the units are for, e.g. 1_000_000 tokens.
        by: The attribute of the request that chooses among `units`, e.g. `size`.
        tiers: Steps in ascending order of `up_to`, on the quantity of the single request.
        mode: `graduated`: each part of the quantity pays the rate of its own tier. `volume`: the
            whole quantity pays the rate of the tier that it reaches.
        tiers_by: Only with `volume`: the reported meters whose sum picks the tier, where that is
            not the quantity of this meter itself (long-context prices).
        within: The meter whose reported quantity already counts this one; it is subtracted there.
    """

    units: Decimal | Mapping[str, Decimal] | None = None
    per: int = 1
    by: str | None = None
    tiers: tuple[Tier, ...] = ()
    mode: TierMode = "graduated"
    tiers_by: tuple[str, ...] = ()
    within: str | None = None


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule of the price book.

    Attributes:
        operation: The exact name of the operation, or a pattern with `*` (`llm.*`).
        model: An exact model or a pattern (`gpt-5*`); None matches with and without a model.
        wallet: The wallet that pays.
        per_request: Units for each request, whatever its meters.
        rates: Meter to rate. Meters that are not named here are refused, a missing one counts 0.
        minimum: The least that a request costs, in units.
        maximum: The most that a request costs, in units.
        rounding: `up`, `half_even`, or `carry` (round down and carry the rest to the next request
            that the same rule prices).
        valid_from: From when the rule holds, microseconds UTC, inclusive.
        valid_to: Until when it holds, microseconds UTC, exclusive.
        cached_within_input: `input_tokens` as reported includes `cached_tokens` and
            `cache_write_tokens`: they are known meters, and those with a rate of their own are
            subtracted from the input. Without it they are taken to be counted apart.
        reasoning_within_output: The same for `output_tokens` and `reasoning_tokens`.
        maximum_meters: What a hold assumes of a meter that is not known beforehand.
        source: Where the figures come from, in words.
    """

    operation: str
    model: str | None = None
    wallet: str = "credits"
    per_request: Decimal = _ZERO
    rates: Mapping[str, Rate] = {}
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    rounding: Rounding = "up"
    valid_from: int | None = None
    valid_to: int | None = None
    cached_within_input: bool = False
    reasoning_within_output: bool = False
    maximum_meters: Mapping[str, int] = {}
    source: str = ""


class PriceVersion(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """An immutable state of the price book. Build one with `new_version`.

    Attributes:
        number: Counts from 1 within a project; pinned on every charge.
        digest: SHA-256 (hex) of the rules and overrides; two versions with the same rules agree.
        prices: The rules, in the order of the file.
        overrides: Account to the rules that are tried first for it.
        author: Who applied it.
        reason: Why, in the author's words.
        applied_at: When, in microseconds UTC.
        products: What is sold beside: packs, plans, passes, features, coupons, alerts.
    """

    number: int
    digest: str
    prices: tuple[Price, ...]
    overrides: Mapping[str, tuple[Price, ...]] = {}
    author: str = ""
    reason: str = ""
    applied_at: int = 0
    products: Products = NOTHING

    @functools.cached_property
    def _index(self) -> _Index:
        # Derived from the fields alone; `dict=True` above gives it a place to stay.
        return _Index(self)


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All known versions, and the number of the one in force (0: none yet)."""

    versions: Mapping[int, PriceVersion] = {}
    current: int = 0

    @property
    def products(self) -> Products:
        """What the version in force sells; nothing where there is none yet."""
        version = self.versions.get(self.current)
        return NOTHING if version is None else version.products

    def version(self, number: int) -> PriceVersion:
        """Return the version with this number.

        Raises:
            InvalidInput: there is no such version; nothing written.
        """
        try:
            return self.versions[number]
        except KeyError:
            message = f"price version {number} is not known"
            raise InvalidInput(message) from None

    def adding(self, version: PriceVersion) -> PriceBook:
        """Return a book that also holds `version` and has it in force.

        Raises:
            InvalidInput: another version has this number; versions never change.
        """
        known = self.versions.get(version.number)
        if known is not None and known != version:
            message = f"price version {version.number} exists already and versions never change"
            raise InvalidInput(message)
        return PriceBook({**self.versions, version.number: version}, version.number)


class Priced(msgspec.Struct, frozen=True, gc=False):
    """The price of one request.

    Attributes:
        units: The amount to charge, in whole 10^-scale units.
        exact: The amount before rounding, in units; to 60 digits where it does not come out even.
        residual_after: What to pass as `residual` next time; unchanged unless rounding is `carry`.
        wallet: The wallet that pays.
        version: The number of the price version.
        rule: The rule, e.g. `image.generate`, `llm.chat/gpt-5*`, `image.generate@acme` (override).
    """

    units: int
    exact: Decimal
    residual_after: Decimal
    wallet: str
    version: int
    rule: str


class Unpriced(msgspec.Struct, frozen=True):
    """No price: the book does not know this request.

    Attributes:
        reason: A sentence that says what is unknown.
        known: What would have been known in its place, at most 50 names.
    """

    reason: str
    known: tuple[str, ...] = ()


# --- names and text --------------------------------------------------------------------------


def is_name(name: str) -> bool:
    """Say whether a text can name an operation, a model, a meter or an account."""
    return 0 < len(name) <= NAME_LENGTH_MAX and _UNNAMEABLE.search(name) is None


def is_wallet(name: str) -> bool:
    """Say whether a text can name a wallet: what no grant could fill, no price may ask for."""
    return _WALLET.match(name) is not None


def is_glob(name: str) -> bool:
    """Say whether a name of a rule is a pattern."""
    return "*" in name


def rule_name(price: Price, account_ref: str | None = None) -> str:
    """Name a rule as entries and refusals do: `llm.chat/gpt-5*`, `image.generate@acme`."""
    name = price.operation if price.model is None else f"{price.operation}/{price.model}"
    return name if account_ref is None else f"{name}@{account_ref}"


def plain(amount: Decimal) -> str:
    """Write a decimal without exponent and without needless zeros."""
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def utc_text(micros: int) -> str:
    """Write an instant, given in microseconds UTC, the ISO way."""
    text = (_EPOCH + timedelta(microseconds=micros)).isoformat()
    return text.replace("+00:00", "Z")


# --- pricing ---------------------------------------------------------------------------------


def price_request(
    book: PriceBook,
    operation: str,
    meters: Meters,
    *,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
    account_ref: str,
    at: int,
    version: int | None = None,
    residual: Decimal = _ZERO,
    scale: int = 6,
) -> Priced | Unpriced:
    """Price one request.

    Args:
        book: The price book.
        operation: What was done, e.g. `image.generate`.
        meters: Raw quantities, `int` or `Decimal`, not negative, below 2^53.
        model: The model that did it, where prices depend on it.
        attributes: Qualities that choose a rate, e.g. `{"size": "1024x1024"}`.
        account_ref: Your own id of the account; its overrides are tried first.
        at: When the request took effect, microseconds UTC.
        version: The version to price with; the one in force if left out.
        residual: What the same rule carried from the account's last request, see `Priced`.
        scale: Decimal places of the project's units.

    Returns:
        The price, or an `Unpriced` that says what is not known.

    Raises:
        InvalidInput: a quantity is a float, negative or too large. Use `check_meters` at the
            edge and this never happens here. Nothing written.
    """
    number = book.current if version is None else version
    rules = book.versions.get(number)
    if rules is None:
        return _no_version(number)
    rule = rules._index.find(operation, model, account_ref, at)  # noqa: SLF001 - same module
    if rule is None:
        return _no_rule(rules, operation, model, account_ref, at)
    if not meters and rule.flat is not None and not residual:
        ready = rule.flat.get(scale)
        if ready is None:
            ready = rule.flat[scale] = _rounded(rule, number, rule.base, rule.den, _ZERO, scale)
        return ready
    coefficients = rule.plain
    total = rule.base
    if coefficients is None:
        return _price_steps(rule, number, meters, attributes, residual, scale)
    for meter, quantity in meters.items():
        coefficient = coefficients.get(meter)
        if coefficient is None or type(quantity) is not int or not 0 <= quantity < LIMIT:
            # Unknown, a Decimal, or malformed: the long way finds out which.
            return _price_steps(rule, number, meters, attributes, residual, scale)
        total += coefficient * quantity
    for whole, parts in rule.wholes:
        if sum(meters.get(part, 0) for part in parts) > meters.get(whole, 0):
            return _more_than_whole(rule, whole, parts, meters)
    return _rounded(rule, number, total, rule.den, residual, scale)


def price_hold(
    book: PriceBook,
    operation: str,
    meters: Meters,
    *,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
    account_ref: str,
    at: int,
    version: int | None = None,
    scale: int = 6,
) -> Priced | Unpriced:
    """Price the worst case of a request whose quantities are not all known yet.

    A meter that is not given takes its value from the rule's `maximum_meters`, else 0. When the
    rule charges by meters and neither says anything, the rule's `maximum` is held; a rule
    without one cannot be held blindly and the answer is `Unpriced`. Parameters, answers and
    errors are those of `price_request`; nothing is carried, and `carry` is rounded up.
    """
    number = book.current if version is None else version
    rules = book.versions.get(number)
    if rules is None:
        return _no_version(number)
    rule = rules._index.find(operation, model, account_ref, at)  # noqa: SLF001 - same module
    if rule is None:
        return _no_rule(rules, operation, model, account_ref, at)
    price = rule.price
    filled = {**price.maximum_meters, **meters}
    if price.rates and not filled:
        if price.maximum is not None:
            return _rounded(rule, number, rule.maximum or 0, rule.den, None, scale)
        return Unpriced(
            f"a hold for {rule.name} needs quantities: give meters, or set maximum_meters or "
            f"maximum in its price",
            _listed(price.rates),
        )
    return _price_steps(rule, number, filled, attributes, None, scale)


def check_meters(meters: Mapping[str, object]) -> None:
    """Refuse malformed quantities at the edge, before anything is queued.

    Raises:
        InvalidInput: not `int` or `Decimal` (floats are refused: quote the number), negative,
            not below 2^53, more than 9 decimal places, or more than 64 meters. Nothing written.
    """
    if len(meters) > METERS_MAX:
        message = f"at most {METERS_MAX} meters in one request, not {len(meters)}"
        raise InvalidInput(message)
    for meter, quantity in meters.items():
        _check_quantity(meter, quantity)


def _check_quantity(meter: str, quantity: object) -> Quantity:
    if isinstance(quantity, bool) or not isinstance(quantity, int | Decimal):
        kind = type(quantity).__name__
        message = f"meter {meter}: expected an int or a Decimal, not a {kind} ({quantity!r})"
        raise InvalidInput(message)
    if isinstance(quantity, Decimal):
        exponent = quantity.as_tuple().exponent
        if not isinstance(exponent, int):
            message = f"meter {meter}: {quantity} is not a number"
            raise InvalidInput(message)
        # Before the next comparison, so that nobody makes us expand 1e999999.
        if quantity.adjusted() > len(str(LIMIT)) or exponent < -QUANTITY_PLACES_MAX:
            message = f"meter {meter}: {quantity} is too large or has more than 9 decimal places"
            raise InvalidInput(message)
    if not 0 <= quantity < LIMIT:
        message = f"meter {meter}: {quantity} is not between 0 and 2^53"
        raise InvalidInput(message)
    return quantity


class _Step(msgspec.Struct, frozen=True):
    """One product of the sum: what is added for one meter, or one tier of it."""

    meter: str
    quantity: int  # over the request's common denominator
    coefficient: int  # over the rule's
    units: Decimal  # the same as written in the rule, for people
    per: int
    note: str = ""


def _price_steps(
    rule: _Rule,
    number: int,
    meters: Meters,
    attributes: Mapping[str, str] | None,
    residual: Decimal | None,
    scale: int,
) -> Priced | Unpriced:
    """Price the general case: fractions of a meter, tiers, attributes, meters within meters."""
    steps = _steps(rule, meters, attributes or {})
    if isinstance(steps, Unpriced):
        return steps
    share, products = steps
    total = rule.base * share + sum(step.quantity * step.coefficient for step in products)
    return _rounded(rule, number, total, rule.den * share, residual, scale)


def _steps(
    rule: _Rule, meters: Meters, attributes: Mapping[str, str]
) -> tuple[int, list[_Step]] | Unpriced:
    """Return the quantities' common denominator and the products to add up."""
    known = rule.price.rates
    share = 1
    for meter, quantity in meters.items():
        if meter not in known and meter not in rule.unrated:
            return _no_meter(rule, meter)
        if isinstance(_check_quantity(meter, quantity), Decimal):
            share = math.lcm(share, quantity.as_integer_ratio()[1])
    reported = {meter: int(quantity * share) for meter, quantity in meters.items()}
    products: list[_Step] = []
    for whole, parts in rule.wholes:
        if sum(reported.get(part, 0) for part in parts) > reported.get(whole, 0):
            return _more_than_whole(rule, whole, parts, meters)
    for meter, rate in rule.meters.items():
        if meter not in reported:
            continue
        quantity = reported[meter]
        inside = sum(reported.get(child, 0) for child in rate.children)
        note = _apart(rate.children, meters)
        chosen = rate.steps(meter, quantity - inside, reported, share, attributes, note)
        if isinstance(chosen, Unpriced):
            return chosen
        products.extend(chosen)
    return share, products


def _rounded(
    rule: _Rule, number: int, total: int, den: int, residual: Decimal | None, scale: int
) -> Priced:
    """Apply minimum, maximum and the rounding rule to the fraction total/den."""
    if rule.bounded:
        share = den // rule.den
        if rule.minimum is not None and total < rule.minimum * share:
            total = rule.minimum * share
        elif rule.maximum is not None and total > rule.maximum * share:
            total = rule.maximum * share
    raised = total * 10**scale
    after = _ZERO if residual is None else residual
    rounding = rule.price.rounding
    if rounding == "up" or residual is None:
        units = -(-raised // den)
    elif rounding == "half_even":
        units = _half_even(raised, den)
    else:
        units, after = _carried(total, den, residual, scale)
    return Priced(
        units,
        _ROUNDED.divide(Decimal(total), Decimal(den)),
        after,
        rule.wallet,
        number,
        rule.name,
    )


def _half_even(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return whole + (twice > denominator or (twice == denominator and whole % 2 == 1))


def _carried(total: int, den: int, residual: Decimal, scale: int) -> tuple[int, Decimal]:
    """Charge what is whole and carry the rest, so that a sum of requests loses nothing.

    The rest stays in [0, 10^-scale): never more is charged than the exact sum, and less by under
    one smallest unit.
    """
    if not residual.is_finite() or residual < 0:
        message = f"a residual is a decimal of 0 or more, not {residual}"
        raise InvalidInput(message)
    top, bottom = residual.as_integer_ratio()
    numerator = (total * bottom + top * den) * 10**scale
    denominator = den * bottom
    units, rest = divmod(numerator, denominator)
    # problems_of() has seen to it that this comes out even.
    common = math.gcd(rest, denominator * 10**scale)
    after = _EXACT.divide(Decimal(rest // common), Decimal(denominator * 10**scale // common))
    return units, after


# --- what is not known -----------------------------------------------------------------------


def _listed(names: Iterator[str] | Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))[:KNOWN_MAX]


def _alike(name: str, known: tuple[str, ...]) -> str:
    import difflib  # noqa: PLC0415 - only who misspelt something needs it

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _no_version(number: int) -> Unpriced:
    if number == 0:
        return Unpriced("the price book is empty: no version has been applied yet")
    return Unpriced(f"price version {number} is not known")


def _no_rule(
    rules: PriceVersion, operation: str, model: str | None, account_ref: str, at: int
) -> Unpriced:
    every = (*rules.overrides.get(account_ref, ()), *rules.prices)
    named = [price for price in every if _matches(price.operation, operation)]
    where = f"in price version {rules.number}"
    if not named:
        known = _listed([price.operation for price in every])
        hint = _alike(operation, known)
        return Unpriced(f"operation {operation} has no price {where}{hint}", known)
    models = _listed([price.model for price in named if price.model is not None])
    alive = [p for p in named if p.model is None or (model and _matches(p.model, model))]
    if not alive:
        if model is None:
            return Unpriced(f"operation {operation} is priced by model {where}; name one", models)
        hint = _alike(model, models)
        return Unpriced(
            f"operation {operation} has no price for model {model} {where}{hint}", models
        )
    windows = [_window_text(price) for price in alive]
    reason = f"operation {operation} has a price {where}, but not at {utc_text(at)}"
    return Unpriced(reason, _listed(windows))


def _window_text(price: Price) -> str:
    start = "" if price.valid_from is None else f" from {utc_text(price.valid_from)}"
    end = "" if price.valid_to is None else f" until {utc_text(price.valid_to)}"
    return f"{rule_name(price)}{start}{end}"


def _no_meter(rule: _Rule, meter: str) -> Unpriced:
    known = _listed([*rule.price.rates, *rule.unrated])
    if not known:
        return Unpriced(f"{rule.name} charges per request and knows no meter {meter}", known)
    hint = _alike(meter, known)
    return Unpriced(f"{rule.name} has no rate for meter {meter}{hint}", known)


def _more_than_whole(
    rule: _Rule, meter: str, children: tuple[str, ...], meters: Meters
) -> Unpriced:
    given = " + ".join(f"{child} {meters[child]}" for child in children if child in meters)
    reason = (
        f"{rule.name} counts {', '.join(children)} within {meter}, "
        f"but {given} is more than {meter} {meters.get(meter, 0)}"
    )
    return Unpriced(reason, _listed(rule.price.rates))


def _apart(children: tuple[str, ...], meters: Meters) -> str:
    given = [f"{meters[child]:,} {child}" for child in children if meters.get(child)]
    return f"without {' and '.join(given)}, priced apart" if given else ""


# --- compiled form: derived once per version -------------------------------------------------


class _Meter:
    """A rate with its coefficients over the rule's common denominator."""

    __slots__ = ("children", "coefficient", "rate", "tiers", "values")

    def __init__(self, rate: Rate, den: int, children: tuple[str, ...]) -> None:
        self.rate = rate
        self.children = children
        self.coefficient = 0
        self.values: dict[str, int] = {}
        self.tiers = tuple((tier, _over(tier.units, rate.per, den)) for tier in rate.tiers)
        if isinstance(rate.units, Decimal):
            self.coefficient = _over(rate.units, rate.per, den)
        elif rate.units is not None:
            self.values = {key: _over(u, rate.per, den) for key, u in rate.units.items()}

    def steps(
        self,
        meter: str,
        quantity: int,
        reported: Mapping[str, int],
        share: int,
        attributes: Mapping[str, str],
        note: str,
    ) -> list[_Step] | Unpriced:
        rate = self.rate
        if self.tiers:
            return self._tiered(meter, quantity, reported, share, note)
        if rate.by is None:
            assert isinstance(rate.units, Decimal)
            return [_Step(meter, quantity, self.coefficient, rate.units, rate.per, note)]
        assert isinstance(rate.units, Mapping)
        value = attributes.get(rate.by)
        key = value if value in self.values else "*"
        if key not in self.values:
            given = "is missing" if value is None else f"{value!r} has no rate"
            return Unpriced(
                f"meter {meter} is priced by {rate.by}, which {given}", _listed(rate.units)
            )
        told = _joined(f"{rate.by} {value}", note)
        return [_Step(meter, quantity, self.values[key], rate.units[key], rate.per, told)]

    def _tiered(
        self, meter: str, quantity: int, reported: Mapping[str, int], share: int, note: str
    ) -> list[_Step]:
        rate = self.rate
        pieces = self._volume if rate.mode == "volume" else self._graduated
        return [
            _Step(
                meter,
                part,
                coefficient,
                tier.units,
                rate.per,
                _joined(_tier_text(tier, rate), note),
            )
            for part, tier, coefficient in pieces(quantity, reported, share)
        ]

    def _volume(
        self, quantity: int, reported: Mapping[str, int], share: int
    ) -> list[tuple[int, Tier, int]]:
        by = self.rate.tiers_by
        size = sum(reported.get(name, 0) for name in by) if by else quantity
        for tier, coefficient in self.tiers[:-1]:
            assert tier.up_to is not None
            if size <= tier.up_to * share:
                return [(quantity, tier, coefficient)]
        return [(quantity, *self.tiers[-1])]

    def _graduated(
        self, quantity: int, _reported: Mapping[str, int], share: int
    ) -> list[tuple[int, Tier, int]]:
        pieces: list[tuple[int, Tier, int]] = []
        done = 0
        for tier, coefficient in self.tiers:  # pragma: no branch - the last tier has no end
            top = quantity if tier.up_to is None else min(quantity, tier.up_to * share)
            pieces.append((top - done, tier, coefficient))
            done = top
            if done == quantity:
                break
        return pieces


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _tier_text(tier: Tier, rate: Rate) -> str:
    of = f" of {' + '.join(rate.tiers_by)}" if rate.tiers_by else ""
    return f"tier up to {tier.up_to:,}{of}" if tier.up_to is not None else f"last tier{of}"


def _over(units: Decimal, per: int, den: int) -> int:
    top, bottom = units.as_integer_ratio()
    whole, rest = divmod(top * den, bottom * per)
    assert rest == 0, "the common denominator covers every rate"
    return whole


def _amounts(price: Price) -> Iterator[Fraction]:
    yield Fraction(price.per_request)
    for bound in (price.minimum, price.maximum):
        if bound is not None:
            yield Fraction(bound)
    for rate in price.rates.values():
        amounts: list[Decimal] = [tier.units for tier in rate.tiers]
        if isinstance(rate.units, Decimal):
            amounts.append(rate.units)
        elif rate.units is not None:
            amounts.extend(rate.units.values())
        for amount in amounts:
            yield Fraction(amount) / rate.per


def _whole_of(price: Price, meter: str) -> str | None:
    """Return the meter that already counts this one, by `within` or by a shorthand."""
    within = price.rates[meter].within
    return _shorthand(price).get(meter) if within is None else within


def _shorthand(price: Price) -> dict[str, str]:
    """Return the meters that the two shorthands place within another one."""
    placed: dict[str, str] = {}
    if price.cached_within_input:
        placed.update(dict.fromkeys(CACHE_METERS, "input_tokens"))
    if price.reasoning_within_output:
        placed.update(dict.fromkeys(REASONING_METERS, "output_tokens"))
    return placed


class _Rule:
    """A price ready to be applied: integers over one denominator."""

    __slots__ = (
        "base",
        "bounded",
        "den",
        "flat",
        "maximum",
        "meters",
        "minimum",
        "name",
        "plain",
        "price",
        "rank",
        "unrated",
        "wallet",
        "wholes",
    )

    def __init__(self, price: Price, account_ref: str | None, position: int) -> None:
        self.price = price
        self.name = rule_name(price, account_ref)
        self.wallet = price.wallet
        self.rank = _rank(price, position)
        self.den = den = math.lcm(*(amount.denominator for amount in _amounts(price)))
        self.base = _over(price.per_request, 1, den)
        self.minimum = None if price.minimum is None else _over(price.minimum, 1, den)
        self.maximum = None if price.maximum is None else _over(price.maximum, 1, den)
        self.bounded = price.minimum is not None or price.maximum is not None
        inside: dict[str, list[str]] = {}
        for meter in price.rates:
            whole = _whole_of(price, meter)
            if whole is not None:
                inside.setdefault(whole, []).append(meter)
        # Known by a shorthand, without a rate of their own: they stay in the whole and pay its
        # rate, but are still checked against it.
        self.unrated = {m: w for m, w in _shorthand(price).items() if m not in price.rates}
        self.meters = {
            meter: _Meter(rate, den, tuple(inside.get(meter, ())))
            for meter, rate in price.rates.items()
        }
        simple = all(isinstance(rate.units, Decimal) for rate in price.rates.values())
        # The integer fast path: one coefficient per meter, or None where more is needed. What is
        # within another meter is subtracted there, so its coefficient is the difference:
        # (input - cached) x 5 + cached x 1 = input x 5 + cached x (1 - 5).
        self.plain = {m: c.coefficient for m, c in self.meters.items()} if simple else None
        if self.plain is not None:
            for whole, parts in inside.items():
                for part in parts:
                    self.plain[part] -= self.meters[whole].coefficient
            self.plain.update(dict.fromkeys(self.unrated, 0))
        for meter, whole in self.unrated.items():
            inside.setdefault(whole, []).append(meter)
        self.wholes = tuple((whole, tuple(parts)) for whole, parts in inside.items())
        # A request without meters costs the same every time: the answer itself is kept, by scale.
        self.flat: dict[int, Priced] | None = {} if simple else None

    def holds_at(self, at: int) -> bool:
        price = self.price
        return (price.valid_from is None or price.valid_from <= at) and (
            price.valid_to is None or at < price.valid_to
        )


def _rank(price: Price, position: int) -> tuple[object, ...]:
    """Order rules: the more exactly a rule names a request, the earlier it is tried."""
    operation, model = price.operation, price.model
    always = price.valid_from is None and price.valid_to is None
    return (
        is_glob(operation),
        -len(operation.replace("*", "")) if is_glob(operation) else 0,
        2 if model is None else int(is_glob(model)),
        0 if model is None else -len(model.replace("*", "")),
        always,  # a rule for a limited time beats the standing one
        position,
    )


@functools.lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in glob.split("*")), re.DOTALL)


def _matches(name: str, given: str) -> bool:
    return _pattern(name).fullmatch(given) is not None if is_glob(name) else name == given


class _Rules:
    """The rules of the book, or of one account, and which of them match what."""

    __slots__ = ("found", "rules")

    def __init__(self, prices: Sequence[Price], account_ref: str | None) -> None:
        rules = [_Rule(price, account_ref, i) for i, price in enumerate(prices)]
        self.rules = sorted(rules, key=lambda rule: rule.rank)
        self.found: dict[tuple[str, str | None], tuple[_Rule, ...]] = {}

    def first(self, operation: str, model: str | None, at: int) -> _Rule | None:
        candidates = self.found.get((operation, model))
        if candidates is None:
            candidates = self._search(operation, model)
        for rule in candidates:
            if rule.holds_at(at):
                return rule
        return None

    def _search(self, operation: str, model: str | None) -> tuple[_Rule, ...]:
        candidates = tuple(
            rule
            for rule in self.rules
            if _matches(rule.price.operation, operation)
            and (
                rule.price.model is None
                or (model is not None and _matches(rule.price.model, model))
            )
        )
        if candidates:  # what is unknown is never remembered: its names are endless
            if len(self.found) >= LOOKUPS_MAX:
                self.found.clear()
            self.found[operation, model] = candidates
        return candidates


class _Index:
    """All that can be derived from a version before the first request."""

    __slots__ = ("accounts", "book")

    def __init__(self, version: PriceVersion) -> None:
        self.book = _Rules(version.prices, None)
        self.accounts = {ref: _Rules(prices, ref) for ref, prices in version.overrides.items()}

    def find(self, operation: str, model: str | None, account_ref: str, at: int) -> _Rule | None:
        if self.accounts:
            own = self.accounts.get(account_ref)
            rule = None if own is None else own.first(operation, model, at)
            if rule is not None:
                return rule
        return self.book.first(operation, model, at)


# --- explaining ------------------------------------------------------------------------------


def explain_price(
    book: PriceBook,
    operation: str,
    meters: Meters,
    *,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
    account_ref: str,
    at: int,
    version: int | None = None,
    residual: Decimal = _ZERO,
    scale: int = 6,
) -> list[str]:
    """Recompute a price and write out how the amount came about, one line a step.

    Parameters and errors are those of `price_request`. Lines such as
    `1,200 input_tokens x 2.5 / 1,000,000 = 0.003`, `minimum 0.01 applies`,
    `rounded up to 6 decimals: 0.010000`; or one line that begins with `unpriced:`.
    """
    priced = price_request(
        book,
        operation,
        meters,
        model=model,
        attributes=attributes,
        account_ref=account_ref,
        at=at,
        version=version,
        residual=residual,
        scale=scale,
    )
    if isinstance(priced, Unpriced):
        return [f"unpriced: {priced.reason}", *(f"known: {name}" for name in priced.known)]
    index = book.version(priced.version)._index  # noqa: SLF001 - same module
    rule = index.find(operation, model, account_ref, at)
    assert rule is not None
    steps = _steps(rule, meters, attributes or {})
    assert not isinstance(steps, Unpriced)
    lines = [f"price version {priced.version}, rule {priced.rule}"]
    lines += _sum_lines(rule, *steps)
    lines += _rounding_lines(rule, priced, residual, scale)
    if rule.wallet != "credits":
        lines.append(f"paid from wallet {rule.wallet}")
    return lines


def explain_hold(
    book: PriceBook,
    operation: str,
    meters: Meters,
    *,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
    account_ref: str,
    at: int,
    version: int | None = None,
    scale: int = 6,
) -> list[str]:
    """Write out how the price of a worst case came about; see `price_hold`, `explain_price`."""
    number = book.current if version is None else version
    rules = book.versions.get(number)
    rule = rules._index.find(operation, model, account_ref, at) if rules else None  # noqa: SLF001
    filled = {**rule.price.maximum_meters, **meters} if rule else meters
    return explain_price(
        book,
        operation,
        filled,
        model=model,
        attributes=attributes,
        account_ref=account_ref,
        at=at,
        version=version,
        scale=scale,
    )


def _sum_lines(rule: _Rule, share: int, products: Sequence[_Step]) -> list[str]:
    price, den = rule.price, rule.den * share
    lines: list[str] = []
    if price.per_request or not products:
        lines.append(f"1 request x {_grouped(price.per_request)} = {_grouped(price.per_request)}")
    for step in products:
        per = f" / {step.per:,}" if step.per != 1 else ""
        amount = Fraction(step.quantity * step.coefficient, den)
        note = f" ({step.note})" if step.note else ""
        quantity = _digits(Fraction(step.quantity, share))
        product = f"{quantity} {step.meter} x {_grouped(step.units)}{per}"
        lines.append(f"{product} = {_digits(amount)}{note}")
    total = rule.base * share + sum(step.quantity * step.coefficient for step in products)
    if len(lines) > 1:
        lines.append(f"together {_digits(Fraction(total, den))}")
    if rule.minimum is not None and total < rule.minimum * share:
        lines.append(f"minimum {_grouped(price.minimum or _ZERO)} applies")
    elif rule.maximum is not None and total > rule.maximum * share:
        lines.append(f"maximum {_grouped(price.maximum or _ZERO)} applies")
    return lines


def _rounding_lines(rule: _Rule, priced: Priced, residual: Decimal, scale: int) -> list[str]:
    amount = f"{Decimal(priced.units).scaleb(-scale, _EXACT):,.{scale}f}"
    even = priced.exact == Decimal(priced.units).scaleb(-scale, _EXACT)
    match rule.price.rounding:
        case "up" | "half_even" if even:
            return []  # nothing was rounded, so nothing needs saying
        case "up":
            return [f"rounded up to {scale} decimals: {amount}"]
        case "half_even":
            return [f"rounded half to even to {scale} decimals: {amount}"]
        case "carry":
            lines = [f"carried from before: {plain(residual)}"] if residual else []
            lines.append(f"charged in {scale} decimals: {amount}")
            return [*lines, f"carried to the next request: {plain(priced.residual_after)}"]
        case _:  # pragma: no cover
            assert_never(rule.price.rounding)


def _grouped(amount: Decimal) -> str:
    whole, _, places = plain(amount).partition(".")
    return f"{int(whole):,}{'.' + places if places else ''}"


def _digits(amount: Fraction) -> str:
    """Write a fraction in full where it comes out even, else to 12 places and an ellipsis."""
    if _places(amount.denominator) is not None:
        return _grouped(_EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator)))
    cut = Decimal(amount.numerator * 10**12 // amount.denominator).scaleb(-12)
    return f"{_grouped(cut)}..."


def _places(denominator: int) -> int | None:
    """Return how many decimal places 1/denominator needs, or None if it never ends."""
    counts = []
    for prime in (2, 5):
        count = 0
        while denominator % prime == 0:
            denominator //= prime
            count += 1
        counts.append(count)
    return max(counts) if denominator == 1 else None


# --- versions --------------------------------------------------------------------------------


def new_version(
    number: int,
    prices: Sequence[Price],
    *,
    overrides: Mapping[str, Sequence[Price]] | None = None,
    products: Products = NOTHING,
    author: str = "",
    reason: str = "",
    applied_at: int = 0,
) -> PriceVersion:
    """Check the rules and products and seal them as a version with its digest.

    Raises:
        InvalidInput: a rule makes no sense, or two rules claim the same requests. Nothing written.
    """
    if number < 1:
        message = f"price versions count from 1, not {number}"
        raise InvalidInput(message)
    own = {ref: tuple(rules) for ref, rules in (overrides or {}).items()}
    for account in own:
        if not is_name(account):
            message = f"override: an account has {NAME_RULE}, not {account!r}"
            raise InvalidInput(message)
    for ref, rules in ((None, tuple(prices)), *own.items()):
        for price in rules:
            for problem in problems_of(price):
                message = f"price {rule_name(price, ref)}: {problem}"
                raise InvalidInput(message)
        for _, later, problem in clashes_among(rules):
            message = f"price {rule_name(rules[later], ref)}: {problem}"
            raise InvalidInput(message)
    check_products(products)
    digest = content_digest(prices, own, products)
    return PriceVersion(number, digest, tuple(prices), own, author, reason, applied_at, products)


def content_digest(
    prices: Sequence[Price],
    overrides: Mapping[str, Sequence[Price]],
    products: Products = NOTHING,
) -> str:
    """Return SHA-256 (hex) of the rules, overrides and products in canonical form.

    Defaults are left out, keys are sorted and decimals are written one way only, so that `2.50`
    and `2.5` agree, and a field added to a later release does not change old digests. The order
    of rules counts, since it decides between rules that fit a request equally well.
    """
    parts: dict[str, object] = {
        "prices": list(prices),
        "overrides": {ref: list(p) for ref, p in overrides.items()},
    }
    if products:
        parts["products"] = products
    content = _canonical(parts)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _canonical(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        pairs = ((f, getattr(value, f)) for f in value.__struct_fields__)
        defaults = dict(
            zip(
                reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False
            )
        )
        return {
            name: _canonical(item)
            for name, item in pairs
            if name not in defaults or not _is_default(item, defaults[name])
        }
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return plain(value) if isinstance(value, Decimal) else value


def _is_default(item: object, default: object) -> bool:
    # A mutable default such as {} is kept by msgspec as a factory.
    return not item if callable(getattr(default, "factory", None)) else item == default


def encode_version(version: PriceVersion) -> bytes:
    """Write a version as JSON, for a store; one without products says nothing of them."""
    if version.products:
        return msgspec.json.encode(version)
    fields = msgspec.to_builtins(version)
    del fields["products"]
    return msgspec.json.encode(fields)


def decode_version(data: bytes) -> PriceVersion:
    """Read what `encode_version` wrote and check its digest.

    Raises:
        InvalidInput: not a version, or its content does not have the digest it names.
    """
    try:
        version = msgspec.json.decode(data, type=PriceVersion)
    except msgspec.MsgspecError as error:
        message = f"not a price version: {error}"
        raise InvalidInput(message) from error
    if content_digest(version.prices, version.overrides, version.products) != version.digest:
        message = f"price version {version.number} does not have the content of its digest"
        raise InvalidInput(message)
    return version


# --- checks ----------------------------------------------------------------------------------


def problems_of(price: Price) -> list[str]:
    """Return what is wrong with a rule, as sentences; empty when it can be used."""
    problems = list(_name_problems(price))
    problems += _amount_problems("per_request", price.per_request)
    problems += _amount_problems("minimum", price.minimum)
    problems += _amount_problems("maximum", price.maximum)
    if price.minimum is not None and price.maximum is not None and price.minimum > price.maximum:
        problems.append(f"minimum {price.minimum} is more than maximum {price.maximum}")
    start, end = price.valid_from, price.valid_to
    if start is not None and end is not None and start >= end:
        problems.append("valid_from is not before valid_to")
    for field, at in (("valid_from", start), ("valid_to", end)):
        if at is not None and not INSTANT_MIN <= at < INSTANT_END:
            problems.append(f"{field} is not within the years 1 to 9999 in UTC")
    if price.rounding not in ROUNDINGS:
        problems.append(f"rounding {price.rounding!r} is none of {', '.join(ROUNDINGS)}")
    if len(price.rates) > METERS_MAX:
        problems.append(f"at most {METERS_MAX} rates, not {len(price.rates)}")
    for meter, rate in price.rates.items():
        problems += [f"rates.{meter}: {problem}" for problem in _rate_problems(price, rate)]
    problems += _within_problems(price)
    for meter, most in price.maximum_meters.items():
        if meter not in price.rates:
            problems.append(f"maximum_meters.{meter}: there is no rate for it")
        if not 0 <= most < LIMIT:
            problems.append(f"maximum_meters.{meter}: {most} is not between 0 and 2^53")
    if not problems and price.rounding == "carry":
        problems += _carry_problems(price)
    return problems


def _name_problems(price: Price) -> Iterator[str]:
    names = [("operation", price.operation)]
    names += [("rates", meter) for meter in price.rates]
    if price.model is not None:
        names.append(("model", price.model))
    if not is_wallet(price.wallet):
        yield f"wallet: {price.wallet} is not {WALLET_RULE}"
    for field, name in names:
        if not is_name(name):
            yield f"{field}: a name has {NAME_RULE}"
        if field == "rates" and is_glob(name):
            yield f"{field}: {name} must be an exact name"
        if name.count("*") > STARS_MAX:
            yield f"{field}: at most {STARS_MAX} stars in a pattern"


def _amount_problems(field: str, amount: Decimal | None) -> Iterator[str]:
    if amount is None:
        return
    exponent = amount.as_tuple().exponent
    if not isinstance(exponent, int):
        yield f"{field}: {amount} is not a number"
    elif amount.is_signed() and amount:
        yield f"{field}: {amount} is negative; a price is 0 or more"
    elif amount.adjusted() > len(str(LIMIT)) or amount >= LIMIT:
        yield f"{field}: {amount} is not below 2^53"
    elif exponent < -RATE_PLACES_MAX:
        yield f"{field}: {amount} has more than {RATE_PLACES_MAX} decimal places"


def _rate_problems(price: Price, rate: Rate) -> Iterator[str]:
    if not 1 <= rate.per <= PER_MAX:
        yield f"per {rate.per} is not between 1 and 10^12"
    if (rate.units is None) == (not rate.tiers):
        yield "needs either units or tiers"
    if isinstance(rate.units, Mapping):
        if rate.by is None:
            yield "units is a table, so `by` must name the attribute that chooses from it"
        if not rate.units:
            yield "units is an empty table"
        for value, amount in rate.units.items():
            yield from _amount_problems(f"units.{value}", amount)
    else:
        if rate.by is not None:
            yield f"by = {rate.by!r} needs units as a table, one amount per {rate.by}"
        yield from _amount_problems("units", rate.units)
    yield from _tier_problems(rate)
    for meter in rate.tiers_by:
        if meter not in price.rates:
            yield f"tiers_by: there is no rate for {meter}"


def _tier_problems(rate: Rate) -> Iterator[str]:
    if rate.tiers_by and rate.mode != "volume":
        yield 'tiers_by needs mode = "volume"'
    if not rate.tiers:
        if rate.mode != "graduated" or rate.tiers_by:
            yield "mode and tiers_by need tiers"
        return
    before = 0
    for i, tier in enumerate(rate.tiers, start=1):
        yield from _amount_problems(f"tier {i}", tier.units)
        if i == len(rate.tiers):
            if tier.up_to is not None:
                yield "the last tier must have no up_to"
        elif tier.up_to is None:
            yield f"tier {i} has no up_to; only the last one may leave it out"
        elif not before < tier.up_to < LIMIT:
            yield f"tier {i}: up_to {tier.up_to} is not above {before}; tiers ascend"
        before = tier.up_to or before


def _within_problems(price: Price) -> Iterator[str]:
    shorthands = (
        ("cached_within_input", price.cached_within_input, "input_tokens"),
        ("reasoning_within_output", price.reasoning_within_output, "output_tokens"),
    )
    for field, used, outer in shorthands:
        if used and outer not in price.rates:
            yield f"{field} needs a rate for {outer}"
    for meter in price.rates:
        seen = {meter}
        whole = _whole_of(price, meter)
        while whole is not None:
            if whole not in price.rates:
                if price.rates[meter].within is not None:
                    yield f"rates.{meter}: within {whole}, but there is no rate for it"
                break
            if whole in seen:
                yield f"rates.{meter}: within goes in a circle"
                break
            seen.add(whole)
            whole = _whole_of(price, whole)


def _carry_problems(price: Price) -> Iterator[str]:
    places = _places(math.lcm(*(amount.denominator for amount in _amounts(price))))
    if places is None or places > CARRY_PLACES_MAX:
        yield (
            "carry needs rates that come out even: use a `per` such as 1000 or 1_000_000, "
            "so that what is carried can be kept exactly"
        )


def clashes_among(prices: Sequence[Price]) -> Iterator[tuple[int, int, str]]:
    """Find rules that claim the same requests at the same time.

    Yields:
        The earlier position, the later position, and what is wrong. A standing rule and one for
        a limited time may share a name: the limited one wins while it holds.
    """
    places: dict[tuple[str, str | None, bool], list[int]] = {}
    for i, price in enumerate(prices):
        standing = price.valid_from is None and price.valid_to is None
        same = places.setdefault((price.operation, price.model, standing), [])
        for j in same:
            if _overlap(prices[j], price):
                kind = "is priced twice" if standing else "is priced twice at the same time"
                yield j, i, f"{rule_name(price)} {kind}"
                break
        same.append(i)


def _overlap(one: Price, other: Price) -> bool:
    def begins_before_end(a: Price, b: Price) -> bool:
        return a.valid_from is None or b.valid_to is None or a.valid_from < b.valid_to

    return begins_before_end(one, other) and begins_before_end(other, one)
