"""What a caller sees of an entry, and of a story told in words."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

import tillroll
from tillroll.ledger.pricing import Price
from tillroll.ledger.units import parse_decimal


@pytest.fixture
def ledger():
    with tillroll.open("memory://", clock=lambda: datetime(2026, 1, 31, 12, tzinfo=UTC)) as made:
        yield made


def test_a_receipt_tells_all_of_its_entry(ledger):
    grant = ledger.grant("acme", 100, request_id="g", expires_in="1d")
    receipt = ledger.consume("acme", "image.generate", units="2.5", request_id="c")
    assert grant.expires_at == datetime(2026, 2, 1, 12, tzinfo=UTC)
    assert receipt.expires_at is None
    assert receipt.operation == "image.generate"
    assert receipt.price_version is None
    assert receipt.recorded_at == receipt.effective_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert (receipt.available_before, receipt.available) == (100, Decimal("97.5"))
    assert (receipt.issued, receipt.used, receipt.held, receipt.expired) == (
        100,
        Decimal("2.5"),
        0,
        0,
    )
    assert receipt.grants == [("g", Decimal("2.5"))]
    assert (receipt.shortfall, receipt.ref, receipt.seq, receipt.kind) == (0, None, 2, "consume")
    assert "acme #2 consume 2.5 credits" in repr(receipt)


def test_receipts_are_equal_by_their_entry(ledger):
    ledger.grant("acme", 100, request_id="g")
    first = ledger.consume("acme", units=1, request_id="c")
    again = ledger.consume("acme", units=1, request_id="c")
    other = ledger.consume("acme", units=1, request_id="d")
    assert (first == again, first == other, first == "receipt") == (True, False, False)
    assert len({first, again, other}) == 2
    assert repr(again).endswith("replayed>")


def test_a_charge_on_the_overdraft_is_explained(ledger):
    ledger.set_overdraft("acme", 50)
    ledger.consume("acme", units=20, request_id="c")
    story = ledger.explain("c")
    assert story["paid_by"] == [{"grant": "~overdraft", "units": "20", "category": "overdraft"}]
    assert (story["available_before"], story["available_after"]) == ("0", "-20")


def test_a_shortfall_is_said(ledger):
    ledger.grant("acme", 30, request_id="g")
    ledger.hold("acme", units=30, request_id="h")
    ledger.settle("acme", "h", units=35)
    assert any(
        "5 more were used than could be charged" in s for s in ledger.explain("h")["sentences"]
    )


def test_half_even_says_when_it_rounded(ledger):
    price = Price(operation="a", per_request=Decimal("0.0000005"), rounding="half_even")
    ledger.apply_prices([price], author="ann", reason="a test")
    assert "rounded half to even" in " ".join(ledger.quote("acme", "a").arithmetic)


def test_a_number_beyond_all_ledgers_is_refused():
    with pytest.raises(tillroll.InvalidInput, match="far beyond"):
        parse_decimal(10**31)
