"""Measure the service over HTTP with wrk, beside a bare route and the usual way.

    python benchmarks/service.py [--seconds 5] [--rounds 3] [--write]

Every request is a charge of its own under an id of its own. One worker of the same server runs
each application in turn; `wrk` shares the machine's cores with it and with the database. Needs
wrk; run it alone on the machine. With `--write` the figures are kept in `measured`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import measured
import psycopg
from service_peers import TABLES

import tillroll
from tests.servers.cluster import Cluster
from tillroll.api import keys
from tillroll.cli.bench import machine
from tillroll.embedded import open_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
ACCOUNTS = 10_000
GRANTED = 1_000_000_000
SCRIPT = """
local n = 0
function setup(thread) thread:set("prefix", "%(prefix)s") end
function request()
  n = n + 1
  wrk.headers["Authorization"] = "Bearer %(key)s"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Idempotency-Key"] = prefix .. string.format("-%%09d", n)
  local path = "/v1/accounts/" .. %(account)s .. "/consume"
  return wrk.format("POST", path, nil, '{"units":1,"operation":"image.generate"}')
end
function done(summary, latency)
  io.write(string.format("RESULT %%d %%d %%d %%f %%f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
UNIFORM = f'("account-" .. math.random(0, {ACCOUNTS - 1}))'
HOT = '"account-0"'


class Measured(NamedTuple):
    """What one run of wrk gave."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


class App(NamedTuple):
    """An application to measure: its name, how it is made ready, and what starts it."""

    name: str
    environ: dict[str, str]
    target: str
    key: str


@contextlib.contextmanager
def serving(app: App) -> Iterator[int]:
    """Run an application on one worker of the server; yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import uvicorn\n"
        "from tillroll.server.bounds import BoundedHttp\n"
        f"uvicorn.run({app.target!r}, port={port}, http={'BoundedHttp'}, ws='none', "
        f"lifespan='on', access_log=False, log_level='warning', server_header=False, "
        f"proxy_headers=False, "
        f"factory={'noop' not in app.target})"
    )
    environ = {**os.environ, **app.environ, "PYTHONPATH": str(HERE)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environ)
    try:
        _wait(port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the server did not start")


def measure(app: App, port: int, connections: int, seconds: float, account: str) -> Measured:
    """Send charges for a while and return how they went."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        prefix = f"{time.time_ns():x}"  # ordered by time, as our own ids are
        file.write(SCRIPT % {"key": app.key, "prefix": prefix, "account": account})
        file.flush()
        done = subprocess.run(
            [
                *("wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", file.name),
                f"http://127.0.0.1:{port}",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", done.stdout)
    assert found, done.stdout
    requests, micros, errors = (int(found[n]) for n in (1, 2, 3))
    return Measured(requests / micros * 1e6, float(found[4]) / 1e3, float(found[5]) / 1e3, errors)


def ours(url: str) -> App:
    """Return the service on a new store, with every account granted enough."""
    engine = open_engine(url)
    at = engine.clock()
    key, secret = keys.new_key("default", "live", name="bench", scopes=["consume"], at=at)
    engine.perform(lambda tx: keys.put_key(tx, key))
    ledger = tillroll.Ledger(engine)
    requests = [
        ledger._verbs.grant(f"account-{n}", GRANTED, request_id=f"g-{n}")  # noqa: SLF001
        for n in range(ACCOUNTS)
    ]
    for first in range(0, ACCOUNTS, 1_000):
        engine.execute(requests[first : first + 1_000])
    engine.close()
    settings = json.dumps({"database_url": url, "log_level": "warning"})
    kind = url.split(":", maxsplit=1)[0]
    target = "tillroll.server.app:create"
    return App(f"tillroll, {kind}", {"TILLROLL_SETTINGS": settings}, target, secret)


def usual(kind: str, place: str) -> App:
    """Return the usual way on new tables, with every account given enough."""
    rows = [(f"account-{n}", GRANTED) for n in range(ACCOUNTS)]
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(place)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(TABLES)
            db.executemany("INSERT INTO balances VALUES (?, ?)", rows)
            db.commit()
    else:
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(TABLES)
            with connection.cursor().copy("COPY balances FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    return App(f"usual, {kind}", {"BENCH_DSN": place}, f"service_peers:usual_{kind}", "none")


def run(seconds: float, rounds: int) -> dict[str, Any]:
    """Measure everything, the sides taking turns, and return the medians."""
    cases: dict[str, list[Measured]] = {}
    with Cluster() as cluster, tempfile.TemporaryDirectory(prefix="tillroll-bench-") as folder:
        for number in range(rounds):
            for make, connections, account in _plan(cluster, Path(folder), number):
                app = make()
                with serving(app) as port:
                    measure(app, port, connections, 1, account)  # warm
                    found = measure(app, port, connections, seconds, account)
                hot = ", one account" if account is HOT else ""
                name = f"{app.name}, {connections} connections{hot}"
                cases.setdefault(name, []).append(found)
                print(
                    f"{name:50} {found.rate:9,.0f}/s  p50 {found.p50_ms:6.1f} ms  "
                    f"p99 {found.p99_ms:6.1f} ms  errors {found.errors}",
                    flush=True,
                )
    return {
        name: {
            "rate": round(statistics.median(one.rate for one in found)),
            "p50_ms": round(statistics.median(one.p50_ms for one in found), 2),
            "p99_ms": round(statistics.median(one.p99_ms for one in found), 2),
            "errors": sum(one.errors for one in found),
        }
        for name, found in cases.items()
    }


def _plan(
    cluster: Cluster, folder: Path, number: int
) -> Iterator[tuple[Callable[[], App], int, str]]:
    def postgres(way: str) -> App:
        url = cluster.url(cluster.create_database())
        tillroll.migrate(url, writing="append")
        return ours(url)._replace(name=f"tillroll, postgresql {way}")

    def sqlite() -> App:
        return ours(f"sqlite:///{folder}/ours-{number}-{time.time_ns()}.db")

    bare = App("bare route", {}, "service_peers:noop", "none")
    for connections in (64, 256):
        yield lambda: bare, connections, UNIFORM
        yield sqlite, connections, UNIFORM
        yield lambda: postgres("append"), connections, UNIFORM
    yield lambda: usual("sqlite", f"{folder}/usual-{number}.db"), 64, UNIFORM
    yield (
        lambda: usual("postgres", cluster.url(cluster.create_database())),
        64,
        UNIFORM,
    )
    yield lambda: postgres("append"), 256, HOT


def main() -> None:
    """Measure, print, and keep what was measured if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = run(asked.seconds, asked.rounds)
    bare = {n: found[f"bare route, {n} connections"]["rate"] for n in (64, 256)}
    for name, figures in found.items():
        connections = 256 if "256 c" in name else 64
        figures["of_bare"] = round(figures["rate"] / bare[connections], 3)
    print(json.dumps(found, indent=2))
    if asked.write:
        kept = {"machine": machine(), "seconds": asked.seconds, "rounds": asked.rounds}
        measured.keep("service", {**kept, "results": found})
        (HERE / "service.md").write_text(page(measured.kept("service")), encoding="utf-8")


def page(reports: list[measured.Report]) -> str:
    """Return the results as a page."""
    lines = [
        "# The service, measured",
        "",
        "By `python benchmarks/service.py --write`: one worker, wrk with one thread on the same",
        "machine, a new Idempotency-Key for each request, 10,000 accounts. *Bare* is a route of",
        "the same server that answers without looking; *usual* is the same charge written the",
        "framework's usual way: FastAPI, a guarded UPDATE and an INSERT, on asyncpg or sqlite3.",
        "The sides took turns; the figures are the medians of the rounds.",
    ]
    for report in reports:
        lines += _section(report)
    return "\n".join([*lines, ""])


def _section(report: measured.Report) -> list[str]:
    results: dict[str, dict[str, float]] = report["results"]
    best = max(results[f"usual, {kind}, 64 connections"]["rate"] for kind in ("sqlite", "postgres"))
    wrong = sum(row["errors"] for row in results.values())
    rounds, seconds = report["rounds"], report["seconds"]
    return [
        *measured.heading(report),
        "| | per second | p50 ms | p99 ms | of bare | of the best usual |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {name} | {row['rate']:,} | {row['p50_ms']} | {row['p99_ms']} | "
            f"{row['of_bare']:.2f} | {row['rate'] / best:.1f} |"
            for name, row in results.items()
        ),
        "",
        f"{rounds} rounds of {seconds:g} seconds each; {wrong} answers were no 200.",
        *measured.facts(report),
    ]


if __name__ == "__main__":
    main()
