"""Many processes hear the same at once: each fact counts once, and nobody waits for ever."""

import contextlib
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tests.payments.conftest import ONE, World
from tests.payments.test_stories import STORIES, check_end
from tests.payments.test_topups import charged
from tillroll.payments import topups

THREADS = 6


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/till.db"


def at_once(work: Any) -> None:
    """Do something in so many threads that start together; what fails in one fails here."""
    gate = threading.Barrier(THREADS)
    problems: list[BaseException] = []

    def one(nth: int) -> None:
        gate.wait()
        try:
            work(nth)
        except BaseException as problem:  # noqa: BLE001 - raised again below
            problems.append(problem)

    threads = [threading.Thread(target=one, args=(nth,)) for nth in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


@pytest.mark.parametrize("name", ["partial refunds", "a dispute that was won", "paid late"])
def test_the_same_webhooks_in_many_processes(world: World, url: str, name: str):
    story = STORIES[name]
    story.act(world)
    events = world.new_events()
    others = [World(url, world.api_base, world.fake)]
    if url != "memory://":
        others += [World(url, world.api_base, world.fake) for _ in range(2)]

    def hear(nth: int) -> None:
        other = others[nth % len(others)]
        mine = events[:]
        random.Random(nth).shuffle(mine)  # noqa: S311 - an order, no secret
        for event in mine:
            while True:
                try:
                    other.deliver([event])
                except tillroll.StoreBusy:  # as the service answers 503, and Stripe sends again
                    continue
                break

    at_once(hear)
    check_end(others[0], story)
    for other in others:
        other.ledger.close()


def test_one_page_for_all_who_ask_at_once(world: World, url: str):
    other = World(url, world.api_base, world.fake)
    pages: list[str] = []

    def ask(nth: int) -> None:
        while True:
            try:
                pages.append(other.desk.checkout("acme", "pack100", f"order-{nth}"))
            except tillroll.StoreBusy:
                continue
            break

    at_once(ask)
    assert len(pages) == THREADS
    assert len(set(pages)) == 1
    assert len(world.fake.of("checkout.session")) == len(world.fake.of("customer")) == 1
    other.ledger.close()


def test_one_charge_by_all_who_look_at_once(world: World, url: str):
    other = World(url, world.api_base, world.fake)
    other.buy()
    other.deliver(other.new_events())
    topups.set_top_up(other.desk, "acme", threshold=20, target=150, product="pack100")
    other.ledger.consume("acme", units=90)

    def look(_: int) -> None:
        while True:
            try:
                topups.round_of(other.desk)
            except tillroll.StoreBusy:
                continue
            break

    at_once(look)
    intents = world.fake.of("payment_intent")
    assert sum("tillroll_attempt" in one["metadata"] for one in intents) == 1
    assert other.ledger.balance("acme").issued * ONE == 300 * ONE
    other.ledger.close()


def test_a_balance_that_falls_while_jobs_look(world: World, url: str):
    """Nobody is refused for it, and what is low in the end is due."""
    first = World(url, world.api_base, world.fake)
    ledgers = [first]
    if url != "memory://":
        ledgers.append(World(url, world.api_base, world.fake))
    first.buy()
    first.deliver(first.new_events())
    topups.set_top_up(first.desk, "acme", threshold=20, target=150, product="pack100")
    charges: list[int] = []

    def act(nth: int) -> None:
        mine = ledgers[nth % len(ledgers)]
        if nth < 2:
            for _ in range(15):
                with contextlib.suppress(tillroll.StoreBusy):  # it looks again
                    charges.append(topups.round_of(mine.desk))
            return
        for _ in range(15):
            mine.ledger.grant("acme", 30)
            mine.ledger.consume("acme", units=60 if nth % 3 else 20, retry_refused=True)

    def brave(nth: int) -> None:
        with contextlib.suppress(tillroll.InsufficientUnits):
            act(nth)

    at_once(brave)
    left = first.ledger.balance("acme").spendable
    if left > 20:
        first.ledger.consume("acme", units=left - 20)
    with first.ledger.store.read() as reader:
        [note] = reader.notes_of("default", "acme", topups.KIND)
    found = topups.decoded(note)
    assert found.state in ("ready", "waiting")
    assert note.due_at <= first.ledger._engine.clock()
    # Two rounds may ask after one attempt; it is charged once.
    assert len(charged(first)) <= 1, "the cool-down holds"
    assert sum(charges) >= len(charged(first))
    assert first.ledger.verify().ok
    for one in ledgers:
        one.ledger.close()
