"""Which grants pay, and where units go when they come back."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

import tillroll
from tillroll.ledger.burn import applies, burn_key, home
from tillroll.ledger.types import Grant, Terms

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_order_field_by_field():
    ordered = [
        Terms("z", 1, priority=-1),
        Terms("y", 1, expires_at=5),
        Terms("x", 1, expires_at=9, category="promo"),
        Terms("w", 1, expires_at=9),
        Terms("v", 1, category="promo", effective_at=7),
        Terms("u", 1, effective_at=1),
        Terms("s", 1, effective_at=2),
        Terms("t", 1, category="plan", effective_at=2),
        Terms("a", 1, priority=1),
    ]
    shuffled = ordered[::-1]
    assert sorted(shuffled, key=burn_key) == ordered


@pytest.mark.parametrize(
    ("names", "operation", "pays"),
    [
        ((), None, True),
        ((), "a", True),
        (("a",), None, False),
        (("a",), "a", True),
        (("a",), "a.b", False),
        (("a.*",), "a.b", True),
        (("a.*",), "a.b.c", True),
        (("a.*",), "a", False),
        (("a.*",), "ab", False),
        (("x", "a"), "a", True),
        (("*",), "a", False),
    ],
)
def test_applies(names: tuple[str, ...], operation: str | None, pays: bool):  # noqa: FBT001
    assert applies(Terms("g", 1, applies_to=names), operation) is pays


def test_home():
    assert home(None, 5) == "available"
    assert home(Grant(Terms("g", 1, expires_at=6)), 5) == "available"
    assert home(Grant(Terms("g", 1, expires_at=5)), 5) == "expired"
    assert home(Grant(Terms("g", 1, expires_at=5), voided=True), 5) == "issued"


Open = Callable[[], tillroll.Ledger]


@pytest.fixture
def ledger() -> tillroll.Ledger:
    return tillroll.open("memory://", clock=lambda: NOW)


def test_one_entry_records_all_grants(ledger: tillroll.Ledger):
    for n in range(5):
        ledger.grant("acme", 2, request_id=f"g{n}")
    taken = ledger.consume("acme", units=9)
    assert taken.grants == [("g0", 2), ("g1", 2), ("g2", 2), ("g3", 2), ("g4", 1)]


def test_a_held_overdraft_that_was_repaid_comes_back_as_credit(ledger: tillroll.Ledger):
    ledger.set_overdraft("acme", 10)
    ledger.hold("acme", units=6, request_id="h")
    ledger.grant("acme", 20, request_id="g")
    ledger.release("acme", "h")
    ledger.set_overdraft("acme", 0)
    found = ledger.balance("acme")
    assert (found.available, found.spendable) == (20, 20)
    assert ledger.consume("acme", units=20).grants == [("g", 14), ("~overdraft", 6)]
    assert ledger.verify().ok


def test_a_reopened_file_burns_in_the_same_order(tmp_path: object):
    path = f"{tmp_path}/a.db"
    with tillroll.open(path, clock=lambda: NOW) as ledger:
        ledger.grant("acme", 10, request_id="a", expires_at=NOW + timedelta(days=90))
        ledger.grant("acme", 10, request_id="b", expires_at=NOW + timedelta(days=1))
        ledger.hold("acme", units=15, request_id="h")
    with tillroll.open(path, clock=lambda: NOW) as ledger:
        assert ledger.settle("acme", "h", units=12, final=False).grants == [("b", 10), ("a", 2)]
        assert ledger.verify().ok


def test_a_refund_gives_grants_that_can_be_refunded_and_voided():
    now = NOW
    ledger = tillroll.open("memory://", clock=lambda: now)
    for name in "ab":
        ledger.grant("acme", 10, request_id=name, expires_in="1d")
    ledger.grant("acme", 5, request_id="c")
    ledger.consume("acme", units=25, request_id="charge")
    now += timedelta(days=2)
    back = ledger.refund("acme", "charge", expired="goodwill", request_id="r")
    assert {line for line, _ in back.grants} == {"a", "b", "c", "r", "~r#1"}
    ledger.consume("acme", units=25, request_id="again")
    assert ledger.refund("acme", "again").units == 25
    paid_by = ledger.explain("again", account="acme")["paid_by"]
    assert all("category" in line for line in paid_by)  # type: ignore[attr-defined]
    assert ledger.void("acme", "~r#1").units == 10
    assert ledger.void("acme", "~r#1").replayed
    ledger.consume("acme", units=15)
    assert ledger.void("acme", "r").units == 0
    assert ledger.verify().ok


def test_a_refund_queued_with_its_settle_counts_against_the_hold(ledger: tillroll.Ledger):
    ledger.grant("acme", 10, request_id="g")
    ledger.hold("acme", units=10, request_id="h")
    ledger.settle("acme", "h", units=4, final=False)
    verbs = ledger._verbs
    batch = [
        verbs.settle("acme", "h", units=6, request_id="s"),
        verbs.refund("acme", "s", units=6, request_id="r"),
        verbs.refund("acme", "h", units=5, request_id="r2"),
    ]
    kinds = [getattr(a.outcome, "kind", "refused") for a in ledger._engine.execute(batch)]
    assert kinds == ["settle", "refund", "refused"]
    assert ledger.refund("acme", "h").units == 4
    assert ledger.balance("acme").available == 10


def test_a_recurring_grant_moved_to_another_wallet_leaves_the_old_one_alone():
    now = NOW
    ledger = tillroll.open("memory://", clock=lambda: now)
    ledger.set_recurring("acme", "p", 10, anchor="2026-01-01", rollover_max=5)
    ledger.set_recurring("acme", "p", 10, anchor="2026-01-01", rollover_max=5, wallet="gpu")
    now = datetime(2026, 2, 1, tzinfo=UTC)
    assert ledger.balance("acme").available == 0
    assert ledger.balance("acme", "gpu").available == 10


def test_a_first_recurring_grant_is_no_renewal(ledger: tillroll.Ledger):
    ledger.set_recurring("acme", "p", 10, anchor="2025-01-01", rollover_min=5, rollover_max=5)
    assert ledger.balance("acme").available == 10
