"""Values at the border: each as a caller gives it, checked, and written one way.

Whatever is wrong is `InvalidInput`, which names the value: nothing was queued.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, TypedDict, TypeVar

import msgspec

from tillroll.ledger import calendar, chain
from tillroll.ledger.alerts import DAYS_MAX, PERCENT_MAX
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import WALLET_RULE, check_meters, is_wallet
from tillroll.ledger.products import NAME_RULE, PRIORITY_MAX, is_product_name
from tillroll.ledger.types import (
    DAY,
    NEVER,
    RESERVED,
    TOPUP,
    WALLET_DEFAULT,
    Feature,
    Meters,
    Standing,
)
from tillroll.ledger.units import UNITS_MAX, Units, parse_decimal, parse_limit

T = TypeVar("T")

ID_MAX = 255
METADATA_MAX = 4096
TAGS_MAX = 32
REASON_MAX = 1_000
BULK_MAX = 10_000  # items of one call
QUANTITY_MAX = 1_000_000  # of one purchase
ENTITLEMENT_NAME_MAX = 100  # with a grant's name of 64 behind it: an id of at most 255
FEATURE_NAME_MAX = 64
FEATURES_MAX = 200  # of one entitlement
GRANTS_MAX = 20  # of one entitlement
APPLIES_MAX = 1_000  # operations that one grant may be kept for
LATE_USAGE_MAX = 400 * DAY  # a year, and the time to close its books
EARLY_USAGE_MAX = DAY

# C0 and C1 controls, surrogates (no valid text has one alone), and the two line separators.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")

Meter = int | Decimal | str
When = datetime | str
Expiry = datetime | date | str
Span = calendar.Span


class GivenStanding(TypedDict, total=False):
    """How an entitlement is to stand and when it ends, checked; what was not given is left out."""

    status: Standing | None
    trial_ends_at: int | None
    ends_at: int | None
    paid_until: int | None


def text(value: object, name: str, most: int = ID_MAX, *, lines: bool = False) -> str:
    """Return a text of 1 to so many characters, without control characters."""
    if type(value) is not str:
        if not isinstance(value, str):
            raise InvalidInput(f"{name} must be a text")
        value = str.__str__(value)  # the text itself, where an enum or a marked-up text was given
    if not 1 <= len(value) <= most:
        raise InvalidInput(f"{name} must have 1 to {most} characters, not {len(value)}")
    if not (value.isascii() and value.isprintable()):  # the common case needs no search
        found = _UNFIT.search(value.replace("\n", " ") if lines else value)
        if found:
            raise InvalidInput(f"{name} has a character that is no text: U+{ord(found[0]):04X}")
    return value


def product(value: object, name: str) -> str:
    """Return the name of a product."""
    found = text(value, name)
    if not is_product_name(found):
        raise InvalidInput(f"{name} must be {NAME_RULE}, not {found[:40]!r}")
    return found


def feature(value: object) -> str:
    """Return the name of a feature."""
    return text(value, "feature", FEATURE_NAME_MAX)


def features(
    values: Mapping[str, Feature] | None, otherwise: dict[str, Feature]
) -> dict[str, Feature]:
    """Return features with their values, in order of their names."""
    if values is None:
        return otherwise
    if not isinstance(values, Mapping) or len(values) > FEATURES_MAX:
        raise InvalidInput(f"features must be a mapping of at most {FEATURES_MAX} names to values")
    found: dict[str, Feature] = {}
    for name in sorted(feature(key) for key in values):
        value = values[name]
        if isinstance(value, str):
            value = text(value, f"features.{name}")
        elif type(value) is not bool and not (type(value) is int and 0 <= value <= UNITS_MAX):
            raise InvalidInput(f"features.{name} must be a bool, a whole number or a text")
        found[name] = value
    return found


def items(values: object, name: str, most: int) -> list[Any]:
    """Return a list or tuple of at most so many; Any: each is checked by who asked."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name} must be a list")
    found = list(itertools.islice(values, most + 1))
    if len(found) > most:
        raise InvalidInput(f"{name} may have {most:,} items at the most")
    return found


def patterns(operations: object) -> tuple[str, ...]:
    """Return the operations that a grant may pay for."""
    found = items(operations, "applies_to", APPLIES_MAX)
    return tuple(sorted({text(operation, "applies_to") for operation in found}))


def standing(
    status: Standing | None, trial_ends_at: object, ends_at: object, paid_until: object
) -> GivenStanding:
    """Return how an entitlement is to stand and when it ends; what was not given is left out."""
    standing: GivenStanding = {}
    if status is not None:
        standing["status"] = one_of(status, Standing, "status")
    if trial_ends_at is not None:
        standing["trial_ends_at"] = instant(trial_ends_at, "trial_ends_at")
    if ends_at is not None:
        standing["ends_at"] = NEVER if ends_at == "never" else instant(ends_at, "ends_at")
    if paid_until is not None:
        given = NEVER if paid_until == "never" else instant(paid_until, "paid_until")
        standing["paid_until"] = given
    return standing


def optional(value: object, name: str) -> str | None:
    """Return a text, or None where none was given."""
    return None if value is None else text(value, name)


def target(value: object, name: str) -> str:
    """Return the id of a request, which must not look like one of our own."""
    found = text(value, name)
    if found.startswith(RESERVED) and name == "request_id":
        raise InvalidInput(f"{name} must not begin with {RESERVED!r}, which marks our own ids")
    return found


def wallet(value: object, name: str) -> str:
    """Return the name of a wallet."""
    if value != WALLET_DEFAULT and not (isinstance(value, str) and is_wallet(value)):
        raise InvalidInput(f"{name} must be {WALLET_RULE}, not {str(value)[:40]!r}")
    assert isinstance(value, str)
    return sys.intern(str.__str__(value))


def labels(values: Mapping[str, str] | None, name: str) -> dict[str, str] | None:
    """Return names with their texts, in order of the names; None where there are none."""
    if not values:
        return None
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{name} must be a mapping of names to texts")
    if len(values) > TAGS_MAX:
        raise InvalidInput(f"{name} may have {TAGS_MAX} items at the most")
    names = sorted(text(key, name) for key in values)
    return {key: text(values[key], f"{name}.{key}") for key in names}


def meters(meters: Mapping[str, Meter] | None) -> Meters | None:
    """Return exact quantities by meter, in order of the meters."""
    if meters is None:
        return None
    if not isinstance(meters, Mapping):
        raise InvalidInput("meters must be a mapping of names to quantities")
    exact: Meters = {}
    for name in sorted(text(key, "meters") for key in meters):
        value = meters[name]
        exact[name] = (
            value if type(value) is int else _whole(parse_decimal(value, f"meters.{name}"))
        )
    check_meters(exact)
    return exact


def _whole(value: Decimal) -> int | Decimal:
    """Return one writing for one quantity, so that 2, "2" and "2.0" are the same request."""
    return int(value) if value == value.to_integral_value() else value.normalize()


def metadata(metadata: Mapping[str, object]) -> bytes:
    """Return a JSON object as bytes, of 4 KiB at the most."""
    if not isinstance(metadata, dict):
        raise InvalidInput("metadata must be a dict of JSON values")
    try:
        encoded = chain.encode(metadata)
        if b"null" in encoded:  # what JSON cannot write may have become one
            _check_finite(metadata)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
        raise InvalidInput(f"metadata must be JSON values: {problem}") from None
    if len(encoded) > METADATA_MAX:
        raise InvalidInput(
            f"metadata must be at most {METADATA_MAX} bytes of JSON, not {len(encoded)}"
        )
    return encoded


def _check_finite(value: object) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{value} is none")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for part in value:
            _check_finite(part)


def flag(value: object, name: str) -> bool:
    """Return True or False; nothing else is taken for one."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be True or False")
    return value


def integer(value: object, name: str, low: int, high: int) -> int:
    """Return a whole number within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidInput(f"{name} must be a whole number from {low} to {high}")
    return value


def priority(value: object) -> int:
    """Return where a grant stands in the burn order; the lowest is taken first."""
    return integer(value, "priority", -PRIORITY_MAX, PRIORITY_MAX)


def one_of(value: T, choices: object, name: str) -> T:
    """Return the choice itself: an equal text from elsewhere would be encoded differently."""
    allowed = choices.__args__  # type: ignore[attr-defined]  # a Literal of texts
    if value not in allowed:
        raise InvalidInput(f"{name} must be one of {', '.join(allowed)}, not {str(value)[:40]!r}")
    chosen: T = allowed[allowed.index(value)]
    return chosen


def instant(value: object, name: str) -> int | None:
    """Return an instant in microseconds, None where none was given."""
    return None if value is None else calendar.instant(value, name)


def span(value: object, name: str) -> int | None:
    """Return a span in microseconds, None where none was given."""
    return None if value is None else calendar.span(value, name)


def threshold_of(on: str, threshold: Units | None, scale: int) -> int:
    """Return an alert's threshold: units at this scale, percent, days, or nothing.

    Raises:
        InvalidInput: It is none.
    """
    if (threshold is None) != (on == "depleted"):
        raise InvalidInput("every alert has a threshold but 'depleted', which has none")
    if threshold is None:
        return 0
    if on in ("balance", TOPUP):
        return parse_limit(threshold, scale, "threshold")
    if isinstance(threshold, str) and threshold.isdecimal() and len(threshold) <= len("100"):
        threshold = int(threshold)
    if on in ("percent", "budget"):
        return integer(threshold, "threshold", 1, PERCENT_MAX)
    return integer(threshold, "threshold", 1, DAYS_MAX)


def anchor(value: object) -> str:
    """Return a local date and time as ISO text without a zone: it means the account's zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(f"anchor is not an ISO 8601 date or time: {value!r:.50}") from None
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise InvalidInput("anchor is a local time in the account's zone; give no zone with it")
        return value.isoformat()
    if isinstance(value, date):
        return f"{value.isoformat()}T00:00:00"
    raise InvalidInput("anchor must be a date or a local date and time")
