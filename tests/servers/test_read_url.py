"""Reads from a standby: they may be behind, how far can be seen, no decision rests on them."""

import asyncio
from collections.abc import Iterator

import pytest

import tillroll
from tests.jobs.receiver import Receiver
from tests.servers.cluster import Cluster
from tillroll import webhooks
from tillroll.api import keys
from tillroll.cli.app import run as cli
from tillroll.jobs import Deliverer, Job, Sender, Worker


@pytest.fixture
def standby(own_postgres: Cluster) -> Cluster:
    tillroll.migrate(own_postgres.url())
    standby = own_postgres.standby()
    own_postgres.catch_up(standby)
    return standby


@pytest.fixture
def ledger(own_postgres: Cluster, standby: Cluster) -> Iterator[tillroll.Ledger]:
    with tillroll.open(own_postgres.url(), read_url=standby.url()) as ledger:
        yield ledger


def read_server(ledger: tillroll.Ledger) -> tuple[str, bool]:
    return next((found, ok) for name, found, ok in ledger.store.facts() if name == "read server")


def test_reads_come_from_there(ledger: tillroll.Ledger, own_postgres: Cluster, standby: Cluster):
    ledger.grant("acme", 100, request_id="g")
    own_postgres.catch_up(standby)
    assert ledger.balance("acme").seq == 1
    assert own_postgres.backend_pids("postgres") != standby.backend_pids("postgres") != []
    standby.run("SELECT pg_wal_replay_pause()")
    charged = ledger.consume("acme", units=30, request_id="c")
    assert (charged.seq, charged.available) == (2, 70)
    behind = ledger.balance("acme")
    assert (behind.seq, behind.available) == (1, 100)  # it says so by its seq
    assert len(ledger.statement("acme").receipts) == 1
    assert ledger.verify().entries == 1
    with pytest.raises(tillroll.NotFound):
        ledger.explain("c")
    assert ledger.preview.consume("acme", units=90).available == 10  # a look, not a decision
    standby.run("SELECT pg_wal_replay_resume()")
    own_postgres.catch_up(standby)
    assert ledger.balance("acme").seq == 2
    assert ledger.explain("c")["outcome"] == "charged"
    assert ledger.verify().ok


def test_no_decision_reads_from_there(ledger: tillroll.Ledger, standby: Cluster):
    """With the standby held back, everything that writes knows what was written before."""
    standby.run("SELECT pg_wal_replay_pause()")
    ledger.apply_prices([], author="ann", reason="none yet")
    assert ledger.apply_prices([], author="ann", reason="the same").number == 1
    ledger.grant("acme", 100, request_id="g")
    assert ledger.grant("acme", 100, request_id="g").replayed
    ledger.hold("acme", units=80, request_id="h", expires_in="1h")
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("acme", units=30, request_id="c")
    assert ledger.settle("acme", "h", units=10).available == 90
    with pytest.raises(tillroll.HoldFinalized):
        ledger.release("acme", "h")
    with ledger.hold("acme", units=5) as hold:
        hold.settle(units=5)
    assert ledger.consume("acme", units=30, request_id="c", retry_refused=True).available == 55
    assert ledger.refund("acme", "c").available == 85
    assert ledger.book_due() == 0
    assert ledger.balance("acme").seq == 0
    standby.run("SELECT pg_wal_replay_resume()")


def test_jobs_and_keys_do_not_read_from_there(
    ledger: tillroll.Ledger, own_postgres: Cluster, standby: Cluster
):
    """What acts upon what it reads sees all that was committed, however far a standby is behind."""
    engine = ledger._engine
    keyring = keys.Keyring(engine.store)
    own_postgres.catch_up(standby)
    standby.run("SELECT pg_wal_replay_pause()")
    done = []

    def count() -> dict[str, object]:
        done.append(1)
        return {}

    job = Job("count", 5.0, count)
    assert Worker(engine, [job], holder="ann").turn(job).ours
    assert not Worker(engine, [job], holder="bob").turn(job).ours
    with Receiver() as receiver:
        at = engine.clock()
        engine.perform(lambda tx: webhooks.make(tx, "default", receiver.url, at=at, private=True))
        ledger.grant("acme", 100)
        deliverer = Deliverer(engine, Sender(private=True))
        while deliverer.round()["more"]:
            pass
        deliverer.close()
        assert [got.told["type"] for got in receiver.received] == ["grant.created"]
    key, secret = keys.new_key("default", "live", name="k", scopes=["read"], at=at)
    engine.perform(lambda tx: keys.put_key(tx, key))
    assert asyncio.run(keyring.find(secret)) == key
    engine.perform(lambda tx: keys.end_key(tx, key.id, at, ledger=None))
    later = asyncio.run(_after(keys.LEASE_SECONDS, keyring, secret))
    assert later is not None
    assert later.revoked_at == at
    assert ledger.balance("acme").seq == 0, "the standby is behind all the while"
    standby.run("SELECT pg_wal_replay_resume()")


async def _after(seconds: float, keyring: keys.Keyring, secret: str) -> keys.ApiKey | None:
    await asyncio.sleep(2 * seconds)
    return await keyring.find(secret)


def test_how_far_behind_is_shown(ledger: tillroll.Ledger, own_postgres: Cluster, standby: Cluster):
    ledger.grant("acme", 100)
    own_postgres.catch_up(standby)
    assert read_server(ledger) == ("up to date", True)
    standby.run("SELECT pg_wal_replay_pause()")
    ledger.consume("acme", units=1)
    found, ok = read_server(ledger)
    assert "bytes behind, last change" in found
    assert "replay paused" in found
    assert not ok
    standby.run("SELECT pg_wal_replay_resume()")
    own_postgres.catch_up(standby)
    assert read_server(ledger) == ("up to date", True)


def test_doctor_shows_it(
    own_postgres: Cluster, standby: Cluster, capsys: pytest.CaptureFixture[str]
):
    options = ["--db", own_postgres.url(), "--read-db", standby.url()]
    assert cli(["grant", "acme", "100", *options]) == 0
    own_postgres.catch_up(standby)
    assert cli(["doctor", *options]) == 0
    shown = capsys.readouterr().out
    assert "read server" in shown
    assert "up to date" in shown


def test_a_read_server_of_another_ledger(own_postgres: Cluster):
    other = own_postgres.create_database()
    tillroll.migrate(own_postgres.url(other))
    url = own_postgres.url()
    with tillroll.open(url, read_url=own_postgres.url(other)) as ledger:
        found, ok = read_server(ledger)
        assert found.endswith("holds another ledger")
        assert not ok
    with tillroll.open(url, read_url=f"{url}&application_name=reports") as ledger:
        found, ok = read_server(ledger)
        assert found.endswith("no standby")
        assert ok


def test_charges_go_on_while_it_is_away(
    ledger: tillroll.Ledger, own_postgres: Cluster, standby: Cluster
):
    ledger.grant("acme", 100)
    standby.stop()
    assert ledger.consume("acme", units=1).available == 99
    with pytest.raises(tillroll.StoreUnavailable, match="cannot be reached"):
        ledger.balance("acme")
    standby.start()
    own_postgres.catch_up(standby)
    assert ledger.balance("acme").seq == 2


def test_from_an_event_loop(own_postgres: Cluster, standby: Cluster):
    async def use() -> tuple[int, int]:
        url = own_postgres.url()
        async with tillroll.open_async(url, read_url=standby.url()) as ledger:
            standby.run("SELECT pg_wal_replay_pause()")
            receipt = await ledger.grant("acme", 100)
            found = await ledger.balance("acme")
            return receipt.seq, found.seq

    assert asyncio.run(use()) == (1, 0)
    standby.run("SELECT pg_wal_replay_resume()")


@pytest.mark.parametrize("url", ["memory://", "sqlite:///credits.db", "credits.db"])
def test_others_have_no_standby(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for opened in (tillroll.open, tillroll.open_async):
        with pytest.raises(tillroll.InvalidInput, match="read_url"):
            opened(url, read_url="postgresql://127.0.0.1/credits")
    assert list(tmp_path.iterdir()) == []


def test_a_standby_of_another_kind(postgres_url: str):
    with pytest.raises(tillroll.InvalidInput, match="read_url"):
        tillroll.open(postgres_url, read_url="sqlite:///credits.db")
