"""Run the benchmark and write its results: figures, ratios and the machine, as JSON and as text.

    python benchmarks/run.py [--seconds 5] [--accounts 1000]

Speed is reported, never asserted. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import measured

HERE = Path(__file__).parent
RUNS = 3


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run the benchmark once in a process of its own."""
    command = [sys.executable, "-c", "from tillroll.cli import main; main()"]
    done = subprocess.run(
        [*command, "bench", "consume", "--json", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def import_times() -> list[float]:
    """Return how long `import tillroll` takes in a new process, in milliseconds."""
    code = (
        "import time; t = time.perf_counter(); import tillroll; "
        "print((time.perf_counter() - t) * 1000)"
    )
    # As it is installed: compiled once, by the first, which is not counted.
    environ = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(10):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environ
        )
        times.append(float(done.stdout))
    return times[1:]


def main() -> None:
    """Measure, choose the median run by the ratio that matters most, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", default="5")
    parser.add_argument("--accounts", default="1000")
    options = parser.parse_args()
    arguments = ["--seconds", options.seconds, "--accounts", options.accounts]
    runs = []
    for number in range(RUNS):
        print(f"run {number + 1} of {RUNS}", file=sys.stderr)
        runs.append(measure(arguments))
    runs.sort(key=lambda run: run["ratios"]["32 async callers / naive"])
    report = runs[len(runs) // 2]
    times = sorted(import_times())
    report["import_ms"] = {"median": round(times[4], 1), "least": round(times[0], 1)}
    measured.keep("sqlite", report)
    (HERE / "README.md").write_text(page(measured.kept("sqlite")), encoding="utf-8")
    print((HERE / "README.md").read_text(encoding="utf-8"))


def page(reports: list[measured.Report]) -> str:
    """Return the results as a page."""
    lines = [
        "# Benchmarks",
        "",
        "One consume is complete: grants in burn order, idempotency, the hash chain, the receipt;",
        "SQLite in WAL mode with synchronous=FULL, so each answer is on the disk. The naive way is",
        "`BEGIN IMMEDIATE`, a guarded `UPDATE`, an `INSERT` with a unique request id, `COMMIT`,",
        "with the same settings, and no more. All rows were measured in one run, one after the",
        "other, by `make bench`; of three runs this is the middle one. 1,000 accounts, one chosen",
        "at random for each consume. Trust the ratios, not the rates.",
        "",
        "How much is gained depends on the machine: what many callers share is the disk's sync,",
        "and what each pays for is Python. Where a sync takes long, sharing it is worth most;",
        "where it takes less than a tenth of a millisecond and Python is slow, little is left to",
        "share, and a single writer with nothing to keep track of comes close. Two machines show",
        "both ends.",
    ]
    for report in reports:
        lines += _section(report)
    return "\n".join([*lines, *_ABOUT])


def _section(report: measured.Report) -> list[str]:
    lines = [*measured.heading(report), "| | per second | p50 ms | p99 ms |", "|---|--:|--:|--:|"]
    lines += [
        f"| {row['name']} | {row['per_second']:,} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |"
        for row in report["rows"]
    ]
    lines += ["", "| ratio | |", "|---|--:|"]
    lines += [f"| {name} | {value} |" for name, value in report["ratios"].items()]
    middle = report["import_ms"]["median"]
    lines.append(f"| `import tillroll`, median of nine new processes | {middle} ms |")
    return lines + measured.facts(report)


_ABOUT = [
    "",
    "## Where the time goes",
    "",
    "A commit is one sync of the log, shared by the batch. With many accounts each consume also",
    "writes a page of the history's index of its own, about ten microseconds, which is why one hot",
    "account is faster than a thousand. The rest is Python: a third of it on the event loop, two",
    "thirds in the writer, half of that to decide and to encode: about sixty calls of functions a",
    "consume, twelve of them the event loop's. A lone caller finds the processor's caches cold",
    "after each sync: what takes 75 us without a disk takes twice that with one. Two things were",
    "tried and not kept, since each took about a tenth of the computing: the rules compiled by",
    "mypyc, and an index of the history that is written later. Smaller pages made it slower.",
    "",
    "## The service",
    "",
    "[Measured](service.md) by `python benchmarks/service.py --write`: charges over HTTP, next",
    "to a bare route of the same server and the same charge written a framework's usual way.",
    "",
    "## PostgreSQL",
    "",
    "[Measured](postgres.md) by `python benchmarks/postgres.py --write`: ours by locks and by",
    "appending, next to a guarded `UPDATE` and an `INSERT ... ON CONFLICT` (asyncpg, psycopg),",
    "the same in one statement, SQLAlchemy's ORM, one insert a commit (pgbench), `COPY`; on",
    "10,000 accounts and on one hot account, as the ledger grows, and where the time goes. It",
    "starts a server of its own with PostgreSQL's own durability, and after each run checks",
    "that the rows add up. `tillroll bench consume --store postgresql://...` measures yours.",
    "",
]


if __name__ == "__main__":
    main()
