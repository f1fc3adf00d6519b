"""Write out how a price came about, one line a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import assert_never

from tillroll.ledger.pricing.answers import Priced, Unpriced
from tillroll.ledger.pricing.compiled import Rule, Step
from tillroll.ledger.pricing.request import price_request, steps_of
from tillroll.ledger.pricing.rules import EXACT, ZERO, Meters, places_of, plain
from tillroll.ledger.pricing.versions import PriceBook


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
    residual: Decimal = ZERO,
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
    index = book.version(priced.version).index
    rule = index.find(operation, model, account_ref, at)
    assert rule is not None
    steps = steps_of(rule, meters, attributes or {})
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
    rule = rules.index.find(operation, model, account_ref, at) if rules else None
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


def _sum_lines(rule: Rule, share: int, products: Sequence[Step]) -> list[str]:
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
        lines.append(f"minimum {_grouped(price.minimum or ZERO)} applies")
    elif rule.maximum is not None and total > rule.maximum * share:
        lines.append(f"maximum {_grouped(price.maximum or ZERO)} applies")
    return lines


def _rounding_lines(rule: Rule, priced: Priced, residual: Decimal, scale: int) -> list[str]:
    amount = f"{Decimal(priced.units).scaleb(-scale, EXACT):,.{scale}f}"
    even = priced.exact == Decimal(priced.units).scaleb(-scale, EXACT)
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
    if places_of(amount.denominator) is not None:
        return _grouped(EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator)))
    cut = Decimal(amount.numerator * 10**12 // amount.denominator).scaleb(-12)
    return f"{_grouped(cut)}..."
