"""A ledger with a catalog, our Stripe beside it, and a desk between the two."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

import tillroll
from tests.payments.fake_stripe import FakeStripe, serving
from tillroll.ledger.pricing import new_version
from tillroll.ledger.products import Allowance, FeatureTerms, Money, Pack, Pass, Plan, Products
from tillroll.payments import settling
from tillroll.payments.desk import Desk
from tillroll.payments.stripe import Stripe

ONE = 10**6
SECRET = "whsec_of_a_test"


def usd(amount: str) -> Money:
    return Money(Decimal(amount), "USD")


PRODUCTS = Products(
    packs={
        "pack100": Pack(units=Decimal(100), price=usd("5"), expires=90 * 86_400 * ONE),
        "priceless": Pack(units=Decimal(10)),
    },
    plans={
        "basic": Plan(
            grants=(Allowance(units=Decimal(100)),),
            features={"studio": True},
            price=usd("20"),
            stripe_price="price_basic",
        ),
        "pro": Plan(
            grants=(Allowance(units=Decimal(500)),),
            features={"studio": True, "api": True},
            price=usd("80"),
            stripe_price="price_pro",
        ),
        "saver": Plan(
            grants=(Allowance(units=Decimal(100), rollover_max=Decimal(60)),),
            price=usd("20"),
            stripe_price="price_saver",
        ),
        "trial": Plan(
            grants=(Allowance(units=Decimal(50)),),
            features={"studio": True},
            trial=7 * 86_400 * ONE,
            price=usd("20"),
            stripe_price="price_trial",
        ),
    },
    passes={
        "day": Pass(lasts=86_400 * ONE, features={"studio": True}, price=usd("2")),
    },
    features={"studio": FeatureTerms(), "api": FeatureTerms()},
)


class World:
    """A ledger, a Stripe and the time that both live in."""

    def __init__(
        self, url: str, api_base: str, fake: FakeStripe, read_url: str | None = None
    ) -> None:
        self.fake = fake
        self.api_base = api_base
        self.ledger = tillroll.open(url, clock=lambda: clock.now, read_url=read_url)
        engine = self.ledger._engine
        version = new_version(1, [], products=PRODUCTS, author="ann", reason="a test")
        with self.ledger.store.read_primary() as reader:
            has_prices = reader.prices("default").current
        if not has_prices:
            engine.perform(lambda tx: tx.add_price_version("default", version))
        self.desk = Desk(engine, "default", self.stripe())
        self.heard = 0  # events that were taken for delivery

    def stripe(self, ledger: str = "default") -> Stripe:
        return Stripe(
            "sk_test_of_a_test",
            (SECRET,),
            ledger=ledger,
            success_url="https://shop.test/thanks",
            cancel_url="https://shop.test/",
            api_base=self.api_base,
        )

    def wait(self, **span: float) -> None:
        clock.now += timedelta(**span)

    def new_events(self) -> list[Any]:
        """Return what happened at Stripe since this was last asked."""
        events, self.heard = self.fake.events[self.heard :], len(self.fake.events)
        return events

    def deliver(self, events: Iterable[Any]) -> None:
        """Send webhooks to the desk, signed, in this order."""
        for event in events:
            body, header = self.fake.signed(event, SECRET)
            self.desk.receive({"stripe-signature": header}, body)

    def buy(self, account: str = "acme", product: str = "pack100") -> str:
        """Go to the checkout and pay; return the payment's or the subscription's id."""
        url = self.desk.checkout(account, product, f"order-{self.fake.counter}")
        return str(self.fake.pay(url.rsplit("/", 1)[1])["id"])

    def payment(self, payment_id: str) -> Any:
        with self.ledger.store.read() as reader:
            return settling.known(reader, "default", "stripe", payment_id)

    def available(self, account: str = "acme") -> int:
        return int(self.ledger.balance(account).available)


class Clock:
    """The time, of the ledger and of Stripe."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)


clock = Clock()


@pytest.fixture
def fake() -> Iterator[tuple[FakeStripe, str]]:
    clock.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    made = FakeStripe(lambda: int(clock.now.timestamp()))
    with serving(made) as address:
        yield made, address


@pytest.fixture
def world(fake: tuple[FakeStripe, str]) -> Iterator[World]:
    made = World("memory://", fake[1], fake[0])
    yield made
    made.desk.close()
    made.ledger.close()
