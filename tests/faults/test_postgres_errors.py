"""What PostgreSQL can answer with, and what a caller is told: what to do, and what was written."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

import tillroll
from tests.faults.rig import join, ledger_on, until
from tests.servers.cluster import Cluster, hand_over
from tillroll.embedded import Ledger
from tillroll.ledger.commands import account_id
from tillroll.stores.base import TRIES
from tillroll.stores.postgres import PostgresStore, parsed


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    with ledger_on(PostgresStore(postgres_url, busy_seconds=0.3)) as ledger:
        ledger.grant("acme", 100, request_id="g")
        yield ledger


def assert_unwritten(ledger: Ledger, kind: type[tillroll.TillrollError], *, said: str) -> None:
    """Assert that a charge is refused with this error, and that it can be asked for again."""
    with pytest.raises(kind, match=said) as caught:
        ledger.consume("acme", units=1, request_id="c")
    assert caught.value.written == "nothing"


def assert_charged_once(ledger: Ledger) -> None:
    ledger.consume("acme", units=1, request_id="c")
    assert ledger.consume("acme", units=1, request_id="c").replayed
    assert ledger.balance("acme").used == 1
    assert ledger.verify().ok


# ---------------------------------------------------------------- connections


def test_a_server_that_restarted_meanwhile_is_not_noticed(own_postgres: Cluster):
    with tillroll.open(own_postgres.url()) as ledger:
        ledger.grant("acme", 100)
        ledger.balance("acme")
        own_postgres.restart()
        ledger.consume("acme", units=1)
        own_postgres.restart()
        assert ledger.balance("acme").used == 1
        assert ledger.verify().ok


def test_a_server_that_is_away(own_postgres: Cluster):
    with tillroll.open(own_postgres.url()) as ledger:
        ledger.grant("acme", 100)
        own_postgres.stop()
        assert_unwritten(ledger, tillroll.StoreUnavailable, said="nothing was written")
        with pytest.raises(tillroll.StoreUnavailable):
            ledger.balance("acme")
        with pytest.raises(tillroll.StoreUnavailable):
            tillroll.open(own_postgres.url())
        own_postgres.start()
        assert_charged_once(ledger)


def test_no_connection_left():
    settings = {
        "max_connections": "5",
        "superuser_reserved_connections": "0",
        "max_wal_senders": "0",
        "wal_level": "minimal",
    }
    with Cluster(settings=settings) as cluster, tillroll.open(cluster.url()) as ledger:
        ledger.grant("acme", 100)
        taken = []
        with suppress(psycopg.OperationalError):
            for _ in range(9):
                taken.append(psycopg.connect(cluster.url()))  # noqa: PERF401 - kept on the way
        assert len(taken) < 5
        with pytest.raises(tillroll.StoreUnavailable, match="max_connections"):
            tillroll.open(cluster.url())
        ledger.consume("acme", units=1, request_id="c")  # has its connection
        for connection in taken:
            connection.close()
        assert_charged_once(ledger)


def test_nobody_listens_there():
    with pytest.raises(tillroll.StoreUnavailable, match="nothing was written") as caught:
        tillroll.open("postgresql://ann:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_no_such_database(postgres: Cluster):
    with pytest.raises(tillroll.StoreUnavailable, match="does not exist"):
        tillroll.open(postgres.url("nowhere"))


@pytest.mark.parametrize("url", ["postgresql://a:b:c@@/", "postgresql://host:port/db"])
def test_a_url_that_cannot_be_read(url: str):
    with pytest.raises(tillroll.TillrollError):
        tillroll.open(url)


def test_a_password_is_never_shown(postgres: Cluster, postgres_database: str):
    url = postgres.url(postgres_database, tcp=True).replace("postgres@", "postgres:secret@")
    with tillroll.open(url) as ledger:
        assert "secret" not in ledger.store.url
        assert "secret" not in repr(ledger)
        assert postgres_database in ledger.store.url


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql:///credits", "postgresql:///credits"),
        ("postgresql://ann:pw@db.test:5433/credits", "postgresql://ann@db.test:5433/credits"),
        ("postgresql://ann@[::1]:5433/c", "postgresql://ann@[::1]:5433/c"),
        (
            "postgresql://ann@db1,db2:5433/c?target_session_attrs=read-write",
            "postgresql://ann@db1,db2:5433/c",
        ),
        ("host=db1,db2 port=5433 dbname=c", "postgresql://db1:5433,db2:5433/c"),
        (
            "postgresql://ann@/c?host=/run/one&port=5433&password=pw",
            "postgresql://ann@/c?host=/run/one&port=5433",
        ),
        ("postgresql://%2Frun%2Fone/c", "postgresql:///c?host=/run/one"),
        ("postgresql:///?service=prod", "postgresql:///?service=prod"),
        (
            "postgresql://db/c?options=-csearch_path%3Dbilling%20-cstatement_timeout%3D9",
            "postgresql://db/c?options=-csearch_path%3Dbilling",
        ),
        (
            "postgresql://db/c?options=--search_path%3Da,b",
            "postgresql://db/c?options=-csearch_path%3Da,b",
        ),
    ],
)
def test_what_is_shown_of_a_url_tells_which_ledger_it_is(given: str, shown: str):
    assert parsed(given)[1] == shown
    again = parsed(shown)
    assert again[1] == shown, "what is shown can be given"


# ---------------------------------------------------------------- locks and order


def test_an_account_locked_by_somebody_else(ledger: Ledger, postgres_url: str):
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT 1 FROM tillroll_accounts FOR UPDATE")
        assert_unwritten(ledger, tillroll.StoreBusy, said="locked")
    assert_charged_once(ledger)


def test_a_statement_that_is_cancelled(ledger: Ledger, postgres: Cluster, postgres_database: str):
    with ledger_on(PostgresStore(postgres.url(postgres_database), busy_seconds=30)) as patient:
        patient.grant("acme", 1)
        with psycopg.connect(postgres.url(postgres_database)) as other:
            other.execute("SELECT 1 FROM tillroll_accounts FOR UPDATE")
            thread = threading.Thread(
                target=assert_unwritten,
                args=(patient, tillroll.StoreBusy),
                kwargs={"said": "cancel"},
            )
            thread.start()
            cancel = (
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = %s"
            )
            until(lambda: bool(postgres.run(cancel, postgres_database)))
            join(thread)
        assert_charged_once(patient)


def test_a_deadlock_is_tried_again(ledger: Ledger, postgres_url: str):
    """Somebody locks in another order than ours: PostgreSQL ends one of the two transactions."""
    names = sorted((f"n{i}" for i in range(2)), key=_order)
    store = PostgresStore(postgres_url, busy_seconds=30)
    with ledger_on(store) as patient, psycopg.connect(postgres_url) as other:
        for name in names:
            patient.grant(name, 10)
        lock = "SELECT 1 FROM tillroll_accounts WHERE account = %s FOR UPDATE"
        other.execute("SET deadlock_timeout = '60s'")  # so that it is the other side that finds it
        other.execute(lock, (names[1],))
        items = [{"account": name, "units": 1, "request_id": "c"} for name in names]
        outcomes: list[tillroll.Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.extend(patient.consume_many(items)))
        thread.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with psycopg.connect(postgres_url, autocommit=True) as third:
            until(lambda: bool(third.execute(waits).fetchall()))
        other.execute(lock, (names[0],))  # waits for us, as we do for it, until ours is ended
        other.rollback()
        join(thread)
        assert all(outcome.ok for outcome in outcomes)
        assert [patient.balance(name).used for name in names] == [1, 1]


FAIL = """
CREATE SEQUENCE failures;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('failures') <= %d THEN
        RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON tillroll_entries FOR EACH ROW EXECUTE FUNCTION fail();
"""


def test_a_serialization_failure_is_tried_again(ledger: Ledger, postgres_url: str):
    with psycopg.connect(postgres_url) as other:
        other.execute((FAIL % (TRIES - 1)).encode())
    assert_charged_once(ledger)


def test_serialization_failures_that_do_not_end(ledger: Ledger, postgres_url: str):
    with psycopg.connect(postgres_url) as other:
        other.execute((FAIL % TRIES).encode())
    assert_unwritten(ledger, tillroll.StoreBusy, said=f"{TRIES} times; nothing was written")
    assert_charged_once(ledger)


def _order(name: str) -> bytes:
    return account_id("default", name)


# ---------------------------------------------------------------- servers that cannot keep it


def test_a_standby_takes_no_charges(own_postgres: Cluster):
    with tillroll.open(own_postgres.url()) as ledger:
        ledger.grant("acme", 100)
        standby = own_postgres.standby()
        own_postgres.catch_up(standby)
        with tillroll.open(standby.url()) as other:
            assert other.balance("acme").available == 100
            assert_unwritten(
                other, tillroll.StoreReadOnly, said="is a standby.*target_session_attrs"
            )
        assert_charged_once(ledger)


@pytest.mark.parametrize("of", ["DATABASE {}", "ROLE postgres IN DATABASE {}"])
def test_a_database_that_takes_no_writes_is_not_called_a_standby(
    ledger: Ledger, postgres: Cluster, postgres_database: str, of: str
):
    """As a provider has it while a disk is nearly full."""
    where = of.format(postgres_database)
    postgres.run(f"ALTER {where} SET default_transaction_read_only = on")
    postgres.terminate_backends(postgres_database)
    assert_unwritten(ledger, tillroll.StoreReadOnly, said="default_transaction_read_only is on")
    with pytest.raises(tillroll.StoreReadOnly) as caught:
        ledger.consume("acme", units=1, request_id="c")
    assert "standby" not in str(caught.value)
    assert ledger.balance("acme").available == 100
    postgres.run(f"ALTER {where} RESET default_transaction_read_only")
    assert_charged_once(ledger)


def test_failover_to_a_synchronous_standby(own_postgres: Cluster):
    standby = own_postgres.standby(synchronous=True)
    hosts = f"127.0.0.1:{own_postgres.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100)
        ledger.consume("acme", units=1, request_id="c")
        own_postgres.kill9()
        assert_unwritten(ledger, tillroll.StoreUnavailable, said="nothing was written")
        standby.promote()
        assert_charged_once(ledger)


def test_failover_to_a_standby_that_was_behind(own_postgres: Cluster):
    """What was lost is lost whole: the history goes on from what is there, without a gap."""
    standby = own_postgres.standby()
    hosts = f"127.0.0.1:{own_postgres.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100)
        ledger.consume("acme", units=1, request_id="kept")
        own_postgres.catch_up(standby)
        standby.stop()
        for turn in range(30):
            ledger.consume("acme", units=1, request_id=f"lost {turn}")
        own_postgres.kill9()
        standby.start()
        standby.promote()
        assert not ledger.consume("acme", units=1, request_id="lost 7").replayed
        assert ledger.consume("acme", units=1, request_id="kept").replayed
        assert ledger.balance("acme").used == 2
        assert ledger.verify().ok


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_settings_that_lose_charges_are_said_loudly(setting: str):
    with Cluster(settings={setting: "off"}) as cluster:
        with pytest.warns(tillroll.DurabilityWarning, match=f"{setting}=off"):
            ledger = tillroll.open(cluster.url())
        with ledger:
            facts = {name: ok for name, _, ok in ledger.store.facts()}
            assert facts.pop(setting) is False
            assert all(facts.values()), facts


def test_settings_that_are_sound_are_not_warned_of(postgres_url: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ledger = tillroll.open(postgres_url)
    assert all(ok for _, _, ok in ledger.store.facts())
    ledger.close()


def test_another_encoding_is_refused(postgres: Cluster):
    name = postgres.create_database("TEMPLATE template0 ENCODING 'LATIN1'")
    with pytest.raises(tillroll.StoreUnavailable, match="UTF8"):
        tillroll.open(postgres.url(name))
    postgres.drop_database(name)


# ---------------------------------------------------------------- schema


def test_tables_whose_history_is_not_there(postgres_url: str):
    """As of somebody else, or of a dump that left it out."""
    tillroll.open(postgres_url).close()
    with psycopg.connect(postgres_url) as other:
        other.execute("DROP TABLE tillroll_migrations")
    with pytest.raises(tillroll.SchemaMismatch, match="not their history"):
        tillroll.open(postgres_url)


def test_tables_of_a_newer_tillroll(postgres_url: str):
    tillroll.open(postgres_url).close()
    with psycopg.connect(postgres_url) as other:
        other.execute("INSERT INTO tillroll_meta (name, value) VALUES ('needs', '99')")
    with pytest.raises(tillroll.SchemaMismatch, match="upgrade"):
        tillroll.open(postgres_url)


def test_a_migration_that_was_altered(postgres_url: str):
    tillroll.open(postgres_url).close()
    with psycopg.connect(postgres_url) as other:
        other.execute("UPDATE tillroll_migrations SET checksum = 'x' WHERE number = 1")
    with pytest.raises(tillroll.SchemaMismatch, match="altered"):
        tillroll.open(postgres_url)


def test_tables_that_vanish(ledger: Ledger, postgres_url: str):
    with psycopg.connect(postgres_url) as other:
        other.execute("DROP TABLE tillroll_refusals")
    assert_unwritten(ledger, tillroll.SchemaMismatch, said="migrate")


def test_many_open_one_new_database_at_once(postgres_url: str):
    code = f"import tillroll; tillroll.open({postgres_url!r}).grant('acme', 1)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    with tillroll.open(postgres_url) as ledger:
        assert ledger.balance("acme").available == 4


def test_another_scale_is_refused(postgres_url: str):
    tillroll.open(postgres_url, scale=2).close()
    with tillroll.open(postgres_url) as ledger:
        assert ledger.scale == 2
    with pytest.raises(tillroll.InvalidInput, match="scale"):
        tillroll.open(postgres_url, scale=3)


def test_lost_settings(postgres_url: str):
    tillroll.open(postgres_url).close()
    with psycopg.connect(postgres_url) as other:
        other.execute("DELETE FROM tillroll_meta")
    with pytest.raises(tillroll.StoreCorrupt, match="settings"):
        tillroll.open(postgres_url)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("UPDATE tillroll_entries SET body = replace(body, '10', '11') WHERE seq = 2", "hash"),
        ("UPDATE tillroll_entries SET effective_at = 1 WHERE seq = 2", "column"),
        ("DELETE FROM tillroll_entries WHERE seq = 2", "missing"),
        ("UPDATE tillroll_accounts SET head = repeat('x', 32)::bytea", "head"),
        (
            "UPDATE tillroll_accounts SET state = replace(state, '\"used\":', '\"used\": 1')",
            "fold",
        ),
    ],
)
def test_a_tampered_row_is_found(ledger: Ledger, postgres_url: str, harm: str, told: str):
    for number in range(20):
        ledger.consume("acme", units=1, request_id=f"c{number}")
    with psycopg.connect(postgres_url) as other:
        other.execute("ALTER TABLE tillroll_entries DISABLE TRIGGER ALL")
        other.execute(harm.encode())
    found = [problem["problem"] for problem in ledger.verify().problems] + ledger.store.check()
    assert any(told in str(text) for text in found), found


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("UPDATE tillroll_refusals SET recorded_at = 7", "differs"),
        ("UPDATE tillroll_refusals SET account = 'zoe'", "differs"),
        ("UPDATE tillroll_refusals SET request_id = 'other'", "differs"),
        ("UPDATE tillroll_refusals SET body = '{'", "cannot be read"),
    ],
)
def test_a_refusal_that_was_tampered_with_is_found(
    ledger: Ledger, postgres_url: str, harm: str, told: str
):
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("acme", units=900, request_id="much")
    assert ledger.store.check() == []
    with psycopg.connect(postgres_url) as other:
        other.execute(harm.encode())
    found = ledger.store.check()
    assert len(found) == 1
    assert "refusal" in found[0]
    assert told in found[0]


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE tillroll_entries SET body = '{}'",
        "DELETE FROM tillroll_entries",
        "UPDATE tillroll_price_versions SET body = '{}'",
        "DELETE FROM tillroll_price_versions",
    ],
)
def test_history_is_kept_from_slips(ledger: Ledger, postgres_url: str, harm: str):
    ledger.apply_prices([], author="ann", reason="none yet")
    with psycopg.connect(postgres_url) as other, pytest.raises(psycopg.errors.RaiseException):
        other.execute(harm.encode())
    ledger.erase_metadata("acme")


def test_a_full_disk(own_postgres: Cluster):
    """The data lies on a small disk of its own."""
    disk = own_postgres.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        hand_over(disk)
        own_postgres.run(f"CREATE TABLESPACE small LOCATION '{disk}'")
        own_postgres.run("ALTER DATABASE postgres SET default_tablespace = small")
        with tillroll.open(own_postgres.url()) as ledger:
            ledger.grant("acme", 10**6, request_id="g")
            more = {"account": "acme", "units": 1, "metadata": {"note": "y" * 3_000}}
            outcomes: list[tillroll.Outcome] = []
            while all(outcome.ok for outcome in outcomes):
                outcomes += ledger.consume_many([more] * 100)
            refused = [outcome.error for outcome in outcomes if outcome.error]
            assert {type(error) for error in refused} == {tillroll.StoreFull}
            assert {error.written for error in refused} == {"nothing"}
            assert "free some space" in str(refused[0])
            assert ledger.balance("acme").used == len(outcomes) - len(refused) > 0
            assert ledger.verify().ok
    finally:
        own_postgres.stop("immediate")
        subprocess.run(["umount", disk], check=True)


def test_a_slow_reader_stops_nobody(ledger: Ledger):
    """A report holds its view of the ledger open; charges go on, and it does not see them."""
    with ledger.store.read() as reader:
        before = reader.replays((b"\0" * 16, "c"))
        ledger.consume("acme", units=1, request_id="c")
        assert reader.find("default", "c") == []
        assert reader.replays((b"\0" * 16, "c")) == before
    assert ledger.balance("acme").used == 1
