"""Webhooks through a receiver that fails 30 % of the time, while the sender is killed -9 twice.

Sender and receiver are processes of their own; the sender's clock runs ahead to the next retry, so
the days of the schedule pass in seconds. The receiver verifies each signature with the library of
the specification and notes each delivery before it answers.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tillroll
from tillroll import webhooks
from tillroll.engine import now
from tillroll.ledger.events import id_of

HERE = Path(__file__).parent
FAILING = 30  # percent of the attempts
STUBBORN = 50  # one event in so many fails until the dead are asked for
BATCH = 500


@contextmanager
def process(name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside this one; it is ended, however this ends."""
    command = [sys.executable, "-m", f"tests.jobs.{name}", *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=HERE.parents[1], stdin=pipe, stdout=pipe, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def tell(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def received(notes: Path) -> Counter[str]:
    """Return how often each id was taken."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Counter(line.split()[0] for line in lines if line.endswith(" 200"))


def deliver(url: str, count: int, notes: Path) -> set[str]:
    """Have so many events delivered, and the sender killed; return the ids that must arrive."""
    secret_of_receiver = "whsec_" + "A" * 43 + "="
    with (
        process("receiver", secret_of_receiver, str(notes), str(FAILING), str(STUBBORN)) as taking,
        tillroll.open(url) as ledger,
    ):
        where = line_of(taking)
        ledger._engine.perform(
            lambda tx: webhooks.make(
                tx, "default", where, at=now(), events=["usage.consumed"], private=True
            )
        )
        _give_secret(ledger, secret_of_receiver)
        wanted = spend(ledger, count)
        for share in (0.25, 0.6):  # killed when so much of it was sent
            with process("worker", url) as sending:
                assert line_of(sending) == "running"
                while len(received(notes)) < share * count:
                    assert sending.poll() is None
        with process("worker", url) as sending:
            assert line_of(sending) == "running"
            said = line_of(sending)
        with ledger.store.read() as reader:
            dead = reader.delivery_page("default", state="dead", limit=count)
            backlog = reader.backlog()
        taken = received(notes)
        given_up = {id_of(*one[:3]) for one in dead}
        assert said == f"idle {len(dead)}"
        assert dead, "some events fail at every attempt"
        assert set(taken) | given_up == wanted
        assert not set(taken) & given_up
        assert (backlog.waiting, backlog.dead) == (0, len(dead))

        tell(taking)
        assert line_of(taking) == "changed"
        perform = ledger._engine.perform
        again, more = webhooks.send_all_again(perform, "default", now())
        assert not more
        assert again == len(dead)
        with process("worker", url) as sending:
            assert line_of(sending) == "running"
            assert line_of(sending) == "idle 0"
        assert ledger.verify().ok
        return wanted


def _give_secret(ledger: tillroll.Ledger, secret: str) -> None:
    """Have the endpoint sign with a secret that the receiver was started with."""
    import msgspec  # noqa: PLC0415 - here only
    from msgspec.structs import replace  # noqa: PLC0415

    from tillroll.ledger.webhooks import ENDPOINT, Secret  # noqa: PLC0415

    with ledger.store.read() as reader:
        [place] = webhooks.all_places(reader)
    changed = replace(place.endpoint, secrets=(Secret(secret),))
    text = msgspec.json.encode(changed).decode()
    ledger._engine.perform(lambda tx: tx.put_document(ENDPOINT, changed.id, text))


def spend(ledger: tillroll.Ledger, count: int) -> set[str]:
    """Consume so often, on several accounts; return the ids of the events that must arrive."""
    accounts = [f"acme-{n}" for n in range(20)]
    for name in accounts:
        ledger.grant(name, count)
    for first in range(0, count, BATCH):
        items = [
            {"account": accounts[n % len(accounts)], "units": 1, "request_id": f"c{n}"}
            for n in range(first, min(first + BATCH, count))
        ]
        assert all(outcome.ok for outcome in ledger.consume_many(items))
    with ledger.store.read() as reader:
        ids = {id_of(event.account_id, event.seq, event.n) for event in reader.unspread(count + 1)}
    assert len(ids) == count
    return ids


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_webhooks_arrive_whoever_is_killed(kind: str, request: pytest.FixtureRequest, tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    wanted = deliver(url, 300, tmp_path / "notes")
    assert set(received(tmp_path / "notes")) == wanted, "nothing lost, nothing never told"


SPENDING = """
import sys, tillroll
with tillroll.open(sys.argv[1]) as ledger:
    for n in range(1_000_000):
        ledger.consume("acme", units=1)
        print(n, flush=True)
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_entry_and_its_event_are_written_together_or_not_at_all(
    kind: str, request: pytest.FixtureRequest, tmp_path
):
    url = f"sqlite:///{tmp_path}/a.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with tillroll.open(url) as ledger:
        ledger._engine.perform(lambda tx: webhooks.make(tx, "default", "https://x.test/", at=now()))
        ledger.grant("acme", 10**9)
    for turn in range(5):
        command = [sys.executable, "-c", SPENDING, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as spending:
            while int(line_of(spending)) < 7 * turn:
                continue
            spending.kill()  # wherever it is in the next one
    with tillroll.open(url) as ledger:
        entries = {receipt.seq for receipt in ledger.entries("acme")}
        with ledger.store.read() as reader:
            told = [event.seq for event in reader.unspread(100_000)]
        assert ledger.verify().ok
    assert sorted(told) == sorted(entries)
    assert len(entries) > sum(7 * turn for turn in range(5))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_ten_thousand_webhooks_arrive(kind: str, request: pytest.FixtureRequest, tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    wanted = deliver(url, 10_000, tmp_path / "notes")
    assert set(received(tmp_path / "notes")) == wanted, "nothing lost, nothing never told"
