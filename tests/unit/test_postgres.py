"""What is the PostgreSQL driver's own: one transaction a batch, states behind, other writers."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

import tillroll
from tests.faults.rig import join, until
from tests.servers.cluster import Cluster
from tillroll.ledger.commands import account_id
from tillroll.stores.base import TRAIL_BYTES, TRAIL_MIN
from tillroll.stores.postgres import PostgresStore
from tillroll.stores.postgres_rows import COPY_MIN


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[tillroll.Ledger]:
    with tillroll.open(postgres_url) as ledger:
        yield ledger


def asked(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


@pytest.mark.parametrize("size", [1, 4, 5, 300])
def test_a_batch_is_one_transaction(ledger: tillroll.Ledger, postgres_url: str, size: int):
    for number in range(size):
        ledger.grant(f"a{number}", 10, request_id="g")
    items = [{"account": f"a{number}", "units": 1, "request_id": "c"} for number in range(size)]
    assert all(outcome.ok for outcome in ledger.consume_many(items))
    found = "SELECT count(*), count(DISTINCT xmin::text) FROM tillroll_entries WHERE kind = "
    assert asked(postgres_url, f"{found}'consume'") == [(size, 1)]


def test_statements_of_a_batch_do_not_grow_with_it(postgres: Cluster, postgres_database: str):
    """As many statements for 500 accounts as for 10."""
    counts = []
    url = postgres.url(postgres_database)
    with tillroll.open(url) as ledger:
        for size in (10, 500, 10, 500):
            names = [f"s{number}" for number in range(size)]
            ledger.consume_many([{"account": name, "units": 1} for name in names])
            writer = ledger.store._writer  # type: ignore[attr-defined]
            sent: list[str] = []
            writer.cursor_factory = counting(sent)
            ledger.consume_many([{"account": name, "units": 1} for name in names])
            writer.cursor_factory = psycopg.Cursor
            counts.append(len(sent))
    assert len(set(counts)) == 1, counts
    assert counts[0] <= 8


def counting(sent: list[str]) -> type[psycopg.Cursor[tuple[object, ...]]]:
    class Counting(psycopg.Cursor[tuple[object, ...]]):
        def execute(self, query, *args, **kwargs):  # type: ignore[no-untyped-def]
            sent.append(str(query))
            return super().execute(query, *args, **kwargs)

    return Counting


def test_a_row_stands_behind_its_entries_and_is_caught_up(
    ledger: tillroll.Ledger, postgres_url: str
):
    ledger.grant("acme", 1_000)
    seqs = set()
    for _ in range(TRAIL_MIN * 2):
        ledger.consume("acme", units=1)
        [(seq,)] = asked(postgres_url, "SELECT seq FROM tillroll_accounts")
        seqs.add(seq)
    assert len(seqs) == 3, "a state is written now and then, not with each entry"
    with tillroll.open(postgres_url) as other:
        assert other.balance("acme").used == TRAIL_MIN * 2
        other.consume("acme", units=5)
        other.grant("acme", 7)
    ledger.consume("acme", units=1)  # remembers the account, and catches up with the other
    assert ledger.balance("acme").used == TRAIL_MIN * 2 + 6
    assert ledger.balance("acme").issued == 1_007
    assert ledger.verify().ok


def test_a_large_state_is_written_rarely(ledger: tillroll.Ledger, postgres_url: str):
    ledger.grant("acme", 10_000)
    for number in range(300):
        ledger.hold("acme", units=1, request_id=f"h{number}")
    [(size,)] = asked(postgres_url, "SELECT length(state) FROM tillroll_accounts")
    assert isinstance(size, int)
    seqs = set()
    for _ in range(60):
        ledger.consume("acme", units=1)
        seqs.add(asked(postgres_url, "SELECT seq FROM tillroll_accounts")[0])
    assert size > TRAIL_BYTES * 60
    assert len(seqs) <= 2
    assert ledger.verify().ok


def test_what_falls_due_is_found_though_the_row_is_behind(
    ledger: tillroll.Ledger, postgres_url: str
):
    """The row's date is never too late; one that is too early is put right by the job."""
    ledger.grant("acme", 100)
    ledger.hold("acme", units=1, request_id="h", expires_in="1s")
    [(due,)] = asked(postgres_url, "SELECT next_due_at FROM tillroll_accounts")
    assert isinstance(due, int)
    ledger.settle("acme", "h", units=1)
    assert asked(postgres_url, "SELECT next_due_at FROM tillroll_accounts") == [(due,)]
    with ledger.store.read() as reader:
        assert reader.due("default", due) == ["acme"]
    ledger._engine.clock = lambda: due
    assert ledger.book_due() == 0
    with ledger.store.read() as reader:
        assert reader.due("default", due) == []
    assert ledger.verify().ok


def test_accounts_that_were_only_asked_about_are_no_accounts(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("nobody", units=1)
    assert list(ledger.accounts()) == []
    assert ledger.verify().accounts == 0


def test_remembered_accounts_are_bounded(ledger: tillroll.Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tillroll.stores.postgres.CACHED_ACCOUNTS_MAX", 5)
    for turn in range(2):
        for number in range(12):
            ledger.grant(f"a{number}", 1, request_id=f"g{turn}")
    assert len(ledger.store._states) == 5  # type: ignore[attr-defined]
    assert ledger.verify().entries == 24


def test_ids_of_any_kind_arrive(ledger: tillroll.Ledger):
    ids = ['"', "\\", '"","', "{}", "a,b", "\\N", "é", "🙂", "NULL", "'", "\\x", "%s"]
    for bulk in (False, True):
        items = [
            {"account": f"{name}{bulk}", "units": 1, "request_id": name, "metadata": {"k": name}}
            for name in ids
        ]
        for item in items:
            ledger.grant(str(item["account"]), 5, request_id="g", reason=str(item["request_id"]))
        if bulk:
            assert all(outcome.ok for outcome in ledger.consume_many(items))
        else:
            for item in items:
                ledger.consume(**item)  # type: ignore[arg-type]
        again = ledger.consume_many(items)
        assert all(outcome.receipt and outcome.receipt.replayed for outcome in again)
    assert ledger.verify().ok
    with ledger.store.read() as reader:
        for name in ids:
            assert reader.entries(account_id("default", f"{name}True"))[1].request_id == name


def test_postings_balance_in_sql(ledger: tillroll.Ledger, postgres_url: str):
    ledger.grant("acme", 100)
    with ledger.hold("acme", units=10) as hold:
        hold.settle(units=4)
    sums = (
        "SELECT target, sum(units)::int FROM tillroll_postings "
        "WHERE account = 'acme' GROUP BY 1 ORDER BY 1"
    )
    assert dict(asked(postgres_url, sums))["used"] == 4_000_000  # type: ignore[arg-type]


def test_what_is_due_at_an_endpoint_is_read_from_an_index(
    ledger: tillroll.Ledger, postgres_url: str
):
    """However much waits for others, and without sorting."""
    plan = asked(
        postgres_url,
        "EXPLAIN SELECT * FROM tillroll_deliveries WHERE endpoint = 'we_1' AND state = 'pending' "
        "AND next_at <= 7 ORDER BY next_at LIMIT 9",
    )
    text = "\n".join(str(line) for (line,) in plan)
    assert "Index Scan using tillroll_deliveries_place" in text, text
    assert "Sort" not in text
    assert "Filter" not in text


def test_who_does_anything_else_is_waited_for_too(
    ledger: tillroll.Ledger, postgres: Cluster, postgres_url: str
):
    """Else a price or an erasure could be written to a ledger that has moved meanwhile."""
    store = PostgresStore(postgres_url)
    waiter = threading.Thread(target=store.wait_for_writers)
    with ledger.store.write() as tx:
        assert tx.moved_to() is None
        waiter.start()
        until(lambda: bool(postgres.run("SELECT 1 FROM pg_locks WHERE NOT granted")))
    join(waiter)
    store.close()


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings = off",
        "client_encoding = 'LATIN1'",
        "default_transaction_isolation = 'serializable'",
        "bytea_output = 'escape'",
        "search_path = 'elsewhere'",
        "DateStyle = 'SQL, DMY'",
    ],
)
def test_a_database_that_is_set_up_otherwise(
    postgres: Cluster, postgres_database: str, postgres_url: str, setting: str
):
    for sql in ("CREATE SCHEMA elsewhere", f"ALTER DATABASE {postgres_database} SET {setting}"):
        postgres.run(sql, database=postgres_database)
    with tillroll.open(postgres_url) as ledger:
        ledger.grant(
            "acmé", 100, request_id='g\\"', metadata={"said": 'é\n\t\\N\\.\u0000"\U0001f600'}
        )
        batch = [
            {"account": "acmé", "units": 1, "request_id": f"\\{n}é'", "metadata": {"\\.": "\n"}}
            for n in range(COPY_MIN)
        ]
        assert all(outcome.ok for outcome in ledger.consume_many(batch))
        assert ledger.consume("acmé", units=1, request_id="\\0é'", metadata={"\\.": "\n"}).replayed
        assert ledger.balance("acmé").used == COPY_MIN
        assert ledger.verify().ok


def test_the_encoding_of_the_environment_is_not_ours(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    with tillroll.open(postgres_url) as ledger:
        assert ledger.grant("acmé", 1).account == "acmé"
