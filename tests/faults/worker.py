"""A process that works on a ledger until it is killed: run as a program by the kill tests.

    python worker.py LEDGER ACKS ROUND THREADS

Each thread consumes, holds, settles, releases, or leaves a hold open. Before a request its id is
appended to ACKS with `?`, after its answer with `!`: each line is one write of the system, so that
a kill leaves whole lines.
"""

import itertools
import os
import random
import sys
import threading

import tillroll

ACCOUNTS = 3
GRANT = 10**9


def requests(thread: int, round_: str, rng: random.Random):
    """Yield (account, request_id, kind) without end."""
    for number in itertools.count():
        account = f"a{rng.randrange(ACCOUNTS)}"
        yield account, f"{round_}.{thread}.{number}", rng.choice(["consume", "hold", "leave"])


def load(ledger: tillroll.Ledger, out: int, thread: int, round_: str) -> None:
    def note(mark: str, account: str, kind: str, request_id: str) -> None:
        os.write(out, f"{mark} {account} {kind} {request_id}\n".encode())

    rng = random.Random(f"{round_}.{thread}")  # noqa: S311 - a test's dice
    for account, name, kind in requests(thread, round_, rng):
        if kind == "consume":
            note("?", account, "consume", name)
            ledger.consume(account, units=1, request_id=name)
            note("!", account, "consume", name)
            continue
        note("?", account, "hold", name)
        hold = ledger.hold(account, units=5, request_id=name)
        note("!", account, "hold", name)
        if kind == "hold":
            note("?", account, "settle", name)
            hold.settle(3, request_id=f"{name}.settle")
            note("!", account, "settle", name)


def act(ledger: tillroll.Ledger, account: str, kind: str, name: str) -> None:
    """Ask again for what a worker asked for: the same request under the same id."""
    if kind == "consume":
        ledger.consume(account, units=1, request_id=name)
    elif kind == "hold":
        ledger.hold(account, units=5, request_id=name)
    else:
        ledger.settle(account, name, units=3, request_id=f"{name}.settle")


def entry_id(kind: str, name: str) -> str:
    return f"{name}.settle" if kind == "settle" else name


def main() -> None:
    path, acks, round_, threads = sys.argv[1:]
    out = os.open(acks, os.O_WRONLY | os.O_APPEND)
    ledger = tillroll.open(path)
    for thread in range(int(threads)):
        threading.Thread(target=load, args=(ledger, out, thread, round_), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
