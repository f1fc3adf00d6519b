"""From a counter to a ledger: each step may be repeated, and what differs is found."""

import sqlite3
from collections.abc import Iterator

import pytest
import replace_counter as steps

import tillroll


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE users (id TEXT PRIMARY KEY, credits INTEGER NOT NULL)")
    users = [(f"user-{number:03}", number * 7 % 100) for number in range(200)]
    db.executemany("INSERT INTO users VALUES (?, ?)", users)
    yield db
    db.close()


@pytest.fixture
def ledger() -> Iterator[tillroll.Ledger]:
    with tillroll.open("memory://") as ledger:
        yield ledger


def test_opening_grants_equal_the_counters(db: sqlite3.Connection, ledger: tillroll.Ledger):
    assert steps.open_accounts(db, ledger) == 198  # two of 200 counters are at zero
    assert list(steps.differences(db, ledger)) == []
    (total,) = db.execute("SELECT sum(credits) FROM users").fetchone()
    assert sum(ledger.balance(name).available for name in ledger.accounts()) == total


def test_opening_may_be_repeated_even_after_the_counters_moved(
    db: sqlite3.Connection, ledger: tillroll.Ledger
):
    steps.open_accounts(db, ledger)
    assert steps.spend_in_shadow(db, ledger, "user-001", 3, "job-1")
    db.execute("INSERT INTO users VALUES ('late', 11)")
    assert steps.open_accounts(db, ledger) == 1
    assert list(steps.differences(db, ledger)) == []


def test_the_shadow_shows_a_retry_that_was_charged_twice(
    db: sqlite3.Connection, ledger: tillroll.Ledger
):
    steps.open_accounts(db, ledger)
    for _ in range(2):
        steps.spend_in_shadow(db, ledger, "user-001", 3, "job-1")
    assert list(steps.differences(db, ledger)) == [("user-001", 1, 4)]
    steps.align(ledger, "user-001", 1, "align-1")
    assert list(steps.differences(db, ledger)) == []


def test_the_shadow_never_stops_the_old_code(db: sqlite3.Connection, ledger: tillroll.Ledger):
    assert steps.spend_in_shadow(db, ledger, "user-001", 3, "job-1")  # no account, refused inside
    assert next(steps.differences(db, ledger)) == ("user-001", 4, 0)


def test_after_the_switch_the_ledger_decides(db: sqlite3.Connection, ledger: tillroll.Ledger):
    steps.open_accounts(db, ledger)
    assert steps.spend(ledger, "user-001", 5, "job-1")
    assert steps.spend(ledger, "user-001", 5, "job-1")  # a retry
    assert not steps.spend(ledger, "user-001", 5, "job-2")
    assert ledger.balance("user-001").available == 2
