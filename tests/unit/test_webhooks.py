"""Endpoints: who wants what, signatures that somebody else's library verifies, the schedule."""

import base64
import json
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

import tillroll
from tillroll import webhooks as w
from tillroll.embedded import Ledger
from tillroll.ledger import webhooks
from tillroll.ledger.errors import IdempotencyConflict, InvalidInput, NotFound
from tillroll.ledger.events import TOPICS, id_of, place_of
from tillroll.ledger.types import DAY, HOUR, SECOND
from tillroll.ledger.webhooks import Endpoint, Health, Place, Secret

NOW = 1_800_000_000 * SECOND
BODY = b'{"type":"grant.created","data":{"units":"12.5"}}'


def made(ledger: Ledger, **kwargs):
    url = kwargs.pop("url", "https://hooks.example/in")
    return ledger._engine.perform(lambda tx: w.make(tx, "default", url, at=NOW, **kwargs))


def act(ledger: Ledger, what, *args, **kwargs):
    return ledger._engine.perform(lambda tx: what(tx, *args, **kwargs))


# ---------------------------------------------------------------- signing


def headers(secrets, at=None):
    at = at or int(datetime.now(UTC).timestamp()) * SECOND  # the library compares with the clock
    return {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(at // SECOND),
        "webhook-signature": webhooks.signatures(secrets, "evt_1", at, BODY),
    }


@pytest.mark.parametrize("size", [24, 32, 64])
def test_somebody_elses_library_verifies(size):
    secret = webhooks.show_secret(bytes(range(size)))
    assert Webhook(secret).verify(BODY, headers([Secret(secret)])) == json.loads(BODY)


def test_another_secret_body_or_id_does_not_verify():
    ours, theirs = (webhooks.show_secret(bytes([n] * 32)) for n in (1, 2))
    good = headers([Secret(ours)])
    for secret, body, changed in (
        (theirs, BODY, {}),
        (ours, BODY + b" ", {}),
        (ours, BODY, {"webhook-id": "evt_2"}),
        (ours, BODY, {"webhook-timestamp": str(int(good["webhook-timestamp"]) - 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, good | changed)


def test_it_is_the_signature_of_the_specification():
    secret = "whsec_" + base64.b64encode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").decode()
    ours = webhooks.signatures([Secret(secret)], "msg_p5jXN8AQM9LWM0D4loKWxJek", NOW, BODY)
    at = datetime.fromtimestamp(NOW // SECOND, UTC)
    assert ours == Webhook(secret).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, BODY.decode())


def test_a_rotated_secret_is_signed_with_for_its_overlap():
    with tillroll.open("memory://") as ledger:
        place, first = made(ledger)
        name = place.endpoint.id
        place, second = act(ledger, w.rotate, "default", name, at=NOW, overlap=2 * HOUR)
        secrets = place.endpoint.secrets
        assert [one.value for one in secrets] == [second, first]
        within = webhooks.signatures(secrets, "evt_1", NOW + 2 * HOUR - 1, BODY).split(" ")
        after = webhooks.signatures(secrets, "evt_1", NOW + 2 * HOUR, BODY).split(" ")
        assert (len(within), len(after)) == (2, 1)
        fresh, _ = act(ledger, w.rotate, "default", name, at=NOW + 3 * HOUR)
        assert [one.value for one in fresh.endpoint.secrets][1:] == [second], "the first is over"
        for _ in range(10):
            fresh, _ = act(ledger, w.rotate, "default", name, at=NOW + 3 * HOUR)
        assert len(fresh.endpoint.secrets) == w.SECRETS_MAX
        with pytest.raises(InvalidInput):
            act(ledger, w.rotate, "default", name, at=NOW, overlap=31 * DAY)


def test_both_secrets_verify_during_the_overlap():
    pair = [Secret(webhooks.show_secret(bytes([n] * 32))) for n in (1, 2)]
    said = headers(pair)
    for one in pair:
        assert Webhook(one.value).verify(BODY, said)


# ---------------------------------------------------------------- the schedule


def test_attempts_are_spread_over_three_days_and_then_end():
    at, waits = NOW, []
    for attempts in range(1, webhooks.ATTEMPTS_MAX):
        due = webhooks.next_attempt(attempts, at, 0.0)
        assert due is not None
        waits.append((due - at) // SECOND)
        at = due
    assert waits == [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert 3 * DAY <= at - NOW < 4 * DAY
    assert webhooks.next_attempt(webhooks.ATTEMPTS_MAX, at, 0.0) is None
    assert all(one < other for one, other in pairwise(waits))


def test_jitter_makes_a_wait_longer_and_never_shorter():
    for chance, wait in ((0.0, 300), (0.5, 330), (1.0, 360)):
        assert webhooks.next_attempt(2, NOW, chance) == NOW + wait * SECOND


# ---------------------------------------------------------------- who wants what


def test_filters_cover_types():
    endpoint = Endpoint(id="we_1", project="default", url="https://x.test", events=("grant.*",))
    assert webhooks.wants(endpoint, "grant.created")
    assert not webhooks.wants(endpoint, "usage.consumed")
    found = webhooks.topics_of([Place(endpoint)], "default")
    assert found == {topic for topic in TOPICS if topic.startswith("grant.")}
    assert webhooks.topics_of([Place(endpoint)], "default:test") == frozenset()
    assert webhooks.topics_of([Place(endpoint, Health(disabled_at=1))], "default") == frozenset()


@pytest.mark.parametrize("patterns", [[], ["nothing.like.it"], ["grant"], ["grant*"], ["*"] * 0])
def test_a_filter_that_covers_nothing_is_refused(patterns):
    with pytest.raises(InvalidInput):
        webhooks.check_filters(patterns)


def test_licenzys_seven_names():
    endpoint = Endpoint(id="we_1", project="p", url="https://x.test", format="licenzy")

    def told(topic, **data):
        payload = {
            "id": "evt_1",
            "type": topic,
            "account": "acme",
            "seq": 3,
            "occurred_at": "2026-01-01T00:00:00Z",
            "data": data,
        }
        return msgspec.json.encode(payload).decode()

    bought, given = (told("grant.created", category=c, actor="ann") for c in ("paid", "promo"))
    assert webhooks.goes_to(endpoint, "grant.created", bought)
    assert not webhooks.goes_to(endpoint, "grant.created", given)
    assert not webhooks.wants(endpoint, "hold.opened"), "they have no word for it"
    body = json.loads(webhooks.in_words_of("licenzy", bought))
    assert (body["type"], body["subject_ref"]) == ("purchase.finalized", "acme")
    assert (body["actor_user_id"], body["source"]) == ("ann", "runtime")
    names = set(webhooks.LICENZY.values())
    for topic in ("entitlement.updated", "entitlement.ended"):
        said = webhooks.in_words_of("licenzy", told(topic, kind="subscription"))
        names.add(json.loads(said)["type"])
        plain = webhooks.in_words_of("licenzy", told(topic, kind="time_pass"))
        assert json.loads(plain)["type"] == "entitlement.updated"
    assert names == {
        *("purchase.finalized", "entitlement.updated", "usage.consumed"),
        *("subscription.updated", "subscription.deleted"),
        *("invoice.payment_succeeded", "invoice.payment_failed"),
    }


# ---------------------------------------------------------------- administration


def test_an_endpoint_is_made_changed_and_removed():
    with tillroll.open("memory://") as ledger:
        place, secret = made(ledger, events=["grant.*"], description="books")
        name = place.endpoint.id
        assert secret is not None
        raw = base64.b64decode(secret.removeprefix("whsec_"))
        assert secret.startswith("whsec_")
        assert 24 <= len(raw) <= 64
        assert "secret" not in json.dumps(w.shown(place)).replace('"secrets"', "").replace(
            '"secret": null', ""
        )
        again, none = made(ledger, endpoint_id=name, events=["grant.*"], description="books")
        assert (again, none) == (place, None)
        with pytest.raises(IdempotencyConflict):
            made(ledger, endpoint_id=name)
        changed = act(ledger, w.change, "default", name, events=["*"], disabled=True)
        assert (changed.is_open, changed.endpoint.events) == (False, ("*",))
        with ledger.store.read() as reader:
            assert reader.topics("default") == frozenset()
            with pytest.raises(NotFound):
                w.place_in(reader, "another", name)
        opened = act(ledger, w.change, "default", name, disabled=False)
        assert opened.is_open
        act(ledger, w.remove, "default", name)
        with pytest.raises(NotFound):
            act(ledger, w.change, "default", name, disabled=True)


@pytest.mark.parametrize(
    "url",
    [
        *("http://x.test/", "ftp://x.test/", "https://", "https:///path", "x.test", ""),
        *("https://user@x.test/", "https://:pw@x.test/", "https://x.test/#part"),
        *("https://x.test:0/", "https://x.test:99999/", "https://x.test/a b", "https://é.test/"),
        *("https://x.test/\r\nX: y", "https://[::1", "https://x.test/" + "a" * 2_000),
    ],
)
def test_a_url_that_nothing_is_sent_to_is_refused(url):
    with tillroll.open("memory://") as ledger, pytest.raises(InvalidInput):
        made(ledger, url=url)


def test_plain_http_is_taken_where_it_is_allowed():
    with tillroll.open("memory://") as ledger:
        place, _ = made(ledger, url="http://10.0.0.1:8080/in?x=1", private=True)
        assert place.endpoint.url == "http://10.0.0.1:8080/in?x=1"


def test_there_are_only_so_many_endpoints():
    with tillroll.open("memory://") as ledger:
        for _ in range(webhooks.ENDPOINTS_MAX):
            made(ledger)
        with pytest.raises(InvalidInput, match="at the most"):
            made(ledger)


@pytest.mark.parametrize("wanted", [{"format_": "xml"}, {"description": "a\nb"}])
def test_what_an_endpoint_cannot_have(wanted):
    with tillroll.open("memory://") as ledger, pytest.raises(InvalidInput):
        made(ledger, **wanted)


# ---------------------------------------------------------------- ids


def test_an_id_names_the_place():
    owner = bytes(range(16))
    assert place_of(id_of(owner, 12, 3)) == (owner, 12, 3)


@pytest.mark.parametrize(
    "text",
    [
        *("", "evt_", "evt_00_1_0", "evt_" + "0" * 32, "evt_" + "0" * 32 + "_1"),
        *("evt_" + "0" * 32 + "_01_0", "evt_" + "g" * 32 + "_1_0", "evt_" + "A" * 32 + "_1_0"),
        *("0" * 32 + "_1_0", "evt_" + "0" * 32 + "_99999999999999999999_0"),
    ],
)
def test_what_is_no_id_is_refused(text):
    with pytest.raises(InvalidInput):
        place_of(text)


def test_sending_again_asks_for_both_or_for_all():
    with tillroll.open("memory://") as ledger:
        place, _ = made(ledger)
        event = id_of(bytes(16), 1, 0)
        with pytest.raises(InvalidInput):
            act(ledger, w.send_again, "default", NOW, event_id=event)
        with pytest.raises(NotFound):
            act(ledger, w.send_again, "default", NOW, place.endpoint.id, event)
        with pytest.raises(NotFound):
            act(ledger, w.send_again, "default", NOW, "we_nobody")
        assert act(ledger, w.send_again, "default", NOW) == (0, False)
        with ledger.store.read() as reader:
            for wrong in ({"limit": 0}, {"after": "x"}, {"after": "1~x~y"}):
                with pytest.raises(InvalidInput):
                    w.page(reader, "default", **wrong)


def test_what_an_endpoint_does_not_want_goes_to_none():
    place = Endpoint(project="p/live", id="we", url="https://x.test", events=("grant.*",))
    assert not webhooks.goes_to(place, "usage.consumed", "{}")
    assert webhooks.goes_to(place, "grant.created", "{}")
    assert webhooks.in_words_of("tillroll", '{"data":{}}') == b'{"data":{}}'
