"""Sending: to nowhere that is ours, within one deadline, and nothing that is not asked for."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.jobs.receiver import Receiver
from tests.servers.certificates import make_certificates
from tillroll.jobs import sending
from tillroll.jobs.sending import Sender, is_public

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"]
OURS = [
    *("127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    "0.0.0.0",  # noqa: S104 - not bound to, refused
    *("192.168.1.1", "169.254.169.254", "169.254.1.1", "100.64.0.1", "192.0.0.1", "192.0.2.1"),
    *("198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::"),
    "2001:0:53aa:64c:0:0:0:1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", OURS)
def test_addresses_that_nothing_is_sent_to(text: str):
    assert not is_public(ipaddress.ip_address(text))


def resolving(monkeypatch, *answers: list[str]) -> list[str]:
    """Have names resolve to these addresses, one list a look-up; return what was asked for."""
    asked: list[str] = []
    left = list(answers)

    def getaddrinfo(host: str, port: int, *_: object, **__: object):
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in found]

    monkeypatch.setattr(sending.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_that_leads_to_us_is_refused(monkeypatch):
    resolving(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    said = Sender().post("https://hooks.example/", {}, b"{}")
    assert said.status is None
    assert said.error == "Refused: hooks.example is not at a public address"


def test_an_address_of_ours_is_not_told_to_who_asks(monkeypatch):
    resolving(monkeypatch, ["10.20.30.40"])
    said = Sender().post("https://db.internal.example/", {}, b"{}")
    assert said.status is None
    assert "10." not in str(said.error)


def test_a_name_that_does_not_resolve_is_given_up_with_the_attempt(monkeypatch):
    release = threading.Event()

    def getaddrinfo(*_: object, **__: object):
        release.wait(30)
        return []

    monkeypatch.setattr(sending.socket, "getaddrinfo", getaddrinfo)
    said = Sender(seconds=0.2).post("https://hooks.example/", {}, b"{}")
    still = not release.is_set()
    release.set()
    assert still
    assert said.error == "TimeoutError: hooks.example was not resolved in time"


def test_names_that_do_not_resolve_are_bounded(monkeypatch):
    monkeypatch.setattr(sending, "_look_ups", threading.BoundedSemaphore(1))
    release = threading.Event()

    def getaddrinfo(*_: object, **__: object):
        release.wait(30)
        return []

    monkeypatch.setattr(sending.socket, "getaddrinfo", getaddrinfo)
    errors = [Sender(seconds=0.2).post("https://a.example/", {}, b"").error for _ in range(2)]
    release.set()
    assert errors[1] == "TimeoutError: too many names are being resolved"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "localhost"]
)
def test_other_ways_to_write_this_machine_are_refused(host: str):
    said = Sender(seconds=5).post(f"https://{host}:9/", {}, b"{}")
    assert said.status is None
    assert said.error is not None
    assert "ConnectionRefused" not in said.error, "it was tried"


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(monkeypatch):
    asked = resolving(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])  # rebinding
    went: list[object] = []

    def create_connection(address: tuple[str, int], timeout: float):
        went.append(address)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(sending.socket, "create_connection", create_connection)
    said = Sender().post("https://hooks.example/in", {}, b"{}")
    assert "nobody there" in str(said.error)
    assert (asked, went) == (["hooks.example"], [("93.184.216.34", 443)])


@pytest.mark.parametrize("url", ["http://93.184.216.34/", "ftp://93.184.216.34/", "file:///etc"])
def test_only_https_is_sent_to(url: str):
    assert "only https" in str(Sender().post(url, {}, b"").error)


def test_what_is_sent_arrives_as_it_is():
    with Receiver() as receiver:
        said = Sender(private=True).post(receiver.url + "?a=1", {"X-Name": "v"}, b'{"a":1}')
    [got] = receiver.received
    assert (said.status, said.error) == (204, None)
    assert (got.body, got.headers["x-name"]) == (b'{"a":1}', "v")
    assert got.headers["host"] == receiver.url.split("/")[2]


def test_an_answer_is_told_with_the_beginning_of_its_body():
    with Receiver(lambda *_: 503) as receiver:
        said = Sender(private=True).post(receiver.url, {}, b"{}")
    assert (said.status, said.body) == (503, b"that is 503")


@contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection with a function that says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.recv(65_536)
                    speak(connection)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        thread.join(10)


def said_by(*parts: bytes, seconds: float = 10.0, hold: bool = False) -> sending.Said:
    """Return what comes of an attempt that is answered with these parts."""
    done = threading.Event()

    def speak(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        if hold:
            done.wait(10)

    with speaking(speak) as url:
        said = Sender(private=True, seconds=seconds).post(url, {}, b"{}")
        done.set()
    return said


def test_redirects_are_not_followed():
    with Receiver() as other:
        head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
        assert said_by(head.encode()).status == 302
    assert other.received == []


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 200 OK\r\ncontent-LENGTH:2\r\n", b"\r\no", b"k"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
    ],
)
def test_an_answer_ends_where_it_says_so_though_nobody_hangs_up(parts):
    said = said_by(*parts, hold=True)
    assert (said.status, said.body, said.error) == (200, b"ok", None)


def test_no_content_has_ended_with_its_head():
    assert said_by(b"HTTP/1.1 204 No Content\r\n\r\n", hold=True).status == 204


def test_an_answer_without_a_length_ends_with_the_connection():
    said = said_by(b"HTTP/1.0 200 OK\r\n\r\nall", b" of it")
    assert (said.status, said.body) == (200, b"all of it")


def test_a_long_answer_is_read_to_a_bound_only():
    endless = [b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", *[b"x" * 4_096] * 16]
    said = said_by(*endless, hold=True)
    assert said.status == 200
    assert 0 < len(said.body) <= sending.RESPONSE_BYTES_MAX


@pytest.mark.parametrize(
    "parts", [[b""], [b"nonsense\r\n\r\n"], [b"HTTP/1.1 abc\r\n\r\n"], [b"HTTP/1.1 200 OK\r\n"]]
)
def test_what_is_no_answer_is_an_error(parts):
    said = said_by(*parts)
    assert said.status is None or said.status == 200
    assert said.error is not None or parts == [b"HTTP/1.1 200 OK\r\n"]


def test_a_receiver_that_says_nothing_is_given_up():
    said = said_by(seconds=0.2, hold=True)
    assert (said.status, said.error is not None) == (None, True)


def test_one_deadline_holds_however_slowly_it_speaks():
    stop = threading.Event()

    def trickle(connection: socket.socket) -> None:
        while not stop.wait(0.02):
            connection.sendall(b"H")

    with speaking(trickle) as url:
        said = Sender(private=True, seconds=0.5).post(url, {}, b"{}")
        stop.set()
    assert said.status is None
    assert "Timeout" in str(said.error) or "timed out" in str(said.error)


@contextmanager
def over_tls(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve one answer over TLS; yield the port's address and who signed the certificate."""
    files = make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def answer(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(65_536)
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except ssl.SSLError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: answer(listening.accept()[0]), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", files.authority
        thread.join(10)


def test_a_certificate_that_nobody_signed_is_not_taken(tmp_path: Path):
    with over_tls(tmp_path) as (place, _):
        said = Sender(private=True).post(f"https://{place}/", {}, b"{}")
    assert said.status is None
    assert "CERTIFICATE_VERIFY_FAILED" in str(said.error)


def test_the_name_in_the_certificate_is_checked_and_not_the_address(tmp_path: Path):
    with over_tls(tmp_path) as (place, authority):
        tls = ssl.create_default_context(cafile=authority)
        said = Sender(private=True, tls=tls).post(f"https://{place}/", {}, b"{}")
    assert (said.status, said.body) == (200, b"ok")


def test_another_name_than_the_certificates_is_not_taken(tmp_path: Path, monkeypatch):
    with over_tls(tmp_path) as (place, authority):
        resolving(monkeypatch, ["127.0.0.1"])
        tls = ssl.create_default_context(cafile=authority)
        port = place.split(":")[1]
        said = Sender(private=True, tls=tls).post(f"https://hooks.example:{port}/", {}, b"{}")
    assert "CERTIFICATE_VERIFY_FAILED" in str(said.error)
