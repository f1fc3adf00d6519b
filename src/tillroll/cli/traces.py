"""Usage traces: rows of a CSV or JSON-lines file as requests to be charged."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

# Columns that known public traces use, tried where no option names the columns.
_TIMES = ("TIMESTAMP", "timestamp", "time", "at", "created_at")
_METERS = {
    "input_tokens": ("ContextTokens", "input_tokens", "prompt_tokens"),
    "output_tokens": ("GeneratedTokens", "output_tokens", "completion_tokens"),
}
_ROWS_MAX = 10_000_000
_DIGITS_MAX = 30  # far beyond any meter, and far below what takes long to write out
# Some traces carry more digits than a microsecond has.
_FRACTION = re.compile(r"\.\d{7,}")


class Row(Struct, frozen=True):
    """One request of a trace.

    Attributes:
        number: Its place among the requests of the file, counted from 1.
        at: When it was made, an aware datetime.
        meters: What it really measured.
        repeats: How often the file has it once more.
    """

    number: int
    request_id: str
    account: str
    at: datetime
    model: str | None
    meters: dict[str, int | Decimal]
    repeats: int = 0


class Columns(Struct, frozen=True):
    """Which columns mean what; None or empty where the file has none."""

    time: str | None = None
    account: str | None = None
    id: str | None = None
    model: str | None = None
    meters: Mapping[str, str] = {}


def read(path: Path, columns: Columns, *, accounts: int, limit: int | None) -> list[Row]:
    """Return the requests of a file, in its order.

    Rows without an account are dealt out to `accounts` made-up ones, by their id where they have
    one, so that one id is always one account's; rows without an id get one
    from the file's name and their line, so that the same file gives the same ids every time. A row
    that says what an earlier one of its id does is that request again.

    Raises:
        InvalidInput: A line that cannot be read, with its number.
    """
    rows: list[Row] = []
    known: dict[tuple[str, str], int] = {}
    chosen: Columns | None = None
    for number, raw in enumerate(_raw(path), 1):
        if limit is not None and number > limit:
            break
        if number > _ROWS_MAX:
            raise InvalidInput(f"{path.name} has more than {_ROWS_MAX:,} rows")
        chosen = chosen or _complete(columns, raw, path)
        row = replace(_row(path, chosen, number, raw, accounts), number=len(rows) + 1)
        place = known.setdefault((row.account, row.request_id), len(rows))
        if place == len(rows):
            rows.append(row)
            continue
        first = rows[place]
        if (row.model, row.meters) != (first.model, first.meters):
            raise InvalidInput(
                f"{path.name} row {number}: {row.request_id!r} stands there with other figures "
                f"before"
            )
        rows[place] = replace(first, repeats=first.repeats + 1)
    if not rows:
        raise InvalidInput(f"{path.name} has no rows")
    return rows


def _raw(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        read = _json_rows if path.suffix in (".jsonl", ".ndjson", ".json") else _csv_rows
        try:
            yield from read(path, file)
        except UnicodeDecodeError:
            raise InvalidInput(f"{path.name} line {_undecoded(path)}: not UTF-8") from None


def _undecoded(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        wrong = (number for number, line in enumerate(file, 1) if not _is_text(line))
        return next(wrong, 0)


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[dict[str, object]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_float=str)
        except (ValueError, RecursionError) as problem:
            raise InvalidInput(f"{path.name} line {number}: {problem}") from None
        if not isinstance(value, dict):
            raise InvalidInput(f"{path.name} line {number}: not a JSON object")
        yield value


def _csv_rows(path: Path, file: Iterable[str]) -> Iterator[dict[str, object]]:
    """Yield the rows; one that is cut short would be charged too little, so it is an error."""
    rows = csv.DictReader(itertools.dropwhile(str.isspace, file))
    try:
        twice = [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if twice:
            raise InvalidInput(f"{path.name} has two columns {twice[0]!r}")
        for number, raw in enumerate(rows, 1):
            more = any(raw.pop(None, ()))  # a comma too many at the end is none
            if more or None in raw.values():
                than = "more" if more else "fewer"
                raise InvalidInput(f"{path.name} row {number}: {than} values than columns")
            yield raw
    except csv.Error as problem:
        raise InvalidInput(f"{path.name} line {rows.line_num}: {problem}") from None


def _complete(columns: Columns, raw: Mapping[str, object], path: Path) -> Columns:
    """Fill in what the options left open from the names that known traces use."""
    time = columns.time or next((name for name in _TIMES if name in raw), None)
    meters = dict(columns.meters) or {
        meter: next(name for name in names if name in raw)
        for meter, names in _METERS.items()
        if any(name in raw for name in names)
    }
    if not meters:
        raise InvalidInput(
            f"{path.name}: no column is known to be a meter; name them with "
            f"--meter input_tokens=COLUMN (it has {', '.join(map(str, raw))})"
        )
    named = [*meters.values(), time, columns.account, columns.id, columns.model]
    for name in named:
        if name is not None and name not in raw:
            raise InvalidInput(f"{path.name} has no column {name!r}; it has {', '.join(raw)}")
    return Columns(time, columns.account, columns.id, columns.model, meters)


def _row(
    path: Path, columns: Columns, number: int, raw: Mapping[str, object], accounts: int
) -> Row:
    def text(name: str | None) -> str | None:
        value = None if name is None else raw.get(name)
        return None if value in (None, "") else str(value)

    meters: dict[str, int | Decimal] = {}
    for meter, name in columns.meters.items():
        value = text(name)
        if value is None:
            continue
        try:
            exact = Decimal(value)
        except InvalidOperation:
            exact = Decimal("NaN")
        if not exact.is_finite() or exact < 0 or exact.adjusted() >= _DIGITS_MAX:
            raise InvalidInput(f"{path.name} row {number}: {name} is {value[:40]!r}")
        meters[meter] = int(exact) if exact == exact.to_integral_value() else exact
    named = text(columns.id)
    dealt = (number if named is None else crc32(named.encode())) % accounts + 1
    return Row(
        number=number,
        request_id=named or f"{path.stem}-{number:07d}",
        account=text(columns.account) or f"team-{dealt:02d}",
        at=_time(path, number, text(columns.time)),
        model=text(columns.model),
        meters=meters,
    )


def _time(path: Path, number: int, value: str | None) -> datetime:
    """Return the time of a row; what has no zone is UTC, what has more than microseconds is cut."""
    if value is None:
        return datetime.now(UTC)
    cut = _FRACTION.sub(lambda found: found[0][:7], value)
    try:
        when = datetime.fromisoformat(cut)
    except ValueError:
        raise InvalidInput(f"{path.name} row {number}: not a time: {value!r}") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    calendar.instant(when, f"{path.name} row {number}: the time")
    return when
