"""Each payment story, delivered in every order: the ledger ends where the payments are.

A story is acted out once at our Stripe. What it told is then sent, signed, to a new ledger for each
order of its events; some events twice. The ledger must end the same each time, and as the payments
say.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

import tillroll
from tests.payments.conftest import ONE, PRODUCTS, World
from tillroll.ledger.pricing import new_version
from tillroll.ledger.products import Plan
from tillroll.payments import returning, subscribing
from tillroll.payments.facts import owed

Event = dict[str, Any]


class Story(NamedTuple):
    """What happens, and what is left of it: units, and how the subscription stands."""

    act: Callable[[World], None]
    available: int
    plan: str | None = None
    status: str | None = None


def paid(world: World) -> None:
    world.buy()


def refunded_in_part(world: World) -> None:
    payment = world.buy()
    world.fake.refund(payment, 1_00)
    world.fake.refund(payment, 1_50)


def refund_that_failed(world: World) -> None:
    payment = world.buy()
    world.fake.fail_refund(world.fake.refund(payment, 2_00, "pending"))


def dispute_won(world: World) -> None:
    dispute = world.fake.dispute(world.buy(), 5_00)
    world.wait(days=20)
    world.fake.close(dispute, "won")


def dispute_lost(world: World) -> None:
    dispute = world.fake.dispute(world.buy(), 5_00)
    world.wait(days=20)
    world.fake.close(dispute, "lost")


def inquiry(world: World) -> None:
    dispute = world.fake.dispute(world.buy(), 5_00, "warning_needs_response")
    world.wait(days=20)
    world.fake.close(dispute, "warning_closed")


def subscribed(world: World) -> None:
    world.buy(product="basic")


def subscription(world: World, product: str) -> Any:
    made = world.fake.things[world.buy(product=product)]
    world.wait(days=3)
    return made


def renewed(world: World) -> None:
    made = subscription(world, "basic")
    world.wait(days=28, seconds=5)
    world.fake.renew(made)


def upgraded(world: World) -> None:
    made = subscription(world, "basic")
    world.fake.update(made, price="price_pro")
    world.fake.bill(made, 55_00, proration=True)


def downgraded(world: World) -> None:
    made = subscription(world, "pro")
    world.fake.update(made, price="price_basic")


def downgraded_and_renewed(world: World) -> None:
    made = subscription(world, "pro")
    world.fake.update(made, price="price_basic")
    world.wait(days=28, seconds=5)
    world.fake.renew(made)


def upgraded_and_renewed(world: World) -> None:
    made = subscription(world, "basic")
    world.fake.update(made, price="price_pro")
    world.wait(days=28, seconds=5)
    world.fake.renew(made)


def past_due(world: World) -> None:
    made = subscription(world, "basic")
    world.wait(days=28, seconds=5)
    world.fake.renew(made, paid=False)


def paid_late(world: World) -> None:
    made = subscription(world, "basic")
    world.wait(days=28, seconds=5)
    invoice = world.fake.renew(made, paid=False)
    world.wait(days=2)
    world.fake.settle(made, invoice)


def cancelled(world: World) -> None:
    world.fake.cancel(subscription(world, "basic"))


def to_be_cancelled(world: World) -> None:
    made = subscription(world, "basic")
    world.fake.update(made, cancel_at_period_end=True)


def paused(world: World) -> None:
    made = subscription(world, "basic")
    world.fake.update(made, pause_collection={"behavior": "void", "resumes_at": None})


def resumed(world: World) -> None:
    made = subscription(world, "basic")
    world.fake.update(made, pause_collection={"behavior": "void", "resumes_at": None})
    world.wait(days=1)
    world.fake.update(made, pause_collection=None)


def on_trial(world: World) -> None:
    subscription(world, "trial")


def after_a_trial(world: World) -> None:
    made = subscription(world, "trial")
    world.wait(days=4, seconds=5)
    world.fake.renew(made)


def bought_plan(world: World, product: str = "basic") -> tuple[Any, str]:
    """A plan whose first period is paid; return the subscription and the payment."""
    made = world.fake.things[world.buy(product=product)]
    world.wait(days=3)
    return made, world.fake.payment_of(world.fake.of("invoice")[-1])


def plan_refunded_in_part(world: World) -> None:
    _, payment = bought_plan(world)
    world.fake.refund(payment, 5_00)
    world.fake.refund(payment, 3_00)


def plan_refunded(world: World) -> None:
    _, payment = bought_plan(world)
    world.fake.refund(payment, 20_00)


def plan_refund_that_failed(world: World) -> None:
    _, payment = bought_plan(world)
    world.fake.fail_refund(world.fake.refund(payment, 8_00, "pending"))


def plan_dispute_won(world: World) -> None:
    _, payment = bought_plan(world)
    dispute = world.fake.dispute(payment, 20_00)
    world.wait(days=9)
    world.fake.close(dispute, "won")


def plan_dispute_lost(world: World) -> None:
    _, payment = bought_plan(world)
    dispute = world.fake.dispute(payment, 20_00)
    world.wait(days=9)
    world.fake.close(dispute, "lost")


def plan_refunded_and_cancelled(world: World) -> None:
    made, payment = bought_plan(world)
    world.fake.refund(payment, 10_00)
    world.fake.cancel(made)


def old_period_refunded(world: World) -> None:
    made, payment = bought_plan(world)
    world.wait(days=28, seconds=5)
    world.fake.renew(made)
    world.fake.refund(payment, 20_00)


def new_period_refunded(world: World) -> None:
    made, _ = bought_plan(world)
    world.wait(days=28, seconds=5)
    world.fake.refund(world.fake.payment_of(world.fake.renew(made)), 5_00)


def upgrade_refunded(world: World) -> None:
    """The change was paid 55 beside the 20 of the period: a fifth of the money goes back."""
    made, _ = bought_plan(world)
    world.fake.update(made, price="price_pro")
    world.fake.refund(world.fake.payment_of(world.fake.bill(made, 55_00, proration=True)), 15_00)


STORIES = {
    "paid": Story(paid, 100),
    "partial refunds": Story(refunded_in_part, 50),
    "a refund that failed": Story(refund_that_failed, 100),
    "a dispute that was won": Story(dispute_won, 100),
    "a dispute that was lost": Story(dispute_lost, 0),
    "an inquiry": Story(inquiry, 100),
    "subscribed": Story(subscribed, 100, "basic", "active"),
    "renewed": Story(renewed, 100, "basic", "active"),
    "upgraded": Story(upgraded, 500, "pro", "active"),
    "downgraded": Story(downgraded, 500, "pro", "active"),
    "downgraded and renewed": Story(downgraded_and_renewed, 100, "basic", "active"),
    "upgraded and renewed": Story(upgraded_and_renewed, 500, "pro", "active"),
    "past due": Story(past_due, 0, "basic", "past_due"),
    "paid late": Story(paid_late, 100, "basic", "active"),
    "cancelled": Story(cancelled, 100),
    "to be cancelled": Story(to_be_cancelled, 100, "basic", "active"),
    "paused": Story(paused, 100, "basic", "paused"),
    "resumed": Story(resumed, 100, "basic", "active"),
    "on trial": Story(on_trial, 50, "trial", "trialing"),
    "after a trial": Story(after_a_trial, 50, "trial", "active"),
    "a plan refunded in part": Story(plan_refunded_in_part, 60, "basic", "active"),
    "a plan refunded": Story(plan_refunded, 0, "basic", "active"),
    "a plan's refund that failed": Story(plan_refund_that_failed, 100, "basic", "active"),
    "a plan's dispute that was won": Story(plan_dispute_won, 100, "basic", "active"),
    "a plan's dispute that was lost": Story(plan_dispute_lost, 0, "basic", "active"),
    "a plan refunded and cancelled": Story(plan_refunded_and_cancelled, 50),
    "an old period refunded": Story(old_period_refunded, 100, "basic", "active"),
    "a new period refunded": Story(new_period_refunded, 75, "basic", "active"),
    "an upgrade refunded": Story(upgrade_refunded, 400, "pro", "active"),
}
ORDERS_MAX = 720  # six events
RETURNING = {"refund.created", "charge.dispute.created"}


def orders(events: Sequence[Event]) -> Iterator[tuple[Event, ...]]:
    """Every order of the events; of more than six, what comes of leaving out what says the least.

    The last two are sent twice: at their place, and again at the end.
    """
    telling = [e for e in events if e["type"] != "payment_intent.succeeded"]
    topics = {e["type"] for e in telling}
    # What is returned of an invoice is asked about at Stripe, which takes its time.
    most = 4 if "invoice.paid" in topics and topics & RETURNING else 6
    for topic in ("checkout.session.completed", "charge.refunded"):  # others say the same
        if len(telling) > most:
            telling = [e for e in telling if e["type"] != topic]
    assert len(telling) <= 6
    for order in itertools.islice(itertools.permutations(telling), ORDERS_MAX):
        yield *order, *order[:2]


def fresh(world: World) -> World:
    """A new ledger beside the same Stripe."""
    return World("memory://", world.api_base, world.fake)


def subscriptions(world: World) -> list[tuple[Any, Any]]:
    """Return product and status of the account's subscriptions, as the ledger has them."""
    held = world.ledger.entitlements("acme")
    return [(one["product"], one["status"]) for one in held if one["kind"] == "subscription"]


def shares(world: World) -> list[tuple[int, int, int]]:
    """What the periods of the subscription brought, the oldest first: taken, short, brought."""
    with world.ledger.store.read() as reader:
        [known] = subscribing.subscriptions_of(reader, "default", "acme")
    return [(one.taken // ONE, one.short // ONE, one.units // ONE) for one in known.shares.values()]


def issued_on(world: World, line: str) -> int:
    """What the entries of the account put into a grant, and did not take out again."""
    postings = [p for r in world.ledger.history("acme") for p in r.entry.postings if p.line == line]
    put_in = sum(p.units for p in postings if p.source == "issued")
    return put_in - sum(p.units for p in postings if p.target == "issued")


def check_end(world: World, story: Story) -> None:
    found = world.ledger.balance("acme")
    assert found.available == story.available
    with world.ledger.store.read() as reader:
        for note in reader.notes():
            if note.kind == "payment":
                payment = world.payment(note.name.removeprefix("stripe:"))
                assert payment.taken + payment.short == owed(payment)
                assert payment.refused is None
                assert found.issued * ONE == payment.bought.units - payment.taken
            elif note.kind == "subscription":
                known = subscribing.decoded(note)
                assert known.refused is None
                for share in known.shares.values():
                    wanted = returning.owed(known.invoices, known.returns.values(), share)
                    assert share.taken + share.short == wanted
                    lines = (share.grant, *share.lines)
                    assert (
                        sum(issued_on(world, line) for line in lines) == share.units - share.taken
                    )
    held = subscriptions(world)
    assert held == ([] if story.plan is None else [(story.plan, story.status)])
    assert world.ledger.verify().ok


@pytest.mark.parametrize("name", STORIES)
def test_in_every_order(world: World, name: str):
    story = STORIES[name]
    story.act(world)
    events = world.new_events()
    counted = 0
    for order in orders(events):
        other = fresh(world)
        with other.ledger:
            other.deliver(order)
            check_end(other, story)
        counted += 1
    assert counted >= 1


@pytest.mark.parametrize("name", STORIES)
def test_all_webhooks_lost_and_pulled(world: World, name: str):
    story = STORIES[name]
    story.act(world)
    world.desk.pull()
    check_end(world, story)
    world.desk.pull()
    check_end(world, story)


@pytest.mark.parametrize("name", STORIES)
def test_as_it_happens(world: World, name: str):
    """Told at once, event by event, while the time goes on."""
    story = STORIES[name]
    tell = world.fake.tell

    def told(topic: str, thing: Any) -> Any:
        event = tell(topic, thing)
        if topic != "charge.refunded":  # would ask back while the fake is still busy
            world.deliver([event])
        return event

    world.fake.tell = told  # type: ignore[method-assign]
    story.act(world)
    world.fake.tell = tell  # type: ignore[method-assign]
    check_end(world, story)


def test_a_renewal_racing_a_consume(world: World):
    """Between two periods nobody is charged twice, and nothing that was not paid is used."""
    renewed(world)
    events = [e for e in world.new_events() if not e["type"].startswith("checkout")]
    for order in itertools.permutations(events):
        for place in range(len(order) + 1):
            other = fresh(world)
            with other.ledger:
                used = 0
                for nth in range(len(order) + 1):
                    if nth == place:
                        try:
                            other.ledger.consume("acme", units=60)
                            used = 60
                        except tillroll.InsufficientUnits:
                            used = 0
                    if nth < len(order):
                        other.deliver([order[nth]])
                found = other.ledger.balance("acme")
                assert (found.available, found.used) == (100 - used, used)


def test_the_webhook_before_the_redirect(world: World):
    """The units are there before the customer is back; the same page is answered to a repeat."""
    url = world.desk.checkout("acme", "pack100", "order")
    world.fake.pay(url.rsplit("/", 1)[1])
    world.deliver(world.new_events())
    assert world.available() == 100
    assert world.desk.checkout("acme", "pack100", "order") == url


def test_two_tellings_of_one_second_are_asked_about(world: World):
    """Stripe's times are whole seconds: where two differ within one, its answer counts."""
    made = subscription(world, "basic")
    world.fake.update(made, pause_collection={"behavior": "void", "resumes_at": None})
    world.fake.update(made, pause_collection=None)
    events = world.new_events()
    for order in orders(events):
        other = fresh(world)
        with other.ledger:
            other.deliver(order)
            check_end(other, Story(paused, 100, "basic", "active"))


def test_a_plan_that_the_catalog_lacks_waits_for_it(world: World):
    made = subscription(world, "basic")
    world.fake.update(made, price="price_of_nothing")
    world.deliver(world.new_events())
    with world.ledger.store.read() as reader:
        [known] = subscribing.subscriptions_of(reader, "default", "acme")
    assert "price_of_nothing" in (known.refused or "")
    assert subscriptions(world) == [("basic", "active")], "as it was paid"
    assert world.desk.again() == 0
    team = Plan(features={"api": True}, stripe_price="price_of_nothing")
    products = replace(PRODUCTS, plans={**PRODUCTS.plans, "team": team})
    version = new_version(2, [], products=products, author="ann", reason="a new plan")
    world.ledger._engine.perform(lambda tx: tx.add_price_version("default", version))
    world.wait(hours=2)
    assert world.desk.again() == 1
    assert subscriptions(world) == [("team", "active")]


def carried_over(world: World, whose: str) -> tuple[list[Event], list[Event], Event]:
    """Of two months of which the first one's units are carried over, half of one is refunded.

    Return what the first month told, what the second did, and the refund.
    """
    made, first = bought_plan(world, "saver")
    before = world.new_events()
    world.wait(days=28, seconds=5)
    second = world.fake.payment_of(world.fake.renew(made))
    renewal = [e for e in world.new_events() if e["type"] != "payment_intent.succeeded"]
    world.fake.refund(first if whose == "old" else second, 10_00)
    return before, renewal, world.new_events()[0]


@pytest.mark.parametrize("whose", ["old", "new"])
def test_what_was_carried_over_is_refunded_in_every_order(world: World, whose: str):
    before, renewal, refund = carried_over(world, whose)
    for events in itertools.permutations([*renewal, refund]):
        other = fresh(world)
        with other.ledger:
            world.wait(days=-31)
            other.deliver(before)
            world.wait(days=31)
            other.deliver([*events, refund])
            assert other.available() == 110, "60 of one, 100 of the other, 50 are taken back"
            assert shares(other)[whose == "new"][:2] == (50, 0)
            assert other.ledger.verify().ok


@pytest.mark.parametrize(
    ("whose", "used", "taken"),
    [("old", 0, 50), ("old", 25, 35), ("old", 70, 0), ("new", 70, 50), ("new", 120, 40)],
)
def test_a_refund_takes_of_its_own_period_alone(world: World, whose: str, used: int, taken: int):
    """60 of the first month are carried over and used first; then half its money goes back."""
    before, renewal, refund = carried_over(world, whose)
    world.wait(days=-31)
    world.deliver(before)
    world.wait(days=31)
    world.deliver(renewal)
    if used:
        world.ledger.consume("acme", units=used)
    world.deliver([refund])
    assert world.available() == 160 - used - taken
    assert shares(world)[whose == "new"][:2] == (taken, 50 - taken)
    assert world.ledger.verify().ok


def test_it_ends_by_the_clock(world: World):
    """A subscription that is cancelled at the period's end needs no further word to end."""
    to_be_cancelled(world)
    world.deliver(world.new_events())
    world.wait(days=31)
    assert subscriptions(world) == []
    assert world.available() == 0
