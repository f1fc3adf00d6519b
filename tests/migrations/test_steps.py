"""The numbered steps: each takes a ledger that is in use further, and none makes anybody wait."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import psycopg
import pytest

import tillroll
from tests.faults.rig import join, until
from tillroll.stores.base import Migration, migrations
from tillroll.stores.postgres import apply_step, connect

FIRST = 2  # up to here a ledger is being made: nobody waits for its tables
TABLES = ("accounts", "entries", "refusals", "replays", "price_versions", "meta")
RECORD = "INSERT INTO tillroll_migrations VALUES ({}, '{}', '{}')"


# ---------------------------------------------------------------- forward, step by step


def lived_in(url: str) -> None:
    """Use a ledger for a bit of everything."""
    with tillroll.open(url) as ledger:
        ledger.apply_prices([], author="ann", reason="none yet")
        ledger.grant("acme", 100, request_id="g", metadata={"order": 17})
        ledger.hold("acme", units=20, request_id="h")
        for _ in range(2):
            ledger.consume("acme", units=5, request_id="c")
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume("acme", units=500, request_id="much")


def still_right(url: str) -> None:
    """Check that all of it is there, that it is sound, and that it goes on."""
    with tillroll.open(url) as ledger:
        assert ledger.verify().ok
        assert ledger.store.check() == []
        assert ledger.prices().current == 1
        with ledger.store.write() as tx:
            assert tx.registry_version() == 0
            tx.put_document("key", "a", "{}")
        with ledger.store.read() as reader:
            assert (reader.registry_version(), reader.documents("key")) == (1, {"a": "{}"})
        assert ledger.consume("acme", units=5, request_id="c").replayed
        with pytest.raises(tillroll.InsufficientUnits) as refused:
            ledger.consume("acme", units=500, request_id="much")
        assert refused.value.replayed
        ledger.settle("acme", "h", units=10)
        ledger.consume("acme", units=1)
        found = ledger.balance("acme")
        assert (found.available, found.held, found.used) == (84, 0, 16)
        assert ledger.explain("c")["replays"] == 2
        assert ledger.verify().ok


def columns_of(sql: str, table: str) -> list[str]:
    """Return the columns that a table has after the first step."""
    body = re.search(rf"CREATE TABLE tillroll_{table} \((.*?)\n\)", sql, re.DOTALL)
    assert body is not None
    return re.findall(r"(?m)^    ([a-z_]+) ", body[1])


@pytest.mark.parametrize("done", range(1, len(migrations("sqlite"))))
def test_sqlite_forward_from_each_step(tmp_path: Path, done: int):
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    lived_in(str(new))
    known = migrations("sqlite")
    with closing(apsw.Connection(str(old))) as connection:
        connection.execute(
            "CREATE TABLE tillroll_migrations "
            "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT"
        )
        for step in known[:done]:
            connection.execute(step.sql)
            connection.execute(RECORD.format(step.number, step.name, step.checksum))
        connection.execute("ATTACH ? AS new", (str(new),))
        for table in TABLES:
            columns = ", ".join(columns_of(known[0].sql, table))
            connection.execute(
                f"INSERT INTO tillroll_{table} ({columns}) "  # noqa: S608 - our own names
                f"SELECT {columns} FROM new.tillroll_{table}"
            )
    assert [step.number for step in tillroll.migrate(old, plan=True).steps] == [
        step.number for step in known[done:]
    ]
    tillroll.migrate(old)
    still_right(str(old))


@pytest.fixture
def two_databases(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    postgres = request.getfixturevalue("postgres")
    names = [postgres.create_database() for _ in range(2)]
    yield postgres.url(names[0]), postgres.url(names[1])
    for name in names:
        postgres.drop_database(name)


@pytest.mark.parametrize("done", range(1, len(migrations("postgres"))))
def test_postgresql_forward_from_each_step(two_databases: tuple[str, str], done: int):
    new, old = two_databases
    lived_in(new)
    known = migrations("postgres")
    with psycopg.connect(old) as connection, psycopg.connect(new) as other:
        connection.execute(
            "CREATE TABLE tillroll_migrations "
            "(number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
        )
        for step in known[:done]:
            connection.execute(step.sql.encode())
            connection.execute(RECORD.format(step.number, step.name, step.checksum).encode())
        for table in TABLES:
            columns = ", ".join(columns_of(known[0].sql, table))
            select = f"SELECT {columns} FROM tillroll_{table}"  # noqa: S608 - our own names
            rows = other.execute(select.encode()).fetchall()
            marks = ", ".join(["%s"] * len(rows[0]))
            insert = f"INSERT INTO tillroll_{table} ({columns}) VALUES ({marks})"  # noqa: S608
            with connection.cursor() as cursor:
                cursor.executemany(insert.encode(), rows)
    assert [step.number for step in tillroll.migrate(old, plan=True).steps] == [
        step.number for step in known[done:]
    ]
    tillroll.migrate(old)
    still_right(old)


# ---------------------------------------------------------------- no step takes a long lock

# What PostgreSQL does while it keeps everybody from a table, and what is done instead.
SLOW = {
    r"\bALTER COLUMN \w+ (?:SET DATA )?TYPE\b": "it rewrites the table: add a column",
    r"\bADD COLUMN\b(?:(?!;).)*\bDEFAULT\b\s+(?:\w+\(|now|current_)": (
        "a default that is computed rewrites the table: add the column, then fill it in batches"
    ),
    r"\bADD COLUMN\b(?:(?!;).)*\bGENERATED\b": "it rewrites the table",
    r"\bADD (?:CONSTRAINT \w+ )?(?:CHECK|FOREIGN KEY)\b(?:(?!NOT VALID)[^;])*;": (
        "it reads the whole table: NOT VALID, and VALIDATE in a later step"
    ),
    r"\bADD (?:CONSTRAINT \w+ )?(?:PRIMARY KEY|UNIQUE)\s*\(": "it builds an index under a lock",
    r"\bSET NOT NULL\b": "it reads the whole table: a CHECK that is NOT VALID, validated later",
    r"\bSET (?:LOGGED|UNLOGGED|TABLESPACE|ACCESS METHOD)\b": "it rewrites the table",
    r"\b(?:CLUSTER|VACUUM FULL|REINDEX|TRUNCATE|LOCK TABLE)\b": "it keeps everybody out",
    r"\bUPDATE tillroll_\w+ SET\b|\bDELETE FROM tillroll_": (
        "it locks rows for as long as it takes: fill in batches, outside of the step"
    ),
}
INDEX = re.compile(
    r"\bCREATE (?:UNIQUE )?INDEX (?P<how>CONCURRENTLY )?(?:IF NOT EXISTS )?\w+\s+ON (?P<table>\w+)"
)
MADE = re.compile(r"\bCREATE TABLE (?:IF NOT EXISTS )?(\w+)")


def faults(sql: str) -> Iterator[str]:
    """Yield why a step of PostgreSQL's may not be run on a ledger that is in use."""
    plain = re.sub(r"--.*", "", sql)
    if "CONCURRENTLY" in plain:
        yield from faults_beside(plain)
        return
    if not re.match(r"\s*SET LOCAL lock_timeout = '\d+m?s';", plain):
        yield "it begins with SET LOCAL lock_timeout, so that nobody queues behind it for long"
    made = set(MADE.findall(plain))
    for index in INDEX.finditer(plain):
        if index["table"] not in made:
            yield f"it indexes {index['table']}, which is in use: that keeps writers waiting"
    for statement in re.findall(r"[^;]*;", plain):
        touched = re.search(r"\b(?:TABLE|UPDATE|FROM)\s+(?:ONLY\s+)?(tillroll_\w+)", statement)
        if touched and touched[1] in made:
            continue
        for pattern, why in SLOW.items():
            if re.search(pattern, statement, re.IGNORECASE | re.DOTALL):
                yield f"{why}: {statement.strip()}"


def faults_beside(plain: str) -> Iterator[str]:
    """Yield why a step that runs outside a transaction may not be run, or not again."""
    dropped = set()
    for statement in filter(None, map(str.strip, plain.split(";"))):
        if drop := re.fullmatch(r"DROP INDEX CONCURRENTLY IF EXISTS (\w+)", statement):
            dropped.add(drop[1])
        elif make := re.match(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+) ON ", statement):
            if make[1] not in dropped:
                yield f"what is left of {make[1]} is dropped first: DROP INDEX CONCURRENTLY IF ..."
        else:
            yield f"it is no index, so it belongs in a step that is one transaction: {statement}"


@pytest.mark.parametrize(
    "step",
    [step for step in migrations("postgres") if step.number > FIRST] or [None],
    ids=lambda step: step.name if step else "none yet",
)
def test_no_step_takes_a_long_lock(step: Migration | None):
    if step is None:
        assert [step.number for step in migrations("postgres")] == [1, FIRST]
        return
    assert not list(faults(step.sql))


GOOD = "-- Why.\n\nSET LOCAL lock_timeout = '2s';\n"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE tillroll_notes (a int NOT NULL); CREATE INDEX a ON tillroll_notes (a);",
        "ALTER TABLE tillroll_accounts ADD COLUMN note text;",
        "ALTER TABLE tillroll_accounts ADD COLUMN note text NOT NULL DEFAULT '';",
        "ALTER TABLE tillroll_accounts ADD CONSTRAINT short CHECK (length(a) < 9) NOT VALID;",
        "CREATE TABLE tillroll_notes (a int); UPDATE tillroll_notes SET a = 1;",
    ],
)
def test_a_step_that_keeps_nobody_waiting(statement: str):
    assert not list(faults(GOOD + statement))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX a ON tillroll_entries (kind);",
        "CREATE INDEX CONCURRENTLY a ON tillroll_entries (kind);",
        "DROP INDEX CONCURRENTLY IF EXISTS a; ALTER TABLE tillroll_entries ADD COLUMN x text;",
        "CREATE TABLE tillroll_notes (a int); CREATE UNIQUE INDEX a ON tillroll_entries (kind);",
        "ALTER TABLE tillroll_entries ALTER COLUMN kind TYPE varchar(20);",
        "ALTER TABLE tillroll_entries ADD COLUMN at timestamptz DEFAULT clock_timestamp();",
        "ALTER TABLE tillroll_entries ADD COLUMN n int GENERATED ALWAYS AS (seq) STORED;",
        "ALTER TABLE tillroll_entries ADD CONSTRAINT short CHECK (length(kind) < 9);",
        "ALTER TABLE tillroll_entries ADD UNIQUE (hash);",
        "ALTER TABLE tillroll_entries ALTER COLUMN ref SET NOT NULL;",
        "UPDATE tillroll_accounts SET note = '';",
        "VACUUM FULL tillroll_accounts;",
    ],
)
def test_a_step_that_would_keep_everybody_waiting(statement: str):
    assert list(faults(GOOD + statement))


BESIDE = """\
-- Entries by kind; reports ask for it.

DROP INDEX CONCURRENTLY IF EXISTS tillroll_entries_kind;
CREATE INDEX CONCURRENTLY tillroll_entries_kind ON tillroll_entries (kind);
"""
NEXT = Migration(migrations("postgres")[-1].number + 1, "9999_kind.sql", BESIDE, "x")
KNOWN = [*migrations("postgres"), NEXT]
VALID = """
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('tillroll_entries_kind')
"""


def test_an_index_beside_the_work(postgres_url: str):
    assert not list(faults(BESIDE))
    with tillroll.open(postgres_url) as ledger, psycopg.connect(postgres_url) as asking:
        asking.autocommit = True
        ledger.grant("acme", 100_000)
        connection = connect(postgres_url, "here")
        done = threading.Event()

        def charge() -> None:
            while not done.is_set():
                ledger.consume("acme", units=1)

        thread = threading.Thread(target=charge)
        thread.start()
        apply_step(connection, KNOWN, NEXT, None)
        apply_step(connection, KNOWN, NEXT, None)  # it is there: nothing to do
        done.set()
        join(thread)
        connection.close()
        assert asking.execute(VALID.encode()).fetchall() == [(True,)]
        assert ledger.verify().ok
    assert asking.closed


def test_an_index_that_was_cut_off_is_built_anew(postgres_url: str):
    with tillroll.open(postgres_url) as ledger:
        ledger.grant("acme", 1)
    with (
        psycopg.connect(postgres_url) as other,
        psycopg.connect(postgres_url, autocommit=True) as asking,
    ):
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1 FROM tillroll_entries")  # and it stays open
        connection = connect(postgres_url, "here")
        errors: list[psycopg.Error] = []

        def build() -> None:
            try:
                apply_step(connection, KNOWN, NEXT, None)
            except psycopg.Error as error:
                errors.append(error)

        thread = threading.Thread(target=build)
        thread.start()
        until(lambda: asking.execute(VALID.encode()).fetchall() == [(False,)])
        asking.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        join(thread)
        assert errors
        other.rollback()
        assert asking.execute(VALID.encode()).fetchall() == [(False,)]
        connection = connect(postgres_url, "here")
        apply_step(connection, KNOWN, NEXT, None)
        connection.close()
        assert asking.execute(VALID.encode()).fetchall() == [(True,)]


def test_a_step_without_a_limit_on_waiting():
    assert list(faults("CREATE TABLE tillroll_notes (a int);"))
