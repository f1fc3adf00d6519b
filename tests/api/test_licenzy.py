"""Licenzy's runtime routes: the shapes, words and statuses that its documentation shows."""

import pytest

CONSUME = "/v1/usage/consume"


@pytest.fixture
def packs(api):
    api.call("POST", "/v1/accounts/user_123/grants", {"units": 1_000}, once="pack-1")
    return api


def test_consume_answers_three_fields(packs):
    body = {"subject_ref": "user_123", "units": 100}
    first = packs.call("POST", CONSUME, body, once="usage-user_123-req_987")
    assert (first.status_code, first.json()) == (
        *(200, {"ok": True, "consumed": 100, "usage_remaining": 900}),
    )
    again = packs.call("POST", CONSUME, body, once="usage-user_123-req_987")
    assert (again.status_code, again.json()) == (200, first.json())
    assert packs.call("GET", "/v1/accounts/user_123/balance").json()["available"] == "900"


def test_too_little_left_is_a_conflict_in_one_word(packs):
    said = packs.call("POST", CONSUME, {"subject_ref": "user_123", "units": 1_001}, once="u")
    assert (said.status_code, said.json()) == (409, {"error": "insufficient_usage"})
    assert said.headers["content-type"] == "application/json"
    nobody = packs.call("POST", CONSUME, {"subject_ref": "nobody", "units": 1}, once="u")
    assert (nobody.status_code, nobody.json()) == (409, {"error": "insufficient_usage"})


def test_an_id_reused_for_something_else_is_rejected(packs):
    packs.call("POST", CONSUME, {"subject_ref": "user_123", "units": 1}, once="u")
    said = packs.call("POST", CONSUME, {"subject_ref": "user_123", "units": 2}, once="u")
    assert (said.status_code, said.json()) == (409, {"error": "idempotency_conflict"})


@pytest.mark.parametrize(
    ("body", "once", "status", "word"),
    [
        ({"subject_ref": "user_123", "units": 1}, None, 400, "missing_idempotency_key"),
        ({"subject_ref": "user_123", "units": 1, "meter": "x"}, "u", 400, "invalid_request"),
        ({"subject_ref": "user_123", "units": 0}, "u", 400, "invalid_request"),
        ({"subject_ref": "user_123", "units": 1.5}, "u", 400, "invalid_request"),
        ({"units": 1}, "u", 400, "invalid_request"),
    ],
)
def test_what_is_malformed_is_said_in_one_word(packs, body, once, status, word):
    said = packs.call("POST", CONSUME, body, once=once)
    assert (said.status_code, said.json()) == (status, {"error": word})


def test_keys_are_refused_in_its_words(packs):
    for headers, word in (
        ({"authorization": ""}, "missing_bearer_token"),
        ({"authorization": "Bearer lz_test_x"}, "invalid_api_key"),
    ):
        said = packs.call("POST", "/v1/access/check", {"subject_ref": "u"}, headers=headers)
        assert (said.status_code, said.json()) == (401, {"error": word})


def test_access_follows_what_is_left(packs):
    def access():
        check = packs.call("POST", "/v1/access/check", {"subject_ref": "user_123"})
        whole = packs.call("GET", "/v1/customer/access/user_123")
        assert check.json() == {"subject_ref": "user_123", "allowed": whole.json()["has_access"]}
        return whole.json()

    found = access()
    assert (found["subject_ref"], found["has_access"], found["status"]) == (
        *("user_123", True, "active"),
    )
    assert found["entitlements"] == [
        {
            "kind": "usage_pack",
            "status": "active",
            "available": True,
            "usage_total": 1_000,
            "usage_remaining": 1_000,
            "expires_at": None,
            "entitlement_id": "pack-1",
        }
    ]
    listed = packs.call("GET", "/v1/entitlements/user_123").json()
    assert listed == {"subject_ref": "user_123", "entitlements": found["entitlements"]}
    packs.call("POST", CONSUME, {"subject_ref": "user_123", "units": 1_000}, once="all")
    assert (access()["has_access"], access()["status"]) == (False, "inactive")
    packs.call("POST", "/v1/accounts/user_123/grants", {"units": 5}, once="pack-2")
    packs.call("POST", "/v1/accounts/user_123/freeze", once="f")
    assert (access()["has_access"], access()["status"]) == (False, "frozen")


def test_a_subject_nobody_knows_has_no_access(packs):
    assert packs.call("POST", "/v1/access/check", {"subject_ref": "nobody"}).json() == {
        "subject_ref": "nobody",
        "allowed": False,
    }
    found = packs.call("GET", "/v1/customer/access/nobody").json()
    assert (found["has_access"], found["status"], found["entitlements"]) == (False, "inactive", [])
