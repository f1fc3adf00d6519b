"""What fell due and nobody has booked: every answer is the same as after it was booked."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import tillroll


def test_usage_and_effective_balances_need_no_booking():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ledger = tillroll.open("memory://", clock=lambda: now)
    ledger.grant("acme", 100, request_id="g", expires_in="10d")
    ledger.hold("acme", "chat", units=30, request_id="h")
    ledger.mark_in_doubt("acme", "h", at_deadline="settle")
    now += timedelta(days=30)

    def answers() -> tuple[object, ...]:
        balances = [
            ledger.balance("acme", as_of=moment, clock="effective")
            for moment in (now, now - timedelta(days=25))
        ]
        buckets = [(b.available, b.held, b.used, b.expired) for b in balances]
        return ledger.usage("acme"), ledger.usage(by=["day"]), buckets

    before = answers()
    assert Decimal(ledger.usage("acme")[0]["units"]) == ledger.balance("acme").used == 30
    assert ledger.book_due() == 1
    assert answers() == before


@pytest.mark.parametrize("clock", ["recorded", "effective"])
def test_a_moment_far_ahead_is_not_walked_to(clock: str):
    """What recurs each day would be booked day by day, up to the year 9999."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with tillroll.open("memory://", clock=lambda: now) as ledger:
        ledger.set_recurring("acme", "daily", 5, anchor="2026-01-01", every="day")
        soon = ledger.balance("acme", as_of=now + timedelta(days=300))
        assert soon.issued > 1_000
        far = now + timedelta(days=401)
        for ask in (
            lambda: ledger.balance("acme", as_of=far, clock=clock),
            lambda: ledger.access("acme", at=far),
            lambda: ledger.entitlements("acme", at=far),
        ):
            with pytest.raises(tillroll.InvalidInput, match="400 days"):
                ask()
