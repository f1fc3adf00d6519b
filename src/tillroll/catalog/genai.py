"""Proposals for the prices of language models, from the package genai-prices.

A proposal is only ever returned: it is written as TOML, reviewed as a diff and applied by a
person. Prices must not move unseen, so nothing is downloaded and nothing updates itself; the data
are those of the installed package, whose version is named in every rule's `source`.

What the package knows and a rule cannot say exactly is not approximated but listed as skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TYPE_CHECKING, NoReturn

import msgspec

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import Price, PriceVersion, Rate, Tier, is_glob, plain, problems_of

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

__all__ = ["PricesPackageMissing", "Proposals", "Skipped", "models_in_book", "propose"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT = Context(prec=60, traps=[Inexact, InvalidOperation])

# Our names for the package's usage keys; all others are taken over as they are.
_METERS = {"cache_read_tokens": "cached_tokens", "output_reasoning_tokens": "reasoning_tokens"}
# Placed by the shorthands `cached_within_input` and `reasoning_within_output`.
_SHORTHAND = {
    "cached_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}
# The package bills these by at least 10 seconds a request, in code rather than in its data.
_LEAST_SECONDS = {("groq", "whisper-large-v3"), ("groq", "whisper-large-v3-turbo")}


class PricesPackageMissing(InvalidInput):
    """The package genai-prices is not installed; nothing was proposed."""

    def __init__(self) -> None:
        super().__init__(
            'prices of language models come from genai-prices: pip install "tillroll[llm]"'
        )


class Skipped(msgspec.Struct, frozen=True):
    """A model for which nothing is proposed, and why."""

    model: str
    reason: str


class Proposals(msgspec.Struct, frozen=True):
    """Rules to review.

    Attributes:
        prices: The proposed rules, in the order of the models asked for.
        skipped: Models without a proposal.
        notes: What the proposed rules leave out, e.g. batch prices.
        source: The package and its version.
    """

    prices: tuple[Price, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[Skipped, ...]
    source: str


class _Cannot(Exception):
    """This model's prices cannot be said exactly."""


def _skip(reason: str) -> NoReturn:
    raise _Cannot(reason)


class _Unit(msgspec.Struct, frozen=True):
    """A thing that the package prices."""

    meter: str
    per: int
    dimensions: Mapping[str, str]


def models_in_book(version: PriceVersion) -> list[str]:
    """List the models that a version names, overrides apart, each once."""
    return list(dict.fromkeys(price.model for price in version.prices if price.model is not None))


def propose(
    models: Iterable[str],
    *,
    markup: Decimal | int = 1,
    units_per_usd: Decimal | int = 1,
    operation: str = "llm.chat",
    wallet: str = "credits",
    at: datetime | None = None,
) -> Proposals:
    """Propose rules for models at vendor's price x markup x units per dollar.

    Args:
        models: Models by name, or by provider and name where several sell it:
            `gpt-5`, `openai:gpt-5`. The rule is for the name after the colon.
        markup: Factor on the vendor's price; 1.3 (a `Decimal`) adds 30 percent.
        units_per_usd: Units that stand for one dollar.
        operation: The operation of the proposed rules.
        wallet: The wallet of the proposed rules.
        at: The day whose prices count; now if left out. Later prices that are already known
            become rules with `valid_from`.

    Raises:
        PricesPackageMissing: genai-prices is not installed.
        InvalidInput: markup or units_per_usd is not an exact positive number.
    """
    factor = _EXACT.multiply(_factor("markup", markup), _factor("units_per_usd", units_per_usd))
    vendor = _Vendor()
    when = datetime.now(UTC) if at is None else at
    if when.tzinfo is None:
        message = "at needs a timezone"
        raise InvalidInput(message)
    prices: list[Price] = []
    skipped: list[Skipped] = []
    notes: list[Skipped] = []
    for asked in dict.fromkeys(models):
        try:
            provider, info = vendor.find(asked)
            source = f"{vendor.source}: {provider} {info.id}{_times(markup, units_per_usd)}"
            name = asked.partition(":")[2] if vendor.is_qualified(asked) else asked
            base = Price(operation=operation, model=name, wallet=wallet, source=source)
            found = [
                _proposal(base, window, price, vendor.units, factor)
                for window, price in _windows(info, when)
            ]
            wrong = [problem for price in found for problem in problems_of(price)]
            if wrong:
                raise _Cannot("; ".join(wrong))  # noqa: TRY301 - one place lists what is skipped
        except _Cannot as cannot:
            skipped.append(Skipped(asked, str(cannot)))
            continue
        prices += found
        notes += [Skipped(asked, note) for note in _notes(info)]
    return Proposals(tuple(prices), tuple(skipped), tuple(notes), vendor.source)


def _factor(name: str, value: Decimal | int) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, Decimal | int):
        message = f"{name}: expected an int or a Decimal, not {value!r}"
        raise InvalidInput(message)
    number = Decimal(value)
    if not number.is_finite() or number <= 0:
        message = f"{name}: {value} is not above 0"
        raise InvalidInput(message)
    return number


def _times(markup: Decimal | int, units_per_usd: Decimal | int) -> str:
    text = "" if markup == 1 else f" x {plain(Decimal(markup))}"
    return text if units_per_usd == 1 else f"{text}, {plain(Decimal(units_per_usd))} units per USD"


class _Vendor:
    """The data of the installed package, without its self-updating."""

    def __init__(self) -> None:
        try:
            import genai_prices  # noqa: PLC0415 - an extra, and slow to import
            from genai_prices.data import providers  # noqa: PLC0415
            from genai_prices.data_snapshot import DataSnapshot  # noqa: PLC0415
            from genai_prices.data_units import unit_data  # noqa: PLC0415
        except ImportError as error:
            raise PricesPackageMissing from error
        # A snapshot of our own: get_snapshot() might return one that updated itself.
        self.snapshot = DataSnapshot(providers=providers, from_auto_update=False)
        self.source = f"genai-prices {genai_prices.__version__}"
        self.units = {
            raw.get("price_key", key): _Unit(_METERS.get(key, key), raw["per"], raw["dimensions"])
            for key, raw in unit_data.items()
        }

    def is_qualified(self, asked: str) -> bool:
        """Say whether the part before the colon names a provider (`llama3:8b` does not)."""
        head, colon, _ = asked.partition(":")
        return bool(colon) and any(provider.id == head for provider in self.snapshot.providers)

    def find(self, asked: str) -> tuple[str, ModelInfo]:
        if is_glob(asked):
            _skip("a pattern may cover models of different prices; name each model")
        provider_id, name = None, asked
        if self.is_qualified(asked):
            provider_id, _, name = asked.partition(":")
        try:
            provider, info = self.snapshot.find_provider_model(name, None, provider_id, None)
        except LookupError:
            # The package's patterns do not cover all of its own names.
            exact = [
                (provider, info)
                for provider in self.snapshot.providers
                for info in provider.models
                if info.id == name and provider_id in {None, provider.id}
            ]
            if len(exact) != 1:
                _skip(f"{self.source} does not know it")
            provider, info = exact[0]
        if (provider.id, info.id) in _LEAST_SECONDS:
            _skip("a request is billed as at least 10 seconds")
        return provider.id, info


def _windows(
    info: ModelInfo, when: datetime
) -> Iterator[tuple[tuple[int | None, int | None], ModelPrice]]:
    """Split the time from `when` on where the vendor's price is known to change."""
    prices = info.prices
    if not isinstance(prices, list):
        yield (None, None), prices
        return
    starts: list[datetime] = []
    for conditional in prices:
        if conditional.constraint is None:
            continue
        day = getattr(conditional.constraint, "start_date", None)
        if not isinstance(day, date):
            _skip("its price depends on the time of day")
        start = datetime.combine(day, time(), UTC)
        if start > when:
            starts.append(start)
    edges = [None, *sorted(set(starts)), None]
    for begin, end in itertools.pairwise(edges):
        yield (_micros(begin), _micros(end)), info.get_prices(begin or when)


def _micros(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)


def _notes(info: ModelInfo) -> list[str]:
    chosen = {
        f"{key}={value}"
        for variant in info.price_variants or ()
        for key, value in variant.when.items()
    }
    return [f"prices for {' and '.join(sorted(chosen))} are left out"] if chosen else []


def _proposal(
    base: Price,
    window: tuple[int | None, int | None],
    vendor_price: ModelPrice,
    units: Mapping[str, _Unit],
    factor: Decimal,
) -> Price:
    given = {key: value for key, value in vars(vendor_price).items() if value is not None}
    if not given:
        _skip("it has no price there")
    unknown = sorted(set(given) - set(units))
    if unknown:
        _skip(f"it is priced by {', '.join(unknown)}, which has no meter here")
    per_request = Decimal(0)
    rates: dict[str, Rate] = {}
    priced = [units[key] for key in given]
    meters = {unit.meter for unit in priced}
    # The package's own rule: how many input tokens there are in all decides the tier.
    tiered = any(not isinstance(value, Decimal) for value in given.values())
    if tiered and "input_tokens" not in meters:
        _skip("it has tiers by input tokens but no rate for them")
    for key, value in given.items():
        unit = units[key]
        if unit.meter == "requests":
            if not isinstance(value, Decimal):
                _skip("it has tiers for requests")
            per_request = _EXACT.divide(_EXACT.multiply(value, factor), Decimal(unit.per))
            continue
        rates[unit.meter] = _rate(value, unit, _whole_of(unit, priced), factor)
    return msgspec.structs.replace(
        base,
        per_request=per_request,
        rates=rates,
        valid_from=window[0],
        valid_to=window[1],
        cached_within_input="input_tokens" in meters,
        reasoning_within_output="output_tokens" in meters,
    )


def _rate(value: Decimal | TieredPrices, unit: _Unit, whole: str | None, factor: Decimal) -> Rate:
    within = None if _SHORTHAND.get(unit.meter) == whole else whole
    if isinstance(value, Decimal):
        return Rate(units=_EXACT.multiply(value, factor), per=unit.per, within=within)
    starts = [tier.start for tier in value.tiers]
    if not starts or starts[0] <= 0 or starts != sorted(set(starts)):
        _skip("its tiers do not ascend")
    amounts: Sequence[Decimal] = [value.base, *(tier.price for tier in value.tiers)]
    return Rate(
        per=unit.per,
        mode="volume",
        # A tier of the package begins above its start: exactly where ours ends, at up_to.
        tiers=tuple(
            Tier(_EXACT.multiply(amount, factor), bound)
            for amount, bound in zip(amounts, [*starts, None], strict=True)
        ),
        tiers_by=("input_tokens",),
        within=within,
    )


def _whole_of(unit: _Unit, priced: Sequence[_Unit]) -> str | None:
    """Find the priced meter whose quantity already counts this one.

    The package nests by dimensions: what has all dimensions of another thing and more is part of
    it, and is billed at its own price instead.
    """
    mine = unit.dimensions.items()
    around = [other for other in priced if other.dimensions.items() < mine]
    nearest = [
        other
        for other in around
        if not any(other.dimensions.items() < third.dimensions.items() for third in around)
    ]
    if len(nearest) > 1:
        names = " and of ".join(sorted(other.meter for other in nearest))
        _skip(f"{unit.meter} are part of {names} at once")
    return nearest[0].meter if nearest else None
