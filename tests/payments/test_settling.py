"""What a provider tells of a payment, in every order: the ledger ends where the payment is."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tillroll.payments.facts import Bought, Disputed, Fact, Payment, Refunded, owed
from tillroll.payments.settling import cost_basis, known, payments_of, settle

ONE = 10**6  # a unit, at the scale of these ledgers
PACK = Bought("acme", 100 * ONE, 5_00, "usd", product="pack100")


class Till:
    """A ledger, its clock, and one payment that is told about it."""

    def __init__(self, url: str = "memory://") -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.ledger = tillroll.open(url, clock=lambda: self.now)

    def tell(self, *facts: Fact, payment: str = "pi_1") -> Payment:
        return settle(self.ledger._engine, "default", "stripe", payment, facts)

    def use(self, units: int) -> bool:
        try:
            self.ledger.consume("acme", units=units)
        except tillroll.InsufficientUnits:
            return False
        return True

    def check(self, payment: Payment) -> None:
        """The ledger says what the payment says: bought, less what was taken back of it."""
        bought = payment.bought.units if payment.bought else 0
        found = self.ledger.balance("acme")
        assert found.issued * ONE == bought - payment.taken
        assert payment.taken + payment.short == owed(payment)
        assert payment.refused is None
        assert self.ledger.verify().ok


def refund(nth: int, amount: int, state: Any = "done") -> Refunded:
    return Refunded(f"re_{nth}", amount, state)


def dispute(state: Any, at: int, amount: int = 5_00) -> Disputed:
    return Disputed("dp_1", amount, state, at)


# What is told of one payment, and the units that are left in the end where none were used.
STORIES: dict[str, tuple[Sequence[Fact], int]] = {
    "paid, told twice": ([PACK, PACK], 100),
    "a part refunded": ([PACK, refund(1, 1_00)], 80),
    "refunded twice in part": ([PACK, refund(1, 1_00), refund(2, 1_25)], 55),
    "refunded whole in thirds": ([PACK, refund(1, 1_67), refund(2, 1_67), refund(3, 1_66)], 0),
    "one refund told twice": ([PACK, refund(1, 2_00), refund(1, 2_00)], 60),
    "a refund that failed": ([PACK, refund(1, 2_00, "pending"), refund(1, 2_00, "failed")], 100),
    "a refund that was paid and failed": (
        [PACK, refund(1, 5_00, "pending"), refund(1, 5_00), refund(1, 5_00, "failed")],
        100,
    ),
    "refunded more than was paid": ([PACK, refund(1, 4_00), refund(2, 4_00)], 0),
    "a dispute that was lost": ([PACK, dispute("open", 1), dispute("lost", 2)], 0),
    "a dispute that was won": ([PACK, dispute("open", 1), dispute("won", 2)], 100),
    "a dispute that was lost, then won": (
        [PACK, dispute("open", 1), dispute("lost", 2), dispute("won", 3)],
        100,
    ),
    "an inquiry": ([PACK, dispute("inquiry", 1), dispute("won", 2)], 100),
    "refunded in part, then disputed and won": (
        [PACK, refund(1, 1_00), dispute("open", 1, 4_00), dispute("won", 2, 4_00)],
        80,
    ),
    "refunded in part, then disputed and lost": (
        [PACK, refund(1, 1_00), dispute("open", 1, 4_00), dispute("lost", 2, 4_00)],
        0,
    ),
}


def orders() -> Iterator[Any]:
    for story, (facts, left) in STORIES.items():
        for nth, order in enumerate(itertools.permutations(facts)):
            yield pytest.param(order, left, id=f"{story}-{nth}")


@pytest.mark.parametrize(("order", "left"), list(orders()))
def test_every_order_ends_the_same(order: Sequence[Fact], left: int):
    till = Till()
    for fact in order:
        payment = till.tell(fact)
        assert till.tell(fact) == payment, "told again, nothing is new"
    till.check(payment)
    assert till.ledger.balance("acme").available == left
    assert payment.short == 0


@pytest.mark.parametrize(("order", "left"), list(orders()))
def test_used_units_are_never_taken(order: Sequence[Fact], left: int):
    for place in range(len(order) + 1):
        till = Till()
        used = False
        for nth, fact in enumerate((*order, PACK)):
            if nth == place:
                used = till.use(70)
            payment = till.tell(fact)
        till.check(payment)
        found = till.ledger.balance("acme")
        assert found.used == (70 if used else 0)
        # What is short is what was used beyond what the money that stayed has paid.
        assert found.available == max(left - found.used, 0)
        assert payment.short == max(found.used - left, 0) * ONE


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_on_a_database(kind: str, tmp_path: Path, request: pytest.FixtureRequest):
    url = str(tmp_path / "till.db")
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    till = Till(url)
    with till.ledger:
        for fact in (dispute("won", 2), refund(1, 1_00), PACK, dispute("open", 1)):
            payment = till.tell(fact)
        till.check(payment)
        again = till.tell(dispute("lost", 3))
        assert till.ledger.balance("acme").available == 0
        assert (again.taken, again.steps) == (100 * ONE, 2)
    till = Till(url)
    with till.ledger, till.ledger.store.read() as reader:
        assert known(reader, "default", "stripe", "pi_1") == again
        assert payments_of(reader, "default", "acme") == [again]
        assert known(reader, "default", "stripe", "pi_2") is None


def test_a_refund_before_the_purchase_is_kept():
    till = Till()
    payment = till.tell(refund(1, 2_50))
    assert (payment.bought, payment.taken) == (None, 0)
    with till.ledger.store.read() as reader:
        assert payments_of(reader, "default", "") == [payment]
    payment = till.tell(PACK)
    till.check(payment)
    assert till.ledger.balance("acme").available == 50


def test_what_is_given_back_lasts_as_long_as_it_would_have():
    till = Till()
    month = timedelta(days=30)
    pack = Bought("acme", 100 * ONE, 5_00, "usd", expires_in=month // timedelta(microseconds=1))
    till.tell(pack)
    till.now += timedelta(days=10)
    till.tell(dispute("open", 1))
    till.now += timedelta(days=45)
    till.check(till.tell(dispute("won", 2)))
    [grant] = till.ledger.balance("acme").grants
    assert grant["remaining"] == "100"
    assert grant["expires_at"] == (till.now + timedelta(days=20)).isoformat().replace("+00:00", "Z")


def test_after_a_won_dispute_a_refund_takes_from_what_came_back():
    till = Till()
    till.tell(PACK)
    till.use(30)
    till.tell(dispute("open", 1))
    till.tell(dispute("won", 2))
    payment = till.tell(refund(1, 4_00))
    till.check(payment)
    assert (payment.taken, payment.short) == (70 * ONE, 10 * ONE)
    with till.ledger.store.read() as reader:
        assert known(reader, "default", "stripe", "pi_1") == payment
    last = list(till.ledger.history("acme"))[-1]
    assert (last.kind, last.units, last.shortfall) == ("void", 70, 10)


def test_what_a_closed_account_owes_is_known():
    till = Till()
    till.tell(PACK)
    till.ledger.close_account("acme")
    payment = till.tell(refund(1, 1_00))
    assert (payment.refused, payment.taken, payment.short) == ("account_closed", 0, 20 * ONE)
    payment = till.tell(refund(2, 1_00))
    assert (payment.refused, payment.short) == ("account_closed", 40 * ONE)
    payment = till.tell(PACK, payment="pi_2")
    assert (payment.refused, payment.taken) == ("account_closed", 0)


def test_two_purchases_under_one_id_are_a_contradiction():
    till = Till()
    till.tell(PACK)
    payment = till.tell(Bought("beta", 7 * ONE, 1, "usd"))
    assert payment.contradicted
    assert payment.bought == PACK
    assert till.ledger.balance("beta").available == 0


def test_a_grant_says_what_was_paid():
    till = Till()
    till.tell(PACK)
    [grant] = till.ledger.balance("acme").grants
    assert (grant["id"], grant["source"]) == ("stripe:pi_1", "stripe payment pi_1")
    entry = next(iter(till.ledger.history("acme"))).entry
    assert entry.opens[0].cost_basis == "0.05"
    told = till.ledger.explain("stripe:pi_1")["metadata"]
    assert told == {
        "provider": "stripe",
        "payment": "pi_1",
        "product": "pack100",
        "amount": 500,
        "currency": "usd",
    }


@pytest.mark.parametrize(
    ("units", "amount", "currency", "each"),
    [
        (3, 1_00, "usd", "0.333333333333"),
        (100, 1_000, "jpy", "10"),
        (100, 1_000, "kwd", "0.01"),
        (10, 0, "eur", "0"),
    ],
)
def test_cost_of_a_unit(units: int, amount: int, currency: str, each: str):
    assert cost_basis(Bought("a", units * ONE, amount, currency), 6) == Decimal(each)


def test_what_cannot_be_right_is_refused():
    till = Till()
    for facts in ([refund(1, -1)], [Bought("acme", 0, 1, "usd")], [Bought("a", 1, 10**16, "usd")]):
        with pytest.raises(tillroll.InvalidInput):
            till.tell(*facts)
    with pytest.raises(tillroll.InvalidInput, match="more than 1000"):
        till.tell(*(refund(nth, 1) for nth in range(1_001)))
    with pytest.raises(tillroll.InvalidInput, match="200 characters"):
        till.tell(PACK, payment="")
    with till.ledger.store.read() as reader:
        assert reader.notes() == []
