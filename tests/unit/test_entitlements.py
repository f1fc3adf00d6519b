"""Entitlements: moving between plans, trials, what is paid, what the clock brings, stories."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

import tillroll
from tillroll.ledger import entitle
from tillroll.ledger.entitlements import of_entry
from tillroll.ledger.products import (
    UNLIMITED,
    Allowance,
    Coupon,
    FeatureTerms,
    Money,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY, Entry

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PRODUCTS = Products(
    packs={
        "starter": Pack(Decimal(500), Money(Decimal("9.99"), "USD"), expires=30 * DAY),
        "huge": Pack(Decimal(10**9)),
    },
    plans={
        "free": Plan(features={"seats": 1}),
        "pro": Plan(
            grants=(Allowance(Decimal(100), rollover_max=Decimal(10)),),
            features={"hd": True, "seats": 5},
            trial=7 * DAY,
        ),
        "team": Plan(
            grants=(Allowance(Decimal(20), every="week"),),
            features={"hd": True, "seats": UNLIMITED, "model": "large"},
            every="week",
        ),
        "off": Plan(features={"hd": False, "seats": 0}),
    },
    passes={"day": Pass(DAY, {"hd": True}), "subscription": Pass(DAY)},
    features={
        "hd": FeatureTerms(),
        "seats": FeatureTerms("limit"),
        "model": FeatureTerms("config", "small"),
        "beta": FeatureTerms(),
    },
    coupons={"welcome": Coupon(Decimal(5)), "thrice": Coupon(Decimal(1), most=3)},
)


class Bench:
    """A ledger with a catalog, one account and a clock."""

    def __init__(self) -> None:
        self.now = NOON
        self.ledger = tillroll.open("memory://", clock=lambda: self.now)
        self.ledger.apply_prices([], author="ann", reason="first", products=PRODUCTS)

    def do(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.ledger, verb)("acme", *args, **kwargs)

    def only(self) -> dict[str, Any]:
        """Return the one entitlement that there is."""
        (found,) = [one for one in self.do("entitlements") if one["kind"] != "usage_pack"]
        return found

    def kinds(self) -> list[str]:
        self.ledger.book_due()
        assert self.ledger.verify().ok
        return [one.kind for one in self.ledger.history("acme")]

    @property
    def available(self) -> Decimal:
        return self.do("balance").available


@pytest.fixture
def bench() -> Bench:
    return Bench()


def check_invalid(bench: Bench, match: str, verb: str, *args: Any, **kwargs: Any) -> None:
    before = len(bench.ledger.history("acme"))
    with pytest.raises(tillroll.InvalidInput, match=match):
        bench.do(verb, *args, **kwargs)
    assert len(bench.ledger.history("acme")) == before


# ---------------------------------------------------------------- trials


def test_a_trial_ends_by_the_clock_and_is_active_then(bench: Bench):
    made = bench.do("subscribe", "pro")
    assert (made.product, made.entitlement["status"]) == ("pro", "trialing")
    assert bench.only()["status"] == "trialing"
    assert bench.only()["trial_ends_at"] == "2026-02-07T12:00:00Z"
    bench.now += timedelta(days=7)
    assert bench.only()["status"] == "active"
    assert bench.only()["trial_ends_at"] is None
    assert bench.kinds() == ["entitlement", "grant_renewed", "entitlement"]
    assert bench.ledger.history("acme")[-1].entry.reason == "the trial is over"


@pytest.mark.parametrize(
    ("how", "status", "ends"),
    [
        ({"trial": False}, "active", None),
        ({"status": "active"}, "active", None),
        ({"trial_ends_at": NOON + timedelta(days=1)}, "trialing", "2026-02-01T12:00:00Z"),
        ({"started_at": NOON - timedelta(days=3)}, "trialing", "2026-02-04T12:00:00Z"),
    ],
)
def test_a_trial_is_as_asked_for(bench: Bench, how: dict[str, Any], status: str, ends: str | None):
    bench.do("subscribe", "pro", **how)
    assert (bench.only()["status"], bench.only()["trial_ends_at"]) == (status, ends)


def test_a_trial_that_ends_all(bench: Bench):
    bench.do("subscribe", "pro", ends_at=NOON + timedelta(days=7))
    bench.now += timedelta(days=7)
    assert bench.do("entitlements") == []
    assert bench.kinds()[-1] == "entitlement_ended"


def test_a_plan_change_waits_through_a_trial(bench: Bench):
    bench.do("subscribe", "pro")
    bench.do("subscribe", "free", when="period_end")
    bench.now += timedelta(days=8)
    assert (bench.only()["product"], bench.only()["status"]) == ("pro", "active")
    assert bench.only()["next"] == {"product": "free", "version": 1, "at": "2026-02-28T12:00:00Z"}
    bench.now += timedelta(days=30)
    assert (bench.only()["product"], bench.only()["status"]) == ("free", "active")
    assert bench.only()["grants"] == []
    bench.now += timedelta(days=60)
    assert bench.kinds().count("grant_renewed") == 1
    assert bench.available == 0


def test_other_grants_that_come_back_are_left_alone(bench: Bench):
    bench.do("set_recurring", "bonus", 3, anchor="2026-01-31", every="day", count=9)
    bench.do("subscribe", "pro")
    bench.now += timedelta(days=8)
    assert bench.only()["status"] == "active"
    bench.now += timedelta(days=30)
    assert bench.available == 113


# ---------------------------------------------------------------- moving


def test_a_version_move_keeps_the_period(bench: Bench):
    bench.do("subscribe", "pro", trial=False)
    plans = {**PRODUCTS.plans, "pro": Plan(grants=(Allowance(Decimal(30)),), features={"hd": True})}
    products = changed(PRODUCTS, plans=plans)
    bench.ledger.apply_prices([], author="ann", reason="less", products=products)
    bench.now += timedelta(days=5)
    bench.do("subscribe", "pro")
    assert (bench.only()["version"], bench.only()["features"]) == (2, {"hd": True})
    assert bench.available == 100
    assert bench.only()["period_ends_at"] == "2026-02-28T12:00:00Z"
    bench.now += timedelta(days=30)
    assert bench.available == 30


def test_the_version_can_be_chosen(bench: Bench):
    plans = {**PRODUCTS.plans, "pro": Plan()}
    products = changed(PRODUCTS, plans=plans)
    bench.ledger.apply_prices([], author="ann", reason="nothing", products=products)
    bench.do("subscribe", "pro", version=1)
    assert (bench.only()["version"], bench.available) == (1, 100)
    check_invalid(bench, "price version 9 is not known", "subscribe", "pro", version=9)


def test_another_cadence_counts_from_when_it_begins(bench: Bench):
    bench.do("subscribe", "pro", trial=False)
    bench.do("subscribe", "team", when="period_end")
    bench.now = datetime(2026, 3, 7, 12, 0, tzinfo=UTC)
    assert bench.only()["period_ends_at"] == "2026-03-14T12:00:00Z"
    assert bench.available == 20
    bench.ledger.book_due()
    starts = [one.effective_at.date().isoformat() for one in bench.ledger.history("acme")]
    assert starts == [
        "2026-01-31",
        "2026-01-31",
        "2026-01-31",
        "2026-02-28",
        "2026-02-28",
        "2026-03-07",
    ]


def test_a_late_look_and_an_early_one_book_the_same(bench: Bench):
    other = Bench()
    for one in (bench, other):
        one.do("subscribe", "pro", request_id="a")
        one.do("subscribe", "team", when="period_end", request_id="b")
    for _ in range(60):
        other.now += timedelta(days=1)
        other.ledger.book_due()
    bench.now = other.now
    bench.ledger.book_due()
    told = [
        [(r.kind, r.units, r.effective_at, r.entry.entitlement) for r in one.ledger.history("acme")]
        for one in (bench, other)
    ]
    assert told[0] == told[1]


def test_what_ends_sooner_cannot_move_later(bench: Bench):
    bench.do("subscribe", "pro", trial=False, ends_at=NOON + timedelta(days=9))
    check_invalid(bench, "take its end back first", "subscribe", "free", when="period_end")
    bench.do("subscribe", "free", when="period_end", ends_at="never")
    assert bench.only()["ends_at"] is None


def test_an_ended_plan_drops_what_was_to_come(bench: Bench):
    bench.do("subscribe", "pro", trial=False)
    bench.do("subscribe", "free", when="period_end")
    bench.do("end_entitlement", "subscription", when="period_end")
    assert (bench.only()["next"], bench.only()["ends_at"]) == (None, "2026-02-28T12:00:00Z")
    bench.do("end_entitlement", "subscription", when="period_end")
    bench.do("change_entitlement", "subscription", ends_at=NOON + timedelta(days=2))
    bench.do("end_entitlement", "subscription", when="period_end")
    assert bench.only()["ends_at"] == "2026-02-02T12:00:00Z"


def test_the_source_and_the_trial_stay_unless_given(bench: Bench):
    bench.do("subscribe", "pro", source="sub_1")
    bench.do("subscribe", "pro", trial_ends_at=NOON + timedelta(days=20))
    assert (bench.only()["source"], bench.only()["trial_ends_at"]) == (
        *("sub_1", "2026-02-20T12:00:00Z"),
    )
    bench.do("subscribe", "pro", source="sub_2", status="active")
    assert (bench.only()["source"], bench.only()["trial_ends_at"]) == ("sub_2", None)


def test_a_trial_is_given_once(bench: Bench):
    bench.do("subscribe", "pro")
    assert bench.only()["status"] == "trialing"
    bench.do("end_entitlement", "subscription")
    bench.do("subscribe", "pro")
    assert (bench.only()["status"], bench.only()["trial_ends_at"]) == ("active", None)
    bench.do("end_entitlement", "subscription")
    bench.do("subscribe", "pro", trial_ends_at="2026-02-20T12:00:00Z")
    assert bench.only()["status"] == "trialing", "whoever asks for one by name may give another"
    bench.do("end_entitlement", "subscription")
    again = replace(PRODUCTS.plans["pro"], trial_again=True)
    products = replace(PRODUCTS, plans={"pro": again})
    bench.ledger.apply_prices((), author="ann", reason="try it again", products=products)
    bench.do("subscribe", "pro")
    assert bench.only()["status"] == "trialing"
    assert bench.ledger.verify().ok


# ---------------------------------------------------------------- what is paid


def test_paid_until_holds_renewals_back(bench: Bench):
    bench.do("subscribe", "pro", trial=False, paid_until=datetime(2026, 2, 28, 12, tzinfo=UTC))
    bench.now = datetime(2026, 3, 1, tzinfo=UTC)
    assert (bench.available, bench.only()["grants"][0]["renews_at"]) == (0, None)
    bench.do("change_entitlement", "subscription", paid_until=datetime(2026, 3, 31, 12, tzinfo=UTC))
    assert bench.available == 110, "what was left when the period ended is carried over"


def test_a_renewal_follows_a_late_payment(bench: Bench):
    bench.do("subscribe", "pro", trial=False, paid_until=datetime(2026, 2, 28, 12, tzinfo=UTC))
    bench.now = datetime(2026, 4, 10, tzinfo=UTC)
    bench.do("change_entitlement", "subscription", paid_until="never")
    granted = [r for r in bench.ledger.history("acme") if r.kind == "grant_renewed"]
    assert [r.effective_at.date().isoformat() for r in granted] == ["2026-01-31", "2026-03-31"]


def test_a_subscription_that_began_before_has_its_period_at_hand(bench: Bench):
    bench.do("subscribe", "pro", trial=False, started_at=datetime(2025, 11, 15, tzinfo=UTC))
    assert bench.only()["period_ends_at"] == "2026-02-15T00:00:00Z"
    assert bench.available == 100
    bench.now = datetime(2026, 2, 15, tzinfo=UTC)
    assert bench.available == 110


def test_periods_follow_the_accounts_zone(bench: Bench):
    bench.do("configure", time_zone="America/New_York")
    bench.do("subscribe", "pro", trial=False)
    bench.now = datetime(2026, 3, 31, 10, 59, tzinfo=UTC)
    assert bench.only()["period_ends_at"] == "2026-03-31T11:00:00Z", "7:00 in summer"


# ---------------------------------------------------------------- passes, packs, coupons


def test_a_pass_takes_no_other_entitlements_place(bench: Bench):
    bench.do("subscribe", "pro")
    check_invalid(bench, "no time pass", "buy", "subscription")
    bench.do("buy", "day", quantity=3)
    ends = [one["ends_at"] for one in bench.do("entitlements") if one["kind"] == "time_pass"]
    assert ends == ["2026-02-03T12:00:00Z"]


def test_a_pass_ends_within_the_calendar(bench: Bench):
    for _ in range(2):
        bench.do("buy", "day", quantity=1_000_000)
    check_invalid(bench, "beyond the year 9999", "buy", "day", quantity=1_000_000)


def test_a_pass_without_an_end_is_not_shortened(bench: Bench):
    bench.do("entitle", "day", kind="time_pass", features={"hd": True})
    bench.do("buy", "day")
    assert bench.only()["ends_at"] is None
    bench.do("entitle", "day", kind="time_pass", features={"hd": True}, lasts="2d")
    assert bench.only()["ends_at"] is None


def test_a_packs_cost_is_worked_out_from_its_price(bench: Bench):
    first = bench.do("buy", "starter", request_id="p1")
    second = bench.do("buy", "starter", cost_basis="0.015", request_id="p2")
    third = bench.do("buy", "huge", request_id="p3")
    assert [one.entry.opens[0].cost_basis for one in (first, second, third)] == (
        ["0.01998", "0.015", None]
    )
    assert first.expires_at == NOON + timedelta(days=30)
    assert (first.product, first.to_dict()["catalog_version"]) == ("starter", 1)
    check_invalid(bench, "2\\^53 of the smallest unit", "buy", "huge", quantity=10)


def test_what_is_not_sold_cannot_be_had(bench: Bench):
    check_invalid(bench, "no pack or pass 'none'; it has starter, huge, day", "buy", "none")
    check_invalid(bench, "no plan 'none'; it has free, pro", "subscribe", "none")
    check_invalid(bench, "no coupon 'none'", "redeem", "none")
    empty = tillroll.open("memory://")
    with pytest.raises(tillroll.InvalidInput, match="no catalog yet"):
        empty.buy("acme", "starter")
    empty.apply_prices([], author="ann", reason="nothing")
    for verb in ("buy", "subscribe"):
        with pytest.raises(tillroll.InvalidInput, match="it has none"):
            getattr(empty, verb)("acme", "starter")


def test_a_coupon_is_redeemed_as_often_as_it_may_be(bench: Bench):
    for nth in range(3):
        bench.do("redeem", "thrice", request_id=f"r{nth}")
    with pytest.raises(tillroll.CouponUsed, match="3 times before") as caught:
        bench.do("redeem", "thrice")
    assert caught.value.details == {"coupon": "thrice", "times": "3", "most": "3"}
    bench.do("redeem", "welcome")
    with pytest.raises(tillroll.CouponUsed, match="once before"):
        bench.do("redeem", "welcome")


def test_what_was_bought_is_told_in_its_story(bench: Bench):
    bench.do("buy", "starter", request_id="b")
    bench.do("redeem", "welcome", request_id="r")
    bench.do("entitle", "hd")
    bench.do("consume", "image", units=3, feature="hd", request_id="c")
    told = {name: bench.ledger.explain(name) for name in ("b", "r", "c")}
    assert told["b"]["sentences"] == (
        ["2026-01-31T12:00:00Z: 500 credits were granted for 'starter' (version 1 of the catalog)."]
    )
    assert "5 credits were granted for 'welcome'" in told["r"]["sentences"][0]
    assert "3 credits were charged for image, which needs 'hd'." in told["c"]["sentences"][0]


def test_what_is_held_is_counted_by_product_and_version(bench: Bench):
    bench.do("buy", "starter")
    bench.do("buy", "starter")
    bench.do("redeem", "welcome")
    bench.do("subscribe", "pro")
    bench.do("entitle", "own", kind="subscription", product="pro")
    bench.ledger.buy("zoe", "day")
    bench.ledger.subscribe("zoe", "pro")
    held = [(one.section, one.name, one.version, one.accounts) for one in bench.ledger.holdings()]
    assert held == [
        ("coupon", "welcome", 1, 1),
        ("pack", "starter", 1, 1),
        ("pass", "day", 1, 1),
        ("plan", "pro", 1, 2),
    ]


# ---------------------------------------------------------------- terms of one's own


def test_an_entitlement_of_ones_own(bench: Bench):
    grants = [{"units": "2.5", "every": "week"}, {"units": 1, "name": "gpu", "wallet": "gpu"}]
    brings = {"seats": 3, "model": "large"}
    bench.do("entitle", "deal", kind="subscription", features=brings, grants=grants)
    assert bench.only()["features"] == {"model": "large", "seats": 3}
    assert (bench.available, bench.do("balance", "gpu").available) == (Decimal("2.5"), 1)
    bench.do("entitle", "deal", kind="subscription", grants=grants[:1], features={"seats": 4})
    bench.now += timedelta(days=40)
    assert (bench.available, bench.do("balance", "gpu").available) == (Decimal("2.5"), 0)
    assert bench.only()["features"] == {"seats": 4}


def test_what_lasts_is_prolonged(bench: Bench):
    bench.do("entitle", "beta", lasts="1d")
    bench.do("entitle", "beta", lasts="1d")
    assert bench.only()["ends_at"] == "2026-02-02T12:00:00Z"
    bench.do("entitle", "tried", features={"hd": True}, trial_ends_at=NOON + timedelta(days=1))
    assert {one["name"]: one["status"] for one in bench.do("entitlements")} == (
        {"beta": "active", "tried": "trialing"}
    )


def test_a_grant_of_ones_own_is_not_taken_over(bench: Bench):
    bench.do("set_recurring", "subscription/credits", 5, anchor="2026-01-01")
    check_invalid(bench, "of its own", "subscribe", "pro")
    bench.do("stop_recurring", "subscription/credits")
    bench.do("subscribe", "pro")
    check_invalid(bench, "a grant of the entitlement", "stop_recurring", "subscription/credits")
    check_invalid(
        bench, "a grant of the entitlement", "set_recurring", "subscription/credits", 5,
        anchor="2026-01-01",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("match", "verb", "args"),
    [
        ("began before", "subscribe", {"plan": "pro", "started_at": NOON + timedelta(days=1)}),
        ("over before it begins", "subscribe", {"plan": "pro", "ends_at": NOON}),
        ("ends_at or lasts", "entitle", {"name": "x", "lasts": "1d", "ends_at": NOON}),
        ("must be a list", "entitle", {"name": "x", "grants": "many"}),
        ("at the most", "entitle", {"name": "x", "grants": [{"units": 1}] * 21}),
        ("must be a mapping such as", "entitle", {"name": "x", "grants": [7]}),
        ("a grant has units", "entitle", {"name": "x", "grants": [{}]}),
        ("a grant has units", "entitle", {"name": "x", "grants": [{"units": 1, "unit": 2}]}),
        ("must not exceed", "entitle", {"name": "x", "grants": [{"units": 1, "rollover_min": 2}]}),
        ("the same name", "entitle", {"name": "x", "grants": [{"units": 1}, {"units": 2}]}),
        ("features must be", "entitle", {"name": "x", "features": [1]}),
        ("a whole number or a text", "entitle", {"name": "x", "features": {"a": 1.5}}),
        ("give status", "change_entitlement", {"name": "x"}),
        ("must be 1 to 64", "subscribe", {"plan": "A plan"}),
    ],
)
def test_what_makes_no_sense_is_not_written(
    bench: Bench, match: str, verb: str, args: dict[str, Any]
):
    check_invalid(bench, match, verb, **args)


def test_features_are_those_of_the_catalog(bench: Bench):
    for features, said in (
        ({"hdd": True}, r"no feature 'hdd'; it has beta, hd, model, seats. Add \[feature.hdd\]"),
        ({"hd": 5}, "features.hd must be true or false: the catalog has it as 'boolean'"),
        ({"seats": True}, 'features.seats must be a whole number, 0 or more, or "unlimited"'),
        ({"seats": "many"}, "features.seats must be a whole number"),
        ({"model": True}, "features.model must be a text"),
    ):
        with pytest.raises(tillroll.InvalidInput, match=said):
            bench.ledger.entitle("acme", "deal", features=features, request_id="same")
    with pytest.raises(tillroll.InvalidInput, match="no feature 'bta'"):
        bench.ledger.entitle("acme", "bta", request_id="same")
    good = {"hd": True, "seats": "unlimited", "model": "large"}
    bench.ledger.entitle("acme", "deal", features=good, request_id="same")
    bench.ledger.entitle("acme", "gold", kind="time_pass", lasts="1d")  # its name says enough
    # What a later version drops is still given to whom it was sold.
    fewer = Products(features={"seats": FeatureTerms("limit")})
    bench.ledger.apply_prices([], products=fewer, author="ann", reason="fewer")
    bench.ledger.entitle("acme", "deal", features=good)
    with pytest.raises(tillroll.InvalidInput, match="no feature 'hdd'"):
        bench.ledger.entitle("acme", "deal", features={"hdd": True})


def test_where_no_feature_is_declared_any_may_be_given():
    ledger = tillroll.open("memory://")
    assert ledger.entitle("acme", "anything", features={"x": 1, "y": "z"}).seq == 1
    ledger.apply_prices([], author="ann", reason="prices alone")
    assert ledger.entitle("acme", "anything", features={"x": True}).seq == 2


def test_grants_come_with_the_entitlements_own_period(bench: Bench):
    given = bench.ledger.entitle(
        "acme",
        "deal",
        kind="subscription",
        every="week",
        count=2,
        grants=[{"units": 5}, {"units": 1, "name": "daily", "every": "day"}],
    )
    grants = given.to_dict()["entitlement"]["grants"]
    assert [(one["every"], one["count"]) for one in grants] == [("week", 2), ("day", 1)]


def test_an_account_holds_so_many(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(entitle, "ENTITLEMENTS_MAX", 2)
    bench.do("entitle", "one", features={"hd": True})
    bench.do("entitle", "two", features={"hd": True})
    bench.do("entitle", "two", features={"seats": 1})
    check_invalid(bench, "2 entitlements at the most", "entitle", "three", features={"hd": True})
    check_invalid(bench, "2 entitlements at the most", "buy", "day")


def test_an_entry_of_another_kind_is_about_none():
    entry = Entry(seq=1, kind="freeze", at=0, effective_at=0)
    with pytest.raises(AssertionError, match="about no entitlement"):
        of_entry(entry)


# ---------------------------------------------------------------- closing, and stories


def test_a_closed_account_has_none(bench: Bench):
    bench.do("subscribe", "pro")
    bench.do("close_account")
    bench.now += timedelta(days=90)
    assert bench.do("entitlements") == []
    assert bench.kinds() == ["entitlement", "grant_renewed", "close", "grant_expired"]
    said = bench.do("access", feature="hd")
    assert (said.allowed, said.reason) == (False, "account_closed")


def test_the_story_of_an_entitlement(bench: Bench):
    bench.do("subscribe", "pro", request_id="s", reason="signed up")
    bench.do("subscribe", "free", when="period_end", request_id="down")
    bench.do("change_entitlement", "subscription", paid_until=NOON + timedelta(days=99))
    bench.do("end_entitlement", "subscription", when="period_end", request_id="end")
    bench.now += timedelta(days=60)
    by_any_of_its_ids = [
        bench.ledger.explain(name, account="acme")["sentences"]
        for name in ("s", "down", "end", "subscription")
    ]
    assert all(told == by_any_of_its_ids[0] for told in by_any_of_its_ids)
    on = "the subscription 'subscription' on 'pro' (version 1 of the catalog)"
    paid = "it is paid until 2026-05-10T12:00:00Z"
    trial = "its trial ends at 2026-02-07T12:00:00Z"
    move = "it moves to 'free' at 2026-02-28T12:00:00Z"
    ends = "it ends at 2026-02-28T12:00:00Z"
    assert by_any_of_its_ids[0] == [
        f"2026-01-31T12:00:00Z: {on} is trialing, {trial} (signed up).",
        f"2026-01-31T12:00:00Z: {on} is trialing, {trial}, {move}.",
        f"2026-01-31T12:00:00Z: {on} is trialing, {trial}, {paid}, {move}.",
        f"2026-01-31T12:00:00Z: {on} is trialing, {trial}, {paid}, {ends}.",
        f"2026-02-07T12:00:00Z: {on} is active, {paid}, {ends} (the trial is over).",
        f"2026-02-28T12:00:00Z: {on} ended (its time is over).",
    ]
    bench.do("entitle", "beta")
    told = bench.ledger.explain("beta", account="acme")["sentences"]
    assert told == ["2026-04-01T12:00:00Z: the feature 'beta' is active."]


def test_an_entitlement_ended_at_the_instant_it_was_to_move(bench: Bench):
    """What the clock had in hand is dropped where something before it changed the account."""
    bench.do("subscribe", "team", name="a", trial=False)
    bench.do("subscribe", "free", name="a", when="period_end")
    bench.now += timedelta(days=30)
    assert bench.only()["product"] == "free"
    assert bench.kinds().count("grant_renewed") == 1


def changed(products: Products, **fields: Any) -> Products:
    return Products(**{**{n: getattr(products, n) for n in products.__struct_fields__}, **fields})
