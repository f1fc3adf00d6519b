"""Why there is no price: what is not known, and what would have been known in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tillroll.ledger.pricing.answers import Unpriced, listed
from tillroll.ledger.pricing.compiled import matches
from tillroll.ledger.pricing.rules import rule_name, utc_text

if TYPE_CHECKING:
    from tillroll.ledger.pricing.compiled import Rule
    from tillroll.ledger.pricing.rules import Meters, Price
    from tillroll.ledger.pricing.versions import PriceVersion


def _alike(name: str, known: tuple[str, ...]) -> str:
    import difflib  # noqa: PLC0415 - only who misspelt something needs it

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def no_version(number: int) -> Unpriced:
    """Say that there is no such version."""
    if number == 0:
        return Unpriced("the price book is empty: no version has been applied yet")
    return Unpriced(f"price version {number} is not known")


def no_rule(
    rules: PriceVersion, operation: str, model: str | None, account_ref: str, at: int
) -> Unpriced:
    """Say what keeps every rule from pricing it: operation, model, or time."""
    every = (*rules.overrides.get(account_ref, ()), *rules.prices)
    named = [price for price in every if matches(price.operation, operation)]
    where = f"in price version {rules.number}"
    if not named:
        known = listed([price.operation for price in every])
        hint = _alike(operation, known)
        return Unpriced(f"operation {operation} has no price {where}{hint}", known)
    models = listed([price.model for price in named if price.model is not None])
    alive = [p for p in named if p.model is None or (model and matches(p.model, model))]
    if not alive:
        if model is None:
            return Unpriced(f"operation {operation} is priced by model {where}; name one", models)
        hint = _alike(model, models)
        return Unpriced(
            f"operation {operation} has no price for model {model} {where}{hint}", models
        )
    windows = [_window_text(price) for price in alive]
    reason = f"operation {operation} has a price {where}, but not at {utc_text(at)}"
    return Unpriced(reason, listed(windows))


def _window_text(price: Price) -> str:
    start = "" if price.valid_from is None else f" from {utc_text(price.valid_from)}"
    end = "" if price.valid_to is None else f" until {utc_text(price.valid_to)}"
    return f"{rule_name(price)}{start}{end}"


def no_meter(rule: Rule, meter: str) -> Unpriced:
    """Say that a rule does not know a meter."""
    known = listed([*rule.price.rates, *rule.unrated])
    if not known:
        return Unpriced(f"{rule.name} charges per request and knows no meter {meter}", known)
    hint = _alike(meter, known)
    return Unpriced(f"{rule.name} has no rate for meter {meter}{hint}", known)


def more_than_whole(rule: Rule, meter: str, children: tuple[str, ...], meters: Meters) -> Unpriced:
    """Say that what counts within a meter is more than the meter."""
    given = " + ".join(f"{child} {meters[child]}" for child in children if child in meters)
    reason = (
        f"{rule.name} counts {', '.join(children)} within {meter}, "
        f"but {given} is more than {meter} {meters.get(meter, 0)}"
    )
    return Unpriced(reason, listed(rule.price.rates))
