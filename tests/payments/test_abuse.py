"""What customers, providers and clocks could do to payments, and may not."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
import stripe

import tillroll
from tests.payments.conftest import ONE, SECRET, World, clock, usd
from tillroll.ledger.pricing import new_version
from tillroll.ledger.products import Allowance, Pack, Plan, Products
from tillroll.payments import overage, subscribing, topups
from tillroll.payments.desk import Desk
from tillroll.payments.facts import Refunded
from tillroll.payments.provider import InvoiceTold, PaymentTold, Sold, SubscriptionTold
from tillroll.payments.rounds import rounds
from tillroll.wire.problems import BadSignature, ProviderRefused

DAY = 86_400 * ONE


def paid(payment_id: str, account: str = "acme", amount: int = 100) -> PaymentTold:
    sold = Sold(account=account, amount=amount, currency="usd", units="100")
    return PaymentTold(id=payment_id, facts=(sold,))


def refunded(payment_id: str, amount: int) -> PaymentTold:
    return PaymentTold(id=payment_id, facts=(Refunded("r", amount),))


@pytest.mark.parametrize("guess", ["stripe:p#1", "payment/stripe:p/1"])
def test_no_callers_id_keeps_a_refund_from_being_taken_back(world: World, guess: str):
    world.desk.hear([paid("p")])
    world.ledger.consume("acme", units=1, request_id=guess)
    with pytest.raises(tillroll.InvalidInput, match="must not begin with"):
        world.ledger.consume("acme", units=1, request_id="~" + guess)
    world.desk.hear([refunded("p", 50)])
    assert world.available() == 49


@pytest.mark.parametrize("first", ["z", "z#1"])
def test_ids_of_payments_that_look_alike_do_not_meet(world: World, first: str):
    for payment_id in (first, "z#1" if first == "z" else "z"):
        world.desk.hear([paid(payment_id)])
    world.desk.hear([refunded("z", 50)])
    world.desk.hear([refunded("z#1", 100)])
    assert world.available() == 50


def catalog(world: World, products: Products) -> None:
    with world.ledger.store.read() as reader:
        number = reader.prices("default").current + 1
    version = new_version(number, [], products=products, author="ann", reason="another catalog")
    world.ledger._engine.perform(lambda tx: tx.add_price_version("default", version))


@pytest.mark.parametrize("odd", [{"applies_to": ("image.generate",)}, {"wallet": "other"}])
def test_a_pack_that_cannot_fill_what_is_watched_is_never_bought(
    world: World, odd: Mapping[str, Any]
):
    terms: dict[str, Any] = {"threshold": 10, "target": 50, "product": "fits"}
    catalog(world, Products(packs={"fits": Pack(units=Decimal(100), price=usd("5"))}))
    world.ledger.grant("acme", 1)
    topups.set_top_up(world.desk, "acme", **terms)
    catalog(world, Products(packs={"fits": Pack(units=Decimal(100), price=usd("5"), **odd)}))
    with pytest.raises(tillroll.InvalidInput, match="does not bring"):
        topups.set_top_up(world.desk, "zoe", **terms)
    assert topups.round_of(world.desk) == 0
    with world.ledger.store.read() as reader:
        found = topups.top_up_of(reader, "default", "acme")
    assert (found.state, found.reason) == ("paused", "no_such_product")


def test_a_cap_knows_of_more_top_ups_than_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(topups, "SPENT_MAX", 3)
    spent = topups._bounded(tuple(topups.Spent(at, 10) for at in range(8)))
    assert (len(spent), sum(one.amount for one in spent)) == (3, 80)
    assert spent[-1] == topups.Spent(7, 10)


def test_saying_the_same_terms_again_resumes_nothing(world: World):
    terms: dict[str, Any] = {"threshold": 10, "target": 50, "product": "pack100"}
    world.ledger.grant("acme", 1)
    topups.set_top_up(world.desk, "acme", **terms)
    topups.pause(world.desk, "acme")
    assert topups.set_top_up(world.desk, "acme", **terms).state == "paused"
    assert topups.set_top_up(world.desk, "acme", **{**terms, "target": 60}).reason == "by_hand"


def test_one_accounts_trouble_is_not_the_others(world: World, monkeypatch: pytest.MonkeyPatch):
    for name in ("bad", "good"):
        world.buy(name)
        world.deliver(world.new_events())
        topups.set_top_up(world.desk, name, threshold=200, target=300, product="pack100")
    charge = world.desk.asked.charge

    def picky(order: Any, key: str) -> Any:
        if order.account == "bad":
            raise ProviderRefused("no such customer")
        return charge(order, key)

    monkeypatch.setattr(world.desk.asked, "charge", picky)
    with pytest.raises(ProviderRefused):
        topups.round_of(world.desk)
    assert world.available("good") == 300


def test_what_was_reported_is_not_paid_for_by_the_next_units(world: World):
    world.ledger.set_overdraft("acme", 10)
    world.ledger.grant("acme", 1)
    overage.set_overage(world.desk, "acme", "api_units")
    world.ledger.consume("acme", units=6)
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1
    world.ledger.grant("acme", 20)
    assert world.available() == 20
    assert world.ledger.consume("acme", units=30).available == -10, "the limit is whole again"


def test_reporting_that_was_stopped_midway_goes_on(world: World):
    world.ledger.set_overdraft("acme", 10)
    world.ledger.grant("acme", 1)
    overage.set_overage(world.desk, "acme", "api_units")
    world.desk.customer("acme")
    world.ledger.consume("acme", units=6)
    world.fake.fail = ["down"] * 3
    with pytest.raises(tillroll.TillrollError):
        overage.round_of(world.desk)
    world.fake.fail = []
    overage.stop_overage(world.desk, "acme")
    overage.set_overage(world.desk, "acme", "api_units")
    world.wait(minutes=10)
    assert overage.round_of(world.desk) == 1


# ---------------------------------------------------------------- subscriptions


def at() -> int:
    return int(clock.now.timestamp()) * ONE


class Period:
    """A subscription whose first month is paid."""

    def __init__(self, world: World) -> None:
        self.begins = at()
        self.world = world
        invoice = InvoiceTold(
            id="in_1",
            subscription="sub_1",
            paid=True,
            at=self.begins,
            price="price_pro",
            period_start=self.begins,
            period_end=self.begins + 30 * DAY,
        )
        world.desk.hear([self.told("price_pro"), invoice])

    def told(self, price: str, **more: Any) -> SubscriptionTold:
        facts: dict[str, Any] = {"status": "active", "account": "acme", **more}
        span = {"period_start": self.begins, "period_end": self.begins + 30 * DAY}
        return SubscriptionTold(id="sub_1", at=at(), price=price, **span, **facts)

    def hear(self, price: str, **more: Any) -> None:
        self.world.desk.hear([self.told(price, **more)])


UNPRICED = Products(
    plans={
        "basic": Plan(grants=(Allowance(units=Decimal(100)),), stripe_price="price_basic"),
        "pro": Plan(grants=(Allowance(units=Decimal(500)),), stripe_price="price_pro"),
    }
)


def test_going_to_and_fro_between_plans_grants_each_once_a_period(world: World):
    catalog(world, UNPRICED)
    period = Period(world)
    used = 0
    for nth in range(6):
        left = world.available()
        if left:
            world.ledger.consume("acme", units=left)
        used += left
        world.wait(days=1)
        period.hear("price_pro" if nth % 2 else "price_basic")
    assert used + world.available() <= 600


def test_an_end_that_the_clock_was_first_to_see_is_no_trouble(world: World):
    period = Period(world)
    world.wait(hours=1)
    period.hear("price_pro", ends_at=period.begins + 30 * DAY)
    world.wait(days=30)
    world.ledger.grant("acme", 1)
    period.hear("price_pro", status="ended")
    with world.ledger.store.read() as reader:
        found = subscribing.known(reader, "default", "stripe", "sub_1")
    assert found is not None
    assert (found.refused, found.applied) == (None, None)
    world.wait(hours=2)
    assert world.desk.again() == 0


# ---------------------------------------------------------------- what is told


def test_an_event_that_cannot_be_read_keeps_no_other_from_being_heard(world: World):
    payment = world.buy()
    [*others] = world.new_events()
    broken = {**others[-1], "id": "evt_broken", "data": {"object": {"object": "checkout.session"}}}
    world.fake.events.insert(0, broken)
    world.wait(minutes=1)
    pulled = world.desk.pull()
    assert pulled.kept == 1
    assert world.available() == 100
    assert world.payment(payment) is not None


def test_a_time_that_was_put_behind_a_signature_is_not_believed(world: World):
    body = '{"id":"evt_1","object":"event","type":"x","created":1,"livemode":false}'
    then = at() // ONE - 3_600
    header = stripe.WebhookSignature.generate_signature_header(body, SECRET, timestamp=then)
    forged = f"{header},t={at() // ONE}"
    for one in (header, forged):
        with pytest.raises(BadSignature, match="minutes"):
            world.desk.receive({"stripe-signature": one}, body.encode())


def test_each_ledger_has_rounds_of_its_own(world: World):
    other = Desk(world.ledger._engine, "default:test", world.stripe("default:test"))
    names = [one.name for desk in (world.desk, other) for one in rounds(desk)]
    assert len(names) == len(set(names)) == 8


def test_nobody_pays_for_what_cannot_be_received(world: World):
    world.ledger.grant("closed", 1)
    world.ledger.close_account("closed")
    for account, told in (("closed", "is closed"), ("a\nb", "no text")):
        with pytest.raises(tillroll.InvalidInput, match=told):
            world.desk.checkout(account, "pack100", "order")
    assert not world.fake.things
    world.ledger.freeze("frozen")  # what is paid comes in; it may be spent later
    assert world.desk.checkout("frozen", "pack100", "order")


def test_a_page_whose_answer_was_lost_is_asked_for_at_the_new_price(world: World):
    world.fake.fail = ["lost"] * 3
    with pytest.raises(tillroll.TillrollError):
        world.desk.checkout("acme", "pack100", "order")
    world.fake.fail = []
    catalog(world, Products(packs={"pack100": Pack(units=Decimal(100), price=usd("7"))}))
    url = world.desk.checkout("acme", "pack100", "order")
    assert world.fake.things[url.rsplit("/", 1)[1]]["amount_total"] == 700
