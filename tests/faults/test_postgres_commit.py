"""Commits whose outcome nobody knows: looked up, or told to be unknown; never guessed."""

import threading

import pytest

import tillroll
from tests.faults.rig import join, ledger_on, until
from tests.servers.cluster import Cluster
from tillroll.stores.postgres import PostgresStore

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
