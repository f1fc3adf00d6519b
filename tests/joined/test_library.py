"""A ledger that runs on Python's own sqlite3 keeps the same promises."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import tillroll
from tests.joined.conftest import opened
from tillroll.stores import sqlite_library
from tillroll.stores.base import migrations
from tillroll.stores.sqlite import SqliteStore
from tillroll.testing import conformance


@pytest.mark.parametrize("item", conformance.CHECKS, ids=lambda item: item.__name__)
def test_promise(item: conformance.Check, tmp_path: Path):
    url = f"sqlite:///{tmp_path}/check.db"
    report = conformance.run(lambda clock: opened(url, clock=clock), only=item.__name__)
    assert report.ok, str(report)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file whose name means something in a URL."""
    yield tmp_path / "a b?mode=ro#%41.db"
    assert all(found.name.startswith("a b?mode=ro#%41.db") for found in tmp_path.iterdir())


def test_the_file_is_the_one_that_was_named(path: Path):
    with tillroll.open(path, library="sqlite3") as ledger:
        ledger.grant("acme", 10)
    assert path.exists()
    with tillroll.open(path) as ledger:  # the other copy, once this one has let go
        assert ledger.balance("acme").available == 10
        assert ledger.verify().ok


def test_where_there_is_none_to_open(path: Path):
    with pytest.raises(tillroll.StoreUnavailable, match="cannot be opened"):
        SqliteStore(path, create=False, library="sqlite3")
    path.touch()
    with pytest.raises(tillroll.StoreUnavailable, match="has no ledger"):
        SqliteStore(path, create=False, library="sqlite3")
    assert path.read_bytes() == b""
    path.unlink()
    with pytest.raises(tillroll.StoreUnavailable, match="cannot be opened"):
        SqliteStore(path / "below.db", library="sqlite3")
    with pytest.raises(tillroll.InvalidInput, match="VFS"):
        SqliteStore(path, vfs="faulty", library="sqlite3")


def test_a_file_that_is_no_database(path: Path):
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(tillroll.StoreCorrupt):
        SqliteStore(path, library="sqlite3")


def test_its_settings_are_in_force(path: Path):
    store = SqliteStore(path, library="sqlite3")
    with store.write() as writer:
        ask = writer.connection.execute
        names = ("journal_mode", "synchronous", "foreign_keys", "mmap_size", "trusted_schema")
        found = [ask(f"PRAGMA {name}").get for name in names]
    assert found == ["wal", 2, 1, 0, 0]
    store.close()


def test_a_ledger_of_a_forked_child(path: Path):
    with tillroll.open(path, library="sqlite3") as ledger:
        ledger.grant("acme", 10)
        child = os.fork()
        if child == 0:
            try:
                ledger.consume("acme", units=1)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert ledger.consume("acme", units=1).available == 8


def test_a_script_is_split_as_sqlite_reads_it():
    script = "".join(step.sql for step in migrations("sqlite"))
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    whole = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY 1").fetchall()
    connection.close()
    parts = sqlite_library.LibraryConnection(sqlite3.connect(":memory:", isolation_level=None))
    parts.execute(script + "-- a last remark; and no more")
    assert parts.execute("SELECT name, sql FROM sqlite_schema ORDER BY 1").fetchall() == whole
    assert parts.execute("SELECT 1; SELECT 2").get == 2
    parts.close()
