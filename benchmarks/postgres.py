"""Measure the ledger on PostgreSQL next to its peers, as it grows, and where its time goes.

    python benchmarks/postgres.py [--seconds 5] [--accounts 10000] [--entries 10000000] [--write]

All in one run on a server of its own with PostgreSQL's own settings (fsync, full_page_writes and
synchronous_commit are on). Speed is reported, never asserted. Run it alone on the machine; with
`--write` the results are kept in `measured` and shown in `postgres.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import measured
import peers
import psycopg
from peers import Measured, Plan

import tillroll
from tests.servers.cluster import Cluster
from tillroll.cli.bench import machine
from tillroll.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BULK = 5_000
GRANTED = 1_000_000_000
TICKS = os.sysconf("SC_CLK_TCK")


class Ours:
    """The ledger, written by locks or by appending."""

    def __init__(self, cluster: Cluster, way: str) -> None:
        self.cluster = cluster
        self.way = way
        self.name = f"tillroll, {way}"
        self.database = ""
        self.url = ""
        self.names: list[str] = []
        self.charged = 0
        self.draw = random.Random(0)

    def setup(self, accounts: int) -> None:
        """Make a new ledger, and give every account more than it can spend."""
        if self.database:
            self.remove()
        self.database = self.cluster.create_database()
        self.url = self.cluster.url(self.database)
        self.names = [f"account-{number}" for number in range(accounts)]
        self.charged = 0
        store = PostgresStore(self.url)
        store.set_writing("append" if self.way == "append" else "locks")
        store.close()
        with tillroll.open(self.url) as ledger:
            for name in self.names:
                ledger.grant(name, GRANTED)
        self.settle_down()

    def settle_down(self) -> None:
        """Have the server begin with fresh statistics and the same whole-page writes."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Consume one unit at a time from so many callers on an event loop."""
        names = self.names[:1] if hot else self.names
        measured = asyncio.run(self._loop(seconds, callers, names))
        self.audit(measured.charges)
        return measured

    async def _loop(self, seconds: float, callers: int, names: list[str]) -> Measured:
        latencies: list[float] = []
        async with tillroll.open_async(self.url) as ledger:
            warm = [{"account": name, "units": 1} for name in names[:BULK]]
            for _ in range(2):
                await ledger.consume_many(warm)
            began = time.perf_counter()
            stop = began + seconds

            async def caller() -> None:
                while (start := time.perf_counter()) < stop:
                    await ledger.consume(self.draw.choice(names), "image.generate", units=1)
                    latencies.append(time.perf_counter() - start)

            await asyncio.gather(*(caller() for _ in range(callers)))
            took = time.perf_counter() - began
        self.charged += 2 * len(warm)
        return Measured(len(latencies), took, latencies)

    def audit(self, count: int) -> None:
        """Check that every charge is one entry."""
        self.charged += count
        sql = "SELECT count(*) FROM tillroll_entries WHERE kind = 'consume'"
        [(found,)] = self.cluster.run(sql, database=self.database)
        if found != self.charged:
            raise SystemExit(f"{self.name}: {self.charged} charges, {found} entries")

    def remove(self) -> None:
        """Drop the tables."""
        self.cluster.drop_database(self.database)


class OursInBulk(Ours):
    """The same by `consume_many`, one caller, many a call."""

    def __init__(self, cluster: Cluster, way: str) -> None:
        super().__init__(cluster, way)
        self.name = f"tillroll, {way}, consume_many of {BULK:,}"

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Consume many a call."""
        assert callers == 1
        measured = self.bulk(seconds, self.names[:1] if hot else self.names)
        self.audit(measured.charges)
        return measured

    def bulk(self, seconds: float, names: list[str], most: int = 10**12) -> Measured:
        """Consume many a call, for so long or until there are so many."""
        latencies: list[float] = []
        with tillroll.open(self.url) as ledger:
            ledger.consume_many({"account": name, "units": 1} for name in names[:BULK])
            self.charged += len(names[:BULK])
            began = time.perf_counter()
            while (start := time.perf_counter()) - began < seconds:
                if len(latencies) * BULK >= most:
                    break
                items = [
                    {"account": self.draw.choice(names), "operation": "image", "units": 1}
                    for _ in range(BULK)
                ]
                ledger.consume_many(items)
                latencies.append(time.perf_counter() - start)
            took = time.perf_counter() - began
        return Measured(len(latencies) * BULK, took, latencies)


# ---------------------------------------------------------------- growth


def grown(cluster: Cluster, accounts: int, most: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure one ledger at 10^5 entries, 10^6 and so on, random accounts all along."""
    ours = OursInBulk(cluster, "append")
    ours.setup(accounts)
    size = 100_000
    while size <= most:
        missing = size - accounts - ours.charged
        filled = ours.bulk(10**9, ours.names, max(missing, 0))
        ours.audit(filled.charges)
        ours.settle_down()
        bulk = ours.bulk(seconds, ours.names)
        ours.audit(bulk.charges)
        ours.settle_down()
        loop = Ours.run(ours, seconds, 1_000, hot=False)
        [(table, indexes)] = cluster.run(
            "SELECT pg_table_size('tillroll_entries'), pg_indexes_size('tillroll_entries')",
            database=ours.database,
        )
        yield {
            "entries": size,
            "bulk_per_second": round(bulk.charges / bulk.seconds),
            "callers_per_second": round(loop.charges / loop.seconds),
            "bytes_an_entry": round((table + indexes) / (accounts + ours.charged)),
        }
        size *= 10
    ours.remove()


# ---------------------------------------------------------------- where the time goes


def shares(cluster: Cluster, accounts: int, seconds: float) -> list[dict[str, Any]]:
    """Return how long, for each charge, Python and PostgreSQL computed and both waited."""
    found = []
    for way, bulk in itertools.product(("locks", "append"), (True, False)):
        ours = OursInBulk(cluster, way) if bulk else Ours(cluster, way)
        ours.setup(accounts)
        before, began, at = server_cpu(cluster), time.process_time(), time.perf_counter()
        measured = ours.run(seconds, 1 if bulk else 1_000, hot=False)
        wall = time.perf_counter() - at
        each = 1e6 / (measured.charges + 2 * min(accounts, BULK))
        found.append(
            {
                "name": ours.name if bulk else f"{ours.name}, 1,000 callers",
                "wall_us": round(wall * each, 1),
                "python_us": round((time.process_time() - began) * each, 1),
                "postgresql_us": round((server_cpu(cluster) - before) * each, 1),
            }
        )
        ours.remove()
    return found


def server_cpu(cluster: Cluster) -> float:
    """Return the processor time that the server's processes have used, ended ones included."""
    total = 0
    for pid in (cluster.pid, *children(cluster.pid)):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += sum(int(value) for value in fields[11:13])
        if pid == cluster.pid:
            total += sum(int(value) for value in fields[13:15])
    return total / TICKS


def children(pid: int) -> list[int]:
    """Return the processes that this one started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(part) for part in text.split()]


# ---------------------------------------------------------------- report


def plans() -> list[Plan]:
    """Return what is measured, in the order of the report."""
    ours = [partial(Ours, way=way) for way in ("locks", "append")]
    bulk = [partial(OursInBulk, way=way) for way in ("locks", "append")]
    return [
        *peers.plans(),
        *(Plan(peer, callers) for peer in ours for callers in (1, *peers.CALLERS)),
        *(Plan(peer, callers, hot=True) for peer in ours for callers in peers.CALLERS),
        *(Plan(peer, 1) for peer in bulk),
        *(Plan(peer, 1, hot=True) for peer in bulk),
    ]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return ours over the UPDATE and INSERT on asyncpg, at as many callers."""
    rate = {(row["name"], row["callers"], row["hot"]): row["per_second"] for row in rows}
    naive = peers.Asyncpg.name
    found = {}
    for way in ("locks", "append"):
        ours = f"tillroll, {way}"
        uniform = rate[ours, 1_000, False] / rate[naive, 1_000, False]
        hot = rate[ours, 1_000, True] / rate[naive, peers.CALLERS[0], True]
        found[f"{way}, 1,000 callers, 10,000 accounts / asyncpg"] = round(uniform, 1)
        found[f"{way}, 1,000 callers, one hot account / asyncpg, 32 callers"] = round(hot, 1)
    return found


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long each is measured")
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--entries", type=int, default=10_000_000, help="how far the ledger grows")
    parser.add_argument("--write", action="store_true", help="keep the results beside this file")
    asked = parser.parse_args()
    rows = []
    with Cluster() as cluster:
        for plan in plans():
            peer = plan.peer(cluster)
            rows.append(peers.measure(peer, plan, asked.seconds, asked.accounts))
            peer.remove()
            print(json.dumps(rows[-1]), flush=True)
        where = shares(cluster, asked.accounts, asked.seconds)
        print(json.dumps(where), flush=True)
        growth = []
        for step in grown(cluster, asked.accounts, asked.entries, asked.seconds):
            growth.append(step)
            print(json.dumps(step), flush=True)
        report = {
            "machine": {**machine(), "postgresql": cluster.show("server_version")},
            "accounts": asked.accounts,
            "connections": peers.CONNECTIONS,
            "rows": rows,
            "ratios": ratios(rows),
            "shares": where,
            "growth": growth,
        }
    print(json.dumps(report["ratios"], indent=2))
    if asked.write:
        measured.keep("postgres", report)
        (HERE / "postgres.md").write_text(page(measured.kept("postgres")), encoding="utf-8")


def page(reports: list[measured.Report]) -> str:
    """Return the results as a page."""
    lines = [
        "# PostgreSQL, measured",
        "",
        "All rows of one run of `python benchmarks/postgres.py --write`, one after the other, each",
        "on new tables after a checkpoint, on a server with PostgreSQL's own settings. Callers are",
        "tasks on one event loop; the peers have 32 connections, tillroll one. Each charge of a",
        "peer looks for a duplicate, checks the balance, writes one row and the new balance; each",
        "of tillroll's is complete: grants in burn order, idempotency, hash chain, receipt.",
        "Trust the ratios, not the rates.",
        "",
        "*Where the time goes* is in microseconds for each charge: the wall's, and what Python and",
        "PostgreSQL's processes computed in that time, partly side by side on the two cores. The",
        "rest is waiting, for the disk above all. *As the ledger grows* is one ledger, filled by",
        "charges on random accounts, written by appending.",
    ]
    for report in reports:
        lines += [
            *measured.heading(report),
            *_rates(report),
            *_shares(report["shares"]),
            *_growth(report["growth"]),
            *measured.facts(report),
        ]
    return "\n".join([*lines, ""])


def _rates(report: measured.Report) -> list[str]:
    lines = [
        "| | callers | accounts | per second | p50 ms | p99 ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        accounts = "1" if row["hot"] else f"{report['accounts']:,}"
        lines.append(
            f"| {row['name']} | {row['callers']:,} | {accounts} | {row['per_second']:,} "
            f"| {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |"
        )
    lines += ["", "| ratio | |", "|---|--:|"]
    return lines + [f"| {name} | {value} |" for name, value in report["ratios"].items()]


def _shares(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "",
        "| where the time goes | wall | Python | PostgreSQL |",
        "|---|--:|--:|--:|",
        *(
            f"| {row['name']} | {row['wall_us']} | {row['python_us']} | {row['postgresql_us']} |"
            for row in rows
        ),
    ]


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    first, last = rows[0], rows[-1]
    share = last["bulk_per_second"] / first["bulk_per_second"]
    return [
        "",
        "| as the ledger grows | consume_many a second | 1,000 callers a second | bytes each |",
        "|--:|--:|--:|--:|",
        *(
            f"| {row['entries']:,} | {row['bulk_per_second']:,} | {row['callers_per_second']:,} "
            f"| {row['bytes_an_entry']} |"
            for row in rows
        ),
        "",
        f"At {last['entries']:,} entries the rate is {share:.0%} of that at {first['entries']:,}.",
    ]


if __name__ == "__main__":
    main()
