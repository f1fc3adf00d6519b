"""What only SQLite has: plans of queries, and triggers that keep what is written."""

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
