"""Commits whose outcome nobody knows: looked up, or told to be unknown; never guessed."""

import itertools
import threading

import psycopg
import pytest

import tillroll
from tests.conftest import appending
from tests.faults.rig import START, join, ledger_on, until
from tests.servers.cluster import Cluster
from tests.servers.proxy import Proxy
from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.stores.postgres import PostgresStore, _Pace
from tillroll.stores.postgres_rows import PART

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def test_a_cancelled_wait_for_a_standby_is_unknown_not_success(own_postgres: Cluster):
    """PostgreSQL then has committed here only, and says so in nothing but a warning."""
    standby = own_postgres.standby(synchronous=True)
    with ledger_on(PostgresStore(own_postgres.url(), statement_seconds=1)) as ledger:
        ledger.grant("acme", 100, request_id="g")
        standby.pause()
        with pytest.raises(tillroll.OutcomeUnknown, match="same request_id") as caught:
            ledger.consume("acme", units=1, request_id="c")
        assert caught.value.written == "unknown"
        with pytest.raises(tillroll.OutcomeUnknown):  # still: an earlier try may be written
            ledger.consume("acme", units=1, request_id="c")
        standby.go_on()
        own_postgres.catch_up(standby)
        assert ledger.consume("acme", units=1, request_id="c").replayed
        assert ledger.balance("acme").used == 1
        assert ledger.verify().ok


def test_a_wait_cancelled_by_hand_is_looked_up_once_the_standby_is_back(own_postgres: Cluster):
    standby = own_postgres.standby(synchronous=True)
    own_postgres.run("ALTER DATABASE postgres SET client_min_messages = 'error'")  # and yet
    with ledger_on(PostgresStore(own_postgres.url())) as ledger:
        ledger.grant("acme", 100, request_id="g")
        standby.pause()
        answers: list[tillroll.Receipt] = []
        thread = threading.Thread(
            target=lambda: answers.append(ledger.consume("acme", units=1, request_id="c"))
        )
        thread.start()
        until(lambda: bool(own_postgres.run(WAITING)))
        [(first,)] = own_postgres.run(WAITING)
        own_postgres.run("SELECT pg_cancel_backend(%s)", first)
        # It is not answered yet: that what is there stays there has to be confirmed first.
        until(lambda: own_postgres.run(WAITING) not in ([], [(first,)]))
        assert thread.is_alive()
        standby.go_on()
        join(thread)
        assert [answer.replayed for answer in answers] == [False]
        assert ledger.consume("acme", units=1, request_id="c").replayed
        own_postgres.catch_up(standby)
        with tillroll.open(standby.url()) as other:
            assert other.balance("acme").used == 1


# ---------------------------------------------------------------- the connection is lost at COMMIT


@pytest.mark.parametrize("items", [1, 40], ids=["one row", "a batch"])
@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_connection_lost_at_the_commit(
    postgres: Cluster, postgres_database: str, lost: str, items: int
):
    """The caller gets the answer that was lost, or is told that nothing was written."""
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        batch = [{"account": "acme", "units": 1, "request_id": f"c{n}"} for n in range(items)]
        getattr(proxy, f"lose_{lost}")()
        outcomes = ledger.consume_many(batch)
        if lost == "answer":
            assert all(outcome.ok for outcome in outcomes)
        else:
            assert all(not outcome.ok for outcome in outcomes)
            assert {outcome.error.written for outcome in outcomes if outcome.error} == {"nothing"}
        assert ledger.balance("acme").used == (items if lost == "answer" else 0)
        again = ledger.consume_many(batch)
        assert all(outcome.ok for outcome in again)
        assert ledger.balance("acme").used == items
        assert ledger.verify().ok


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("items", [1, PART + 1], ids=["one row", "a batch"])
@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_connection_lost_at_each_message_in_turn(
    postgres: Cluster, postgres_database: str, lost: str, items: int, *, append: bool
):
    """Whatever was on its way: what is told is true, and the same ids settle the rest."""
    url = postgres.url(postgres_database)
    if append:
        appending(url)
    with (
        Proxy(postgres.port) as proxy,
        ledger_on(
            PostgresStore(postgres.url(postgres_database, port=proxy.port), statement_seconds=1)
        ) as ledger,
    ):
        ledger.grant("acme", 100_000, request_id="g")
        assert isinstance(ledger.store, PostgresStore)
        told: set[str] = set()
        for nth in itertools.count(1):
            batch = [
                {"account": "acme", "units": 1, "request_id": f"{nth}.{n}"} for n in range(items)
            ]
            ledger.store._pace = _Pace()  # each time the way that it is about
            ledger.store._pace.won(appends=append)
            getattr(proxy, f"lose_{lost}")(rb"", nth)
            outcomes = ledger.consume_many(batch)
            was_lost = proxy.lost.is_set()
            proxy.heal()
            again = ledger.consume_many(batch)
            assert all(outcome.ok for outcome in again)
            for first, second in zip(outcomes, again, strict=True):
                written = "yes" if first.error is None else first.error.written
                told.add(written)
                assert second.receipt is not None
                assert written == "unknown" or second.receipt.replayed == (written == "yes")
            if not was_lost:
                break
        assert nth > 10
        assert "yes" in told
        assert ledger.balance("acme").used == nth * items
        assert ledger.verify().ok


def test_a_connection_that_keeps_being_lost_is_unknown(postgres: Cluster, postgres_database: str):
    """As long as nobody can look, nobody says that nothing was written."""
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        proxy.lose_answer()
        proxy.refuse()
        for _ in range(3):
            with pytest.raises(tillroll.OutcomeUnknown):
                ledger.consume("acme", units=1, request_id="c")
        with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
            ledger.consume("acme", units=1, request_id="another")
        proxy.heal()
        assert ledger.consume("acme", units=1, request_id="c").replayed
        assert ledger.balance("acme").used == 1


def test_what_was_looked_up_is_in_doubt_no_more(postgres: Cluster, postgres_database: str):
    """Once somebody was told that nothing was written, it stays so."""
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        proxy.lose_request()
        with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
            ledger.consume("acme", units=1, request_id="c")
        proxy.refuse()
        proxy.cut()
        with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
            ledger.consume("acme", units=1, request_id="c")
        proxy.heal()
        assert not ledger.consume("acme", units=1, request_id="c").replayed


def test_an_interrupted_batch_stays_in_doubt(postgres: Cluster, postgres_database: str):
    """Ctrl-C may have come while the commit was on its way."""
    struck = [False]

    def clock() -> int:
        if struck[0]:
            struck[0] = False
            raise KeyboardInterrupt
        return START

    with (
        Proxy(postgres.port) as proxy,
        Ledger(
            Engine(PostgresStore(postgres.url(postgres_database, port=proxy.port)), clock=clock)
        ) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        struck[0] = True
        with pytest.raises(KeyboardInterrupt):
            ledger.consume("acme", units=1, request_id="c")
        proxy.refuse()
        proxy.cut()
        with pytest.raises(tillroll.OutcomeUnknown, match="earlier try"):
            ledger.consume("acme", units=1, request_id="c")
        with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
            ledger.consume("acme", units=1, request_id="another")
        proxy.heal()
        assert not ledger.consume("acme", units=1, request_id="c").replayed


def test_a_writer_that_still_commits_is_waited_for(postgres: Cluster, postgres_database: str):
    """The client is cut off while its COMMIT is on the way; the look-up must not be faster."""
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
        psycopg.connect(postgres.url(postgres_database)) as other,
    ):
        ledger.grant("acme", 100, request_id="g")
        # Somebody keeps the row that the charge still has to write: COMMIT comes later than that.
        ledger.consume("acme", units=1, request_id="twice")
        ledger.consume("acme", units=1, request_id="twice")
        other.execute("SELECT 1 FROM tillroll_replays FOR UPDATE")
        answers: list[tillroll.Receipt] = []
        thread = threading.Thread(
            target=lambda: answers.append(ledger.consume("acme", units=1, request_id="twice"))
        )
        thread.start()
        locked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: bool(postgres.run(locked)))
        proxy.cut()
        assert thread.is_alive()
        other.rollback()
        join(thread)
        assert [answer.seq for answer in answers] == [2]
        assert ledger.balance("acme").used == 1


STRIKE = """
CREATE SEQUENCE strikes;
CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.name = 'recoveries' AND nextval('strikes') <= %d THEN
        RAISE EXCEPTION 'struck' USING ERRCODE = '%s';
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER strike BEFORE INSERT ON tillroll_meta FOR EACH ROW EXECUTE FUNCTION strike();
"""


def test_a_recovery_that_met_a_deadlock_is_tried_again(postgres: Cluster, postgres_database: str):
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        postgres.run(STRIKE % (2, "40P01"), database=postgres_database)
        proxy.lose_answer()
        assert not ledger.consume("acme", units=1, request_id="c").replayed
        assert ledger.balance("acme").used == 1


def test_a_recovery_that_keeps_failing_leaves_it_unknown(postgres: Cluster, postgres_database: str):
    """Whatever the server says: as long as nobody could look, the charge may be there."""
    with (
        Proxy(postgres.port) as proxy,
        tillroll.open(postgres.url(postgres_database, port=proxy.port)) as ledger,
    ):
        ledger.grant("acme", 100, request_id="g")
        postgres.run(STRIKE % (10**6, "23514"), database=postgres_database)
        proxy.lose_answer()
        for _ in range(3):
            with pytest.raises(tillroll.OutcomeUnknown, match="same request_id"):
                ledger.consume("acme", units=1, request_id="c")
        with pytest.raises(tillroll.StoreUnavailable, match="struck") as caught:
            ledger.consume("acme", units=1, request_id="another")
        assert caught.value.written == "nothing"
        postgres.run("DROP TRIGGER strike ON tillroll_meta", database=postgres_database)
        assert ledger.consume("acme", units=1, request_id="c").replayed
        assert ledger.balance("acme").used == 1


COMMITTING = """
SELECT pid FROM pg_stat_activity
WHERE state = 'active' AND query = 'COMMIT' AND datname = %s
"""


@pytest.mark.parametrize("request_id", [None, "c"], ids=["no id", "an id"])
def test_a_backend_that_is_ended_while_it_commits_has_committed(
    postgres: Cluster, postgres_database: str, request_id: str | None
):
    """It does not stop within: the commit is done, and its answer the last that is heard."""
    with tillroll.open(postgres.url(postgres_database)) as ledger:
        ledger.grant("acme", 100, request_id="g")
        assert isinstance(ledger.store, PostgresStore)
        assert ledger.store._writer is not None
        for setting in ("commit_delay = 100000", "commit_siblings = 0"):  # 0.1 s within COMMIT
            ledger.store._writer.execute(f"SET {setting}".encode())
        answers: list[tillroll.Receipt] = []
        thread = threading.Thread(
            target=lambda: answers.append(ledger.consume("acme", units=1, request_id=request_id))
        )
        with psycopg.connect(postgres.url(), autocommit=True) as other:
            found: list[tuple[int]] = []

            def commits() -> bool:
                found[:] = other.execute(COMMITTING, (postgres_database,)).fetchall()
                return bool(found)

            thread.start()
            until(commits)
            other.execute("SELECT pg_terminate_backend(%s)", found[0])
        join(thread)
        assert [(answer.seq, answer.replayed) for answer in answers] == [(2, False)]
        assert ledger.balance("acme").used == 1
        assert ledger.verify().ok


def test_a_server_that_falls_silent(postgres: Cluster, postgres_database: str):
    with Proxy(postgres.port) as proxy:
        url = postgres.url(postgres_database, port=proxy.port)
        with ledger_on(PostgresStore(url, statement_seconds=1)) as ledger:
            ledger.grant("acme", 100, request_id="g")
            proxy.black_hole()
            with pytest.raises(tillroll.StoreUnavailable, match="no answer") as caught:
                ledger.consume("acme", units=1, request_id="c")
            assert caught.value.written == "nothing"
            proxy.heal()
            assert not ledger.consume("acme", units=1, request_id="c").replayed
