"""What is sold and what may be used, over HTTP: as written, as read, and in Licenzy's words."""

import pytest

CATALOG = {
    "packs": {"starter": {"units": "500"}},
    "plans": {
        "pro": {"grants": [{"units": "100"}], "features": {"hd": True, "seats": 5}},
        "max": {"grants": [{"units": "900"}], "features": {"hd": True, "seats": "unlimited"}},
    },
    "passes": {"day": {"lasts": 86_400_000_000, "features": {"hd": True}}},
    "features": {"hd": {}, "seats": {"kind": "limit"}, "beta": {}},
    "coupons": {"welcome": {"units": "5"}},
}
ACME = "/v1/accounts/acme"


@pytest.fixture
def shop(api):
    body = {"prices": [], "author": "ann", "reason": "first", "products": CATALOG}
    made = api.call("POST", "/v1/prices", body)
    assert (made.status_code, made.json()["products"]["packs"]) == (200, CATALOG["packs"])
    return api


def test_a_catalog_stays_unless_it_is_given(shop):
    kept = shop.call("POST", "/v1/prices", {"prices": [], "author": "ann", "reason": "same"})
    assert (kept.json()["version"], "products" in kept.json()) == (1, True)
    bad = {"prices": [], "author": "ann", "reason": "bad", "products": {"packs": {"x": {}}}}
    said = shop.call("POST", "/v1/prices", bad)
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
    assert said.json()["detail"].startswith("products: ")
    gone = {"prices": [], "author": "ann", "reason": "gone", "products": {}}
    assert "products" not in shop.call("POST", "/v1/prices", gone).json()


def test_a_subscription_from_its_beginning_to_its_end(shop):
    began = shop.call("POST", ACME + "/subscriptions", {"plan": "pro"}, once="sub-1")
    assert (began.json()["kind"], began.json()["entitlement"]["status"]) == (
        *("entitlement", "active"),
    )
    again = shop.call("POST", ACME + "/subscriptions", {"plan": "pro"}, once="sub-1")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["entitlement"] == began.json()["entitlement"]
    moved = {"plan": "max", "when": "period_end"}
    shop.call("POST", ACME + "/subscriptions", moved, once="sub-2")
    path = ACME + "/entitlements/subscription"
    late = shop.call("PATCH", path, {"status": "past_due"}, once="sub-3")
    assert late.json()["entitlement"]["next"] == {"product": "max", "version": 1}
    (held,) = shop.call("GET", ACME + "/entitlements").json()["entitlements"]
    assert (held["product"], held["status"], held["next"]["product"]) == ("pro", "past_due", "max")
    taken = {"units": 3, "feature": "hd"}
    assert shop.call("POST", ACME + "/consume", taken, once="c").json()["feature"] == "hd"
    ended = shop.call("DELETE", path, once="sub-4")
    assert ended.json()["kind"] == "entitlement_ended"
    refused = shop.call("DELETE", path, once="sub-5")
    assert (refused.status_code, refused.json()["code"]) == (404, "entitlement_not_found")
    refused = shop.call("POST", ACME + "/holds", taken, once="h")
    assert (refused.status_code, refused.json()["code"]) == (402, "not_entitled")
    assert [way["product"] for way in refused.json()["ways_out"]] == ["pro", "max", "day"]
    story = shop.call("GET", ACME + "/explain/subscription").json()
    assert story["sentences"][-2].endswith("ended.")


def test_terms_of_ones_own(shop):
    terms = {"features": {"seats": 3}, "grants": [{"units": "2.5", "every": "week"}]}
    made = shop.call("PUT", ACME + "/entitlements/deal", terms, once="deal-1")
    assert made.json()["entitlement"]["grants"][0]["units"] == "2.5"
    assert shop.call("GET", ACME + "/balance").json()["available"] == "2.5"
    for bad in ({"features": {"seats": 1.5}}, {"grants": [{"unit": 1}]}, {"kind": "plan"}):
        said = shop.call("PUT", ACME + "/entitlements/deal", bad, once="deal-2")
        assert (said.status_code, said.json()["code"]) == (422, "invalid_input")


def test_a_purchase_and_a_coupon(shop):
    shown = shop.call("POST", ACME + "/preview/purchases", {"product": "starter"})
    assert (shown.json()["product"], shown.json()["available"]) == ("starter", "500")
    bought = shop.call("POST", ACME + "/purchases", {"product": "starter"}, once="order-1")
    assert (bought.json()["product"], bought.json()["catalog_version"]) == ("starter", 1)
    got = shop.call("POST", ACME + "/redemptions", {"coupon": "welcome"}, once="red-1")
    assert (got.json()["coupon"], got.json()["available"]) == ("welcome", "505")
    said = shop.call("POST", ACME + "/redemptions", {"coupon": "welcome"}, once="red-2")
    assert (said.status_code, said.json()["code"]) == (410, "coupon_used")
    held = shop.call("GET", "/v1/holdings").json()["holdings"]
    assert {one["name"]: one["section"] for one in held} == {"starter": "pack", "welcome": "coupon"}


def test_access_says_why(shop):
    no = shop.call("POST", ACME + "/access", {"feature": "hd"}).json()
    assert (no["allowed"], no["reason"], no["ways_out"][0]["product"]) == (
        *(False, "not_entitled", "pro"),
    )
    shop.call("POST", ACME + "/purchases", {"product": "day"}, once="order-1")
    yes = shop.call("POST", ACME + "/access", {"feature": "hd"}).json()
    assert (yes["allowed"], yes["by"]) == (True, ["day"])
    before = {"feature": "hd", "at": "2026-01-01T00:00:00Z"}
    assert not shop.call("POST", ACME + "/access", before).json()["allowed"]
    said = shop.call("POST", ACME + "/access", {"meters": {"images": 1}})
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
    listed = shop.call("GET", ACME + "/entitlements?at=2026-01-01T00:00:00Z").json()
    assert listed == {"account": "acme", "entitlements": []}


def test_a_null_in_a_query_is_no_moment(shop):
    said = shop.call("GET", ACME + "/entitlements?at=null")
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")
    shop.call("POST", ACME + "/grants", {"units": 1}, once="g")
    said = shop.call("GET", ACME + "/statement?before=null")
    assert (said.status_code, said.json()["code"]) == (422, "invalid_input")


# ---------------------------------------------------------------- Licenzy's words


def test_licenzy_is_told_no_more_than_it_asks(shop):
    shop.call("POST", ACME + "/subscriptions", {"plan": "pro"}, once="sub-1")
    check = shop.call("POST", "/v1/access/check", {"subject_ref": "acme"})
    assert check.json() == {"subject_ref": "acme", "allowed": True}
    asked = {"subject_ref": "acme", "feature": "4k"}
    said = shop.call("POST", "/v1/access/check", asked).json()
    assert (said["allowed"], said["reason"], said["ways_out"]) == (False, "not_entitled", [])
    said = shop.call("POST", "/v1/access/check", {"subject_ref": "acme", "units": "1" + "0" * 40})
    assert (said.status_code, said.json()) == (400, {"error": "invalid_request"})


def test_licenzy_lists_all_four_kinds(shop):
    shop.call("POST", ACME + "/subscriptions", {"plan": "pro"}, once="s")
    shop.call("POST", ACME + "/purchases", {"product": "day"}, once="d")
    shop.call("POST", ACME + "/purchases", {"product": "starter"}, once="p")
    shop.call("PUT", ACME + "/entitlements/beta", {"status": "paused"}, once="b")
    found = shop.call("GET", "/v1/customer/access/acme").json()
    assert (found["has_access"], found["status"]) == (True, "active")
    rights = {one["entitlement_id"]: one for one in found["entitlements"]}
    assert rights["subscription"] == {
        "kind": "subscription",
        "status": "active",
        "available": True,
        "expires_at": None,
        "entitlement_id": "subscription",
        "product_code": "pro",
    }
    assert (rights["day"]["kind"], rights["day"]["available"]) == ("time_pass", True)
    assert (rights["beta"]["kind"], rights["beta"]["available"]) == ("feature", False)
    pack = rights["p"]
    assert (pack["kind"], pack["product_code"], pack["usage_remaining"]) == (
        *("usage_pack", "starter", 500),
    )
    listed = shop.call("GET", "/v1/entitlements/acme").json()
    assert listed == {"subject_ref": "acme", "entitlements": found["entitlements"]}
    shop.call("POST", ACME + "/close", once="end")
    found = shop.call("GET", "/v1/customer/access/acme").json()
    assert (found["has_access"], found["status"]) == (False, "closed")
    assert not any(one["available"] for one in found["entitlements"])
