"""What the fault tests share: a ledger on a chosen disk and clock, and a look at all it stores."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.ledger.types import HOUR
from tillroll.stores.base import Store
from tillroll.stores.sqlite import SqliteStore
from tillroll.testing.faulty_vfs import FaultyDisk

START = 1_700_000_000_000_000
HELD_UNTIL = START + 48 * HOUR  # by then every hold of these tests has ended
TABLES = ("tillroll_accounts", "tillroll_entries", "tillroll_refusals", "tillroll_price_versions")

Dump = dict[str, list[tuple[object, ...]]]


def ledger_on(store: Store, *, at: int = START) -> Ledger:
    """Return a ledger whose clock stands still, so that equal requests make equal bytes."""
    return Ledger(Engine(store, clock=lambda: at))


@contextmanager
def faulty_ledger(path: Path, disk: FaultyDisk, *, at: int = START) -> Iterator[Ledger]:
    store = SqliteStore(path, vfs=disk.name, busy_seconds=1)
    ledger = ledger_on(store, at=at)
    try:
        yield ledger
    finally:
        disk.heal()
        ledger.close()


def dump(path: Path) -> Dump:
    """Return all rows of the ledger's tables, as another process would find them."""
    connection = apsw.Connection(str(path))
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return {
            table: list(connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"))  # noqa: S608
            for table in TABLES
        }
    finally:
        connection.close()


def crash(path: Path, folder: Path) -> Path:
    """Return a copy of the database as it lies on the disk now, as if its users had died.

    Without the index of the log: it is in the memory of who is dead.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in path.parent.glob(path.name + "*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, folder / file.name)
    return folder / path.name


def prepared(path: Path) -> Path:
    """Make a ledger with some history: grants, a charge, an open hold, a refusal."""
    ledger = ledger_on(SqliteStore(path))
    ledger.grant("acme", 1_000, request_id="g1")
    ledger.grant("acme", 50, request_id="g2", expires_at="2023-12-01T00:00:00Z")
    ledger.consume("acme", units=10, request_id="c0")
    ledger.hold("acme", units=100, request_id="h0", expires_in="24h")
    ledger.close()
    return path
