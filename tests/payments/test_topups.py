"""Auto top-up: charged once, within bounds, and stopped when a card is declined."""

import asyncio
import itertools
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import tillroll
from tests.payments.conftest import ONE, World, clock
from tillroll.jobs import Job, Turn, Worker
from tillroll.payments import overage, topups
from tillroll.payments.rounds import rounds
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
    world.ledger.grant("acme", 1)
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


def test_a_damaged_account_keeps_no_other_waiting(world: World, tmp_path: Path):
    path = tmp_path / "till.db"
    other = World(f"sqlite:///{path}", world.api_base, world.fake)
    with other.ledger:
        for account in ("acme", "beta"):
            other.buy(account)
            other.deliver(other.new_events())
            given: dict[str, Any] = {"threshold": 20, "target": 150, "product": "pack100"}
            topups.set_top_up(other.desk, account, **given)
    with closing(sqlite3.connect(path)) as file, file:
        harm = "UPDATE tillroll_accounts SET state = json_set(state, '$.seq', 99)"
        file.execute(f"{harm} WHERE account = 'acme'")
    world.wait(minutes=2)
    other = World(f"sqlite:///{path}", world.api_base, world.fake)
    with other.ledger:
        other.ledger.consume("beta", units=90)
        with pytest.raises(tillroll.StoreCorrupt):
            topups.round_of(other.desk)
        assert other.available("beta") == 210
        assert topups.round_of(other.desk) == 0, "it is looked at again after an hour"


# ---------------------------------------------------------------- an answer that was lost


def lose(world: World, how: str = "lost") -> None:
    """Have the next charge's answer be lost, or the charge not arrive at all."""
    call = world.fake.call

    def broken(method: str, path: str, asked: Any, key: str | None) -> Any:
        if (method, path) == ("POST", "/v1/payment_intents"):
            world.fake.fail = [how] * 9
        return call(method, path, asked, key)

    world.fake.call = broken  # type: ignore[method-assign]
    with pytest.raises(ProviderUnavailable):
        topups.round_of(world.desk)
    world.fake.call = call  # type: ignore[method-assign]
    world.fake.fail = []


@pytest.mark.parametrize("how", ["down", "lost"])
def test_a_new_default_card_does_not_change_an_attempt_under_way(world: World, how: str):
    begin(world)
    use(world, 90)
    lose(world, how)
    [customer] = world.fake.of("customer")
    customer["invoice_settings"]["default_payment_method"] = "pm_another"
    world.wait(minutes=2)
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("waiting", "cool_down"), "not refused as another request"
    assert charged(world) == [10_00]
    assert world.available() == 210


def test_a_card_that_was_taken_off_file_is_replaced_by_the_next_attempt(world: World):
    begin(world)
    use(world, 90)
    lose(world, "down")
    [customer] = world.fake.of("customer")
    world.fake.detached.add(f"pm_{customer['id']}")
    customer["invoice_settings"]["default_payment_method"] = "pm_another"
    world.wait(minutes=2)
    assert topups.round_of(world.desk) == 1
    assert state(world) == ("waiting", "resource_missing")
    world.wait(hours=2)
    assert topups.round_of(world.desk) == 1
    assert (charged(world), world.available()) == ([10_00], 210)


def test_an_attempt_that_was_resolved_meanwhile_charges_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    begin(world)
    use(world, 90)
    look = world.desk.asked.card

    def slowly(customer: str) -> str | None:
        with monkeypatch.context() as patch:
            patch.setattr(world.desk.asked, "card", look)
            world.wait(minutes=2)
            assert topups.round_of(world.desk) == 1, "another process was faster"
        return "pm_another"

    monkeypatch.setattr(world.desk.asked, "card", slowly)
    topups.round_of(world.desk)
    assert (charged(world), world.available()) == ([10_00], 210)


def test_a_clock_that_was_ahead_finds_what_it_charged(world: World):
    begin(world)
    use(world, 90)
    right = clock.now
    clock.now += timedelta(hours=20)
    world.fake.now = lambda: int(right.timestamp())  # Stripe's own clock is right
    lose(world)
    world.fake.answers.clear()
    clock.now += timedelta(hours=24)
    assert topups.round_of(world.desk) == 1
    assert (charged(world), world.available()) == ([10_00], 210)


@pytest.mark.parametrize("arrived", [True, False])
def test_a_clock_that_was_set_back_charges_once(world: World, *, arrived: bool):
    begin(world)
    use(world, 90)
    lose(world, "lost" if arrived else "down")
    world.fake.answers.clear()  # as Stripe does after a day
    clock.now -= timedelta(days=2)
    world.fake.now = lambda: int((clock.now + timedelta(days=2)).timestamp())
    note = topups._key(world.desk, "acme", "credits")

    def due(tx: Any) -> None:
        tx.copy_notes([replace(tx.note(note), due_at=0)])

    world.ledger._engine.perform(due)
    assert topups.round_of(world.desk) == 1
    assert (charged(world), world.available()) == ([10_00], 210)


# ---------------------------------------------------------------- whom it is for


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_is_arranged_for_an_account_that_cannot_be_paid_for(world: World, *, closed: bool):
    error: type[tillroll.TillrollError] = tillroll.NotFound
    if closed:
        world.ledger.grant("acme", 1)
        world.ledger.close_account("acme")
        error = tillroll.AccountClosed
    before = list(world.ledger.history("acme"))
    with pytest.raises(error, match="nothing was written"):
        topups.set_top_up(world.desk, "acme", threshold=1, target=10, product="pack100")
    with pytest.raises(error, match="nothing was written"):
        overage.set_overage(world.desk, "acme", "api_units")
    assert list(world.ledger.history("acme")) == before
    with world.ledger.store.read() as reader:
        assert reader.notes() == []


# ---------------------------------------------------------------- at the crossing


def due(world: World) -> bool:
    """Return whether a round would look at the account now."""
    with world.ledger.store.read() as reader:
        return bool(reader.notes_due("default", topups.KIND, world.ledger._engine.clock()))


def falls(world: World, how: str) -> None:
    """Bring the account below what it is topped up at, in one of the ways."""
    if how == "consume":
        world.ledger.consume("acme", units=85)
    elif how == "hold":
        world.ledger.hold("acme", units=85)
    elif how == "many":
        one = {"account": "acme", "units": 17}
        assert all(done.error is None for done in world.ledger.consume_many([one] * 5))
    elif how == "void":
        grant = world.ledger.balance("acme").grants[0]["id"]
        world.ledger.void("acme", grant)
    elif how == "adjust":
        world.ledger.adjust("acme", -85, reason="a mistake")
    else:
        world.ledger.consume("acme", units=70)
        world.wait(days=91)
        assert not world.ledger.balance("acme").available
        assert world.ledger.book_due() == 1


@pytest.mark.parametrize("how", ["consume", "hold", "many", "void", "adjust", "expiry"])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgresql"])
def test_it_is_due_with_what_takes_the_balance_there(
    fake: Any, how: str, kind: str, tmp_path: Any, request: pytest.FixtureRequest
):
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/a.db"}.get(kind)
    world = World(url or request.getfixturevalue("postgres_url"), fake[1], fake[0])
    with world.ledger:
        begin(world)
        assert topups.round_of(world.desk) == 0
        assert not due(world), "it is looked at in a minute"
        world.ledger.consume("acme", units=1)
        assert not due(world)
        falls(world, how)
        assert due(world)
        assert topups.round_of(world.desk) == 1
        assert charged(world)
        assert world.ledger.verify().ok


def test_who_is_not_to_be_charged_is_not_woken(world: World):
    begin(world)
    topups.pause(world.desk, "acme")
    use(world, 90)
    world.wait(days=3)
    assert not due(world)
    assert topups.round_of(world.desk) == 0


def test_a_refused_consume_wakes_nobody(world: World):
    begin(world)
    topups.round_of(world.desk)
    with pytest.raises(tillroll.InsufficientUnits):
        world.ledger.consume("acme", units=500)
    assert not due(world)


def test_one_that_was_set_before_there_were_marks_gets_its_own(world: World):
    begin(world)
    engine, name = world.ledger._engine, "~topup/credits"

    def forget(tx: Any) -> None:
        verbs = topups.verbs_of(engine, "default", ours=True)
        request = verbs.remove_alert("acme", name, request_id="~gone")
        topups.answer_in(tx, 6, [request], engine.clock())

    engine.perform(forget)
    assert topups.round_of(world.desk) == 0
    world.ledger.consume("acme", units=85)
    assert due(world)
    assert world.ledger.overview("acme")["alerts"] == [], "it is no alert of the account's"


@pytest.mark.parametrize("verb", ["set_alert", "remove_alert"])
def test_nobody_else_takes_the_mark_away(world: World, verb: str):
    begin(world)
    terms = ("balance", 1) if verb == "set_alert" else ()
    with pytest.raises(tillroll.InvalidInput, match="our own"):
        getattr(world.ledger, verb)("acme", "~topup/credits", *terms)
    with pytest.raises(tillroll.InvalidInput, match="must be one of"):
        world.ledger.set_alert("acme", "mine", "topup", 5)  # type: ignore[arg-type]


def test_the_job_of_this_process_is_woken_at_once(world: World):
    """Its own look is an hour away, so only being woken can have it charge."""
    begin(world)
    engine = world.ledger._engine
    looked, done = threading.Event(), threading.Event()
    [made] = [one for one in rounds(world.desk) if one.woken]
    turns: list[str] = []

    def tell(turn: Turn) -> None:
        turns.append(turn.job)
        assert turn.problem is None
        charges = None if turn.told is None else turn.told.get("charges")
        if charges is not None:
            (done if charges else looked).set()

    jobs = [Job("lazy", 3_600, dict), Job(made.name, 3_600, made.run, woken=made.woken)]
    worker = Worker(engine, jobs, tell=tell)
    loop = threading.Thread(target=lambda: asyncio.run(worker.run()))
    loop.start()
    try:
        assert looked.wait(60)
        world.ledger.consume("acme", units=85)
        assert done.wait(60)
    finally:
        worker.stop()
        loop.join()
        worker.close()
    assert world.available() == 215
    assert turns.count("lazy") == 1, "the others are left alone"
