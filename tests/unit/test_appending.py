"""Writing by appending: nothing is locked, and what was decided on a wrong state never counts."""

import random
import threading
import time
from collections import Counter

import psycopg
import pytest

import tillroll
from tests.faults.rig import join, until
from tests.servers.cluster import Cluster
from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.ledger.commands import account_id
from tillroll.stores.postgres import PostgresStore
from tillroll.stores.postgres_rows import GATE, PART


def way(ledger: tillroll.Ledger) -> str:
    assert isinstance(ledger.store, PostgresStore)
    return ledger.store._pace.way


def appends(ledger: tillroll.Ledger, account: str = "acme") -> None:
    """Charge until this process dares to append."""
    for _ in range(40):
        ledger.consume(account, units=1)
    assert way(ledger) == "append"


def test_a_process_that_is_alone_locks_nothing(appending_url: str):
    with tillroll.open(appending_url) as ledger, psycopg.connect(appending_url) as other:
        ledger.grant("acme", 1_000)
        appends(ledger)
        other.execute("SELECT 1 FROM tillroll_accounts FOR UPDATE")
        ledger.consume("acme", units=1, request_id="c")
        assert ledger.balance("acme").used == 41


def test_a_refusal_is_decided_on_what_is_true(appending_url: str):
    """Another process has granted credits; what is remembered here knows nothing of it."""
    with tillroll.open(appending_url) as here, tillroll.open(appending_url) as there:
        here.grant("acme", 41)
        appends(here)
        there.grant("acme", 100)
        assert here.consume("acme", units=50).available == 51
        assert here.verify().ok


def test_a_stale_success_does_not_count(appending_url: str):
    with tillroll.open(appending_url) as here, tillroll.open(appending_url) as there:
        here.grant("acme", 41)
        appends(here)
        there.consume("acme", units=1)
        with pytest.raises(tillroll.InsufficientUnits):
            here.consume("acme", units=1)
        assert here.balance("acme").available == 0
        assert here.verify().ok


def test_what_is_wrong_is_wrong_as_things_stand(appending_url: str):
    """Another process has begun a recurring grant; what is remembered here has none to stop."""
    with tillroll.open(appending_url) as here, tillroll.open(appending_url) as there:
        here.grant("acme", 1_000)
        appends(here)
        there.set_recurring("acme", "plan", 10, every="month", anchor="2026-01-01")
        assert here.stop_recurring("acme", "plan").kind == "recurring"
        with pytest.raises(tillroll.InvalidInput, match="no recurring grant"):
            here.stop_recurring("acme", "another")
        assert here.verify().ok


def test_an_id_refused_elsewhere_stays_refused(appending_url: str):
    with tillroll.open(appending_url) as here, tillroll.open(appending_url) as there:
        here.grant("acme", 41)
        appends(here)
        with pytest.raises(tillroll.InsufficientUnits):
            there.consume("acme", units=2, request_id="c")
        there.grant("acme", 100)
        with pytest.raises(tillroll.InsufficientUnits) as caught:
            here.consume("acme", units=2, request_id="c")
        assert caught.value.replayed
        assert here.consume("acme", units=2, request_id="c", retry_refused=True).units == 2


def test_one_id_asked_by_two_processes_at_once_has_one_answer(appending_url: str):
    """The account is all but empty, so one may charge what the other one refuses."""
    answers: dict[str, set[str]] = {}
    mutex = threading.Lock()

    def ask(ledger: tillroll.Ledger, nth: int) -> None:
        for turn in range(150):
            name = f"r{turn}"
            try:
                found = f"charged {ledger.consume('acme', units=2, request_id=name).seq}"
            except tillroll.InsufficientUnits as refusal:
                found = f"refused {refusal.available}"
            with mutex:
                answers.setdefault(name, set()).add(found)
            if nth == 0 and turn % 3 == 0:
                ledger.grant("acme", 3, request_id=f"g{turn}")

    ledgers = [tillroll.open(appending_url) for _ in range(3)]
    ledgers[0].grant("acme", 5)
    threads = [threading.Thread(target=ask, args=(x, n)) for n, x in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(found) for found in answers.values()} == {1}
    kinds = Counter(text.split()[0] for found in answers.values() for text in found)
    assert min(kinds["charged"], kinds["refused"]) > 10, kinds
    for ledger in ledgers:
        assert ledger.verify().ok
        ledger.close()


def test_many_processes_on_the_same_accounts(appending_url: str):
    """Everything is charged once, though all believe in what they remember."""
    names = [f"a{number}" for number in range(5)]
    ledgers = [tillroll.open(appending_url) for _ in range(3)]
    for name in names:
        ledgers[0].grant(name, 10_000)

    def charge(ledger: tillroll.Ledger, nth: int) -> None:
        rng = random.Random(nth)  # noqa: S311 - a workload
        for turn in range(30):
            items = [
                {"account": rng.choice(names), "units": 1, "request_id": f"{nth}.{turn}.{n}"}
                for n in range(20)
            ]
            outcomes = ledger.consume_many(items)
            assert all(outcome.ok for outcome in outcomes), outcomes

    threads = [threading.Thread(target=charge, args=(x, n)) for n, x in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ledgers[0].balance(name).used for name in names) == 3 * 30 * 20
    for ledger in ledgers:
        assert ledger.verify().ok
        ledger.close()


def test_the_way_can_be_changed_while_others_write(postgres_url: str):
    stop = threading.Event()
    broken: list[BaseException] = []
    ledgers = [tillroll.open(postgres_url) for _ in range(2)]
    ledgers[0].grant("acme", 10**6)
    done: Counter[int] = Counter()

    def charge(ledger: tillroll.Ledger, nth: int) -> None:
        try:
            while not stop.is_set():
                ledger.consume("acme", units=1)
                done[nth] += 1
        except BaseException as problem:  # for the main thread to see
            broken.append(problem)
            raise

    threads = [threading.Thread(target=charge, args=(x, n)) for n, x in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    store = PostgresStore(postgres_url)
    for chosen in ("append", "locks", "append", "locks"):
        store.set_writing(chosen)  # type: ignore[arg-type]
        time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    store.close()
    assert not broken
    assert ledgers[0].balance("acme").used == sum(done.values())
    assert ledgers[0].verify().ok
    for ledger in ledgers:
        ledger.close()


def test_who_changes_the_way_is_not_waited_for_by_those_he_waits_for(
    postgres: Cluster, appending_url: str
):
    """An appender is through the gate, and has to write to the table of accounts only now."""
    store = PostgresStore(appending_url)
    changer = threading.Thread(target=store.set_writing, args=("locks",))
    with psycopg.connect(appending_url) as appender:
        appender.execute("SET lock_timeout = '500ms'")
        appender.execute(f"SELECT pg_advisory_xact_lock_shared({GATE})".encode())
        changer.start()
        until(lambda: bool(postgres.run("SELECT 1 FROM pg_locks WHERE NOT granted")))
        appender.execute("LOCK TABLE tillroll_accounts IN ROW EXCLUSIVE MODE")
    join(changer)
    store.close()
    with psycopg.connect(appending_url) as other:
        told = other.execute("SELECT value FROM tillroll_meta WHERE name = 'writing'")
        assert told.fetchall() == [("locks",)]


def test_a_gate_that_stays_closed_stops_nobody_for_long(appending_url: str):
    """As when a joined transaction was refused something, and does not end."""
    with (
        Ledger(Engine(PostgresStore(appending_url, busy_seconds=60))) as ledger,
        psycopg.connect(appending_url) as other,
    ):
        ledger.grant("acme", 1_000)
        appends(ledger)
        other.execute(f"SELECT pg_advisory_xact_lock({GATE})".encode())
        assert not ledger.consume("acme", units=1, request_id="c").replayed
        assert way(ledger) == "locks"
        assert ledger.balance("acme").used == 41


def test_who_appends_waits_as_long_for_other_locks_as_ever(appending_url: str):
    """The gate alone is waited for more briefly; what follows in the transaction is not."""
    store = PostgresStore(appending_url, busy_seconds=7)
    with Ledger(Engine(store)) as ledger:
        ledger.grant("acme", 1_000)
        appends(ledger)
        with store.write() as tx:
            tx.load("default", {account_id("default", "acme"): "acme"}, [])
            assert tx.ask("SHOW lock_timeout") == [("7s",)]


def test_there_is_no_third_way(postgres_url: str):
    store = PostgresStore(postgres_url)
    with pytest.raises(tillroll.InvalidInput, match="lock"):
        store.set_writing("lock")  # type: ignore[arg-type]
    store.close()


@pytest.mark.parametrize("url", ["postgres_url", "appending_url"])
def test_what_falls_due_is_never_written_too_late(url: str, request: pytest.FixtureRequest):
    """Another process has put it off meanwhile; what is remembered here is not what is there."""
    now = [1_700_000_000_000_000]
    where = request.getfixturevalue(url)
    here, there = (Ledger(Engine(PostgresStore(where), clock=lambda: now[0])) for _ in range(2))
    here.grant("acme", 1_000)
    here.hold("acme", units=1, request_id="first", expires_in="1m")
    here.settle("acme", "first", units=1)
    for _ in range(40):
        here.consume("acme", units=1)
    now[0] += 61_000_000
    while there.book_due():  # nothing fell due, and the row says so now
        pass
    here.hold("acme", units=1, request_id="second", expires_in="1m")
    now[0] += 61_000_000
    assert there.book_due() == 1
    assert there.balance("acme").held == 0
    kinds = [receipt.kind for receipt in there.entries("acme")]
    assert kinds[-1] == "hold_expired"
    assert here.verify().ok
    here.close()
    there.close()


def test_what_falls_due_is_booked_by_whoever_remembers_it_otherwise(appending_url: str):
    """Another process has held since; who books what is due has nobody to contradict him."""
    now = [1_700_000_000_000_000]
    here, there = (
        Ledger(Engine(PostgresStore(appending_url), clock=lambda: now[0])) for _ in range(2)
    )
    here.grant("acme", 100)
    there.grant("beta", 100)
    there.consume("acme", units=1)
    appends(there, "beta")
    here.hold("acme", units=5, request_id="h", expires_in="1m")
    now[0] += 61_000_000
    assert there.book_due() == 1
    assert [receipt.kind for receipt in here.entries("acme")][-1] == "hold_expired"
    there.book_due()  # the row still names a time that has passed, and is put right
    assert there.book_due() == 0
    for ledger in (here, there):
        assert ledger.verify().ok
        ledger.close()


# --- batches that are sent while they are decided -----------------------------------------------

LARGE = 4 * PART


def items(accounts: int) -> list[dict[str, object]]:
    return [
        {"account": f"a{n % accounts}", "units": 1, "request_id": f"r{n}"} for n in range(LARGE)
    ]


@pytest.mark.parametrize("accounts", [1, 7, LARGE])
def test_answers_come_in_the_order_of_the_items(appending_url: str, accounts: int):
    with tillroll.open(appending_url) as ledger:
        for n in range(accounts):
            ledger.grant(f"a{n}", 1_000)
        asked = items(accounts)
        outcomes = ledger.consume_many(asked)
        receipts = [outcome.receipt for outcome in outcomes]
        assert [(r.account, r.request_id) for r in receipts if r] == [
            (item["account"], item["request_id"]) for item in asked
        ]
        assert [r.seq for r in receipts if r and r.account == "a0"] == [
            *range(2, 2 + LARGE // accounts + (LARGE % accounts > 0))
        ]
        assert {outcome.status for outcome in ledger.consume_many(asked)} == {"replayed"}
        assert ledger.verify().ok


def test_a_refusal_breaks_off_what_was_sent_and_stays_on_the_connection(appending_url: str):
    with tillroll.open(appending_url) as ledger:
        for n in range(LARGE):
            ledger.grant(f"a{n}", 1_000 if n else 1)
        appends(ledger, "a1")
        ledger.consume("a0", units=1)
        assert isinstance(ledger.store, PostgresStore)
        before = ledger.store._writer
        outcomes = ledger.consume_many(items(LARGE))
        assert Counter(o.status for o in outcomes) == {"created": LARGE - 1, "refused": 1}
        assert outcomes[0].status == "refused"
        assert ledger.store._writer is before
        assert ledger.verify().ok


def test_what_another_process_wrote_first_breaks_off_the_batch(appending_url: str):
    with tillroll.open(appending_url) as here, tillroll.open(appending_url) as there:
        for n in range(LARGE):
            here.grant(f"a{n}", 1_000)
        appends(here, "a1")
        here.consume_many({"account": f"a{n}", "units": 1} for n in range(LARGE))
        there.consume("a7", units=1)
        outcomes = here.consume_many(items(LARGE))
        assert {outcome.status for outcome in outcomes} == {"created"}
        assert here.balance("a7").used == 3
        assert here.verify().ok


def test_a_row_that_the_database_refuses_fails_alone(appending_url: str):
    with tillroll.open(appending_url) as ledger, psycopg.connect(appending_url) as other:
        for n in range(7):
            ledger.grant(f"a{n}", 1_000)
        other.execute("ALTER TABLE tillroll_entries ADD CHECK (request_id <> 'r11')")
        other.commit()
        outcomes = ledger.consume_many(items(7))
        assert Counter(o.status for o in outcomes) == {"created": LARGE - 1, "failed": 1}
        assert outcomes[11].status == "failed"
        assert ledger.verify().ok
