"""The second provider: one signed webhook of a plain shape, through the same seam."""

import itertools
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

import tillroll
from tests.payments.conftest import PRODUCTS, World
from tillroll.ledger.pricing import new_version
from tillroll.payments.desk import Desk
from tillroll.payments.rounds import rounds
from tillroll.payments.settling import payments_of
from tillroll.payments.signed import Signed
from tillroll.wire.problems import BadSignature

standardwebhooks = pytest.importorskip("standardwebhooks")
SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="


def tell(world: World, desk: Desk, **body: Any) -> None:
    """Send a payment, signed by the reference implementation."""
    text = json.dumps({"payment_id": "p1", **body})
    at = datetime.fromtimestamp(world.fake.now(), UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("msg_1", at, text)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(world.fake.now()),
        "webhook-signature": f"v1a,other {signature}",
    }
    desk.receive(headers, text.encode())


@pytest.fixture
def desk(world: World) -> Desk:
    return Desk(world.ledger._engine, "default", Signed((SECRET,)))


PAID = {"account": "acme", "product": "pack100", "amount": 500}


def test_a_payment_and_its_refunds_in_every_order(world: World):
    tellings: list[dict[str, Any]] = [
        PAID,
        {**PAID, "refunds": {"r1": {"amount": 100}}},
        {"paid": False, "refunds": {"r2": {"amount": 150}}},
        {"paid": False, "disputes": {"d": {"amount": 500, "state": "open"}}},
        {"paid": False, "disputes": {"d": {"amount": 500, "state": "won"}}},
    ]
    for order in itertools.permutations(tellings):
        other = World("memory://", world.api_base, world.fake)
        with other.ledger:
            desk = Desk(other.ledger._engine, "default", Signed((SECRET,)))
            for telling in order:
                tell(other, desk, **telling)
            assert other.available() == 50
            assert other.ledger.verify().ok


def test_units_without_a_product(world: World, desk: Desk):
    tell(
        world,
        desk,
        account="acme",
        units="12.5",
        amount=250,
        currency="EUR",
        wallet="images",
        expires_in="30d",
    )
    found = world.ledger.balance("acme", "images")
    assert found.available * 2 == 25
    [grant] = found.grants
    assert (grant["id"], grant["expires_at"]) == ("signed:p1", "2026-03-31T12:00:00Z")
    with world.ledger.store.read() as reader:
        [payment] = payments_of(reader, "default", "acme")
    assert (payment.provider, payment.bought and payment.bought.currency) == ("signed", "eur")


def test_told_again_after_the_catalog_was_changed(world: World, desk: Desk):
    tell(world, desk, **PAID)
    packs = {**PRODUCTS.packs, "pack100": replace(PRODUCTS.packs["pack100"], units=Decimal(999))}
    products = replace(PRODUCTS, packs=packs)
    version = new_version(2, [], products=products, author="ann", reason="more for the money")
    world.ledger._engine.perform(lambda tx: tx.add_price_version("default", version))
    tell(world, desk, **PAID, refunds={"r1": {"amount": 100}})
    with world.ledger.store.read() as reader:
        [payment] = payments_of(reader, "default", "acme")
    assert (payment.contradicted, world.available()) == (False, 80)


@pytest.mark.parametrize(
    "change", [{"account": "zoe"}, {"amount": 400}, {"product": None, "units": "9"}]
)
def test_a_purchase_that_is_told_otherwise_is_a_conflict(
    world: World, desk: Desk, change: dict[str, Any]
):
    tell(world, desk, **PAID)
    told = {name: value for name, value in {**PAID, **change}.items() if value is not None}
    for _ in range(2):
        with pytest.raises(tillroll.IdempotencyConflict, match="told before"):
            tell(world, desk, **told, refunds={"r1": {"amount": 100}})
    with world.ledger.store.read() as reader:
        [payment] = payments_of(reader, "default", "acme")
    assert (payment.contradicted, world.available(), world.available("zoe")) == (True, 80, 0)
    tell(world, desk, **PAID)


@pytest.mark.parametrize(
    "body",
    [
        {"account": "acme"},
        {"units": "5"},
        {**PAID, "amount": -1},
        {**PAID, "amount": 1.5},
        {**PAID, "currency": "dollars"},
        {**PAID, "product": "nothing"},
        {**PAID, "version": 9},
        {**PAID, "other": 1},
        {**PAID, "payment_id": ""},
        {**PAID, "disputes": {"d": {"amount": 1, "state": "unsure"}}},
    ],
)
def test_what_cannot_be_right(world: World, desk: Desk, body: dict[str, Any]):
    with pytest.raises(tillroll.InvalidInput):
        tell(world, desk, **body)
    assert world.available() == 0


def test_only_who_knows_the_secret_is_heard(world: World, desk: Desk):
    body = json.dumps({"payment_id": "p1", **PAID}).encode()
    now = str(world.fake.now())
    for headers in (
        {},
        {"webhook-id": "m", "webhook-timestamp": now, "webhook-signature": "v1,AAAA"},
        {"webhook-id": "m", "webhook-timestamp": now, "webhook-signature": "v1,\xe9"},
    ):
        with pytest.raises(BadSignature):
            desk.receive(headers, body)
    world.wait(seconds=-400)
    tell(world, desk, **PAID)
    assert world.available() == 100
    late = world.fake.now()
    world.wait(seconds=301)
    world.fake.now = lambda: late
    with pytest.raises(BadSignature, match="five minutes"):
        tell(world, desk, **PAID)


def test_it_only_tells(desk: Desk):
    assert rounds(desk) == []
    with pytest.raises(tillroll.InvalidInput, match="no checkout"):
        desk.checkout("acme", "pack100", "r")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_!", "QUJD" * 8])
def test_a_secret_that_is_none(secret: str):
    with pytest.raises(tillroll.InvalidInput, match="24 to 64"):
        Signed((secret,))


def test_nothing_secret_is_shown(desk: Desk):
    assert SECRET not in repr(desk.provider)


def test_what_could_be_read_two_ways_is_refused(world: World, desk: Desk):
    with pytest.raises(tillroll.InvalidInput, match="not for both"):
        tell(world, desk, **PAID, units="3")
    twice = '{"payment_id":"p1","account":"acme","units":"1","units":"1000","amount":1}'
    at = datetime.fromtimestamp(world.fake.now(), UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("msg_1", at, twice)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(world.fake.now())}
    with pytest.raises(tillroll.InvalidInput, match="comes twice"):
        desk.receive({**headers, "webhook-signature": signature}, twice.encode())
    assert world.available() == 0
