"""Killed while it takes in webhooks: sent again, each payment is there once and whole."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.payments.conftest import SECRET, World
from tillroll.payments import topups
from tillroll.payments.facts import owed
from tillroll.payments.settling import payments_of

ROOT = Path(__file__).parents[2]
KILLS = 4
ACCOUNTS = 12


def start(url: str, hooks: Path, fake: str, at: int) -> subprocess.Popen[bytes]:
    return run("tests.payments.listening", url, str(hooks), str(at), fake)


def run(*command_line: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *command_line]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environ)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_while_it_listens(
    world: World, kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    url = f"sqlite:///{tmp_path}/till.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    World(url, world.api_base, world.fake).ledger.close()  # which writes the catalog
    rng = random.Random(7)  # noqa: S311 - when to kill, no secret
    names = [f"account-{nth}" for nth in range(ACCOUNTS)]
    for name in names:
        world.fake.refund(world.buy(name), 1_00)
    told = [event for event in world.new_events() if event["type"] != "charge.refunded"]
    rng.shuffle(told)
    hooks = tmp_path / "hooks"
    signed = [world.fake.signed(event, SECRET) for event in told]
    hooks.write_bytes(b"\n".join(msgspec.json.encode((header, body)) for body, header in signed))
    for _ in range(KILLS):
        process = start(url, hooks, world.api_base, world.fake.now())
        assert process.stdout is not None
        heard = process.stdout.read(rng.randrange(1, len(told)))
        assert heard.startswith(b"+")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = start(url, hooks, world.api_base, world.fake.now())
    assert last.communicate()[0] == b"+" * len(told)
    assert last.returncode == 0
    other = World(url, world.api_base, world.fake)
    with other.ledger, other.ledger.store.read() as reader:
        for name in names:
            [payment] = payments_of(reader, "default", name)
            assert payment.taken == owed(payment) == 20 * 10**6
            assert other.available(name) == 80
        assert other.ledger.verify().ok


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_once_a_balance_has_fallen(
    world: World, kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    """What is to be charged was noted with the fall: another process charges it at once."""
    url = f"sqlite:///{tmp_path}/till.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    other = World(url, world.api_base, world.fake)
    payment = other.buy()
    other.deliver(other.new_events())
    topups.set_top_up(other.desk, "acme", threshold=20, target=150, product="pack100")
    assert topups.round_of(other.desk) == 0
    process = run("tests.payments.falling", url, str(world.fake.now()))
    assert process.stdout is not None
    assert process.stdout.read(1) == b"+"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with other.ledger:
        assert topups.round_of(other.desk) == 1, "no minute has passed"
        assert other.available() == 210
        assert topups.round_of(other.desk) == 0
    assert len(world.fake.of("payment_intent")) == 2, f"{payment} and the top-up"
