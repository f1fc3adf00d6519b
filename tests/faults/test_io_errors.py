"""Every write, sync, truncate, open and delete beneath one request errs, each in its turn.

As SQLite's own tests do: fail the first call, then the second, and so on until none is left to
fail. After each, three copies are looked at: what another process sees, what a crash leaves, and
what a power cut leaves at worst.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

import tillroll
from tests.faults.rig import START, Dump, crash, dump, faulty_ledger, ledger_on, prepared
from tillroll.embedded import Ledger
from tillroll.stores.sqlite import SqliteStore
from tillroll.testing.faulty_vfs import FaultyDisk

Act = Callable[[Ledger], object]
ACTS: dict[str, Act] = {
    "consume": lambda ledger: ledger.consume("acme", units=7, request_id="act"),
    "hold": lambda ledger: ledger.hold("acme", units=30, request_id="act"),
    "settle": lambda ledger: ledger.settle("acme", "h0", units=60, request_id="act"),
    "grant of a new account": lambda ledger: ledger.grant("new", 5, request_id="act"),
}
POINTS_MAX = 200


class Fault(NamedTuple):
    error: Literal["io", "full"]
    times: int | None  # None: the disk stays broken until the caller was told
    lost: bool  # the pages of a failed sync never reach the disk
    checkpoint: bool  # each commit also copies the log into the file


FAULTS = [
    Fault("io", times=1, lost=True, checkpoint=False),
    Fault("io", times=1, lost=False, checkpoint=False),
    Fault("io", times=None, lost=True, checkpoint=False),
    Fault("io", times=None, lost=False, checkpoint=True),
    Fault("io", times=1, lost=True, checkpoint=True),
    Fault("io", times=2, lost=True, checkpoint=False),
    Fault("full", times=1, lost=False, checkpoint=False),
    Fault("full", times=None, lost=False, checkpoint=True),
]


class Case(NamedTuple):
    """One act on one prepared ledger; `before` and `after` are all that may be found."""

    path: Path
    act: Act
    before: Dump
    after: Dump


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("template") / "credits.db")


@pytest.fixture(params=ACTS)
def case(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Case:
    act = ACTS[request.param]
    whole = tmp_path / "whole.db"
    shutil.copy(template, whole)
    with ledger_on(SqliteStore(whole)) as ledger:
        act(ledger)
    path = tmp_path / "credits.db"
    shutil.copy(template, path)
    return Case(path, act, dump(template), dump(whole))


def every_point(case: Case, template: Path, fault: Fault) -> Iterator[tuple[Ledger, FaultyDisk]]:
    """Yield an untouched ledger with the first call about to fail, then the second, and so on."""
    for point in range(1, POINTS_MAX):
        for leftover in case.path.parent.glob("credits.db*"):
            leftover.unlink()
        shutil.copy(template, case.path)
        with FaultyDisk(lost_by_failed_sync=fault.lost) as disk:
            with faulty_ledger(case.path, disk) as ledger:
                if fault.checkpoint:
                    assert isinstance(ledger.store, SqliteStore)
                    ledger.store._checkpoint_pages = 1
                disk.fail(point, error=fault.error, times=fault.times)
                yield ledger, disk
            if not disk.struck:
                return
    pytest.fail("it never ran to its end without meeting the fault")


def said(case: Case, ledger: Ledger) -> str:
    """Do the act; return what the caller was told about it."""
    try:
        case.act(ledger)
    except tillroll.StoreError as error:
        assert error.request_id == "act"  # noqa: PT017 - told as one of three
        return error.written
    return "whole"


def check(case: Case, told: str, found: Dump) -> None:
    assert found in (case.before, case.after), "written in part"
    if told == "whole":
        assert found == case.after, "acknowledged and lost"
    if told == "nothing":
        assert found == case.before, "told that nothing was written, and it is there"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_each_failure_leaves_all_or_nothing_and_is_told_truly(
    case: Case, template: Path, fault: Fault, tmp_path: Path
):
    told = []
    for ledger, disk in every_point(case, template, fault):
        told.append(said(case, ledger))
        disk.heal()
        cut = tmp_path / f"cut{len(told)}"
        disk.cut_power(cut)
        copies = [crash(case.path, tmp_path / "crashed"), cut / "credits.db"]
        check(case, told[-1], dump(case.path))
        for copy in copies:
            check(case, told[-1], dump(copy))
            ask_again(case, ledger_on(SqliteStore(copy)), copy)
        ask_again(case, ledger, case.path)
    assert told[-1] == "whole", "the last run met no fault"
    assert set(told) > {"whole"}, "no fault reached the caller"


def ask_again(case: Case, ledger: Ledger, path: Path) -> None:
    """The same request once more, twice: one effect, whatever became of the first."""
    case.act(ledger)
    receipt = case.act(ledger)
    assert getattr(receipt, "replayed", False)
    assert dump(path) == case.after
    assert ledger.verify().ok
    assert ledger.store.check() == []
    if ledger.store.url != f"sqlite:///{case.path}":
        ledger.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_at_any_call_loses_nothing_acknowledged(
    case: Case, template: Path, tmp_path: Path, seed: int
):
    """No error at all, only the light goes out: at every call, with chance deciding what stays."""
    rng = random.Random(seed)  # noqa: S311 - a test's dice
    shutil.copy(template, case.path)
    cuts: list[tuple[Path, bool]] = []
    with FaultyDisk() as disk, faulty_ledger(case.path, disk) as ledger:
        disk.before_call = lambda: cut(acknowledged=False)

        def cut(*, acknowledged: bool) -> None:
            folder = tmp_path / f"cut{len(cuts)}"
            disk.cut_power(folder, rng if seed else None)
            cuts.append((folder / "credits.db", acknowledged))

        case.act(ledger)
        disk.before_call = None
        cut(acknowledged=True)
    assert len(cuts) > 2
    for copy, acknowledged in cuts:
        check(case, "whole" if acknowledged else "unknown", dump(copy))
        ask_again(case, ledger_on(SqliteStore(copy)), copy)


@pytest.mark.parametrize(("synchronous", "found"), [("FULL", "after"), ("OFF", "before")])
def test_the_disk_does_forget_what_was_not_synced(
    case: Case, template: Path, tmp_path: Path, synchronous: str, found: str
):
    """The control: without syncs the same power cut loses the acknowledged write."""
    shutil.copy(template, case.path)
    with FaultyDisk() as disk, faulty_ledger(case.path, disk) as ledger:
        assert isinstance(ledger.store, SqliteStore)
        assert ledger.store._writer is not None
        ledger.store._writer.execute(f"PRAGMA synchronous = {synchronous}")
        case.act(ledger)
        disk.cut_power(tmp_path / "cut")
    assert dump(tmp_path / "cut" / "credits.db") == getattr(case, found)


def test_all_settings_are_in_force(template: Path):
    with ledger_on(SqliteStore(template)) as ledger:
        assert isinstance(ledger.store, SqliteStore)
        assert ledger.store._writer is not None
        pragma = ledger.store._writer.pragma
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "mmap_size")
        assert [pragma(name) for name in names] == ["wal", 2, 1, 0, 0]


def test_a_file_cut_off_while_it_is_made_is_made_anew(tmp_path: Path):
    path = tmp_path / "credits.db"
    refused = 0
    for point in range(1, POINTS_MAX):
        for leftover in tmp_path.glob("credits.db*"):
            leftover.unlink()
        with FaultyDisk() as disk:
            disk.fail(point)
            try:
                SqliteStore(path, vfs=disk.name).close()
            except tillroll.StoreUnavailable as error:
                refused += 1
                assert "nothing was written" in str(error)  # noqa: PT017 - many points, one test
            struck = disk.struck
            disk.heal()
            disk.cut_power(tmp_path / f"cut{point}")
        for copy in (path, tmp_path / f"cut{point}" / "credits.db"):
            with ledger_on(SqliteStore(copy), at=START) as ledger:
                ledger.grant("acme", 5, request_id="g")
                assert ledger.balance("acme").spendable == 5
                assert ledger.verify().ok
        if not struck:
            break
    assert refused > 10
