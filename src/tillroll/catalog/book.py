"""`tillroll.toml`: the price book as people write it, review it and diff it.

Here live the shape of the file, its strict reading with errors that say where, its writing, and
its JSON Schema for editors. Nothing here prices anything; see `tillroll.ledger.pricing`.

Source: docs/reference/price-book.md
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from tillroll.catalog.products import (
    CHOICES,
    TABLES,
    AlertTable,
    Amount,
    CouponTable,
    FeatureTable,
    GrantTable,
    MoneyTable,
    PackTable,
    PassTable,
    PlanTable,
    says,
    tables,
    terms_of,
)
from tillroll.catalog.writing import amount, bare, quoted, set_fields, table_lines
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import (
    NAME_RULE,
    ROUNDINGS,
    Price,
    Rate,
    Rounding,
    Tier,
    TierMode,
    clashes_among,
    content_digest,
    is_name,
    problems_of,
    utc_text,
)
from tillroll.ledger.products import NOTHING, SECTIONS, Products, problems_of_products

__all__ = ["InvalidPriceBook", "PriceFile", "dump", "load", "parse", "schema", "template"]

FILE_NAME = "tillroll.toml"
BYTES_MAX = 4 * 1024 * 1024  # 10,000 rules of about 400 bytes
RULES_MAX = 10_000

T = TypeVar("T", bound=msgspec.Struct)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOML_PLACE = re.compile(r"^(.*) \(at line (\d+), column (\d+)\)$", re.DOTALL)
_NAMED = re.compile(
    r"^[ \t]*\[[ \t]*(pack|plan|pass|feature|coupon|alert)[ \t]*\.[ \t]*([^\]\n]+?)[ \t]*\]",
    re.MULTILINE,
)
_LISTS = ("price", "override")
_HEADER = re.compile(r"^\s*\[\[\s*(price|override)\s*\]\]", re.MULTILINE)


class InvalidPriceBook(InvalidInput):
    """The price book cannot be used as written; nothing was changed.

    Attributes:
        place: File, line where known, table and operation: `tillroll.toml:7: [[price]] 2 (...)`.
        problem: What is wrong there, and where possible what to write instead.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


class PriceFile(msgspec.Struct, frozen=True):
    """The content of the file: rules, rules of single accounts, and what is sold beside."""

    prices: tuple[Price, ...] = ()
    overrides: Mapping[str, tuple[Price, ...]] = {}
    products: Products = NOTHING

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content, as `PriceVersion.digest` would be."""
        return content_digest(self.prices, self.overrides, self.products)


# --- the shape of the file -------------------------------------------------------------------

Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all tables of the file share: unknown fields are refused."""


class TierTable(_Table, frozen=True, kw_only=True):
    """One step of a tiered rate."""

    units: Annotated[Amount, says("Units for `per` of the meter while in this tier.")]
    up_to: Annotated[
        int | None, says("The last quantity in this tier; left out in the last tier only.")
    ] = None


class RateTable(_Table, frozen=True, kw_only=True):
    """What one meter costs."""

    units: Annotated[
        Amount | dict[str, Amount] | None,
        says("Units for `per` of the meter; with `by`, a table, one amount a value."),
    ] = None
    per: Annotated[int, says("How many of the meter the units are for.")] = 1
    by: Annotated[str | None, says("The attribute of the request that chooses the amount.")] = None
    tiers: Annotated[list[TierTable], says("Steps in ascending order of `up_to`.")] = []
    mode: Annotated[
        TierMode,
        says("graduated: each part pays its own tier; volume: all the tier reached."),
    ] = "graduated"
    tiers_by: Annotated[
        list[str], says("Volume only: the reported meters whose sum picks the tier.")
    ] = []
    within: Annotated[
        str | None, says("The meter that already counts this one; it is subtracted there.")
    ] = None


class PriceTable(_Table, frozen=True, kw_only=True):
    """One rule of the price book."""

    operation: Annotated[str, says("Exact name of the operation, or a pattern such as `llm.*`.")]
    model: Annotated[str | None, says("Exact model, or a pattern such as `gpt-5*`.")] = None
    wallet: Annotated[str, says("The wallet that pays.")] = "credits"
    per_request: Annotated[Amount, says("Units for each request, whatever its meters.")] = 0
    rates: Annotated[
        dict[str, RateTable], says("Meter to rate; meters not named here are refused.")
    ] = {}
    minimum: Annotated[Amount | None, says("The least that a request costs, in units.")] = None
    maximum: Annotated[Amount | None, says("The most that a request costs, in units.")] = None
    rounding: Annotated[Rounding, says("Once per request: up, half_even, or carry the rest.")] = (
        "up"
    )
    valid_from: Annotated[Instant | None, says("From when the rule holds, inclusive.")] = None
    valid_to: Annotated[Instant | None, says("Until when the rule holds, exclusive.")] = None
    cached_within_input: Annotated[
        bool, says("input_tokens as reported includes cached_tokens and cache_write_tokens.")
    ] = False
    reasoning_within_output: Annotated[
        bool, says("output_tokens as reported includes reasoning_tokens.")
    ] = False
    maximum_meters: Annotated[
        dict[str, int], says("What a hold assumes of a meter not known beforehand.")
    ] = {}
    source: Annotated[str, says("Where the figures come from.")] = ""


class OverrideTable(PriceTable, frozen=True, kw_only=True):
    """A rule for one account, tried before the others."""

    account: Annotated[str, says("Your own id of the account.")]


class BookTable(_Table, frozen=True, kw_only=True):
    """The whole file."""

    price: Annotated[list[PriceTable], says("The rules.")] = []
    override: Annotated[list[OverrideTable], says("Rules of single accounts, tried first.")] = []
    pack: Annotated[dict[str, PackTable], says("Units that are bought once.")] = {}
    plan: Annotated[dict[str, PlanTable], says("What subscriptions bring.")] = {}
    pass_: Annotated[dict[str, PassTable], says("Features for a time.")] = msgspec.field(
        name="pass", default_factory=dict
    )
    feature: Annotated[dict[str, FeatureTable], says("What plans and passes may bring.")] = {}
    coupon: Annotated[dict[str, CouponTable], says("Units for who knows the name.")] = {}
    alert: Annotated[dict[str, AlertTable], says("When to tell about a wallet.")] = {}


# --- reading ---------------------------------------------------------------------------------


class _Float(str):
    """A float as it stands in the file, kept as text so that the refusal can quote it."""

    __slots__ = ()


def load(path: str | Path) -> PriceFile:
    """Read a price book from a file.

    Raises:
        InvalidPriceBook: the file cannot be read, or says something that makes no sense.
    """
    return parse(read(path), name=str(path))


def read(path: str | Path) -> str:
    """Return the text of a price book's file.

    Raises:
        InvalidPriceBook: the file cannot be read, is too large or is not UTF-8.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(BYTES_MAX + 1)
    except OSError as error:
        raise InvalidPriceBook(str(path), error.strerror or str(error)) from error
    if len(data) > BYTES_MAX:
        raise InvalidPriceBook(str(path), f"larger than {BYTES_MAX:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"not UTF-8 at byte {error.start}, in line {line}"
        raise InvalidPriceBook(str(path), where) from error


def parse(text: str, *, name: str = FILE_NAME) -> PriceFile:
    """Read a price book from text.

    Args:
        text: TOML with `[[price]]` and `[[override]]` tables.
        name: How errors call the file.

    Raises:
        InvalidPriceBook: malformed TOML (with line and column), an unknown field, a float, or a
            rule that makes no sense (with the table and its operation).
    """
    document = _toml(text, name)
    for key in document:
        if key not in (*_LISTS, *TABLES):
            known = ", ".join(
                [*(f"[[{table}]]" for table in _LISTS), *(f"[{table}.NAME]" for table in TABLES)]
            )
            raise InvalidPriceBook(name, f"unknown table or field {key!r}; known are {known}")
    places = _places(text, document, name)
    prices: list[Price] = []
    overrides: dict[str, list[Price]] = {}
    where: dict[tuple[str | None, int], str] = {}
    for key, table, place in places:
        raw: object = table
        _refuse_floats(raw, place)
        row: PriceTable = _decoded(raw, PriceTable if key == "price" else OverrideTable, place)
        account = row.account if isinstance(row, OverrideTable) else None
        price = _price(row)
        problems = problems_of(price)
        if account is not None and not is_name(account):
            problems.insert(0, f"account: a name has {NAME_RULE}")
        if problems:
            raise InvalidPriceBook(place, "; ".join(problems))
        own = prices if account is None else overrides.setdefault(account, [])
        where[account, len(own)] = place
        own.append(price)
    for ref, rules in ((None, prices), *overrides.items()):
        for earlier, later, problem in clashes_among(rules):
            told = f"{problem}; the other is {where[ref, earlier]}"
            raise InvalidPriceBook(where[ref, later], told)
    own_rules = {ref: tuple(rules) for ref, rules in overrides.items()}
    return PriceFile(tuple(prices), own_rules, _products(text, document, name))


def _products(text: str, document: Mapping[str, Any], name: str) -> Products:
    """Read what is sold: every table by itself, then all of them together."""
    lines = {
        (found.group(1), found.group(2).strip("\"'")): text.count("\n", 0, found.start(1)) + 1
        for found in _NAMED.finditer(text)
    }

    def place(section: str, product: str) -> str:
        line = lines.get((section, product))
        return f"{name if line is None else f'{name}:{line}'}: [{section}.{product}]"

    read: dict[str, dict[str, Any]] = {}  # Any: the terms of the section's own kind
    for section, kind in TABLES.items():
        named = document.get(section, {})
        if not isinstance(named, Mapping):
            problem = f"{section} must be written [{section}.NAME], with one bracket and a name"
            raise InvalidPriceBook(name, problem)
        for product, table in named.items():
            raw: object = table
            at = place(section, product)
            _refuse_floats(raw, at)
            try:
                read.setdefault(section, {})[product] = terms_of(_decoded(raw, kind, at))
            except InvalidPriceBook:
                raise
            except InvalidInput as error:
                raise InvalidPriceBook(at, str(error)) from error
    products = Products(**{field: read.get(section, {}) for field, section in SECTIONS.items()})
    for section, product, problem in problems_of_products(products):
        raise InvalidPriceBook(place(section, product), problem)
    return products


def _toml(text: str, name: str) -> dict[str, Any]:  # TOML: any value
    try:
        return tomllib.loads(text, parse_float=_Float)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_PLACE.match(str(error))
        if found is None:
            problem = f"not TOML: {error}"
            raise InvalidPriceBook(name, problem) from error
        problem, line, column = found.groups()
        place = f"{name}:{line}:{column}"
        raise InvalidPriceBook(place, f"not TOML: {problem}") from error
    except RecursionError as error:
        raise InvalidPriceBook(name, "not TOML: nested too deeply") from error


def _places(text: str, document: Mapping[str, Any], name: str) -> list[tuple[str, object, str]]:
    """List the tables of the file, each with its kind and the place to name in errors."""
    lines: dict[str, list[int]] = {"price": [], "override": []}
    for header in _HEADER.finditer(text):
        # The match may begin on blank lines before the header.
        start = header.start() + len(header.group()) - len(header.group().lstrip())
        lines[header.group(1)].append(text.count("\n", 0, start) + 1)
    found: list[tuple[str, object, str]] = []
    for key in _LISTS:
        tables = document.get(key, [])
        if not isinstance(tables, list):
            raise InvalidPriceBook(name, f"{key} must be written [[{key}]], with two brackets")
        for i, table in enumerate(tables):
            # Lines are only named when the headers in the text are all there is, which a header
            # inside a multi-line string or an inline array would break.
            exact = len(lines[key]) == len(tables)
            at = f"{name}:{lines[key][i]}" if exact else name
            found.append((key, table, f"{at}: [[{key}]] {i + 1}{_called(table)}"))
    if len(found) > RULES_MAX:
        raise InvalidPriceBook(name, f"at most {RULES_MAX:,} rules, not {len(found):,}")
    return found


def _called(table: object) -> str:
    if not isinstance(table, Mapping) or not isinstance(table.get("operation"), str):
        return ""
    model, account = table.get("model"), table.get("account")
    name = str(table["operation"])
    name += f"/{model}" if isinstance(model, str) else ""
    name += f"@{account}" if isinstance(account, str) else ""
    return f" ({name})"


def _refuse_floats(value: object, place: str, path: str = "") -> None:
    if isinstance(value, _Float):
        # A float has no exact decimal meaning: 0.1 is not a tenth.
        quoted = f'"{value}"' if value.strip("+-").lower() not in {"inf", "nan"} else "a number"
        problem = f"{path} = {value}: floats are not exact, write the decimal in quotes: {quoted}"
        raise InvalidPriceBook(place, problem)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_floats(item, place, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value, start=1):
            _refuse_floats(item, place, f"{path}[{i}]")


def _decoded(raw: object, kind: type[T], place: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise InvalidPriceBook(place, _told(str(error), kind)) from error


# How msgspec says it, and how we do.
_SAYINGS = (
    ("Object contains", "the table has the"),
    ("Object missing", "the table has no"),
    ("required field", "field"),
    (" - at `$.", " at `"),
)
_CHOICES = {"rounding": ROUNDINGS, "mode": ("graduated", "volume"), **CHOICES}


def _told(problem: str, kind: type[msgspec.Struct]) -> str:
    for theirs, ours in _SAYINGS:
        problem = problem.replace(theirs, ours)
    if "unknown field" in problem:
        fields = RateTable.__struct_fields__ if "rates[...]`" in problem else None
        fields = TierTable.__struct_fields__ if ".tiers[" in problem else fields
        fields = GrantTable.__struct_fields__ if "`grants[" in problem else fields
        fields = MoneyTable.__struct_fields__ if "`price`" in problem else fields
        fields = kind.__struct_fields__ if " at `" not in problem else fields
        return problem if fields is None else f"{problem}; known fields: {', '.join(fields)}"
    for field, choices in _CHOICES.items():
        if problem.startswith("Invalid enum") and problem.endswith(f"{field}`"):
            return f"{problem}; one of {', '.join(choices)}"
    return problem


def _price(row: PriceTable) -> Price:
    return Price(
        operation=row.operation,
        model=row.model,
        wallet=row.wallet,
        per_request=Decimal(row.per_request),
        rates={meter: _rate(rate) for meter, rate in row.rates.items()},
        minimum=None if row.minimum is None else Decimal(row.minimum),
        maximum=None if row.maximum is None else Decimal(row.maximum),
        rounding=row.rounding,
        valid_from=_micros(row.valid_from),
        valid_to=_micros(row.valid_to),
        cached_within_input=row.cached_within_input,
        reasoning_within_output=row.reasoning_within_output,
        maximum_meters=row.maximum_meters,
        source=row.source,
    )


def _rate(row: RateTable) -> Rate:
    units: Decimal | dict[str, Decimal] | None
    if isinstance(row.units, dict):
        units = {value: Decimal(amount) for value, amount in row.units.items()}
    else:
        units = None if row.units is None else Decimal(row.units)
    return Rate(
        units=units,
        per=row.per,
        by=row.by,
        tiers=tuple(Tier(Decimal(tier.units), tier.up_to) for tier in row.tiers),
        mode=row.mode,
        tiers_by=tuple(row.tiers_by),
        within=row.within,
    )


def _micros(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)


def schema() -> dict[str, Any]:  # a JSON document
    """Return the JSON Schema of the file, for editors that check TOML while one types."""
    body = msgspec.json.schema(BookTable)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tillroll price book and catalog",
        **body,
    }


# --- writing ---------------------------------------------------------------------------------


def dump(
    prices: Sequence[Price],
    overrides: Mapping[str, Sequence[Price]] | None = None,
    products: Products | None = None,
) -> str:
    """Write rules and products as TOML that `parse` reads back to the same.

    Fields that have their default are left out, fields stand in one order, and long tables are
    broken over several lines: a change of one figure is a change of one line.
    """
    written = ["\n".join(["[[price]]", *_price_lines(price)]) for price in prices]
    for account, rules in (overrides or {}).items():
        head = ["[[override]]", f"account = {quoted(account)}"]
        written += ["\n".join([*head, *_price_lines(price)]) for price in rules]
    written += tables(products or NOTHING)
    return "\n\n".join(written) + "\n" if written else ""


def _price_lines(price: Price) -> list[str]:
    maxima = [(bare(meter), f"{most:_}") for meter, most in price.maximum_meters.items()]
    lines = [f"operation = {quoted(price.operation)}"]
    lines += set_fields(
        ("model", price.model, None, quoted),
        ("wallet", price.wallet, "credits", quoted),
        ("per_request", price.per_request, 0, amount),
        ("minimum", price.minimum, None, amount),
        ("maximum", price.maximum, None, amount),
        ("rounding", price.rounding, "up", quoted),
        ("valid_from", price.valid_from, None, utc_text),
        ("valid_to", price.valid_to, None, utc_text),
        ("cached_within_input", price.cached_within_input, False, lambda _: "true"),
        ("reasoning_within_output", price.reasoning_within_output, False, lambda _: "true"),
    )
    for meter, rate in price.rates.items():
        lines += _rate_lines(f"rates.{bare(meter)}", rate)
    if maxima:
        lines += table_lines("maximum_meters", maxima)
    return lines + set_fields(("source", price.source, "", quoted))


def _rate_lines(name: str, rate: Rate) -> list[str]:
    pairs: list[tuple[str, str]] = []
    if rate.by is not None:
        pairs.append(("by", quoted(rate.by)))
    if isinstance(rate.units, Decimal):
        pairs.append(("units", amount(rate.units)))
    elif rate.units is not None:
        chosen = ", ".join(f"{bare(value)} = {amount(u)}" for value, u in rate.units.items())
        pairs.append(("units", f"{{ {chosen} }}"))
    if rate.per != 1:
        pairs.append(("per", f"{rate.per:_}"))
    if rate.mode != "graduated":
        pairs.append(("mode", quoted(rate.mode)))
    if rate.tiers_by:
        pairs.append(("tiers_by", f"[{', '.join(quoted(meter) for meter in rate.tiers_by)}]"))
    if rate.within is not None:
        pairs.append(("within", quoted(rate.within)))
    if rate.tiers:
        # One tier a line: tiers are what reviewers compare.
        rows = [_tier(tier) for tier in rate.tiers]
        pairs.append(("tiers", "[\n" + "".join(f"  {row},\n" for row in rows) + "]"))
    return table_lines(name, pairs)


def _tier(tier: Tier) -> str:
    bound = "" if tier.up_to is None else f"up_to = {tier.up_to:_}, "
    return f"{{ {bound}units = {amount(tier.units)} }}"


_TEMPLATE = """\
# Prices in credits. Plan a change, review it, then apply it: every version stays explainable.
# Whole numbers stand as they are; decimals are quoted, because a float is not exact.

[[price]]
operation = "text.generate"
per_request = 1

[[price]]
operation = "image.generate"
per_request = 20

[[price]]
operation = "video.generate"
per_request = 100

# By meters, for one family of models: 2.50 credits a million tokens in, 10 out.
[[price]]
operation = "llm.chat"
model = "gpt-5*"
minimum = "0.01"
cached_within_input = true
rates.input_tokens = { units = "2.50", per = 1_000_000 }
rates.cached_tokens = { units = "0.25", per = 1_000_000 }
rates.output_tokens = { units = 10, per = 1_000_000 }
maximum_meters = { input_tokens = 8_192, output_tokens = 4_096 }

# One account's own price is tried first:
# [[override]]
# account = "acme"
# operation = "image.generate"
# per_request = 15

# What is sold: packs of units, plans that bring units and features again and again, passes for a
# time. An account keeps the terms it was given until it is moved.
# [pack.starter]
# units = 500
# price = { amount = "9.99", currency = "USD" }
# expires = "365d"
#
# [feature.hd]
#
# [plan.pro]
# grants = [{ units = 1_000, rollover_max = 200 }]
# features = { hd = true }
# trial = "14d"
"""


def template() -> str:
    """Return a price book to begin with."""
    return _TEMPLATE
