"""Both clients at a running service: payments, top-ups, overage and webhooks, with its errors."""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tests.api.conftest import Served
from tests.jobs.receiver import Receiver
from tests.payments.conftest import PRODUCTS, SECRET
from tests.payments.fake_stripe import FakeStripe, serving
from tillroll.api import keys
from tillroll.api.routes import routes
from tillroll.client.payments import Payments
from tillroll.client.webhooks import Webhooks
from tillroll.ledger.pricing import new_version

MODES = ("threads", "loops")
SERVICES = [name for name in (*vars(Payments), *vars(Webhooks)) if not name.startswith("_")]
PATIENCE = 60  # seconds, where something is waited for


class Shop:
    """A served ledger in test mode, our Stripe, and a client of either kind."""

    def __init__(self, served: Served, fake: FakeStripe, secret: str, kind: str) -> None:
        self.fake = fake
        self.served = served
        self._runner = asyncio.Runner() if kind == "loops" else None
        self.client: Any
        if self._runner is None:
            self.client = tillroll.Client(served.url, api_key=secret)
        else:
            self.client = tillroll.AsyncClient(served.url, api_key=secret)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the client that gives the answer itself."""

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = getattr(self.client, name)(*args, **kwargs)
            if self._runner is not None and inspect.isawaitable(answer):
                return self._runner.run(_awaited(answer))
            return answer

        return ask

    def until(self, look: Callable[[], bool]) -> None:
        """Wait until something is so."""
        ends = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < ends, "it never came"
            time.sleep(0.05)

    def hook(self) -> None:
        """Send all webhooks of our Stripe."""
        import httpx2  # noqa: PLC0415 - as whoever calls from outside

        for event in self.fake.events[:]:
            body, header = self.fake.signed(event, SECRET)
            headers = {"stripe-signature": header, "content-type": "application/json"}
            url = f"{self.served.url}/v1/payments/stripe/webhook"
            assert httpx2.post(url, content=body, headers=headers).status_code == 200

    def stop(self) -> None:
        self.close()
        if self._runner is not None:
            self._runner.close()


async def _awaited(answer: Any) -> Any:
    return await answer


@pytest.fixture(params=MODES)
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    url = f"sqlite:///{tmp_path}/served.db"
    with tillroll.open(url) as ledger:
        engine = ledger._engine
        version = new_version(1, [], products=PRODUCTS, author="ann", reason="a test")
        engine.perform(lambda tx: tx.add_price_version("default:test", version))
        key, secret = keys.new_key("default", "test", name="shop", scopes=["admin"], at=0)
        engine.perform(lambda tx: keys.put_key(tx, key))
    fake = FakeStripe(lambda: int(time.time()))
    with serving(fake) as address:
        served = Served(
            url,
            TILLROLL_STRIPE_SECRET_KEY="sk_test_of_a_test",
            TILLROLL_STRIPE_WEBHOOK_SECRET=SECRET,
            TILLROLL_STRIPE_SUCCESS_URL="https://shop.test/thanks",
            TILLROLL_STRIPE_API_BASE=address,
            TILLROLL_WEBHOOKS_PRIVATE="1",
        )
        found = Shop(served, fake, secret, request.param)
        try:
            yield found
        finally:
            found.stop()
            served.stop(9)


def test_a_purchase_a_top_up_and_what_is_told_of_them(shop: Shop):
    page = shop.checkout("acme", "pack100", request_id="order-1")
    assert page == shop.checkout("acme", "pack100", request_id="order-1")
    payment = shop.fake.pay(page.rsplit("/", 1)[1])["id"]
    with pytest.raises(tillroll.IdempotencyConflict):
        shop.checkout("acme", "day", request_id="order-1")
    with pytest.raises(tillroll.InvalidInput, match="no pack, pass or plan 'none'"):
        shop.checkout("acme", "none")
    shop.hook()
    [paid] = shop.payments("acme")["payments"]
    assert (paid["id"], paid["units"], paid["amount"]) == (payment, "100", 5_00)
    assert shop.payments("acme", after=paid["provider"] + ":" + payment)["payments"] == []
    assert shop.payments("acme", limit=1)["next"] is not None
    assert shop.unplaced_payments(limit=5)["payments"] == []
    with pytest.raises(tillroll.InvalidInput):
        shop.unplaced_payments(limit=0)
    with pytest.raises(tillroll.NotFound):
        shop.payments("nobody")

    with Receiver() as receiver:
        made = shop.make_endpoint(receiver.url, events=["topup.*"], request_id="e1")
        assert made["secret"].startswith("whsec_")
        with pytest.raises(tillroll.NotFound):
            shop.top_up("acme")
        with pytest.raises(tillroll.NotFound, match="no account"):
            shop.set_top_up("nobody", threshold=20, target=150, product="pack100")
        terms: dict[str, Any] = {"threshold": "20", "target": 150, "product": "pack100"}
        top_up = shop.set_top_up("acme", **terms, daily_cap=50, cool_down="1h")
        assert (top_up["state"], top_up["daily_cap"], top_up["cool_down"]) == (
            "ready",
            5_000,
            "3600s",
        )
        shop.consume("acme", units=85)
        shop.until(lambda: shop.top_up("acme")["reason"] == "cool_down")
        assert shop.balance("acme").available == 215
        shop.until(lambda: len(receiver.received) == 2)
        told = [one.told["type"] for one in receiver.received]
        assert sorted(told) == ["topup.started", "topup.succeeded"]
    assert shop.pause_top_up("acme")["state"] == "paused"
    assert shop.resume_top_up("acme")["state"] == "ready"
    with pytest.raises(tillroll.InvalidInput):
        shop.set_top_up("acme", threshold=20, target=10, product="pack100")
    with pytest.raises(tillroll.InvalidInput, match="threshold"):
        shop.set_top_up("acme", threshold=0.5, target=10, product="pack100")
    shop.close_account("acme")
    with pytest.raises(tillroll.AccountClosed, match="nothing was written"):
        shop.set_top_up("acme", **terms)


def test_overage(shop: Shop):
    shop.grant("a/b", 1)
    with pytest.raises(tillroll.NotFound):
        shop.overage("a/b")
    assert shop.set_overage("a/b", "api_units")["meter"] == "api_units"
    assert shop.overage("a/b")["state"] == "running"
    with pytest.raises(tillroll.InvalidInput, match="nothing is in doubt"):
        shop.resolve_overage("a/b", arrived=True)
    assert shop.stop_overage("a/b")["state"] == "stopped"


def test_webhook_endpoints(shop: Shop):
    with Receiver(lambda _, times: 204 if times > 1 else 410) as receiver:
        made = shop.make_endpoint(
            receiver.url, events=["grant.*"], description="books", request_id="e1"
        )
        again = shop.make_endpoint(
            receiver.url, events=["grant.*"], description="books", request_id="e1"
        )
        name = made["id"]
        assert (again["id"], again["secret"], made["secret"] is None) == (name, None, False)
        assert [one["id"] for one in shop.list_endpoints()] == [name]
        assert shop.get_endpoint(name)["description"] == "books"
        with pytest.raises(tillroll.InvalidInput, match="no type of events"):
            shop.make_endpoint(receiver.url, events="nothing.like.it")
        changed = shop.change_endpoint(name, events=["grant.created"], description="")
        assert (changed["events"], changed["description"]) == (["grant.created"], "")
        rotated = shop.rotate_endpoint(name, overlap="1h")
        assert (rotated["secrets"], rotated["secret"] == made["secret"]) == (2, False)

        shop.grant("acme", 1)
        shop.until(lambda: shop.list_deliveries(state="dead")["deliveries"] != [])
        assert shop.get_endpoint(name)["disabled"], "it answered 410"
        assert not shop.change_endpoint(name, disabled=False)["disabled"]
        [dead] = shop.list_deliveries(endpoint=name, limit=5)["deliveries"]
        assert (dead["type"], dead["log"][0]["status"]) == ("grant.created", 410)
        found = shop.get_event(dead["event"])
        assert (found["event"]["account"], len(found["deliveries"])) == ("acme", 1)
        assert shop.send_again() == 1
        shop.until(lambda: len(shop.list_deliveries(state="delivered")["deliveries"]) == 1)
        assert shop.send_again(endpoint=name, event=dead["event"]) == 1
        shop.until(lambda: receiver.times[dead["event"]] == 3)
        assert shop.send_again() == 0
        with pytest.raises(tillroll.InvalidInput, match="which endpoint"):
            shop.send_again(event=dead["event"])
        assert shop.remove_endpoint(name)["id"] == name
        assert shop.list_endpoints() == []
        for ask in (shop.get_endpoint, shop.remove_endpoint, shop.rotate_endpoint):
            with pytest.raises(tillroll.NotFound):
                ask(name)


def test_a_provider_that_is_away_or_says_no(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shop.client._asking.rules, "timeout", 0.5)
    shop.fake.fail = ["down"] * 1_000
    with pytest.raises(tillroll.ProviderUnavailable) as away:
        shop.checkout("acme", "pack100", request_id="order-1")
    assert (away.value.written, away.value.request_id) == ("unknown", "order-1")
    shop.fake.fail = []
    monkeypatch.setattr(shop.client._asking.rules, "timeout", 30.0)
    assert shop.checkout("acme", "pack100", request_id="order-1").startswith("https://")
    call = shop.fake.call

    def no(method: str, path: str, *rest: Any) -> Any:
        if "checkout" in path:
            return 400, {"error": {"type": "invalid_request_error", "message": "no such price"}}
        return call(method, path, *rest)

    monkeypatch.setattr(shop.fake, "call", no)
    with pytest.raises(tillroll.ProviderRefused) as refused:
        shop.checkout("zoe", "pack100")
    assert refused.value.written == "nothing"


def test_payments_that_are_not_set_up(tmp_path: Path):
    from tillroll.testing.served import Served as Within  # noqa: PLC0415 - has the other's name

    with Within() as served, served.client() as client:
        client.grant("acme", 1)
        for ask in (
            lambda: client.checkout("acme", "pack100"),
            lambda: client.set_top_up("acme", threshold=1, target=2, product="p"),
            lambda: client.set_overage("acme", "m"),
        ):
            with pytest.raises(tillroll.NotFound, match="not set up"):
                ask()
        for odd in ("", " x ", 7):
            with pytest.raises(tillroll.InvalidInput, match="request_id"):
                client.checkout("acme", "pack100", request_id=odd)  # type: ignore[arg-type]
        with pytest.raises(tillroll.InvalidInput, match="account"):
            client.payments(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SERVICES)
def test_both_clients_have_what_the_api_has(name: str):
    both = [getattr(kind, name) for kind in (tillroll.Client, tillroll.AsyncClient)]
    one, other = (inspect.signature(method).parameters for method in both)
    assert list(one.values()) == list(other.values())
    assert [inspect.iscoroutinefunction(method) for method in both] == [False, True]
    assert both[0].__doc__
    assert name in {route.name for route in routes()}


def test_no_route_of_these_is_left_out():
    groups = {route.name for route in routes() if route.group in ("Payments", "Webhooks")}
    assert groups - {"payment_webhook"} == set(SERVICES)
