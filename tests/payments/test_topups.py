"""Auto top-up: charged once, within bounds, and stopped when a card is declined."""

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import tillroll
from tests.payments.conftest import ONE, World, clock
from tillroll.payments import topups
from tillroll.payments.settling import payments_of
from tillroll.wire.problems import ProviderUnavailable


def begin(world: World, **terms: Any) -> None:
    """An account with a card on file, 100 units, and a top-up below 20 up to 150."""
    world.buy()
    world.deliver(world.new_events())
    given = {"threshold": 20, "target": 150, "product": "pack100", **terms}
    topups.set_top_up(world.desk, "acme", **given)


def use(world: World, units: int) -> None:
    world.ledger.consume("acme", units=units)
    world.wait(minutes=2)


def state(world: World) -> tuple[str, str | None]:
    with world.ledger.store.read() as reader:
        found = topups.top_up_of(reader, "default", "acme")
    return found.state, found.reason


def card(world: World, says: str) -> None:
    [customer] = world.fake.of("customer")
    world.fake.cards[customer["id"]] = says


def charged(world: World) -> list[int]:
    return [
        one["amount"]
        for one in world.fake.of("payment_intent")
        if "tillroll_attempt" in one["metadata"] and one["status"] == "succeeded"
    ]


def test_it_charges_when_the_balance_is_low(world: World):
    begin(world)
    assert topups.round_of(world.desk) == 0
    use(world, 79)
    assert (topups.round_of(world.desk), world.available()) == (0, 21)
    use(world, 1)
    assert (topups.round_of(world.desk), world.available()) == (1, 220)
    assert charged(world) == [10_00], "two packs make 150"
    world.deliver(world.new_events())
    assert world.available() == 220, "the webhook tells nothing new"
    entry = list(world.ledger.history("acme"))[-1].entry
    assert (entry.opens[0].product, entry.opens[0].cost_basis) == ("pack100", "0.05")
    assert world.ledger.verify().ok


def test_units_at_their_own_price(world: World):
    begin(world, product=None, unit_price="0.015", currency="USD", target="150.5")
    use(world, 90)
    assert topups.round_of(world.desk) == 1
    assert charged(world) == [2_11], "140.5 at 1.5 cents, rounded up"
    assert world.ledger.balance("acme").available == Decimal("150.5")


def test_a_cool_down_and_caps(world: World):
    begin(world, daily_cap="12", monthly_cap="25", cool_down="1h")
    use(world, 90)
    assert topups.round_of(world.desk) == 1
    use(world, 200)
    assert topups.round_of(world.desk) == 0
    assert state(world) == ("waiting", "cool_down")
    world.wait(hours=1)
    assert topups.round_of(world.desk) == 0
    assert state(world) == ("waiting", "daily_cap")
    with world.ledger.store.read() as reader:
        found = topups.top_up_of(reader, "default", "acme")
    assert datetime.fromtimestamp(found.not_before / ONE, UTC) == datetime(2026, 3, 2, tzinfo=UTC)
    world.wait(hours=24)
    assert topups.round_of(world.desk) == 1
    use(world, 200)
    world.wait(hours=48)
    assert topups.round_of(world.desk) == 0
    assert state(world) == ("waiting", "monthly_cap")
    clock.now = datetime(2026, 4, 1, tzinfo=UTC)
    assert topups.round_of(world.desk) == 1
    assert charged(world) == [10_00] * 3


def test_a_declining_card_is_tried_less_and_less_and_then_no_more(world: World):
    begin(world)
    card(world, "insufficient_funds")
    use(world, 90)
    waits = []
    for _ in range(500):
        topups.round_of(world.desk)
        if state(world)[0] == "paused":
            break
        waits.append(state(world))
        world.wait(minutes=30)
    assert state(world) == ("paused", "insufficient_funds")
    assert set(waits) == {("waiting", "insufficient_funds")}
    tries = [
        one for one in world.fake.of("payment_intent") if one["metadata"].get("tillroll_attempt")
    ]
    assert len(tries) == 4
    world.deliver(world.new_events())
    world.wait(days=30)
    assert topups.round_of(world.desk) == 0
    card(world, "ok")
    assert topups.resume(world.desk, "acme").state == "ready"
    assert (topups.round_of(world.desk), world.available()) == (1, 210)


def bought(world: World) -> int:
    """Return the units that all payments known brought, in the smallest unit."""
    with world.ledger.store.read() as reader:
        paid = payments_of(reader, "default", "acme")
    assert all(one.bought is not None and one.refused is None for one in paid)
    return sum(one.bought.units - one.taken for one in paid if one.bought is not None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_a_declining_card_told_in_every_order(world: World, order: tuple[int, ...]):
    """Declined twice, then charged, then refunded in part; each is told late, and again."""
    begin(world)
    card(world, "insufficient_funds")
    use(world, 90)
    for hours, says in ((0, "insufficient_funds"), (2, "insufficient_funds"), (7, "ok")):
        world.wait(hours=hours)
        card(world, says)
        assert topups.round_of(world.desk) == 1
    [payment] = [
        one["id"]
        for one in world.fake.of("payment_intent")
        if "tillroll_attempt" in one["metadata"] and one["status"] == "succeeded"
    ]
    world.fake.refund(payment, 5_00)
    events = [e for e in world.new_events() if e["type"] != "charge.refunded"]
    assert len(events) == len(order), [e["type"] for e in events]
    told = [events[nth] for nth in order]
    world.deliver([*told, *told[:2]])
    found = world.ledger.balance("acme")
    assert found.issued * ONE == bought(world)
    assert (found.available, len(charged(world))) == (110, 1)
    assert state(world) == ("waiting", "cool_down")
    assert world.ledger.verify().ok


def test_a_stolen_card_is_tried_once(world: World):
    begin(world)
    card(world, "stolen_card")
    use(world, 90)
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("paused", "stolen_card")


def test_no_card_on_file(world: World):
    topups.set_top_up(world.desk, "acme", threshold=1, target=10, product="pack100")
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("paused", "no_payment_method")


@pytest.mark.parametrize("failing", ["down", "lost"])
def test_a_charge_whose_answer_was_lost_is_made_once(world: World, failing: str):
    begin(world)
    use(world, 90)
    world.desk.customer("acme")
    call = world.fake.call

    def broken(method: str, path: str, asked: Any, key: str | None) -> Any:
        if path == "/v1/payment_intents":
            world.fake.fail = [failing]
        return call(method, path, asked, key)

    world.fake.call = broken  # type: ignore[method-assign]
    with pytest.raises(ProviderUnavailable):
        topups.round_of(world.desk)
    assert state(world) == ("pending", None)
    assert topups.round_of(world.desk) == 0, "it is asked after in a minute"
    world.fake.call = call  # type: ignore[method-assign]
    world.wait(minutes=2)
    assert topups.round_of(world.desk) == 1
    assert charged(world) == [10_00]
    assert world.available() == 210
    assert state(world) == ("waiting", "cool_down")


@pytest.mark.parametrize("arrived", [True, False])
def test_a_key_that_stripe_may_have_forgotten_is_not_used_again(world: World, *, arrived: bool):
    begin(world)
    use(world, 90)
    call = world.fake.call

    def broken(method: str, path: str, asked: Any, key: str | None) -> Any:
        if path == "/v1/payment_intents" and method == "POST":
            world.fake.fail = ["lost" if arrived else "down"]
        return call(method, path, asked, key)

    world.fake.call = broken  # type: ignore[method-assign]
    with pytest.raises(ProviderUnavailable):
        topups.round_of(world.desk)
    world.fake.call = call  # type: ignore[method-assign]
    world.fake.answers.clear()  # as Stripe does after a day
    world.wait(hours=30)
    assert topups.round_of(world.desk) == 1
    if not arrived:
        assert state(world) == ("waiting", "never_arrived")
        world.wait(hours=2)
        assert topups.round_of(world.desk) == 1
    assert charged(world) == [10_00]
    assert world.available() == 210


def test_a_slow_charge_is_resolved_by_its_webhook(world: World):
    begin(world)
    card(world, "slow")
    use(world, 90)
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("pending", None)
    world.wait(hours=1)
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("pending", None)
    [intent] = [one for one in world.fake.of("payment_intent") if one["status"] == "processing"]
    world.fake.charge(intent)
    world.deliver(world.new_events())
    assert (state(world), world.available()) == (("waiting", "cool_down"), 210)


def test_killed_after_the_charge_it_goes_on(world: World, monkeypatch: pytest.MonkeyPatch):
    begin(world)
    use(world, 90)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for place in ("hear", "customer"):
        with monkeypatch.context() as patch:
            patch.setattr(world.desk, place, die)
            with pytest.raises(Killed):
                topups.round_of(world.desk)
        world.wait(minutes=2)
    assert topups.round_of(world.desk) == 1
    assert charged(world) == [10_00]
    assert world.available() == 210


def test_paused_by_hand(world: World):
    begin(world)
    assert topups.pause(world.desk, "acme").reason == "by_hand"
    use(world, 90)
    assert topups.round_of(world.desk) == 0
    given: dict[str, Any] = {"threshold": 20, "target": 150, "product": "pack100"}
    assert topups.set_top_up(world.desk, "acme", **given).state == "paused"
    topups.resume(world.desk, "acme")
    card(world, "slow")
    assert topups.round_of(world.desk) == 1
    assert topups.pause(world.desk, "acme").state == "pending"
    [intent] = [one for one in world.fake.of("payment_intent") if one["status"] == "processing"]
    world.fake.charge(intent)
    world.deliver(world.new_events())
    assert (state(world), world.available()) == (("paused", "by_hand"), 210)


def test_an_account_that_is_frozen_is_not_charged(world: World):
    begin(world)
    use(world, 90)
    world.ledger.freeze("acme")
    assert topups.round_of(world.desk) == 0
    assert state(world) == ("paused", "account_frozen")


@pytest.mark.parametrize(
    "terms",
    [
        {"threshold": 10, "target": 10, "product": "pack100"},
        {"threshold": 1, "target": 10},
        {"threshold": 1, "target": 10, "product": "pack100", "unit_price": "1"},
        {"threshold": 1, "target": 10, "unit_price": "1"},
        {"threshold": 1, "target": 10, "unit_price": "0", "currency": "usd"},
        {"threshold": 1, "target": 10, "product": "nothing"},
        {"threshold": 1, "target": 10, "product": "priceless"},
        {"threshold": 1, "target": 10, "product": "pack100", "daily_cap": "0.001"},
        {"threshold": 1, "target": 10, "product": "pack100", "cool_down": "soon"},
    ],
)
def test_what_makes_no_sense(world: World, terms: dict[str, Any]):
    with pytest.raises(tillroll.InvalidInput):
        topups.set_top_up(world.desk, "acme", **terms)
    with world.ledger.store.read() as reader, pytest.raises(tillroll.NotFound):
        topups.top_up_of(reader, "default", "acme")


def test_it_is_shown(world: World):
    begin(world, daily_cap="12")
    use(world, 90)
    topups.round_of(world.desk)
    with world.ledger.store.read() as reader:
        shown = topups.top_up_of(reader, "default", "acme").shown(6)
    assert shown["threshold"] == "20"
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("waiting", "cool_down", 1)
    assert shown["last_paid_at"] == "2026-03-01T12:02:00Z"
    assert shown["not_before"] == "2026-03-01T12:12:00Z"
