"""Alerts: what crosses tells once, what comes back recovers, and each kind measures its own."""

from datetime import timedelta
from decimal import Decimal

import pytest

import tillroll
from tests.unit.test_events import World
from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_in
from tillroll.ledger import alerts
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.products import AlertTerms as Written
from tillroll.ledger.products import Products
from tillroll.ledger.types import DAY, TOPUP, AlertTerms, Entry, Grant, Terms


def told(world: World):
    return [
        (one["type"], one["data"]["alert"], one["data"]["value"])
        for one in world.told()
        if one["type"].startswith("alert.")
    ]


def test_a_balance_is_told_when_it_falls_below():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.set_alert("acme", "low", "balance", "2.5")
    for units in ("7.5", "0.5", "1"):  # 2.5 is not below 2.5
        ledger.consume("acme", units=units)
    assert told(world) == [("alert.balance", "low", "2")]
    ledger.grant("acme", 1)  # 2 are free: still below
    assert len(told(world)) == 1
    ledger.grant("acme", 1)
    assert told(world)[1:] == [("alert.recovered", "low", "3")]


def test_held_units_are_not_free():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.set_alert("acme", "low", "balance", 5)
    ledger.hold("acme", units=6, request_id="h")
    ledger.release("acme", "h")
    assert told(world) == [("alert.balance", "low", "4"), ("alert.recovered", "low", "10")]


def test_a_share_of_what_is_granted_and_live():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 200)
    ledger.set_alert("acme", "fifth", "percent", 20)
    ledger.consume("acme", units=160)  # 40 of 200: 20 percent, not below
    ledger.consume("acme", units=1)
    ledger.consume("acme", units=39)  # nothing is live any more
    ledger.grant("acme", 10)
    assert told(world) == [("alert.percent", "fifth", "19"), ("alert.recovered", "fifth", "100")]


def test_one_step_from_all_to_nothing_crosses_everything():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.set_alert("acme", "a", "percent", 50)
    ledger.set_alert("acme", "b", "balance", 5)
    ledger.set_alert("acme", "c", "depleted")
    ledger.consume("acme", units=10)
    assert told(world) == [
        ("alert.percent", "a", "0"),
        ("alert.balance", "b", "0"),
        ("alert.depleted", "c", "0"),
    ]


def test_an_overdraft_does_not_hide_that_nothing_is_left():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.set_overdraft("acme", 5)
    ledger.set_alert("acme", "none", "depleted")
    ledger.consume("acme", units=12)
    ledger.consume("acme", units=1)
    ledger.grant("acme", 20)
    assert told(world) == [("alert.depleted", "none", "-2"), ("alert.recovered", "none", "17")]


def test_days_left_at_the_pace_of_the_last_week():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 100)
    ledger.set_alert("acme", "week", "days_left", 7)
    for _ in range(3):  # 10 a day: 90, 80, 70 left
        ledger.consume("acme", units=10)
        world.now += timedelta(days=1)
    assert told(world) == []
    ledger.consume("acme", units=10, request_id="c")  # 60 left at 10 a day: 6 days
    assert told(world) == [("alert.days_left", "week", "6")]
    ledger.refund("acme", "c")  # 70 left, 30 in 4 days: 9 days
    assert told(world)[1:] == [("alert.recovered", "week", "9")]


def test_days_left_forgets_what_is_long_past():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 1_000)
    ledger.set_alert("acme", "week", "days_left", 7)
    ledger.consume("acme", units=100)
    world.now += timedelta(days=30)
    ledger.consume("acme", units=1)
    assert told(world) == []
    with ledger.store.read() as reader:
        owner = account_id("default", "acme")
        alert = reader.accounts([(owner, "acme")])[owner].alerts["week"]
    assert list(alert.used.values()) == [1_000_000]


def test_budgets_at_80_90_and_100_percent():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 1_000)
    ledger.set_budget("acme", "daily", 10, period="day", match={"member": "*"})
    for percent in (80, 90, 100):
        ledger.set_alert("acme", f"at {percent}", "budget", percent, budget="daily")
    for member, units in (("ann", 7), ("bob", 8), ("ann", 1), ("ann", 2), ("bob", 1)):
        ledger.consume("acme", units=units, tags={"member": member})
    assert told(world) == [
        ("alert.budget", "at 80", "80"),  # bob
        ("alert.budget", "at 80", "80"),  # ann
        ("alert.budget", "at 90", "100"),
        ("alert.budget", "at 100", "100"),
        ("alert.budget", "at 90", "90"),  # bob
    ]
    nodes = [one["data"]["node"] for one in world.told()]
    assert nodes[0] == "member=3:bob"
    world.now += timedelta(days=1)
    ledger.consume("acme", units=8, tags={"member": "ann"})
    assert told(world)[5:] == [("alert.budget", "at 80", "80")], "a new window, a new crossing"


def test_an_alert_on_another_budget_says_nothing():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 100)
    ledger.set_budget("acme", "a", 10)
    ledger.set_budget("acme", "b", 100)
    ledger.set_alert("acme", "b only", "budget", 50, budget="b")
    ledger.consume("acme", units=9)
    assert told(world) == []


def test_an_alert_on_a_budget_that_is_not_there_is_refused():
    world = World("alert.*")
    ledger = world.ledger
    ledger.set_budget("acme", "daily", 10)
    with pytest.raises(InvalidInput, match="no budget 'dayly'; it has daily"):
        ledger.set_alert("acme", "typo", "budget", 50, budget="dayly", request_id="a")
    assert ledger.set_alert("acme", "typo", "budget", 50, budget="daily", request_id="a").seq == 2
    ledger.set_alert("zoe", "all", "budget", 50)  # of those to come
    with pytest.raises(InvalidInput, match="no budget 'daily'; it has none"):
        ledger.set_alert("zoe", "one", "budget", 50, budget="daily")


def test_grants_that_expire_in_30_7_and_1_days():
    world = World("alert.*", "grant.expired")
    ledger = world.ledger
    for days in (30, 7, 1):
        ledger.set_alert("acme", f"in {days}", "expiring", days)
    ledger.grant("acme", 10, request_id="g", expires_in="60d")
    ledger.grant("acme", 10, request_id="short", expires_in="5d")
    for _ in range(61):
        world.now += timedelta(days=1)
        while ledger.book_due():
            pass
    found = [(one["type"], one["data"]["grant_id"]) for one in world.told()]
    assert found == [
        *(("alert.expiring", "short"), ("grant.expired", "short")),
        *(("alert.expiring", "g"), ("alert.expiring", "g"), ("alert.expiring", "g")),
        ("grant.expired", "g"),
    ]
    assert [name for _, name, _ in told(world)] == ["in 1", "in 30", "in 7", "in 1"]


def test_what_is_used_up_does_not_expire():
    world = World("alert.*")
    ledger = world.ledger
    ledger.set_alert("acme", "soon", "expiring", 7)
    ledger.grant("acme", 10, expires_in="10d")
    ledger.consume("acme", units=10)
    world.now += timedelta(days=20)
    ledger.grant("acme", 1)
    assert told(world) == []


def test_who_asks_late_is_told_at_once():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10, expires_in="10d")
    world.now += timedelta(days=9)
    ledger.set_alert("acme", "soon", "expiring", 7)
    assert told(world) == [("alert.expiring", "soon", "1")]
    ledger.set_alert("acme", "low", "balance", 50)
    assert told(world)[1:] == [("alert.balance", "low", "10")]


def test_setting_an_alert_again_changes_it_and_removing_ends_it():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.set_alert("acme", "low", "balance", 5)
    ledger.set_alert("acme", "low", "balance", 3)
    ledger.consume("acme", units=6)
    assert told(world) == []
    ledger.remove_alert("acme", "low")
    ledger.consume("acme", units=3)
    ledger.remove_alert("acme", "nobody's")
    assert told(world) == []
    assert ledger.overview("acme")["alerts"] == []


def test_wallets_are_apart():
    world = World("alert.*")
    ledger = world.ledger
    ledger.grant("acme", 10)
    ledger.grant("acme", 10, wallet="gpu")
    ledger.set_alert("acme", "low", "balance", 5, wallet="gpu")
    ledger.consume("acme", units=9)
    assert told(world) == []
    ledger.consume("acme", units=9, wallet="gpu")
    assert told(world) == [("alert.balance", "low", "1")]


def test_the_state_is_the_fold_of_the_entries():
    world = World("alert.*")
    ledger = world.ledger
    ledger.set_alert("acme", "soon", "expiring", 7)
    ledger.set_alert("acme", "pace", "days_left", 7)
    ledger.grant("acme", 10, expires_in="10d")
    world.now += timedelta(days=4)
    ledger.consume("acme", units=4)
    assert ledger.verify().ok


@pytest.mark.parametrize(
    ("on", "threshold", "more"),
    [
        *(("balance", None, {}), ("balance", -1, {}), ("balance", 1.5, {}), ("depleted", 1, {})),
        *(("percent", 0, {}), ("percent", 101, {}), ("percent", "12.5", {}), ("budget", 101, {})),
        *(("days_left", 0, {}), ("days_left", 366, {}), ("expiring", 366, {}), ("hope", 1, {})),
        *(("balance", 1, {"budget": "b"}), ("balance", 1, {"wallet": "NO"})),
    ],
)
def test_what_is_no_alert(on, threshold, more):
    world = World()
    with pytest.raises(InvalidInput):
        world.ledger.set_alert("acme", "a", on, threshold, **more)


def test_there_are_only_so_many_alerts():
    world = World()
    for n in range(alerts.ALERTS_MAX):
        world.ledger.set_alert("acme", f"a{n}", "depleted")
    with pytest.raises(InvalidInput, match="at the most"):
        world.ledger.set_alert("acme", "more", "depleted")
    world.ledger.set_alert("acme", "a1", "balance", 5)
    world.ledger.remove_alert("acme", "a0")
    world.ledger.set_alert("acme", "more", "depleted")


def test_where_an_account_is_topped_up_is_none_of_its_alerts():
    world = World()
    ours = verbs_of(world.ledger._engine, "default", ours=True)
    for n in range(alerts.ALERTS_MAX):
        world.ledger.set_alert("acme", f"a{n}", "depleted")
    request = ours.set_alert("acme", "~topup/credits", TOPUP, 5, request_id="~topup/credits/1")
    [answer] = world.ledger._engine.perform(lambda tx: answer_in(tx, 6, [request], 0))
    assert isinstance(answer.outcome, Entry)
    [said] = world.ledger.explain("~topup/credits/1")["sentences"]
    assert "it was set where the account is topped up" in said
    world.ledger.remove_alert("acme", "a0")
    world.ledger.set_alert("acme", "more", "depleted")


def sold(**found):
    return Products(alerts={name: Written(**one) for name, one in found.items()})


def test_the_catalogs_alerts_are_every_accounts():
    products = sold(
        low={"below": Decimal("2.5"), "wallet": "gpu"},
        share={"percent": 10},
        lasts={"days_left": 7},
        caps={"budget": (80, 100)},
        soon={"expiring": (7,)},
    )
    assert alerts.of_catalog(products.alerts, 6) == (
        AlertTerms("low", "balance", 2_500_000, "gpu"),
        AlertTerms("share", "percent", 10),
        AlertTerms("lasts", "days_left", 7),
        AlertTerms("caps/80", "budget", 80),
        AlertTerms("caps/100", "budget", 100),
        AlertTerms("soon/7", "expiring", 7),
    )


def test_an_accounts_own_alert_stands_before_the_projects():
    world = World("alert.*")
    ledger = world.ledger
    products = sold(low={"below": Decimal(5)}, soon={"expiring": (3,)})
    ledger.apply_prices([], author="ops", reason="alerts", products=products)
    ledger.grant("acme", 10, expires_in="10d", request_id="g")
    ledger.grant("zoe", 10)
    ledger.set_alert("zoe", "low", "balance", 1)
    ledger.consume("acme", units=6)
    ledger.consume("zoe", units=6)
    assert told(world) == [("alert.balance", "low", "4")]
    world.now += timedelta(days=8)
    ledger.consume("acme", units=1)
    assert told(world)[1:] == [("alert.expiring", "soon/3", "2")]
    assert ledger.overview("acme")["alerts"] == []


def test_the_catalogs_days_left_go_by_what_live_grants_have_lost():
    world = World("alert.*")
    ledger = world.ledger
    products = sold(lasts={"days_left": 7})
    ledger.apply_prices([], author="ops", reason="alerts", products=products)
    ledger.grant("acme", 100)
    world.now += timedelta(days=5)
    ledger.consume("acme", units=40)  # 60 left at 8 a day: 7 days
    assert told(world) == []
    ledger.consume("acme", units=10)  # 50 left at 10 a day
    assert told(world) == [("alert.days_left", "lasts", "5")]


def test_a_grant_is_warned_of_though_nobody_listened_when_it_was_made():
    world = World()
    ledger = world.ledger
    products = sold(soon={"expiring": (3,)})
    ledger.apply_prices([], author="ops", reason="alerts", products=products)
    ledger.grant("acme", 10, expires_in="10d")
    world.now += timedelta(days=8)
    assert ledger.book_due() == 1
    assert [one.kind for one in ledger.history("acme")] == ["grant", "grant_expiring"]
    assert told(world) == []


def test_a_share_may_be_given_as_a_text():
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 100)
        ledger.set_alert("acme", "fifth", on="percent", threshold="20")
        [told] = ledger.overview("acme")["alerts"]
        assert (told["name"], told["threshold"]) == ("fifth", 20)
        with pytest.raises(InvalidInput):
            ledger.set_alert("acme", "all", on="percent", threshold="101")


def test_of_a_grant_without_an_end_nobody_is_warned():
    assert alerts.warning(Grant(Terms("g", 5), remaining=5), []) is None
    ends = Terms("g", 5, effective_at=0, expires_at=30 * DAY, warn_days=(7,))
    assert alerts.warning(Grant(ends, remaining=5), []) == 23 * DAY
    assert alerts.warning(Grant(ends, remaining=0), []) is None
