"""Both clients on real sockets, before a server that fails on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tillroll

KEY = "tr_test_" + "k" * 43
WHO = {"key_id": "k", "project": "default", "mode": "test", "scopes": [], "scale": 6}
AMOUNTS = ("available", "held", "used", "expired", "issued", "overdraft_limit", "spendable")
BALANCE: dict[str, object] = {
    "account": "a",
    "wallet": "credits",
    "status": "open",
    "seq": 1,
    "as_of": "now",
    "grants": [],
    "holds": [],
    "budgets": [],
    **dict.fromkeys(AMOUNTS, "1"),
}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends RST, not FIN


def receipt(request_id: str) -> dict[str, object]:
    with tillroll.open("memory://") as ledger:
        ledger.grant("a", 10)
        return ledger.consume("a", units=1, request_id=request_id).to_dict()


class Failing(ThreadingHTTPServer):
    """Answers every request by the next fault of a list, and well when there is none left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str] = []
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.connections: set[tuple[str, int]] = set()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Say nothing: connections end badly here, on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Failing

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.keys.append(self.headers["Idempotency-Key"].encode("latin-1").decode())
        self._fail_or(receipt(self.server.keys[-1]))

    def do_GET(self) -> None:
        if self.path.startswith("/v1/whoami"):
            self._send(200, json.dumps(WHO).encode())
        else:
            self._fail_or(BALANCE)

    def _fail_or(self, answer: dict[str, object]) -> None:
        server = self.server
        server.paths.append(self.path)
        server.connections.add(self.client_address)
        fault = server.faults.pop(0) if server.faults else "fine"
        body = json.dumps(answer).encode()
        getattr(self, f"_{fault.replace(' ', '_')}")(body)

    def _fine(self, body: bytes) -> None:
        self._send(200, body)

    def _reset(self, _: bytes) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close_connection = True
        self.connection.close()

    def _hang_up(self, _: bytes) -> None:
        self.close_connection = True

    def _half(self, body: bytes) -> None:
        self._send(200, body[: len(body) // 2], length=len(body))
        self.close_connection = True

    def _silence(self, _: bytes) -> None:
        self.server.released.wait(30)
        self.close_connection = True

    def _drip(self, body: bytes) -> None:
        self._send(200, b"", length=len(body))
        for byte in body:
            if self.server.released.wait(0.05):
                break
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
        self.close_connection = True

    def _not_http(self, _: bytes) -> None:
        self.wfile.write(b"220 mail.example.com ESMTP\r\n")
        self.close_connection = True

    def _not_json(self, _: bytes) -> None:
        self._send(200, b"<html>Log in to the hotel's network</html>")

    def _busy(self, _: bytes) -> None:
        self._send(503, b'{"code": "store_busy", "written": "nothing"}', after="0")

    def _gateway(self, _: bytes) -> None:
        self._send(502, b"<html>")

    def _send(
        self, status: int, body: bytes, *, length: int | None = None, after: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if after is not None:
            self.send_header("Retry-After", after)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Failing]:
    failing = Failing()
    thread = threading.Thread(target=failing.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield failing
    failing.released.set()
    failing.shutdown()
    thread.join()
    failing.server_close()


def by_threads(server: Failing, verb: str, *args: Any, timeout: float = 20.0, **kwargs: Any) -> Any:
    with tillroll.Client(server.url, api_key=KEY, timeout=timeout) as client:
        return getattr(client, verb)(*args, **kwargs)


def by_loop(server: Failing, verb: str, *args: Any, timeout: float = 20.0, **kwargs: Any) -> Any:
    async def ask() -> Any:
        async with tillroll.AsyncClient(server.url, api_key=KEY, timeout=timeout) as client:
            answer: Awaitable[Any] = getattr(client, verb)(*args, **kwargs)
            return await answer

    return asyncio.run(ask())


Ask = Callable[..., Any]
BOTH = pytest.mark.parametrize("ask", [by_threads, by_loop])
FAULTS = ["reset", "hang up", "half", "not http", "not json", "busy", "gateway"]


@BOTH
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_not_noticed(ask: Ask, fault: str, server: Failing):
    server.faults = [fault, fault]
    answer = ask(server, "consume", "a", units=1, request_id="é 1")
    assert (answer.request_id, answer.units) == ("é 1", 1)
    assert server.keys == ["é 1"] * 3


@BOTH
@pytest.mark.parametrize("fault", ["silence", "drip"])
def test_an_answer_that_does_not_come_is_not_waited_for(ask: Ask, fault: str, server: Failing):
    server.faults = [fault]
    answer = ask(server, "consume", "a", units=1, timeout=3.0)
    assert answer.units == 1
    assert len(set(server.keys)) == 1
    assert len(server.keys) == 2


@BOTH
@pytest.mark.parametrize("fault", ["reset", "half", "silence", "not json"])
def test_at_the_deadline_nothing_is_claimed(ask: Ask, fault: str, server: Failing):
    server.faults = [fault] * 1_000
    with pytest.raises(tillroll.OutcomeUnknown) as raised:
        ask(server, "consume", "a", units=1, request_id="r", timeout=0.5)
    assert raised.value.request_id == "r"
    assert set(server.keys) == {"r"}
    with pytest.raises(tillroll.StoreUnavailable):
        ask(server, "balance", "a", timeout=0.5)


@BOTH
def test_where_nobody_listens_nothing_was_written(ask: Ask, server: Failing):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        class Nobody:
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        with pytest.raises(tillroll.StoreUnavailable, match="nothing was written") as raised:
            ask(Nobody, "consume", "a", units=1, timeout=0.3)
    assert raised.value.written == "nothing"
    assert server.keys == []


def test_connections_are_used_again(server: Failing):
    with tillroll.Client(server.url, api_key=KEY) as client:
        for _ in range(5):
            client.balance("a")
    assert len(server.connections) == 1


def test_a_client_is_shared_by_threads(server: Failing):
    with tillroll.Client(server.url, api_key=KEY) as client:
        answers: list[Any] = []

        def work(nth: int) -> None:
            answers.append(client.consume("a", units=1, request_id=f"r{nth}"))

        threads = [threading.Thread(target=work, args=(nth,)) for nth in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {answer.request_id for answer in answers} == {f"r{nth}" for nth in range(20)}


def test_a_forked_child_opens_connections_of_its_own(server: Failing):
    with tillroll.Client(server.url, api_key=KEY) as client:
        client.balance("a")
        child = os.fork()
        if child == 0:
            ended = 1
            with contextlib.suppress(BaseException):
                client.balance("a")
                ended = 0
            os._exit(ended)
        assert os.waitpid(child, 0)[1] == 0
        client.balance("a")
    assert len(server.connections) == 2, "parent and child have one each"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_client_serves_one_event_loop_after_another(server: Failing):
    client = tillroll.AsyncClient(server.url, api_key=KEY)

    async def ask() -> None:
        assert (await client.balance("a")).available == 1

    for _ in range(2):
        asyncio.run(ask())
    assert len(server.connections) == 2
    asyncio.run(client.close())
    gc.collect()  # a loop that ended without closing the client leaves its connections open


def test_a_cancelled_call_leaves_the_client_usable(server: Failing):
    async def ask() -> Any:
        async with tillroll.AsyncClient(server.url, api_key=KEY) as client:
            await client.whoami()
            server.faults = ["silence"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.consume("a", units=1)
            return await client.consume("a", units=1)

    assert asyncio.run(ask()).units == 1


def test_a_closed_client_says_so(server: Failing):
    client = tillroll.Client(server.url, api_key=KEY)
    client.close()
    client.close()
    with pytest.raises(tillroll.StoreClosed, match="closed"):
        client.balance("a")

    async def ask() -> None:
        awaiting = tillroll.AsyncClient(server.url, api_key=KEY)
        await awaiting.close()
        with pytest.raises(tillroll.StoreClosed):
            await awaiting.balance("a")

    asyncio.run(ask())


def test_closing_ends_what_waits(server: Failing):
    client = tillroll.Client(server.url, api_key=KEY, timeout=60)
    client.whoami()
    server.faults = ["busy"] * 1_000
    told: list[BaseException] = []

    def work() -> None:
        try:
            client.consume("a", units=1)
        except tillroll.TillrollError as problem:
            told.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    while not server.keys:
        time.sleep(0.01)
    client.close()
    thread.join(20)
    assert isinstance(told[0], tillroll.StoreClosed | tillroll.OutcomeUnknown)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("ftp://example.com", {}),
        ("example.com", {}),
        ("http://", {}),
        ("http://example.com?a=b", {}),
        ("http://user:password@example.com", {}),
        ("http://example.com", {"api_key": "with a blank"}),
        ("http://example.com", {"api_key": ""}),
        ("http://example.com", {"api_key": "line\nbreak"}),
        ("http://example.com", {"timeout": 0}),
        ("http://example.com", {"timeout": "long"}),
        ("http://example.com", {"timeout": float("nan")}),
        ("http://example.com", {"connections_max": 0}),
    ],
)
@pytest.mark.parametrize("kind", [tillroll.Client, tillroll.AsyncClient])
def test_what_makes_no_sense_is_told_at_once(kind: Any, url: str, options: dict[str, Any]):
    with pytest.raises(tillroll.InvalidInput):
        kind(url, **{"api_key": KEY, **options})


def test_the_key_is_not_shown(server: Failing):
    client = tillroll.Client(server.url + "/", api_key=KEY)
    assert repr(client) == f"<Client {server.url}>"
    assert KEY not in repr(tillroll.AsyncClient(server.url, api_key=KEY))
    client.close()


def test_a_service_below_a_path(server: Failing):
    with tillroll.Client(server.url + "/v1/whoami/", api_key=KEY) as client:
        client.whoami()
    assert server.paths == []
