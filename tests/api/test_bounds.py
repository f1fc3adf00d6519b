"""Bounds: what is too large, too many or malformed is turned away, and nothing is written."""

import asyncio
import threading
from urllib.parse import quote

import httpx2
import pytest

from tillroll.api.calls import BODY_MAX
from tillroll.api.routes import BATCH_BODY_MAX, routes

CONSUME = "/v1/accounts/acme/consume"


def code_of(said):
    return said.status_code, said.json()["code"]


def test_a_write_needs_its_id(api):
    for route in routes():
        if route.keyed and not route.licenzy and "{key_id}" not in route.path:
            path = route.path.format(account="a", hold_id="h", grant_id="g", name="n")
            body = BODIES.get(route.name, {})
            said = api.call(route.method, path, body)
            assert code_of(said) == (400, "idempotency_key_missing"), route.path


BODIES = {
    "checkout": {"product": "p"},
    "consume": {"units": 1},
    "hold": {"units": 1},
    "extend": {"expires_in": "1h"},
    "resolve": {"outcome": "done"},
    "grant": {"units": 1},
    "refund": {"charge": "c"},
    "adjust": {"units": 1, "reason": "r"},
    "set_overdraft": {"limit": 1},
    "set_budget": {"cap": 1},
    "set_alert": {"on": "depleted"},
    "make_endpoint": {"url": "https://hooks.example/"},
    "set_recurring": {"units": 1, "anchor": "2026-01-01"},
    "buy": {"product": "starter"},
    "redeem": {"coupon": "welcome"},
    "subscribe": {"plan": "pro"},
    "make_key": {"name": "k", "scopes": ["read"]},
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b'{"units": 1',
        b'{"units": 1.5}',
        b'{"units": 1e3}',
        b'{"units": true}',
        b'{"units": "1e3"}',
        b'{"units": "NaN"}',
        b'{"units": -1}',
        b'{"units": 0}',
        b'{"units": 99999999999999999999999999}',
        b'{"units": 1, "unknown": 1}',
        b'{"units": 1, "account": "other"}',
        b'{"units": 1, "request_id": "other"}',
        b'{"units": 1, "operation": ""}',
        b'{"units": 1, "tags": {"a": 1}}',
        b'{"units": 1, "metadata": []}',
        b'{"units": 1, "effective_at": "yesterday"}',
        b'{"units": 1, "operation": "\\ud800"}',
        b'{"units": 1, "operation": "a\\u0000b"}',
        b"\xff\xfe",
        b'{"units": "\xff"}',
        b"[" * 100_00,
    ],
)
def test_a_malformed_body_is_refused_and_not_remembered(api, content):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    said = api.call("POST", CONSUME, content=content, once="c")
    assert code_of(said) == (422, "invalid_input")
    assert said.json()["written"] == "nothing"
    assert api.call("POST", CONSUME, {"units": 1}, once="c").status_code == 200


def test_what_a_body_may_not_be(api):
    sent = {"content-type": "text/plain"}
    said = api.call("POST", CONSUME, content=b'{"units": 1}', once="c", headers=sent)
    assert code_of(said) == (415, "unsupported_media_type")
    sent = {"content-type": "application/json; charset=utf-8"}
    said = api.call("POST", CONSUME, content=b'{"units": 1}', once="c", headers=sent)
    assert code_of(said) == (402, "insufficient_units")
    large = b'{"units": 1, "reason": "%b"}' % (b"x" * BODY_MAX)
    assert code_of(api.call("POST", CONSUME, content=large, once="c")) == (413, "body_too_large")
    huge = b" " * (BATCH_BODY_MAX + 1)
    assert code_of(api.call("POST", "/v1/batch", content=huge)) == (413, "body_too_large")


def test_a_header_that_counts_once_comes_once(api):
    transport = httpx2.ASGITransport(api.service)

    async def ask():
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post(
                CONSUME,
                json={"units": 1},
                headers=[
                    ("authorization", f"Bearer {api.admin}"),
                    ("idempotency-key", "one"),
                    ("idempotency-key", "other"),
                ],
            )

    assert code_of(api.run(ask())) == (422, "invalid_input")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=1&limit=2",
        "unknown=1",
        "kinds=nothing",
        "since=yesterday",
        "before=x",
        "before=-1",
        "%ff=1",
        "since=%ff",
        "&".join(f"a{n}=1" for n in range(50)),
    ],
)
def test_a_malformed_query_is_refused(api, query):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    said = api.call("GET", f"/v1/accounts/acme/statement?{query}")
    assert code_of(said) == (422, "invalid_input")


def test_addresses_and_methods_that_are_not_there(api):
    for path in ("/", "/v1", "/v2/accounts", "/v1/accounts/", "/v1/accounts//balance", "/v1/nope"):
        assert code_of(api.call("GET", path)) == (404, "no_such_address"), path
    said = api.call("PATCH", "/v1/accounts/acme")
    assert (code_of(said), said.headers["allow"]) == ((405, "method_not_allowed"), "GET")
    assert api.call("DELETE", "/livez").status_code == 404  # the host's own, not the API's


@pytest.mark.parametrize(
    "name", ["a/b", "a%2Fb", "preview", "..", "größe", "a b", "日本", "a?b#c", "x" * 255, "+"]
)
def test_any_name_travels(api, name):
    quoted = quote(name, safe="").replace(".", "%2E")
    for path, body in (
        ("grants", {"units": 10}),
        ("holds", {"units": 1}),
        ("consume", {"units": 2}),
    ):
        made = api.call(
            "POST",
            f"/v1/accounts/{quoted}/{path}",
            body,
            headers={},
            once=f"{path}",
        )
        assert (made.status_code, made.json()["account"]) == (200, name)
    found = api.call("GET", f"/v1/accounts/{quoted}/balance").json()
    assert (found["account"], found["available"], found["held"]) == (name, "7", "1")
    assert name in api.call("GET", "/v1/accounts").json()["accounts"]


def test_a_hold_may_be_called_like_a_word_of_ours(api):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="preview")
    api.call("POST", "/v1/accounts/acme/holds", {"units": 1}, once="preview-2")
    assert api.call("GET", "/v1/accounts/acme/holds/preview").json()["code"] == "not_found"
    assert api.call("GET", "/v1/accounts/acme/holds/preview-2").json()["state"] == "open"
    voided = api.call("POST", "/v1/accounts/acme/grants/preview/void", once="v")
    assert (voided.status_code, voided.json()["ref"]) == (200, "preview")


def test_ids_travel_in_utf8(api):
    key = "größe-日本".encode()
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    made = api.call("POST", CONSUME, {"units": 1}, headers={"idempotency-key": key})
    assert made.json()["request_id"] == "größe-日本"
    wrong = api.call("POST", CONSUME, {"units": 1}, headers={"idempotency-key": b"\xff"})
    assert code_of(wrong) == (422, "invalid_input")


def test_a_full_queue_says_when_to_come_back(small):
    api = small(waiting_max=1)
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    stopped, go_on = threading.Event(), threading.Event()
    stuck = threading.Thread(
        target=api.engine.perform, args=(lambda _: (stopped.set(), go_on.wait(60)),)
    )
    stuck.start()
    assert stopped.wait(60)

    async def crowd():
        calls = [
            asyncio.to_thread(lambda: None),
            *(api._client.post(CONSUME, json={"units": 1}, headers=sent(n)) for n in range(3)),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.2)
        go_on.set()
        return (await asyncio.gather(*tasks))[1:]

    def sent(number):
        return {"authorization": f"Bearer {api.admin}", "idempotency-key": f"c{number}"}

    said = api.run(crowd())
    stuck.join(60)
    busy = [one for one in said if one.status_code == 503]
    assert busy
    assert {one.json()["code"] for one in busy} == {"overloaded"}
    assert {one.json()["written"] for one in busy} == {"nothing"}
    assert all(one.headers["retry-after"] == "1" for one in busy)
    charged = sum(one.status_code == 200 for one in said)
    assert api.call("GET", "/v1/accounts/acme/balance").json()["used"] == str(charged)


def test_one_key_cannot_take_all_the_room(small):
    api = small(per_key_max=2)
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    other = api.key()
    stopped, go_on = threading.Event(), threading.Event()
    stuck = threading.Thread(
        target=api.engine.perform, args=(lambda _: (stopped.set(), go_on.wait(60)),)
    )
    stuck.start()
    assert stopped.wait(60)

    async def crowd():
        def charge(key, number):
            headers = {"authorization": f"Bearer {key}", "idempotency-key": f"c{number}"}
            return asyncio.ensure_future(
                api._client.post(CONSUME, json={"units": 1}, headers=headers)
            )

        mine = [charge(api.admin, n) for n in range(5)]
        await asyncio.sleep(0.2)
        theirs = charge(other, 9)
        await asyncio.sleep(0.1)
        go_on.set()
        return await asyncio.gather(*mine), await theirs

    mine, theirs = api.run(crowd())
    stuck.join(60)
    assert sorted(one.status_code for one in mine) == [200, 200, 429, 429, 429]
    assert theirs.status_code == 200
    turned = [one for one in mine if one.status_code == 429]
    assert all(code_of(one) == (429, "too_many_requests") for one in turned)
    assert api.call("POST", CONSUME, {"units": 1}, once="later").status_code == 200


def test_a_batch_answers_item_by_item(api):
    api.call("POST", "/v1/accounts/acme/grants", {"units": 10}, once="g")
    api.call("POST", CONSUME, {"units": 1}, once="old")
    items = [
        {"account": "acme", "request_id": "new", "units": 2},
        {"account": "acme", "request_id": "old", "units": 1},
        {"account": "acme", "request_id": "old", "units": 5},
        {"account": "acme", "request_id": "much", "units": 500},
        {"account": "acme", "request_id": "float", "units": 1.5},
        {"account": "acme", "units": 1},
        {"account": "beta", "request_id": "new", "units": 1},
        "nonsense",
    ]
    done = api.call("POST", "/v1/batch", {"items": items}).json()["outcomes"]
    assert [one["status"] for one in done] == [
        *("created", "replayed", "conflict", "refused", "invalid", "invalid", "refused", "invalid")
    ]
    assert (done[0]["receipt"]["available"], done[3]["problem"]["needed"]) == ("7", "500")
    assert done[3]["problem"]["request_id"] == "much"
    assert api.call("GET", "/v1/accounts/acme/balance").json()["used"] == "3"
    for wrong in ([], [items[0]] * 10_001):
        said = api.call("POST", "/v1/batch", {"items": wrong})
        assert code_of(said) == (422, "invalid_input")
