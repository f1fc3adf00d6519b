"""What fell due and nobody has booked: every answer is the same as after it was booked."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

import tillroll
from tillroll.cli import views


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


def test_a_statement_adds_up_to_the_balance_though_nobody_booked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with tillroll.open(tmp_path / "a.db", clock=lambda: now) as ledger:
        ledger.grant("acme", 100, request_id="g", expires_in="10d")
        ledger.hold("acme", units=30, request_id="h", expires_in="1h")
        ledger.grant("zoe", 1, request_id="z")
        assert ledger.statement("acme").due == ()
        now += timedelta(days=30)
        page = ledger.statement("acme", limit=1)
        assert [(one.kind, one.seq, one.due) for one in page.due] == [
            ("grant_expired", 4, True),
            ("hold_expired", 3, True),
        ]
        assert [one.seq for one in page.receipts] == [2]
        balance = ledger.balance("acme")
        assert (page.due[0].seq, page.due[0].available) == (balance.seq, balance.available)
        assert page.due[1].effective_at == now - timedelta(days=30) + timedelta(hours=1)
        assert ledger.statement("acme", before=page.next).due == ()
        assert ledger.statement("acme", until=now).due == ()
        assert len(ledger.statement("acme", since=now).due) == 2
        kinds = ledger.statement("acme", kinds=["grant", "hold_expired"])
        assert ([one.kind for one in kinds.due], len(kinds.receipts)) == (["hold_expired"], 1)
        exported = [(one.account, one.seq, one.due) for one in ledger.entries(due=True)]
        assert exported == [
            *(("acme", n, n > 2) for n in range(1, 5)),
            ("zoe", 1, False),
        ]
        assert len(list(ledger.entries())) == 3, "the history is what is booked"
        receipts = list(ledger.entries("acme", due=True))
        rows = [views.export_row(receipt)["due"] for receipt in receipts]
        assert rows == ["", "", "true", "true"]
        lines = [json.loads(views.export_line(receipt))["due"] for receipt in receipts]
        assert lines == [False, False, True, True]
        views.show_statement("acme", page)
        shown = capsys.readouterr().out.splitlines()
        assert "grant_expired (due)" in shown[1]
        assert "26-01-11 00:00:00" in shown[1], "when it fell due"
        assert "(due)" not in shown[-1]
        assert ledger.book_due() == 1
        after = ledger.statement("acme")
        assert (after.due, after.receipts[:2]) == ((), page.due), "it is what was said"


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
