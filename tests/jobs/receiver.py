"""A receiver of webhooks on a random port of this machine: a third party, and so a fake.

What it answers is decided by `answer`, a function of the event's id and of how often it came. Run
as a program it is a process of its own that notes each delivery in a file before it answers.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

from standardwebhooks import Webhook

Answer = Callable[[str, int], int]  # the id, how often it came: the status


class Received(NamedTuple):
    """One request that came in."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers.get("webhook-id", "")

    @property
    def told(self) -> Any:
        return json.loads(self.body)


def always(_: str, __: int) -> int:
    return 204


class Receiver:
    """Takes what comes, on threads; a context manager."""

    def __init__(self, answer: Answer = always) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.times: Counter[str] = Counter()
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = owner.take(Received(headers, body))
                said = b"" if status == 204 else f"that is {status}".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def take(self, received: Received) -> int:
        with self._lock:
            self.times[received.id] += 1
            self.received.append(received)
            return self.answer(received.id, self.times[received.id])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/in"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def fails(percent: int, always_fails: int = 0) -> Answer:
    """Return what fails so many of a hundred attempts, by chance that is the same in each run.

    One in `always_fails` ids fails at every attempt.
    """

    def answer(name: str, times: int) -> int:
        number = int.from_bytes(hashlib.sha256(f"{name}/{times}".encode()).digest()[:4], "big")
        stubborn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        if always_fails and stubborn % always_fails == 0:
            return 500
        return 500 if number % 100 < percent else 200

    return answer


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the input ends: `receiver.py SECRET FILE PERCENT ALWAYS`; print the URL.

    A line of input makes what always failed be taken from then on.
    """
    secret, path, percent, stubborn = sys.argv[1:]
    webhook = Webhook(secret)
    with Path(path).open("a", encoding="utf-8", buffering=1) as notes, Receiver() as receiver:
        state = {"answer": fails(int(percent), int(stubborn))}
        lock = threading.Lock()
        times: Counter[str] = Counter()

        def take(received: Received) -> int:
            # Not `verify`: it wants the sender's clock to be ours, and that one runs ahead.
            at = datetime.fromtimestamp(int(received.headers["webhook-timestamp"]), UTC)
            signature = webhook.sign(received.id, at, received.body.decode())
            assert received.headers["webhook-signature"] == signature
            assert received.told["id"] == received.id
            with lock:
                times[received.id] += 1
                status = state["answer"](received.id, times[received.id])
                notes.write(f"{received.id} {status}\n")
                return status

        receiver.take = take  # type: ignore[method-assign]
        say(receiver.url)
        for _ in sys.stdin:
            state["answer"] = fails(int(percent))
            say("changed")


if __name__ == "__main__":
    main()
