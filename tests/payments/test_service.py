"""Payments over HTTP: the documented flow, from the checkout to the refund, on a served ledger."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tillroll
from tests.api.conftest import Api, Served
from tests.payments.conftest import PRODUCTS, SECRET, World, clock
from tests.payments.fake_stripe import FakeStripe, serving
from tillroll.api import keys
from tillroll.api.paying import ASKED_MAX, Threads
from tillroll.embedded import open_engine
from tillroll.ledger.pricing import new_version
from tillroll.payments import settling, topups
from tillroll.payments.desk import Desk
from tillroll.payments.facts import Refunded
from tillroll.payments.signed import Signed
from tillroll.server.settings import load, shown

CHECKOUT = "/v1/checkout/session"
WEBHOOK = "/v1/payments/stripe/webhook"
TOP_UP, OVERAGE = "/v1/accounts/acme/top-ups/credits", "/v1/accounts/acme/overage/credits"
ASKING_NOBODY: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", TOP_UP, {"threshold": 20, "target": 150, "product": "pack100"}),
    ("POST", TOP_UP + "/pause", {}),
    ("POST", TOP_UP + "/resume", {}),
    ("PUT", OVERAGE, {"meter": "api_units"}),
    ("POST", OVERAGE + "/resolve", {"arrived": True}),
    ("POST", OVERAGE + "/stop", {}),
]


@pytest.fixture
def paying(world: World, tmp_path: Path) -> Iterator[tuple[Api, World]]:
    """The service within this process, in test mode, with a desk at our Stripe."""
    engine = open_engine(f"sqlite:///{tmp_path}/till.db", clock=lambda: clock.now)
    version = new_version(1, [], products=PRODUCTS, author="ann", reason="a test")
    engine.perform(lambda tx: tx.add_price_version("default:test", version))
    stripe = world.stripe(ledger="default:test")
    signed = Signed(("whsec_" + "QUJD" * 8,), mode="test")
    desks = [Desk(engine, "default:test", stripe), Desk(engine, "default:test", signed)]
    world.desk = desks[0]
    api = Api(engine, desks=desks)
    api.admin = api.key(mode="test")
    yield api, world
    api.close()


def send(api: Api, world: World) -> list[int]:
    """Send all new webhooks; return the statuses."""
    said = []
    for event in world.new_events():
        body, header = world.fake.signed(event, SECRET)
        headers = {"stripe-signature": header, "authorization": ""}
        said.append(api.call("POST", WEBHOOK, content=body, headers=headers).status_code)
    return said


def test_checkout_and_webhook(paying: tuple[Api, World]):
    api, world = paying
    asked = {"subject_ref": "acme", "product_code": "pack100"}
    first = api.call("POST", CHECKOUT, asked, once="order-1")
    assert first.status_code == 200
    assert list(first.json()) == ["checkout_url"]
    other = api.call("POST", CHECKOUT, {"account": "acme", "product": "pack100"}, once="order-2")
    assert other.json() == first.json()
    for path, body in ((CHECKOUT, asked), ("/v1/accounts/acme/checkouts", {"product": "pack100"})):
        again = api.call("POST", path, body, once="order-1")
        assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert not any("idempotent-replayed" in said.headers for said in (first, other))
    world.fake.pay(first.json()["checkout_url"].rsplit("/", 1)[1])
    assert send(api, world) == [200, 200]
    balance = api.call("GET", "/v1/accounts/acme/balance").json()
    assert balance["available"] == "100"
    found = api.call("GET", "/v1/accounts/acme/payments").json()
    [payment] = found["payments"]
    assert (payment["amount"], payment["currency"], payment["taken"]) == (500, "usd", "0")
    assert found["subscriptions"] == []


def test_a_subscription_is_shown(paying: tuple[Api, World]):
    api, world = paying
    url = api.call("POST", CHECKOUT, {"account": "acme", "product": "pro"}, once="o").json()
    world.fake.pay(url["checkout_url"].rsplit("/", 1)[1])
    assert set(send(api, world)) == {200}
    [found] = api.call("GET", "/v1/accounts/acme/payments").json()["subscriptions"]
    assert (found["status"], found["plan"], found["invoices_paid"]) == ("active", "pro", 1)
    [period] = found["periods"]
    assert (period["units"], period["paid"], period["returned"]) == ("500", 20_00, 0)
    access = api.call("POST", "/v1/access/check", {"subject_ref": "acme"}).json()
    assert access == {"subject_ref": "acme", "allowed": True}


def test_what_nobody_owns_is_listed_in_pages(paying: tuple[Api, World]):
    api, world = paying
    for nth in range(3):
        settling.settle(
            world.desk.engine, world.desk.ledger, "stripe", f"pi_{nth}", [Refunded("r", 1)]
        )
    world.fake.tell("checkout.session.completed", {"object": "checkout.session"})
    world.desk.pull()
    found = api.call("GET", "/v1/payments?limit=2").json()
    assert [one["id"] for one in found["payments"]] == ["pi_0", "pi_1"]
    assert found["next"] == "stripe:pi_1"
    [event] = found["events"]
    assert (event["tried_again"], "lacks" in event["problem"]) == (False, True)
    found = api.call("GET", f"/v1/payments?limit=2&after={found['next']}").json()
    assert ([one["id"] for one in found["payments"]], found["next"]) == (["pi_2"], None)
    assert api.call("GET", "/v1/payments?limit=0").status_code == 422


def test_money_for_a_closed_account_is_listed_until_it_went_back(paying: tuple[Api, World]):
    api, world = paying
    asked = {"account": "acme", "product": "pack100"}
    page = api.call("POST", CHECKOUT, asked, once="o").json()["checkout_url"]
    assert api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g").status_code == 200
    assert api.call("POST", "/v1/accounts/acme/close", {}, once="c").status_code == 200
    payment = world.fake.pay(page.rsplit("/", 1)[1])["id"]
    assert set(send(api, world)) == {200}
    settling.settle(world.desk.engine, world.desk.ledger, "stripe", "pi_0", [Refunded("r", 1)])
    listed = api.call("GET", "/v1/payments").json()
    assert [(one["id"], one["account"]) for one in listed["payments"]] == [
        ("pi_0", None),
        (payment, "acme"),
    ]
    assert listed["payments"][1]["refused"] == "account_closed"
    page = api.call("GET", "/v1/payments?limit=1&after=stripe:pi_0").json()
    assert (page["payments"], page["next"]) == (listed["payments"][1:], f"stripe:{payment}")
    assert api.call("GET", "/v1/accounts/acme/payments").json()["payments"] == page["payments"]
    world.fake.refund(payment, 2_00)
    assert set(send(api, world)) == {200}
    [_, found] = api.call("GET", "/v1/payments").json()["payments"]
    assert (found["id"], len(found["refunds"])) == (payment, 1)
    last = world.fake.refund(payment, 3_00)
    assert set(send(api, world)) == {200}
    assert [one["id"] for one in api.call("GET", "/v1/payments").json()["payments"]] == ["pi_0"]
    world.fake.fail_refund(last)
    assert set(send(api, world)) == {200}
    assert len(api.call("GET", "/v1/payments").json()["payments"]) == 2


def test_a_subscription_that_cannot_be_followed_is_listed(paying: tuple[Api, World]):
    api, world = paying
    url = api.call("POST", CHECKOUT, {"account": "acme", "product": "pro"}, once="o").json()
    subscription = world.fake.pay(url["checkout_url"].rsplit("/", 1)[1])
    assert set(send(api, world)) == {200}
    assert api.call("GET", "/v1/payments").json()["subscriptions"] == []
    clock.now += timedelta(seconds=5)
    world.fake.update(subscription, price="price_of_nothing")
    assert set(send(api, world)) == {200}
    found = api.call("GET", "/v1/payments?limit=1").json()
    name = f"stripe:{subscription['id']}"
    assert [(one["account"], one["plan"]) for one in found["subscriptions"]] == [("acme", "pro")]
    assert found["next_subscription"] == name
    rest = api.call("GET", f"/v1/payments?limit=1&after_subscription={name}").json()
    assert (rest["subscriptions"], rest["next_subscription"]) == ([], None)


@pytest.mark.parametrize(
    "query",
    ["after=pi_1", "after=:pi_1", "after=stripe:", "after_subscription=x", "after_event=x:y"],
)
def test_a_place_that_no_page_said_is_refused(paying: tuple[Api, World], query: str):
    api, _ = paying
    said = api.call("GET", f"/v1/payments?{query}")
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
    if query.startswith("after="):
        api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g")
        assert api.call("GET", f"/v1/accounts/acme/payments?{query}").status_code == 422


def test_a_bad_webhook(paying: tuple[Api, World]):
    api, world = paying
    event = world.fake.tell("checkout.session.completed", {"object": "checkout.session"})
    body, good = world.fake.signed(event, SECRET)
    old = world.fake.signed(event, SECRET, world.fake.now() - 600)[1]
    for header in ("", "t=1,v1=00", old):
        headers = {"stripe-signature": header, "authorization": ""}
        said = api.call("POST", WEBHOOK, content=body, headers=headers)
        assert (said.status_code, said.json()["code"]) == (400, "bad_signature")
    headers = {"stripe-signature": good}
    broken = api.call("POST", WEBHOOK, content=body + b" ", headers=headers)
    assert broken.status_code == 400
    large = api.call("POST", WEBHOOK, content=b"x" * 600_000, headers=headers)
    assert large.status_code == 413
    nobody = api.call("POST", "/v1/payments/other/webhook", content=body, headers=headers)
    assert nobody.status_code == 404
    assert api.call("GET", WEBHOOK).status_code == 405


def test_while_stripe_is_down_the_webhook_is_sent_again(paying: tuple[Api, World]):
    api, world = paying
    url = api.call("POST", CHECKOUT, {"account": "acme", "product": "pack100"}, once="o").json()
    payment = world.fake.pay(url["checkout_url"].rsplit("/", 1)[1])
    world.fake.refund(payment["id"], 1_00)
    events = world.new_events()
    [told] = [event for event in events if event["type"] == "charge.refunded"]
    body, header = world.fake.signed(told, SECRET)
    headers = {"stripe-signature": header, "authorization": ""}
    world.fake.fail = ["down"]
    said = api.call("POST", WEBHOOK, content=body, headers=headers)
    assert (said.status_code, said.json()["code"]) == (503, "provider_unavailable")
    world.fake.fail = ["down"]
    asked = {"account": "beta", "product": "pack100"}
    refused = api.call("POST", CHECKOUT, asked, once="o2")
    assert (refused.status_code, refused.json()) == (503, {"error": "provider_unavailable"})
    assert api.call("POST", WEBHOOK, content=body, headers=headers).status_code == 200
    [unplaced] = api.call("GET", "/v1/payments").json()["payments"]
    assert (unplaced["id"], unplaced["account"]) == (payment["id"], None)


@pytest.mark.parametrize("path", [CHECKOUT, "/v1/accounts/{account}/checkouts"])
def test_a_provider_that_hangs_slows_nobody_else(
    paying: tuple[Api, World], path: str, monkeypatch: pytest.MonkeyPatch
):
    api, world = paying
    api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g")
    stuck, go_on = threading.Semaphore(0), threading.Event()
    answer = world.fake.call

    def hang(*asked: Any) -> Any:
        stuck.release()
        assert go_on.wait(60)
        return answer(*asked)

    monkeypatch.setattr(world.fake, "call", hang)
    headers = {"authorization": f"Bearer {api.admin}"}

    async def crowd() -> tuple[list[httpx2.Response], list[httpx2.Response]]:
        def checkout(n: int) -> asyncio.Future[httpx2.Response]:
            asked = {"account": f"a{n}"} if path == CHECKOUT else {}
            asked |= {"product": "pack100"}
            once = headers | {"idempotency-key": f"o{n}"}
            url = path.format(account=f"a{n}")
            return asyncio.ensure_future(api._client.post(url, json=asked, headers=once))

        hanging = [checkout(n) for n in range(ASKED_MAX)]
        await asyncio.to_thread(lambda: [stuck.acquire(timeout=60) for _ in hanging])
        turned = [await checkout(ASKED_MAX), await checkout(ASKED_MAX + 1)]
        # With all threads for providers taken, what needs none and what is told still goes on.
        for other in ("/v1/accounts/acme/balance", "/v1/accounts", "/v1/keys", "/readyz"):
            assert (await api._client.get(other, headers=headers)).status_code in (200, 404)
        for method, other, body in ASKING_NOBODY:
            asked = await api._client.request(method, other, json=body, headers=headers)
            assert asked.status_code in (200, 422), asked.text
        event = world.fake.tell("customer.created", {"object": "customer", "id": "cus_1"})
        body, signature = world.fake.signed(event, SECRET)
        signed = {"stripe-signature": signature, "content-type": "application/json"}
        told = await api._client.post(WEBHOOK, content=body, headers=signed)
        assert told.status_code == 200
        go_on.set()
        return turned, await asyncio.gather(*hanging)

    turned, served = api.run(crowd())
    assert {one.status_code for one in served} == {200}
    assert {one.status_code for one in turned} == {503}
    assert {one.json().get("error", one.json().get("code")) for one in turned} == {"overloaded"}
    assert turned[0].headers["retry-after"] == "1"
    after = api.call("POST", CHECKOUT, {"account": "z", "product": "pack100"}, once="z")
    assert after.status_code == 200


def test_who_hangs_up_before_his_turn_takes_no_thread_with_him():
    threads = Threads(1, "requests")
    go_on = threading.Event()
    blocked = threads._pool.submit(go_on.wait, 60)

    async def hang_up() -> str:
        queued = asyncio.ensure_future(threads.run(str))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        go_on.set()
        return await threads.run(str, "served")

    assert asyncio.run(hang_up()) == "served"
    assert blocked.result()
    threads.close()


def test_what_cannot_be_begun_takes_no_thread_with_it():
    threads = Threads(1, "requests")
    threads.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="after shutdown"):
            asyncio.run(threads.run(str))


def test_who_may_and_what_is_refused(paying: tuple[Api, World]):
    api, _ = paying
    live = api.key(mode="live")
    asked = {"account": "acme", "product": "pack100"}
    said = api.call("POST", CHECKOUT, asked, once="o", key=live)
    assert (said.status_code, said.json()["code"]) == (404, "payments_not_set_up")
    assert said.headers["content-type"] == "application/json"
    assert "stripe_secret_key (sk_live_...)" in said.json()["detail"]
    said = api.call("POST", "/v1/accounts/acme/top-ups/credits/pause", {}, key=live)
    assert (said.status_code, said.json()["code"]) == (404, "payments_not_set_up")
    reader = api.key(mode="test", scopes="read")
    assert api.call("POST", CHECKOUT, asked, once="o", key=reader).status_code == 403
    beta = api.key(mode="test", accounts=["beta"])
    assert api.call("POST", CHECKOUT, asked, once="o", key=beta).status_code == 403
    assert api.call("POST", CHECKOUT, asked).status_code == 400
    for body in ({}, {"account": "a"}, asked | {"subject_ref": "b"}, asked | {"product": "none"}):
        said = api.call("POST", CHECKOUT, body, once="o")
        assert (said.status_code, said.json()) == (400, {"error": "invalid_request"})
    assert api.call("GET", "/v1/accounts/nobody/payments").status_code == 404


def test_top_ups(paying: tuple[Api, World]):
    api, world = paying
    path = "/v1/accounts/acme/top-ups/credits"
    assert api.call("GET", path).status_code == 404
    terms = {"threshold": 20, "target": "150", "product": "pack100", "daily_cap": "50"}
    nobody = api.call("PUT", path, terms)
    assert (nobody.status_code, nobody.json()["code"]) == (404, "not_found")
    api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g")
    made = api.call("PUT", path, terms)
    assert (made.status_code, made.json()["state"], made.json()["daily_cap"]) == (
        200,
        "ready",
        5000,
    )
    assert api.call("PUT", path, terms | {"target": 1}).status_code == 422
    assert api.call("POST", path + "/pause").json()["reason"] == "by_hand"
    assert api.call("POST", path + "/resume").json()["state"] == "ready"
    assert topups.round_of(world.desk) == 1
    shown = api.call("GET", path).json()
    assert (shown["state"], shown["reason"]) == ("paused", "no_payment_method")


def test_overage(paying: tuple[Api, World]):
    api, world = paying
    path = "/v1/accounts/acme/overage/credits"
    assert api.call("GET", path).status_code == 404
    assert api.call("PUT", path, {"meter": "api_units"}).status_code == 404
    api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g")
    assert api.call("PUT", path, {"meter": "api_units"}).json()["state"] == "running"
    assert api.call("GET", path).json()["sent"] == 0
    assert api.call("POST", path + "/resolve", {"arrived": True}).status_code == 422
    assert api.call("POST", path + "/stop").json()["state"] == "stopped"
    assert world.fake.meter_events == {}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """A function that serves a store as a process, ended after the test."""
    served: list[Served] = []

    def start(url: str, **environ: str) -> Served:
        served.append(Served(url, **environ))
        return served[-1]

    yield start
    for one in served:
        one.stop(9)


def test_the_documented_flow(serve: Callable[..., Served], tmp_path: Path):
    """Checkout, webhook, access check, consume, refund: as its documentation has it."""
    url = f"sqlite:///{tmp_path}/served.db"
    with tillroll.open(url) as ledger:
        version = new_version(1, [], products=PRODUCTS, author="ann", reason="a test")
        ledger._engine.perform(lambda tx: tx.add_price_version("default:test", version))
        key, secret = keys.new_key(
            "default", "test", name="runtime", scopes=["consume", "read"], at=0
        )
        ledger._engine.perform(lambda tx: keys.put_key(tx, key))
    fake = FakeStripe(lambda: int(time.time()))
    with serving(fake) as address:
        served = serve(
            url,
            TILLROLL_STRIPE_SECRET_KEY="sk_test_of_a_test",
            TILLROLL_STRIPE_WEBHOOK_SECRET=f"whsec_old,{SECRET}",
            TILLROLL_STRIPE_SUCCESS_URL="https://shop.test/thanks",
            TILLROLL_STRIPE_API_BASE=address,
        )
        runtime = {"authorization": f"Bearer {secret}"}
        api = httpx2.Client(base_url=served.url, headers=runtime)

        def hook() -> None:
            for event in fake.events[:]:
                body, header = fake.signed(event, SECRET)
                said = httpx2.post(
                    served.url + WEBHOOK,
                    content=body,
                    headers={"stripe-signature": header, "content-type": "application/json"},
                )
                assert said.status_code == 200, said.text

        check = {"subject_ref": "cust_1"}
        assert api.post("/v1/access/check", json=check).json() == {**check, "allowed": False}
        page = api.post(
            CHECKOUT,
            json={"subject_ref": "cust_1", "product_code": "pack100"},
            headers={"idempotency-key": "order-1"},
        ).json()["checkout_url"]
        payment = fake.pay(page.rsplit("/", 1)[1])
        hook()
        assert api.post("/v1/access/check", json=check).json() == {**check, "allowed": True}
        used = {"subject_ref": "cust_1", "units": 30}
        for _ in range(2):
            said = api.post("/v1/usage/consume", json=used, headers={"idempotency-key": "job-1"})
            assert said.json() == {"ok": True, "consumed": 30, "usage_remaining": 70}
        fake.refund(payment["id"], 5_00)
        hook()
        assert api.post("/v1/access/check", json=check).json() == {**check, "allowed": False}
        said = api.post("/v1/usage/consume", json=used, headers={"idempotency-key": "job-2"})
        assert (said.status_code, said.json()) == (409, {"error": "insufficient_usage"})
        access = api.get("/v1/customer/access/cust_1").json()
        assert access["has_access"] is False
        [shown] = api.get("/v1/accounts/cust_1/payments").json()["payments"]
        assert (shown["taken"], shown["shortfall"]) == ("70", "30")
        api.close()
    assert served.stop() in (0, -15)


def test_settings(tmp_path: Path):
    given = {"stripe_secret_key": "sk_test_1", "stripe_webhook_secret": "whsec_1"}
    with pytest.raises(tillroll.InvalidInput, match="stripe_success_url"):
        load(environ={}, given=given)
    settings = load(environ={}, given=given | {"stripe_success_url": "https://shop.test"})
    text = json.dumps(shown(settings))
    assert "sk_test_1" not in text
    assert "whsec_1" not in text
    other: Any = load(environ={"TILLROLL_PAYMENTS_SECRET": "whsec_2"})
    assert shown(other)["payments_secret"] == "***"
