"""What fell due and is not booked yet, over HTTP: apart, and on the page that ends with now."""

from datetime import UTC, datetime, timedelta

from tillroll.client import answers
from tillroll.wire.answers import Page

ACME = "/v1/accounts/acme"


def test_pages_end_with_what_is_due(small):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    api = small(clock=lambda: now[0])
    api.call("POST", f"{ACME}/grants", {"units": 100, "expires_in": "10d"}, once="g")
    api.call("POST", f"{ACME}/holds", {"units": 30, "expires_in": "1h"}, once="h")
    now[0] += timedelta(days=30)
    balance = api.call("GET", f"{ACME}/balance").json()
    statement = api.call("GET", f"{ACME}/statement?limit=1").json()
    assert set(statement) == set(Page.__struct_fields__)
    assert [one["kind"] for one in statement["due"]] == ["grant_expired", "hold_expired"]
    assert statement["due"][0]["available"] == balance["available"] == "0"
    assert statement["due"][0]["seq"] == balance["seq"] == 4
    rest = api.call("GET", f"{ACME}/statement?before={statement['next']}").json()
    assert (len(rest["entries"]), rest["due"]) == (1, [])
    first = api.call("GET", f"{ACME}/entries?limit=1").json()
    assert (first["next"], first["due"]) == (1, [])
    last = api.call("GET", f"{ACME}/entries?after=1").json()
    assert ([one["seq"] for one in last["entries"]], last["next"]) == ([2], None)
    assert [one["seq"] for one in last["due"]] == [3, 4]
    assert api.call("GET", f"{ACME}/entries?after=3").json()["due"] == last["due"][1:]
    page = answers.page_of(last, 6)
    assert [(one.kind, one.due) for one in page.due] == [
        ("hold_expired", True),
        ("grant_expired", True),
    ]
    api.call("POST", f"{ACME}/grants", {"units": 1}, once="g2")
    booked = api.call("GET", f"{ACME}/statement").json()
    assert (booked["due"], booked["entries"][1]["kind"]) == ([], "grant_expired")
