"""A process that delivers until it is killed: `worker.py URL`.

Its clock runs ahead to whatever is due next, so that three days of retries take seconds.
"""

import sys
import time

from tillroll.embedded import open_engine
from tillroll.engine import now
from tillroll.jobs import Deliverer, Sender
from tillroll.ledger.types import SECOND

LEASE_SECONDS = 31.0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    ahead = 0
    engine = open_engine(sys.argv[1])
    engine.clock = lambda: now() + ahead
    deliverer = Deliverer(engine, Sender(private=True, seconds=15.0), lease_seconds=LEASE_SECONDS)
    say("running")
    while True:
        if deliverer.round()["more"]:
            continue
        with engine.store.read() as reader:
            backlog = reader.backlog()
        if backlog.next_at is None and not backlog.waiting:
            say(f"idle {backlog.dead}")
            time.sleep(0.05)
        elif backlog.next_at is not None and backlog.next_at > engine.clock():
            ahead += backlog.next_at - engine.clock() + SECOND


if __name__ == "__main__":
    main()
