"""What cannot be joined says so, and what errs within a transaction leaves nothing in it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import apsw
import psycopg
import pytest
import sqlalchemy
from psycopg.pq import TransactionStatus

import tillroll
from tests.joined import sides
from tests.joined.conftest import opened
from tests.joined.sides import path_of
from tests.servers.cluster import Cluster

# ---------------------------------------------------------------- the wrong thing


def test_memory_has_nothing_to_join():
    connection = sqlite3.connect(":memory:")
    with tillroll.open("memory://") as ledger, closing(connection):  # noqa: SIM117
        with pytest.raises(tillroll.InvalidInput, match="memory"):
            ledger.join(connection)


@pytest.mark.parametrize("thing", [None, "sqlite:///app.db", object(), 7])
def test_what_is_no_connection(ledger: tillroll.Ledger, thing: object):
    with pytest.raises(tillroll.InvalidInput, match="no connection"):
        ledger.join(thing)


def test_a_connection_of_another_driver(ledger: tillroll.Ledger, url: str, postgres_url: str):
    other: Any
    other = psycopg.connect(postgres_url) if url[0] == "s" else sqlite3.connect(":memory:")
    with closing(other), pytest.raises(tillroll.InvalidInput, match="does not lead"):
        ledger.join(other)
    engine = sqlalchemy.create_engine("sqlite://")
    if url.startswith("sqlite"):
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url)
        )
    with engine.connect() as connection:
        joined = ledger.join(connection)
        with pytest.raises(tillroll.InvalidInput, match="does not lead"):
            joined.balance("acme")
    engine.dispose()


def test_what_has_to_be_awaited_and_what_blocks(ledger: tillroll.Ledger, url: str):
    async def main() -> None:
        many = tillroll.AsyncLedger(ledger._engine)
        if url.startswith("sqlite"):
            awaited: Any = await aiosqlite.connect(path_of(url))
            blocking: Any = sqlite3.connect(path_of(url))
        else:
            awaited = await psycopg.AsyncConnection.connect(url)
            blocking = psycopg.connect(url)
        with closing(blocking):
            with pytest.raises(tillroll.InvalidInput, match="AsyncLedger"):
                ledger.join(awaited)
            with pytest.raises(tillroll.InvalidInput, match="blocks"):
                many.join(blocking)
            joined = many.join(awaited)
            with pytest.raises(tillroll.InvalidInput, match="event loop"):
                joined.sync.balance("acme")
        await awaited.close()

    asyncio.run(main())


def test_an_event_loop_has_to_run(ledger: tillroll.Ledger, url: str):
    async def connect() -> Any:
        if url.startswith("sqlite"):
            return aiosqlite.connect(path_of(url))
        return await psycopg.AsyncConnection.connect(url)

    connection = asyncio.run(connect())
    with pytest.raises(tillroll.InvalidInput, match="event loop"):
        tillroll.AsyncLedger(ledger._engine).join(connection)
    if not url.startswith("sqlite"):
        asyncio.run(connection.close())


def test_a_joined_ledger_is_not_joined_again(ledger: tillroll.Ledger, url: str):
    connection: Any = sqlite3.connect(path_of(url)) if url[0] == "s" else psycopg.connect(url)
    with closing(connection), ledger.join(connection) as joined:  # noqa: SIM117
        with pytest.raises(tillroll.InvalidInput, match="joined already"):
            joined.join(connection)
    assert ledger.grant("acme", 1).available == 1, "closing what was joined closes nothing"


def test_a_library_is_chosen_for_sqlite_only(tmp_path: Path):
    with pytest.raises(tillroll.InvalidInput, match="SQLite only"):
        tillroll.open("memory://", library="sqlite3")
    with pytest.raises(tillroll.InvalidInput, match="no library"):
        tillroll.open(f"sqlite:///{tmp_path}/a.db", library="pysqlite3")  # type: ignore[arg-type]


def test_two_copies_of_sqlite_do_not_meet(tmp_path: Path):
    """Why it is refused: both get the write lock, and what one of them commits is lost."""
    url = f"sqlite:///{tmp_path}/app.db"
    connection = sqlite3.connect(path_of(url))
    with tillroll.open(url) as ledger, closing(connection):  # noqa: SIM117
        with pytest.raises(tillroll.InvalidInput, match="library='sqlite3'"):
            ledger.join(connection)
    path = str(tmp_path / "other.db")
    one, other = apsw.Connection(path), sqlite3.connect(path, isolation_level=None, timeout=0)
    one.execute("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").fetchall()
    one.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)").fetchall()
    other.execute("BEGIN IMMEDIATE")
    assert (one.in_transaction, other.in_transaction) == (True, True)
    one.close(force=True)
    other.close()


# ---------------------------------------------------------------- no transaction


def test_no_transaction_is_under_way(ledger: tillroll.Ledger, url: str):
    ledger.grant("acme", 100)
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(path_of(url), isolation_level=None)
    else:
        connection = psycopg.connect(url, autocommit=True)
    with closing(connection):
        joined = ledger.join(connection)
        for act in (joined.consume, joined.balance):
            with pytest.raises(tillroll.InvalidInput, match="begin one"):
                act("acme", **({"units": 1} if act == joined.consume else {}))
    assert ledger.balance("acme").available == 100


def test_sqlalchemy_that_commits_each_statement(ledger: tillroll.Ledger, url: str):
    engine = sides._engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        joined = ledger.join(connection)
        with pytest.raises(tillroll.InvalidInput, match="begin one"):
            joined.grant("acme", 1)
    engine.dispose()


def test_django_outside_of_atomic(ledger: tillroll.Ledger, url: str):
    with sides.django(url) as program:
        joined = ledger.join(program.given)
        with pytest.raises(tillroll.InvalidInput, match="atomic"):
            joined.grant("acme", 1)
        with program.transaction():
            joined.grant("acme", 1)
            program.given.set_rollback(True)
            with pytest.raises(tillroll.StoreUnavailable, match="doomed"):
                joined.grant("acme", 1)
    assert ledger.balance("acme").available == 0


def test_within_a_pipeline_the_server_tells(postgres_url: str):
    with tillroll.open(postgres_url) as ledger:
        ledger.grant("acme", 100)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            joined = ledger.join(connection)
            with pytest.raises(tillroll.InvalidInput, match="begin one"), connection.pipeline():
                joined.consume("acme", units=1)
            with connection.pipeline(), connection.transaction():
                assert joined.consume("acme", units=1).available == 99
        assert ledger.balance("acme").available == 99


# ---------------------------------------------------------------- another ledger


def test_a_database_without_a_ledger(ledger: tillroll.Ledger, url: str, postgres: Cluster):
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(":memory:")
    else:
        connection = psycopg.connect(postgres.url(postgres.create_database()))
    with closing(connection):
        connection.execute("CREATE TABLE orders (id int)")
        with pytest.raises(tillroll.SchemaMismatch):
            ledger.join(connection).grant("acme", 1)
        connection.execute("INSERT INTO orders VALUES (1)")
        connection.commit()


def test_an_attached_file_is_not_committed_together(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/app.db"
    with opened(url) as ledger, closing(sqlite3.connect(tmp_path / "own.db")) as connection:
        connection.execute("ATTACH ? AS credits", (path_of(url),))
        with pytest.raises(tillroll.SchemaMismatch):
            ledger.join(connection).grant("acme", 1)


def test_a_database_of_another_ledger(
    ledger: tillroll.Ledger, url: str, postgres: Cluster, tmp_path: Path
):
    if url.startswith("sqlite"):
        elsewhere = f"sqlite:///{tmp_path}/other.db"
    else:
        elsewhere = postgres.url(postgres.create_database())
    with opened(elsewhere) as other:
        connection: Any
        connection = (
            sqlite3.connect(path_of(elsewhere)) if url[0] == "s" else psycopg.connect(elsewhere)
        )
        with closing(connection):
            joined = ledger.join(connection)
            for act in (joined.grant, joined.balance):
                with pytest.raises(tillroll.SchemaMismatch, match="another ledger"):
                    act(*(("acme", 1) if act == joined.grant else ("acme",)))
            connection.commit()
        assert other.balance("acme").issued == 0


# ---------------------------------------------------------------- errors within


def test_what_the_database_refuses_leaves_nothing(ledger: tillroll.Ledger, url: str):
    """The entry is in, then its account's row errs: the program commits all the same."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(path_of(url))
        connection.execute(
            "CREATE TRIGGER bad BEFORE INSERT ON tillroll_accounts WHEN new.account = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    else:
        connection = psycopg.connect(url)
        connection.execute("ALTER TABLE tillroll_accounts ADD CHECK (account <> 'bad' OR seq = 0)")
    with closing(connection):
        connection.commit()
        joined = ledger.join(connection)
        with pytest.raises(tillroll.StoreUnavailable, match="could not be carried out"):
            joined.grant("bad", 1)
        joined.grant("good", 1)
        items = [{"account": name, "units": 1, "request_id": name} for name in ("bad", "good")]
        connection.commit()
        outcomes = joined.consume_many(items)
        connection.commit()
    assert [o.status for o in outcomes][1] == "created"
    assert ledger.balance("good").available == 0
    assert list(ledger.accounts()) == ["good"]
    assert ledger.verify().ok


def test_a_lock_that_is_not_given(ledger: tillroll.Ledger, url: str):
    ledger.grant("acme", 100)
    if url.startswith("sqlite"):
        first: Any = sqlite3.connect(path_of(url))
        second: Any = sqlite3.connect(path_of(url), timeout=0)
    else:
        first, second = psycopg.connect(url), psycopg.connect(url)
        second.execute("SET lock_timeout = '1ms'")
    with closing(first), closing(second):
        ledger.join(first).consume("acme", units=10)
        with pytest.raises(tillroll.StoreBusy, match="nothing was written"):
            ledger.join(second).consume("acme", units=10, request_id="r")
        first.commit()
        assert ledger.join(second).consume("acme", units=10, request_id="r").available == 80
        second.commit()
    assert ledger.balance("acme").available == 80


def test_a_transaction_that_began_to_read_too_early(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/app.db"
    with opened(url) as ledger, closing(sqlite3.connect(path_of(url))) as connection:
        ledger.grant("acme", 100)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM tillroll_entries").fetchall()
        ledger.consume("acme", units=1)
        with pytest.raises(tillroll.StoreBusy, match="as a whole"):
            ledger.join(connection).consume("acme", units=1)
        connection.rollback()
        assert ledger.join(connection).consume("acme", units=1).available == 98
        connection.commit()


def test_accounts_locked_crosswise(postgres_url: str):
    with tillroll.open(postgres_url) as ledger:
        for name in ("a", "b"):
            ledger.grant(name, 10)
        with psycopg.connect(postgres_url) as one, psycopg.connect(postgres_url) as two:
            ledger.join(one).consume("a", units=1)
            ledger.join(two).consume("b", units=1)

            def cross(pair: tuple[Any, str]) -> str:
                connection, account = pair
                try:
                    ledger.join(connection).consume(account, units=1)
                except tillroll.StoreBusy as problem:
                    connection.rollback()
                    return str(problem)
                connection.commit()
                return ""

            async def both() -> list[str]:
                work = (asyncio.to_thread(cross, pair) for pair in ((one, "b"), (two, "a")))
                return list(await asyncio.gather(*work))

            said = sorted(asyncio.run(both()))
        assert said[0] == ""
        assert "deadlock" in said[1]
        assert "Roll back your transaction" in said[1]
        assert [ledger.balance(name).available for name in ("a", "b")] == [9, 9]
        assert ledger.verify().ok


def test_a_transaction_that_failed_or_only_reads(postgres_url: str):
    with tillroll.open(postgres_url) as ledger, psycopg.connect(postgres_url) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(tillroll.StoreUnavailable, match="failed before"):
            ledger.join(connection).grant("acme", 1)
        connection.rollback()
        connection.read_only = True
        with pytest.raises(tillroll.StoreReadOnly, match="only read"):
            ledger.join(connection).grant("acme", 1)
        assert connection.info.transaction_status == TransactionStatus.INTRANS
        assert ledger.join(connection).balance("acme").issued == 0


def test_a_connection_that_is_lost(postgres: Cluster, postgres_database: str):
    url = postgres.url(postgres_database)
    with tillroll.open(url) as ledger, psycopg.connect(url) as connection:
        ledger.grant("acme", 10)
        joined = ledger.join(connection)
        joined.consume("acme", units=1, request_id="r")
        pid = connection.info.backend_pid
        postgres.run("SELECT pg_terminate_backend(%s, 10000)", pid)
        for _ in range(2):
            with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
                joined.consume("acme", units=1)
        assert not ledger.consume("acme", units=1, request_id="r").replayed


def test_doctor_tells_which_library_it_is(tmp_path: Path):
    with opened(f"sqlite:///{tmp_path}/app.db") as ledger:
        name, value, sound = ledger.store.facts()[0]
    assert name == "SQLite"
    assert value.startswith(f"{sqlite3.sqlite_version} of Python's sqlite3")
    assert sound == (sqlite3.sqlite_version_info >= (3, 51, 3))
    assert ("can corrupt" in value) is not sound
