"""kill -9 in a loop: what was acknowledged is there, once; what was not can be asked for again."""

import random
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

import tillroll
from tests.faults import worker
from tests.faults.rig import dump, until

CYCLES = 25
CYCLES_SOAK = 1_000
CYCLES_A_FILE = 25  # then a new ledger, so that verifying stays short
LATER = datetime(2100, 1, 1, tzinfo=UTC)


class Run:
    """One ledger file that workers are killed over, and what they said outside of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "credits.db"
        self.acks = folder / "acks"
        self.acks.touch()
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - when to kill
        self.rounds = 0
        with tillroll.open(self.path) as ledger:
            for number in range(worker.ACCOUNTS):
                ledger.grant(f"a{number}", worker.GRANT, request_id=f"g{number}")

    def start(self, threads: int = 3) -> subprocess.Popen[bytes]:
        self.rounds += 1
        arguments = (self.path, self.acks, f"r{self.rounds}", threads)
        command = [sys.executable, worker.__file__, *map(str, arguments)]
        return subprocess.Popen(command)

    def said(self, mark: str) -> Counter[tuple[str, str, str]]:
        lines = (line.split() for line in self.acks.read_text().splitlines())
        return Counter((account, kind, name) for m, account, kind, name in lines if m == mark)

    def kill_soon(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker at a random moment after its first words; at times even before."""
        with process:
            size = self.acks.stat().st_size
            if self.rng.random() < 0.9:
                until(lambda: self.acks.stat().st_size > size or process.poll() is not None)
            assert process.poll() is None, "the worker ended by itself"
            time.sleep(self.rng.uniform(0, 0.05))
            process.kill()

    def check(self) -> int:
        """Compare what was said with what is there; return how many requests were acknowledged."""
        asked, acked = self.said("?"), self.said("!")
        assert max(asked.values(), default=1) == 1
        rows = dump(self.path)["tillroll_entries"]  # runs the integrity check, too
        found = Counter(str(row[2]) for row in rows)
        assert max(found.values()) == 1, "written twice"
        lost = {name for _, kind, name in acked if worker.entry_id(kind, name) not in found}
        assert not lost, f"acknowledged and lost (seed {self.seed}): {sorted(lost)[:5]}"
        known = {worker.entry_id(kind, name) for _, kind, name in asked}
        assert set(found) <= known | {f"g{n}" for n in range(worker.ACCOUNTS)}

        with tillroll.open(self.path) as ledger:
            for account, kind, name in asked - acked:
                worker.act(ledger, account, kind, name)
                worker.act(ledger, account, kind, name)
            assert ledger.verify().ok
            for account in ledger.accounts():
                used = Counter(kind for owner, kind, _ in asked if owner == account)
                balance = ledger.balance(account)
                assert balance.used == used["consume"] + 3 * used["settle"]
                assert balance.held == 5 * (used["hold"] - used["settle"])
        with tillroll.open(self.path, clock=lambda: LATER) as ledger:
            assert ledger.book_due() == worker.ACCOUNTS
            for account in ledger.accounts():
                balance = ledger.balance(account)
                assert balance.held == 0, "a hold leaked"
                assert balance.spendable + balance.used == worker.GRANT
            assert ledger.verify().ok
        return sum(acked.values())


def killed(folder: Path, cycles: int, seed: int) -> int:
    """Kill workers one after the other; each opens the file as the one before left it."""
    run = Run(folder, seed)
    for _ in range(cycles):
        run.kill_soon(run.start())
    return run.check()


def test_killed_again_and_again(tmp_path: Path):
    assert killed(tmp_path, CYCLES, seed=1) > CYCLES


def test_killed_while_another_process_writes_the_same_accounts(tmp_path: Path):
    """The survivor goes on over the log that the dead one left half written."""
    run = Run(tmp_path, seed=2)
    survivor = run.start()
    for _ in range(10):
        run.kill_soon(run.start())
        size = run.acks.stat().st_size
        until(lambda size=size: run.acks.stat().st_size > size)
        assert survivor.poll() is None, "the other process died, too"
    with survivor:
        survivor.kill()
    assert run.check() > 20


@pytest.mark.soak
@pytest.mark.parametrize("part", range(CYCLES_SOAK // CYCLES_A_FILE))
def test_killed_a_thousand_times(tmp_path: Path, part: int):
    assert killed(tmp_path, CYCLES_A_FILE, seed=1_000 + part) > CYCLES_A_FILE


def test_the_check_sees_a_lost_write(tmp_path: Path):
    """The control: one acknowledgement of what never was."""
    run = Run(tmp_path, seed=3)
    run.acks.write_text("? a0 consume never\n! a0 consume never\n")
    with pytest.raises(AssertionError, match="acknowledged and lost"):
        run.check()
