"""Units at the border: exact in, exact out, nothing rounded."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.units import (
    UNITS_MAX,
    parse_decimal,
    parse_limit,
    parse_signed,
    parse_units,
    show_all,
    show_units,
    to_decimal,
)


@pytest.mark.parametrize(
    ("value", "scale", "units"),
    [
        (1, 6, 1_000_000),
        ("12.5", 6, 12_500_000),
        ("0012.50", 2, 1250),
        ("+7", 0, 7),
        (Decimal("0.000001"), 6, 1),
        (Decimal("1E+3"), 2, 100_000),
        (Decimal("1.50"), 1, 15),
        ("9007199254.740991", 6, UNITS_MAX),
        (UNITS_MAX, 0, UNITS_MAX),
    ],
)
def test_what_is_taken(value: object, scale: int, units: int):
    assert parse_units(value, scale) == units
    assert parse_signed(value, scale) == units
    assert parse_limit(value, scale, "limit") == units


@pytest.mark.parametrize(
    ("value", "scale", "told"),
    [
        (1.5, 6, "float"),
        (True, 6, "bool"),
        ("1.5", 0, "more than 0 decimals"),
        ("0.0000001", 6, "more than 6 decimals"),
        (2**53, 0, "2^53"),
        ("9007199254.740992", 6, "2^53"),
        (10**31, 0, "2^53"),
        (Decimal("1e31"), 0, "far beyond"),
        (Decimal("NaN"), 0, "finite"),
        ("1e3", 0, "plain decimal"),
        (None, 0, "must be an int"),
        (0, 6, "greater than zero"),
        (-1, 6, "greater than zero"),
    ],
)
def test_what_is_refused(value: object, scale: int, told: str):
    with pytest.raises(InvalidInput, match="(?i)" + told.replace("^", r"\^")):
        parse_units(value, scale)


def test_a_limit_may_be_zero_and_not_less():
    assert parse_limit(0, 6, "limit") == 0
    with pytest.raises(InvalidInput, match="limit must not be negative"):
        parse_limit(-1, 6, "limit")


def test_a_figure_of_any_size_is_no_decimal():
    with pytest.raises(InvalidInput, match="far beyond"):
        parse_decimal(10**400)


def test_a_whole_number_is_a_decimal():
    assert parse_decimal(7) == Decimal(7)


def test_zero_has_no_size():
    assert parse_decimal(Decimal("0E+99")) == 0


@given(st.integers(-UNITS_MAX, UNITS_MAX), st.integers(0, 12))
def test_out_and_in_again(units: int, scale: int):
    shown = show_units(units, scale)
    assert show_all([units, 0, -units], scale) == [shown, "0", show_units(-units, scale)]
    assert parse_signed(shown, scale) == units
    assert parse_signed(to_decimal(units, scale), scale) == units
    assert Decimal(shown) == to_decimal(units, scale)
    assert "." not in shown or not shown.endswith("0")


@given(st.one_of(st.floats(), st.text(), st.binary(), st.none(), st.booleans()))
def test_anything_else_is_a_typed_error(value: object):
    try:
        units = parse_units(value, 6)
    except InvalidInput as problem:
        units = 0
        told = str(problem)
        assert told.startswith("units")
    assert units == 0 or isinstance(value, str)
