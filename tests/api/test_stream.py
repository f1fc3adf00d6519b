"""The live balance: what is written is sent, and whoever comes back misses nothing."""

import asyncio
import json
from contextlib import suppress

import httpx2
import pytest

import tillroll
from tillroll.api import stream

PATH = "/v1/accounts/acme/balance/stream"


class Listener:
    """One stream of the service within this process, event by event."""

    def __init__(self, api, headers=()):
        self._api = api
        self._sent: asyncio.Queue[bytes] = asyncio.Queue()
        self._left = asyncio.Event()
        self.start = None
        scope = {
            "type": "http",
            "method": "GET",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {api.admin}".encode()), *headers],
        }
        self._task = api.loop.create_task(api.service(scope, self._receive, self._send))

    async def _receive(self):
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
        else:
            await self._sent.put(message["body"])

    def next(self, seconds=30):
        """Return the next event as its id, its name and its data."""
        part = self._api.run(asyncio.wait_for(self._sent.get(), seconds)).decode()
        lines = dict(line.split(": ", 1) for line in part.strip().splitlines())
        return int(lines["id"]), lines["event"], json.loads(lines["data"])

    def is_silent(self, seconds):
        with suppress(TimeoutError):
            self._api.run(asyncio.wait_for(self._sent.get(), seconds))
            return False
        return True

    def leave(self):
        self._left.set()
        self._api.run(asyncio.wait_for(self._task, 30))


@pytest.fixture
def funded(api):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 100}, once="g")
    return api


def test_every_change_is_sent_as_it_happens(funded):
    listener = Listener(funded)
    assert (listener.next()[:2], listener.start["status"]) == ((1, "balance"), 200)
    for n in (2, 3):
        funded.call("POST", "/v1/accounts/acme/consume", {"units": n}, once=f"c{n}")
        seq, kind, entry = listener.next()
        assert (seq, kind, entry["units"], entry["request_id"]) == (n, "entry", str(n), f"c{n}")
        seq, kind, balance = listener.next()
        assert (seq, kind, balance["available"]) == (n, "balance", entry["available"])
    listener.leave()


def test_who_saw_more_than_there_is_misses_nothing_from_then_on(funded):
    """Such as where a backup was restored."""
    listener = Listener(funded, [(b"last-event-id", b"50")])
    assert listener.next()[:2] == (1, "balance")
    funded.call("POST", "/v1/accounts/acme/consume", {"units": 2}, once="c2")
    assert [listener.next()[:2] for _ in range(2)] == [(2, "entry"), (2, "balance")]
    listener.leave()


def test_what_another_process_writes_is_seen_too(funded, store_url):
    listener = Listener(funded)
    listener.next()
    with tillroll.open(store_url) as other:
        other.consume("acme", units=1, request_id="elsewhere")
    assert listener.next()[2]["request_id"] == "elsewhere"
    listener.leave()


def test_whoever_comes_back_is_sent_what_was_missed(funded):
    for n in range(3):
        funded.call("POST", "/v1/accounts/acme/consume", {"units": 1}, once=f"c{n}")
    listener = Listener(funded, [(b"last-event-id", b"2")])
    assert [listener.next()[:2] for _ in range(3)] == [(3, "entry"), (4, "entry"), (4, "balance")]
    listener.leave()


@pytest.mark.parametrize("missed", [4, 6, 7])
def test_nobody_was_away_for_too_long(funded, missed, monkeypatch):
    monkeypatch.setattr(stream, "AT_ONCE_MAX", 3)
    for n in range(missed):
        funded.call("POST", "/v1/accounts/acme/consume", {"units": 1}, once=f"c{n}")
    listener = Listener(funded, [(b"last-event-id", b"1")])
    last = missed + 1
    sent = [listener.next()[:2] for _ in range(missed + 1)]
    assert sent == [*((seq, "entry") for seq in range(2, last + 1)), (last, "balance")]
    listener.leave()


def test_nothing_is_sent_while_nothing_changes(funded):
    listener = Listener(funded)
    listener.next()
    assert listener.is_silent(2.5)
    listener.leave()


def test_a_balance_that_time_changes_is_sent(funded):
    funded.call("POST", "/v1/accounts/acme/holds", {"units": 5, "expires_in": "2s"}, once="h")
    listener = Listener(funded)
    assert listener.next()[2]["held"] == "5"
    for _ in range(3):
        _, kind, sent = listener.next()
        if kind == "balance":
            break
    assert (sent["held"], sent["available"]) == ("0", "100")
    listener.leave()


def test_streams_end_when_the_service_does(funded):
    listener = Listener(funded)
    listener.next()
    funded.service.stop()
    funded.run(asyncio.wait_for(listener._task, 30))
    assert funded.service.followers._count == 0
    late = Listener(funded)
    funded.run(asyncio.wait_for(late._task, 30))
    assert late.start["status"] == 503


def test_a_process_that_is_told_to_stop_ends_its_streams(serve):
    served = serve()
    headers = {"authorization": f"Bearer {served.key}"}
    once = {**headers, "idempotency-key": "g"}
    httpx2.post(f"{served.url}/v1/accounts/acme/grants", json={"units": 5}, headers=once)
    with httpx2.stream("GET", served.url + PATH, headers=headers, timeout=30) as stream:
        parts = stream.iter_bytes()
        assert b"event: balance" in next(parts)
        assert served.stop() in (0, -15)
        assert b"".join(parts) == b""  # ended well, not cut off


def test_what_was_last_seen_must_be_an_id(funded):
    said = funded.call("GET", PATH, headers={"last-event-id": "x"})
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
