"""Budgets: which they match, what they count, when they forget."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import tillroll
from tillroll.ledger import budgets
from tillroll.ledger.budgets import Spend, node
from tillroll.ledger.types import BudgetTerms

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """The time, to be moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> tillroll.Ledger:
    ledger = tillroll.open("memory://", clock=clock)
    ledger.grant("acme", 10_000, request_id="g")
    return ledger


def left(ledger: tillroll.Ledger, name: str = "b") -> dict[str, str]:
    found = ledger.balance("acme").budgets
    return {budget["node"]: budget["left"] for budget in found if budget["name"] == name}


def test_no_two_nodes_share_a_text():
    terms = BudgetTerms("b", 1, match={"a": "*", "c": "*"})
    one = node(terms, Spend("credits", None, None, {"a": "x,c=1:y", "c": "z"}))
    other = node(terms, Spend("credits", None, None, {"a": "x", "c": "y,c=1:z"}))
    assert one != other


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({}, True),
        ({"member": "ann"}, True),
        ({"member": "bob"}, False),
        ({"member": "*"}, True),
        ({"team": "*"}, False),
        ({"operation": "image.edit"}, True),
        ({"operation": "image.*"}, True),
        ({"operation": "image.edit.*"}, False),
        ({"operation": "im.*"}, False),
        ({"member": "a.*"}, False),
        ({"model": "*"}, False),
        ({"operation": "*", "member": "ann"}, True),
    ],
)
def test_match(match: dict[str, str], matches: bool):  # noqa: FBT001
    spend = Spend("credits", "image.edit", None, {"member": "ann"})
    assert (node(BudgetTerms("b", 1, match=match), spend) is not None) is matches
    assert node(BudgetTerms("b", 1, match=match, wallet="gpu"), spend) is None


def test_the_tightest_is_named(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "wide", 100)
    ledger.set_budget("acme", "tight", 10)
    with pytest.raises(tillroll.BudgetExceeded) as caught:
        ledger.consume("acme", units=11)
    assert caught.value.tightest == "budget tight"
    assert [way["kind"] for way in caught.value.ways_out] == ["less", "wait", "raise"]


def test_a_total_never_resets_and_says_so(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 0, period="total")
    with pytest.raises(tillroll.BudgetExceeded) as caught:
        ledger.consume("acme", units=1)
    assert [way["kind"] for way in caught.value.ways_out] == ["raise"]
    assert caught.value.details["resets_at"] == ""
    assert ledger.balance("acme").budgets[0]["resets_at"] is None


def test_a_hold_with_a_floor_takes_what_the_budget_leaves(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 10)
    assert ledger.hold("acme", units=15, floor=5).units == 10
    with pytest.raises(tillroll.BudgetExceeded):
        ledger.hold("acme", units=15, floor=0)


def test_of_a_hold_with_no_floor_all_is_needed(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.InsufficientUnits, match="5 credits needed, 0 available") as short:
        ledger.hold("zoe", units=5, floor=0)
    assert short.value.ways_out[0]["text"] == "grant 5 more"
    ledger.set_budget("acme", "b", 0)
    with pytest.raises(tillroll.BudgetExceeded, match="0 of 0 left, 5 needed"):
        ledger.hold("acme", units=5, floor=0)


def test_more_than_held_is_counted_too(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 10)
    ledger.hold("acme", units=4, request_id="h")
    ledger.settle("acme", "h", units=9)
    assert left(ledger) == {"": "1"}


def test_late_settlements_and_their_refunds_use_the_holds_window(
    ledger: tillroll.Ledger, clock: Clock
):
    ledger.configure("acme", late_settlement=True)
    ledger.set_budget("acme", "b", 20, period="day")
    ledger.hold("acme", units=5, request_id="h")
    clock.now += timedelta(days=1)
    ledger.consume("acme", units=3)
    ledger.settle("acme", "h")
    assert left(ledger) == {"": "17"}
    ledger.refund("acme", "h")
    assert left(ledger) == {"": "17"}


def test_windows_long_past_are_forgotten(ledger: tillroll.Ledger, clock: Clock):
    ledger.set_budget("acme", "b", 20, period="day", match={"member": "*"})
    for member in ("ann", "bob"):
        ledger.hold("acme", units=5, request_id=member, tags={"member": member}, expires_in="24h")
    ledger.extend("acme", "ann", expires_in="24h")
    for _ in range(4):
        clock.now += timedelta(hours=20)
        ledger.extend("acme", "ann", expires_in="24h")
    ledger.consume("acme", units=1, tags={"member": "zoe"})
    assert left(ledger) == {"member=3:zoe": "19"}
    ledger.release("acme", "ann")
    assert left(ledger) == {"member=3:zoe": "19"}
    assert ledger.verify().ok


def test_windows_long_past_are_looked_for_once_a_window(
    ledger: tillroll.Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    """At the first count of a new day, not at each member's: that would be members squared."""
    members, days = 40, 4
    looked = 0
    inner = budgets._is_past

    def count(*args: Any) -> bool:
        nonlocal looked
        looked += 1
        return inner(*args)

    monkeypatch.setattr(budgets, "_is_past", count)
    ledger.set_budget("acme", "b", 10, period="day", match={"member": "*"})
    for _ in range(days):
        for member in range(members):
            ledger.consume("acme", units=1, tags={"member": f"m{member}"})
        clock.now += timedelta(days=1)
    assert 0 < looked <= 3 * members * days  # a member has three windows at the most
    assert ledger.verify().ok


def test_another_shape_counts_anew(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 10)
    ledger.consume("acme", units=8, request_id="c")
    ledger.set_budget("acme", "b", 10, period="day")
    ledger.refund("acme", "c")
    assert left(ledger) == {"": "10"}
    ledger.remove_budget("acme", "b")
    ledger.remove_budget("acme", "b")
    assert left(ledger) == {}


def test_one_of_many_members(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 10, match={"member": "ann"})
    assert left(ledger) == {"member=3:ann": "10"}
    ledger.set_budget("acme", "gpu", 10, wallet="gpu")
    assert left(ledger, "gpu") == {}


def test_operations_below_a_name_are_counted_together(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 10, match={"operation": "image.*"})
    assert left(ledger) == {"operation=7:image.*": "10"}
    ledger.consume("acme", "image.edit", units=4)
    ledger.consume("acme", "image.generate", units=3)
    ledger.consume("acme", "text.write", units=50)
    assert left(ledger) == {"operation=7:image.*": "3"}
    with pytest.raises(tillroll.BudgetExceeded):
        ledger.hold("acme", "image.edit", units=4)


def test_a_budget_counts_so_many_values_apart(
    ledger: tillroll.Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(budgets, "NODES_MAX", 2)
    ledger.set_budget("acme", "b", 10, period="day", match={"member": "*"})
    for member in ("ann", "bob"):
        ledger.consume("acme", units=1, tags={"member": member})
    with pytest.raises(tillroll.InvalidInput, match="budget 'b' counts 2 values apart"):
        ledger.consume("acme", units=1, tags={"member": "cid"})
    ledger.consume("acme", units=1, tags={"member": "ann"})
    ledger.consume("acme", units=1)
    clock.now += timedelta(days=3)
    ledger.consume("acme", units=1, tags={"member": "cid"})
    assert left(ledger) == {"member=3:cid": "9"}
