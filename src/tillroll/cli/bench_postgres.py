"""`tillroll bench consume --store postgresql://...`: the same figures on your own server.

Everything is done in a schema of its own, which is dropped at the end.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo

from tillroll.cli import bench
from tillroll.cli import terminal as c
from tillroll.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BULK = 5_000
_NAIVE_SCHEMA = """
CREATE TABLE floor (id bigserial PRIMARY KEY, body text NOT NULL);
CREATE TABLE counters (account text PRIMARY KEY, credits bigint NOT NULL);
CREATE TABLE charges (
    id bigserial PRIMARY KEY, account text NOT NULL, request_id text NOT NULL,
    units bigint NOT NULL, UNIQUE (account, request_id)
);
"""
_CHARGE = "UPDATE counters SET credits = credits - 1 WHERE account = %s AND credits >= 1"
_ENTER = "INSERT INTO charges (account, request_id, units) VALUES (%s, %s, 1)"


def consume(common: c.Common, url: str, seconds: float, accounts: int) -> int:
    """Measure consumes a second on a PostgreSQL server: the floor, the naive way, and ours."""
    names = [f"account-{number}" for number in range(accounts)]
    rows: list[dict[str, Any]] = []
    with _own_schema(url) as (own, fresh):
        with psycopg.connect(own, autocommit=True) as connection:
            version = connection.info.parameter_status("server_version") or ""
            connection.execute(_NAIVE_SCHEMA)
        plan: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("bare commit: one insert a transaction", partial(_bare, own, seconds)),
            (
                "naive: one transaction a consume, 32 threads",
                partial(_naive, own, names, seconds, 32),
            ),
            (
                "naive: one transaction a consume, 32 threads, one hot account",
                partial(_naive, own, names[:1], seconds, 32),
            ),
        ]
        for way in ("locks", "append"):
            for label, measure in _ours(names, seconds):
                plan.append((f"tillroll, {way}, {label}", partial(_on, fresh, way, measure)))
        with c.progress(quiet=common.json) as bar:
            task = bar.add_task("measuring", total=len(plan))
            for name, act in plan:
                bar.update(task, description=name)
                rows.append({"name": name, **act()})
                bar.advance(task)
    rate = {row["name"]: row["per_second"] for row in rows}
    naive = rate["naive: one transaction a consume, 32 threads"]
    hot = rate["naive: one transaction a consume, 32 threads, one hot account"]
    report = {
        "machine": {**bench.machine(), "postgresql": version},
        "accounts": accounts,
        "rows": rows,
        "ratios": {
            f"{way}: {what} / naive": round(rate[f"tillroll, {way}, {what}"] / peer, 2)
            for way in ("locks", "append")
            for what, peer in (
                ("1,000 async callers", naive),
                ("1,000 async callers, one hot account", hot),
            )
        },
    }
    if common.json:
        c.print_json(report)
    else:
        bench.show(report)
    return c.OK


def _ours(names: list[str], seconds: float) -> list[tuple[str, Callable[[str], dict[str, Any]]]]:
    return [
        ("1 caller", partial(bench.threads_on, names=names, seconds=seconds, threads=1)),
        ("32 async callers", partial(bench.loop_on, names=names, seconds=seconds, callers=32)),
        (
            "1,000 async callers",
            partial(bench.loop_on, names=names, seconds=seconds, callers=1_000),
        ),
        (
            "1,000 async callers, one hot account",
            partial(bench.loop_on, names=names[:1], seconds=seconds, callers=1_000),
        ),
        (
            f"consume_many, {BULK:,} a call",
            partial(bench.bulk_on, names=names, seconds=seconds, size=BULK),
        ),
    ]


def _on(
    fresh: Callable[[], str], way: str, measure: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Measure on a new ledger that is written this way."""
    url = fresh()
    store = PostgresStore(url)
    store.set_writing("append" if way == "append" else "locks")
    store.close()
    return measure(url)


@contextmanager
def _own_schema(url: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Give a URL for tables of our own, and a way to get more of them; all are dropped."""
    made: list[str] = []

    def fresh() -> str:
        name = f"tillroll_bench_{secrets.token_hex(4)}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        made.append(name)
        parts = conninfo.conninfo_to_dict(url)
        given = str(parts.pop("options", ""))
        options = f"{given} -csearch_path={name}".strip()
        where = conninfo.make_conninfo("", **{**parts, "options": options})
        return f"postgresql://?{_query(where)}"

    try:
        yield fresh(), fresh
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            for name in made:
                connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def _query(dsn: str) -> str:
    from urllib.parse import urlencode  # noqa: PLC0415 - only here

    return urlencode({k: str(v) for k, v in conninfo.conninfo_to_dict(dsn).items()})


def _bare(url: str, seconds: float) -> dict[str, Any]:
    body = "x" * 300
    times = []
    with psycopg.connect(url, autocommit=True) as connection:
        began = time.perf_counter()
        while (start := time.perf_counter()) - began < seconds:
            connection.execute("INSERT INTO floor (body) VALUES (%s)", (body,))
            times.append(time.perf_counter() - start)
        took = time.perf_counter() - began
    return bench.figures(times, took)


def _naive(url: str, names: list[str], seconds: float, threads: int) -> dict[str, Any]:
    """Measure the transaction people write first: guarded UPDATE, INSERT, COMMIT."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE counters, charges")
        rows = [(name, 1_000_000_000) for name in names]
        cursor.executemany("INSERT INTO counters VALUES (%s, %s)", rows)
    started = threading.Barrier(threads)

    def work(number: int, times: list[float], stop: float) -> None:
        draw = random.Random(number)  # noqa: S311 - load, not a secret
        count = 0
        with psycopg.connect(url) as connection:
            started.wait()
            while (start := time.perf_counter()) < stop:
                name = draw.choice(names)
                connection.execute(_CHARGE, (name,))
                connection.execute(_ENTER, (name, f"{number}-{count}"))
                connection.commit()
                count += 1
                times.append(time.perf_counter() - start)

    return bench.in_threads(threads, seconds, work)
