"""`tillroll migrate`: shown before it is done, done once, and whole whenever it is cut off."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import apsw
import psycopg
import pytest

import tillroll
from tests.faults.rig import join, until
from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer
from tests.servers.proxy import Proxy
from tillroll.cli.app import run as cli
from tillroll.embedded.opening import open_store
from tillroll.stores import base
from tillroll.stores.base import FORMAT, migrations

MIGRATE = "import sys, tillroll; tillroll.migrate(sys.argv[1])"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite:///{tmp_path}/credits.db"


def dialect(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgres"


def used(url: str) -> None:
    """Check that a ledger can be opened there and used."""
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 10, request_id="g")
        ledger.consume("acme", units=1, request_id="c")
        assert ledger.verify().ok
        assert ledger.store.check() == []


def tables(url: str) -> list[str]:
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        if not Path(path).exists():
            return []
        with closing(apsw.Connection(path)) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
    with psycopg.connect(url) as connection:
        return [
            name
            for (name,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            )
        ]


def test_a_plan_shows_all_steps_and_writes_nothing(url: str, tmp_path: Path):
    planned = tillroll.migrate(url, plan=True)
    assert planned.planned
    assert list(planned.steps) == migrations(dialect(url))
    assert tables(url) == []
    assert list(tmp_path.iterdir()) == []


def test_applied_once(url: str):
    first = tillroll.migrate(url, scale=2)
    assert [step.number for step in first.steps] == [
        step.number for step in migrations(dialect(url))
    ]
    assert tillroll.migrate(url).steps == ()
    assert tillroll.migrate(url, plan=True).steps == ()
    with tillroll.open(url) as ledger:
        assert ledger.scale == 2
    used(url)


def test_a_plan_beside_an_open_ledger(url: str):
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 10)
        assert tillroll.migrate(url, plan=True).steps == ()
        ledger.consume("acme", units=1)


def test_a_plan_leaves_no_file_behind(tmp_path: Path):
    path = tmp_path / "credits.db"
    tillroll.open(path).close()
    before = path.read_bytes()
    assert tillroll.migrate(path, plan=True).steps == ()
    assert [file.name for file in tmp_path.iterdir()] == ["credits.db"]
    assert path.read_bytes() == before


def test_on_the_command_line(url: str, capsys: pytest.CaptureFixture[str]):
    assert cli(["migrate", "--plan", "--db", url]) == 0
    shown = capsys.readouterr().out
    for step in migrations(dialect(url)):
        assert f"-- {step.name}, sha256 {step.checksum}" in shown
        assert step.sql.strip() in shown
    assert "nothing was written" in shown
    assert cli(["migrate", "--plan", "--json", "--db", url]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["planned"] is True
    assert planned["steps"][0]["sql"] == migrations(dialect(url))[0].sql
    assert cli(["migrate", "--json", "--db", url]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["planned"], done["steps"]) == (False, planned["steps"])
    assert cli(["migrate", "--db", url]) == 0
    assert f"has schema {done['schema']}" in capsys.readouterr().out


def test_what_cannot_be_migrated(tmp_path: Path, postgres: Cluster):
    with pytest.raises(tillroll.InvalidInput, match="memory"):
        tillroll.migrate("memory://")
    with pytest.raises(tillroll.InvalidInput, match="PostgreSQL"):
        tillroll.migrate(tmp_path / "credits.db", role="app")
    with pytest.raises(tillroll.StoreUnavailable, match="does not exist"):
        tillroll.migrate(postgres.url("nowhere"), plan=True)
    (tmp_path / "text.db").write_text("not a database, but a text of some length" * 99)
    with pytest.raises(tillroll.StoreCorrupt):
        tillroll.migrate(tmp_path / "text.db", plan=True)
    assert [file.name for file in tmp_path.iterdir()] == ["text.db"]


def run(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        with closing(apsw.Connection(url.removeprefix("sqlite:///"))) as connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode())


AHEAD = "INSERT INTO tillroll_migrations VALUES (999, '0999_later.sql', 'x')"
NEEDS = f"INSERT INTO tillroll_meta (name, value) VALUES ('needs', '{FORMAT + 1}')"  # noqa: S608


def test_steps_of_a_newer_tillroll_keep_nobody_out(url: str):
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 10)
    run(url, AHEAD)
    for plan in (True, False):
        assert tillroll.migrate(url, plan=plan).steps == ()
    with tillroll.open(url) as ledger:
        assert ledger.consume("acme", units=1).available == 9
        assert ledger.verify().ok


def test_what_a_newer_tillroll_wrote_keeps_an_older_one_out(url: str):
    tillroll.migrate(url)
    run(url, AHEAD)
    run(url, NEEDS)
    for plan in (True, False):
        with pytest.raises(
            tillroll.SchemaMismatch, match=f"in format {FORMAT + 1}; this one"
        ) as no:
            tillroll.migrate(url, plan=plan)
        assert no.value.written == "nothing"
    with pytest.raises(tillroll.SchemaMismatch, match="upgrade tillroll"):
        tillroll.open(url)


def test_a_process_that_runs_is_told_with_its_next_write(url: str):
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 10, request_id="g")
        run(url, NEEDS)
        for _ in range(2):
            with pytest.raises(tillroll.SchemaMismatch, match="drop or misread"):
                ledger.consume("acme", units=1, request_id="c")
            with pytest.raises(tillroll.SchemaMismatch):
                ledger.grant("zoe", 1)
            with pytest.raises(tillroll.SchemaMismatch):
                ledger.apply_prices([], author="ann", reason="none")
        run(url, "DELETE FROM tillroll_meta WHERE name = 'needs'")
        assert ledger.consume("acme", units=1, request_id="c").available == 9
        assert ledger.balance("acme").seq == 2


def test_a_format_is_needed_from_the_write_on_that_says_so_and_never_less(url: str, tmp_path: Path):
    with tillroll.open(url) as ledger, ledger.store.read() as reader:
        assert reader.needs() == 1
    with tillroll.open(url) as ledger:
        for format_ in (FORMAT, 1):
            with ledger.store.write() as tx:
                tx.need(format_)
            with ledger.store.read() as reader:
                assert reader.needs() == FORMAT
        with ledger.store.write() as tx:
            tx.need(12)
            tx.need(9)
            assert tx.needs() == 12
    with pytest.raises(tillroll.SchemaMismatch, match="in format 12"):
        tillroll.open(url)


def test_a_copy_needs_what_its_source_does(
    monkeypatch: pytest.MonkeyPatch, url: str, tmp_path: Path
):
    monkeypatch.setattr(base, "FORMAT", 3)  # a tillroll to come
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 10)
        with ledger.store.write() as tx:
            tx.need(3)
    target = f"sqlite:///{tmp_path}/copy.db"
    tillroll.copy(url, target)
    monkeypatch.undo()
    with pytest.raises(tillroll.SchemaMismatch, match="in format 3"):
        tillroll.open(target)


# ---------------------------------------------------------------- cut off


def test_a_step_that_fails_leaves_nothing(url: str):
    """A table of the same name is in the way; once it is gone the same migration goes through."""
    if url.startswith("sqlite"):
        with closing(apsw.Connection(url.removeprefix("sqlite:///"))) as connection:
            connection.execute("CREATE TABLE tillroll_meta (a)")
            with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
                tillroll.migrate(url)
            assert tables(url) == ["tillroll_meta"]
            connection.execute("DROP TABLE tillroll_meta")
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE tillroll_meta (a int)")
            with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
                tillroll.migrate(url)
            assert tables(url) == ["tillroll_meta"]
            connection.execute("DROP TABLE tillroll_meta")
    used(url)


def test_killed_between_the_steps_of_a_file(tmp_path: Path):
    """SQLite applies all steps in one transaction: the file has them all or none."""
    url = f"sqlite:///{tmp_path}/credits.db"
    program = (
        "import apsw, os, signal, sys, tillroll\n"
        "def watch(connection):\n"
        "    seen = []\n"
        "    def traced(cursor, sql, bindings):\n"
        "        seen.extend(['x'] * ('INTO tillroll_migrations' in sql))\n"
        "        if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return True\n"
        "    connection.exec_trace = traced\n"
        "apsw.connection_hooks.append(watch)\n"
    )
    done = subprocess.run([sys.executable, "-c", program + MIGRATE, url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert tables(url) == []
    assert len(tillroll.migrate(url, plan=True).steps) == len(migrations("sqlite"))
    used(url)


def test_killed_within_a_step_of_a_database(postgres: Cluster, postgres_database: str):
    """The first step is there, the second was under way: it is done when next somebody opens."""
    url = postgres.url(postgres_database)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "CREATE FUNCTION gate() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_lock_shared(42); END $$"
        )
        other.execute(
            "CREATE EVENT TRIGGER gate ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') "
            "EXECUTE FUNCTION gate()"
        )
        other.execute("SELECT pg_advisory_lock(42)")
        process = subprocess.Popen([sys.executable, "-c", MIGRATE, url])
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 42"
        until(lambda: bool(other.execute(waits).fetchall()))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        other.execute("DROP EVENT TRIGGER gate")
        other.execute("SELECT pg_advisory_unlock(42)")
        applied = other.execute("SELECT number FROM tillroll_migrations").fetchall()
        assert applied == [(1,)]
    used(url)
    with psycopg.connect(url) as other:
        numbers = other.execute("SELECT number FROM tillroll_migrations ORDER BY 1").fetchall()
    assert numbers == [(step.number,) for step in migrations("postgres")]


COMMITS = len(migrations("postgres"))


@pytest.mark.parametrize("nth", [1, COMMITS])
@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_connection_lost_at_the_commit_of_a_step(
    postgres: Cluster, postgres_database: str, lost: str, nth: int
):
    """Nobody knows whether the step is there, so nobody says that nothing was written."""
    with Proxy(postgres.port) as proxy:
        url = postgres.url(postgres_database, port=proxy.port)
        getattr(proxy, f"lose_{lost}")(nth=nth)
        with pytest.raises(tillroll.OutcomeUnknown, match="migrate again"):
            tillroll.open(url)
        used(url)


def test_a_connection_lost_while_rights_are_given(
    postgres: Cluster, postgres_database: str, postgres_role: str
):
    with Proxy(postgres.port) as proxy:
        url = postgres.url(postgres_database, port=proxy.port)
        tillroll.open(url).close()
        proxy.lose_answer()
        with pytest.raises(tillroll.OutcomeUnknown, match="migrate again"):
            tillroll.migrate(url, role=postgres_role)
        assert tillroll.migrate(url, role=postgres_role).statements


def test_a_connection_lost_while_the_way_is_changed(postgres: Cluster, postgres_database: str):
    with Proxy(postgres.port) as proxy:
        url = postgres.url(postgres_database, port=proxy.port)
        used(url)
        proxy.lose_answer()
        with pytest.raises(tillroll.OutcomeUnknown, match="migrate again"):
            tillroll.migrate(url, writing="append")
        tillroll.migrate(url, writing="append")
        used(url)


@pytest.mark.parametrize("at", [1, 2])
def test_a_statement_of_a_step_that_fails(postgres_url: str, at: int):
    """An error in the middle takes back that step whole, and those before it stay."""
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute(
            "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no luck'; END $$"
        )
        tag = "CREATE VIEW" if at == 1 else "CREATE TRIGGER"
        other.execute(
            f"CREATE EVENT TRIGGER fail ON ddl_command_end WHEN TAG IN ('{tag}') "
            f"EXECUTE FUNCTION fail()".encode()
        )
        with pytest.raises(tillroll.StoreUnavailable, match="no luck"):
            tillroll.migrate(postgres_url)
        other.execute("DROP EVENT TRIGGER fail")
    steps = tillroll.migrate(postgres_url, plan=True).steps
    assert [step.number for step in steps] == [
        step.number for step in migrations("postgres") if step.number >= at
    ]
    used(postgres_url)


def test_a_runner_that_waits_too_long_says_so(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tillroll.stores.postgres.MIGRATE_LOCK_SECONDS", 0.2)
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (0x7_1110_7011,))
        with pytest.raises(tillroll.StoreBusy, match="another process is migrating"):
            tillroll.migrate(postgres_url)
    used(postgres_url)


# ---------------------------------------------------------------- beside work, without rights


def test_many_at_once(url: str):
    threads = [threading.Thread(target=tillroll.migrate, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert tillroll.migrate(url, plan=True).steps == ()
    used(url)


def test_without_the_right_to_make_tables(
    postgres: Cluster, postgres_database: str, postgres_role: str
):
    url = postgres.url(postgres_database)
    mine = url.replace("postgres@", f"{postgres_role}@", 1)
    postgres.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database=postgres_database)
    with pytest.raises(tillroll.SchemaMismatch, match="tillroll migrate"):
        tillroll.open(mine)
    tillroll.migrate(url, role=postgres_role)
    used(mine)
    with closing(open_store(mine, create=False)) as store:
        assert store.check() == []


def test_an_index_for_a_ledger_in_use_is_not_built_through_a_pooler(
    postgres: Cluster, pgbouncer: PgBouncer
):
    """It takes a session of its own. A new ledger has nobody to keep waiting, and needs none."""
    database = postgres.create_database()
    used(pgbouncer.url(database))
    for sql in (
        "DROP INDEX tillroll_deliveries_place",
        "DELETE FROM tillroll_migrations WHERE name = '0006_due.sql'",
    ):
        postgres.run(sql, database=database)
    with pytest.raises(tillroll.StoreUnavailable, match="past the pooler") as caught:
        tillroll.open(pgbouncer.url(database))
    assert caught.value.written == "nothing"
    used(postgres.url(database))
    used(pgbouncer.url(database))
    there = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    assert postgres.run(there, "tillroll_deliveries_place", database=database) == [(True,)]


def test_tables_that_are_not_there(postgres_url: str):
    with pytest.raises(tillroll.SchemaMismatch, match="tillroll migrate"):
        open_store(postgres_url, create=False)
    assert tables(postgres_url) == []
