"""Letting requests through while the service is away: bounded, journalled, and said so."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tillroll
from tests.client.unreliable import Unreliable
from tillroll.client import asking, blocking
from tillroll.ledger.pricing import Price
from tillroll.testing.served import Served

AWAY = ["refuse", "cut", "lose", "busy", "gateway", "garbage"]


@pytest.fixture
def running() -> Iterator[Served]:
    with Served() as service:
        service.ledger.grant("acme", 100, request_id="g")
        service.ledger.grant("beta", 100, request_id="g")
        yield service


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "AWAY_SECONDS", 0.0)
    monkeypatch.setattr(blocking, "DELIVER_SECONDS", 3_600.0)  # tests deliver themselves


class Site:
    """A client that may let through, behind a network that a test can break."""

    def __init__(self, running: Served, path: Path, **bounds: Any) -> None:
        self.running = running
        self.path = path / "settles.db"
        self.network = Unreliable(running.transport())
        self.bounds = tillroll.FailOpen(**{"per_account": 50, "patience": "0.05s", **bounds})
        self.client = self.another()

    def another(self) -> tillroll.Client:
        return self.running.client(
            transport=self.network, journal=self.path, fail_open=self.bounds, timeout=1
        )

    def used(self, account: str = "acme") -> Decimal:
        return self.running.ledger.balance(account).used


@pytest.fixture
def site(running: Served, tmp_path: Path) -> Iterator[Site]:
    made = Site(running, tmp_path)
    made.client.whoami()
    yield made
    made.client.close()


@pytest.mark.parametrize("fault", AWAY)
def test_a_consume_is_let_through_told_and_made_good(site: Site, fault: Any):
    site.network.always = fault
    receipt = site.client.consume("acme", "image", units=20, request_id="c")
    assert isinstance(receipt, tillroll.Receipt)
    assert (receipt.provisional, receipt.units, receipt.request_id) == (True, 20, "c")
    [waiting] = site.client.pending()
    assert (waiting.exposure, waiting.units, waiting.verb) == (20, 20, "consume")
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert site.used() == 20
    again = site.client.consume("acme", "image", units=20, request_id="c")
    assert (again.provisional, again.replayed) == (False, True)
    assert set(site.network.keys) == {"c"}


def test_while_the_service_is_there_nothing_is_provisional(site: Site):
    assert not site.client.consume("acme", units=20).provisional
    assert not site.client.hold("acme", units=20).receipt.provisional
    assert site.client.pending() == []


def test_a_refusal_is_not_let_through(site: Site):
    with pytest.raises(tillroll.InsufficientUnits):
        site.client.consume("acme", units=5_000)
    with pytest.raises(tillroll.InvalidInput):
        site.client.consume("acme", units=-1)
    assert site.client.pending() == []


def test_too_many_requests_is_not_away(site: Site, monkeypatch: pytest.MonkeyPatch):
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, json={"code": "too_many_requests", "detail": "slow down"})

    monkeypatch.setattr(site.network, "handle_request", answer)
    with pytest.raises(tillroll.TooManyRequests):
        site.client.consume("acme", units=1)
    assert site.client.pending() == []


def test_above_the_bound_the_error_is_raised(site: Site):
    site.network.always = "refuse"
    assert site.client.consume("acme", units=30).provisional
    with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
        site.client.consume("acme", units="20.000001")
    assert site.client.consume("acme", units=20).provisional
    assert site.client.consume("beta", units=50).provisional, "each account has its own bound"
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert (site.used("acme"), site.used("beta")) == (50, 50)
    site.network.always = "refuse"
    assert site.client.consume("acme", units=50).provisional, "what was delivered counts no more"


def test_a_bound_over_all_accounts(running: Served, tmp_path: Path):
    site = Site(running, tmp_path, total=60)
    site.client.whoami()
    site.network.always = "refuse"
    assert site.client.consume("acme", units=40).provisional
    with pytest.raises(tillroll.StoreUnavailable):
        site.client.consume("beta", units=21)
    assert site.client.consume("beta", units=20).provisional
    site.client.close()


def test_the_bound_outlives_the_process(site: Site):
    site.network.always = "refuse"
    site.client.consume("acme", units=40)
    site.client.close()
    again = site.another()
    with pytest.raises(tillroll.StoreUnavailable):
        again.consume("acme", units=11)
    assert again.consume("acme", units=10).provisional
    again.close()


def test_the_bound_holds_however_many_ask_at_once(site: Site):
    site.network.always = "refuse"
    clients = [site.client, site.another(), site.another()]
    let: list[object] = []
    gate = threading.Barrier(12)

    def work(nth: int) -> None:
        gate.wait()
        with contextlib.suppress(tillroll.StoreUnavailable):
            let.append(clients[nth % 3].consume("acme", units=15))

    threads = [threading.Thread(target=work, args=(nth,)) for nth in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients[1:]:
        client.close()
    assert len(let) == 3, "45 of 50, and a fourth would be 60"


def test_the_same_request_takes_of_the_bound_once(site: Site):
    site.network.always = "refuse"
    for _ in range(5):
        receipt = site.client.consume("acme", units=30, request_id="c")
        assert receipt.provisional
    assert receipt.replayed
    assert len(site.client.pending()) == 1


def test_what_has_no_units_needs_an_estimate(running: Served, tmp_path: Path):
    prices = [Price(operation="image", per_request=Decimal(7))]
    running.ledger.apply_prices(prices, author="a", reason="r")
    site = Site(running, tmp_path, estimate={"image": "10"})
    site.client.whoami()
    site.network.always = "refuse"
    receipt = site.client.consume("acme", "image", request_id="c")
    assert (receipt.provisional, receipt.units) == (True, 10)
    with pytest.raises(tillroll.StoreUnavailable):
        site.client.consume("acme", "video")
    with pytest.raises(tillroll.StoreUnavailable):
        site.client.consume("acme", units=1, wallet="tokens")
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert site.used() == 7, "the price is the ledger's"
    site.client.close()


def test_a_hold_and_its_settle_are_let_through_in_order(site: Site):
    site.network.always = "refuse"
    with site.client.hold("acme", units=20, request_id="h") as hold:
        assert hold.receipt.provisional
        assert hold.units == 20
        settled = hold.settle(5, request_id="s")
        assert settled.provisional
    assert [one.request_id for one in site.client.pending()] == ["h", "s"]
    site.network.always = "fine"
    assert site.client.deliver() == []
    kinds = [(receipt.kind, receipt.units) for receipt in site.running.ledger.history("acme")]
    assert kinds[1:] == [("hold", 20), ("settle", 5)]


def test_who_cannot_pay_is_known_late_and_stays_visible(site: Site):
    site.running.ledger.consume("acme", units=95)
    site.network.always = "refuse"
    site.client.consume("acme", units=20, request_id="c")
    site.network.always = "fine"
    [left] = site.client.deliver()
    assert (left.state, left.code, left.exposure) == ("refused", "insufficient_units", 20)
    with pytest.raises(tillroll.InsufficientUnits) as raised:
        site.client.consume("acme", units=20, request_id="c")
    assert raised.value.replayed
    assert site.used() == 95
    assert site.client.dismiss(left)


def test_a_service_found_away_is_not_waited_for_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "AWAY_SECONDS", 3_600.0)
    site.network.always = "refuse"
    site.client.consume("acme", units=1, request_id="first")
    assert site.client.consume("acme", units=1, request_id="second").provisional
    assert set(site.network.keys) == {"first"}
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert not site.client.consume("acme", units=1).provisional, "a delivery shows it is back"


def test_a_client_that_never_met_its_service_works_from_the_start(running: Served, tmp_path: Path):
    site = Site(running, tmp_path)
    site.network.always = "refuse"
    assert site.client.consume("acme", units="2.5", request_id="c").provisional
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert site.used() == Decimal("2.5")
    site.client.close()


@pytest.mark.parametrize(
    "bounds",
    [
        {"per_account": 0},
        {"per_account": 0.5},
        {"per_account": 1, "total": -1},
        {"per_account": 1, "estimate": "many"},
        {"per_account": 1, "estimate": {"image": 0}},
        {"per_account": 1, "patience": "soon"},
    ],
)
def test_bounds_are_exact(bounds: dict[str, Any]):
    with pytest.raises(tillroll.InvalidInput):
        tillroll.FailOpen(**bounds)


def test_letting_through_needs_a_journal(running: Served):
    with pytest.raises(tillroll.InvalidInput, match="journal"):
        running.client(fail_open=tillroll.FailOpen(per_account=1))


def test_an_awaiting_client_lets_through_too(running: Served, tmp_path: Path):
    async def story() -> bool:
        network = httpx2.MockTransport(_away)
        client = tillroll.AsyncClient(
            "http://s",
            api_key=running.api_key,
            journal=tmp_path / "settles.db",
            fail_open=tillroll.FailOpen(per_account=50, patience="0.05s"),
            transport=network,
        )
        async with client:
            receipt = await client.consume("acme", units=20)
            assert len(await client.pending()) == 1
            with pytest.raises(tillroll.StoreUnavailable):
                await client.consume("acme", units=31)
        return receipt.provisional

    assert asyncio.run(story())
    with running.client(journal=tmp_path / "settles.db") as client:
        assert client.deliver() == []
    assert running.ledger.balance("acme").used == 20


def _away(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("away on purpose")
