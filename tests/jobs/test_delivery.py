"""Delivering: at least once, on the schedule, to who still wants it, whoever dies on the way."""

import json
import threading
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from standardwebhooks import Webhook

import tillroll
from tests.jobs.receiver import Received, Receiver, fails
from tillroll import webhooks
from tillroll.embedded import Ledger
from tillroll.jobs import Deliverer, Sender, delivery, prune
from tillroll.jobs.delivery import AT_ONCE_MAX, LOG_MAX, PER_ENDPOINT_MAX, SAID_BYTES_MAX
from tillroll.ledger.types import DAY, SECOND


class World:
    """A ledger with a clock, and what delivers its events."""

    def __init__(self, url: str = "memory://", *, lease_seconds: float = 60.0) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)  # receivers compare it with theirs
        self.ledger: Ledger = tillroll.open(url, clock=lambda: self.now)
        self.engine = self.ledger._engine
        self.lease_seconds = lease_seconds
        self.deliverer = self.another()

    def another(self) -> Deliverer:
        sender = Sender(private=True, seconds=10)
        kwargs = {"lease_seconds": self.lease_seconds, "chance": lambda: 0.0}
        return Deliverer(self.engine, sender, **kwargs)

    def endpoint(self, url: str, project: str = "default", **kwargs):
        def act(tx):
            return webhooks.make(tx, project, url, at=self.engine.clock(), private=True, **kwargs)

        place, secret = self.engine.perform(act)
        return place.endpoint.id, secret

    def run(self) -> None:
        """Deliver all that is due now."""
        while self.deliverer.round()["more"]:
            pass

    def deliveries(self, **kwargs):
        with self.ledger.store.read() as reader:
            found, _ = webhooks.page(reader, "default", limit=1_000, **kwargs)
        return [webhooks.shown_delivery(one) for one in found]

    def place(self, endpoint_id: str):
        with self.ledger.store.read() as reader:
            return webhooks.place_in(reader, "default", endpoint_id)

    def close(self) -> None:
        self.deliverer.close()
        self.ledger.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path):
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/a.db"}.get(request.param)
    found = World(url or request.getfixturevalue("postgres_url"))
    yield found
    found.close()


@pytest.fixture
def quick():
    found = World()
    yield found
    found.close()


def test_an_event_arrives_signed_and_whole(world: World):
    with Receiver() as receiver:
        _, secret = world.endpoint(receiver.url, events=["grant.*"])
        world.ledger.grant("acme", "12.5", request_id="g")
        world.ledger.consume("acme", units=1)
        world.run()
        world.run()
    [got] = receiver.received
    assert Webhook(secret).verify(got.body, got.headers)["type"] == "grant.created"
    assert (got.told["account"], got.told["data"]["units"]) == ("acme", "12.5")
    assert got.told["id"] == got.id
    [delivery] = world.deliveries()
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)
    assert delivery["log"][0]["status"] == 204


def test_what_fails_is_tried_again_on_the_schedule_with_the_same_id(world: World):
    with Receiver(lambda _, times: 200 if times > 3 else 500) as receiver:
        world.endpoint(receiver.url)
        world.ledger.grant("acme", 1)
        waits = []
        world.run()
        while (delivery := world.deliveries()[0])["state"] == "pending":
            due = datetime.fromisoformat(delivery["next_at"])
            waits.append((due - world.now).total_seconds())
            world.now = due - timedelta(microseconds=1)
            before = len(receiver.received)
            world.run()
            assert len(receiver.received) == before, "it is not due yet"
            world.now = due
            world.run()
    assert waits == [5, 300, 1_800]
    assert len({got.id for got in receiver.received}) == 1
    assert len({got.body for got in receiver.received}) == 1
    stamps = [int(got.headers["webhook-timestamp"]) for got in receiver.received]
    assert stamps == sorted(set(stamps)), "each attempt is signed at its own time"
    assert [one["status"] for one in delivery["log"]] == [500, 500, 500, 200]
    assert delivery["log"][0]["response"] == "that is 500"


def to_the_end(world: World) -> None:
    """Let time pass until nothing is pending any more."""
    world.run()
    while True:
        with world.ledger.store.read() as reader:
            next_at = reader.backlog().next_at
        if next_at is None:
            return
        world.now += timedelta(microseconds=max(next_at - world.engine.clock(), 0))
        world.run()


def test_after_ten_attempts_it_is_dead_and_can_be_sent_again(world: World):
    with Receiver(lambda *_: 500) as receiver:
        name, _ = world.endpoint(receiver.url)
        world.ledger.grant("acme", 1)
        world.ledger.grant("zoe", 1)
        to_the_end(world)
        dead = world.deliveries(state="dead")
        assert [(one["attempts"], len(one["log"])) for one in dead] == [(10, 10)] * 2
        assert set(receiver.times.values()) == {10}
        receiver.answer = lambda *_: 200
        at = world.engine.clock()
        again = world.engine.perform(
            lambda tx: webhooks.send_again(tx, "default", at, name, dead[0]["event"])
        )
        world.run()
        assert again == (1, False)
        assert [one["state"] for one in world.deliveries(event=dead[0]["event"])] == ["delivered"]
        assert len(world.deliveries(state="dead")) == 1
        assert world.engine.perform(lambda tx: webhooks.send_again(tx, "default", at))[0] == 1
        world.run()
        assert world.deliveries(state="dead") == []
        # What was delivered can be sent once more, too.
        world.engine.perform(
            lambda tx: webhooks.send_again(tx, "default", at, name, dead[0]["event"])
        )
        world.run()
    assert receiver.times[dead[0]["event"]] == 12


def test_each_endpoint_gets_what_it_wants(quick: World):
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(Receiver()) for _ in range(3))
        quick.endpoint(one.url, events=["grant.*"])
        quick.endpoint(two.url, events=["usage.consumed", "grant.created"])
        quick.endpoint(three.url, format_="licenzy")
        quick.ledger.grant("acme", 10)
        quick.ledger.grant("acme", 1, category="promo")
        quick.ledger.consume("acme", units=1)
        quick.run()
    grant, used = "grant.created", "usage.consumed"
    assert sorted(got.told["type"] for got in one.received) == [grant, grant]
    assert sorted(got.told["type"] for got in two.received) == [grant, grant, used]
    assert sorted(got.told["type"] for got in three.received) == ["purchase.finalized", used]


def test_only_2xx_is_taken(quick: World):
    for status in (200, 201, 202, 204, 299, 301, 302, 400, 404, 429, 500, 503):
        with Receiver(lambda _, __, status=status: status) as receiver:
            name, _ = quick.endpoint(receiver.url)
            quick.ledger.grant("acme", 1)
            quick.run()
            wanted = "delivered" if 200 <= status < 300 else "pending"
            assert [one["state"] for one in quick.deliveries(endpoint=name)] == [wanted], status
            quick.engine.perform(lambda tx, name=name: webhooks.remove(tx, "default", name))


def test_410_disables_the_endpoint_and_tells_the_others(quick: World):
    with Receiver(lambda *_: 410) as gone, Receiver() as other:
        name, _ = quick.endpoint(gone.url, events=["grant.*"])
        quick.endpoint(other.url, events=["endpoint.disabled"])
        quick.ledger.grant("acme", 1)
        quick.run()
        quick.ledger.grant("acme", 1)
        quick.run()
    assert len(gone.received) == 1
    [told] = [got.told for got in other.received]
    assert (told["type"], told["account"]) == ("endpoint.disabled", None)
    assert told["data"] == {
        "endpoint": name,
        "url": gone.url,
        "reason": "it answered 410 Gone",
    }
    assert not quick.place(name).is_open
    assert [one["state"] for one in quick.deliveries(endpoint=name)] == ["dead"]


def test_of_several_that_are_disabled_at_once_each_is_told_of(quick: World):
    with Receiver(lambda *_: 410) as gone, Receiver() as other:
        names = {quick.endpoint(gone.url, events=["grant.*"])[0] for _ in range(3)}
        quick.endpoint(other.url, events=["endpoint.disabled"])
        quick.ledger.grant("acme", 1)
        quick.run()
        for n in range(3):  # an account of that name takes no place of theirs
            quick.ledger.grant("~webhooks", 1, request_id=f"g{n}")
        quick.run()
    assert {got.told["data"]["endpoint"] for got in other.received} == names
    assert len({got.told["id"] for got in other.received}) == len(names)


def test_an_endpoint_that_fails_for_days_is_disabled_and_what_waits_is_dead(quick: World):
    with Receiver(lambda *_: 500) as receiver, Receiver() as other:
        name, _ = quick.endpoint(receiver.url, events=["grant.*"])
        quick.endpoint(other.url, events=["endpoint.*"])
        for _ in range(30):
            quick.ledger.grant("acme", 1)
            quick.run()
            quick.now += timedelta(hours=6)
        quick.run()
        place = quick.place(name)
        assert not place.is_open
        assert "took nothing since" in str(place.health.reason)
        assert quick.deliveries(endpoint=name, state="pending") == []
        assert len(other.received) == 1
        last = quick.deliveries(endpoint=name)[0]["log"][-1]
        assert last["error"] is None or "disabled" in last["error"]
        # It is enabled again, and what was given up is asked for.
        receiver.answer = lambda *_: 200
        quick.engine.perform(lambda tx: webhooks.change(tx, "default", name, disabled=False))
        at = quick.engine.clock()
        queued, more = webhooks.send_all_again(quick.engine.perform, "default", at, name)
        quick.run()
        assert (queued, more) == (len(quick.deliveries(endpoint=name, state="delivered")), False)
        assert quick.place(name).health.failing_since is None


def test_one_success_clears_a_failing_endpoint(quick: World):
    with Receiver(lambda _, times: 200 if times == 4 else 500) as receiver:
        name, _ = quick.endpoint(receiver.url)
        quick.ledger.grant("acme", 1)
        seen = []
        for _ in range(4):
            quick.run()
            seen.append(quick.place(name).health.failing_since is not None)
            quick.now += timedelta(hours=1)
    assert seen == [False, False, True, False]


def test_a_removed_endpoint_gets_nothing_any_more(quick: World):
    with Receiver(lambda *_: 500) as receiver:
        name, _ = quick.endpoint(receiver.url)
        quick.ledger.grant("acme", 1)
        quick.run()
        quick.engine.perform(lambda tx: webhooks.remove(tx, "default", name))
        to_the_end(quick)
    assert len(receiver.received) == 1
    [delivery] = quick.deliveries()
    assert delivery["state"] == "dead"
    assert "removed" in delivery["log"][-1]["error"]


def test_what_an_endpoint_says_is_kept_to_a_bound(quick: World):
    def long(received: Received) -> int:
        return 500

    with Receiver() as receiver:
        receiver.take = long  # type: ignore[method-assign]
        name, _ = quick.endpoint(receiver.url)
        quick.ledger.grant("acme", 1)
        for _ in range(3):
            to_the_end(quick)
            at = quick.engine.clock()
            quick.engine.perform(lambda tx, at=at: webhooks.send_again(tx, "default", at, name))
            quick.engine.perform(lambda tx: webhooks.change(tx, "default", name, disabled=False))
        to_the_end(quick)
    [delivery] = quick.deliveries()
    assert len(delivery["log"]) == LOG_MAX
    assert all(len(one["response"]) <= SAID_BYTES_MAX for one in delivery["log"])


def test_one_that_hangs_does_not_take_all(quick: World):
    release = threading.Event()

    def hang(received: Received) -> int:
        release.wait(30)
        return 200

    with Receiver() as slow, Receiver() as good:
        slow.take = hang  # type: ignore[method-assign]
        first, _ = quick.endpoint(slow.url, events=["grant.*"])
        second, _ = quick.endpoint(good.url, events=["hold.*"])
        for n in range(200):
            quick.ledger.grant("acme", 1, request_id=f"g{n}")
        for n in range(20):
            quick.ledger.hold("acme", units=1, request_id=f"h{n}")
        for _ in range(10_000):
            quick.deliverer.round()
            if len(quick.deliveries(endpoint=second, state="delivered")) == 20:
                break
        assert len(good.received) == 20
        assert quick.deliveries(endpoint=first, state="delivered") == []
        assert quick.deliverer._under_way[first] == PER_ENDPOINT_MAX
        release.set()
        quick.run()
    assert len(quick.deliveries(endpoint=first, state="delivered")) == 200


def test_more_endpoints_than_one_round_asks_get_their_turn(quick: World, monkeypatch):
    """Behind a page that is full of what waits for one that hangs."""
    monkeypatch.setattr(delivery, "PLACES_MAX", 2)
    monkeypatch.setattr(delivery, "DUE_MAX", 20)
    release = threading.Event()

    def hang(received: Received) -> int:
        release.wait(30)
        return 200

    with Receiver() as slow, Receiver() as good:
        slow.take = hang  # type: ignore[method-assign]
        quick.endpoint(slow.url, events=["grant.*"])
        for n in range(7):
            quick.endpoint(f"{good.url}/{n}", events=["hold.*"])
        for n in range(40):
            quick.ledger.grant("acme", 1, request_id=f"g{n}")
        quick.deliverer.round()
        quick.ledger.hold("acme", units=1)
        for _ in range(10_000):
            quick.deliverer.round()
            if len(good.received) == 7:
                break
        assert len(good.received) == 7
        release.set()
        quick.run()
    assert {one["state"] for one in quick.deliveries()} == {"delivered"}


def test_what_is_dead_is_sent_again_so_many_at_a_time(world: World, monkeypatch):
    monkeypatch.setattr(webhooks, "REQUEUED_MAX", 3)
    monkeypatch.setattr(webhooks, "REQUEUE_TIMES_MAX", 2)
    with Receiver(lambda *_: 410) as receiver:
        name, _ = world.endpoint(receiver.url)
        for n in range(8):
            world.ledger.grant("acme", 1, request_id=f"g{n}")
        to_the_end(world)
        at = world.engine.clock()
        acts = 0

        def perform(act):
            nonlocal acts
            acts += 1
            return world.engine.perform(act)

        answers = [webhooks.send_all_again(perform, "default", at, name) for _ in range(3)]
    assert answers == [(6, True), (2, False), (0, False)]
    assert acts == 4, "each database transaction is bounded"
    assert {one["state"] for one in world.deliveries()} == {"pending"}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_project_that_hangs_leaves_room_for_another(kind: str, tmp_path: Path):
    world = World("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/a.db")
    release = threading.Event()

    def hang(received: Received) -> int:
        release.wait(30)
        return 200

    other = Ledger(world.engine, "other")
    with Receiver() as slow, Receiver() as good:
        slow.take = hang  # type: ignore[method-assign]
        for _ in range(AT_ONCE_MAX // PER_ENDPOINT_MAX + 1):
            world.endpoint(slow.url, events=["grant.*"])
        world.endpoint(good.url, "other", events=["grant.*"])
        for n in range(AT_ONCE_MAX):
            world.ledger.grant("acme", 1, request_id=f"g{n}")
        for n in range(20):
            other.grant("zoe", 1, request_id=f"g{n}")
        for _ in range(10_000):
            world.deliverer.round()
            if len(good.received) == 20:
                break
        assert len(good.received) == 20
        assert slow.received == []
        assert world.deliverer._of_projects["default"] == AT_ONCE_MAX // 2
        release.set()
        world.run()
    assert not world.deliverer._of_projects
    assert {one["state"] for one in world.deliveries()} == {"delivered"}
    world.close()


def test_what_somebody_took_and_never_ended_is_taken_over(world: World):
    with Receiver() as receiver:
        world.endpoint(receiver.url)
        world.ledger.grant("acme", 1)
        dead = world.another()
        dead._pool.submit = lambda *_: None  # type: ignore[method-assign]  # killed before it sent
        dead.round()
        world.run()
        assert receiver.received == []
        world.now += timedelta(seconds=world.lease_seconds)
        world.run()
        assert len(receiver.received) == 1
    [delivery] = world.deliveries()
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)


def test_who_lost_the_lease_has_no_say(world: World):
    with Receiver() as receiver:
        world.endpoint(receiver.url)
        world.ledger.grant("acme", 1)
        slow = world.another()
        held: list = []
        slow._pool.submit = lambda *args: held.append(args[1:])  # type: ignore[method-assign]
        slow.round()
        world.now += timedelta(seconds=world.lease_seconds)
        world.run()
        receiver.answer = lambda *_: 500
        slow._send(*held[0])
        slow._take_back(5)
    assert [one["state"] for one in world.deliveries()] == ["delivered"]
    assert set(receiver.times.values()) == {2}, "at least once: the same id twice"


def test_several_deliver_at_once(world: World):
    with Receiver(fails(30)) as receiver:
        world.endpoint(receiver.url)
        for n in range(60):
            world.ledger.grant(f"acme-{n}", 1)
        others = [world.another() for _ in range(3)]
        problems: list[BaseException] = []

        def deliver(deliverer: Deliverer) -> None:
            try:
                for _ in range(40):
                    deliverer.round()
            except BaseException as problem:  # noqa: BLE001 - looked at below
                problems.append(problem)

        threads = [threading.Thread(target=deliver, args=(one,)) for one in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in others:
            one.close()
        assert problems == []
        assert max(receiver.times.values()) == 1, "nothing was sent by two"
        to_the_end(world)
    assert len(receiver.times) == 60
    states = Counter(one["state"] for one in world.deliveries())
    assert states == {"delivered": 60}


def test_a_ledger_that_was_moved_sends_from_its_new_place(tmp_path: Path):
    here, there = (f"sqlite:///{tmp_path}/{name}.db" for name in ("here", "there"))
    with Receiver(lambda _, times: 200 if times > 1 else 500) as receiver:
        world = World(here)
        world.endpoint(receiver.url)
        world.ledger.grant("acme", 1)
        world.run()
        world.ledger.grant("acme", 2)  # in the outbox only
        found = tillroll.copy(here, there)
        assert found.events == 2
        world.now += timedelta(minutes=1)
        with pytest.raises(tillroll.StoreReadOnly):
            world.run()
        assert len(receiver.received) == 1
        other = World(there)
        other.now = world.now
        to_the_end(other)
        assert [one["state"] for one in other.deliveries()] == ["delivered"] * 2
        assert Counter(receiver.times.values()) == {2: 2}
        other.close()
        world.close()


def test_old_events_go_and_what_waits_stays(quick: World):
    with Receiver(lambda name, _: 200 if name.endswith("_1_0") else 500) as receiver:
        quick.endpoint(receiver.url)
        quick.ledger.grant("acme", 1)
        quick.ledger.grant("acme", 2)
        quick.run()
        quick.now += timedelta(days=31)
        assert prune(quick.engine, 30) == {"pruned": 1, "more": False}
        assert [one["state"] for one in quick.deliveries()] == ["pending"]


def test_a_payload_says_what_the_store_has(quick: World):
    with Receiver() as receiver:
        quick.endpoint(receiver.url)
        quick.ledger.grant("acme", 1)
        quick.run()
        with quick.ledger.store.read() as reader:
            [row] = reader.events()
        assert receiver.received[0].body.decode() == row.event.payload
        assert json.loads(row.event.payload)["id"] == receiver.received[0].id
        assert quick.engine.clock() - row.event.at < DAY * SECOND
