"""Benchmarks that anyone can run on their own machine: ratios measured in one run."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

import tillroll
from tillroll.cli import terminal as c
from tillroll.cli.views import table

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTINGS = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
"""
_NAIVE_SCHEMA = """
CREATE TABLE counters (account TEXT PRIMARY KEY, credits INTEGER NOT NULL) STRICT;
CREATE TABLE charges (
    id INTEGER PRIMARY KEY, account TEXT NOT NULL, request_id TEXT NOT NULL,
    units INTEGER NOT NULL, at INTEGER NOT NULL, UNIQUE (account, request_id)
) STRICT;
"""


def _run(connection: apsw.Connection, script: str) -> None:
    """Run statements to their end; one that answers with a row would hold up the rest."""
    for _ in connection.execute(script):
        pass


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else ""
    return {
        "cpus": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "cpu": model or platform.processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "tillroll": tillroll.__version__,
    }


# ---------------------------------------------------------------- race

GRANTED = 1_000_000_000  # more than any run can spend
_CALLERS_MAX = 10_000
_SECONDS_MIN, _SECONDS_MAX = 0.01, 86_400


def race(common: c.Common, consumers: int, given: int) -> int:
    """Let many take one credit each from too few, by the ledger and by the naive counter."""
    if not (1 <= consumers <= _CALLERS_MAX and given >= 1):
        raise tillroll.InvalidInput(
            f"--consumers must be 1 to {_CALLERS_MAX:,}, and --credits at least 1"
        )
    with tempfile.TemporaryDirectory(prefix="tillroll-") as folder:
        ours = _race_ledger(f"sqlite:///{folder}/ledger.db", consumers, given)
        naive = _race_counter(f"{folder}/naive.db", consumers, given)
    ok = ours["granted"] == min(consumers, given) and ours["left"] == max(given - consumers, 0)
    if common.json:
        c.print_json(
            {"consumers": consumers, "credits": given, "tillroll": ours, "naive": naive, "ok": ok}
        )
        return c.OK if ok else c.FAILED
    lines = table(
        f"{consumers} consumers, {given} credits",
        "granted",
        "refused",
        "balance after",
        "given away",
        right=("granted", "refused", "balance after", "given away"),
    )
    lines.add_row("tillroll", f"{ours['granted']}", f"{ours['refused']}", f"{ours['left']}", "0")
    lines.add_row(
        "if credits > 0: credits -= 1",
        f"{naive['granted']}",
        f"{naive['refused']}",
        f"{naive['left']}",
        f"{max(naive['granted'] - given, 0)}",
    )
    c.out.print(lines)
    c.out.print("[bold green]ok[/] each credit was spent once" if ok else "[bold red]WRONG[/]")
    return c.OK if ok else c.FAILED


def _race_ledger(url: str, consumers: int, given: int) -> dict[str, int]:
    barrier = threading.Barrier(consumers)
    with tillroll.open(url) as ledger:
        ledger.grant("acme", given)

        def consume(number: int) -> bool:
            barrier.wait()
            try:
                ledger.consume("acme", units=1, request_id=f"race-{number}")
            except tillroll.InsufficientUnits:
                return False
            return True

        granted = _all_at_once(consumers, consume)
        left = int(ledger.balance("acme").available)
    return {"granted": granted, "refused": consumers - granted, "left": left}


def _race_counter(path: str, consumers: int, given: int) -> dict[str, int]:
    """Do what the three naive lines do: read the counter, look, write it back."""
    setup = apsw.Connection(path)
    _run(setup, f"{_SETTINGS} {_NAIVE_SCHEMA}")
    setup.execute("INSERT INTO counters VALUES ('acme', ?)", (given,))
    barrier = threading.Barrier(consumers)

    def consume(_: int) -> bool:
        connection = apsw.Connection(path)
        connection.set_busy_timeout(60_000)
        barrier.wait()
        left: int = connection.execute("SELECT credits FROM counters").get
        allowed = left > 0
        if allowed:
            connection.execute("UPDATE counters SET credits = ?", (left - 1,))
        connection.close()
        return allowed

    granted = _all_at_once(consumers, consume)
    left = setup.execute("SELECT credits FROM counters").get
    setup.close()
    return {"granted": granted, "refused": consumers - granted, "left": left}


def _all_at_once(count: int, act: Callable[[int], bool]) -> int:
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(act, range(count)))


# ---------------------------------------------------------------- consume


def consume(common: c.Common, seconds: float, accounts: int) -> int:
    """Measure consumes a second in one run: the floor, the naive way, and ours."""
    if not (_SECONDS_MIN <= seconds <= _SECONDS_MAX and accounts >= 1):
        raise tillroll.InvalidInput(
            f"--seconds must be {_SECONDS_MIN} to {_SECONDS_MAX:,}, and --accounts at least 1"
        )
    names = [f"account-{number}" for number in range(accounts)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tillroll-", dir=".") as folder:
        numbers = itertools.count()

        def fresh() -> str:
            return f"sqlite:///{folder}/ledger{next(numbers)}.db"

        plan: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("bare commit: one insert a transaction", lambda: _bare(folder, seconds)),
            (
                "naive: one transaction a consume, 1 thread",
                lambda: _naive(folder, names, seconds, 1),
            ),
            (
                "naive: one transaction a consume, 32 threads",
                lambda: _naive(folder, names, seconds, 32),
            ),
            ("tillroll, 1 caller", lambda: threads_on(fresh(), names, seconds, 1)),
            ("tillroll, 32 threads", lambda: threads_on(fresh(), names, seconds, 32)),
            ("tillroll, 32 async callers", lambda: loop_on(fresh(), names, seconds, 32)),
            ("tillroll, 1,000 async callers", lambda: loop_on(fresh(), names, seconds, 1_000)),
            (
                "tillroll, 32 async callers, one hot account",
                lambda: loop_on(fresh(), names[:1], seconds, 32),
            ),
            ("tillroll, consume_many, 1,000 a call", lambda: bulk_on(fresh(), names, seconds)),
        ]
        with c.progress(quiet=common.json) as bar:
            task = bar.add_task("measuring", total=len(plan))
            for name, measure in plan:
                bar.update(task, description=name)
                rows.append({"name": name, **measure()})
                bar.advance(task)
    report = {"machine": machine(), "accounts": accounts, "rows": rows, "ratios": _ratios(rows)}
    if common.json:
        c.print_json(report)
    else:
        show(report)
    return c.OK


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    rate = {row["name"]: row["per_second"] for row in rows}
    naive = rate["naive: one transaction a consume, 32 threads"]
    return {
        "32 async callers / naive": round(rate["tillroll, 32 async callers"] / naive, 2),
        "32 threads / naive": round(rate["tillroll, 32 threads"] / naive, 2),
        "bare commit / 1 caller": round(
            rate["bare commit: one insert a transaction"] / rate["tillroll, 1 caller"], 2
        ),
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    lines = table("", "per second", "p50 ms", "p99 ms", right=("per second", "p50 ms", "p99 ms"))
    for row in report["rows"]:
        lines.add_row(
            row["name"], f"{row['per_second']:,}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"
        )
    c.out.print(lines)
    for name, ratio in report["ratios"].items():
        c.out.print(f"{name}: [bold]{ratio}[/]")
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value)
    c.out.print(
        f"{report['accounts']:,} accounts, full durability; {facts}", style="dim", soft_wrap=True
    )


def figures(times: list[float], took: float, each: int = 1) -> dict[str, Any]:
    """Return the rate and the latencies of calls that did so many each."""
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
    return {
        "per_second": round(len(times) * each / took),
        "p50_ms": round(cuts[49] * 1_000, 3),
        "p99_ms": round(cuts[98] * 1_000, 3),
    }


def _bare(folder: str, seconds: float) -> dict[str, Any]:
    connection = apsw.Connection(f"{folder}/bare.db")
    _run(connection, f"{_SETTINGS} CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT) STRICT")
    body = "x" * 300
    times = []
    began = time.perf_counter()
    while (start := time.perf_counter()) - began < seconds:
        connection.execute("INSERT INTO t (body) VALUES (?)", (body,))
        times.append(time.perf_counter() - start)
    took = time.perf_counter() - began
    connection.close()
    return figures(times, took)


def _naive(folder: str, names: list[str], seconds: float, threads: int) -> dict[str, Any]:
    """Measure the transaction people write first: guarded UPDATE, INSERT, COMMIT."""
    path = f"{folder}/naive{threads}.db"
    setup = apsw.Connection(path)
    _run(setup, f"{_SETTINGS} {_NAIVE_SCHEMA}")
    with setup:
        setup.executemany("INSERT INTO counters VALUES (?, 1000000000)", [(n,) for n in names])

    def work(number: int, times: list[float], stop: float) -> None:
        draw = random.Random(number)  # noqa: S311 - load, not a secret
        connection = apsw.Connection(path)
        _run(connection, _SETTINGS)
        connection.set_busy_timeout(60_000)
        count = 0
        while (start := time.perf_counter()) < stop:
            name = draw.choice(names)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE counters SET credits = credits - 1 WHERE account = ? AND credits >= 1",
                (name,),
            )
            connection.execute(
                "INSERT INTO charges (account, request_id, units, at) VALUES (?, ?, 1, ?)",
                (name, f"{number}-{count}", time.time_ns() // 1_000),
            )
            connection.execute("COMMIT")
            count += 1
            times.append(time.perf_counter() - start)
        connection.close()

    figures = in_threads(threads, seconds, work)
    setup.close()
    return figures


def in_threads(
    threads: int, seconds: float, work: Callable[[int, list[float], float], None]
) -> dict[str, Any]:
    """Have threads work until a moment, and return the figures of all."""
    times: list[list[float]] = [[] for _ in range(threads)]
    began = time.perf_counter()
    workers = [
        threading.Thread(target=work, args=(number, times[number], began + seconds))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    return figures([item for part in times for item in part], took)


def _prepared(url: str, names: list[str]) -> None:
    with tillroll.open(url) as ledger:
        verbs = [ledger._verbs.grant(name, GRANTED) for name in names]  # noqa: SLF001 - one batch
        ledger._engine.execute(verbs)  # noqa: SLF001 - one batch


def threads_on(url: str, names: list[str], seconds: float, threads: int) -> dict[str, Any]:
    """Measure callers on threads, on a new ledger."""
    _prepared(url, names)
    with tillroll.open(url) as ledger:

        def work(number: int, times: list[float], stop: float) -> None:
            draw = random.Random(number)  # noqa: S311 - load, not a secret
            while (start := time.perf_counter()) < stop:
                ledger.consume(draw.choice(names), "image.generate", units=1)
                times.append(time.perf_counter() - start)

        return in_threads(threads, seconds, work)


def loop_on(url: str, names: list[str], seconds: float, callers: int) -> dict[str, Any]:
    """Measure callers on an event loop, on a new ledger."""
    _prepared(url, names)
    times: list[float] = []

    async def main() -> float:
        draw = random.Random(callers)  # noqa: S311 - load, not a secret
        async with tillroll.open_async(url) as ledger:
            began = time.perf_counter()
            stop = began + seconds

            async def caller() -> None:
                while (start := time.perf_counter()) < stop:
                    await ledger.consume(draw.choice(names), "image.generate", units=1)
                    times.append(time.perf_counter() - start)

            await asyncio.gather(*(caller() for _ in range(callers)))
            return time.perf_counter() - began

    return figures(times, asyncio.run(main()))


def bulk_on(url: str, names: list[str], seconds: float, size: int = 1_000) -> dict[str, Any]:
    """Measure one caller with many items a call, on a new ledger."""
    _prepared(url, names)
    draw = random.Random(0)  # noqa: S311 - load, not a secret
    times = []
    with tillroll.open(url) as ledger:
        began = time.perf_counter()
        while (start := time.perf_counter()) - began < seconds:
            ledger.consume_many(
                {"account": draw.choice(names), "operation": "image.generate", "units": 1}
                for _ in range(size)
            )
            times.append(time.perf_counter() - start)
        took = time.perf_counter() - began
    return figures(times, took, each=size)
