"""Tampering with a SQLite file, column by column and row by row: verify finds every one."""

import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import apsw
import pytest

import tillroll
from tillroll.ledger import chain
from tillroll.ledger.pricing import Price, Rate
from tillroll.ledger.types import Entry

TABLES = {
    "tillroll_accounts": (
        "account_id",
        "project",
        "account",
        "seq",
        "head",
        "at",
        "next_due_at",
        "least",
        "state",
    ),
    "tillroll_entries": (
        "account_id",
        "seq",
        "request_id",
        "ref",
        "kind",
        "recorded_at",
        "effective_at",
        "body",
        "hash",
        "metadata",
    ),
    # What a refusal says is outside the chain, since it moves nothing: only its place is checked.
    "tillroll_refusals": ("request_id", "account_id", "project", "account", "recorded_at"),
    "tillroll_price_versions": ("number", "digest", "author", "reason", "applied_at", "body"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with something of everything in it."""
    path = tmp_path_factory.mktemp("chain") / "a.db"
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ledger = tillroll.open(path, clock=lambda: now)
    price = Price(operation="image", rates={"images": Rate(units=Decimal(2))})
    ledger.apply_prices([price], author="ann", reason="first")
    for name in ("acme", "zoe"):
        ledger.grant(name, 100, request_id="g", metadata={"order": 17}, expires_in="90d")
        ledger.hold(name, units=10, request_id="h")
        ledger.settle(name, "h", units=4, request_id="s")
        ledger.consume(name, "image", meters={"images": 2}, request_id="c", tags={"member": "a"})
        ledger.refund(name, "c", units=1, request_id="r")
        ledger.hold(name, units=5, request_id="h2")
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume(name, units=1000, request_id="no")
        now += timedelta(minutes=20)
        ledger.consume(name, units=1, request_id="c2")
    assert ledger.verify().ok
    ledger.close()
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copy(original, tmp_path / "b.db"))


def spoil(path: Path, *statements: str) -> None:
    """Change a file as somebody would who may do anything to it."""
    connection = apsw.Connection(str(path))
    for (name,) in list(connection.execute("SELECT name FROM sqlite_schema WHERE type='trigger'")):
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def found_in(path: Path) -> list[dict[str, object]]:
    with tillroll.open(path) as ledger:
        return ledger.verify().problems


CHANGED = (
    "CASE typeof({0}) WHEN 'integer' THEN {0} + 1 WHEN 'blob' THEN "
    "zeroblob(length({0})) WHEN 'null' THEN 'x' ELSE 'x' || substr({0}, 2) END"
)


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table in TABLES for column in TABLES[table]]
)
def test_every_column_is_covered(path: Path, table: str, column: str):
    connection = apsw.Connection(str(path))
    key = "rowid" if table == "tillroll_entries" else column
    rows = [row[0] for row in connection.execute(f"SELECT {key} FROM {table}")]  # noqa: S608
    connection.close()
    for nth in range(len(rows)):
        copy = Path(shutil.copy(path, path.with_name(f"{nth}.db")))
        changed = CHANGED.format(column)
        where = f"(SELECT {key} FROM {table} LIMIT 1 OFFSET {nth})"  # noqa: S608
        try:
            update = f"UPDATE {table} SET {column} = {changed}"  # noqa: S608
            spoil(copy, f"{update} WHERE {key} = {where}")
        except apsw.ConstraintError:
            continue  # the database itself says no
        assert found_in(copy), f"row {nth} of {table}: {column} was changed and nobody noticed"


def test_a_changed_body_with_a_fitting_hash_is_found(path: Path):
    connection = apsw.Connection(str(path))
    owner, body = connection.execute(
        "SELECT account_id, body FROM tillroll_entries WHERE seq = 1"
    ).fetchone()
    connection.close()
    forged = body.replace('"units":100000000', '"units":900000000')
    assert forged != body
    digest = chain.link(b"", owner, forged.encode()).hex()
    spoil(
        path,
        f"UPDATE tillroll_entries SET body = '{forged}', hash = x'{digest}' "  # noqa: S608
        f"WHERE seq = 1 AND account_id = x'{owner.hex()}'",
    )
    assert any("hash" in str(item["problem"]) or item["seq"] for item in found_in(path))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tillroll_entries WHERE rowid = (SELECT max(rowid) FROM tillroll_entries)",
        "DELETE FROM tillroll_entries WHERE rowid = (SELECT min(rowid) FROM tillroll_entries)",
        "DELETE FROM tillroll_entries WHERE seq = 3",
        "DELETE FROM tillroll_entries",
        "DELETE FROM tillroll_accounts WHERE account = 'acme'",
        "DELETE FROM tillroll_accounts",
        "UPDATE tillroll_entries SET metadata = '{}' WHERE kind = 'grant'",
        "UPDATE tillroll_entries SET body = '{' WHERE seq = 2",
        "UPDATE tillroll_accounts SET state = '{' WHERE account = 'acme'",
        "UPDATE tillroll_refusals SET body = '{'",
        "UPDATE tillroll_price_versions SET body = '{'",
    ],
)
def test_removing_and_breaking_rows_is_found(path: Path, statement: str):
    spoil(path, statement)
    assert found_in(path)


def test_swapped_rows_are_found(path: Path):
    spoil(
        path,
        "UPDATE tillroll_entries SET seq = -2 WHERE seq = 2",
        "UPDATE tillroll_entries SET seq = 2 WHERE seq = 3",
        "UPDATE tillroll_entries SET seq = 3 WHERE seq = -2",
    )
    problems = found_in(path)
    assert {item["account"] for item in problems} == {"acme", "zoe"}


def test_swapped_bodies_are_found(path: Path):
    spoil(
        path,
        "CREATE TEMP TABLE t AS SELECT account_id, seq, body, hash FROM tillroll_entries",
        "UPDATE tillroll_entries SET (body, hash) = (SELECT t.body, t.hash FROM t WHERE "
        "t.account_id = tillroll_entries.account_id AND t.seq = 5 - tillroll_entries.seq) "
        "WHERE seq IN (2, 3)",
    )
    assert found_in(path)


def test_a_history_passed_off_as_another_accounts_is_found(path: Path):
    spoil(
        path,
        "UPDATE tillroll_accounts SET account = 'x' || account",
    )
    assert found_in(path)


def test_what_is_stored_cannot_be_changed_by_plain_sql(path: Path):
    connection = apsw.Connection(str(path))
    for statement in (
        "DELETE FROM tillroll_entries",
        "UPDATE tillroll_entries SET body = '{}'",
        "UPDATE tillroll_price_versions SET reason = 'x'",
    ):
        with pytest.raises(apsw.ConstraintError):
            connection.execute(statement)
    connection.close()
    assert not found_in(path)


def test_erased_metadata_is_no_problem(path: Path):
    spoil(path, "UPDATE tillroll_entries SET metadata = NULL")
    assert not found_in(path)


def test_lengths_are_part_of_the_hash():
    owner = bytes(16)
    one = chain.link(chain.link(b"", owner, b"ab"), owner, b"c")
    other = chain.link(chain.link(b"", owner, b"a"), owner, b"bc")
    assert one != other
    assert chain.link(b"", owner, b"a") != chain.link(b"", bytes(15) + b"1", b"a")


def test_equal_texts_are_encoded_alike():
    def made(text: str) -> str:
        return "".join(list(text))

    def entry(wallet: str) -> Entry:
        return Entry(seq=1, kind="grant", at=1, effective_at=1, wallet=wallet)

    ledger = tillroll.open("memory://")
    one = ledger._verbs.grant("a", 5, wallet="credits", category="paid")
    other = ledger._verbs.grant("a", 5, wallet=made("credits"), category=made("paid"))
    assert one.fingerprint == other.fingerprint
    ledger.configure("a", time_zone=made("UTC"))
    ledger.grant("a", 5, wallet=made("credits"))
    ledger.hold("a", units=2, request_id="h")
    ledger.mark_in_doubt("a", "h", at_deadline=made("release"))
    ledger.set_budget("a", "b", 5, period=made("month"), wallet=made("credits"))
    ledger.set_recurring(
        "a", "p", 5, every=made("month"), category=made("plan"), anchor="2026-01-01"
    )
    assert ledger.verify().ok
    assert chain.decode_entry(chain.encode(entry("gpu"))) == entry("gpu")
