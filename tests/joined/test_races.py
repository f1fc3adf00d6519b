"""Transactions that join one account at the same time: one after another, or an error."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

import tillroll
from tests.faults.rig import join, until
from tests.joined.conftest import opened
from tests.joined.sides import path_of
from tests.servers.cluster import Cluster
from tillroll.embedded.joined import joined
from tillroll.ledger.chain import encode_state
from tillroll.ledger.commands import account_id
from tillroll.stores.base import persist
from tillroll.stores.postgres import PostgresStore
from tillroll.testing import conformance

AT_ONCE = threading.BoundedSemaphore(16)  # connections of one test


@contextmanager
def connected(url: str, *, begun: bool = False) -> Iterator[Any]:
    """A transaction of its own connection; begun, it has no lock yet."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(path_of(url), timeout=30)
        if begun:
            connection.execute("BEGIN")
    else:
        connection = psycopg.connect(url)
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()


def test_six_of_twenty_holds_are_granted(url: str, ledger: tillroll.Ledger):
    ledger.grant("acme", 500)

    def hold(nth: int) -> bool:
        with connected(url) as connection:
            try:
                ledger.join(connection).hold("acme", units=75, request_id=f"h{nth}")
            except tillroll.InsufficientUnits:
                return False
            return True

    with ThreadPoolExecutor(20) as pool:
        granted = list(pool.map(hold, range(20)))
    assert sum(granted) == 6
    assert ledger.balance("acme").held == 450
    assert ledger.verify().ok


def test_joined_and_not_joined_in_turns(url: str, ledger: tillroll.Ledger):
    ledger.grant("acme", 100)

    def consume(nth: int) -> int:
        if nth % 2:
            return ledger.consume("acme", units=1, request_id=f"r{nth // 4}").seq
        with connected(url, begun=True) as connection:
            return ledger.join(connection).consume("acme", units=1, request_id=f"r{nth // 4}").seq

    with ThreadPoolExecutor(8) as pool:
        seqs = list(pool.map(consume, range(80)))
    assert len(set(seqs)) == 20
    assert ledger.balance("acme").used == 20
    assert ledger.verify().ok


# ---------------------------------------------------------------- snapshots

LEVELS = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


@contextmanager
def snapshot(url: str, level: IsolationLevel) -> Iterator[psycopg.Connection]:
    """A transaction that sees what was committed before it began, and nothing else."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = level
        connection.execute("SELECT count(*) FROM tillroll_accounts")
        yield connection


@pytest.fixture
def postgres_ledger(postgres_url: str) -> Iterator[tillroll.Ledger]:
    with tillroll.open(postgres_url) as ledger:
        ledger.grant("acme", 100)
        yield ledger


@pytest.mark.parametrize("level", LEVELS)
def test_a_snapshot_is_enough_where_nobody_writes(
    postgres_url: str, postgres_ledger: tillroll.Ledger, level: IsolationLevel
):
    postgres_ledger.grant("other", 5)
    with snapshot(postgres_url, level) as connection:
        postgres_ledger.consume("other", units=1)
        joined_ = postgres_ledger.join(connection)
        assert joined_.consume("acme", units=10, request_id="r1").available == 90
        assert joined_.consume("acme", units=10, request_id="r1").replayed
        assert joined_.consume("acme", units=10, request_id="r2").available == 80
        with pytest.raises(tillroll.InsufficientUnits):
            joined_.consume("acme", units=500, request_id="r3")
        assert joined_.grant("new", 1).available == 1
    assert postgres_ledger.balance("acme").available == 80
    assert postgres_ledger.verify().ok


def charge(ledger: tillroll.Ledger) -> None:
    ledger.consume("acme", units=50, request_id="theirs")


def refuse(ledger: tillroll.Ledger) -> None:
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("acme", units=500, request_id="ours")


def many(ledger: tillroll.Ledger) -> None:
    for _ in range(40):  # enough to have the account's row written
        ledger.consume("acme", units=1)


@pytest.mark.parametrize("meanwhile", [charge, refuse, many])
@pytest.mark.parametrize("units", [20, 500], ids=["charged", "refused"])
@pytest.mark.parametrize("level", LEVELS)
def test_an_old_snapshot_decides_nothing(
    postgres_url: str,
    postgres_ledger: tillroll.Ledger,
    level: IsolationLevel,
    units: int,
    meanwhile: Callable[[tillroll.Ledger], None],
):
    ledger = postgres_ledger
    with snapshot(postgres_url, level) as connection:
        meanwhile(ledger)
        left = ledger.balance("acme").available
        with pytest.raises(tillroll.StoreBusy, match="as a whole"):
            ledger.join(connection).consume("acme", units=units, request_id="ours")
        connection.rollback()
    assert ledger.balance("acme").available == left
    assert ledger.verify().ok
    if meanwhile is not refuse:
        with pytest.raises(tillroll.NotFound):
            ledger.explain("ours")


def move(store: PostgresStore) -> None:
    persist(store, lambda tx: tx.set_moved("elsewhere"))
    store.wait_for_writers()


def have_it_appended(store: PostgresStore) -> None:
    store.set_writing("append")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("meanwhile", [move, have_it_appended])
def test_an_old_snapshot_does_not_know_where_and_how_to_write(
    postgres_url: str,
    postgres_ledger: tillroll.Ledger,
    level: IsolationLevel,
    meanwhile: Callable[[PostgresStore], None],
):
    """A charge in a ledger that has moved would be lost; a refusal beside appenders, untrue."""
    with snapshot(postgres_url, level) as connection:
        with closing(PostgresStore(postgres_url)) as store:
            meanwhile(store)
        with pytest.raises(tillroll.StoreBusy, match="as a whole"):
            postgres_ledger.join(connection).consume("acme", units=1)
    assert postgres_ledger.balance("acme").used == 0


def put_another(store: PostgresStore) -> None:
    persist(store, lambda tx: tx.put_document("key", "theirs", "{}"))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("meanwhile", [put_another, move])
def test_an_old_snapshot_puts_no_document(
    postgres_url: str,
    postgres_ledger: tillroll.Ledger,
    level: IsolationLevel,
    meanwhile: Callable[[PostgresStore], None],
):
    """Its version would be given twice; in a ledger that has moved the document would be lost."""
    with snapshot(postgres_url, level) as connection:
        with closing(PostgresStore(postgres_url)) as store:
            meanwhile(store)
        carrier = joined(postgres_ledger._engine, connection, asynchronous=False)
        with pytest.raises(tillroll.StoreBusy, match="as a whole"):
            carrier.perform(lambda tx: tx.put_document("key", "ours", "{}"))
        connection.rollback()
    with postgres_ledger.store.read() as reader:
        assert "ours" not in reader.documents("key")
        assert reader.registry_version() == len(reader.documents("key"))


def test_an_account_made_since_the_snapshot(postgres_url: str, postgres_ledger: tillroll.Ledger):
    with snapshot(postgres_url, LEVELS[0]) as connection:
        postgres_ledger.grant("new", 10)
        with pytest.raises(tillroll.StoreBusy):
            postgres_ledger.join(connection).consume("new", units=1)
        connection.rollback()
    assert postgres_ledger.balance("new").available == 10


@pytest.mark.parametrize("level", LEVELS)
def test_six_of_twenty_holds_out_of_snapshots(
    postgres_url: str, postgres_ledger: tillroll.Ledger, level: IsolationLevel
):
    ledger = postgres_ledger
    ledger.grant("acme", 400)

    def hold(nth: int) -> bool:
        while True:
            try:
                with snapshot(postgres_url, level) as connection:
                    ledger.join(connection).hold("acme", units=75, request_id=f"h{nth}")
                    return True
            except tillroll.InsufficientUnits:
                return False
            except (tillroll.StoreBusy, psycopg.errors.SerializationFailure):
                continue

    with ThreadPoolExecutor(4) as pool:
        granted = list(pool.map(hold, range(20)))
    assert sum(granted) == 6
    assert ledger.balance("acme").held == 450
    assert ledger.verify().ok


def test_a_state_written_anew_while_it_is_read(
    postgres: Cluster, postgres_url: str, postgres_ledger: tillroll.Ledger
):
    """What lies behind the old state and before the new one must not be missed."""
    ledger = postgres_ledger
    for _ in range(12):
        ledger.consume("acme", units=1)
    owner = account_id("default", "acme")
    with ledger.store.read() as reader:
        account = reader.accounts([(owner, "acme")])[owner]
    with psycopg.connect(postgres_url) as host, psycopg.connect(postgres_url) as writer:
        writer.execute("LOCK TABLE tillroll_entries IN ACCESS EXCLUSIVE MODE")
        used: list[object] = []
        read = threading.Thread(target=lambda: used.append(ledger.join(host).balance("acme").used))
        read.start()
        until(lambda: bool(postgres.run("SELECT 1 FROM pg_locks WHERE NOT granted")))
        columns = account.seq, account.head, account.at, encode_state(account).decode()
        writer.execute("UPDATE tillroll_accounts SET seq=%s, head=%s, at=%s, state=%s", columns)
        writer.commit()
        join(read)
    assert used == [12]


# ---------------------------------------------------------------- beside those who append


def test_a_joined_refusal_keeps_nobody_from_charging(appending_url: str):
    """It keeps appenders out until the host commits: meanwhile they go by locks."""
    with tillroll.open(appending_url) as ledger, psycopg.connect(appending_url) as host:
        for name in ("acme", "zoe"):
            ledger.grant(name, 100)
        for _ in range(40):
            ledger.consume("zoe", units=1)
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.join(host).consume("acme", units=500, request_id="much")
        assert ledger.consume("zoe", units=1).available == 59
        host.commit()
        with pytest.raises(tillroll.InsufficientUnits) as caught:
            ledger.consume("acme", units=500, request_id="much")
        assert caught.value.replayed
        assert ledger.verify().ok


# ---------------------------------------------------------------- a ledger that moved


def test_nothing_is_done_in_a_ledger_that_moved(url: str, ledger: tillroll.Ledger):
    ledger.grant("acme", 1, metadata={"a": 1}, request_id="g")
    persist(ledger.store, lambda tx: tx.set_moved("elsewhere"))
    with connected(url, begun=True) as connection:
        joined_ = ledger.join(connection)
        for act in (joined_.book_due, partial(joined_.erase_metadata, "acme")):
            with pytest.raises(tillroll.StoreReadOnly, match="moved to elsewhere"):
                act()
    with ledger.store.read() as reader:
        assert reader.entries(account_id("default", "acme"))[0].metadata == '{"a":1}'


# ---------------------------------------------------------------- every promise


class EachCommitted:
    """Carries each verb of a ledger within a transaction of its own connection."""

    bridge = None

    def __init__(self, ledger: tillroll.Ledger) -> None:
        self.engine = ledger._engine
        self.store = self.engine.store
        self.project = self.engine.project
        self.clock = self.engine.clock

    @contextmanager
    def joined(self) -> Iterator[Any]:
        with AT_ONCE, connected(self.store._dsn if pg(self.store) else self.store.url) as host:
            yield joined(self.engine, host, asynchronous=False)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        with self.joined() as carrier:
            return carrier.execute(requests)

    def perform(self, act: Callable[[Any], Any]) -> Any:
        with self.joined() as carrier:
            return carrier.perform(act)

    def close(self) -> None:
        self.engine.close()


def pg(store: Any) -> bool:
    return store.url.startswith("postgresql")


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def shared_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where a ledger can be that all checks share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('shared')}/app.db"
        return
    cluster = request.getfixturevalue("postgres")
    name = cluster.create_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.mark.parametrize("item", conformance.CHECKS, ids=lambda item: item.__name__)
def test_promise(item: conformance.Check, shared_url: str):
    def factory(clock: Callable[[], datetime]) -> tillroll.Ledger:
        return tillroll.Ledger(EachCommitted(opened(shared_url, clock=clock)))

    report = conformance.run(factory, only=item.__name__)
    assert report.ok, str(report)
