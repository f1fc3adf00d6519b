"""The main job over HTTP, from the outermost surface to the row and back."""

import json
from functools import partial

import httpx2
import pytest

import tillroll

CONSUME = "/v1/accounts/acme/consume"


def test_a_charge_happens_once_and_is_explained(api):
    granted = api.call("POST", "/v1/accounts/acme/grants", {"units": 100}, once="order-1")
    assert (granted.status_code, granted.json()["kind"]) == (200, "grant")
    first = api.call("POST", CONSUME, {"units": "2.5", "tags": {"member": "ann"}}, once="job-1")
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    again = api.call("POST", CONSUME, {"units": "2.5", "tags": {"member": "ann"}}, once="job-1")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == {**first.json(), "replayed": True}
    assert first.json()["available"] == "97.5"
    story = api.call("GET", "/v1/accounts/acme/explain/job-1").json()
    assert (story["outcome"], story["charged"], story["replays"]) == ("charged", "2.5", 1)
    assert story["actor"].startswith("key_")
    assert api.call("GET", "/v1/explain/job-1").json() == story


def test_an_answer_is_what_the_ledger_would_have_said(api):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 100, "expires_in": "90d"}, once="g")
    api.call("POST", "/v1/accounts/acme/holds", {"units": 40}, once="h")
    done = api.call("POST", "/v1/accounts/acme/holds/h/settle", {"units": "12.5"}, once="s")
    ledger = tillroll.Ledger(api.engine)
    assert done.json() == ledger.receipt("acme", "s").to_dict()["receipt"]
    shown = api.call("GET", "/v1/accounts/acme/statement").json()
    assert shown == json.loads(json.dumps(ledger.statement("acme").to_dict()))
    assert [entry["kind"] for entry in shown["entries"]] == ["settle", "hold", "grant"]


def test_a_refusal_teaches_and_is_repeated(api):
    refused = api.call("POST", CONSUME, {"units": 7}, once="job-1")
    assert refused.status_code == 402
    assert refused.headers["content-type"] == "application/problem+json"
    said = refused.json()
    assert (said["code"], said["written"], said["request_id"]) == (
        *("insufficient_units", "nothing", "job-1"),
    )
    assert (said["needed"], said["available"], said["held"], said["tightest"]) == (
        *("7", "0", "0", "credits"),
    )
    assert said["topup_url"] == "https://shop.example/default/live?account=acme"
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    again = api.call("POST", CONSUME, {"units": 7}, once="job-1")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (402, "true")
    anew = api.call("POST", CONSUME, {"units": 7, "retry_refused": True}, once="job-1")
    assert (anew.status_code, anew.json()["available"]) == (200, "3")


def test_a_key_used_for_something_else_is_a_conflict(api):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    api.call("POST", CONSUME, {"units": 1}, once="job-1")
    other = api.call("POST", CONSUME, {"units": 2}, once="job-1")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert api.call("GET", "/v1/accounts/acme/balance").json()["available"] == "9"


def test_it_serves_as_a_process_and_stops_in_order(serve):
    served = serve()
    headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "g"}
    made = httpx2.post(f"{served.url}/v1/accounts/acme/grants", json={"units": 5}, headers=headers)
    assert made.json()["available"] == "5"
    key = served.key
    assert served.stop() in (0, -15)
    served.start()
    assert served.key == key  # shown once
    found = httpx2.get(f"{served.url}/v1/accounts/acme/balance", headers=headers)
    assert found.json()["available"] == "5"


def test_a_wrong_address_is_not_taken_for_an_empty_ledger(serve):
    served = serve()
    with tillroll.Client(f"{served.url}/v1", api_key=served.key) as client:
        looks = [partial(look, "acme") for look in (client.balance, client.knows, client.verify)]
        for look in (*looks, client.verify, client.usage):
            with pytest.raises(tillroll.NotFound, match="nothing at this address"):
                look()
