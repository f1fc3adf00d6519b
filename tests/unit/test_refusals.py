"""Every refusal, in the order of precedence: where two apply, the upper one is answered."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tillroll.ledger.errors import REFUSALS
from tillroll.ledger.pricing import Price, Rate
from tillroll.ledger.products import Coupon, Products

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Bench:
    """A ledger with one account, a clock, and a few things done before."""

    def __init__(self) -> None:
        self.now = NOW
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)
        self.ledger.grant("acme", 10, request_id="g")

    def hold(self, name: str = "h", units: int = 4, **how: Any) -> None:
        self.ledger.hold("acme", units=units, request_id=name, **how)

    def code(self, verb: str, *args: Any, **kwargs: Any) -> str:
        self.ledger.book_due()
        before = [r.to_dict() for r in self.ledger.entries("acme")]
        with pytest.raises(tillroll.Refused) as caught:
            getattr(self.ledger, verb)("acme", *args, **kwargs)
        assert [r.to_dict() for r in self.ledger.entries("acme")] == before
        assert self.ledger.verify().ok
        return caught.value.code


@pytest.fixture
def bench() -> Bench:
    return Bench()


def with_late_quote(b: Bench, act: Callable[[Bench], None], images: int = 1) -> str:
    """Return the refusal of a hold on a locked quote that ended, after something else was done."""
    price = Price(operation="image", rates={"images": Rate(units=Decimal(2))})
    b.ledger.apply_prices([price], author="ann", reason="first")
    token = b.ledger.quote("acme", "image", meters={"images": 1}, lock_for="1m").token
    b.now += timedelta(minutes=2)
    act(b)
    return b.code("hold", "image", meters={"images": images}, quote=token)


def nothing(_: Bench) -> None:
    """Leave the account as it is."""


def redeemed(b: Bench) -> None:
    products = Products(coupons={"welcome": Coupon(Decimal(1))})
    b.ledger.apply_prices([], author="ann", reason="first", products=products)
    b.ledger.redeem("acme", "welcome")


def frozen(b: Bench) -> None:
    b.ledger.freeze("acme")


def closed(b: Bench) -> None:
    b.ledger.close_account("acme")


def budget(b: Bench) -> None:
    b.ledger.set_budget("acme", "b", 3)


# The code that must be answered; what it outranks and applies too; how both come about.
PAIRS: list[tuple[str, str, Callable[[Bench], str]]] = [
    (
        "account_frozen",
        "not_entitled",
        lambda b: (frozen(b), b.code("consume", units=1, feature="hd"))[1],
    ),
    (
        "account_closed",
        "not_entitled",
        lambda b: (closed(b), b.code("hold", units=1, feature="hd"))[1],
    ),
    ("not_entitled", "unpriced", lambda b: b.code("consume", "unknown", feature="hd")),
    ("not_entitled", "insufficient_units", lambda b: b.code("hold", units=50, feature="hd")),
    (
        "not_entitled",
        "budget_exceeded",
        lambda b: (budget(b), b.code("consume", units=5, feature="hd"))[1],
    ),
    (
        "account_closed",
        "entitlement_not_found",
        lambda b: (closed(b), b.code("change_entitlement", "hd", status="paused"))[1],
    ),
    (
        "account_closed",
        "coupon_used",
        lambda b: (redeemed(b), closed(b), b.code("redeem", "welcome"))[2],
    ),
    ("account_frozen", "unpriced", lambda b: (frozen(b), b.code("consume", "unknown"))[1]),
    (
        "account_frozen",
        "budget_exceeded",
        lambda b: (budget(b), frozen(b), b.code("consume", units=5))[2],
    ),
    ("account_frozen", "insufficient_units", lambda b: (frozen(b), b.code("hold", units=50))[1]),
    (
        "account_frozen",
        "quote_expired",
        lambda b: with_late_quote(b, frozen, 1),
    ),
    ("account_closed", "unpriced", lambda b: (closed(b), b.code("consume", "unknown"))[1]),
    (
        "account_closed",
        "quote_expired",
        lambda b: with_late_quote(b, closed, 1),
    ),
    ("account_closed", "grant_not_found", lambda b: (closed(b), b.code("void", "nothing"))[1]),
    ("account_closed", "charge_not_found", lambda b: (closed(b), b.code("refund", "nothing"))[1]),
    (
        "account_closed",
        "refund_exceeds_charge",
        lambda b: (
            b.ledger.consume("acme", units=1, request_id="c"),
            closed(b),
            b.code("refund", "c", units=2),
        )[2],
    ),
    (
        "account_closed",
        "budget_exceeded",
        lambda b: (budget(b), closed(b), b.code("consume", units=5))[2],
    ),
    (
        "account_closed",
        "insufficient_units",
        lambda b: (closed(b), b.code("adjust", -50, reason="x"))[1],
    ),
    (
        "quote_expired",
        "budget_exceeded",
        lambda b: with_late_quote(b, budget, 4),
    ),
    (
        "quote_expired",
        "insufficient_units",
        lambda b: with_late_quote(b, nothing, 99),
    ),
    (
        "unpriced",
        "settle_exceeds_hold",
        lambda b: (
            b.hold(operation="x"),
            b.code("settle", "h", meters={"images": 9}, above="refuse"),
        )[1],
    ),
    (
        "hold_not_found",
        "settle_exceeds_hold",
        lambda b: b.code("settle", "nothing", units=99, above="refuse"),
    ),
    (
        "hold_finalized",
        "settle_exceeds_hold",
        lambda b: (
            b.hold(),
            b.ledger.release("acme", "h"),
            b.code("settle", "h", units=99, above="refuse"),
        )[2],
    ),
    (
        "hold_expired",
        "settle_exceeds_hold",
        lambda b: (
            b.hold(),
            setattr(b, "now", NOW + timedelta(hours=1)),
            b.code("settle", "h", units=99, above="refuse"),
        )[2],
    ),
    (
        "budget_exceeded",
        "insufficient_units",
        lambda b: (budget(b), b.code("consume", units=50))[1],
    ),
    (
        "budget_exceeded",
        "insufficient_units",
        lambda b: (budget(b), b.code("hold", units=50, floor=20))[1],
    ),
]


@pytest.mark.parametrize(("upper", "lower", "ask"), PAIRS, ids=[f"{a}>{b}" for a, b, _ in PAIRS])
def test_precedence(bench: Bench, upper: str, lower: str, ask: Callable[[Bench], str]):
    order = list(REFUSALS)
    assert order.index(upper) < order.index(lower)
    assert ask(bench) == upper


# Each refusal alone.
ALONE: dict[str, Callable[[Bench], str]] = {
    "account_frozen": lambda b: (frozen(b), b.code("consume", units=1))[1],
    "account_closed": lambda b: (closed(b), b.code("freeze"))[1],
    "not_entitled": lambda b: b.code("consume", units=1, feature="hd"),
    "unpriced": lambda b: b.code("consume", "unknown"),
    "quote_expired": lambda b: with_late_quote(b, nothing),
    "hold_not_found": lambda b: b.code("extend", "g", expires_in="1h"),
    "grant_not_found": lambda b: (b.hold(), b.code("void", "h"))[1],
    "charge_not_found": lambda b: b.code("refund", "g"),
    "entitlement_not_found": lambda b: b.code("end_entitlement", "hd"),
    "coupon_used": lambda b: (redeemed(b), b.code("redeem", "welcome"))[1],
    "hold_finalized": lambda b: (
        b.hold(),
        b.ledger.settle("acme", "h", units=1),
        b.code("mark_in_doubt", "h"),
    )[2],
    "hold_expired": lambda b: (
        b.hold(),
        setattr(b, "now", NOW + timedelta(hours=1)),
        b.code("mark_in_doubt", "h"),
    )[2],
    "settle_exceeds_hold": lambda b: (b.hold(), b.code("settle", "h", units=5, above="refuse"))[1],
    "refund_exceeds_charge": lambda b: (
        b.ledger.consume("acme", units=1, request_id="c"),
        b.code("refund", "c", units=2),
    )[1],
    "budget_exceeded": lambda b: (budget(b), b.code("consume", units=4))[1],
    "insufficient_units": lambda b: b.code("consume", units=11),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_each_refusal(bench: Bench, code: str):
    assert ALONE[code](bench) == code


@pytest.mark.parametrize("verb", ["settle", "release", "extend", "mark_in_doubt"])
def test_work_in_flight_ends_on_a_frozen_or_closed_account(bench: Bench, verb: str):
    how = {"expires_in": "1h"} if verb == "extend" else {}
    for name, stop in (("h1", frozen), ("h2", closed)):
        bench.ledger.unfreeze("acme")
        bench.hold(name, units=1)
        stop(bench)
        assert getattr(bench.ledger, verb)("acme", name, **how).ref == name


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("consume", {"units": 1}),
        ("hold", {"units": 1}),
        ("grant", {"units": 1}),
        ("void", {"grant_id": "g"}),
        ("adjust", {"units": 1, "reason": "x"}),
        ("refund", {"charge": "c"}),
        ("freeze", {}),
        ("unfreeze", {}),
        ("close_account", {}),
        ("set_overdraft", {"limit": 1}),
        ("set_budget", {"name": "b", "cap": 1}),
        ("remove_budget", {"name": "b"}),
        ("set_recurring", {"name": "p", "units": 1, "anchor": "2026-01-01"}),
        ("stop_recurring", {"name": "p"}),
        ("configure", {"time_zone": "UTC"}),
        ("buy", {"product": "starter"}),
        ("redeem", {"coupon": "welcome"}),
        ("subscribe", {"plan": "pro"}),
        ("entitle", {"name": "hd"}),
        ("change_entitlement", {"name": "hd", "status": "paused"}),
        ("end_entitlement", {"name": "hd"}),
    ],
)
def test_a_closed_account_refuses_everything_else(bench: Bench, verb: str, args: dict[str, Any]):
    closed(bench)
    assert bench.code(verb, **args) == "account_closed"


def test_a_refused_adjustment_counts_what_it_may_take(bench: Bench):
    bench.ledger.set_overdraft("acme", 100)
    with pytest.raises(tillroll.InsufficientUnits) as caught:
        bench.ledger.adjust("acme", -50, reason="x")
    assert (caught.value.needed, caught.value.available) == (50, 10)
    assert caught.value.ways_out[0]["units"] == "40"


def test_a_finished_hold_names_what_ended_it(bench: Bench):
    bench.hold()
    bench.ledger.settle("acme", "h", units=1, request_id="s")
    with pytest.raises(tillroll.HoldFinalized) as caught:
        bench.ledger.release("acme", "h")
    assert caught.value.details == {"state": "settled", "by_seq": "3", "by": "s"}


def test_a_refund_is_no_charge(bench: Bench):
    bench.ledger.consume("acme", units=4, request_id="c")
    bench.ledger.refund("acme", "c", units=3, request_id="r")
    assert bench.code("refund", "r") == "charge_not_found"
    with pytest.raises(tillroll.ChargeNotFound):
        bench.ledger.preview.refund("acme", "r")


def test_a_refused_id_is_no_hold(bench: Bench):
    with pytest.raises(tillroll.InsufficientUnits):
        bench.hold("no", units=99)
    assert bench.code("settle", "no") == "hold_not_found"


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{folder}/credits.db"])
def test_booking_what_is_due_lets_old_refusals_go(url: str, tmp_path: Path):
    now = NOW
    with tillroll.open(url.format(folder=tmp_path), clock=lambda: now) as ledger:
        for _ in range(2):
            for name in ("gone", "charged later"):
                with pytest.raises(tillroll.InsufficientUnits):
                    ledger.consume("acme", units=1, request_id=name)
        ledger.grant("acme", 5)
        assert not ledger.consume(
            "acme", units=1, request_id="charged later", retry_refused=True
        ).replayed
        ledger.book_due()
        assert ledger.explain("gone")["replays"] == 1
        now += timedelta(days=91)
        ledger.book_due(limit=1)
        ledger.book_due(limit=1)
        assert ledger.prune_refusals() == 0
        with pytest.raises(tillroll.NotFound):
            ledger.explain("gone")
        assert ledger.explain("charged later")["replays"] == 1
        assert not ledger.consume("acme", units=1, request_id="gone").replayed
        assert ledger.explain("gone")["replays"] == 0


def test_a_repeat_of_what_the_clock_settled_is_counted(tmp_path: Path):
    now = NOW
    with tillroll.open(tmp_path / "credits.db", clock=lambda: now) as ledger:
        ledger.grant("acme", 5)
        ledger.hold("acme", units=5, request_id="h")
        ledger.mark_in_doubt("acme", "h", deadline_in="1h", at_deadline="settle")
        now += timedelta(hours=1)
        assert ledger.settle("acme", "h").replayed
        assert ledger.explain("h")["replays"] == 1


def test_what_is_too_much_is_said_with_its_figures():
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 50, request_id="g")
        ledger.hold("acme", units="7.5", request_id="h")
        ledger.consume("acme", units=5, request_id="c")
        with pytest.raises(tillroll.SettleExceedsHold, match=r"9 to be settled, 7\.5 held"):
            ledger.settle("acme", "h", units=9, above="refuse")
        with pytest.raises(tillroll.RefundExceedsCharge, match="6 to be refunded, 5 left of the"):
            ledger.refund("acme", "c", units=6)
        ledger.refund("acme", "c")
        with pytest.raises(tillroll.RefundExceedsCharge, match="nothing is left of the charge"):
            ledger.refund("acme", "c")
