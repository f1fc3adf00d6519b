"""What another process wrote counts, whatever is remembered here and however late a standby is."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import tillroll
from tests.payments.conftest import ONE, World
from tests.payments.test_returns import Plain, known
from tests.payments.test_topups import begin, charged, state
from tests.servers.cluster import Cluster
from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_then
from tillroll.ledger.book import Answer, Book
from tillroll.ledger.commands import Request, account_id
from tillroll.payments import overage, topups
from tillroll.payments.facts import Refunded
from tillroll.stores.base import Writer
from tillroll.stores.postgres import PostgresStore
from tillroll.stores.postgres_rows import PART

DAY = 86_400 * ONE


@pytest.fixture
def here(fake: Any, appending_url: str) -> Iterator[World]:
    """A process that appends: it takes what it remembers for true."""
    made = World(appending_url, fake[1], fake[0])
    yield made
    made.desk.close()
    made.ledger.close()


@pytest.fixture
def there(here: World, appending_url: str) -> Iterator[World]:
    """Another process, at the same ledger and the same Stripe."""
    made = World(appending_url, here.api_base, here.fake)
    yield made
    made.desk.close()
    made.ledger.close()


def way(world: World) -> str:
    assert isinstance(world.ledger.store, PostgresStore)
    return world.ledger.store._pace.way


def appends(world: World) -> None:
    """Charge 40 units, one by one, after which a process dares to append."""
    for _ in range(40):
        world.ledger.consume("acme", units=1)
    assert way(world) == "append"


def test_a_card_is_not_charged_after_the_customer_bought_elsewhere(here: World, there: World):
    begin(here)
    appends(here)
    here.ledger.consume("acme", units=45)
    there.buy()
    there.deliver(here.new_events())
    assert way(here) == "append"
    assert topups.round_of(here.desk) == 0
    assert (charged(here), state(here)[0], here.available()) == ([], "ready", 115)


def test_a_card_is_charged_after_the_units_were_used_elsewhere(here: World, there: World):
    begin(here)
    appends(here)
    there.ledger.consume("acme", units=50)
    assert way(here) == "append"
    assert topups.round_of(here.desk) == 1
    assert (len(charged(here)), here.available()) == (1, 210)


def test_overage_begins_after_what_was_used_elsewhere(here: World, there: World):
    here.ledger.set_overdraft("acme", 1_000)
    appends(here)
    used = there.ledger.consume("acme", units=50)
    assert way(here) == "append"
    made = overage.set_overage(here.desk, "acme", "api_units")
    assert made.cursor == used.seq
    here.wait(minutes=10)
    assert overage.round_of(here.desk) == 0, "what was used before is not billed"


def test_a_renewal_that_was_booked_elsewhere_is_taken_back(here: World, there: World):
    """The clock here is behind, so that nothing is due here that would contradict memory."""
    plain = Plain(here, days=31)
    plain.hear(plain.stands(), plain.paid())
    plain.begins, plain.ends = plain.ends, plain.ends + 30 * DAY
    plain.hear(plain.paid("in_2"))
    appends(here)
    here.wait(days=31, hours=1)
    there.ledger.consume("acme", units=1)
    here.wait(days=-2)
    assert way(here) == "append"
    plain.hear(plain.back(Refunded("q", 10_00), invoice="in_2"))
    taken = {share.invoice: share.taken for share in known(here).shares.values()}
    assert taken == {"in_1": 0, "in_2": 50 * ONE}
    assert (there.available(), there.ledger.verify().ok) == (49, True)


def test_time_that_was_prolonged_elsewhere_is_taken_back(here: World, there: World):
    here.ledger.grant("acme", 100)
    first = here.buy(product="day")
    here.deliver(here.new_events())
    appends(here)
    there.buy(product="day")
    there.deliver(here.new_events())
    here.wait(hours=36)
    here.fake.refund(first, 2_00)
    assert way(here) == "append"
    here.deliver(here.new_events())
    payment = here.payment(first)
    assert (payment.taken, payment.short) == (DAY // 2, DAY // 2)
    assert there.ledger.entitlements("acme") == [], "half a day was left of two"


def test_many_requests_and_what_follows_are_written_together(here: World):
    """More than are sent ahead in parts: what follows is read while they are decided."""
    engine = here.ledger._engine
    verbs = verbs_of(engine, "default", ours=True)
    asked = [verbs.grant(f"a{n % 7}", 1) for n in range(2 * PART + 1)]
    answered: list[int] = []

    def then(book: Book, answers: list[Answer]) -> Sequence[Request]:
        answered.append(len(answers))
        assert len(book.appended) == len(asked)
        return [verbs.grant("later", len(answers)), verbs.consume("a0", units=1)]

    def act(tx: Writer) -> list[Answer]:
        assert 0 < tx.part < len(asked)
        return answer_then(tx, 6, ("default", "acme"), asked, engine.clock(), then)

    answers = engine.perform(act)
    assert len(answers) == len(asked) + 2
    assert answered == [len(asked)]
    balances = [here.available(f"a{n}") for n in range(7)]
    assert (sum(balances), here.available("later")) == (len(asked) - 1, len(asked))
    assert here.ledger.verify().ok


def test_who_decided_from_memory_does_not_lock_afterwards(here: World):
    """What was decided is decided again by locks, instead of half of it from memory."""
    here.ledger.grant("acme", 100)
    appends(here)
    owner = account_id("default", "acme")
    ways: list[str] = []

    def act(tx: Writer) -> int:
        ways.append(way(here))
        tx.load("default", {owner: "acme"}, [(owner, "x")])
        return tx.load_locked("default", {owner: "acme"})[owner].seq

    assert here.ledger._engine.perform(act) == 41
    assert ways == ["append", "locks"]


def test_payments_do_not_read_from_a_standby(fake: Any, own_postgres: Cluster):
    tillroll.migrate(own_postgres.url())
    standby = own_postgres.standby()
    own_postgres.catch_up(standby)
    standby.run("SELECT pg_wal_replay_pause()")
    world = World(own_postgres.url(), fake[1], fake[0], read_url=standby.url())
    begin(world)
    payment = str(world.fake.of("payment_intent")[0]["id"])
    world.fake.refund(payment, 1_00)
    world.fake.fail = ["down"] * 3
    world.deliver(world.new_events()[:1])  # of what is known nobody has to be asked
    world.fake.fail = []
    assert world.payment(payment) is None, "the standby is behind"
    world.ledger.consume("acme", units=70)
    assert topups.round_of(world.desk) == 1
    assert len(charged(world)) == 1
    world.buy("beta", "trial")
    world.deliver(world.new_events())
    assert world.desk._order("beta", "trial").trial is None, "it had its trial"
    assert world.available() == 0, "the standby is behind all the while"
    standby.run("SELECT pg_wal_replay_resume()")
    world.desk.close()
    world.ledger.close()
