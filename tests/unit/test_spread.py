"""A ledger that is spread over servers by account keeps to what such a cluster allows.

The rules were read off a Citus cluster (docs/operating/citus.md). Here they are checked on the
schema and on every statement that a decision sends, on one plain server, which takes the same
statements; with TILLROLL_CITUS_URL the promises are tried on a cluster itself.
"""

import os
import re
import secrets
from importlib.resources import files

import psycopg
import pytest
from psycopg import conninfo

import tillroll
from tests.servers.cluster import Cluster
from tillroll.stores import postgres
from tillroll.stores.base import migrations
from tillroll.stores.postgres import PostgresStore
from tillroll.testing import conformance

SPREAD = {
    "tillroll_accounts",
    "tillroll_entries",
    "tillroll_notes",
    "tillroll_refusals",
    "tillroll_replays",
    "tillroll_outbox",
    "tillroll_deliveries",
}
EVERYWHERE = {
    "tillroll_meta",
    "tillroll_price_versions",
    "tillroll_registry",
    "tillroll_leases",
    "tillroll_migrations",
}
VOLATILE = re.compile(r"\b(random|now|clock_timestamp|gen_random_uuid|nextval)\s*\(", re.IGNORECASE)


@pytest.fixture
def spread_url(postgres_url: str) -> str:
    """A plain server whose ledger is written as if its accounts were on several."""
    PostgresStore(postgres_url).close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "INSERT INTO tillroll_meta VALUES ('spread', 'x'), ('writing', 'append')"
        )
    return postgres_url


def schema(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


@pytest.fixture
def sent(spread_url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of all that the verbs do, in every way of writing."""
    statements: list[str] = []
    run = postgres._Pipelined.run

    def noting(self, *asked):  # type: ignore[no-untyped-def]
        statements.extend(sql for sql, _ in asked)
        return run(self, *asked)

    monkeypatch.setattr(postgres._Pipelined, "run", noting)
    with tillroll.open(spread_url) as ledger:
        for name in ("acme", "zoe"):
            ledger.grant(name, 1_000, request_id="g", expires_in="9d")
        for turn in range(30):
            ledger.consume_many(
                [
                    {"account": name, "units": 1, "request_id": f"c{turn}"}
                    for name in ("acme", "zoe")
                ]
            )
        ledger.consume("acme", units=1, request_id="c1")
        ledger.hold("acme", units=5, request_id="h")
        ledger.settle("acme", "h", units=2)
        ledger.refund("acme", "h")
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume("acme", units=10**6, request_id="much")
        ledger.set_budget("acme", "month", 50)
        with ledger.store.write() as tx:
            for document in ("{}", None):
                tx.put_document("key", "a", document)
            tx.set_registry_version(tx.registry_version() + 1)
            assert tx.documents("key") == {}
            assert tx.document("key", "a") is None
            assert tx.kinds() == []
    monkeypatch.undo()
    return [" ".join(sql.split()) for sql in dict.fromkeys(statements)]


# ---------------------------------------------------------------- the schema


def test_every_table_is_spread_or_everywhere(spread_url: str):
    found = schema(spread_url, "SELECT tablename FROM pg_tables WHERE tablename LIKE 'tillroll%'")
    assert {name for (name,) in found} == SPREAD | EVERYWHERE
    plain = " ".join(" ".join(step.sql.split()) for step in migrations("citus"))
    for name in SPREAD:
        assert re.search(rf"create_distributed_table\( ?'{name}', 'account_id'", plain)
    for name in EVERYWHERE:
        assert f"create_reference_table('{name}')" in plain


# What a cluster has that a plain server has not: where each table lies, and what spreads one.
_CLUSTER = """
CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, partkey text);
CREATE FUNCTION create_reference_table(regclass) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO pg_dist_partition VALUES ($1, NULL) $$;
CREATE FUNCTION create_distributed_table(regclass, text, colocate_with text DEFAULT 'none')
    RETURNS void LANGUAGE sql AS $$ INSERT INTO pg_dist_partition VALUES ($1, $2) $$;
"""
_LIES = "SELECT logicalrelid::text, partkey FROM pg_dist_partition"


def lies(url: str) -> dict[object, object]:
    """Return by what each table is spread; None for one that is on every server."""
    return dict(schema(url, _LIES))


@pytest.fixture
def cluster_url(postgres_url: str) -> str:
    """A plain server that notes which tables it was told to spread."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute(_CLUSTER.encode())
    return postgres_url


WHOLE = dict.fromkeys(SPREAD, "account_id") | dict.fromkeys(EVERYWHERE)


def test_all_tables_are_spread(cluster_url: str):
    store = PostgresStore(cluster_url)
    store.distribute()
    store.close()
    assert lies(cluster_url) == WHOLE
    PostgresStore(cluster_url).close()
    assert lies(cluster_url) == WHOLE


@pytest.mark.parametrize("later", [set(), {"tillroll_outbox", "tillroll_leases"}])
def test_tables_that_came_after_a_ledger_was_spread_are_spread_too(
    cluster_url: str, later: set[str]
):
    PostgresStore(cluster_url).close()
    with psycopg.connect(cluster_url) as connection:
        connection.execute(migrations("citus")[0].sql.encode())
        for name in later:  # as an earlier form of the first step may have
            connection.execute("INSERT INTO pg_dist_partition VALUES (%s, 'account_id')", (name,))
    before = lies(cluster_url)
    assert "tillroll_notes" not in before
    with pytest.raises(tillroll.SchemaMismatch, match="0002_outbox_and_notes"):
        PostgresStore(cluster_url, migrate=False)
    planned = tillroll.migrate(cluster_url, plan=True).statements
    assert any("tillroll_notes" in text for text in planned)
    assert lies(cluster_url) == before
    PostgresStore(cluster_url).close()
    assert lies(cluster_url).keys() == WHOLE.keys()
    assert not tillroll.migrate(cluster_url, plan=True).statements
    PostgresStore(cluster_url, migrate=False).close()


def test_every_key_carries_the_account(spread_url: str):
    keys = schema(
        spread_url,
        "SELECT c.relname, i.indexrelid::regclass::text, array_agg(a.attname) "
        "FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid "
        "JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey) "
        "WHERE i.indisunique AND c.relname LIKE 'tillroll%' GROUP BY 1, 2",
    )
    assert {table for table, _, _ in keys} == SPREAD | EVERYWHERE
    for table, key, columns in keys:
        assert table in EVERYWHERE or "account_id" in columns, key  # type: ignore[operator]


def test_the_account_is_of_one_type_everywhere(spread_url: str):
    types = schema(
        spread_url,
        "SELECT table_name, data_type FROM information_schema.columns NATURAL JOIN "
        "information_schema.tables WHERE column_name = 'account_id' AND table_type = 'BASE TABLE'",
    )
    assert {name for name, _ in types} == SPREAD
    assert {kind for _, kind in types} == {"uuid"}


def test_nothing_counts_or_refers_across_accounts(spread_url: str):
    sequences = "SELECT sequencename FROM pg_sequences WHERE sequencename LIKE 'tillroll%'"
    foreign = "SELECT conname FROM pg_constraint WHERE contype IN ('f', 'x')"
    defaults = (
        "SELECT column_default FROM information_schema.columns "
        "WHERE table_name LIKE 'tillroll%' AND column_default IS NOT NULL"
    )
    assert schema(spread_url, sequences) == []
    assert schema(spread_url, foreign) == []
    assert schema(spread_url, defaults) == []


def test_triggers_are_dropped_where_they_are_refused(spread_url: str):
    step = files("tillroll.stores").joinpath("migrations/citus/0001_distribute.sql").read_text()
    names = schema(spread_url, "SELECT tgname, tgrelid::regclass::text FROM pg_trigger")
    ours = [(name, table) for name, table in names if str(table).startswith("tillroll")]
    assert len(ours) == 4
    for name, table in ours:
        assert f"DROP TRIGGER {name} ON {table};" in step


# ---------------------------------------------------------------- the statements


def about_spread(sent: list[str]) -> list[str]:
    chosen = [sql for sql in sent if any(re.search(rf"\b{name}\b", sql) for name in SPREAD)]
    assert len(chosen) > 8, sent
    return chosen


def test_every_statement_names_the_account(sent: list[str]):
    names = re.compile(
        r"account_id = (%s::uuid|ANY\(%s::uuid\[\]\))|w\.account_id|VALUES \(%s::uuid"
        r"|VALUES \(%s, %s::uuid|\(account_id, seq, recorded_at"
    )
    for sql in about_spread(sent):
        assert names.search(sql), sql


def test_rows_are_locked_one_account_at_a_time(sent: list[str]):
    locks = [sql for sql in sent if "FOR UPDATE" in sql]
    assert locks
    for sql in locks:
        assert "account_id = %s::uuid" in sql
        assert "SKIP LOCKED" not in sql


def test_conflicts_are_resolved_in_single_rows(sent: list[str]):
    upserts = [sql for sql in about_spread(sent) if "ON CONFLICT" in sql]
    assert len(upserts) >= 3
    for sql in upserts:
        assert "VALUES (" in sql
        assert "unnest" not in sql
        assert not VOLATILE.search(sql)


def test_the_registry_is_written_row_by_row_and_apart_from_the_accounts(sent: list[str]):
    """A reference table is written on every server: by values alone, and joined with nothing."""
    about = [sql for sql in sent if "tillroll_registry" in sql or "registry_version" in sql]
    assert len(about) == 9
    for sql in about:
        assert len(re.findall(r"\b(?:FROM|JOIN|INTO) tillroll_", sql)) == 1
        assert not any(name in sql for name in SPREAD)
        assert not re.search(r"unnest|\(SELECT|\bWITH\b", sql)
        assert not VOLATILE.search(sql)


def test_ids_and_times_are_given_not_made(sent: list[str]):
    for sql in about_spread(sent):
        assert not VOLATILE.search(sql), sql


def test_a_join_is_on_the_account(sent: list[str]):
    for sql in about_spread(sent):
        for part in re.findall(r"JOIN tillroll_\w+ AS \w+ ON (.*?)(?=UNION|WHERE|ORDER|$)", sql):
            assert "account_id" in part, sql


# ---------------------------------------------------------------- the promises


@pytest.fixture(scope="session")
def kept_spread_url(postgres: Cluster) -> str:
    url = postgres.url(postgres.create_database())
    PostgresStore(url).close()
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO tillroll_meta VALUES ('spread', 'x'), ('writing', 'append')"
        )
    return url


@pytest.mark.parametrize("item", conformance.CHECKS, ids=lambda item: item.__name__)
def test_promise_statement_by_statement(item: conformance.Check, kept_spread_url: str):
    report = conformance.run(
        lambda clock: tillroll.open(kept_spread_url, clock=clock), only=item.__name__
    )
    assert report.ok, str(report)


def test_a_server_without_citus_is_left_as_it_was(postgres_url: str):
    store = PostgresStore(postgres_url)
    with pytest.raises(tillroll.StoreUnavailable, match="create_reference_table"):
        store.distribute()
    store.close()
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tillroll%'"
    assert schema(postgres_url, triggers) == [(4,)]
    with tillroll.open(postgres_url) as ledger:
        ledger.grant("acme", 1)
        assert ledger.verify().ok


@pytest.mark.skipif(
    "TILLROLL_CITUS_URL" not in os.environ, reason="needs a Citus cluster: TILLROLL_CITUS_URL"
)
def test_promises_on_a_cluster():
    url = os.environ["TILLROLL_CITUS_URL"]
    name = f"tillroll_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    parts = conninfo.conninfo_to_dict(url)
    own = conninfo.make_conninfo("", **{**parts, "options": f"-csearch_path={name},public"})
    store = PostgresStore(own)
    store.distribute()
    store.close()
    report = conformance.run(lambda clock: tillroll.open(f"postgresql://?{own}", clock=clock))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE".encode())
    assert report.ok, str(report)
