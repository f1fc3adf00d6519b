"""What only SQLite has: plans of queries, triggers that keep what is written, columns."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import tillroll


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


@pytest.mark.parametrize("sql", [NAMES, OLD], ids=["names", "old refusals"])
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
