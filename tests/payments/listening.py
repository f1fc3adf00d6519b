"""A process that takes in webhooks from a file, one after another; to be killed at any moment."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import tillroll
from tests.payments.conftest import SECRET
from tillroll.payments.desk import Desk
from tillroll.payments.stripe import Stripe


def listen(url: str, hooks: Path, at: float, api_base: str) -> None:
    """Take in each webhook of the file, from the first on."""
    now = datetime.fromtimestamp(at, UTC)
    with tillroll.open(url, clock=lambda: now) as ledger:
        provider = Stripe("sk_test_of_a_test", (SECRET,), ledger="default", api_base=api_base)
        desk = Desk(ledger._engine, "default", provider)
        for line in hooks.read_bytes().splitlines():
            header, body = msgspec.json.decode(line, type=tuple[str, bytes])
            desk.receive({"stripe-signature": header}, body)
            sys.stdout.write("+")
            sys.stdout.flush()


if __name__ == "__main__":
    listen(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
