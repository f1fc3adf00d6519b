"""Access: allowed or not, why, what is tightest, when it ends, what would help."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

import tillroll
from tillroll.ledger.pricing import Price
from tillroll.ledger.products import (
    Allowance,
    FeatureTerms,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PRODUCTS = Products(
    packs={"starter": Pack(Decimal(500))},
    plans={
        "pro": Plan(
            grants=(Allowance(Decimal(100)),), features={"hd": True, "seats": 5, "model": "large"}
        ),
        "lite": Plan(features={"seats": 0}),
    },
    passes={"day": Pass(DAY, {"hd": True})},
    features={
        "hd": FeatureTerms(),
        "seats": FeatureTerms("limit", 1),
        "model": FeatureTerms("config"),
        "beta": FeatureTerms(),
    },
)


class Bench:
    """A ledger with prices, products and a clock."""

    def __init__(self) -> None:
        self.now = NOON
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)
        prices = [Price("image.generate", per_request=Decimal(20))]
        self.ledger.apply_prices(prices, author="ann", reason="first", products=PRODUCTS)

    def ask(self, *args: Any, **kwargs: Any) -> tillroll.Access:
        before = self.ledger.verify().entries
        said = self.ledger.access("acme", *args, **kwargs)
        assert self.ledger.verify().entries == before
        assert said.to_dict()["reason"] == said.reason
        return said


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---------------------------------------------------------------- whether there is anything


def test_nothing_is_left(bench: Bench):
    said = bench.ask()
    assert (said.allowed, said.reason, said.seq) == (False, "nothing_left", 0)
    products = [(way["kind"], way["product"]) for way in said.ways_out]
    assert products == [("plan", "pro"), ("plan", "lite"), ("pass", "day"), ("pack", "starter")]
    with tillroll.open("memory://") as empty:
        assert empty.access("acme").ways_out == ({"kind": "top_up", "text": "grant units"},)


def test_anything_active_or_spendable_is_access(bench: Bench):
    bench.ledger.grant("acme", 5, expires_in="2d", request_id="g")
    bench.ledger.grant("acme", 5, effective_at=NOON + timedelta(days=5), request_id="later")
    assert bench.ask().ends_at == "2026-02-02T12:00:00Z"
    bench.ledger.buy("acme", "day", quantity=3)
    assert (bench.ask().ends_at, bench.ask().by) == ("2026-02-03T12:00:00Z", ("day",))
    bench.ledger.set_overdraft("acme", 5)
    assert bench.ask().ends_at is None
    bench.ledger.freeze("acme")
    assert (bench.ask().allowed, bench.ask().reason) == (False, "account_frozen")
    assert bench.ask().ways_out[0]["kind"] == "unfreeze"


def test_a_paused_entitlement_is_none(bench: Bench):
    bench.ledger.entitle("acme", "beta", status="paused")
    assert bench.ask().reason == "nothing_left"


# ---------------------------------------------------------------- features


def test_a_feature_has_its_value_and_its_end(bench: Bench):
    assert bench.ask(feature="seats").value == 1
    bench.ledger.subscribe("acme", "pro", ends_at=NOON + timedelta(days=9))
    assert (bench.ask(feature="seats").value, bench.ask(feature="seats").ends_at) == (5, None)
    said = bench.ask(feature="hd")
    assert (said.allowed, said.value, said.by) == (True, True, ("subscription",))
    assert (said.ends_at, said.tightest) == ("2026-02-09T12:00:00Z", "feature hd")
    assert bench.ask(feature="model").value == "large"
    bench.ledger.subscribe("acme", "pro", ends_at="never")
    bench.ledger.subscribe("acme", "lite", when="period_end")
    assert bench.ask(feature="hd").ends_at == "2026-02-28T12:00:00Z"
    bench.ledger.buy("acme", "day", quantity=60)
    assert bench.ask(feature="hd").ends_at == "2026-04-01T12:00:00Z"


def test_a_feature_that_another_plan_brings_too_goes_on(bench: Bench):
    bench.ledger.subscribe("acme", "pro")
    bench.ledger.entitle(
        "acme", "subscription", kind="subscription", features={"hd": True}, product="deal"
    )
    bench.ledger.subscribe("acme", "pro", when="period_end")
    assert bench.ask(feature="hd").ends_at is None


def test_what_stands_in_the_way_of_a_feature(bench: Bench):
    said = bench.ask(feature="hd")
    assert (said.allowed, said.reason, said.value) == (False, "not_entitled", None)
    assert [way["product"] for way in said.ways_out] == ["pro", "day"]
    bench.ledger.subscribe("acme", "pro", status="paused")
    assert bench.ask(feature="hd").ways_out[0] == {
        "kind": "resume",
        "text": "the entitlement 'subscription' is paused; resuming it would help",
        "entitlement": "subscription",
    }
    bench.ledger.entitle("acme", "off", features={"hd": False})
    said = bench.ask(feature="hd")
    assert (said.allowed, said.value, said.by) == (False, False, ())
    bench.ledger.entitle("acme", "on", features={"hd": True}, lasts="1d")
    assert bench.ask(feature="hd").by == ("on",)
    assert bench.ask(feature="hd").ends_at == "2026-02-01T12:00:00Z"


def test_a_feature_nobody_sells_may_be_given(bench: Bench):
    assert bench.ask(feature="beta").ways_out == ()
    bench.ledger.entitle("acme", "beta")
    assert bench.ask(feature="beta").allowed
    taken = bench.ledger.grant("acme", 1) and bench.ledger.consume("acme", units=1, feature="beta")
    assert taken.to_dict()["feature"] == "beta"


# ---------------------------------------------------------------- work


def test_work_is_answered_as_a_consume_would_be(bench: Bench):
    said = bench.ask("image.generate")
    assert (said.allowed, said.reason, said.needed, said.available) == (
        *(False, "insufficient_units", "20", "0"),
    )
    bench.ledger.grant("acme", 30, expires_in="1d", request_id="a")
    bench.ledger.grant("acme", 15, expires_in="3d", request_id="b")
    bench.ledger.grant("acme", 9, applies_to=["text.*"], request_id="c")
    said = bench.ask("image.generate")
    assert (said.needed, said.available, said.tightest, said.left) == ("20", "45", "credits", "45")
    assert said.ends_at == "2026-02-01T12:00:00Z", "15 are not enough"
    assert bench.ask(units=15).ends_at == "2026-02-03T12:00:00Z"
    bench.ledger.grant("acme", 20, request_id="d")
    assert bench.ask("image.generate").ends_at is None
    assert bench.ask("video").reason == "unpriced"
    bench.ledger.set_budget("acme", "daily", 25, period="day")
    said = bench.ask("image.generate")
    assert (said.tightest, said.left) == ("budget daily", "25")
    bench.ledger.set_budget("acme", "daily", 5, period="day")
    said = bench.ask("image.generate")
    assert (said.reason, said.tightest, said.left) == ("budget_exceeded", "budget daily", "5")
    bench.ledger.set_budget("acme", "daily", 500, period="day")
    assert bench.ask("image.generate").tightest == "credits"


def test_work_with_a_feature_ends_with_whatever_ends_first(bench: Bench):
    bench.ledger.grant("acme", 50, expires_in="3d")
    bench.ledger.buy("acme", "day")
    said = bench.ask("image.generate", feature="hd")
    assert (said.allowed, said.ends_at, said.by) == (True, "2026-02-01T12:00:00Z", ("day",))
    assert bench.ask("image.generate", feature="4k").reason == "not_entitled"


def test_what_may_be_owed_does_not_run_dry(bench: Bench):
    bench.ledger.grant("acme", 10, expires_in="1d")
    bench.ledger.set_overdraft("acme", 20)
    assert bench.ask("image.generate").ends_at is None
    assert bench.ask(units=25).ends_at == "2026-02-01T12:00:00Z"


def test_units_that_come_back_do_not_run_dry(bench: Bench):
    bench.ledger.subscribe("acme", "pro")
    assert bench.ask("image.generate").ends_at is None
    bench.ledger.change_entitlement("acme", "subscription", ends_at=NOON + timedelta(days=9))
    assert bench.ask("image.generate").ends_at == "2026-02-28T12:00:00Z"
    (held,) = bench.ledger.entitlements("acme")
    assert held["grants"] == [
        {
            "name": "credits",
            "units": "100",
            "wallet": "credits",
            "available": "100",
            "renews_at": None,
        }
    ]
    bench.ledger.consume("acme", units=100)
    (held,) = bench.ledger.entitlements("acme")
    assert held["grants"][0]["available"] == "0"  # type: ignore[index]  # a list of mappings


# ---------------------------------------------------------------- the past, and what is malformed


def test_the_past_is_answered_with_its_own_catalog(bench: Bench):
    bench.now += timedelta(days=1)
    bench.ledger.apply_prices([], author="ann", reason="nothing", products=Products())
    bench.now += timedelta(days=1)
    assert not bench.ask(feature="seats").allowed
    assert bench.ask(feature="seats", at=NOON).allowed
    assert not bench.ask(feature="seats", at=NOON - timedelta(days=1)).allowed
    assert bench.ask("image.generate").reason == "unpriced"
    assert bench.ask("image.generate", at=NOON).reason == "insufficient_units"


def test_a_question_needs_what_it_asks_about(bench: Bench):
    for how in ({"model": "m"}, {"wallet": "gpu"}, {"tags": {"a": "b"}}, {"meters": {"n": 1}}):
        with pytest.raises(tillroll.InvalidInput, match="these belong to"):
            bench.ask(**how)
    with pytest.raises(tillroll.InvalidInput, match="feature must"):
        bench.ask(feature="")
    assert not bench.ledger.access("a name\nthat none can have").allowed


def test_usage_packs_are_listed_with_what_is_left(bench: Bench):
    bench.ledger.buy("acme", "starter", source="pay_1", request_id="order")
    bench.ledger.grant("acme", 5)
    bench.ledger.hold("acme", units=60)
    assert bench.ledger.entitlements("acme") == [
        {
            "name": "order",
            "kind": "usage_pack",
            "status": "active",
            "product": "starter",
            "version": 1,
            "wallet": "credits",
            "units": "500",
            "available": "445",
            "held": "55",
            "starts_at": "2026-01-31T12:00:00Z",
            "ends_at": None,
            "source": "pay_1",
        }
    ]
