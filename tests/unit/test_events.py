"""Events: each kind of entry tells what it should, in the shape that the catalog publishes."""

import json
from datetime import UTC, datetime, timedelta

import jsonschema
import msgspec
import pytest

import tillroll
from tillroll.embedded import Ledger
from tillroll.ledger import events
from tillroll.ledger.commands import account_id
from tillroll.ledger.webhooks import ENDPOINT, Endpoint

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A ledger with a clock, and an endpoint that wants to hear of something."""

    def __init__(self, *topics: str, project: str = "default") -> None:
        self.now = START
        self.project = project
        self.ledger: Ledger = tillroll.open("memory://", project=project, clock=lambda: self.now)
        if topics:
            endpoint = Endpoint(id="we_1", project=project, url="https://x.test", events=topics)
            self.put(msgspec.json.encode(endpoint).decode())

    def put(self, document):
        self.ledger._engine.perform(lambda tx: tx.put_document(ENDPOINT, "we_1", document))

    def told(self):
        with self.ledger.store.read() as reader:
            return [json.loads(row.event.payload) for row in reader.events()]


def live(world: World) -> None:
    """Let an account have something of everything happen to it."""
    ledger = world.ledger
    ledger.grant("acme", 100, request_id="g", source="invoice 7", expires_in="5d", actor="ann")
    ledger.grant("acme", 5, request_id="later", effective_at=START + timedelta(days=1))
    ledger.grant("acme", 5, request_id="gone")
    ledger.void("acme", "gone", reason="by mistake")
    ledger.set_recurring("acme", "plan", 10, anchor="2026-01-01", every="week")
    ledger.consume("acme", "image", units=3, request_id="c", tags={"member": "bob"})
    ledger.hold("acme", units=20, request_id="h1", expires_in="1h")
    ledger.settle("acme", "h1", units=7)
    ledger.hold("acme", units=2, request_id="h2")
    ledger.release("acme", "h2")
    ledger.hold("acme", units=2, request_id="h3", expires_in="1h")
    ledger.hold("acme", units=2, request_id="h4")
    ledger.mark_in_doubt("acme", "h4")
    ledger.refund("acme", "c", units=1)
    ledger.adjust("acme", -1, reason="a gift less")
    ledger.entitle("acme", "hd", features={"hd": True, "seats": 5}, lasts="2d")
    ledger.freeze("acme")
    ledger.unfreeze("acme")
    world.now += timedelta(days=6)
    while ledger.book_due():
        pass
    ledger.close_account("acme")


def test_every_type_of_the_ledger_is_told_in_its_shape():
    world = World("*")
    live(world)
    found = world.told()
    kinds = {one["type"] for one in found}
    assert kinds == {one.topic for one in events.TYPES if one.kinds}
    shapes = {kind.topic: schema for kind, schema in events.schemas()}
    whole = msgspec.json.schema(events.Payload)
    for one in found:
        jsonschema.validate(one, whole)
        jsonschema.validate(one["data"], shapes[one["type"]])
        assert (one["account"], one["project"], one["mode"]) == ("acme", "default", "live")


def test_what_is_told_is_what_the_history_has():
    world = World("*")
    live(world)
    history = {receipt.seq: receipt for receipt in world.ledger.history("acme")}
    for one in world.told():
        receipt = history[one["seq"]]
        assert one["occurred_at"] == receipt.to_dict()["recorded_at"]
        if "units" in one["data"] and not one["type"].startswith("alert."):
            shown = receipt.to_dict()
            for name in ("units", "available", "held", "wallet", "request_id", "actor", "reason"):
                assert one["data"][name] == shown[name], (one["type"], name)


def test_details_are_there():
    world = World("*")
    live(world)
    found = {one["type"]: one["data"] for one in reversed(world.told())}
    grant = found["grant.created"]
    assert (grant["grant_id"], grant["category"], grant["source"]) == ("g", "paid", "invoice 7")
    assert (grant["remaining"], grant["expires_at"]) == ("100", "2026-01-06T00:00:00Z")
    assert found["grant.voided"]["grant_id"] == "gone"
    used = found["usage.consumed"]
    assert (used["operation"], used["tags"], used["hold_id"]) == ("image", {"member": "bob"}, None)
    assert used["final"] is True
    assert found["hold.expired"]["hold_id"] == "h3"
    assert found["hold.in_doubt"]["expires_at"] == "2026-01-02T00:00:00Z"
    assert found["refund.created"]["charge"] == "c"
    held = found["entitlement.updated"]
    assert (held["entitlement"], held["kind"], held["status"]) == ("hd", "feature", "active")
    assert (held["features"], held["ends_at"]) == ({"hd": True, "seats": 5}, "2026-01-03T00:00:00Z")
    assert found["entitlement.ended"]["reason"] == "its time is over"


def test_ids_are_made_from_the_place_and_never_alike():
    world = World("*")
    live(world)
    found = world.told()
    ids = [one["id"] for one in found]
    assert len(set(ids)) == len(ids)
    owner = account_id("default", "acme")
    assert all(events.place_of(one["id"])[:2] == (owner, one["seq"]) for one in found)
    again = World("*")
    live(again)
    assert [one["id"] for one in again.told()] == ids


def test_where_nobody_listens_nothing_is_made():
    world = World()
    live(world)
    assert world.told() == []


def test_only_what_is_wanted_is_made_and_only_from_then_on():
    world = World("hold.*")
    live(world)
    assert {one["type"] for one in world.told()} == {
        *("hold.opened", "hold.released", "hold.expired", "hold.in_doubt"),
    }
    before = len(world.told())
    world.put(None)
    world.ledger.grant("zoe", 5)
    world.ledger.hold("zoe", units=1)
    assert len(world.told()) == before


def test_the_test_mode_is_named():
    world = World("*", project="shop:test")
    world.ledger.grant("acme", 1)
    [one] = world.told()
    assert (one["project"], one["mode"]) == ("shop", "test")


def test_a_preview_tells_nothing():
    world = World("*")
    world.ledger.grant("acme", 5)
    world.ledger.preview.consume("acme", units=1)
    assert [one["type"] for one in world.told()] == ["grant.created"]


def test_what_a_joined_host_rolls_back_is_not_told(tmp_path):
    import sqlite3  # noqa: PLC0415 - the host's own

    path = tmp_path / "a.db"
    with tillroll.open(path, library="sqlite3") as ledger:
        endpoint = Endpoint(id="we_1", project="default", url="https://x.test")
        text = msgspec.json.encode(endpoint).decode()
        ledger._engine.perform(lambda tx: tx.put_document(ENDPOINT, "we_1", text))
        ledger.grant("acme", 10)
        host = sqlite3.connect(path, isolation_level=None)
        for end in ("ROLLBACK", "COMMIT"):
            host.execute("BEGIN IMMEDIATE")
            ledger.join(host).consume("acme", units=1)
            host.execute(end)
        host.close()
        with ledger.store.read() as reader:
            assert [row.event.topic for row in reader.events()] == [
                *("grant.created", "usage.consumed"),
            ]


def test_a_type_that_is_not_in_the_catalog_cannot_be_told():
    data = events.EndpointData(endpoint="we_1", url="https://x.test", reason="")
    with pytest.raises(AssertionError, match="catalog"):
        events.event("p", bytes(16), 1, 0, "no.such", data, None, 0)
