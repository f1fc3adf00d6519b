"""Our Stripe has no field that Stripe does not have, and what we read is published.

The classes of the `stripe` package are generated from Stripe's OpenAPI description, for the very
version of the API that the package speaks. What our fake makes is compared with them, object by
object and field by field; and since the fake is all that the tests let us read, so is that.
"""

import typing
from typing import Any

import pytest
import stripe
from stripe import billing, checkout

from tests.payments import test_stories
from tests.payments.conftest import SECRET, World
from tillroll.payments import overage
from tillroll.payments.stripe import TOPICS

CLASSES: dict[str, type] = {
    "billing.meter_event": billing.MeterEvent,
    "charge": stripe.Charge,
    "checkout.session": checkout.Session,
    "customer": stripe.Customer,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "invoice_payment": stripe.InvoicePayment,
    "line_item": stripe.InvoiceLineItem,
    "payment_intent": stripe.PaymentIntent,
    "payment_method": stripe.PaymentMethod,
    "price": stripe.Price,
    "refund": stripe.Refund,
    "subscription": stripe.Subscription,
    "subscription_item": stripe.SubscriptionItem,
}


def fields_of(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found |= getattr(base, "__annotations__", {})
    return found


def classes_in(annotation: Any, cls: type) -> list[type]:
    """The classes of Stripe's objects that an annotation names."""
    if isinstance(annotation, str):
        names = annotation.replace("[", " ").replace("]", " ").split()
        owners = [getattr(cls, name.strip('",'), None) for name in names]
        return [owner for owner in owners if isinstance(owner, type)]
    if isinstance(annotation, typing.ForwardRef):
        return classes_in(annotation.__forward_arg__, cls)
    if isinstance(annotation, type) and issubclass(annotation, stripe.StripeObject):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in classes_in(part, cls)]


def strange(thing: Any, cls: type, where: str) -> list[str]:
    """Fields of a thing that its class does not have."""
    published = fields_of(cls)
    found = []
    for name, value in thing.items():
        if name.startswith("_"):
            continue
        if name not in published:
            found.append(f"{where}.{name}")
        elif isinstance(value, dict) and name != "metadata" and value.get("object") != "list":
            kind = value.get("object")
            inner = CLASSES.get(kind) if isinstance(kind, str) else None
            choices = [inner] if inner else classes_in(published[name], cls)
            if choices:
                found += min((strange(value, one, f"{where}.{name}") for one in choices), key=len)
        elif isinstance(value, dict) and value.get("object") == "list":
            for one in value["data"]:
                found += strange(one, CLASSES[one["object"]], f"{where}.{name}[]")
    return found


@pytest.mark.parametrize("name", test_stories.STORIES)
def test_every_field_is_published(world: World, name: str):
    test_stories.STORIES[name].act(world)
    world.ledger.set_overdraft("acme", 100)
    overage.set_overage(world.desk, "acme", "api_units")
    world.ledger.consume("acme", units=50)
    overage.round_of(world.desk)
    things = [*world.fake.things.values(), *world.fake.meter_events.values()]
    assert things
    problems = [
        problem
        for thing in things
        for problem in strange(thing, CLASSES[thing["object"]], thing["object"])
    ]
    for event in world.fake.events:
        problems += strange(event, stripe.Event, "event")
    assert problems == []


def test_a_field_that_is_not_published_is_found():
    assert strange({"id": "x", "nonsense": 1}, stripe.Refund, "refund") == ["refund.nonsense"]
    parent = {"type": "x", "subscription_details": {"nothing": 1}}
    found = strange({"parent": parent}, stripe.Invoice, "invoice")
    assert found == ["invoice.parent.subscription_details.nothing"]


def test_the_topics_are_published():
    listed = typing.get_args(fields_of(stripe.Event)["type"])
    known = {text for part in listed for text in (typing.get_args(part) or (part,))}
    assert set(TOPICS) <= known
    assert len(TOPICS) <= 20, "Stripe lists events of twenty types at once"


def test_the_package_reads_what_the_fake_signs(world: World):
    world.buy()
    event = world.fake.events[-1]
    body, header = world.fake.signed(event, SECRET)
    read = stripe.Webhook.construct_event(body, header, SECRET, tolerance=10**9)
    assert read.type == "checkout.session.completed"
    assert read.data.object["metadata"]["tillroll_account"] == "acme"
