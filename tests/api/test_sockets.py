"""What comes down a socket: nonsense, slowness, endlessness. Never a 500, never a hang."""

import asyncio
import random
import re
import socket
import time

import httpx2
import pytest

from tillroll.server.bounds import JOINED_MAX, Joining

HEAD = (
    b"POST /v1/accounts/acme/consume HTTP/1.1\r\nhost: t\r\nauthorization: Bearer %b\r\n"
    b"idempotency-key: %b\r\ncontent-type: application/json\r\n"
)


class Raw:
    """A socket to the service."""

    def __init__(self, served):
        self._socket = socket.create_connection(("127.0.0.1", served.port), 20)
        self._left = b""  # what came behind the last answer

    def send(self, data):
        self._socket.sendall(data)

    def send_lines(self, count):
        """Send so many lines of a head, a thousand bytes each."""
        for n in range(count):
            self.send(b"x-%d: %b\r\n" % (n, b"a" * 1_000))

    def rest(self):
        """Return everything until the service hangs up; at most 20 seconds a part."""
        got = b""
        while True:
            try:
                part = self._socket.recv(65_536)
            except ConnectionResetError:
                return got
            if not part:
                return got
            got += part

    def answer(self):
        """Return the status and the body of one answer."""
        got = self._left
        while b"\r\n\r\n" not in got:
            got += self.part()
        head, _, body = got.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        while len(body) < length:
            body += self.part()
        self._left = body[length:]
        return int(head.split()[1]), body[:length]

    def part(self):
        """Return what comes next, in one piece."""
        part = self._socket.recv(65_536)
        assert part, "hung up before the answer was whole"
        return part

    def finish(self):
        self._socket.shutdown(socket.SHUT_WR)

    def close(self):
        self._socket.close()


@pytest.fixture
def served(serve):
    one = serve(None, TILLROLL_REQUEST_SECONDS="2")
    headers = {"authorization": f"Bearer {one.key}", "idempotency-key": "g"}
    made = httpx2.post(f"{one.url}/v1/accounts/acme/grants", json={"units": 100}, headers=headers)
    assert made.status_code == 200
    return one


def alive(served):
    """Charge one more unit, and return what is used."""
    headers = {"authorization": f"Bearer {served.key}"}
    once = {**headers, "idempotency-key": f"alive-{time.time_ns()}"}
    url = f"{served.url}/v1/accounts/acme"
    assert httpx2.post(f"{url}/consume", json={"units": 1}, headers=once).status_code == 200
    return int(httpx2.get(f"{url}/balance", headers=headers).json()["used"])


def head(served, once=b"c"):
    return HEAD % (served.key.encode(), once)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", (400, 404)),
        (b"GET /livez HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_nonsense_is_answered_and_the_connection_closed(served, sent, status):
    raw = Raw(served)
    raw.send(sent)
    got = raw.rest()
    found = int(got.split()[1])
    assert found in (status if isinstance(status, tuple) else (status,)), got[:200]
    assert b"application/problem+json" in got
    raw.close()
    assert alive(served) == 1


def test_an_answer_is_sent_by_one_call(served):
    raw = Raw(served)
    for _ in range(50):
        raw.send(b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n")
        got = raw.part()
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert got.endswith(b'"checks":{"process":"ok"}}')
    raw.send(b"GET /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
    assert raw.rest().endswith(b'"checks":{"process":"ok"}}')
    raw.close()


def test_a_stream_that_does_not_give_way_is_told_to_wait():
    """Many parts in one turn of the loop go below, whose marks are there to have it wait."""

    class Told(asyncio.Protocol):
        paused = False

        def pause_writing(self) -> None:
            self.paused = True

    async def write() -> tuple[bool, bytes]:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        transport, told = await loop.create_connection(Told, sock=left)
        joining = Joining(transport, loop)
        most = 0
        for _ in range(1_000):
            joining.write(bytes(4096))
            most = max(most, joining._size)
        paused = told.paused
        assert most <= JOINED_MAX
        reader, writer = await asyncio.open_connection(sock=right)
        joining.write(b"end")
        joining.close()
        told_all = await reader.read(-1)
        writer.close()
        return paused, told_all

    paused, read = asyncio.run(write())
    assert paused
    assert read == bytes(4096 * 1_000) + b"end"


def test_an_endless_head_is_cut_off(served):
    raw = Raw(served)
    raw.send(b"GET /livez HTTP/1.1\r\n")
    with pytest.raises(OSError):
        raw.send_lines(10_000)
    raw.close()
    assert alive(served) == 1


def test_whoever_is_slow_is_told_so_and_holds_nobody_up(served):
    slow = [Raw(served) for _ in range(40)]
    for n, raw in enumerate(slow):
        raw.send(
            [b"", b"POST /v1", head(served), head(served) + b"content-length: 12\r\n\r\n{"][n % 4]
        )
    assert alive(served) == 1  # while they are at it
    for n, raw in enumerate(slow):
        got = raw.rest()
        assert got.startswith(b"HTTP/1.1 408 "), (n, got[:100])
        assert b'"code":"request_timeout"' in got
        raw.close()
    assert alive(served) == 2


def test_requests_in_a_row_are_answered_in_order(served):
    raw = Raw(served)
    one = b"content-length: 11\r\n\r\n" + b'{"units":1}'
    raw.send(b"".join(head(served, b"p%d" % n) + one for n in range(5)))
    for n in range(5):
        status, body = raw.answer()
        assert (status, f'"request_id":"p{n}"'.encode() in body) == (200, True)
    raw.close()
    assert alive(served) == 6


def test_a_body_in_pieces_is_one_body(served):
    raw = Raw(served)
    raw.send(head(served) + b"transfer-encoding: chunked\r\n\r\n")
    for part in (b'{"uni', b'ts":', b"1}"):
        raw.send(b"%x\r\n%b\r\n" % (len(part), part))
        time.sleep(0.01)
    raw.send(b"0\r\n\r\n")
    assert raw.answer()[0] == 200
    raw.close()
    assert alive(served) == 2


def test_whoever_hangs_up_is_charged_once_or_not_at_all(served):
    for n in range(30):
        raw = Raw(served)
        body = b'{"units":1}'
        raw.send(head(served, b"gone-%d" % n) + b"content-length: 11\r\n\r\n" + body[: n % 12])
        raw.close()
    used = alive(served) - 1
    headers = {"authorization": f"Bearer {served.key}"}
    for n in range(30):
        once = {**headers, "idempotency-key": f"gone-{n}"}
        url = f"{served.url}/v1/accounts/acme/consume"
        assert httpx2.post(url, json={"units": 1}, headers=once).status_code == 200
    assert used <= 30
    assert alive(served) == 32


def test_random_bytes_never_give_a_500_or_a_hang(served):
    draw = random.Random(7)  # noqa: S311 - the same nonsense every time
    whole = head(served) + b"content-length: 11\r\n\r\n" + b'{"units":1}'
    for n in range(300):
        sent = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(sent))
            what = draw.randint(0, 3)
            if what == 0:
                sent[at] = draw.randrange(256)
            elif what == 1:
                del sent[at : at + draw.randint(1, 20)]
            elif what == 2:
                sent[at:at] = draw.randbytes(draw.randint(1, 20))
            else:
                sent[at:at] = draw.choice([b"\r\n", b"\x00", b": ", b"%00", b"\r\n\r\n", b"{"])
            sent = sent or bytearray(b"x")
        raw = Raw(served)
        raw.send(bytes(sent))
        raw.finish()
        got = raw.rest()
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]
        assert all(status < 500 for status in statuses), (n, bytes(sent), got)
        raw.close()
    assert alive(served) >= 1
    assert httpx2.get(f"{served.url}/readyz").json()["ok"] is True
