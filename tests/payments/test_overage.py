"""Postpaid overage: whole numbers, one identifier a batch, nothing twice and nothing lost."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

import tillroll
from tests.payments.conftest import World, clock
from tillroll.payments import overage
from tillroll.wire.problems import ProviderUnavailable


def begin(world: World) -> None:
    world.ledger.set_overdraft("acme", 1_000)
    world.ledger.grant("acme", 10)
    overage.set_overage(world.desk, "acme", "api_units")


def reported(world: World) -> list[int]:
    return [int(event["payload"]["value"]) for event in world.fake.meter_events.values()]


def test_what_is_beyond_the_units_is_reported(world: World):
    begin(world)
    world.ledger.consume("acme", units=8)
    assert overage.round_of(world.desk) == 0
    world.ledger.consume("acme", units="5.75")
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [3]
    world.ledger.consume("acme", units="0.5", request_id="later")
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [3, 1], "what was less than one is carried on"
    with world.ledger.store.read() as reader:
        found = overage.overage_of(reader, "default", "acme")
    assert (found.sent, found.carry, found.pending) == (4, 250_000, None)
    [event, _] = world.fake.meter_events.values()
    assert event["event_name"] == "api_units"
    assert event["payload"]["stripe_customer_id"] == world.desk.customer("acme")


def test_what_came_back_is_set_off(world: World):
    begin(world)
    world.ledger.consume("acme", units=30, request_id="c")
    world.wait(minutes=10)
    overage.round_of(world.desk)
    world.ledger.refund("acme", "c", units=15)
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 0
    world.ledger.hold("acme", units=18, request_id="h")
    world.ledger.settle("acme", "h", units=18)
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [20, 3]


@pytest.mark.parametrize("failing", ["down", "lost"])
def test_a_batch_that_may_have_arrived_is_sent_again_as_it_was(world: World, failing: str):
    begin(world)
    world.desk.customer("acme")
    world.ledger.consume("acme", units=30)
    world.fake.fail = [failing] * 3
    with pytest.raises(ProviderUnavailable):
        overage.round_of(world.desk)
    world.fake.fail = []
    world.ledger.consume("acme", units=7)
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [20]
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [20, 7]


class Killed(BaseException):
    """The process is no more."""


@pytest.mark.parametrize(
    "place", ["before it is noted", "before it is sent", "before it is struck"]
)
def test_killed_at_any_place_nothing_is_lost_or_sent_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str
):
    begin(world)
    world.desk.customer("acme")
    world.ledger.consume("acme", units=30)
    engine, provider = world.ledger._engine, world.desk.asked
    perform, report = engine.perform, provider.report

    def die(*_: object) -> None:
        raise Killed

    def send_and_die(usage: Any) -> None:
        report(usage)
        monkeypatch.setattr(engine, "perform", die)

    with monkeypatch.context() as patch:
        if place == "before it is noted":
            patch.setattr(engine, "perform", die)
        else:
            patch.setattr(provider, "report", die if place.endswith("sent") else send_and_die)
        with pytest.raises(Killed):
            overage.round_of(world.desk)
    monkeypatch.setattr(engine, "perform", perform)
    world.ledger.consume("acme", units=7)
    for _ in range(3):
        world.wait(minutes=10)
        overage.round_of(world.desk)
    assert sum(reported(world)) == 27


def test_a_batch_that_stripe_may_have_forgotten_is_left_to_somebody(world: World):
    begin(world)
    world.desk.customer("acme")
    for arrived in (True, False):
        world.ledger.consume("acme", units=30)
        world.wait(minutes=10)
        world.fake.fail = ["lost" if arrived else "down"] * 3
        with pytest.raises(ProviderUnavailable):
            overage.round_of(world.desk)
        world.fake.fail = []
        world.wait(hours=30)
        assert overage.round_of(world.desk) == 0
        with world.ledger.store.read() as reader:
            assert overage.overage_of(reader, "default", "acme").state == "in_doubt"
        overage.resolve(world.desk, "acme", arrived=arrived)
        with pytest.raises(tillroll.InvalidInput):
            overage.resolve(world.desk, "acme", arrived=arrived)
        world.wait(minutes=10)
        assert overage.round_of(world.desk) == (0 if arrived else 1)
    assert sum(reported(world)) == 50, "10 of 60 were paid before"


def test_it_is_stopped_and_goes_on(world: World):
    begin(world)
    assert overage.stop_overage(world.desk, "acme").state == "stopped"
    world.ledger.consume("acme", units=30)
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 0
    overage.set_overage(world.desk, "acme", "other")
    assert overage.round_of(world.desk) == 1
    assert reported(world) == [20]
    with pytest.raises(tillroll.InvalidInput):
        overage.set_overage(world.desk, "acme", "")
    with pytest.raises(tillroll.NotFound):
        overage.stop_overage(world.desk, "nobody")


@pytest.mark.parametrize(
    ("back", "state"), [(timedelta(minutes=4), "running"), (timedelta(hours=2), "in_doubt")]
)
def test_a_batch_that_seems_to_be_from_later_than_now(world: World, back: timedelta, state: str):
    """Two clocks may differ by a little; after more than that nobody knows how old it is."""
    begin(world)
    world.ledger.consume("acme", units=30)
    world.wait(minutes=10)
    world.fake.fail = ["down"] * 9
    with pytest.raises(ProviderUnavailable):
        overage.round_of(world.desk)
    world.fake.fail = []
    clock.now -= back
    with world.ledger.store.read() as reader:
        [note] = reader.notes_due("default", overage.KIND, 2**62)
    world.ledger._engine.perform(lambda tx: tx.copy_notes([replace(note, due_at=0)]))
    overage.round_of(world.desk)
    with world.ledger.store.read() as reader:
        assert overage.overage_of(reader, "default", "acme").state == state
