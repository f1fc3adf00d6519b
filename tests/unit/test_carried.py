"""What is carried over from period to period, and with which grant it had come."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

import tillroll
from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_in
from tillroll.ledger.commands import Void, account_id
from tillroll.ledger.moves import NOBODYS, PARTS_MAX, carried, unused
from tillroll.ledger.types import Account, Entry, Grant, Recurring, Terms

ONE = 10**6


class Bench:
    """A daily grant of 100 that carries over up to 60."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)
        self.ledger.set_recurring(
            "acme", "plan", 100, anchor=date(2026, 1, 1), every="day", rollover_max=60
        )

    @property
    def available(self) -> int:
        return int(self.ledger.balance("acme").available)

    def next_day(self) -> None:
        self.now += timedelta(days=1)
        self.ledger.freeze("acme")  # something is written, so that what is due is booked
        self.ledger.unfreeze("acme")

    def account(self) -> Account:
        owner = account_id("default", "acme")
        with self.ledger.store.read() as reader:
            accounts, _ = reader.load("default", {owner: "acme"}, [])
        return accounts[owner]

    def parts(self) -> dict[str, int]:
        """What is left of the grant that runs, by the grant that it came with."""
        account = self.account()
        grant = account.grants[account.recurring["plan"].current or ""]
        whole = grant.parts or {grant.terms.id: grant.terms.units}
        return {name: units // ONE for name, units in unused(whole, grant.remaining).items()}

    def take(self, line: str, origin: str, units: int) -> Entry:
        """Void units that had come with a grant."""
        void = verbs_of(self.ledger._engine, "default", ours=True).void("acme", line, units=units)
        assert isinstance(void.command, Void)
        void = replace(void, command=replace(void.command, origin=origin))
        now = self.ledger._engine.clock()
        answers = self.ledger._engine.perform(
            lambda tx: answer_in(tx, self.ledger.store.scale, [void], now)
        )
        outcome: Any = answers[0].outcome
        assert isinstance(outcome, Entry)
        return outcome


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_carried_is_used_first(bench: Bench):
    [first] = bench.parts()
    bench.next_day()
    one, two = bench.parts()
    assert (one, bench.parts()) == (first, {first: 60, two: 100})
    bench.ledger.consume("acme", units=45, request_id="c")
    assert bench.parts() == {first: 15, two: 100}
    bench.ledger.refund("acme", "c", units=5)
    assert bench.parts() == {first: 20, two: 100}
    bench.ledger.consume("acme", units=70)
    assert bench.parts() == {two: 50}


def test_what_came_first_expires_first(bench: Bench):
    [first] = bench.parts()
    bench.next_day()
    bench.ledger.consume("acme", units=110)
    bench.next_day()
    second, third = bench.parts()
    assert first not in bench.parts()
    assert bench.parts() == {second: 50, third: 100}
    bench.next_day()
    assert bench.available == 160
    assert list(bench.parts().values()) == [60, 100]


def test_a_part_is_taken_and_no_other(bench: Bench):
    [first] = bench.parts()
    bench.next_day()
    _, second = bench.parts()
    taken = bench.take(second, second, 130)
    assert (taken.units, taken.shortfall, taken.origin) == (100 * ONE, 30 * ONE, second)
    assert bench.parts() == {first: 60}
    bench.ledger.consume("acme", units=10)
    assert bench.take(second, first, 20).shortfall == 0
    assert bench.parts() == {first: 30}
    assert bench.take(second, "another", 5).shortfall == 5 * ONE
    assert bench.take("~plan/2", first, 5).units == 0, "it is over"
    bench.next_day()
    assert list(bench.parts().values()) == [30, 100]
    assert bench.available == 130
    assert bench.ledger.verify().ok


@pytest.mark.parametrize(("wallet", "available"), [("credits", 160), ("other", 100)])
def test_a_late_renewal_carries_what_the_grant_lost(wallet: str, available: int):
    bench = Bench()
    ends = bench.now + timedelta(days=1)
    day: dict[str, Any] = {"units": 100, "every": "day", "rollover_max": 60}
    bench.ledger.entitle("zoe", "pro", grants=[day], every="day", paid_until=ends)
    bench.ledger.consume("zoe", units=30)
    bench.now = ends + timedelta(hours=1)
    assert bench.ledger.balance("zoe").available == 0
    moved = [{**day, "name": "credits", "wallet": wallet}]
    bench.ledger.entitle("zoe", "pro", grants=moved, every="day", paid_until="never")
    assert bench.ledger.balance("zoe", wallet).available == available
    bench.now += timedelta(days=1)
    assert bench.ledger.balance("zoe", wallet).available == 160, "of what is lost nothing is twice"
    assert bench.ledger.verify().ok


def test_of_many_parts_the_oldest_are_nobodys():
    parts = {f"g{nth}": 1 for nth in range(PARTS_MAX + 5)}
    found = carried(parts, 10**6, Terms("new", 100))
    assert (len(found), found[NOBODYS], sum(found.values())) == (PARTS_MAX + 1, 6, 100)
    assert found["new"] == 100 - len(parts)
    assert carried({}, 5, Terms("new", 100)) == {}
    assert carried({"a": 5}, 0, Terms("new", 100)) == {}


def test_states_that_were_stored_before_are_read():
    grant = b'{"terms":{"id":"g","units":5},"remaining":5}'
    assert msgspec.json.encode(msgspec.json.decode(grant, type=Grant)) == grant
    recurring = b'{"terms":{"name":"plan","units":5},"next":3,"current":"g"}'
    assert msgspec.json.encode(msgspec.json.decode(recurring, type=Recurring)) == recurring
