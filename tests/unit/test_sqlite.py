"""What only SQLite has: plans of queries, triggers that keep what is written, columns."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import apsw
import pytest

import tillroll
from tillroll.stores.base import TRAIL_MIN
from tillroll.stores.sqlite import SqliteStore


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    path = tmp_path / "credits.db"
    with tillroll.open(path) as ledger:
        ledger.grant("acme", 1)
        ledger.apply_prices([], author="ann", reason="nothing is sold")
    connection = apsw.Connection(str(path))
    yield connection
    connection.close()


NAMES = (
    "SELECT account FROM tillroll_accounts WHERE project = 'a' AND account > 'b' "
    "ORDER BY account LIMIT 9"
)
OLD = (
    "SELECT request_id, account_id FROM tillroll_refusals WHERE recorded_at < 7 "
    "ORDER BY recorded_at LIMIT 9"
)


DUE = (
    "SELECT * FROM tillroll_deliveries WHERE endpoint = 'we_1' AND state = 'pending' "
    "AND next_at <= 7 ORDER BY next_at LIMIT 9"
)


@pytest.mark.parametrize("sql", [NAMES, OLD, DUE], ids=["names", "old refusals", "due"])
def test_a_page_is_read_from_an_index_without_sorting(connection: apsw.Connection, sql: str):
    steps = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert [step.split()[0] for step in steps] == ["SEARCH"], steps


@pytest.mark.parametrize(
    "sql", ["DELETE FROM tillroll_entries", "DELETE FROM tillroll_price_versions"]
)
def test_what_is_written_for_good_cannot_be_deleted(connection: apsw.Connection, sql: str):
    with pytest.raises(apsw.ConstraintError, match="never deleted"):
        connection.execute(sql)


def test_the_column_of_what_falls_due_follows_the_account(tmp_path: Path):
    """It is written only where it changed; a scan by due time and `check` rely on it."""
    with tillroll.open(tmp_path / "credits.db") as ledger:
        ledger.grant("acme", 100)
        for number in range(3):  # nothing due, then a hold, then nothing again
            ledger.consume("acme", units=1)
            hold = ledger.hold("acme", units=5, request_id=f"hold-{number}")
            ledger.consume("acme", units=1)  # as due as before
            assert ledger.store.check() == []
            ledger.settle("acme", hold.id, units=2)
            assert ledger.store.check() == []
        ledger.consume("acme", units=1)
        assert ledger.store.check() == []


def seq_in_row(path: Path) -> int:
    connection = apsw.Connection(str(path))
    seq: int = connection.execute("SELECT seq FROM tillroll_accounts").get
    connection.close()
    return seq


def test_states_trail_while_an_account_is_at_work(tmp_path: Path):
    path = tmp_path / "credits.db"
    ledger = tillroll.open(path)
    ledger.grant("acme", 1_000)
    seen = set()
    for used in range(1, 3 * TRAIL_MIN):
        ledger.consume("acme", units=1)
        seen.add(seq_in_row(path))
        with tillroll.open(path) as other:  # which folds what the row lacks
            assert other.balance("acme").used == used
    assert len(seen) <= 3, "a row was written for each charge"
    assert seq_in_row(path) < 3 * TRAIL_MIN
    assert ledger.verify().ok
    ledger.close()
    assert seq_in_row(path) == 3 * TRAIL_MIN


def test_another_writer_folds_what_the_row_lacks(tmp_path: Path):
    path = tmp_path / "credits.db"
    with tillroll.open(path) as one, tillroll.open(path) as other:
        one.grant("acme", 10)
        for turn in range(4):
            assert one.consume("acme", units=1).available == 9 - 2 * turn
            assert other.consume("acme", units=1).available == 8 - 2 * turn
        assert other.verify().ok
    assert seq_in_row(path) == 9


def test_a_due_date_is_in_the_row_before_it_falls_due(tmp_path: Path):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with tillroll.open(tmp_path / "credits.db", clock=lambda: now) as ledger:
        ledger.grant("acme", 100)
        ledger.consume("acme", units=1)
        ledger.hold("acme", units=5, expires_in="10m")
        now += timedelta(minutes=11)
        assert ledger.book_due() == 1
        assert ledger.balance("acme").held == 0
        ledger.hold("acme", units=5, request_id="h", expires_in="10m")
        ledger.settle("acme", "h", units=1)
        now += timedelta(minutes=11)
        assert ledger.book_due() == 0, "the row named a time at which nothing was left to book"
        assert ledger.store.check() == []


def test_an_entry_that_is_missing_among_others_is_noticed(tmp_path: Path):
    """Though its account's row trails, as in a file whose process was killed."""
    path = tmp_path / "credits.db"
    ledger = tillroll.open(path)
    for name in ("acme", "zoe"):
        ledger.grant(name, 10)
        ledger.consume(name, units=1)
    connection = apsw.Connection(str(path))
    connection.execute("DROP TRIGGER tillroll_entries_keep")
    connection.execute("DELETE FROM tillroll_entries WHERE rowid = 2")
    connection.close()
    assert any("1 entries are missing" in str(one["problem"]) for one in ledger.verify().problems)


MANY = 300  # accounts; more than one statement takes


def used(path: Path) -> list[int]:
    with tillroll.open(path) as ledger:
        return [int(ledger.balance(f"a{number}").used) for number in range(MANY)]


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
def test_many_accounts_are_loaded_at_once(tmp_path: Path, library: Literal["apsw", "sqlite3"]):
    """Rows that trail, rows that do not, and accounts that are not there yet."""
    path = tmp_path / "credits.db"
    other = tillroll.open(path, library=library)  # never closed first: then rows would not trail
    for number in range(0, MANY, 2):
        other.grant(f"a{number}", 50, reason='odd "\\ \n é', request_id="g")
        for turn in range(number % 7):
            other.consume(f"a{number}", units=1, request_id=f"c{turn}")
        if number % 5 == 0:
            other.hold(f"a{number}", units=2, request_id="h", expires_in="9h")
    with tillroll.open(path, library=library) as ledger:
        items = [{"account": f"a{n}", "units": 1, "request_id": "all"} for n in range(MANY)]
        outcomes = ledger.consume_many(items)
        assert [outcome.ok for outcome in outcomes] == [n % 2 == 0 for n in range(MANY)]
        for number in range(0, MANY, 2):
            balance = ledger.balance(f"a{number}")
            assert balance.used == number % 7 + 1
            assert balance.held == (2 if number % 5 == 0 else 0)
        assert ledger.verify().ok
        assert ledger.store.check() == []
    other.close()
    assert used(path) == [0 if n % 2 else n % 7 + 1 for n in range(MANY)]


def test_statements_that_load_do_not_grow_with_the_accounts(tmp_path: Path):
    path = tmp_path / "credits.db"
    items = [{"account": f"a{n}", "units": 1} for n in range(MANY)]
    with tillroll.open(path) as ledger:
        for number in range(MANY):
            ledger.grant(f"a{number}", 50)
    with tillroll.open(path) as ledger:
        assert isinstance(ledger.store, SqliteStore)
        connection = ledger.store._writer
        assert isinstance(connection, apsw.Connection)
        sent: list[str] = []

        def note(_: object, sql: str, __: object) -> bool:
            sent.append(sql)
            return True

        connection.exec_trace = note
        assert all(outcome.ok for outcome in ledger.consume_many(items))
        connection.exec_trace = None
    loads = [sql for sql in sent if "SELECT" in sql and "tillroll_accounts" in sql]
    assert 0 < len(loads) <= 6, f"{len(loads)} statements for {MANY} accounts"


def test_one_damaged_account_fails_alone_among_many(tmp_path: Path):
    path = tmp_path / "credits.db"
    with tillroll.open(path) as ledger:
        for number in range(20):
            ledger.grant(f"a{number}", 50)
    with closing(apsw.Connection(str(path))) as connection:
        spoil = "UPDATE tillroll_accounts SET state = ? WHERE account = ?"
        connection.execute(spoil, ("{}\nnot a line of ours", "a3"))
    with tillroll.open(path) as ledger:
        outcomes = ledger.consume_many({"account": f"a{n}", "units": 1} for n in range(20))
        assert [outcome.ok for outcome in outcomes] == [n != 3 for n in range(20)]
        assert isinstance(outcomes[3].error, tillroll.StoreCorrupt)
