"""Time as integers: instants and spans at the border, periods in an account's own time zone.

Instants are microseconds since 1970 in UTC. Nothing here asks what time it is. The time-zone
rules come from the standard library's `zoneinfo`, which reads the system's database.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, assert_never

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import DAY, HOUR, MINUTE, SECOND

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from tillroll.ledger.types import Every, Period

Instant = datetime | str
Span = timedelta | str

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_SPAN = re.compile(
    r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)(?:\.(\d{1,6}))?s)?\Z", re.ASCII
)
# A thousand years: far enough for any expiry, near enough that no calendar arithmetic overflows.
SPAN_MAX = 365_000 * DAY
INSTANT_MAX = 253_402_300_799 * SECOND  # the last second of the year 9999
INSTANT_END = INSTANT_MAX + SECOND  # the first instant that no date can show
INSTANT_MIN = -62_135_596_800 * SECOND  # the first of the year 1
# Daily since the year 1 would be fewer.
_OCCURRENCES_MAX = 2**22
# A rolling window is counted in this many slices; see `window`.
SLICES = 60


def instant(value: object, name: str) -> int:
    """Return an aware datetime, or an ISO 8601 text with an offset, as microseconds in UTC.

    Raises:
        InvalidInput: A naive time (whose clock?), one that its offset moves out of the calendar,
            or not a time at all.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(f"{name} is not an ISO 8601 time: {value!r:.50}") from None
    if not isinstance(value, datetime):
        raise InvalidInput(f"{name} must be a datetime or an ISO 8601 text")
    if value.tzinfo is None:
        raise InvalidInput(f"{name} must carry its time zone, such as 2026-01-31T12:00:00Z")
    at = (value - _EPOCH) // _TICK
    if not INSTANT_MIN <= at < INSTANT_END:
        raise InvalidInput(f"{name} must be within the years 1 to 9999 in UTC")
    return at


def span(value: object, name: str) -> int:
    """Return a timedelta, or a text such as "90d", "15m", "1h30m" or "2.5s", as microseconds.

    Raises:
        InvalidInput: Zero, negative, longer than a thousand years, or not a span.
    """
    if isinstance(value, str):
        found = _SPAN.match(value)
        if not found or not value:
            raise InvalidInput(f"{name} is not a span such as '90d' or '1h30m': {value[:40]!r}")
        *whole, fraction = found.groups()
        parts = [int(part[:12]) if part else 0 for part in whole]
        micros = sum(n * size for n, size in zip(parts, _SIZES, strict=True))
        micros += int(f"{fraction or 0:0<6}")  # digits after the point, as millionths
    elif isinstance(value, timedelta):
        micros = value // _TICK
    else:
        raise InvalidInput(f"{name} must be a timedelta or a text such as '90d'")
    if not 0 < micros <= SPAN_MAX:
        raise InvalidInput(f"{name} must be longer than zero and at most a thousand years")
    return micros


_SIZES = (7 * DAY, DAY, HOUR, MINUTE, SECOND)


def show_span(micros: int) -> str:
    """Return a span as a text that `span` reads: 1500000 is "1.5s"."""
    seconds, part = divmod(micros, SECOND)
    return f"{seconds}.{part:06d}s" if part else f"{seconds}s"


def say_span(micros: int) -> str:
    """Return a span as people say it, in the largest unit that it is a whole number of."""
    sizes = ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second"))
    for size, name in sizes:
        count, rest = divmod(micros, size)
        if not rest:
            return f"{count} {name}" if count == 1 else f"{count} {name}s"
    return show_span(micros)


def show_instant(at: int) -> str:
    """Return an instant as ISO 8601 in UTC, such as 2026-01-31T12:00:00Z."""
    second, micros = divmod(at, SECOND)
    return f"{_show_second(second)}.{micros:06d}Z" if micros else f"{_show_second(second)}Z"


@lru_cache(maxsize=4_096)
def _show_second(second: int) -> str:
    return to_datetime(second * SECOND).replace(tzinfo=None).isoformat()


def local_text(at: int, zone_name: str) -> str:
    """Return an instant as ISO 8601 in that zone's local time, without the zone, for an anchor."""
    return to_datetime(at).astimezone(zone(zone_name)).replace(tzinfo=None).isoformat()


def to_datetime(at: int) -> datetime:
    """Return an instant as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=at)


# What lies in the database besides places: copies, and what each machine sets for itself.
_NO_PLACES = ("posix/", "right/", "posixrules", "localtime", "Factory")


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """Return the IANA time zone of that name.

    Raises:
        InvalidInput: No such zone in the system's database, or one that is this machine's own.
    """
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - once a zone, and most never need one

    if not name.startswith(_NO_PLACES):
        with suppress(KeyError, ValueError, OSError):
            return ZoneInfo(name)
    raise InvalidInput(f"unknown time zone {name[:60]!r}; use an IANA name")


def end_of_day(day: str, zone_name: str) -> int:
    """Return the first instant after that date in that zone.

    Something that "expires on 31 July" is good through the whole of 31 July where its owner lives.
    """
    try:
        after = date.fromisoformat(day) + timedelta(days=1)
    except ValueError:
        raise InvalidInput(f"not a date: {day[:40]!r}") from None
    except OverflowError:
        raise InvalidInput(f"{day} is too late; leave the end out for never") from None
    return _midnight(after, zone(zone_name))


def window(period: Period, at: int, length: int, zone_name: str) -> tuple[int, int]:
    """Return the start of the window that `at` falls in, and when it resets.

    Calendar periods start at local midnight. A rolling window is counted in `SLICES` slices; what
    this returns is the slice, and a slice leaves the window only when all of it is older than the
    window, so that the cap holds over every span of that length.
    """
    match period:
        case "total":
            return 0, INSTANT_MAX
        case "rolling":
            size = slice_size(length)
            start = at - at % size
            return start, start + length + size
        case "day" | "week" | "month":
            return _calendar_window(period, at, zone_name)
        case _:
            assert_never(period)


def slice_size(length: int) -> int:
    """Return the size of one slice of a rolling window of that length."""
    return max(length // SLICES, 1)


def occurrence(anchor: str, every: Every, count: int, n: int, zone_name: str) -> int:
    """Return when the n-th occurrence after the anchor falls due.

    Always counted from the anchor: 31 January, then 28 February, then 31 March again. Counting
    from the last occurrence would drift to the 28th for good.
    """
    first = datetime.fromisoformat(anchor)
    steps = n * count
    try:
        match every:
            case "day":
                day = first.date() + timedelta(days=steps)
            case "week":
                day = first.date() + timedelta(weeks=steps)
            case "month":
                day = _add_months(first.date(), steps)
            case "year":
                day = _add_months(first.date(), 12 * steps)
            case _:
                assert_never(every)
    except (OverflowError, ValueError):
        return INSTANT_MAX
    local = datetime.combine(day, first.time(), tzinfo=zone(zone_name))
    return (local - _EPOCH) // _TICK


def current(anchor: str, every: Every, count: int, at: int, zone_name: str) -> int:
    """Return the number of the occurrence whose period `at` falls in; 0 before the first."""
    low, high = 0, 1
    while high < _OCCURRENCES_MAX and occurrence(anchor, every, count, high, zone_name) <= at:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if occurrence(anchor, every, count, middle, zone_name) <= at:
            low = middle
        else:
            high = middle
    return low


def period_of(
    every: Every | None, count: int | None, every_else: Every, count_else: int
) -> tuple[Every, int]:
    """Return a period of which a part may be left out: all of it is another's then.

    Who names `every` alone means each one; who names `count` alone, so many of the other's.
    """
    if every is None and count is None:
        return every_else, count_else
    return every_else if every is None else every, 1 if count is None else count


def _add_months(day: date, months: int) -> date:
    years, month = divmod(day.month - 1 + months, 12)
    year = day.year + years
    return date(year, month + 1, min(day.day, _last_day(year, month + 1)))


def _last_day(year: int, month: int) -> int:
    december = 12
    if month == december:
        return 31
    return (date(year, month + 1, 1) - timedelta(days=1)).day


def _calendar_window(period: Period, at: int, zone_name: str) -> tuple[int, int]:
    tz = zone(zone_name)
    today = to_datetime(at).astimezone(tz).date()
    if period == "day":
        first, after = today, today + timedelta(days=1)
    elif period == "week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = _add_months(first, 1)
    return _midnight(first, tz), _midnight(after, tz)


def _midnight(day: date, tz: ZoneInfo) -> int:
    return (datetime.combine(day, time.min, tzinfo=tz) - _EPOCH) // _TICK
