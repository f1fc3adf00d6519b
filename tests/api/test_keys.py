"""API keys: what each may do, how long, and that an ended one opens nothing from then on."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from tillroll.api import keys

SCOPES = {
    "read": [("GET", "/v1/accounts"), ("GET", "/v1/prices"), ("GET", "/v1/accounts/acme")],
    "consume": [("POST", "/v1/accounts/acme/consume"), ("POST", "/v1/accounts/acme/holds")],
    "grant": [("POST", "/v1/accounts/acme/grants"), ("POST", "/v1/accounts/acme/refunds")],
    "admin": [("POST", "/v1/accounts/acme/freeze"), ("GET", "/v1/keys")],
}
BODIES = {"/grants": {"units": 5}, "/consume": {"units": 1}, "/holds": {"units": 1}}
BODIES["/refunds"] = {"charge": "none"}


def body_of(path):
    return next((body for end, body in BODIES.items() if path.endswith(end)), None)


@pytest.mark.parametrize("scope", ["read", "consume", "grant", "admin"])
def test_a_key_may_what_its_scope_says_and_nothing_else(api, scope):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 100}, once="first")
    key = api.key(scopes=scope)
    for wanted, routes in SCOPES.items():
        for method, path in routes:
            once = f"{scope}-{method}-{path}" if method == "POST" else None
            status = api.call(method, path, body_of(path), key=key, once=once).status_code
            if scope in (wanted, "admin"):
                assert status in (200, 404), (method, path)  # 404: the charge to refund
            else:
                assert status == 403, (method, path)


def test_whoever_has_no_good_key_is_told_nothing(api):
    good = api.admin
    for authorization, code in (
        ("", "missing_bearer_token"),
        ("Basic abc", "missing_bearer_token"),
        ("Bearer ", "missing_bearer_token"),
        ("Bearer nonsense", "invalid_api_key"),
        (f"Bearer {good[:-1]}", "invalid_api_key"),
        (f"Bearer {good}x", "invalid_api_key"),
        (f"Bearer {good.replace('live', 'test')}", "invalid_api_key"),
        ("Bearer tr_live_" + "A" * 43, "invalid_api_key"),
    ):
        for path in ("/v1/accounts/acme", "/v1/whoami", "/v1/keys"):
            said = api.call("GET", path, headers={"authorization": authorization})
            assert (said.status_code, said.json()["code"]) == (401, code)
            assert said.headers["www-authenticate"].startswith("Bearer")


def test_a_restricted_key_sees_its_own_accounts_only(api):
    for name in ("acme", "beta"):
        api.call("POST", f"/v1/accounts/{name}/grants", {"units": 100}, once=f"g-{name}")
    key = api.key(scopes="consume read", accounts=["acme"])
    assert api.call("GET", "/v1/accounts/acme", key=key).status_code == 200
    for path in ("/v1/accounts", "/v1/usage", "/v1/accounts/beta", "/v1/explain/g-beta"):
        assert api.call("GET", path, key=key).json()["code"] == "forbidden", path
    assert api.call("GET", "/v1/explain/g-acme?account=acme", key=key).status_code == 200
    items = [{"account": name, "request_id": name, "units": 1} for name in ("acme", "beta")]
    assert api.call("POST", "/v1/batch", {"items": items}, key=key).status_code == 403
    assert api.call("GET", "/v1/accounts/acme/balance").json()["available"] == "100"
    assert api.call("POST", "/v1/batch", {"items": items[:1]}, key=key).status_code == 200


def test_a_key_expires_by_the_clock(small):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    api = small(clock=lambda: now[0])
    key = api.key(expires_at=api.engine.clock() + 60_000_000)
    assert api.call("GET", "/v1/whoami", key=key).status_code == 200
    now[0] += timedelta(seconds=60)
    assert api.call("GET", "/v1/whoami", key=key).json()["code"] == "invalid_api_key"


def test_a_key_is_made_over_http_once_and_its_secret_is_shown_once(api):
    asked = {"name": "worker", "scopes": ["consume"], "accounts": ["acme"], "expires_in": "90d"}
    made = api.call("POST", "/v1/keys", asked, once="k1")
    secret = made.json()["secret"]
    assert (made.status_code, made.json()["scopes"]) == (200, ["consume"])
    again = api.call("POST", "/v1/keys", asked, once="k1")
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.json()["secret"], again.json()["id"]) == (None, made.json()["id"])
    who = api.call("GET", "/v1/whoami", key=secret).json()
    assert (who["key_id"], who["accounts"], who["mode"]) == (made.json()["id"], ["acme"], "live")
    listed = api.call("GET", "/v1/keys").json()["keys"]
    assert [key["id"] for key in listed][-1] == made.json()["id"]
    assert secret not in api.call("GET", "/v1/keys").text
    with api.engine.store.read() as reader:
        assert all(secret not in document for document in reader.documents("key").values())


def test_an_id_that_made_a_key_makes_no_other(api):
    asked = {"name": "w", "scopes": ["read"], "expires_in": "90d"}
    made = api.call("POST", "/v1/keys", asked, once="k").json()
    for other in ({"name": "v"}, {"scopes": ["admin"]}, {"accounts": ["a"]}, {"expires_in": "1d"}):
        said = api.call("POST", "/v1/keys", asked | other, once="k")
        assert (said.status_code, said.json()["code"]) == (422, "idempotency_conflict"), other
    assert api.call("POST", "/v1/keys", asked, once="k").json()["id"] == made["id"]
    path = f"/v1/keys/{made['id']}/rotate"
    assert api.call("POST", path, {"overlap": "1h"}, once="r").status_code == 200
    said = api.call("POST", path, {"overlap": "2h"}, once="r")
    assert said.json()["code"] == "idempotency_conflict"
    assert api.call("GET", "/v1/whoami", key=made["secret"]).status_code == 200


def test_a_rotated_key_works_beside_the_new_one_for_a_while(small):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    api = small(clock=lambda: now[0])
    old = api.call("POST", "/v1/keys", {"name": "w", "scopes": ["read"]}, once="k").json()
    new = api.call("POST", f"/v1/keys/{old['id']}/rotate", {"overlap": "1h"}, once="r").json()
    assert (new["name"], new["scopes"], new["id"] != old["id"]) == ("w", ["read"], True)
    assert api.call("GET", "/v1/whoami", key=old["secret"]).status_code == 200
    assert api.call("GET", "/v1/whoami", key=new["secret"]).status_code == 200
    now[0] += timedelta(hours=1)
    assert api.call("GET", "/v1/whoami", key=old["secret"]).status_code == 401
    assert api.call("GET", "/v1/whoami", key=new["secret"]).status_code == 200


def test_a_key_in_anothers_place_lives_as_long_and_takes_no_dead_ones(small):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    api = small(clock=lambda: now[0])
    asked = {"name": "w", "scopes": ["read"], "expires_in": "90d"}
    path = f"/v1/keys/{api.call('POST', '/v1/keys', asked, once='k').json()['id']}/rotate"
    now[0] += timedelta(days=80)
    new = api.call("POST", path, {"overlap": "1h"}, once="r").json()
    assert new["expires_at"] == "2026-06-20T00:00:00Z"
    now[0] += timedelta(hours=1)
    said = api.call("POST", path, {"overlap": "1h"}, once="other")
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
    again = api.call("POST", path, {"overlap": "1h"}, once="r").json()
    assert (again["id"], again["secret"]) == (new["id"], None)
    assert len(api.call("GET", "/v1/keys").json()["keys"]) == 3


def test_a_revoked_key_opens_nothing_on_any_server_once_that_is_answered(serve, store_url):
    one = serve(store_url)
    other = serve(store_url)
    admin = {"authorization": f"Bearer {one.key}"}
    for n in range(3):
        made = httpx2.post(
            f"{one.url}/v1/keys",
            json={"name": "w", "scopes": ["read"]},
            headers={**admin, "idempotency-key": f"k{n}"},
        ).json()
        held = {"authorization": f"Bearer {made['secret']}"}
        for side in (one, other):  # as good on the other at once
            assert httpx2.get(f"{side.url}/v1/whoami", headers=held).status_code == 200
        httpx2.delete(f"{one.url}/v1/keys/{made['id']}", headers=admin).raise_for_status()
        for side in (other, one):
            assert httpx2.get(f"{side.url}/v1/whoami", headers=held).status_code == 401


def test_every_entry_names_the_key_that_acted(api):
    worker = api.key(scopes="grant consume")
    key_id = api.call("GET", "/v1/whoami", key=worker).json()["key_id"]
    granted = api.call("POST", "/v1/accounts/acme/grants", {"units": 9}, key=worker, once="g")
    body = {"units": 1, "actor": "ann"}
    charged = api.call("POST", "/v1/accounts/acme/consume", body, key=worker, once="c")
    assert (granted.json()["actor"], charged.json()["actor"]) == (key_id, f"{key_id}/ann")
    refused = api.call("POST", "/v1/accounts/acme/consume", {"units": 99}, key=worker, once="r")
    assert refused.status_code == 402
    assert api.call("GET", "/v1/accounts/acme/explain/r").json()["actor"] == key_id


def test_a_key_makes_keys_of_its_own_mode_only(api):
    asked = {"name": "x", "scopes": ["read"], "mode": "test"}
    assert api.call("POST", "/v1/keys", asked, once="k").json()["code"] == "forbidden"
    test = api.key(mode="test")
    made = api.call("POST", "/v1/keys", asked, key=test, once="k").json()
    assert made["secret"].startswith("tr_test_")


def test_what_makes_no_sense_as_a_key_is_refused(api):
    for wrong in (
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "scopes": ["read", "read"]},
        {"name": "", "scopes": ["read"]},
        {"name": "x", "scopes": ["read"], "expires_in": "-1d"},
        {"name": "x", "scopes": ["read"], "accounts": [""]},
    ):
        said = api.call("POST", "/v1/keys", wrong, once="k")
        assert (said.status_code, said.json()["code"]) == (422, "invalid_input"), wrong
    assert len(api.call("GET", "/v1/keys").json()["keys"]) == 1


def test_a_lease_is_never_older_than_it_says(api, monkeypatch):
    monkeypatch.setattr(keys, "LEASE_SECONDS", 0.0)  # every use looks anew
    key = api.key(scopes="read")
    assert api.call("GET", "/v1/whoami", key=key).status_code == 200
    key_id = api.call("GET", "/v1/whoami", key=key).json()["key_id"]
    api.engine.perform(lambda tx: keys.end_key(tx, key_id, api.engine.clock(), ledger=None))
    assert api.call("GET", "/v1/whoami", key=key).status_code == 401
