"""Events of money: one a fact, however often and in whatever order the provider tells it."""

import json
import random
from collections import Counter
from typing import Any

import jsonschema
import msgspec
import pytest

import tillroll
from tests.jobs.receiver import Receiver
from tests.payments.conftest import World
from tests.payments.test_stories import STORIES, fresh, orders
from tests.payments.test_topups import begin, card, use
from tillroll import webhooks
from tillroll.api.payments import shown_payment
from tillroll.jobs import Deliverer, Sender
from tillroll.ledger import events
from tillroll.ledger.webhooks import ENDPOINT, LICENZY, Endpoint
from tillroll.payments import topups
from tillroll.payments.facts import Refunded
from tillroll.payments.provider import InvoiceTold
from tillroll.payments.settling import payments_of, settle
from tillroll.payments.telling import Bill, of_invoices

ORDERS = 40  # of each story
SHAPES = {kind.topic: schema for kind, schema in events.schemas()}
MONEY = ("payment.*", "topup.*")


def listen(world: World, *patterns: str) -> None:
    """Have somebody want to hear of these."""
    endpoint = Endpoint(id="we_1", project="default", url="https://x.test", events=patterns)
    document = msgspec.json.encode(endpoint).decode()
    world.ledger._engine.perform(lambda tx: tx.put_document(ENDPOINT, "we_1", document))


def told(world: World) -> list[dict[str, Any]]:
    """Return what lies in the outbox, in the order in which it was told."""
    with world.ledger.store.read() as reader:
        found = [json.loads(row.event.payload) for row in reader.events()]
    for one in found:
        jsonschema.validate(one["data"], SHAPES[one["type"]])
        assert one["account"] == "acme"
    return sorted(found, key=lambda one: (one["occurred_at"], one["seq"]))


def facts(world: World) -> Counter[tuple[Any, ...]]:
    """Return how often each fact was told."""
    names = ("payment", "refund", "dispute", "state")
    return Counter(
        (one["type"], *(one["data"].get(name) for name in names))
        for one in told(world)
        if one["type"].startswith("payment.")
    )


@pytest.mark.parametrize("name", STORIES)
def test_each_fact_is_told_once_in_every_order(world: World, name: str):
    STORIES[name].act(world)
    happened = world.new_events()
    ends: set[frozenset[Any]] = set()
    every = list(orders(happened))
    chosen = random.Random(name).sample(every, min(ORDERS, len(every)))  # noqa: S311
    for order in chosen:
        other = fresh(world)
        with other.ledger:
            listen(other, *MONEY)
            other.deliver([*order, *order])
            found = facts(other)
            assert set(found.values()) <= {1}, found
            # What was overtaken (a dispute that is closed when one hears of it) may be left out.
            over = {"payment.disputed", "payment.refunded", "payment.failed"}
            ends.add(frozenset(fact for fact in found if fact[0] not in over))
    assert len(ends) == 1, "what it came to is told whatever the order"


def test_in_its_own_order_all_is_told(world: World):
    listen(world, *MONEY)
    payment = world.buy()
    world.deliver(world.new_events())
    world.ledger.consume("acme", units=90)
    refund = world.fake.refund(payment, 1_00, "pending")
    world.deliver(world.new_events())
    world.fake.fail_refund(refund)
    dispute = world.fake.dispute(payment, 5_00, "warning_needs_response")
    world.deliver(world.new_events())
    dispute["status"] = "needs_response"
    world.fake.tell("charge.dispute.updated", dispute)
    world.deliver(world.new_events())
    world.fake.close(dispute, "lost")
    world.deliver(world.new_events())
    world.deliver(world.fake.events)
    found = told(world)
    assert [(one["type"], one["data"]["state"], one["data"]["amount"]) for one in found] == [
        ("payment.succeeded", None, 5_00),
        ("payment.refunded", "pending", 1_00),
        ("payment.refund_failed", "failed", 1_00),
        ("payment.disputed", "inquiry", 5_00),
        ("payment.disputed", "open", 5_00),
        ("payment.dispute_closed", "lost", 5_00),
    ]
    assert found[0]["data"] | {"taken": "0", "shortfall": "0"} == found[0]["data"]
    assert (found[-1]["data"]["taken"], found[-1]["data"]["shortfall"]) == ("10", "90")
    assert [one["seq"] for one in found] == sorted(one["seq"] for one in found)
    assert len({one["id"] for one in found}) == len(found)


def test_a_bank_transfer_that_does_not_come(world: World):
    listen(world, *MONEY)
    url = world.desk.checkout("acme", "pack100", "order-1")
    session = url.rsplit("/", 1)[1]
    intent = world.fake.pay(session, later=True)
    world.deliver(world.new_events())
    assert told(world) == []
    world.fake.bounce(session)
    world.deliver(world.new_events())
    world.deliver(world.fake.events)
    [failed] = told(world)
    assert (failed["type"], failed["account"]) == ("payment.failed", "acme")
    data = failed["data"]
    assert (data["payment"], data["product"], data["amount"]) == (intent["id"], "pack100", 5_00)
    with world.ledger.store.read() as reader:
        [known] = payments_of(reader, "default", "acme")
        assert payments_of(reader, "default", "") == []
    shown = shown_payment(known, 6)
    assert (shown["failed"], shown["units"], shown["account"]) == (True, None, "acme")
    assert world.desk.checkout("acme", "pack100", "order-2") != url, "the page is over"
    assert list(world.ledger.history("acme")) == []
    world.fake.arrive(session)
    world.deliver(world.new_events())
    assert [one["type"] for one in told(world)] == ["payment.failed", "payment.succeeded"]
    assert world.available() == 100


def test_what_nobody_is_known_to_own_is_told_when_somebody_is(world: World):
    listen(world, *MONEY)
    payment = world.buy()
    bought = world.new_events()
    world.fake.refund(payment, 1_00)
    [refund] = [one for one in world.new_events() if one["type"] == "refund.created"]
    world.deliver([refund])
    assert told(world) == []
    world.deliver(bought)
    assert [one["type"] for one in told(world)] == ["payment.succeeded", "payment.refunded"]


def test_where_nobody_listens_nothing_is_made(world: World):
    listen(world, "grant.*")
    world.buy()
    world.deliver(world.new_events())
    assert {one["type"] for one in told(world)} == {"grant.created"}


def test_a_failed_transaction_tells_nothing(world: World):
    listen(world, *MONEY)
    engine = world.ledger._engine

    def broken(*_: object) -> None:
        raise tillroll.StoreUnavailable("a disk that is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tillroll.payments.settling.tell", broken)
        world.buy()
        with pytest.raises(tillroll.StoreUnavailable):
            world.deliver(world.new_events())
    assert told(world) == []
    settle(engine, "default", "stripe", "pi_none", [Refunded("re_1", 5)])
    world.deliver(world.fake.events)
    assert [one["type"] for one in told(world)] == ["payment.succeeded"]


def test_a_subscriptions_invoices(world: World):
    listen(world, *MONEY)
    made = world.fake.things[world.buy(product="basic")]
    world.deliver(world.new_events())
    world.wait(days=31)
    invoice = world.fake.renew(made, paid=False)
    world.deliver(world.new_events())
    world.wait(days=1)
    world.fake.tell("invoice.payment_failed", invoice)
    world.deliver(world.new_events())
    world.wait(days=1)
    world.fake.settle(made, invoice)
    world.deliver(world.new_events())
    world.deliver(world.fake.events)
    world.desk.pull()
    found = told(world)
    assert [one["type"] for one in found] == [
        "payment.succeeded",
        "payment.failed",
        "payment.failed",
        "payment.succeeded",
    ]
    for one in found:
        data = one["data"]
        assert (data["subscription"], data["product"]) == (made["id"], "basic")
        assert (data["amount"], data["currency"]) == (20_00, "usd")


def test_money_of_a_subscription_that_goes_back(world: World):
    listen(world, *MONEY)
    made = world.fake.things[world.buy(product="basic")]
    world.deliver(world.new_events())
    [invoice] = world.fake.of("invoice")
    [charge] = world.fake.of("charge")
    refund = world.fake.refund(charge["payment_intent"], 5_00)
    world.deliver(world.new_events())
    world.fake.fail_refund(refund)
    world.fake.close(world.fake.dispute(charge["payment_intent"], 20_00), "lost")
    world.deliver(world.new_events())
    world.deliver(world.fake.events)
    found = told(world)
    assert [(one["type"], one["data"]["amount"]) for one in found] == [
        ("payment.succeeded", 20_00),
        ("payment.refunded", 5_00),
        ("payment.refund_failed", 5_00),
        ("payment.disputed", 20_00),
        ("payment.dispute_closed", 20_00),
    ]
    for one in found:
        data = one["data"]
        assert (data["subscription"], data["payment"]) == (made["id"], invoice["id"])


def test_an_invoice_that_is_told_again_is_told_once():
    span = {"period_start": 1, "period_end": 2, "subscription": "sub_1"}
    bill = Bill("stripe", "sub_1", "basic")
    noted = InvoiceTold(id="in_1", paid=True, at=5, amount=7, **span)
    again = InvoiceTold(id="in_1", paid=True, at=6, amount=7, currency="usd", **span)
    assert of_invoices(bill, {"in_1": noted}, {"in_1": again}) == []
    [(topic, data)] = of_invoices(bill, {}, {"in_1": noted})
    assert (topic, msgspec.to_builtins(data)["amount"]) == ("payment.succeeded", 7)
    asked_for = InvoiceTold(id="in_2", paid=False, at=0, **span)
    nothing = InvoiceTold(id="in_3", paid=True, at=5, **span)
    assert of_invoices(bill, {}, {"in_2": asked_for, "in_3": nothing}) == []


# ---------------------------------------------------------------- top-ups


def test_a_top_up_that_is_paid(world: World):
    listen(world, *MONEY)
    begin(world)
    use(world, 90)
    topups.round_of(world.desk)
    world.deliver(world.new_events())
    world.deliver(world.fake.events)
    names = [one["type"] for one in told(world)]
    assert Counter(names) == {"payment.succeeded": 2, "topup.started": 1, "topup.succeeded": 1}
    [done] = [one for one in told(world) if one["type"] == "topup.succeeded"]
    assert done["data"]["attempt"] == 1
    assert done["data"]["amount"] == 10_00
    assert world.payment(done["data"]["payment"]).bought.units == 200 * 10**6


def test_what_was_bought_is_told_whatever_was_set_since(world: World):
    listen(world, "topup.*")
    begin(world)
    use(world, 90)
    card(world, "slow")
    topups.round_of(world.desk)
    own: dict[str, Any] = {"unit_price": "2", "currency": "JPY"}
    topups.set_top_up(world.desk, "acme", threshold=20, target=150, **own)
    [intent] = [one for one in world.fake.of("payment_intent") if one["status"] == "processing"]
    world.fake.charge(intent)
    world.desk.heard_charge = lambda charge: topups.resolved(world.desk, charge)
    world.deliver(world.new_events())
    found = [one["data"] for one in told(world)]
    bought = {(one["product"], one["amount"], one["currency"]) for one in found}
    assert bought == {("pack100", 10_00, "usd")}
    assert len(found) == 2


def test_a_top_up_that_is_declined_until_it_is_paused(world: World):
    listen(world, *MONEY)
    begin(world)
    card(world, "insufficient_funds")
    use(world, 90)
    for _ in range(200):
        topups.round_of(world.desk)
        world.deliver(world.new_events())
        world.wait(minutes=30)
    world.deliver(world.fake.events)
    found = told(world)
    assert Counter(one["type"] for one in found) == {
        "payment.succeeded": 1,
        "topup.started": 4,
        "topup.failed": 4,
        "payment.failed": 4,
        "topup.paused": 1,
    }
    failed = [one["data"] for one in found if one["type"] == "topup.failed"]
    assert [one["declined"] for one in failed] == [1, 2, 3, 4]
    assert {one["reason"] for one in failed} == {"insufficient_funds"}
    assert [one["not_before"] is None for one in failed] == [False, False, False, True]
    declined = [one["data"] for one in found if one["type"] == "payment.failed"]
    assert {one["payment"] for one in failed} == {one["payment"] for one in declined}
    assert len({one["payment"] for one in declined}) == 4
    [paused] = [one["data"] for one in found if one["type"] == "topup.paused"]
    assert (paused["reason"], paused["attempt"]) == ("insufficient_funds", 4)


def test_who_pauses_by_hand_is_told_once(world: World):
    listen(world, *MONEY)
    begin(world)
    topups.pause(world.desk, "acme")
    topups.pause(world.desk, "acme")
    assert [one["type"] for one in told(world)] == ["payment.succeeded", "topup.paused"]
    topups.resume(world.desk, "acme")
    topups.pause(world.desk, "acme")
    assert [one["type"] for one in told(world)][-1] == "topup.paused"
    assert len(told(world)) == 3


# ---------------------------------------------------------------- in Licenzy's words


def test_all_seven_of_licenzys_names_arrive(world: World):
    engine = world.ledger._engine
    deliverer = Deliverer(engine, Sender(private=True))
    with Receiver() as receiver:
        engine.perform(
            lambda tx: webhooks.make(
                tx, "default", receiver.url, at=1, format_="licenzy", private=True
            )
        )
        world.buy()
        world.buy(product="day")
        made = world.fake.things[world.buy(product="basic")]
        world.deliver(world.new_events())
        world.ledger.consume("acme", units=1)
        world.wait(days=31)
        world.fake.renew(made, paid=False)
        world.fake.cancel(made)
        world.deliver(world.new_events())
        for _ in range(100):
            if not deliverer.round()["more"]:
                break
        deliverer.close()
    names = Counter(one.told["type"] for one in receiver.received)
    seven = {*LICENZY.values(), "subscription.updated", "subscription.deleted"}
    assert len(seven) == 7
    assert set(names) == seven
    assert (names["invoice.payment_succeeded"], names["invoice.payment_failed"]) == (1, 1)
    [failed] = [o.told for o in receiver.received if o.told["type"] == "invoice.payment_failed"]
    assert (failed["subject_ref"], failed["source"]) == ("acme", "stripe")
    assert failed["data"]["subscription"] == made["id"]
