"""Rules ready to be applied: integers over one denominator, derived once per version."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from tillroll.ledger.pricing.answers import Priced, Unpriced, listed
from tillroll.ledger.pricing.rules import (
    Price,
    Rate,
    Tier,
    amounts_of,
    is_glob,
    rule_name,
    shorthand,
    whole_of,
)

LOOKUPS_MAX = 4096  # remembered (operation, model) pairs per version; then forgotten, not grown


class Step(msgspec.Struct, frozen=True):
    """One product of the sum: what is added for one meter, or one tier of it."""

    meter: str
    quantity: int  # over the request's common denominator
    coefficient: int  # over the rule's
    units: Decimal  # the same as written in the rule, for people
    per: int
    note: str = ""


class Meter:
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
    ) -> list[Step] | Unpriced:
        """Return what is added for so much of this meter."""
        rate = self.rate
        if self.tiers:
            return self._tiered(meter, quantity, reported, share, note)
        if rate.by is None:
            assert isinstance(rate.units, Decimal)
            return [Step(meter, quantity, self.coefficient, rate.units, rate.per, note)]
        assert isinstance(rate.units, Mapping)
        value = attributes.get(rate.by)
        key = value if value in self.values else "*"
        if key not in self.values:
            given = "is missing" if value is None else f"{value!r} has no rate"
            return Unpriced(
                f"meter {meter} is priced by {rate.by}, which {given}", listed(rate.units)
            )
        told = _joined(f"{rate.by} {value}", note)
        return [Step(meter, quantity, self.values[key], rate.units[key], rate.per, told)]

    def _tiered(
        self, meter: str, quantity: int, reported: Mapping[str, int], share: int, note: str
    ) -> list[Step]:
        rate = self.rate
        pieces = self._volume if rate.mode == "volume" else self._graduated
        return [
            Step(
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


class Rule:
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
        self.den = den = math.lcm(*(amount.denominator for amount in amounts_of(price)))
        self.base = _over(price.per_request, 1, den)
        self.minimum = None if price.minimum is None else _over(price.minimum, 1, den)
        self.maximum = None if price.maximum is None else _over(price.maximum, 1, den)
        self.bounded = price.minimum is not None or price.maximum is not None
        inside: dict[str, list[str]] = {}
        for meter in price.rates:
            whole = whole_of(price, meter)
            if whole is not None:
                inside.setdefault(whole, []).append(meter)
        # Known by a shorthand, without a rate of their own: they stay in the whole and pay its
        # rate, but are still checked against it.
        self.unrated = {m: w for m, w in shorthand(price).items() if m not in price.rates}
        self.meters = {
            meter: Meter(rate, den, tuple(inside.get(meter, ())))
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
        """Say whether the rule is in force at that time."""
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


def matches(name: str, given: str) -> bool:
    """Say whether a name of a rule, which may be a pattern, is meant by this one."""
    return _pattern(name).fullmatch(given) is not None if is_glob(name) else name == given


class Rules:
    """The rules of the book, or of one account, and which of them match what."""

    __slots__ = ("found", "rules")

    def __init__(self, prices: Sequence[Price], account_ref: str | None) -> None:
        rules = [Rule(price, account_ref, i) for i, price in enumerate(prices)]
        self.rules = sorted(rules, key=lambda rule: rule.rank)
        self.found: dict[tuple[str, str | None], tuple[Rule, ...]] = {}

    def first(self, operation: str, model: str | None, at: int) -> Rule | None:
        """Return the first rule that matches and holds at that time."""
        candidates = self.found.get((operation, model))
        if candidates is None:
            candidates = self._search(operation, model)
        for rule in candidates:
            if rule.holds_at(at):
                return rule
        return None

    def _search(self, operation: str, model: str | None) -> tuple[Rule, ...]:
        candidates = tuple(
            rule
            for rule in self.rules
            if matches(rule.price.operation, operation)
            and (
                rule.price.model is None or (model is not None and matches(rule.price.model, model))
            )
        )
        if candidates:  # what is unknown is never remembered: its names are endless
            if len(self.found) >= LOOKUPS_MAX:
                self.found.clear()
            self.found[operation, model] = candidates
        return candidates


class Index:
    """All that can be derived from a version before the first request."""

    __slots__ = ("accounts", "book")

    def __init__(self, prices: Sequence[Price], overrides: Mapping[str, Sequence[Price]]) -> None:
        """Make ready a version's rules, and by account those that are tried first for it."""
        self.book = Rules(prices, None)
        self.accounts = {ref: Rules(own, ref) for ref, own in overrides.items()}

    def find(self, operation: str, model: str | None, account_ref: str, at: int) -> Rule | None:
        """Return the rule that prices this request; None where there is none."""
        if self.accounts:
            own = self.accounts.get(account_ref)
            rule = None if own is None else own.first(operation, model, at)
            if rule is not None:
                return rule
        return self.book.first(operation, model, at)
