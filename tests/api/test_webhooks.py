"""Webhooks over HTTP: endpoints, what became of events, sending again, and a service that sends."""

import time

import httpx2
import pytest
from standardwebhooks import Webhook

from tests.jobs.receiver import Receiver
from tillroll.jobs import Deliverer, Sender

URL = "https://hooks.example/in"


def made(api, once="w", **body):
    said = api.call("POST", "/v1/webhooks", {"url": URL, **body}, once=once)
    assert said.status_code == 200, said.text
    return said


def delivered(api) -> None:
    """Deliver all that is due, as the service's job does."""
    deliverer = Deliverer(api.engine, Sender(private=True))
    while deliverer.round()["more"]:
        pass
    deliverer.close()


def test_an_endpoint_is_made_once_and_its_secret_is_shown_once(api):
    first = made(api, events=["grant.*"], description="books")
    again = made(api, events=["grant.*"], description="books")
    shown = first.json()
    assert shown["secret"].startswith("whsec_")
    assert again.json() == {**shown, "secret": None}
    assert again.headers["idempotent-replayed"] == "true"
    assert api.call("GET", f"/v1/webhooks/{shown['id']}").json() == {**shown, "secret": None}
    found = api.call("GET", "/v1/webhooks").json()["endpoints"]
    assert found == [{**shown, "secret": None}]


def test_an_endpoint_is_changed_rotated_and_removed(api):
    shown = made(api).json()
    path = f"/v1/webhooks/{shown['id']}"
    changed = api.call("PATCH", path, {"events": ["hold.*"], "disabled": True}).json()
    assert (changed["events"], changed["disabled"], changed["url"]) == (["hold.*"], True, URL)
    assert api.call("PATCH", path, {"disabled": False}).json()["disabled"] is False
    rotated = api.call("POST", f"{path}/rotate", {"overlap": "1h"}).json()
    assert rotated["secret"] not in (None, shown["secret"])
    assert rotated["secrets"] == 2
    assert api.call("DELETE", path).status_code == 200
    assert api.call("GET", path).status_code == 404
    assert api.call("GET", "/v1/webhooks").json() == {"endpoints": []}


@pytest.mark.parametrize(
    "body",
    [
        *({"url": "http://hooks.example/"}, {"url": "https://user:pw@hooks.example/"}, {}),
        *({"url": URL, "events": []}, {"url": URL, "events": ["no.such"]}),
        *({"url": URL, "format": "xml"}, {"url": URL, "secret": "whsec_x"}),
    ],
)
def test_what_cannot_be_an_endpoint(api, body):
    said = api.call("POST", "/v1/webhooks", body, once="w")
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")


def test_an_id_that_made_an_endpoint_makes_no_other(api):
    asked = {"url": URL, "events": ["grant.*"]}
    first = api.call("POST", "/v1/webhooks", asked, once="w").json()
    assert first["secret"].startswith("whsec_")
    for other in ({"url": URL + "/b"}, {"events": ["*"]}, {"description": "b"}):
        said = api.call("POST", "/v1/webhooks", asked | other, once="w")
        assert (said.status_code, said.json()["code"]) == (422, "idempotency_conflict"), other
    path = f"/v1/webhooks/{first['id']}"
    assert api.call("PATCH", path, {"description": "c"}).status_code == 200
    again = api.call("POST", "/v1/webhooks", asked, once="w")
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.json()["id"], again.json()["secret"]) == (first["id"], None)
    assert len(api.call("GET", "/v1/webhooks").json()["endpoints"]) == 1


def test_endpoints_are_the_admins_and_the_projects(api):
    shown = made(api).json()
    paths = ("/v1/webhooks", f"/v1/webhooks/{shown['id']}", "/v1/deliveries")
    for path in paths:
        assert api.call("GET", path, key=api.key(scopes="read consume grant")).status_code == 403
    stranger = api.key(project="another")
    assert api.call("GET", paths[1], key=stranger).status_code == 404
    assert api.call("DELETE", paths[1], key=stranger).status_code == 404
    assert api.call("GET", paths[0], key=stranger).json() == {"endpoints": []}


def test_deliveries_are_seen_and_sent_again(api):
    api.service._webhooks_private = True
    api.service._tenants.clear()
    with Receiver(lambda _, times: 200 if times > 1 else 500) as receiver:
        shown = made(api, url=receiver.url, events=["grant.created"]).json()
        api.call("POST", "/v1/accounts/acme/grants", {"units": "12.5"}, once="g")
        delivered(api)
        page = api.call("GET", "/v1/deliveries?limit=1&state=pending").json()
        [one] = page["deliveries"]
        assert (one["type"], one["endpoint"], one["attempts"]) == ("grant.created", shown["id"], 1)
        assert [(a["status"], a["response"]) for a in one["log"]] == [(500, "that is 500")]
        again = api.call(
            "POST",
            "/v1/deliveries/send-again",
            {"endpoint": shown["id"], "event": one["event"]},
        )
        assert again.json() == {"queued": 1, "more": False}
        delivered(api)
        told = api.call("GET", f"/v1/events/{one['event']}").json()
        assert told["event"]["data"]["units"] == "12.5"
        assert told["event"] == receiver.received[0].told
        assert [d["state"] for d in told["deliveries"]] == ["delivered"]
        verified = Webhook(shown["secret"]).verify(
            receiver.received[-1].body, receiver.received[-1].headers
        )
        assert verified["id"] == one["event"]


def test_deliveries_come_in_pages(api):
    api.service._webhooks_private = True
    api.service._tenants.clear()
    with Receiver() as receiver:
        made(api, url=receiver.url)
        for n in range(5):
            api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once=f"g{n}")
        delivered(api)
    found, after = [], ""
    while after is not None:
        page = api.call("GET", f"/v1/deliveries?limit=2{after}").json()
        found += [one["event"] for one in page["deliveries"]]
        after = f"&after={page['next']}" if page["next"] else None
    assert len(found) == len(set(found)) == 5
    assert [int(name.split("_")[2]) for name in found] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/v1/deliveries?limit=0", 422), ("/v1/deliveries?state=lost", 422)),
        *(("/v1/deliveries?after=x", 422), ("/v1/deliveries?event=x", 422)),
        *(("/v1/events/x", 422), ("/v1/events/evt_" + "0" * 32 + "_1_0", 404)),
        *(("/v1/webhooks/we_1", 404), ("/v1/deliveries?endpoint=we_1", 200)),
    ],
)
def test_what_is_not_there(api, path, status):
    assert api.call("GET", path).status_code == status


def test_a_strangers_event_is_not_found(api):
    made(api)
    api.call("POST", "/v1/accounts/acme/grants", {"units": 1}, once="g")
    with api.engine.store.read() as reader:
        event = reader.events()[0].event
    name = f"evt_{event.account_id.hex()}_1_0"
    assert api.call("GET", f"/v1/events/{name}").status_code == 200
    assert api.call("GET", f"/v1/events/{name}", key=api.key(project="no")).status_code == 404


def test_an_alert_is_set_over_http(api):
    path = "/v1/accounts/acme/alerts/low"
    for body in ({"on": "balance", "threshold": "2.5"}, {"on": "percent", "threshold": 20}):
        assert api.call("PUT", path, body, once=str(body)).status_code == 200
    [shown] = api.call("GET", "/v1/accounts/acme").json()["alerts"]
    assert (shown["on"], shown["threshold"]) == ("percent", 20)
    assert api.call("PUT", path, {"on": "hope"}, once="x").status_code == 422
    assert api.call("DELETE", path, {}, once="y").status_code == 200
    assert api.call("GET", "/v1/accounts/acme").json()["alerts"] == []


def test_a_service_sends_by_itself_and_says_so(serve):
    with Receiver() as receiver:
        served = serve(TILLROLL_WEBHOOKS_PRIVATE="yes", TILLROLL_UPKEEP_SECONDS="0.2")
        headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "one"}
        with httpx2.Client(base_url=served.url, headers=headers) as client:
            client.post("/v1/webhooks", json={"url": receiver.url}).raise_for_status()
            client.post("/v1/accounts/acme/grants", json={"units": 5}).raise_for_status()
            until = time.monotonic() + 60
            while not receiver.received and time.monotonic() < until:
                time.sleep(0.05)
            assert receiver.received[0].told["type"] == "grant.created"
            page = client.get("/metrics").text
            assert 'tillroll_job_failures_total{task="webhooks"} 0.0' in page
            assert client.get("/readyz").json()["ok"] is True
        served.stop()
