"""Full disks, permissions, locks and damage: each gives its own error, and never a wrong answer."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import apsw
import pytest

import tillroll
from tests.faults.rig import (
    Gate,
    all_at_once,
    crash,
    dump,
    faulty_ledger,
    ledger_on,
    like_anyone,
    prepared,
)
from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.ledger.receipts import Receipt
from tillroll.stores.sqlite import SqliteStore
from tillroll.testing.faulty_vfs import FaultyDisk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return prepared(tmp_path / "credits.db")


def says_nothing(error: BaseException) -> None:
    assert isinstance(error, tillroll.StoreUnavailable)
    assert error.written == "nothing"
    assert "nothing was written" in str(error)


def fill(ledger: Ledger) -> tuple[int, tillroll.TillrollError]:
    """Consume one unit at a time until that errs; return how many went well, and the error."""
    for number in range(100_000):
        try:
            ledger.consume("acme", units=1, request_id=f"fill{number}")
        except tillroll.TillrollError as error:
            return number, error
    raise AssertionError("the disk never got full")


# --- full ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs Linux and root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path):
    ledger = ledger_on(SqliteStore(small_disk / "credits.db"))
    ledger.grant("acme", 10_000, request_id="g")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    written, error = fill(ledger)
    assert isinstance(error, tillroll.StoreFull)
    says_nothing(error)
    assert ledger.balance("acme").spendable == 10_000 - written
    with pytest.raises(tillroll.StoreFull):
        ledger.consume("acme", units=1, request_id=f"fill{written}")
    ballast.unlink()
    assert not ledger.consume("acme", units=1, request_id=f"fill{written}").replayed
    assert ledger.consume("acme", units=1, request_id="fill0").replayed
    assert ledger.balance("acme").spendable == 10_000 - written - 1
    assert ledger.verify().ok
    assert ledger.store.check() == []
    ledger.close()


def test_a_disk_that_is_full_for_all_of_a_batch_and_for_a_while(path: Path, tmp_path: Path):
    with FaultyDisk() as disk:
        gate = Gate(SqliteStore(path, vfs=disk.name))
        ledger = Ledger(Engine(gate))
        acts = [partial(ledger.consume, "acme", units=1, request_id=f"c{n}") for n in range(1, 9)]
        full = partial(disk.fail, kinds=["write", "truncate"], error="full", times=None)
        told = all_at_once(ledger, gate, acts, full)
        assert {type(error) for error in told} == {tillroll.StoreFull}
        assert len(dump(crash(path, tmp_path / "crashed"))["tillroll_entries"]) == 5
        disk.heal()
        again = [act() for act in acts]
        assert not any(receipt.replayed for receipt in again)
        assert ledger.verify().ok
        ledger.close()


def test_a_file_that_may_not_grow_goes_on_when_it_may(path: Path):
    """RLIMIT_FSIZE: the system refuses with EFBIG, for which SQLite has no error of its own."""
    ledger = ledger_on(SqliteStore(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        written, error = fill(ledger)
        spendable = ledger.balance("acme").spendable
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert isinstance(error, tillroll.StoreError)
    assert spendable == 940 - written
    ledger.consume("acme", units=1, request_id=f"fill{written}")
    assert ledger.balance("acme").spendable == 940 - written - 1
    assert ledger.verify().ok
    ledger.close()


# --- permissions --------------------------------------------------------------------------------


def test_a_read_only_file_can_be_read(path: Path):
    path.chmod(0o444)
    with like_anyone(), ledger_on(SqliteStore(path)) as ledger:
        assert ledger.balance("acme").spendable == 940
        assert ledger.verify().ok
        with pytest.raises(tillroll.StoreReadOnly) as caught:
            ledger.consume("acme", units=1)
        says_nothing(caught.value)
        with pytest.raises(tillroll.StoreReadOnly):
            ledger.prune_refusals()
        assert ledger.balance("acme").spendable == 940


@pytest.mark.parametrize("file_mode", [0o444, 0o644])
def test_a_read_only_folder_is_told(path: Path, file_mode: int):
    path.chmod(file_mode)
    path.parent.chmod(0o555)
    try:
        with like_anyone():
            with pytest.raises(tillroll.StoreReadOnly, match="and of its folder") as caught:
                SqliteStore(path)
            with pytest.raises(tillroll.StoreUnavailable, match="cannot be opened") as other:
                SqliteStore(path.with_name("new.db"))
    finally:
        path.parent.chmod(0o755)
    says_nothing(caught.value)
    says_nothing(other.value)


def test_no_permission_no_folder_no_file(path: Path, tmp_path: Path):
    path.chmod(0)
    with like_anyone(), pytest.raises(tillroll.StoreUnavailable) as caught:
        SqliteStore(path)
    says_nothing(caught.value)
    for wrong, what in ((tmp_path / "none" / "credits.db", "check folder"), (tmp_path, "a folder")):
        with pytest.raises(tillroll.StoreUnavailable, match=what) as caught:
            SqliteStore(wrong)
        says_nothing(caught.value)
    with pytest.raises(tillroll.StoreUnavailable, match="cannot be opened"):
        SqliteStore(tmp_path / "none.db", create=False)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(tillroll.StoreUnavailable, match="has no ledger") as caught:
        tillroll.open(tmp_path / "empty.db", create=False)
    says_nothing(caught.value)
    assert (tmp_path / "empty.db").read_bytes() == b"", "not even a setting"


# --- locked -------------------------------------------------------------------------------------


@pytest.fixture
def locker(path: Path) -> Iterator[Callable[[], None]]:
    """Have another process hold the write lock; return how to make it let go."""
    code = """
        import apsw, sys
        connection = apsw.Connection(sys.argv[1])
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.readline()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"

        def let_go() -> None:
            process.communicate("\n")

        yield let_go
        if process.poll() is None:
            let_go()


def test_a_locked_file_is_busy_and_can_be_read(path: Path, locker: Callable[[], None]):
    with ledger_on(SqliteStore(path, busy_seconds=0.05)) as ledger:
        with pytest.raises(tillroll.StoreBusy, match="locked by another process") as caught:
            ledger.consume("acme", units=1, request_id="busy")
        says_nothing(caught.value)
        assert ledger.balance("acme").spendable == 940
        locker()
        assert not ledger.consume("acme", units=1, request_id="busy").replayed
        assert ledger.balance("acme").spendable == 939


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [os.urandom(20_000), b"account,credits\nacme,12\n" * 100, b"SQLite format 3\0" + bytes(5_000)],
    ids=["noise", "text", "head only"],
)
def test_what_is_no_database_is_told_and_left_alone(tmp_path: Path, data: bytes):
    path = tmp_path / "credits.db"
    path.write_bytes(data)
    with pytest.raises(tillroll.StoreCorrupt, match="not a healthy database") as caught:
        SqliteStore(path)
    says_nothing(caught.value)
    assert path.read_bytes() == data


def test_a_file_cut_short_is_corrupt(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(tillroll.StoreCorrupt) as caught:
        ledger_on(SqliteStore(path)).consume("acme", units=1)
    says_nothing(caught.value)


def test_each_page_flipped_is_found_out(path: Path, tmp_path: Path):
    """Whichever page is damaged: an error of ours, or verify and check say what is wrong."""
    data = path.read_bytes()
    pages = len(data) // 4096
    assert pages > 10
    for page in range(pages):
        first, last = max(page * 4096, 100), (page + 1) * 4096
        flipped = bytes(byte ^ 0xFF for byte in data[first:last])
        damaged = tmp_path / f"{page}.db"
        damaged.write_bytes(data[:first] + flipped + data[last:])
        findings: list[object] = []
        try:
            with ledger_on(SqliteStore(damaged)) as ledger:
                findings += ledger.store.check()
                findings += ledger.verify().problems
        except tillroll.StoreUnavailable as error:
            says_nothing(error)
            findings.append(error)
        assert findings, f"page {page} is damaged, and nobody noticed"


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        ("UPDATE tillroll_accounts SET state = '{'", tillroll.StoreCorrupt),
        (
            "UPDATE tillroll_accounts SET state = json_set(state, '$.seq', 99)",
            tillroll.StoreCorrupt,
        ),
        ("UPDATE tillroll_meta SET value = 'x' WHERE name = 'scale'", tillroll.StoreCorrupt),
        ("DELETE FROM tillroll_meta", tillroll.StoreCorrupt),
        ("INSERT INTO tillroll_meta VALUES ('needs', '99')", tillroll.SchemaMismatch),
        ("UPDATE tillroll_migrations SET checksum = 'x'", tillroll.SchemaMismatch),
        ("DROP TABLE tillroll_migrations", tillroll.SchemaMismatch),
    ],
)
def test_rows_that_make_no_sense_are_told(path: Path, harm: str, error: type[Exception]):
    connection = apsw.Connection(str(path))
    connection.execute(harm)
    connection.close()
    with pytest.raises(error) as caught:
        ledger_on(SqliteStore(path)).balance("acme")
    says_nothing(caught.value)


@pytest.mark.parametrize("state", ["json_set(state, '$.seq', 99)", "'{'"])
def test_one_damaged_account_does_not_sink_its_neighbours(path: Path, state: str):
    with ledger_on(SqliteStore(path)) as ledger:
        ledger.grant("beta", 10, request_id="g")
    connection = apsw.Connection(str(path))
    sql = f"UPDATE tillroll_accounts SET state = {state} WHERE account = 'acme'"  # noqa: S608
    connection.execute(sql)
    connection.close()
    gate = Gate(SqliteStore(path))
    with Ledger(Engine(gate)) as ledger:
        acts = [
            partial(ledger.consume, "acme", units=1, request_id="x"),
            partial(ledger.consume, "beta", units=1, request_id="y"),
        ]
        damaged, fine = all_at_once(ledger, gate, acts)
    assert isinstance(damaged, tillroll.StoreCorrupt)
    assert damaged.request_id == "x"
    assert isinstance(fine, Receipt)


def test_another_scale_is_refused(path: Path):
    with pytest.raises(tillroll.InvalidInput, match="has scale 6, not 2") as caught:
        SqliteStore(path, scale=2)
    assert caught.value.written == "nothing"
    with faulty_ledger(path, FaultyDisk()) as ledger:
        assert ledger.scale == 6
