"""The same for event loops: one statement at a time, and nothing behind the program's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest

import tillroll
from tests.joined.conftest import opened
from tests.joined.sides import ORDERS, AsyncSide, GaveUp
from tests.servers.cluster import Cluster

Place = tuple[str, Any]
Scene = Callable[[tillroll.AsyncLedger, AsyncSide], Awaitable[None]]


def play(place: Place, scene: Scene) -> None:
    """Run a scene with 100 units on an account, and verify what it leaves behind."""
    url, side = place

    async def main() -> None:
        with opened(url) as ledger:
            ledger.grant("acme", 100)
            async with side(url) as program:
                async with program.transaction():
                    await program.run(ORDERS)
                await scene(tillroll.AsyncLedger(ledger._engine), program)
            assert ledger.verify().ok

    asyncio.run(main())


@asynccontextmanager
async def rolled_back(program: AsyncSide) -> AsyncIterator[None]:
    with suppress(GaveUp):
        async with program.transaction():
            yield
            raise GaveUp


def test_it_lasts_with_the_transaction(place: Place):
    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        async with rolled_back(program):
            await program.run("INSERT INTO orders VALUES ('order-1')")
            assert (await joined.consume("acme", units=30, request_id="r1")).available == 70
            with pytest.raises(tillroll.InsufficientUnits):
                await joined.consume("acme", units=300, request_id="r2")
            assert (await joined.balance("acme")).available == 70
        assert (await ledger.balance("acme")).available == 100
        for _ in range(2):
            async with program.transaction():
                await joined.consume("acme", units=30, request_id="r1")
        assert (await ledger.consume("acme", units=30, request_id="r1")).replayed
        assert (await ledger.balance("acme")).available == 70
        with pytest.raises(tillroll.NotFound):
            await ledger.explain("r2")

    play(place, scene)


def test_tasks_take_turns(place: Place):
    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        async with program.transaction():
            receipts = await asyncio.gather(
                *(joined.consume("acme", units=1, request_id=f"r{n % 10}") for n in range(20)),
                *(joined.balance("acme") for _ in range(5)),
            )
            outcomes = await joined.consume_many([{"account": "acme", "units": 1}] * 7)
        assert len({receipt.seq for receipt in receipts[:20]}) == 10
        assert all(outcome.ok for outcome in outcomes)
        assert (await ledger.balance("acme")).available == 83

    play(place, scene)


def test_holds(place: Place):
    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        async with program.transaction():
            async with joined.hold("acme", units=50) as hold:
                await hold.settle(10)
            left = await joined.hold("acme", units=50, request_id="job")
        await ledger.release("acme", left.id)
        assert (await ledger.balance("acme")).available == 90
        with pytest.raises(GaveUp):
            async with program.transaction(), joined.hold("acme", units=50):
                raise GaveUp
        assert (await ledger.balance("acme")).available == 90

    play(place, scene)


def test_a_hold_whose_task_is_cancelled(place: Place):
    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        opened_hold = asyncio.Event()
        found = []

        async def work() -> None:
            async with program.transaction():
                try:
                    async with joined.hold("acme", units=50, request_id="job") as hold:
                        opened_hold.set()
                        await asyncio.Event().wait()
                except asyncio.CancelledError:
                    found.append(await hold.state())
                    raise

        task = asyncio.create_task(work())
        await opened_hold.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert found == ["in_doubt"]
        assert (await ledger.balance("acme")).held == 0

    play(place, scene)


def waits(postgres: Cluster) -> bool:
    """Return whether the server lets somebody wait; a cancelling that came sooner would be lost."""
    return postgres.run("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)]


def test_a_task_that_is_cancelled_while_it_waits(postgres: Cluster, postgres_url: str):
    """The lock is given up, nothing is written, and the program's transaction goes on."""

    async def main() -> None:
        with tillroll.open(postgres_url) as ledger:
            ledger.grant("acme", 100)
            many = tillroll.AsyncLedger(ledger._engine)
            connect = psycopg.AsyncConnection.connect
            async with await connect(postgres_url) as one, await connect(postgres_url) as two:
                await two.execute("CREATE TABLE orders (id int)")
                await many.join(one).consume("acme", units=1)
                joined = many.join(two)
                waiting = asyncio.create_task(joined.consume("acme", units=1, request_id="r"))
                queued = asyncio.create_task(joined.consume("acme", units=1, request_id="q"))
                while not await asyncio.to_thread(waits, postgres):
                    pass
                for task in (queued, waiting):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                await two.execute("INSERT INTO orders VALUES (1)")
                await two.commit()
                await one.commit()
                assert (await joined.consume("acme", units=1)).available == 98
                await two.commit()
                for name in ("r", "q"):
                    with pytest.raises(tillroll.NotFound):
                        await many.explain(name)
            assert ledger.verify().ok

    asyncio.run(main())


def test_nothing_of_a_cancelled_task_comes_after_the_rollback(place: Place):
    """Cancelled anywhere on its way, a charge is in the transaction or nowhere."""

    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        for turns in range(0, 400, 40):

            async def work(nth: int = turns) -> None:
                async with program.transaction():
                    await joined.consume("acme", units=1, request_id=f"r{nth}")
                    raise GaveUp

            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, GaveUp)):
                await task
            assert (await ledger.balance("acme")).used == 0

    play(place, scene)


def test_a_database_of_another_ledger(place: Place):
    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        with tillroll.open("memory://") as other:
            joined._engine.store.secret = other.store.secret  # type: ignore[misc]
        async with program.transaction():
            with pytest.raises(tillroll.SchemaMismatch):
                await joined.consume("acme", units=1)
            await program.run("INSERT INTO orders VALUES ('kept')")
        assert (await ledger.balance("acme")).used == 0

    play(place, scene)


def test_outside_of_a_transaction(place: Place):
    """A connection that begins by itself has begun; any other says so."""

    async def scene(ledger: tillroll.AsyncLedger, program: AsyncSide) -> None:
        joined = ledger.join(program.given)
        if "block" not in place[1].__name__:
            assert (await joined.consume("acme", units=1)).available == 99
            await program.given.rollback()
        else:
            with pytest.raises(tillroll.InvalidInput, match="begin one"):
                await joined.consume("acme", units=1)
        assert (await ledger.balance("acme")).used == 0

    play(place, scene)
