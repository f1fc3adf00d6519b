"""What is wrong with a rule, as sentences, before any version holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from tillroll.ledger.calendar import INSTANT_END, INSTANT_MIN
from tillroll.ledger.pricing.rules import (
    CARRY_PLACES_MAX,
    LIMIT,
    METERS_MAX,
    NAME_RULE,
    PER_MAX,
    RATE_PLACES_MAX,
    ROUNDINGS,
    STARS_MAX,
    WALLET_RULE,
    Price,
    Rate,
    amounts_of,
    is_glob,
    is_name,
    is_wallet,
    places_of,
    rule_name,
    whole_of,
)


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
        whole = whole_of(price, meter)
        while whole is not None:
            if whole not in price.rates:
                if price.rates[meter].within is not None:
                    yield f"rates.{meter}: within {whole}, but there is no rate for it"
                break
            if whole in seen:
                yield f"rates.{meter}: within goes in a circle"
                break
            seen.add(whole)
            whole = whole_of(price, whole)


def _carry_problems(price: Price) -> Iterator[str]:
    places = places_of(math.lcm(*(amount.denominator for amount in amounts_of(price))))
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
