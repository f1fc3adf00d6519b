"""The journal: an ending of a hold reaches the service whatever becomes of network and process."""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tillroll
from tests.client.unreliable import Unreliable
from tillroll.client import blocking
from tillroll.testing.served import Served


@pytest.fixture
def running() -> Iterator[Served]:
    with Served() as service:
        service.ledger.grant("acme", 1_000, request_id="g")
        yield service


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver soon; tests call `deliver` themselves where they want to be sure."""
    monkeypatch.setattr(blocking, "DELIVER_SECONDS", 0.01)


class Site:
    """A client with a journal, behind a network that a test can break."""

    def __init__(self, running: Served, path: Path, **options: Any) -> None:
        self.running = running
        self.network = Unreliable(running.transport())
        self.network.spared = lambda request: "whoami" in request.url.path
        self.client = running.client(
            transport=self.network, journal=path / "settles.db", timeout=0.2, **options
        )

    def settled(self, hold_id: str) -> list[tuple[str, str]]:
        """Return the endings of a hold as the ledger has them, in order."""
        return [
            (receipt.kind, str(receipt.units))
            for receipt in self.running.ledger.history("acme")
            if receipt.ref == hold_id
        ]


def calm(client: tillroll.Client) -> None:
    """Wait until nothing is being delivered behind a test's back."""
    for _ in range(2_000):
        if client._courier is None:
            return
        threading.Event().wait(0.01)
    pytest.fail("deliveries go on and on")


@pytest.fixture
def site(running: Served, tmp_path: Path) -> Iterator[Site]:
    made = Site(running, tmp_path)
    yield made
    made.network.always = "refuse"  # whatever a courier still does
    made.client.close()


def test_what_is_answered_leaves_nothing_behind(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    receipt = hold.settle(2)
    assert not receipt.provisional
    assert site.client.pending() == []
    assert site.settled("h") == [("settle", "2")]


@pytest.mark.parametrize("fault", ["refuse", "cut", "lose", "busy", "gateway", "garbage"])
def test_what_cannot_be_delivered_waits_and_is_delivered_once(site: Site, fault: Any):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = fault
    receipt = hold.settle(2, request_id="s")
    assert isinstance(receipt, tillroll.Receipt)
    assert isinstance(receipt, tillroll.ProvisionalReceipt)
    assert (receipt.provisional, receipt.request_id, receipt.units) == (True, "s", 2)
    waiting = site.client.pending()
    assert [(one.request_id, one.verb, one.hold_id, one.state) for one in waiting] == [
        ("s", "settle", "h", "waiting")
    ]
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert site.settled("h") == [("settle", "2")]
    assert set(site.network.keys) >= {"h", "s"}


def test_a_provisional_receipt_never_pretends(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    receipt = hold.settle()
    for unknown in ("units", "available", "held", "used", "seq", "grants", "shortfall"):
        with pytest.raises(AttributeError, match="not answered"):
            getattr(receipt, unknown)
    assert receipt.to_dict()["provisional"] is True
    assert receipt.to_dict()["units"] is None
    assert "Provisional" in repr(receipt)
    assert (receipt.kind, receipt.ref, receipt.account) == ("settle", "h", "acme")


def test_a_with_block_never_loses_its_settle(site: Site):
    with site.client.hold("acme", units=5, request_id="h") as hold:
        site.network.always = "refuse"
        hold.settle(3)
    site.network.always = "fine"
    second = site.client.hold("acme", units=5, request_id="h2")
    site.network.always = "lose"
    with pytest.raises(ZeroDivisionError), second:
        1 / 0  # noqa: B018 - that is the error
    site.network.always = "fine"
    assert site.client.deliver() == []
    assert site.settled("h") == [("settle", "3")]
    assert site.settled("h2") == [("release", "5")]


def test_endings_of_one_hold_keep_their_order(site: Site):
    hold = site.client.hold("acme", units=9, request_id="h")
    site.network.always = "refuse"
    hold.settle(1, final=False, request_id="s1")
    hold.settle(2, final=False, request_id="s2")
    site.network.always = "fine"
    last = hold.settle(3, request_id="s3")  # brings those before it along
    assert not last.provisional
    assert site.settled("h") == [("settle", "1"), ("settle", "2"), ("settle", "3")]
    assert site.client.pending() == []


def test_one_stuck_before_another_keeps_it_waiting(site: Site):
    hold = site.client.hold("acme", units=9, request_id="h")
    site.network.always = "refuse"
    hold.settle(1, final=False, request_id="s1")
    site.network.spared = lambda request: (
        b"s1" not in request.headers.get("idempotency-key", "").encode()
        and "whoami" not in request.url.path
    )
    assert hold.settle(2, request_id="s2").provisional, "it would have overtaken the first"
    assert site.settled("h") == []


def test_a_refusal_is_told_to_who_asks_and_not_kept(site: Site):
    with pytest.raises(tillroll.HoldNotFound):
        site.client.settle("acme", "no such hold", units=1)
    assert site.client.pending() == []


def test_a_late_refusal_stays_visible_until_it_is_dismissed(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    hold.settle(2, request_id="s")
    site.running.ledger.release("acme", "h")
    site.network.always = "fine"
    site.client.deliver()
    calm(site.client)
    left = site.client.pending()
    assert [(one.state, one.code, one.request_id) for one in left] == [
        ("refused", "hold_finalized", "s")
    ]
    asked = len(site.network.requests)
    assert site.client.deliver() == left, "a refusal was asked again"
    assert len(site.network.requests) == asked
    assert site.client.dismiss(left[0])
    assert not site.client.dismiss(left[0])
    assert site.client.pending() == []


def test_a_delivery_that_failed_does_not_undo_an_answer_of_another(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    hold.settle(2, request_id="s")
    journal = site.client._asking.journal
    assert journal is not None
    [row] = journal.rows()
    journal.fail(row, tillroll.HoldFinalized("it was released"), final=True)
    journal.fail(row, tillroll.StoreUnavailable("begun before, and failed"), final=False)
    [left] = site.client.pending()
    assert (left.state, left.code) == ("refused", "hold_finalized")


def test_what_waits_cannot_be_dismissed(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    hold.settle(2)
    assert not site.client.dismiss(site.client.pending()[0])
    assert len(site.client.pending()) == 1


def test_the_same_request_again_is_one_line(site: Site):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    hold.settle(2, request_id="s")
    again = site.client.settle("acme", "h", units="2.0", request_id="s")
    assert (again.provisional, again.replayed) == (True, True)
    assert len(site.client.pending()) == 1
    with pytest.raises(tillroll.IdempotencyConflict):
        site.client.settle("acme", "h", units=3, request_id="s")


def test_the_next_client_delivers_what_is_left(site: Site, running: Served, tmp_path: Path):
    hold = site.client.hold("acme", units=5, request_id="h")
    site.network.always = "refuse"
    hold.settle(2, request_id="s")
    site.client.close()
    with running.client(journal=tmp_path / "settles.db") as other:
        for _ in range(1_000):
            if not other.pending():
                break
            threading.Event().wait(0.01)
        assert other.pending() == []
    assert site.settled("h") == [("settle", "2")]


def test_two_clients_on_one_journal_deliver_once(site: Site, running: Served, tmp_path: Path):
    holds = [site.client.hold("acme", units=5, request_id=f"h{n}") for n in range(10)]
    site.network.always = "refuse"
    for hold in holds:
        hold.settle(1, final=False)
        hold.settle(2)
    others = [running.client(journal=tmp_path / "settles.db") for _ in range(3)]
    threads = [threading.Thread(target=other.deliver) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others[0].deliver() == []
    for other in others:
        other.close()
    for hold in holds:
        assert site.settled(hold.id) == [("settle", "1"), ("settle", "2")]


def test_a_key_that_may_not_is_told_and_nothing_is_lost(site: Site, running: Served):
    site.client.hold("acme", units=5, request_id="h")
    stranger = running.client(journal=site.client._asking.journal.path)  # type: ignore[union-attr]
    stranger._wire.headers["Authorization"] = "Bearer tr_live_" + "x" * 43
    with pytest.raises(tillroll.Unauthorized):
        stranger.whoami()
    stranger._asking.scale = 6
    with pytest.raises(tillroll.Unauthorized) as raised:
        stranger.settle("acme", "h", units=1, request_id="s")
    assert "journal" in raised.value.__notes__[0]
    stranger.close()
    assert site.client.deliver() == []
    assert site.settled("h") == [("settle", "1")]


def test_a_journal_is_one_projects(site: Site):
    site.client.whoami()
    journal = site.client._asking.journal
    assert journal is not None
    journal.claim("default", "live", 6)
    for stranger in (("default", "test", 6), ("shop", "live", 6)):
        with pytest.raises(tillroll.InvalidInput, match="is that of project"):
            journal.claim(*stranger)


def test_what_the_journal_cannot_keep_is_sent_all_the_same(site: Site, tmp_path: Path):
    site.client.hold("acme", units=5, request_id="h")
    broken = sqlite3.connect(tmp_path / "settles.db")
    broken.execute("DROP TABLE calls")
    broken.commit()
    broken.close()
    assert not site.client.settle("acme", "h", units=1, final=False).provisional
    site.network.always = "refuse"
    with pytest.raises(tillroll.StoreUnavailable) as raised:
        site.client.settle("acme", "h", units=1)
    assert "journal" in str(raised.value.__notes__)


def test_a_file_that_is_none_of_ours_is_left_alone(running: Served, tmp_path: Path):
    other = sqlite3.connect(tmp_path / "app.db")
    other.execute("CREATE TABLE users (name)")
    other.commit()
    other.close()
    with pytest.raises(tillroll.InvalidInput, match="another program"):
        running.client(journal=tmp_path / "app.db")
    (tmp_path / "text").write_text("Lorem ipsum" * 100)
    with pytest.raises(tillroll.StoreUnavailable):
        running.client(journal=tmp_path / "text")
    with pytest.raises(tillroll.InvalidInput, match="file"):
        running.client(journal=":memory:")
    with pytest.raises(tillroll.InvalidInput, match="no journal"):
        running.client().pending()


def test_only_its_owner_reads_it(site: Site, tmp_path: Path):
    site.client.whoami()
    for file in tmp_path.glob("settles.db*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_an_awaiting_client_journals_too(running: Served, tmp_path: Path):
    async def story() -> list[Any]:
        broken = False

        class Network(httpx2.ASGITransport):
            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                if broken:
                    raise httpx2.ConnectError("on purpose")
                return await super().handle_async_request(request)

        client = tillroll.AsyncClient(
            "http://s",
            api_key=running.api_key,
            journal=tmp_path / "settles.db",
            timeout=0.2,
            transport=Network(running.service),
        )
        async with client:
            async with client.hold("acme", units=5, request_id="h") as hold:
                broken = True
                receipt = await hold.settle(2)
                assert receipt.provisional
            assert len(await client.pending()) == 1
            broken = False
            left = await client.deliver()
            gone = await client.pending()
        return [left, gone]

    assert asyncio.run(story()) == [[], []]
    assert running.ledger.balance("acme").used == 2
