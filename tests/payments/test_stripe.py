"""Stripe, spoken to by its own package against our fake: checkouts, webhooks, the pull."""

import json
from typing import Any

import pytest

import tillroll
from tests.payments.conftest import ONE, PRODUCTS, SECRET, World
from tillroll.api.payments import shown_payment
from tillroll.ledger.calendar import instant
from tillroll.ledger.pricing import new_version
from tillroll.payments import desk
from tillroll.wire.problems import BadSignature, ProviderRefused, ProviderUnavailable


def test_a_pack_is_paid_and_granted(world: World):
    payment = world.buy()
    events = world.new_events()
    assert [event["type"] for event in events] == [
        "payment_intent.succeeded",
        "checkout.session.completed",
    ]
    world.deliver(events)
    world.deliver(reversed(events))
    assert world.available() == 100
    [grant] = world.ledger.balance("acme").grants
    assert grant["id"] == f"stripe:{payment}"
    found = world.payment(payment)
    assert (found.bought.amount, found.bought.currency, found.bought.version) == (500, "usd", 1)
    entry = next(iter(world.ledger.history("acme"))).entry
    assert (entry.opens[0].product, entry.opens[0].cost_basis) == ("pack100", "0.05")


def test_a_bank_transfer_counts_when_it_arrives(world: World):
    url = world.desk.checkout("acme", "pack100", "order")
    session = url.rsplit("/", 1)[1]
    world.fake.pay(session, later=True)
    world.deliver(world.new_events())
    assert world.available() == 0
    world.fake.arrive(session)
    world.deliver(world.new_events())
    assert world.available() == 100


def test_one_page_as_long_as_it_is_open(world: World):
    first = world.desk.checkout("acme", "pack100", "one")
    assert world.desk.checkout("acme", "pack100", "two") == first
    assert world.desk.checkout("acme", "pack100", "one") == first
    assert world.desk.checkout("beta", "pack100", "one") != first
    assert world.desk.checkout("acme", "day", "day") != first
    with pytest.raises(tillroll.IdempotencyConflict):
        world.desk.checkout("acme", "day", "one")
    world.fake.pay(first.rsplit("/", 1)[1])
    world.deliver(world.new_events())
    again = world.desk.checkout("acme", "pack100", "three")
    assert again != first
    assert world.desk.checkout("acme", "pack100", "one") == first, "a repeat is answered the same"
    world.fake.expire(again.rsplit("/", 1)[1])
    world.deliver(world.new_events())
    another = world.desk.checkout("acme", "pack100", "four")
    world.wait(hours=23, minutes=58)
    assert world.desk.checkout("acme", "pack100", "five") not in (again, another)
    assert len(world.fake.of("customer")) == 2


@pytest.mark.parametrize("failing", ["down", "lost"])
def test_an_answer_that_was_lost_opens_no_second_page(world: World, failing: str):
    world.desk.customer("acme")
    world.fake.fail = [failing] * 3
    with pytest.raises(ProviderUnavailable):
        world.desk.checkout("acme", "pack100", "order")
    world.fake.fail = []
    url = world.desk.checkout("acme", "pack100", "order")
    assert [session["url"] for session in world.fake.of("checkout.session")] == [url]


def test_what_cannot_be_sold(world: World):
    for product, told in (("nothing", "no pack, pass or plan"), ("priceless", "no price")):
        with pytest.raises(tillroll.InvalidInput, match=told):
            world.desk.checkout("acme", product, "order")
    for account, request_id in (("", "r"), ("a", ""), ("a" * 256, "r")):
        with pytest.raises(tillroll.InvalidInput):
            world.desk.checkout(account, "pack100", request_id)
    assert world.fake.asked == []


def test_a_webhook_is_signed_now_and_with_our_secret(world: World):
    world.buy()
    event = world.new_events()[-1]
    body, good = world.fake.signed(event, SECRET)
    old = world.fake.signed(event, SECRET, world.fake.now() - 301)[1]
    early = world.fake.signed(event, SECRET, world.fake.now() + 301)[1]
    other = world.fake.signed(event, "whsec_of_another")[1]
    for header in ("", "t=1", "nonsense", other, old, early, good.replace("v1=", "v0=")):
        with pytest.raises(BadSignature):
            world.desk.receive({"stripe-signature": header}, body)
    with pytest.raises(BadSignature):
        world.desk.receive({"stripe-signature": good}, body.replace(b"acme", b"evil"))
    with pytest.raises(BadSignature):
        world.desk.receive({"stripe-signature": good}, b"\xff")
    assert world.available() == 0
    assert world.desk.receive({"stripe-signature": good}, body) == 2
    assert world.available() == 100


def test_a_page_that_is_not_complete_is_not_paid(world: World):
    """A page may say that nothing is to be paid while it is still open."""
    world.buy()
    [_, paid] = world.new_events()
    early = json.loads(json.dumps(paid))
    early["data"]["object"] |= {"status": "open", "payment_status": "no_payment_required"}
    world.deliver([early])
    assert world.available() == 0
    world.deliver([paid])
    assert world.available() == 100


def test_what_is_told_otherwise_is_noted_and_changes_nothing(world: World):
    payment = world.buy()
    [_, paid] = world.new_events()
    other = json.loads(json.dumps(paid))
    other["data"]["object"]["amount_total"] = 7_00
    world.deliver([paid, other, other])
    found = world.payment(payment)
    assert (found.contradicted, found.bought.amount, world.available()) == (True, 500, 100)


def test_a_trial_is_offered_once(world: World):
    for days in ("7", None):
        url = world.desk.checkout("acme", "trial", f"order-{days}")
        session = world.fake.things[url.rsplit("/", 1)[1]]
        assert session["_asked"]["subscription_data"].get("trial_period_days") == days
        world.fake.cancel(world.fake.pay(session["id"]))
        world.deliver(world.new_events()[:-1])
        world.wait(days=1)
        world.deliver(world.fake.events[-1:])


def test_a_trial_that_was_used_meanwhile_blocks_no_checkout(world: World):
    call = world.fake.call

    def broken(method: str, path: str, asked: Any, key: str | None) -> Any:
        status, thing = call(method, path, asked, key)
        if (method, path) == ("POST", "/v1/checkout/sessions"):
            raise ConnectionAbortedError
        return status, thing

    world.fake.call = broken  # type: ignore[method-assign]
    with pytest.raises(ProviderUnavailable):
        world.desk.checkout("acme", "trial", "order")
    world.fake.call = call  # type: ignore[method-assign]
    world.ledger.subscribe("acme", "trial", name="by hand")
    url = world.desk.checkout("acme", "trial", "order")
    session = world.fake.things[url.rsplit("/", 1)[1]]
    assert "trial_period_days" not in session["_asked"].get("subscription_data", {})


def test_a_secret_is_replaced_with_an_overlap(world: World):
    world.desk.provider._secrets = ("whsec_new", SECRET)  # type: ignore[attr-defined]
    world.buy()
    world.deliver(world.new_events())
    assert world.available() == 100


def test_what_is_not_ours_is_left_alone(world: World):
    world.buy()
    paid = world.new_events()[-1]
    for change in ({"metadata": {}}, {"metadata": {"tillroll_ledger": "another"}}):
        event = json.loads(json.dumps(paid))
        event["data"]["object"] |= change
        world.deliver([event])
    world.deliver([paid | {"type": "customer.created"}])
    assert world.available() == 0
    with pytest.raises(tillroll.InvalidInput, match="other mode"):
        world.deliver([paid | {"livemode": True}])
    with pytest.raises(tillroll.InvalidInput, match="lacks"):
        world.deliver([{"type": "x"}])
    older = json.loads(json.dumps(paid))
    del older["data"]["object"]["payment_status"]
    older["data"]["object"]["metadata"]["tillroll_ledger"] = "default"
    with pytest.raises(tillroll.InvalidInput, match="API version"):
        world.deliver([older])
    assert world.ledger.verify().ok


def test_refunds_are_asked_for_where_the_event_does_not_name_them(world: World):
    payment = world.buy()
    world.fake.refund(payment, 1_00)
    world.fake.refund(payment, 50)
    told = [event for event in world.new_events() if event["type"] == "charge.refunded"]
    world.deliver(told[:1])  # it came before the purchase, and the second refund was made since
    assert set(world.payment(payment).refunds) == {one["id"] for one in world.fake.of("refund")}
    world.deliver(world.fake.events)
    assert world.available() == 70


def test_a_webhook_that_needs_stripe_waits_for_it(world: World):
    payment = world.buy()
    world.fake.refund(payment, 1_00)
    [event] = [one for one in world.new_events() if one["type"] == "charge.refunded"]
    world.fake.fail = ["down"]
    with pytest.raises(ProviderUnavailable):
        world.deliver([event])
    assert world.payment(payment) is None
    world.deliver([event])
    assert world.payment(payment).refunds


def test_lost_webhooks_are_pulled(world: World):
    for account in ("beta", "gamma", "acme"):
        payment = world.buy(account)
    world.fake.refund(payment, 2_50)
    assert world.available() == 0
    first = world.desk.pull()
    assert first.heard == len(world.fake.events)
    assert (world.available(), world.available("beta")) == (50, 100)
    world.wait(hours=1)
    world.buy()
    world.deliver(world.fake.events)
    second = world.desk.pull()
    assert second.until > first.until
    assert second.heard == len(world.fake.events), "what was just before is heard again"
    assert world.desk.pull().until == second.until
    assert world.available() == 150


def test_a_pull_goes_through_pages(world: World):
    for _ in range(60):
        world.buy()
    assert world.desk.pull().heard == 120
    assert world.available() == 6_000


def test_a_pull_goes_on_where_stripe_failed(world: World):
    world.buy()
    world.fake.fail = ["down"]
    with pytest.raises(ProviderUnavailable):
        world.desk.pull()
    assert world.desk.pull().heard == 2


def test_a_page_that_was_paid_is_not_shown_again(world: World):
    first = world.desk.checkout("acme", "pack100", "one")
    world.fake.pay(first.rsplit("/", 1)[1])
    assert world.desk.checkout("acme", "pack100", "two") != first
    assert world.available() == 100, "what was found out on the way counts"


def test_a_page_that_stripe_does_not_know_any_more_is_opened_anew(world: World):
    first = world.desk.checkout("acme", "pack100", "one")
    del world.fake.things[first.rsplit("/", 1)[1]]
    second = world.desk.checkout("acme", "pack100", "two")
    assert second != first
    assert world.desk.checkout("acme", "pack100", "three") == second


def test_a_page_that_may_not_be_looked_at_is_not_taken_for_gone(world: World):
    first = world.desk.checkout("acme", "pack100", "one")
    world.fake.fail = ["no right"]
    with pytest.raises(ProviderRefused):
        world.desk.checkout("acme", "pack100", "two")
    assert world.desk.checkout("acme", "pack100", "two") == first
    assert len(world.fake.of("checkout.session")) == 1


def test_what_cannot_be_followed_is_kept_and_tried_again(world: World):
    world.buy()
    lost = json.loads(json.dumps(world.fake.events[-1]))
    lost["data"]["object"]["metadata"]["tillroll_version"] = "2"
    lost["data"]["object"]["payment_intent"] = "pi_of_version_2"
    world.fake.events.insert(0, lost)
    found = world.desk.pull()
    assert (found.heard, found.kept, world.available()) == (3, 1, 100)
    assert world.desk.pull().kept == 0, "it is kept once"
    assert world.desk.again() == 0
    world.wait(hours=1)
    assert (world.desk.again(), world.available()) == (1, 100)
    version = new_version(2, [], products=PRODUCTS, author="ann", reason="what was sold")
    world.ledger._engine.perform(lambda tx: tx.add_price_version("default", version))
    world.wait(hours=1)
    assert (world.desk.again(), world.available()) == (1, 200)
    world.wait(hours=2)
    assert world.desk.again() == 0
    with world.ledger.store.read() as reader:
        assert desk.kept_of(reader, "default") == [], "what was followed is not kept"


def test_what_is_too_old_is_tried_a_last_time_and_stays_to_be_seen(world: World):
    world.buy()
    lost = world.fake.events[-1]
    lost["data"]["object"]["metadata"]["tillroll_version"] = "2"
    world.desk.pull()
    world.wait(days=29, hours=23)
    assert world.desk.again() == 1
    world.wait(hours=1)
    assert world.desk.again() == 1, "for the last time"
    world.wait(days=9)
    assert world.desk.again() == 0
    with world.ledger.store.read() as reader:
        [(name, kept, again)] = desk.kept_of(reader, "default")
    assert name.startswith("stripe:")
    assert (kept.problem, again) == ("the catalog has no version 2", False)


def test_a_long_silence_is_heard_in_parts(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(desk, "EVENTS_MAX", 3)
    for account in ("a", "b", "c", "d"):
        world.buy(account)
        world.wait(days=2)
    pulls = [world.desk.pull()]
    while pulls[-1].more:
        pulls.append(world.desk.pull())
    assert len(pulls) > 2
    assert [world.available(account) for account in ("a", "b", "c", "d")] == [100] * 4


def test_a_key_that_stripe_refuses_is_said(world: World):
    world.fake.answers[world.desk.key("customer", "acme")] = ("other", 200, {})
    with pytest.raises(ProviderRefused, match="another body"):
        world.desk.checkout("acme", "pack100", "order")


def test_a_time_pass_is_paid_prolonged_and_refunded(world: World):
    first = world.buy(product="day")
    world.deliver(world.new_events())
    second = world.buy(product="day")
    world.deliver(world.new_events())
    begun = world.fake.now()

    def left() -> Any:
        held = world.ledger.entitlements("acme")
        return [(one["kind"], instant(one["ends_at"], "ends_at") - begun * ONE) for one in held]

    day = 86_400 * ONE
    assert left() == [("time_pass", 2 * day)]
    world.fake.refund(second, 1_00)
    world.deliver(world.new_events())
    assert left() == [("time_pass", 3 * day // 2)]
    dispute = world.fake.dispute(first, 2_00)
    world.deliver(world.new_events())
    assert left() == [("time_pass", day // 2)]
    world.fake.close(dispute, "won")
    world.deliver(world.new_events())
    assert left() == [("time_pass", 3 * day // 2)]
    world.wait(hours=35)
    world.fake.refund(first, 2_00)
    world.deliver(world.new_events())
    assert world.ledger.entitlements("acme") == []
    found = world.payment(first)
    assert (found.taken, found.short) == (day // 24, 23 * day // 24)
    shown = shown_payment(found, scale=2)
    assert (shown["units"], shown["taken"], shown["shortfall"]) == (None, "3600s", "82800s")


def test_nothing_secret_is_shown(world: World):
    shown = repr(world.desk.provider)
    assert "sk_test" not in shown
    assert "whsec" not in shown
