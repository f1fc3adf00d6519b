"""An account that moves to another time zone: what runs keeps its end, and nothing comes twice."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tillroll
from tillroll.ledger.products import Allowance, Plan, Products
from tillroll.testing.auditor import Auditor, Call, compare

ZONES = (
    "UTC",
    "America/New_York",
    "Asia/Kathmandu",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
)
PLANS: dict[str, Plan] = {
    name: Plan(grants=(Allowance(Decimal(units), rollover_max=Decimal(20)),))
    for name, units in (("small", 100), ("large", 500))
}
PLANS["weekly"] = Plan(
    grants=(Allowance(Decimal(7), every="week", rollover_max=Decimal(20)),), every="week"
)


class Bench:
    """A ledger with two plans, one account and a clock."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)
        self.ledger.apply_prices([], author="ann", reason="first", products=Products(plans=PLANS))

    def do(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.ledger, verb)("acme", *args, **kwargs)

    def available(self, *when: int) -> int:
        self.now = datetime(2026, *when, tzinfo=UTC)
        return int(self.do("balance").available)

    def periods(self) -> list[tuple[int, int]]:
        """Return when each grant that came back began and ends."""
        self.ledger.book_due()
        assert self.ledger.verify().ok
        opened = [one.entry.opens[0] for one in self.do("history") if one.kind == "grant_renewed"]
        return [(terms.effective_at, terms.expires_at or 0) for terms in opened]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("zone", "ends"),
    [("America/New_York", "2026-03-01T05:00:00Z"), ("Asia/Tokyo", "2026-02-28T15:00:00Z")],
)
def test_the_period_at_hand_keeps_its_end(bench: Bench, zone: str, ends: str):
    bench.do("set_recurring", "free", 100, anchor=date(2026, 1, 1), rollover_max=20)
    bench.do("consume", units=50)
    bench.now = datetime(2026, 1, 15, tzinfo=UTC)
    bench.do("configure", time_zone=zone)
    assert bench.do("overview")["recurring"][0]["next_at"] == "2026-02-01T00:00:00Z"
    assert bench.available(1, 31, 23, 59) == 50
    assert bench.available(2, 1) == 120, "the next begins at once, and carries over"
    assert bench.do("balance").grants[0]["expires_at"] == ends, "midnight where it is now"


def test_what_was_not_granted_yet_begins_where_the_account_is(bench: Bench):
    bench.do("set_recurring", "free", 100, anchor=date(2026, 2, 1))
    bench.do("configure", time_zone="America/New_York")
    assert bench.available(2, 1, 4, 59) == 0
    assert bench.available(2, 1, 5) == 100


def test_setting_it_again_keeps_the_end_too(bench: Bench):
    bench.do("set_recurring", "free", 100, anchor=date(2026, 1, 1))
    bench.do("configure", time_zone="America/New_York")
    bench.do("set_recurring", "free", 70, anchor=date(2026, 1, 1))
    assert bench.available(1, 31, 23, 59) == 100
    assert bench.available(2, 1) == 70


@settings(max_examples=40, deadline=None)
@given(
    every=st.sampled_from(["day", "week", "month"]),
    count=st.integers(1, 2),
    moves=st.lists(st.tuples(st.integers(1, 700), st.sampled_from(ZONES)), max_size=8),
)
def test_periods_follow_each_other_wherever_it_moves(
    every: str, count: int, moves: list[tuple[int, str]]
):
    bench = Bench()
    auditor = Auditor(lambda *_: None)
    calls = [
        Call("set_recurring", "acme", {
            "name": "free", "units": 10, "anchor": date(2025, 12, 31), "every": every,
            "count": count, "rollover_max": 3,
        })
    ]  # fmt: skip
    calls += [Call("configure", "acme", {"time_zone": zone}) for _, zone in moves]
    for number, (call, hours) in enumerate(zip(calls, [0, *(h for h, _ in moves)], strict=True)):
        bench.now += timedelta(hours=hours)
        call.args["request_id"] = f"r{number}"
        answer = bench.do(call.verb, **call.args)
        assert not compare(auditor.expect(call, bench.now), answer)
    bench.now += timedelta(days=70)
    found = bench.periods()
    assert all(begins < ends for begins, ends in found)
    assert [ends for _, ends in found[:-1]] == [begins for begins, _ in found[1:]]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("moves_first", [True, False])
def test_a_plan_that_ends_with_its_period_brings_no_more(
    bench: Bench,
    zone: str,
    moves_first: bool,  # noqa: FBT001 - a case
):
    bench.do("subscribe", "small")
    bench.now = datetime(2026, 1, 15, tzinfo=UTC)
    moves = [
        lambda: bench.do("configure", time_zone=zone),
        lambda: bench.do("end_entitlement", "subscription", when="period_end"),
    ]
    for move in moves if moves_first else reversed(moves):
        move()
    assert bench.available(2, 2) == 0
    assert len(bench.periods()) == 1
    assert bench.do("entitlements") == []


def test_a_plan_to_come_takes_over_when_the_period_ends(bench: Bench):
    bench.do("subscribe", "small")
    bench.do("subscribe", "large", when="period_end")
    bench.do("configure", time_zone="America/New_York")
    assert bench.available(1, 31, 23, 59) == 100
    assert bench.available(2, 1) == 520
    assert bench.available(2, 2) == 520
    assert len(bench.periods()) == 2


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_plan_to_come_of_other_periods_counts_them_from_then(bench: Bench, zone: str):
    bench.do("subscribe", "small")
    bench.do("subscribe", "weekly", when="period_end")
    bench.do("configure", time_zone=zone)
    assert bench.available(1, 31, 23, 59) == 100
    assert bench.available(2, 1) == 27, "at once, with what is carried over"
    assert bench.available(2, 7, 23, 59) == 27
    assert bench.available(2, 8) == 27
    assert len(bench.periods()) == 3


def test_a_plan_that_is_paid_late_comes_once(bench: Bench):
    bench.do("subscribe", "small", paid_until="2026-02-01T00:00:00Z")
    bench.do("configure", time_zone="America/New_York")
    assert bench.available(2, 1, 2) == 0
    bench.do("change_entitlement", "subscription", paid_until="2026-03-01T05:00:00Z")
    assert bench.available(2, 1, 2) == 120
    assert bench.available(2, 28) == 120
    assert len(bench.periods()) == 2


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("period", ["day", "week", "month", "total", "rolling"])
def test_what_was_spent_in_a_window_at_hand_counts_on(bench: Bench, zone: str, period: str):
    bench.now = datetime(2026, 1, 14, 16, tzinfo=UTC)
    bench.do("grant", 1_000)
    window = "5h" if period == "rolling" else None
    bench.do("set_budget", "cap", 10, period=period, window=window, match={"member": "*"})
    bench.do("consume", units=5, tags={"member": "bob"})
    bench.now += timedelta(days=1)
    bench.do("consume", units=9, tags={"member": "ann"}, request_id="c")
    bench.do("configure", time_zone=zone)
    spent = {budget["node"]: budget["spent"] for budget in bench.do("balance").budgets}
    assert spent["member=3:ann"] == "9"
    with pytest.raises(tillroll.BudgetExceeded):
        bench.do("consume", units=2, tags={"member": "ann"})
    bench.do("refund", "c", units=4)
    spent = {budget["node"]: budget["spent"] for budget in bench.do("balance").budgets}
    assert spent["member=3:ann"] == "5", "what comes back is taken off"
    assert bench.ledger.verify().ok


def test_a_budget_resets_where_the_account_is(bench: Bench):
    bench.now = datetime(2026, 1, 15, 16, tzinfo=UTC)
    bench.do("grant", 1_000)
    bench.do("set_budget", "cap", 10, period="day")
    bench.do("consume", units=9)
    bench.do("configure", time_zone="America/New_York")
    assert bench.do("balance").budgets[0]["resets_at"] == "2026-01-16T05:00:00Z"
    bench.now = datetime(2026, 1, 16, 5, tzinfo=UTC)
    assert bench.do("balance").budgets[0]["spent"] == "0"
