"""Units at the border: exact decimals outside, integers of 10^-scale inside.

Floats are refused because they cannot hold what they show: 0.1 + 0.2 is not 0.3, and a ledger
that starts from a rounded number can never add up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Context, Decimal

from tillroll.ledger.errors import InvalidInput

Units = int | Decimal | str

SCALE_DEFAULT = 6
SCALE_MAX = 12
# Below 2^53 every JSON reader, JavaScript's included, keeps the integer exact.
UNITS_MAX = 2**53 - 1

# Wide enough that no input below is ever rounded: 31 digits before the point and 30 after it.
_EXACT = Context(prec=80)
_DIGITS_MAX = 60
_POWER_MAX = 30

_DECIMAL = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?\Z", re.ASCII)


def parse_decimal(value: object, name: str = "units") -> Decimal:
    """Return `value` as an exact decimal.

    Args:
        value: An `int`, a finite `Decimal`, or a plain decimal string such as "12.5".
        name: What to call it in the error.

    Raises:
        InvalidInput: A float, a bool, NaN, infinity, an exponent, or not a number at all.
    """
    if isinstance(value, bool):
        raise InvalidInput(f"{name} must be a number, not a bool")
    if isinstance(value, int):
        if abs(value) > 10**_POWER_MAX:
            raise InvalidInput(f"{name} is far beyond what a ledger can hold")
        return Decimal(value)
    if isinstance(value, float):
        raise InvalidInput(
            f"{name} must be exact: a float cannot hold most decimals; pass {str(value)!r} "
            f"as a string or a Decimal"
        )
    if isinstance(value, str):
        if not _DECIMAL.match(value):
            raise InvalidInput(f"{name} must be a plain decimal such as '12.5', not {value[:40]!r}")
        return Decimal(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidInput(f"{name} must be finite, not {value}")
        if value and (
            abs(value.adjusted()) > _POWER_MAX or len(value.as_tuple().digits) > _DIGITS_MAX
        ):
            raise InvalidInput(f"{name} is far beyond what a ledger can hold")
        return value
    raise InvalidInput(f"{name} must be an int, a Decimal or a decimal string")


def parse_units(value: object, scale: int, name: str = "units") -> int:
    """Return a positive amount as an integer of 10^-scale.

    Raises:
        InvalidInput: As `parse_decimal`, and when the amount is zero, negative, has more than
            `scale` decimals, or reaches 2^53 of the smallest unit.
    """
    units = parse_signed(value, scale, name)
    if units <= 0:
        raise InvalidInput(f"{name} must be greater than zero, not {show_units(units, scale)}")
    return units


def parse_limit(value: object, scale: int, name: str) -> int:
    """Return an amount that may be zero, such as an overdraft limit or a floor."""
    units = parse_signed(value, scale, name)
    if units < 0:
        raise InvalidInput(f"{name} must not be negative")
    return units


def parse_signed(value: object, scale: int, name: str = "units") -> int:
    """Return an amount of either sign as an integer of 10^-scale."""
    units: int
    if type(value) is int:  # the common case, and cheap
        units = value * 10**scale
    else:
        exact = parse_decimal(value, name)
        shifted = _EXACT.scaleb(exact, scale)
        units = int(shifted)
        if shifted != units:
            raise InvalidInput(f"{name} has more than {scale} decimals: {exact}")
    if not -UNITS_MAX <= units <= UNITS_MAX:
        raise InvalidInput(
            f"{name} must stay below 2^53 of the smallest unit, which is "
            f"{show_units(UNITS_MAX, scale)} at scale {scale}"
        )
    return units


_POWERS = tuple(10**scale for scale in range(SCALE_MAX + 1))


def to_decimal(units: int, scale: int) -> Decimal:
    """Return stored units as an exact decimal without trailing zeros: 980000000 is 980."""
    whole, part = divmod(abs(units), 10**scale)
    if not part:
        return Decimal(whole if units >= 0 else -whole)
    return Decimal(show_units(units, scale))


def show_units(units: int, scale: int) -> str:
    """Return stored units as a plain decimal string: 1500000 is "1.5"."""
    power = _POWERS[scale]
    if not units % power:  # the common case, and cheap
        return str(units // power)
    return _show_part(units, power, scale)


def show_all(amounts: Sequence[int], scale: int) -> list[str]:
    """Return what `show_units` makes of each, by one call for all that an entry has."""
    power = _POWERS[scale]
    return [
        _show_part(units, power, scale) if units % power else str(units // power)
        for units in amounts
    ]


def _show_part(units: int, power: int, scale: int) -> str:
    whole, part = divmod(abs(units), power)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole}.{part:0{scale}d}".rstrip("0")
