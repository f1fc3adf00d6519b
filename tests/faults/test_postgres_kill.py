"""PostgreSQL killed under load: what was acknowledged is there, once; nothing else is.

Callers go on as a good client does: no answer, or an unknown one, means asking again with the same
id. Meanwhile backends are disconnected and killed, and the whole server is.
"""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import partial

import pytest

import tillroll
from tests.conftest import appending
from tests.faults.rig import join, until
from tests.servers.cluster import Cluster

ACCOUNTS = ("acme", "zoe", "max")
CALLERS = 8
FAULTS = 6
FAULTS_SOAK = 200
GRANT = 10**6


class Load:
    """Callers that consume, hold and settle until they are told to stop."""

    def __init__(self, urls: list[str], seed: int) -> None:
        self.ledgers = [tillroll.open(url) for url in urls]
        for account in ACCOUNTS:
            self.ledgers[0].grant(account, GRANT, request_id="g")
        self.seed = seed
        self.acks: dict[str, tillroll.Receipt] = {}
        self.problems: Counter[str] = Counter()
        self.broken: list[BaseException] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(n,)) for n in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def work(self, nth: int) -> None:
        rng = random.Random(f"{self.seed}.{nth}")  # noqa: S311 - a test's dice
        ledger = self.ledgers[nth % len(self.ledgers)]
        try:
            for turn in range(10**9):
                if self.stopping.is_set():
                    return
                account, name = rng.choice(ACCOUNTS), f"{nth}.{turn}"
                if rng.random() < 0.6:
                    self.ask(name, partial(ledger.consume, account, units=1))
                else:
                    self.ask(name, partial(ledger.hold, account, units=3))
                    self.ask(f"{name}.settle", partial(ledger.settle, account, name, units=2))
        except BaseException as problem:  # for the main thread to see
            self.broken.append(problem)
            raise

    def ask(self, name: str, verb: Callable[..., tillroll.Receipt]) -> None:
        """Ask until there is an answer, always with the same id."""
        while True:
            try:
                self.acks[name] = verb(request_id=name)
            except tillroll.StoreError as problem:
                self.problems[problem.code] += 1
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            join(thread)
        assert not self.broken

    def check(self) -> None:
        """Compare what was acknowledged with what is there, and every account with its entries."""
        found: dict[str, tillroll.Receipt] = {}
        for account in ACCOUNTS:
            for receipt in self.ledgers[0].entries(account):
                name = str(receipt.request_id)
                assert name not in found or name == "g", f"{name} is there twice"
                found[name] = receipt
        lost = set(self.acks) - set(found)
        assert not lost, f"acknowledged and lost: {sorted(lost)[:5]}"
        assert set(found) == set(self.acks) | {"g"}, "somebody was charged for nothing"
        assert all(found[name].seq == ack.seq for name, ack in self.acks.items())
        charged = sum((ack.units for name, ack in self.acks.items() if is_charge(ack)), Decimal(0))
        balances = [self.ledgers[0].balance(account) for account in ACCOUNTS]
        assert sum(balance.used for balance in balances) == charged
        assert all(balance.held == 0 for balance in balances)
        for ledger in self.ledgers:
            verified = ledger.verify()
            assert verified.ok, verified.problems
            ledger.close()


def is_charge(receipt: tillroll.Receipt) -> bool:
    return receipt.kind in {"consume", "settle"}


def harm(cluster: Cluster, database: str, rng: random.Random) -> str:
    """Do something bad to the server, and wait until it runs again."""
    kind = rng.choice(["terminate", "kill a backend", "kill the postmaster", "stop immediately"])
    if kind == "terminate":
        cluster.terminate_backends(database)
    elif kind == "kill a backend":
        pids = cluster.backend_pids(database)
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)  # and the postmaster ends all the others
    elif kind == "kill the postmaster":
        cluster.kill9()
        cluster.start()
    else:
        cluster.restart("immediate")
    return kind


def run(cluster: Cluster, faults: int, seed: int, *, append: bool) -> Load:
    rng = random.Random(seed)  # noqa: S311 - when and what
    database = cluster.create_database()
    url = cluster.url(database)
    load = Load([appending(url) if append else url] * 2, seed)
    try:
        for _ in range(faults):
            done = len(load.acks)
            until(lambda done=done: len(load.acks) > done + 20 or bool(load.broken))
            time.sleep(rng.uniform(0, 0.05))
            harm(cluster, database, rng)
        done = len(load.acks)
        until(lambda: len(load.acks) > done + 20 or bool(load.broken))
    finally:
        load.stop()
    load.check()
    return load


@pytest.mark.parametrize("append", [False, True])
def test_backends_and_the_server_are_killed_under_load(own_postgres: Cluster, *, append: bool):
    load = run(own_postgres, FAULTS, seed=1, append=append)
    assert load.problems, "the faults were never noticed"


@pytest.mark.soak
@pytest.mark.parametrize("append", [False, True])
def test_backends_and_the_server_are_killed_two_hundred_times(
    own_postgres: Cluster, *, append: bool
):
    seed = int(os.environ.get("TILLROLL_SEED", str(time.time_ns())))
    load = run(own_postgres, FAULTS_SOAK, seed, append=append)
    sys.stdout.write(f"seed {seed}: {len(load.acks)} acknowledged, {dict(load.problems)}\n")
    assert load.problems
