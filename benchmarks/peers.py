"""Measure what people write on PostgreSQL instead of a ledger, and what PostgreSQL can do at most.

    python benchmarks/peers.py [--seconds 5] [--accounts 10000] [--only asyncpg] [--json]

It starts a server of its own with PostgreSQL's own settings (fsync, full_page_writes and
synchronous_commit are on), or takes the newest here; see `tests/servers`. Each charge is the same
work everywhere: look for a duplicate of the request id, check the balance, write one ledger row,
write the new balance, commit. After each run the rows must add up to what the balances lost.

Speed is reported, never asserted. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import asyncpg
import psycopg
from sqlalchemy import BigInteger, UniqueConstraint, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.servers.cluster import Cluster
from tillroll.cli.bench import machine

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 32
CALLERS = (32, 1_000)
BATCHES = (100, 1_000, 5_000)
GRANTED = 1_000_000_000
SCHEMA = """
CREATE TABLE balances (
    account_id bigint PRIMARY KEY,
    units bigint NOT NULL CHECK (units >= 0),
    seq bigint NOT NULL
);
CREATE TABLE entries (
    account_id bigint NOT NULL,
    seq bigint NOT NULL,
    request_id text NOT NULL,
    units bigint NOT NULL,
    balance bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account_id, seq),
    UNIQUE (request_id, account_id)
);
CREATE TABLE floor (id bigserial PRIMARY KEY, body text NOT NULL);
"""
CHARGE = """
UPDATE balances SET units = units - $2, seq = seq + 1
WHERE account_id = $1 AND units >= $2 RETURNING seq, units
"""
ENTER = """
INSERT INTO entries (account_id, seq, request_id, units, balance) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (request_id, account_id) DO NOTHING RETURNING 1
"""
# All in one round trip. A duplicate breaks the unique index, which undoes the UPDATE as well.
ONE_STATEMENT = """
WITH charged AS (
    UPDATE balances SET units = units - $2, seq = seq + 1
    WHERE account_id = $1 AND units >= $2 RETURNING seq, units
)
INSERT INTO entries (account_id, seq, request_id, units, balance)
SELECT $1, seq, $3, $2, units FROM charged RETURNING balance
"""


class Measured(NamedTuple):
    """What one run gave: how many charges, and how long each of its calls took."""

    charges: int
    seconds: float
    latencies: list[float]


class Peer(Protocol):
    """One way to charge an account on PostgreSQL."""

    name: str

    def setup(self, accounts: int) -> None:
        """Make the tables anew, and give every account more than it can spend."""

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Charge one unit at a time, on all accounts alike or on a single one."""

    def remove(self) -> None:
        """Drop the tables."""


# ---------------------------------------------------------------- naive ways, asynchronous


class Naive:
    """What the asynchronous peers share: the tables, the callers, the look whether it adds up."""

    name = ""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.database = cluster.create_database()
        self.url = cluster.url(self.database)
        self.accounts = 0

    def setup(self, accounts: int) -> None:
        """Make the tables anew, and give every account more than it can spend."""
        self.accounts = accounts
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS balances, entries, floor")
            connection.execute(SCHEMA)
            connection.execute(
                "INSERT INTO balances SELECT id, %s, 0 FROM generate_series(1, %s) AS id",
                (GRANTED, accounts),
            )
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")  # every run begins with the same whole-page writes

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Charge one unit at a time, on all accounts alike or on a single one."""
        measured = asyncio.run(self._run(seconds, callers, hot=hot))
        self.audit(measured.charges)
        return measured

    def audit(self, count: int) -> None:
        """Check that every charge is one row, and that the balances lost what the rows say."""
        [(rows, units)] = self.cluster.run(
            "SELECT count(*), coalesce(sum(units), 0) FROM entries", database=self.database
        )
        [(lost,)] = self.cluster.run(
            "SELECT sum(%s::bigint - units) FROM balances", GRANTED, database=self.database
        )
        if not rows == units == lost == count:
            raise SystemExit(f"{self.name}: {count} charges, {rows} rows, {lost} units gone")

    def remove(self) -> None:
        """Drop the tables."""
        self.cluster.drop_database(self.database)

    async def _run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        draw = random.Random(callers)
        latencies: list[float] = []
        await self.open()
        try:
            await self.charge(1, str(uuid.uuid4()))  # statements are prepared, mappers configured
            began = time.perf_counter()
            stop = began + seconds

            async def caller() -> None:
                while (start := time.perf_counter()) < stop:
                    account = 1 if hot else draw.randint(1, self.accounts)
                    if not await self.charge(account, str(uuid.uuid4())):
                        raise SystemExit(f"{self.name}: a charge was refused")
                    latencies.append(time.perf_counter() - start)

            await asyncio.gather(*(caller() for _ in range(callers)))
            took = time.perf_counter() - began
        finally:
            await self.close()
        return Measured(len(latencies) + 1, took, latencies)

    async def open(self) -> None:
        """Connect, CONNECTIONS times."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect."""
        raise NotImplementedError

    async def charge(self, account: int, request_id: str) -> bool:
        """Charge one unit; return whether there was enough and the id was new."""
        raise NotImplementedError


async def _nothing_to_reset(_: object) -> None:
    """Spare the pool its statement at each return: a charge leaves nothing on the session."""


class Asyncpg(Naive):
    """A guarded UPDATE and an INSERT in one transaction, on asyncpg."""

    name = "asyncpg: UPDATE, INSERT ON CONFLICT"
    pool: Any

    async def open(self) -> None:
        """Connect, CONNECTIONS times."""
        self.pool = await asyncpg.create_pool(
            self.url,
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            reset=_nothing_to_reset,
        )

    async def close(self) -> None:
        """Disconnect."""
        await self.pool.close()

    async def charge(self, account: int, request_id: str) -> bool:
        """Charge one unit; return whether there was enough and the id was new."""
        async with self.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            charged = await connection.fetchrow(CHARGE, account, 1)
            if charged:
                seq, units = charged
                if await connection.fetchval(ENTER, account, seq, request_id, 1, units):
                    await transaction.commit()
                    return True
            await transaction.rollback()
            return False


class AsyncpgStatement(Asyncpg):
    """The same in one statement that commits itself: what a careful hand makes of it."""

    name = "asyncpg: all in one statement"

    async def charge(self, account: int, request_id: str) -> bool:
        """Charge one unit; return whether there was enough and the id was new."""
        try:
            return await self.pool.fetchval(ONE_STATEMENT, account, 1, request_id) is not None
        except asyncpg.UniqueViolationError:
            return False


class Psycopg(Naive):
    """A guarded UPDATE and an INSERT in one transaction, on psycopg's asynchronous connections."""

    name = "psycopg: UPDATE, INSERT ON CONFLICT"

    async def open(self) -> None:
        """Connect, CONNECTIONS times."""
        self.turns = asyncio.Semaphore(CONNECTIONS)  # first come, first served; a queue is not
        self.idle = [await psycopg.AsyncConnection.connect(self.url) for _ in range(CONNECTIONS)]

    async def close(self) -> None:
        """Disconnect."""
        for connection in self.idle:
            await connection.close()

    async def charge(self, account: int, request_id: str) -> bool:
        """Charge one unit; return whether there was enough and the id was new."""
        async with self.turns:
            connection = self.idle.pop()
            try:
                return await self._charge(connection, account, request_id)
            finally:
                self.idle.append(connection)

    async def _charge(
        self, connection: psycopg.AsyncConnection, account: int, request_id: str
    ) -> bool:
        cursor = psycopg.AsyncRawCursor(connection)
        await cursor.execute(CHARGE, (account, 1))
        charged = await cursor.fetchone()
        if charged:
            seq, units = charged
            await cursor.execute(ENTER, (account, seq, request_id, 1, units))
            if await cursor.fetchone():
                await connection.commit()
                return True
        await connection.rollback()
        return False


class Base(DeclarativeBase):
    """The mapped tables."""


class Balance(Base):
    """An account's balance."""

    __tablename__ = "balances"
    account_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    units: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)


class Entry(Base):
    """A row of the ledger."""

    __tablename__ = "entries"
    __table_args__ = (UniqueConstraint("request_id", "account_id"),)
    account_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    request_id: Mapped[str]
    units: Mapped[int] = mapped_column(BigInteger)
    balance: Mapped[int] = mapped_column(BigInteger)


class Orm(Naive):
    """The row locked and read, looked at, changed and flushed, by SQLAlchemy's ORM on asyncpg."""

    name = "SQLAlchemy ORM: SELECT FOR UPDATE"
    session: async_sessionmaker[AsyncSession]

    async def open(self) -> None:
        """Connect, CONNECTIONS times."""
        self.engine = create_async_engine(
            self.url.replace("postgresql:", "postgresql+asyncpg:"),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=600,
        )
        self.session = async_sessionmaker(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        """Disconnect."""
        await self.engine.dispose()

    async def charge(self, account: int, request_id: str) -> bool:
        """Charge one unit; return whether there was enough and the id was new."""
        async with self.session() as session, session.begin():
            balance = await session.get_one(Balance, account, with_for_update=True)
            same = select(Entry).where(Entry.request_id == request_id, Entry.account_id == account)
            if await session.scalar(same) or balance.units < 1:
                return False
            balance.units -= 1
            balance.seq += 1
            session.add(
                Entry(
                    account_id=account,
                    seq=balance.seq,
                    request_id=request_id,
                    units=1,
                    balance=balance.units,
                )
            )
        return True


# ---------------------------------------------------------------- what PostgreSQL can do at most


class Floor(Naive):
    """One insert into one table in each commit, by pgbench: as fast as commits are here."""

    name = "pgbench: one insert a commit"

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Insert by so many clients; there is no account, so none is hot."""
        assert not hot
        folder = self.cluster.folder
        script = folder / "floor.sql"
        script.write_text("INSERT INTO floor (body) VALUES (repeat('x', 100));\n")
        command = [str(self.cluster.bin / "pgbench"), "--no-vacuum", "--protocol=prepared"]
        command += [f"--file={script}", f"--client={callers}", f"--jobs={min(callers, 2)}"]
        command += [f"--time={max(1, round(seconds))}", "--log", f"--log-prefix={folder}/floor"]
        began = time.perf_counter()
        subprocess.run([*command, self.url], check=True, capture_output=True)
        took = time.perf_counter() - began
        latencies = []
        for log in folder.glob("floor.[0-9]*"):
            latencies += [int(row.split()[2]) / 1e6 for row in log.read_text().splitlines()]
            log.unlink()
        return Measured(len(latencies), took, latencies)


class Copy(Naive):
    """Ledger rows by COPY, a batch in each commit, with both unique indexes: no balance at all."""

    def __init__(self, cluster: Cluster, batch: int) -> None:
        super().__init__(cluster)
        self.batch = batch
        self.name = f"COPY: {batch:,} rows a commit"

    def run(self, seconds: float, callers: int, *, hot: bool) -> Measured:
        """Copy batches one after the other; only the time from the first row to the commit counts.

        Making the text of a batch is not COPY's work, and is left out.
        """
        assert callers == 1
        draw = random.Random(self.batch)
        seqs = itertools.count(1)
        latencies: list[float] = []
        with psycopg.connect(self.url) as connection:
            while sum(latencies) < seconds:
                block = "".join(
                    f"{1 if hot else draw.randint(1, self.accounts)}\t{next(seqs)}"
                    f"\t{uuid.uuid4()}\t1\t1000\n"
                    for _ in range(self.batch)
                ).encode()
                start = time.perf_counter()
                into = "COPY entries (account_id, seq, request_id, units, balance) FROM STDIN"
                with connection.cursor().copy(into) as copy:
                    copy.write(block)
                connection.commit()
                latencies.append(time.perf_counter() - start)
        return Measured(len(latencies) * self.batch, sum(latencies), latencies)


# ---------------------------------------------------------------- report


class Plan(NamedTuple):
    """One line of the report."""

    peer: Callable[[Cluster], Peer]
    callers: int
    hot: bool = False


def plans() -> list[Plan]:
    """Return what is measured, in the order of the report."""
    charged = (Asyncpg, AsyncpgStatement, Psycopg, Orm)
    return [
        *(Plan(Floor, clients) for clients in (1, CONNECTIONS)),
        *(Plan(partial(Copy, batch=batch), 1) for batch in BATCHES),
        *(Plan(peer, callers) for peer in charged for callers in CALLERS),
        *(Plan(peer, CALLERS[0], hot=True) for peer in charged),
    ]


def measure(peer: Peer, plan: Plan, seconds: float, accounts: int) -> dict[str, Any]:
    """Run one plan on new tables."""
    peer.setup(accounts)
    measured = peer.run(seconds, plan.callers, hot=plan.hot)
    cuts = statistics.quantiles(measured.latencies, n=100)
    return {
        "name": peer.name,
        "callers": plan.callers,
        "hot": plan.hot,
        "per_second": round(measured.charges / measured.seconds),
        "p50_ms": round(cuts[49] * 1_000, 3),
        "p99_ms": round(cuts[98] * 1_000, 3),
    }


def main() -> None:
    """Measure all peers and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long each is measured")
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with Cluster() as cluster:
        for plan in plans():
            peer = plan.peer(cluster)
            if arguments.only.lower() not in peer.name.lower():
                continue
            row = measure(peer, plan, arguments.seconds, arguments.accounts)
            peer.remove()
            rows.append(row)
            if not arguments.json:
                where = "1 hot account" if row["hot"] else ""
                print(
                    f"{row['name']:<38}{row['callers']:>6,} callers {where:<14}"
                    f"{row['per_second']:>8,}/s  p50 {row['p50_ms']:>8.2f} ms"
                    f"  p99 {row['p99_ms']:>8.2f} ms",
                    flush=True,
                )
        report = {
            "machine": {**machine(), "postgresql": cluster.show("server_version")},
            "accounts": arguments.accounts,
            "connections": CONNECTIONS,
            "rows": rows,
        }
    if arguments.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
