"""Servers that die, stop and are replaced under load: what was acknowledged is there, once."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

import tillroll


class Load:
    """Callers that charge one unit a request, and retry each id until it is answered."""

    def __init__(self, served, callers=8):
        self._served = served
        self._stop = threading.Event()
        self.acknowledged: list[str] = []
        self.failures: list[str] = []
        self.retried = 0
        self._threads = [
            threading.Thread(target=self._charge, args=(n,), daemon=True) for n in range(callers)
        ]
        for thread in self._threads:
            thread.start()

    def _charge(self, caller):
        headers = {"authorization": f"Bearer {self._served.key}"}
        url = f"{self._served.url}/v1/accounts/acme/consume"
        client = httpx2.Client(timeout=20)
        number = 0
        while not self._stop.is_set():
            number += 1
            once = f"{caller}-{number}"
            while True:
                try:
                    said = client.post(
                        url, json={"units": 1}, headers={**headers, "idempotency-key": once}
                    )
                except httpx2.TransportError:
                    said = None
                if said is not None and said.status_code == 200:
                    self.acknowledged.append(once)
                    break
                if said is not None and said.status_code != 503:
                    self.failures.append(f"{said.status_code} {said.text}")
                    return
                self.retried += 1
                time.sleep(0.02)
        client.close()

    def reached(self, count):
        """Wait until so many more requests were acknowledged."""
        target = len(self.acknowledged) + count
        until = time.monotonic() + 60
        while len(self.acknowledged) < target and time.monotonic() < until:
            time.sleep(0.01)
        assert len(self.acknowledged) >= target, self.failures[:3]

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def grant(served, units=1_000_000):
    headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "g"}
    url = f"{served.url}/v1/accounts/acme/grants"
    assert httpx2.post(url, json={"units": units}, headers=headers).status_code == 200


def charged_ids(url):
    with tillroll.open(url) as ledger:
        assert ledger.verify().ok
        return sorted(r.request_id for r in ledger.entries("acme") if r.kind == "consume")


def test_kill_9_under_load_loses_and_doubles_nothing(serve, store_url):
    served = serve(store_url)
    grant(served)
    load = Load(served)
    for _ in range(4):
        load.reached(100)
        served.stop(signal.SIGKILL)
        served.start()
    load.reached(50)
    load.stop()
    served.stop()
    assert load.failures == []
    assert load.retried > 0
    assert charged_ids(store_url) == sorted(load.acknowledged)  # each there once, nothing else is


def test_a_rolling_restart_of_two_workers_loses_no_request(serve, store_url):
    served = serve(store_url, "--workers", "2")
    grant(served)
    load = Load(served)
    pids = set()
    for _ in range(2):
        load.reached(100)
        before = workers(served)
        assert len(before) == 2
        pids |= before
        served.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 60
        while workers(served) & before and time.monotonic() < until:
            time.sleep(0.05)
        assert not workers(served) & before
    load.reached(100)
    load.stop()
    assert len(pids) == 4
    served.stop()
    assert load.failures == []
    assert charged_ids(store_url) == sorted(load.acknowledged)


def test_workers_whose_parent_is_killed_answer_and_leave_the_port(serve, store_url):
    served = serve(store_url, "--workers", "2")
    grant(served)
    load = Load(served)
    load.reached(100)
    orphans = workers(served)
    assert len(orphans) == 2
    served.stop(signal.SIGKILL)
    until = time.monotonic() + 60
    while (left := {pid for pid in orphans if is_running(pid)}) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == set()
    served.start()  # at the same address, which nobody holds any more
    load.reached(100)
    assert not workers(served) & orphans
    load.stop()
    served.stop()
    assert load.failures == []
    assert charged_ids(store_url) == sorted(load.acknowledged)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended; whoever took it over has only not looked yet


def workers(served):
    """Return the pids of the worker processes; the tracker of shared memory is none."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        path = f"/proc/{served.process.pid}/task/{served.process.pid}/children"
        for pid in Path(path).read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def test_a_stop_answers_what_is_under_way(serve, store_url):
    served = serve(store_url)
    grant(served)
    load = Load(served, callers=4)
    load.reached(50)
    assert served.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    served.start()
    load.reached(20)
    load.stop()
    served.stop()
    assert load.failures == []
    assert charged_ids(store_url) == sorted(load.acknowledged)


def test_several_workers_count_as_one(serve):
    served = serve(None, "--workers", "2")
    grant(served)
    headers = {"authorization": f"Bearer {served.key}"}
    for n in range(40):
        once = {**headers, "idempotency-key": f"c{n}"}
        url = f"{served.url}/v1/accounts/acme/consume"
        assert httpx2.post(url, json={"units": 1}, headers=once).status_code == 200
    page = httpx2.get(f"{served.url}/metrics").text
    line = 'tillroll_answers_total{answer="entry"} '
    counted = [row for row in page.splitlines() if row.startswith(line)]
    assert counted == [line + "41.0"]


@pytest.mark.parametrize("broken", ["postgresql://127.0.0.1:1/none", "sqlite:////nowhere/x.db"])
def test_a_store_that_cannot_be_used_is_said_at_the_start(broken):
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tillroll")), "serve", "--db", broken, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "unavailable" in done.stderr
    assert "Traceback" not in done.stderr
