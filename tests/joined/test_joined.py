"""A charge within the caller's own transaction lasts if that lasts, and not otherwise."""

from __future__ import annotations

from decimal import Decimal

import pytest

import tillroll
from tests.joined.sides import GaveUp, Side
from tillroll.ledger.pricing import Price

Both = tuple[tillroll.Ledger, Side]


def charged(ledger: tillroll.Ledger, account: str = "acme") -> list[str]:
    return [e.request_id or "" for e in ledger.entries(account) if e.kind == "consume"]


def test_what_is_rolled_back_leaves_no_trace(both: Both):
    ledger, program = both
    ledger.grant("acme", 100, request_id="g")
    with program.rolled_back():
        program.order("order-1")
        joined = ledger.join(program.given)
        assert joined.consume("acme", units=30, request_id="order-1").available == 70
        assert joined.consume("acme", units=30, request_id="order-1").replayed
        assert joined.grant("new", 5, request_id="g").available == 5
        with pytest.raises(tillroll.InsufficientUnits):
            joined.consume("acme", units=500, request_id="order-2")
        assert joined.balance("acme").available == 70
    assert program.orders() == []
    assert ledger.balance("acme").available == 100
    assert list(ledger.accounts()) == ["acme"]
    for gone in ("order-1", "order-2"):
        with pytest.raises(tillroll.NotFound):
            ledger.explain(gone)
    assert ledger.verify().ok
    assert not ledger.consume("acme", units=1, request_id="order-1").replayed
    assert ledger.explain("order-1")["replays"] == 0


def test_what_is_committed_is_there_once(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    for _ in range(2):
        with program.transaction():
            receipt = ledger.join(program.given).consume("acme", units=30, request_id="order-1")
            if not receipt.replayed:
                program.order("order-1")
    assert program.orders() == ["order-1"]
    assert charged(ledger) == ["order-1"]
    assert ledger.consume("acme", units=30, request_id="order-1").replayed
    assert ledger.explain("order-1")["replays"] == 2
    assert ledger.balance("acme").available == 70
    assert ledger.verify().ok


def test_an_id_of_the_ledger_is_known_within(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    ledger.consume("acme", units=30, request_id="order-1")
    with program.transaction():
        joined = ledger.join(program.given)
        assert joined.consume("acme", units=30, request_id="order-1").replayed
        with pytest.raises(tillroll.IdempotencyConflict):
            joined.consume("acme", units=31, request_id="order-1")
        program.order("order-1")
    assert program.orders() == ["order-1"]
    assert ledger.balance("acme").available == 70


def test_the_ledger_knows_what_was_joined(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    joined = ledger.join(program.given)
    for _ in range(3):
        ledger.consume("acme", units=1)
        with program.transaction():
            joined.consume("acme", units=2)
            joined.consume("acme", units=2)
        assert ledger.consume("acme", units=1).seq == ledger.balance("acme").seq
        with program.rolled_back():
            joined.consume("acme", units=50)
    assert ledger.balance("acme").available == 100 - 3 * 6
    assert ledger.verify().ok


def test_a_hold_of_the_transaction_is_settled_outside(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    with program.transaction():
        program.order("job-1")
        hold = ledger.join(program.given).hold("acme", units=60, request_id="job-1")
    assert ledger.balance("acme").held == 60
    ledger.settle("acme", hold.id, units=20)
    assert (ledger.balance("acme").held, ledger.balance("acme").available) == (0, 80)


def test_a_hold_within_ends_within(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    with program.transaction():
        joined = ledger.join(program.given)
        with joined.hold("acme", units=60) as hold:
            hold.settle(20)
        with pytest.raises(GaveUp), joined.hold("acme", units=60) as hold:
            raise GaveUp
        assert hold.state == "released"
    assert ledger.balance("acme").available == 80


def test_many_at_once_on_their_own_merits(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    items = [{"account": "acme", "units": 10, "request_id": f"r{nth}"} for nth in range(12)]
    items.append({"account": "acme", "units": -1})
    with program.transaction():
        outcomes = ledger.join(program.given).consume_many(items)
    assert [o.status for o in outcomes] == ["created"] * 10 + ["refused"] * 2 + ["invalid"]
    assert charged(ledger) == [f"r{nth}" for nth in range(10)]
    assert ledger.verify().ok


def test_a_savepoint_takes_back_what_came_after_it(both: Both):
    ledger, program = both
    ledger.grant("acme", 100)
    with program.transaction():
        joined = ledger.join(program.given)
        joined.consume("acme", units=1, request_id="before")
        program.run("SAVEPOINT mine")
        joined.consume("acme", units=10, request_id="within")
        program.run("ROLLBACK TO SAVEPOINT mine")
        assert joined.consume("acme", units=2, request_id="after").available == 97
        assert not joined.consume("acme", units=3, request_id="within").replayed
    assert charged(ledger) == ["before", "after", "within"]
    assert ledger.verify().ok


def test_a_refusal_lasts_with_the_transaction(both: Both):
    ledger, program = both
    ledger.grant("acme", 10)
    with program.transaction():
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.join(program.given).consume("acme", units=20, request_id="r1")
        program.order("refused")
    assert program.orders() == ["refused"]
    ledger.grant("acme", 100)
    with pytest.raises(tillroll.InsufficientUnits) as again:
        ledger.consume("acme", units=20, request_id="r1")
    assert again.value.replayed


def test_everything_else_that_a_ledger_does(both: Both):
    ledger, program = both
    ledger.grant("acme", 100, request_id="g1", metadata={"note": "gift"})
    prices = [Price(operation="image.generate", per_request=Decimal(20))]
    with program.transaction():
        joined = ledger.join(program.given)
        joined.apply_prices(prices, author="me", reason="first")
        assert joined.consume("acme", "image.generate", request_id="c1").available == 80
        assert joined.preview.consume("acme", "image.generate").available == 60
        assert joined.quote("acme", "image.generate").units == 20
        assert joined.explain("c1")["request_id"] == "c1"
        assert [entry.kind for entry in joined.statement("acme").receipts] == ["consume", "grant"]
        assert joined.usage("acme")[0]["units"] == "20"
        assert joined.erase_metadata("acme") == 1
        assert joined.book_due() == 0
        assert joined.verify("acme").ok
        assert list(joined.accounts()) == ["acme"]
    assert ledger.prices().current == 1
    assert ledger.consume("acme", "image.generate").available == 60
    assert ledger.verify().ok
