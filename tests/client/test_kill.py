"""kill -9 of the service under load, and of a client in the middle of a settle."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import tillroll
from tests.client import worker
from tests.servers.cluster import Cluster
from tests.servers.proxy import Proxy
from tillroll.client.journal import Journal
from tillroll.testing.served import Served

CYCLES = 3
THREADS = 4
START_SECONDS_MAX = 60


class Process:
    """`tillroll serve` on a file, to be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "credits.db"
        with Served(str(self.path)) as first:
            first.ledger.grant("acme", 1_000_000, request_id="g")
            self.api_key = first.api_key
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).with_name("tillroll")
        command = [program, "serve", "--db", str(self.path), "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < ends:
            assert self.process.poll() is None, "the service ended by itself"
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail("the service did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self, **options: object) -> tillroll.Client:
        return tillroll.Client(self.url, api_key=self.api_key, **options)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Process]:
    with Process(tmp_path) as running:
        yield running


def test_killed_under_load_every_acknowledged_consume_is_there_once(served: Process):
    rng = random.Random(7)  # noqa: S311 - when to kill
    acked: list[tillroll.Receipt] = []
    failed: list[tillroll.TillrollError] = []
    stop = threading.Event()
    client = served.client(timeout=90)

    def load(nth: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            try:
                acked.append(client.consume("acme", units=1, request_id=f"{nth}-{count}"))
            except tillroll.TillrollError as problem:
                failed.append(problem)

    threads = [threading.Thread(target=load, args=(nth,)) for nth in range(THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(CYCLES):
        before = len(acked)
        while len(acked) < before + 20:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        served.kill()
        served.start()
    stop.set()
    for thread in threads:
        thread.join()
    client.close()
    assert not failed, failed[0]
    with tillroll.open(served.path) as ledger:
        found = Counter(r.request_id for r in ledger.entries("acme") if r.kind == "consume")
        assert max(found.values()) == 1
        assert set(found) == {receipt.request_id for receipt in acked}
        assert ledger.balance("acme").used == len(acked)
        assert ledger.verify().ok


def test_killed_in_the_middle_of_a_settle_the_next_client_delivers_it(
    served: Process, tmp_path: Path
):
    journal = tmp_path / "settles.db"
    command = [sys.executable, worker.__file__, served.url, served.api_key, str(journal), "h"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        served.kill()
        process.stdin.write("go on\n")
        process.stdin.flush()
        looking = Journal(journal)
        ends = time.monotonic() + START_SECONDS_MAX
        while not looking.rows() and time.monotonic() < ends:
            time.sleep(0.01)
        looking.close()
        process.kill()
        assert process.stdout.read() == "", "it was to die before it was answered"
    served.start()
    with served.client(journal=journal) as client:
        assert client.deliver() == []
        history = [(r.kind, r.units) for r in client.history("acme") if r.ref == "h"]
        assert history == [("settle", 3)]


def test_a_parent_and_its_forked_child_share_a_journal(served: Process, tmp_path: Path):
    with served.client(journal=tmp_path / "settles.db") as client:
        mine = client.hold("acme", units=5, request_id="parent")
        child = os.fork()
        if child == 0:
            ended = 1
            try:
                client.hold("acme", units=5, request_id="child").settle(2)
                ended = len(client.pending())
            finally:
                os._exit(ended)
        assert os.waitpid(child, 0)[1] == 0
        mine.settle(1)
        assert client.pending() == []
        assert client.balance("acme").used == 3


@pytest.mark.parametrize("fault", ["lose_answer", "lose_request", "cut"])
def test_commits_lost_behind_the_service_charge_once(
    fault: str, postgres: Cluster, postgres_database: str
):
    with (
        Proxy(postgres.port) as proxy,
        Served(postgres.url(postgres_database, port=proxy.port)) as running,
        running.client() as client,
    ):
        client.grant("acme", 100, request_id="g")
        for nth in range(5):
            getattr(proxy, fault)()
            receipt = client.consume("acme", units=1, request_id=f"c{nth}")
            assert receipt.request_id == f"c{nth}"
        assert client.balance("acme").used == 5
        assert client.verify().ok
