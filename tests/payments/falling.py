"""A process that brings an account low, says so and waits to be killed."""

import sys
import time
from datetime import UTC, datetime

import tillroll


def fall(url: str, at: float) -> None:
    """Take what brings the account below where it is topped up."""
    now = datetime.fromtimestamp(at, UTC)
    with tillroll.open(url, clock=lambda: now) as ledger:
        ledger.consume("acme", units=90)
        sys.stdout.write("+")
        sys.stdout.flush()
        time.sleep(600)


if __name__ == "__main__":
    fall(sys.argv[1], float(sys.argv[2]))
