"""What is stored and hashed stays the same bytes, however it is put together."""

from datetime import UTC, datetime
from typing import Any

import tillroll
from tillroll.ledger.commands import account_id

PLAIN = (
    b'{"seq":2,"kind":"consume","at":1767225600000000,"effective_at":1767225600000000,'
    b'"request_id":"c1","fingerprint":"7b3D8refwUi9sTZ5eu82u6OEt1ikiEopKYp6o5m/cxg=",'
    b'"units":1000000,"postings":[["available","used","g",1000000]],'
    b'"issued":100000000,"available":99000000,"used":1000000}'
)
# The chain links all entries, so the last hash covers every byte of them.
LAST = "ff29294a0a16b69aa9324dd61c3c5fec1b6c8bcd6f472cd21757b8ccfedf4310"
TOLD: dict[str, Any] = {
    "model": "m",
    "meters": {"tokens": 5, "images": "1.5"},
    "attributes": {"size": "big", "color": "red"},
    "tags": {"member": "a", "key": "k"},
    "reason": "why",
    "actor": "ann",
    "metadata": {"order": 17},
}


def test_the_same_requests_are_stored_as_the_same_bytes():
    ledger = tillroll.open("memory://", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    ledger.grant("acme", 100, request_id="g")
    ledger.consume("acme", units=1, request_id="c1")
    ledger.consume("acme", "image", units=2, request_id="c2", **TOLD)
    ledger.hold("acme", "image", units=10, request_id="h1")
    ledger.settle("acme", "h1", units=4, request_id="s1")
    ledger.hold("acme", "image", units=10, request_id="h2", **TOLD)
    ledger.settle("acme", "h2", units=12, request_id="s2", reason="more")
    with ledger.store.read() as reader:
        rows = reader.entries(account_id("default", "acme"))
    assert rows[1].body == PLAIN
    assert rows[-1].hash.hex() == LAST
