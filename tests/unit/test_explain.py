"""What an account may do from then on, in words: who set what, and to what."""

from datetime import UTC, datetime
from typing import Any

import pytest

import tillroll
from tillroll.cli import views

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def ledger() -> tillroll.Ledger:
    ledger = tillroll.open("memory://", clock=lambda: NOW)
    ledger.set_budget("acme", "old", 7)
    ledger.set_alert("acme", "old", "depleted")
    return ledger


@pytest.mark.parametrize(
    ("verb", "args", "said"),
    [
        (
            "set_budget",
            {"name": "b", "cap": "7.5"},
            "the budget 'b' was set to 7.5 credits a month",
        ),
        (
            "set_budget",
            {"name": "b", "cap": 7, "period": "total", "match": {"op": "a", "who": "*"}},
            "the budget 'b' was set to 7 credits in all for op=a, who=*",
        ),
        (
            "set_budget",
            {"name": "b", "cap": 7, "period": "rolling", "window": "5h", "wallet": "gpu"},
            "the budget 'b' was set to 7 gpu in any 5 hours",
        ),
        ("remove_budget", {"name": "old"}, "the budget 'old' was removed"),
        (
            "set_recurring",
            {"name": "p", "units": 5, "anchor": "2026-01-31"},
            (
                "the recurring grant 'p' was set to 5 credits every month, counted from "
                "2026-01-31T00:00:00"
            ),
        ),
        (
            "set_recurring",
            {
                "name": "p",
                "units": 5,
                "anchor": "2026-01-31",
                "every": "week",
                "count": 2,
                "rollover_min": 1,
                "rollover_max": 2,
                "ends_at": "2026-05-01T00:00Z",
            },
            (
                "the recurring grant 'p' was set to 5 credits every 2 weeks, counted from "
                "2026-01-31T00:00:00, with 1 to 2 carried over, until 2026-05-01T00:00:00Z"
            ),
        ),
        ("set_alert", {"name": "low", "on": "depleted"}, "the alert 'low' was set on depleted"),
        (
            "set_alert",
            {"name": "low", "on": "balance", "threshold": "2.5"},
            "the alert 'low' was set on balance, at 2.5",
        ),
        (
            "set_alert",
            {"name": "low", "on": "days_left", "threshold": 7},
            "the alert 'low' was set on days left, at 7",
        ),
        ("remove_alert", {"name": "old"}, "the alert 'old' was removed"),
        (
            "configure",
            {"time_zone": "Asia/Tokyo", "late_settlement": True, "late_usage": "90d"},
            (
                "the account's settings are: time zone Asia/Tokyo, a hold may be settled after its "
                "deadline, usage may be told 90 days late and 5 minutes ahead"
            ),
        ),
        ("set_overdraft", {"limit": 50}, "up to 50 credits may be owed"),
        ("freeze", {}, "the account was frozen"),
        ("unfreeze", {}, "the account's freeze ended"),
        ("close_account", {}, "the account was closed"),
    ],
)
def test_what_was_set_is_said(ledger: tillroll.Ledger, verb: str, args: dict[str, Any], said: str):
    getattr(ledger, verb)("acme", request_id="r", reason="because", **args)
    [sentence] = ledger.explain("r")["sentences"]
    assert sentence == f"2026-01-01T12:00:00Z: {said} (because)."


def test_a_stopped_recurring_grant_is_said(ledger: tillroll.Ledger):
    ledger.set_recurring("acme", "p", 5, anchor="2026-01-01")
    ledger.stop_recurring("acme", "p", request_id="r")
    [sentence] = ledger.explain("r")["sentences"]
    assert sentence.endswith("the recurring grant 'p' was stopped.")


def test_who_acted_is_shown(ledger: tillroll.Ledger, capsys: pytest.CaptureFixture[str]):
    ledger.freeze("acme", request_id="r", actor="ops:kim")
    views.show_story(ledger.explain("r"))
    assert "ops:kim" in capsys.readouterr().out
    ledger.grant("acme", 5, request_id="g")
    views.show_story(ledger.explain("g"))
    assert " by " not in capsys.readouterr().out
