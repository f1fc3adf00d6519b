"""Every route with every stranger's ids: another project's, mode's or account's are not there."""

from contextlib import contextmanager

import pytest

from tillroll.api.routes import routes

ROUTES = [route for route in routes() if "{" in route.path]
BODIES = {
    "grant": {"units": 1},
    "adjust": {"units": 1, "reason": "x"},
    "consume": {"units": 1},
    "hold": {"units": 1},
    "extend": {"expires_in": "1h"},
    "resolve": {"outcome": "done"},
    "refund": {"charge": "their-charge"},
    "set_overdraft": {"limit": 5},
    "set_budget": {"cap": 5},
    "set_alert": {"on": "depleted"},
    "make_endpoint": {"url": "https://hooks.example/"},
    "set_recurring": {"units": 5, "anchor": "2026-01-01"},
    "quote": {"operation": "x"},
    "buy": {"product": "starter"},
    "redeem": {"coupon": "welcome"},
    "subscribe": {"plan": "pro"},
    "change_entitlement": {"status": "paused"},
}
THEIRS = {
    "account": "acme",
    "ref": "acme",
    "hold_id": "their-hold",
    "grant_id": "their-grant",
    "request_id": "their-charge",
    "name": "their-budget",
    "endpoint_id": "their-endpoint",
    "event_id": "evt_" + "0" * 32 + "_1_0",
    "wallet": "credits",
    "provider": "stripe",
}


def theirs(api, key):
    """Give a stranger some of everything."""
    for path, body, once in (
        ("grants", {"units": 1_000}, "their-grant"),
        ("consume", {"units": 7, "metadata": {"secret": "their-metadata"}}, "their-charge"),
        ("holds", {"units": 9}, "their-hold"),
    ):
        made = api.call("POST", f"/v1/accounts/acme/{path}", body, key=key, once=once)
        assert made.status_code == 200
    made = api.call(
        "PUT", "/v1/accounts/acme/entitlements/their-budget", key=key, once="their-right"
    )
    assert made.status_code == 200
    made = api.call(
        "PUT", "/v1/accounts/acme/budgets/their-budget", {"cap": 50}, key=key, once="their-set"
    )
    assert made.status_code == 200


def state_of(api, key):
    """Return all that can be seen of the stranger, to see later that nothing moved."""
    paths = ("", "/entries", "/statement", "/verify", "/entitlements")
    seen = [api.call("GET", f"/v1/accounts/acme{path}", key=key).json() for path in paths]
    seen[0].pop("as_of")
    for wallet in seen[0]["wallets"]:
        wallet.pop("as_of")
    return seen


@pytest.fixture
def strangers(api):
    """A service with a stranger's data in project `default`, live; returns it and the others."""
    theirs(api, api.admin)
    return api, {
        "another project": api.key(project="other"),
        "the other mode": api.key(mode="test"),
        "another project's other mode": api.key(project="other", mode="test"),
        "another account": api.key(accounts=["beta"]),
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_nobody_else_reaches_it(strangers, route):
    api, others = strangers
    before = state_of(api, api.admin)
    key_id = api.call("GET", "/v1/whoami").json()["key_id"]
    path = route.path.format(**THEIRS, key_id=key_id)
    name = route.name.removeprefix("preview_")
    for who, key in others.items():
        once = f"{who}-{route.name}" if route.keyed else None
        body = BODIES.get(name) if route.body is not None else None
        said = api.call(route.method, path, body, key=key, once=once)
        shown = said.text.replace(path, "").replace("their-charge", "", 2)
        assert "their-metadata" not in shown, who
        assert '"1000"' not in shown, who
        assert '"984"' not in shown, who
        if who == "another account" or route.name in MADE_ANEW:
            # One's own account of that name: an empty one, that what is written here makes.
            assert said.status_code in (200, 402, 403, 404, 422), who
        else:
            assert said.status_code in (403, 404, 402, 422), (who, said.text)
    assert state_of(api, api.admin) == before


# Writes make an account of that name in the caller's own project, reads of access say "no access",
# and erasing metadata or a charge's id finds nothing there.
MADE_ANEW = {
    *("grant", "consume", "adjust", "hold", "freeze", "unfreeze", "close_account", "configure"),
    *(
        "set_overdraft",
        "set_budget",
        "remove_budget",
        "set_alert",
        "remove_alert",
        "set_recurring",
        "stop_recurring",
    ),
    *("entitle", "access", "entitlements"),
    *("preview_grant", "preview_adjust", "licenzy_access", "licenzy_entitlements"),
}


def test_another_projects_ids_are_not_found(strangers):
    api, others = strangers
    for who in ("another project", "the other mode", "another project's other mode"):
        for path in (
            *("/v1/accounts/acme", "/v1/accounts/acme/balance", "/v1/accounts/acme/statement"),
            *("/v1/accounts/acme/entries", "/v1/accounts/acme/usage", "/v1/accounts/acme/verify"),
            *("/v1/accounts/acme/balance/stream", "/v1/accounts/acme/holds/their-hold"),
            *("/v1/accounts/acme/explain/their-charge", "/v1/explain/their-charge"),
            "/v1/accounts/acme/receipts/their-charge",
        ):
            said = api.call("GET", path, key=others[who])
            assert (said.status_code, said.json()["code"]) == (404, "not_found"), (who, path)
        assert api.call("GET", "/v1/accounts", key=others[who]).json()["accounts"] == []
        assert api.call("GET", "/v1/usage", key=others[who]).json()["rows"] == []
        access = api.call("GET", "/v1/customer/access/acme", key=others[who]).json()
        assert (access["has_access"], access["entitlements"]) == (False, [])
    for path in ("", "/balance", "/explain/their-charge", "/holds/their-hold"):
        said = api.call("GET", f"/v1/accounts/acme{path}", key=others["another account"])
        assert (said.status_code, said.json()["code"]) == (403, "forbidden")


def test_the_same_ids_are_free_for_everybody(strangers):
    api, others = strangers
    for who in ("another project", "the other mode"):
        theirs(api, others[who])  # the same ids again: no conflict, no replay
        assert state_of(api, others[who])[0]["wallets"][0]["used"] == "7"


class Watched:
    """A reader that notes what it is asked, and of how much."""

    def __init__(self, reader, seen):
        self._reader, self._seen = reader, seen

    def __getattr__(self, name):
        found = getattr(self._reader, name)
        if not callable(found):
            return found

        def ask(*args, **kwargs):
            answer = found(*args, **kwargs)
            self._seen.append((name, len(answer) if hasattr(answer, "__len__") else None))
            return answer

        return ask


def test_what_is_theirs_and_what_is_nobodys_take_the_same_work(strangers, monkeypatch):
    """No timing hint: the store is asked the same, and answers as little, in both cases."""
    api, others = strangers
    seen = []
    read = api.engine.store.read

    @contextmanager
    def watched():
        with read() as reader:
            yield Watched(reader, seen)

    for path in ("", "/balance", "/explain/their-charge", "/holds/their-hold", "/statement"):
        asked = []
        for name in ("acme", "nobody"):
            api.call("GET", "/v1/whoami", key=others["another project"])
            monkeypatch.setattr(api.engine.store, "read", watched)
            seen.clear()
            api.call("GET", f"/v1/accounts/{name}{path}", key=others["another project"])
            asked.append([step for step in seen if step[0] != "registry_version"])
            monkeypatch.undo()
        assert asked[0] == asked[1] != [], path
