"""What falls due at one look, in its order; some of it leads to nothing when its turn comes."""

from datetime import UTC, date, datetime, timedelta

import pytest

import tillroll


class Bench:
    """A ledger and its clock."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)

    def later(self, **span: int) -> list[tuple[str, int]]:
        """Let time pass, have what fell due booked, and return all that is in the history."""
        self.now += timedelta(**span)
        self.ledger.book_due()
        assert self.ledger.verify().ok
        return [(receipt.kind, int(receipt.units)) for receipt in self.ledger.entries("acme")]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_grant_that_was_carried_over_whole_does_not_expire(bench: Bench):
    """It ends when the next one begins, which takes all of it along first."""
    bench.ledger.set_recurring(
        "acme", "plan", 100, anchor=date(2026, 1, 1), every="day", rollover_max=200
    )
    found = bench.later(days=1, hours=1)
    assert found == [("recurring", 0), ("grant_renewed", 100), ("grant_renewed", 200)]
    assert bench.ledger.balance("acme").available == 200


def test_what_a_hold_keeps_of_a_grant_that_was_carried_over_expires_when_it_ends(bench: Bench):
    bench.ledger.set_recurring(
        "acme", "plan", 100, anchor=date(2026, 1, 1), every="day", rollover_max=200
    )
    bench.later(hours=20)
    bench.ledger.hold("acme", units=30, request_id="h", expires_in="10h")
    found = bench.later(hours=5)
    assert found[2:] == [("hold", 30), ("grant_renewed", 170)]
    bench.ledger.release("acme", "h")
    balance = bench.ledger.balance("acme")
    assert (balance.available, balance.held, balance.expired) == (170, 0, 30)
    assert bench.ledger.verify().ok


def test_a_warning_that_comes_due_twice_is_given_once(bench: Bench):
    """A hold that ends gives units back to a grant that is to be warned of at the same look."""
    bench.ledger.set_alert("acme", "soon", "expiring", 5)
    bench.ledger.grant("acme", 10, expires_in="10d")
    bench.ledger.hold("acme", units=4, expires_in="10m")
    found = bench.later(days=6)
    assert [kind for kind, _ in found[-2:]] == ["hold_expired", "grant_expiring"]
    assert [kind for kind, _ in found].count("grant_expiring") == 1
    assert bench.later(days=5)[-1] == ("grant_expired", 10)


def test_a_recurring_grant_goes_with_its_last_renewal(bench: Bench):
    anchor, ends_at = date(2026, 1, 1), datetime(2026, 1, 3, tzinfo=UTC)
    bench.ledger.set_recurring("acme", "plan", 10, anchor=anchor, every="day", ends_at=ends_at)
    found = bench.later(days=9)
    assert [kind for kind, _ in found].count("grant_renewed") == 2
    with pytest.raises(tillroll.InvalidInput, match="no recurring grant"):
        bench.ledger.stop_recurring("acme", "plan")


def test_renewals_follow_the_time_zone_of_the_account(bench: Bench):
    """The day that runs ends as it was to; the next ends at midnight in New York."""
    bench.ledger.set_recurring("acme", "plan", 10, anchor=date(2026, 1, 1), every="day")
    bench.ledger.configure("acme", time_zone="America/New_York")
    ends = [bench.later(hours=hours) for hours in (23, 2, 27, 2)]
    assert [sum(kind == "grant_renewed" for kind, _ in found) for found in ends] == [1, 2, 2, 3]
