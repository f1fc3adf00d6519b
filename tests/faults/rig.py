"""What the fault tests share: a ledger on a chosen disk and clock, and a look at all it stores."""

import ctypes
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

import tillroll
from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.ledger.chain import encode_state
from tillroll.ledger.types import HOUR
from tillroll.stores.base import Store
from tillroll.stores.sqlite import SqliteStore
from tillroll.stores.sqlite_rows import SqliteReader
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
        rows: Dump = {
            table: list(connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"))  # noqa: S608
            for table in TABLES
        }
        names = [(row[0], row[2]) for row in rows["tillroll_accounts"]]
        found = SqliteReader(connection).accounts(names)  # rows, and entries on top
        rows["tillroll_accounts"] = [(a.head, encode_state(a)) for a in found.values()]
        return rows
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


class Wrapped:
    """A store that passes everything on to another one; subclasses step in between."""

    def __init__(self, inner: SqliteStore) -> None:
        self.inner = inner
        self.url, self.scale, self.secret = inner.url, inner.scale, inner.secret

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Gate(Wrapped):
    """A store that does what it was told to before it begins its next batches."""

    def __init__(self, inner: SqliteStore) -> None:
        super().__init__(inner)
        self.before: deque[Callable[[], object]] = deque()
        self.batches = 0

    @contextmanager
    def write(self) -> Iterator[object]:
        if self.before:
            self.before.popleft()()
        self.batches += 1
        with self.inner.write() as tx:
            yield tx


def nothing() -> None:
    """Do nothing."""


def all_at_once(
    ledger: Ledger,
    gate: Gate,
    acts: Sequence[Callable[[], object]],
    then: Callable[[], object] = nothing,
) -> list[object]:
    """Do all acts in one batch; return what each gave or raised, in order.

    One act more, a grant, is stopped at the gate; the others queue up behind it. `then` is done
    between its batch and theirs.
    """
    outcomes: list[object] = [None] * len(acts)
    stopped, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        stopped.set()
        assert go_on.wait(60)

    def do(number: int, act: Callable[[], object]) -> None:
        try:
            outcomes[number] = act()
        except tillroll.TillrollError as error:
            outcomes[number] = error

    gate.before = deque([stop, then])
    first = threading.Thread(target=ledger.grant, args=("gate", 1))
    first.start()
    assert stopped.wait(60)
    threads = [threading.Thread(target=do, args=pair) for pair in enumerate(acts)]
    for thread in threads:
        thread.start()
    until(lambda: len(ledger._engine._queue) == len(acts))
    go_on.set()
    for thread in (first, *threads):
        join(thread)
    return outcomes


def until(condition: Callable[[], bool]) -> None:
    """Wait for other threads to get there; give up after 30 seconds."""
    for _ in range(30_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to that")


def join(thread: threading.Thread) -> None:
    """Wait for a thread's end; a minute means that it is stuck."""
    thread.join(60)
    assert not thread.is_alive(), "a caller is stuck"


@contextmanager
def like_anyone() -> Iterator[None]:
    """Have file permissions count for this thread even if it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low halves first
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0
