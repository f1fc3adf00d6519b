"""Price one request: a sum of integer products and one division at the end, which rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing.answers import Priced, Unpriced, listed
from tillroll.ledger.pricing.compiled import Rule, Step
from tillroll.ledger.pricing.rules import (
    EXACT,
    LIMIT,
    METERS_MAX,
    QUANTITY_PLACES_MAX,
    ROUNDED,
    ZERO,
    Meters,
    Quantity,
)
from tillroll.ledger.pricing.unknown import more_than_whole, no_meter, no_rule, no_version
from tillroll.ledger.pricing.versions import PriceBook


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
    residual: Decimal = ZERO,
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
        return no_version(number)
    rule = rules.index.find(operation, model, account_ref, at)
    if rule is None:
        return no_rule(rules, operation, model, account_ref, at)
    if not meters and rule.flat is not None and not residual:
        ready = rule.flat.get(scale)
        if ready is None:
            ready = rule.flat[scale] = rounded(rule, number, rule.base, rule.den, ZERO, scale)
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
            return more_than_whole(rule, whole, parts, meters)
    return rounded(rule, number, total, rule.den, residual, scale)


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
        return no_version(number)
    rule = rules.index.find(operation, model, account_ref, at)
    if rule is None:
        return no_rule(rules, operation, model, account_ref, at)
    price = rule.price
    filled = {**price.maximum_meters, **meters}
    if price.rates and not filled:
        if price.maximum is not None:
            return rounded(rule, number, rule.maximum or 0, rule.den, None, scale)
        return Unpriced(
            f"a hold for {rule.name} needs quantities: give meters, or set maximum_meters or "
            f"maximum in its price",
            listed(price.rates),
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


def _price_steps(
    rule: Rule,
    number: int,
    meters: Meters,
    attributes: Mapping[str, str] | None,
    residual: Decimal | None,
    scale: int,
) -> Priced | Unpriced:
    """Price the general case: fractions of a meter, tiers, attributes, meters within meters."""
    steps = steps_of(rule, meters, attributes or {})
    if isinstance(steps, Unpriced):
        return steps
    share, products = steps
    total = rule.base * share + sum(step.quantity * step.coefficient for step in products)
    return rounded(rule, number, total, rule.den * share, residual, scale)


def steps_of(
    rule: Rule, meters: Meters, attributes: Mapping[str, str]
) -> tuple[int, list[Step]] | Unpriced:
    """Return the quantities' common denominator and the products to add up."""
    known = rule.price.rates
    share = 1
    for meter, quantity in meters.items():
        if meter not in known and meter not in rule.unrated:
            return no_meter(rule, meter)
        if isinstance(_check_quantity(meter, quantity), Decimal):
            share = math.lcm(share, quantity.as_integer_ratio()[1])
    reported = {meter: int(quantity * share) for meter, quantity in meters.items()}
    products: list[Step] = []
    for whole, parts in rule.wholes:
        if sum(reported.get(part, 0) for part in parts) > reported.get(whole, 0):
            return more_than_whole(rule, whole, parts, meters)
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


def _apart(children: tuple[str, ...], meters: Meters) -> str:
    given = [f"{meters[child]:,} {child}" for child in children if meters.get(child)]
    return f"without {' and '.join(given)}, priced apart" if given else ""


def rounded(
    rule: Rule, number: int, total: int, den: int, residual: Decimal | None, scale: int
) -> Priced:
    """Apply minimum, maximum and the rounding rule to the fraction total/den."""
    if rule.bounded:
        share = den // rule.den
        if rule.minimum is not None and total < rule.minimum * share:
            total = rule.minimum * share
        elif rule.maximum is not None and total > rule.maximum * share:
            total = rule.maximum * share
    raised = total * 10**scale
    after = ZERO if residual is None else residual
    rounding = rule.price.rounding
    if rounding == "up" or residual is None:
        units = -(-raised // den)
    elif rounding == "half_even":
        units = _half_even(raised, den)
    else:
        units, after = _carried(total, den, residual, scale)
    return Priced(
        units,
        ROUNDED.divide(Decimal(total), Decimal(den)),
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
    after = EXACT.divide(Decimal(rest // common), Decimal(denominator * 10**scale // common))
    return units, after
