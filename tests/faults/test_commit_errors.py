"""A COMMIT that errs is unknown, not failed: looked up where possible, never guessed."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

import tillroll
from tests.faults.rig import START, Gate, all_at_once, crash, dump, ledger_on
from tillroll.embedded import AsyncLedger, Ledger
from tillroll.engine import Engine
from tillroll.ledger.pricing import Price
from tillroll.ledger.receipts import Receipt
from tillroll.stores.sqlite import SqliteStore
from tillroll.testing.faulty_vfs import FaultyDisk

CALLERS = 8


class Site:
    """A ledger with 100 units, on a disk to be broken, behind a gate that gathers a batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disk = FaultyDisk()
        self.store = SqliteStore(path, vfs=self.disk.name, busy_seconds=1)
        self.gate = Gate(self.store)
        self.ledger = Ledger(Engine(self.gate, clock=lambda: START))
        self.ledger.grant("acme", 100, request_id="g")

    def batch(self, *, times: int | None) -> list[object]:
        """Have 8 callers consume 5 each in one batch, whose sync errs."""
        acts = [
            partial(self.ledger.consume, "acme", units=5, request_id=f"c{number}")
            for number in range(CALLERS)
        ]
        fail = partial(self.disk.fail, kinds=["sync"], times=times)
        return all_at_once(self.ledger, self.gate, acts, fail)

    def spendable(self) -> int:
        return int(self.ledger.balance("acme").spendable)

    def recoveries(self) -> int:
        with self.store.read() as reader:
            sql = "SELECT value FROM tillroll_meta WHERE name = 'recoveries'"
            return int(reader.connection.execute(sql).get or 0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "credits.db")
    with site.disk:
        yield site
        site.disk.heal()
        site.ledger.close()


def test_a_batch_that_is_not_there_is_told_so(site: Site):
    """One sync errs; opening the file anew shows that nothing of the batch came about."""
    told = site.batch(times=1)
    assert [type(error) for error in told] == [tillroll.StoreUnavailable] * CALLERS
    assert site.spendable() == 100
    assert site.recoveries() == 1
    receipts = [site.ledger.consume("acme", units=5, request_id=f"c{n}") for n in range(CALLERS)]
    assert not any(receipt.replayed for receipt in receipts)
    assert site.spendable() == 60
    assert site.ledger.verify().ok


def test_a_batch_that_is_there_after_all_is_answered_from_what_is_there(site: Site):
    """The log cannot be cleaned up on closing either: opening it anew finds the whole batch."""
    told = site.batch(times=2)
    assert all(isinstance(receipt, Receipt) for receipt in told)
    assert site.spendable() == 60
    assert site.ledger.consume("acme", units=5, request_id="c3").replayed
    assert site.ledger.verify().ok


def test_what_cannot_be_looked_up_is_unknown_until_the_disk_is_fine_again(
    site: Site, tmp_path: Path
):
    told = site.batch(times=None)
    assert [type(error) for error in told] == [tillroll.OutcomeUnknown] * CALLERS
    assert {error.request_id for error in told if isinstance(error, tillroll.OutcomeUnknown)} == {
        f"c{n}" for n in range(CALLERS)
    }
    # Still broken: what is in doubt stays in doubt, what is new was certainly not written.
    with pytest.raises(tillroll.OutcomeUnknown) as doubt:
        site.ledger.consume("acme", units=5, request_id="c0")
    assert doubt.value.written == "unknown"
    with pytest.raises(tillroll.StoreUnavailable, match="nothing was written") as new:
        site.ledger.consume("acme", units=5, request_id="new")
    assert new.value.written == "nothing"
    held = dump(crash(site.path, tmp_path / "crashed"))["tillroll_entries"]
    assert len(held) in (1, 2, 2 + CALLERS), "whole batches only"

    site.disk.heal()
    assert site.ledger.consume("acme", units=5, request_id="c0").request_id == "c0"
    for number in range(1, CALLERS):
        site.ledger.consume("acme", units=5, request_id=f"c{number}")
    assert site.spendable() == 60
    assert site.ledger.verify().ok
    assert site.store.check() == []


def test_other_acts_are_unknown_too(site: Site):
    """Applying prices is no request with an id, but the same commit."""
    prices = [Price("image.generate", per_request=Decimal(4))]
    site.disk.fail(kinds=["sync"], times=None)
    with pytest.raises(tillroll.OutcomeUnknown, match="look whether it is there"):
        site.ledger.apply_prices(prices, author="ada", reason="first")
    site.disk.heal()
    version = site.ledger.apply_prices(prices, author="ada", reason="first")
    assert version.number == 1
    assert site.ledger.prices().current == 1


def test_callers_on_an_event_loop_are_told_the_same(site: Site):
    async def main() -> tuple[list[object], list[object]]:
        ledger = AsyncLedger(site.ledger._engine)

        def all_of_them() -> asyncio.Future[list[object]]:
            return asyncio.gather(
                *(ledger.consume("acme", units=5, request_id=f"c{n}") for n in range(CALLERS)),
                return_exceptions=True,
            )

        site.disk.fail(kinds=["sync"], times=None)
        first = await all_of_them()
        site.disk.heal()
        return first, await all_of_them()

    broken, healed = asyncio.run(main())
    assert tillroll.OutcomeUnknown in {type(error) for error in broken}
    assert all(isinstance(error, tillroll.StoreError) for error in broken)
    assert all(isinstance(receipt, Receipt) for receipt in healed)
    assert site.spendable() == 60


def test_a_batch_that_errs_before_its_commit_was_not_written(site: Site):
    """A connection that cannot even roll back is thrown away, and the next one is fine."""
    with site.store.write() as tx:
        tx.connection.execute("PRAGMA cache_size = 1")  # so that pages spill before the COMMIT
    acts = [
        partial(
            site.ledger.consume, "acme", units=1, request_id=f"c{n}", metadata={"x": "x" * 3000}
        )
        for n in range(60)
    ]
    then = partial(site.disk.fail, kinds=["write"])
    told = all_at_once(site.ledger, site.gate, acts, then)
    assert {type(error) for error in told} == {tillroll.StoreUnavailable}
    assert all("nothing was written" in str(error) for error in told)
    assert site.recoveries() == 0
    assert site.spendable() == 100
    site.disk.heal()
    assert site.ledger.consume("acme", units=1, request_id="c0").request_id == "c0"
    assert site.ledger.verify().ok


def test_two_ledgers_on_one_file_agree_after_one_of_them_erred(site: Site):
    """What one process could not commit, another overwrites or never sees."""
    with ledger_on(SqliteStore(site.path)) as other:
        told = site.batch(times=1)
        assert {type(error) for error in told} == {tillroll.StoreUnavailable}
        assert other.balance("acme").spendable == 100
        other.consume("acme", units=1, request_id="other")
        site.ledger.consume("acme", units=5, request_id="c0")
        assert other.balance("acme").spendable == site.spendable() == 94
        assert other.verify().ok
