"""The power-cut rig: pull the plug of a real file system under load, again and again.

An ext4 image lies on an XFS that can copy a file in an instant (`cp --reflink`). A ledger works in
the ext4; a copy of its image at any moment is the disk as a power cut at that moment leaves it:
what was not synced is not in it. The copy is mounted (ext4 replays its journal), the ledger in it
is opened, and whatever was acknowledged before the copy was begun must be there.

The control does the same with the syncs switched off and must lose acknowledged writes: a rig
that loses nothing then proves nothing. Run by `make power-cut`; needs root, loop devices and
xfsprogs. It reports; it is no part of the test suite.
"""

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import apsw

import tillroll
from tillroll.embedded import Ledger
from tillroll.engine import Engine
from tillroll.stores.sqlite import SqliteStore

THREADS = 4
ACCOUNTS = 8
CUTS_A_FILE = 5  # then a new ledger, so that verifying stays short
CUT_SECONDS = (0.02, 0.15)  # between two cuts


# --- the worker: its own process, killed in the end -------------------------------------------


def work(path: str, acks: str, synchronous: str) -> None:
    """Consume, hold and settle without end; append each acknowledged id to `acks`, outside."""
    store = SqliteStore(path)
    if synchronous != "FULL":
        assert store._writer is not None
        store._writer.execute(f"PRAGMA synchronous = {synchronous}")
    ledger = Ledger(Engine(store))
    out = os.open(acks, os.O_WRONLY | os.O_APPEND)

    def acknowledged(request_id: str) -> None:
        os.write(out, f"{request_id}\n".encode())

    for number in range(ACCOUNTS):
        ledger.grant(f"a{number}", 10**9, request_id=f"g{number}")
        acknowledged(f"g{number}")

    def load(thread: int) -> None:
        for number in itertools.count():
            account, name = f"a{number % ACCOUNTS}", f"{thread}-{number}"
            if number % 3:
                ledger.consume(account, units=1, request_id=f"c{name}")
                acknowledged(f"c{name}")
                continue
            hold = ledger.hold(account, units=5, request_id=f"h{name}")
            acknowledged(f"h{name}")
            hold.settle(3, request_id=f"s{name}")
            acknowledged(f"s{name}")

    for thread in range(THREADS):
        threading.Thread(target=load, args=(thread,), daemon=True).start()
    threading.Event().wait()


# --- the rig ----------------------------------------------------------------------------------


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        # A worker that was just killed may hold the file for a moment longer.
        for _ in range(50):
            if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode:
                time.sleep(0.1)
            else:
                break


@dataclass
class Tally:
    """What a run of cuts found."""

    synchronous: str
    cuts: int = 0
    acks: int = 0  # checked, summed over all cuts
    cuts_with_losses: int = 0
    lost: int = 0
    lost_at_most: int = 0
    unsound: int = 0  # the ledger was there, and did not verify or could not be opened

    def add(self, acked: set[str], found: set[str] | None) -> None:
        lost = len(acked - (found or set()))
        self.cuts += 1
        self.acks += len(acked)
        self.lost += lost
        self.lost_at_most = max(self.lost_at_most, lost)
        self.cuts_with_losses += lost > 0
        self.unsound += found is None


def found_in(path: Path) -> set[str] | None:
    """Return the ids that the ledger knows; None if it is unsound."""
    if not path.exists():
        return set()
    try:
        with tillroll.open(path) as ledger:
            sound = ledger.store.check() == [] and ledger.verify().ok
            ids = {str(receipt.request_id) for receipt in ledger.entries()}
    except tillroll.TillrollError:
        return None
    return ids if sound else None


def cut(outer: Path, name: str) -> set[str] | None:
    """Copy the image as it is now, mount the copy, and return what its ledger knows."""
    image = outer / "cut.img"
    run("cp", "--reflink=always", outer / "inner.img", image)
    try:
        with mounted(image, outer.parent / "cut") as folder:
            return found_in(folder / name)
    finally:
        image.unlink()


@contextmanager
def worker(path: Path, acks: Path, synchronous: str) -> Iterator[None]:
    acks.touch()
    command = [sys.executable, __file__, "--work", str(path), str(acks), synchronous]
    with subprocess.Popen(command) as process:
        try:
            while not acks.stat().st_size:
                assert process.poll() is None, "the worker ended"
                time.sleep(0.01)
            yield
        finally:
            process.kill()


def campaign(base: Path, synchronous: str, cuts: int, rng: random.Random) -> Tally:
    tally = Tally(synchronous)
    outer, inner = base / "outer", base / "inner"
    for number in itertools.count():
        if tally.cuts >= cuts:
            return tally
        name, acks = f"{synchronous}{number}.db", base / f"{synchronous}{number}.acks"
        with worker(inner / name, acks, synchronous):
            for _ in range(min(CUTS_A_FILE, cuts - tally.cuts)):
                time.sleep(rng.uniform(*CUT_SECONDS))
                # Whole lines only: these were acknowledged before the plug is pulled.
                acked = set(acks.read_text().rpartition("\n")[0].split("\n"))
                tally.add(acked, cut(outer, name))
        for file in inner.glob(name + "*"):
            file.unlink()
    raise AssertionError


def why_not() -> str | None:
    """Return what is missing here, None if the rig can run."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it mounts file systems, so it needs Linux and root"
    for program, package in (("mkfs.xfs", "xfsprogs"), ("mkfs.ext4", "e2fsprogs")):
        if shutil.which(program) is None:
            return f"it needs {program}: install {package}"
    if not Path("/dev/loop-control").exists():
        return "it needs loop devices, and there are none"
    return None


def rig(cuts: int, control_cuts: int, control: str, seed: int) -> dict[str, object]:
    rng = random.Random(seed)  # noqa: S311 - when to pull the plug
    started = time.monotonic()
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="power-cut-")))
        with (base / "outer.img").open("wb") as image:
            image.truncate(4 << 30)
        run("mkfs.xfs", "-q", "-m", "reflink=1", base / "outer.img")
        outer = stack.enter_context(mounted(base / "outer.img", base / "outer"))
        with (outer / "inner.img").open("wb") as image:
            image.truncate(512 << 20)
        run("mkfs.ext4", "-q", outer / "inner.img")
        stack.enter_context(mounted(outer / "inner.img", base / "inner"))
        full = campaign(base, "FULL", cuts, rng)
        weak = campaign(base, control, control_cuts, rng)
    return {
        "ledger": asdict(full),
        "control": asdict(weak),
        "seconds": round(time.monotonic() - started),
        "seed": seed,
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "sqlite": apsw.sqlite_lib_version(),
            "python": platform.python_version(),
        },
    }


def main() -> str | None:
    """Run the rig; return what is wrong, None if nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--control-cuts", type=int, default=20)
    parser.add_argument("--control", choices=["OFF", "NORMAL"], default="OFF")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work)
    missing = why_not()
    if missing:
        sys.stdout.write(f"power-cut rig skipped: {missing}\n")
        return None
    result = rig(args.cuts, args.control_cuts, args.control, args.seed)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    ledger, control = result["ledger"], result["control"]
    assert isinstance(ledger, dict)
    assert isinstance(control, dict)
    if ledger["lost"] or ledger["unsound"]:
        return "acknowledged writes were lost, or a ledger was unsound"
    if not control["lost"]:
        return "the control lost nothing either: the rig proves nothing"
    return None


if __name__ == "__main__":
    sys.exit(main())
