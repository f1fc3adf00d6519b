"""The rules of the price book as they are written: prices, their rates and tiers, names, bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Clamped, Context, Decimal, DivisionByZero, Inexact, InvalidOperation
from fractions import Fraction
from typing import Literal, TypeAlias

import msgspec

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

# Meters that the shorthands `cached_within_input`, `reasoning_within_output` place in another.
CACHE_METERS = ("cached_tokens", "cache_write_tokens")
REASONING_METERS = ("reasoning_tokens",)

ZERO = Decimal(0)
# Control characters, and halves of surrogate pairs, which no encoding can store. Not
# str.isprintable(): what is printable depends on the Python version.
_WALLET = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z", re.ASCII)
_UNNAMEABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Contexts carry flags, which are only ever set, never read here: sharing them is harmless.
ROUNDED = Context(prec=PRECISION, traps=[InvalidOperation, DivisionByZero])
EXACT = Context(prec=PRECISION, traps=[InvalidOperation, DivisionByZero, Inexact, Clamped])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    per_request: Decimal = ZERO
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


def amounts_of(price: Price) -> Iterator[Fraction]:
    """Yield every amount of a rule, for one of what it is for."""
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


def whole_of(price: Price, meter: str) -> str | None:
    """Return the meter that already counts this one, by `within` or by a shorthand."""
    within = price.rates[meter].within
    return shorthand(price).get(meter) if within is None else within


def shorthand(price: Price) -> dict[str, str]:
    """Return the meters that the two shorthands place within another one."""
    placed: dict[str, str] = {}
    if price.cached_within_input:
        placed.update(dict.fromkeys(CACHE_METERS, "input_tokens"))
    if price.reasoning_within_output:
        placed.update(dict.fromkeys(REASONING_METERS, "output_tokens"))
    return placed


def places_of(denominator: int) -> int | None:
    """Return how many decimal places 1/denominator needs, or None if it never ends."""
    counts = []
    for prime in (2, 5):
        count = 0
        while denominator % prime == 0:
            denominator //= prime
            count += 1
        counts.append(count)
    return max(counts) if denominator == 1 else None
