"""The ways to a PostgreSQL ledger: socket, TCP, TLS, a pooler in transaction mode."""

import threading

import pytest

import tillroll
from tests.conftest import appending
from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer
from tillroll.stores.postgres import PostgresStore
from tillroll.testing import conformance


def used(url: str) -> int:
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100, request_id="g")
        ledger.consume("acme", units=1, request_id="c")
        assert ledger.verify().ok
        return int(ledger.balance("acme").used)


def test_by_tcp(postgres: Cluster, postgres_database: str):
    assert used(postgres.url(postgres_database, tcp=True)) == 1


@pytest.mark.parametrize("prefix", ["postgres://", "postgresql+psycopg://"])
def test_by_other_spellings(postgres: Cluster, postgres_database: str, prefix: str):
    url = postgres.url(postgres_database, tcp=True).replace("postgresql://", prefix)
    assert used(url) == 1


def test_by_tls_checked_in_full():
    with Cluster(tls=True) as cluster:
        assert used(cluster.url(tcp=True, host="localhost")) == 1
        with pytest.raises(tillroll.StoreUnavailable, match="certificate"):
            tillroll.open(cluster.url(tcp=True, sslrootcert="system"))


def test_promises_behind_a_pooler(postgres: Cluster, pgbouncer: PgBouncer):
    url = pgbouncer.url(postgres.create_database())
    report = conformance.run(lambda clock: tillroll.open(url, clock=clock))
    assert report.ok, str(report)
    with tillroll.open(url) as ledger:
        facts = {name: value for name, value, _ in ledger.store.facts()}
        assert facts["pooler"] == ("transaction mode")


def test_many_ledgers_share_few_connections(postgres: Cluster, pgbouncer: PgBouncer):
    url = pgbouncer.url(postgres.create_database())
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 500)
    held: list[bool] = []

    def hold() -> None:
        with tillroll.open(url) as ledger:
            try:
                ledger.hold("acme", units=75)
            except tillroll.InsufficientUnits:
                held.append(False)
            else:
                held.append(True)

    threads = [threading.Thread(target=hold) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == [False] * 14 + [True] * 6


@pytest.mark.parametrize("append", [False, True])
def test_a_database_that_went_back_in_time_behind_a_pooler(
    postgres: Cluster, pgbouncer: PgBouncer, *, append: bool
):
    """As in a failover that lost something: the pooler's clients notice nothing of it."""
    database, earlier = postgres.create_database(), postgres.create_database()
    if append:
        appending(postgres.url(database))
    with tillroll.open(pgbouncer.url(database)) as ledger:
        ledger.grant("acme", 1_000, request_id="g")
        for turn in range(30):
            ledger.consume("acme", units=1, request_id=f"kept {turn}")
        postgres.drop_database(earlier)
        postgres.terminate_backends(database)
        postgres.run(f"CREATE DATABASE {earlier} TEMPLATE {database}")
        for turn in range(30):
            ledger.consume("acme", units=1, request_id=f"lost {turn}")
        assert isinstance(ledger.store, PostgresStore)
        assert ledger.store._pace.way == ("append" if append else "locks")
        before = ledger.store._writer
        postgres.drop_database(database)
        postgres.run(f"ALTER DATABASE {earlier} RENAME TO {database}")
        assert ledger.consume("acme", units=1, request_id="next").seq == 32
        assert ledger.store._writer is before
        assert not ledger.consume("acme", units=1, request_id="lost 7").replayed
        assert ledger.consume("acme", units=1, request_id="kept 7").replayed
        assert ledger.balance("acme").used == 32
        assert ledger.verify().ok
