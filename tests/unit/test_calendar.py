"""Periods, anchors and time zones."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import DAY, HOUR, MINUTE, Every


def at(text: str) -> int:
    return calendar.instant(text, "at")


def days(anchor: str, every: Every, count: int, zone: str = "UTC", *, n: int = 5) -> list[str]:
    moments = [calendar.occurrence(anchor, every, count, i, zone) for i in range(n)]
    return [calendar.show_instant(moment) for moment in moments]


def test_the_31st_does_not_drift():
    found = days("2026-01-31T00:00:00", "month", 1)
    assert [day[:10] for day in found] == [
        "2026-01-31",
        "2026-02-28",
        "2026-03-31",
        "2026-04-30",
        "2026-05-31",
    ]


def test_leap_years():
    assert [d[:10] for d in days("2024-02-29T00:00:00", "year", 1)] == [
        "2024-02-29",
        "2025-02-28",
        "2026-02-28",
        "2027-02-28",
        "2028-02-29",
    ]


@pytest.mark.parametrize(
    ("every", "count", "second"),
    [
        ("day", 3, "2026-01-18"),
        ("week", 2, "2026-01-29"),
        ("month", 2, "2026-03-15"),
        ("year", 1, "2027-01-15"),
    ],
)
def test_every(every: str, count: int, second: str):
    assert days("2026-01-15T00:00:00", every, count)[1][:10] == second


def test_local_time_is_kept_over_daylight_saving():
    found = days("2026-03-07T09:00:00", "day", 1, "America/New_York", n=3)
    assert found == ["2026-03-07T14:00:00Z", "2026-03-08T13:00:00Z", "2026-03-09T13:00:00Z"]


def test_an_hour_that_does_not_exist_or_comes_twice():
    assert days("2026-03-07T02:30:00", "day", 1, "America/New_York", n=2)[1] == (
        "2026-03-08T07:30:00Z"
    )
    assert days("2026-10-31T01:30:00", "day", 1, "America/New_York", n=2)[1] == (
        "2026-11-01T05:30:00Z"
    )


def test_beyond_the_calendar_is_never():
    everies: tuple[Every, ...] = ("day", "week", "month", "year")
    for every in everies:
        found = calendar.occurrence("9999-12-31T00:00:00", every, 1000, 9_999_999, "UTC")
        assert found == calendar.INSTANT_MAX


@pytest.mark.parametrize(
    ("period", "moment", "start", "end"),
    [
        ("day", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
        ("day", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
        ("week", "2026-01-04T12:00:00Z", "2025-12-29T05:00:00Z", "2026-01-05T05:00:00Z"),
        ("month", "2026-02-01T04:59:59Z", "2026-01-01T05:00:00Z", "2026-02-01T05:00:00Z"),
        ("month", "2026-02-01T05:00:00Z", "2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z"),
    ],
)
def test_windows_in_new_york(period: str, moment: str, start: str, end: str):
    found = calendar.window(period, at(moment), 0, "America/New_York")  # type: ignore[arg-type]
    assert [calendar.show_instant(edge) for edge in found] == [start, end]


def test_the_total_never_resets():
    assert calendar.window("total", at("2026-01-01T00:00:00Z"), 0, "UTC") == (
        0,
        calendar.INSTANT_MAX,
    )


def test_a_rolling_window_is_counted_in_slices():
    start, end = calendar.window("rolling", at("2026-01-01T00:07:00Z"), 5 * HOUR, "UTC")
    assert start == at("2026-01-01T00:05:00Z")
    assert end == start + 5 * HOUR + 5 * MINUTE
    assert calendar.slice_size(1) == 1


def test_a_date_ends_where_its_owner_lives():
    assert calendar.end_of_day("2026-07-31", "Asia/Kolkata") == at("2026-07-31T18:30:00Z")
    for day in ("2026-02-30", "soon"):
        with pytest.raises(InvalidInput, match="not a date"):
            calendar.end_of_day(day, "UTC")
    with pytest.raises(InvalidInput, match="too late"):
        calendar.end_of_day("9999-12-31", "UTC")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("90d", 90 * DAY),
        ("1h30m", 90 * MINUTE),
        ("2w", 14 * DAY),
        ("1s", 1_000_000),
        ("1.5s", 1_500_000),
        ("1m0.000001s", MINUTE + 1),
    ],
)
def test_spans(text: str, micros: int):
    assert calendar.span(text, "span") == micros
    assert calendar.span(timedelta(microseconds=micros), "span") == micros
    assert calendar.span(calendar.show_span(micros), "span") == micros


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("35d", "35 days"),
        ("24h", "1 day"),
        ("36h", "36 hours"),
        ("1h", "1 hour"),
        ("5m", "5 minutes"),
        ("90s", "90 seconds"),
        ("1.5s", "1.500000s"),
    ],
)
def test_a_span_is_said_in_its_largest_unit(text: str, said: str):
    assert calendar.say_span(calendar.span(text, "span")) == said


@pytest.mark.parametrize(
    "text",
    ["", "0s", "-1d", "1.5h", "1.s", ".5s", "0.0000001s", "m", "1000001w", "9" * 30 + "d", 7],
)
def test_spans_that_are_none(text: object):
    with pytest.raises(InvalidInput, match="span"):
        calendar.span(text, "span")


@pytest.mark.parametrize("value", ["soon", "2026-01-01", datetime(2026, 1, 1), 5])  # noqa: DTZ001
def test_instants_that_are_none(value: object):
    with pytest.raises(InvalidInput, match="at"):
        calendar.instant(value, "at")


def test_an_unknown_zone():
    for name in ("Mars/Olympus", "../etc/passwd", "\x00"):
        with pytest.raises(InvalidInput, match="unknown time zone"):
            calendar.zone(name)


moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(  # noqa: DTZ001
    lambda moment: calendar.instant(moment.replace(tzinfo=UTC), "at")
)
zones = st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])


@given(moments, zones, st.sampled_from(["day", "week", "month", "rolling"]))
def test_every_moment_is_in_its_window(moment: int, zone: str, period: str):
    start, end = calendar.window(period, moment, HOUR, zone)  # type: ignore[arg-type]
    assert start <= moment < end
    assert calendar.window(period, start, HOUR, zone) == (start, end)  # type: ignore[arg-type]


@given(moments, zones, st.sampled_from(["day", "week", "month", "year"]), st.integers(1, 3))
def test_the_current_occurrence_is_found(moment: int, zone: str, every: str, count: int):
    anchor = "2021-01-31T02:30:00"
    n = calendar.current(anchor, every, count, moment, zone)  # type: ignore[arg-type]
    begins = calendar.occurrence(anchor, every, count, n, zone)  # type: ignore[arg-type]
    after = calendar.occurrence(anchor, every, count, n + 1, zone)  # type: ignore[arg-type]
    assert after > moment
    assert begins <= moment or n == 0
