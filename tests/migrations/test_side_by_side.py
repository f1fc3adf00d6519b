"""Processes of the version before go on while a step adds to the tables."""

from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import apsw
import psycopg
import pytest

import tillroll
from tillroll.ledger.commands import account_id
from tillroll.ledger.pricing import Price
from tillroll.stores.base import Repeats

TABLES = (
    "accounts",
    "entries",
    "refusals",
    "replays",
    "price_versions",
    "meta",
    "registry",
    "notes",
)
STEP = [
    *(f"ALTER TABLE tillroll_{table} ADD COLUMN later text" for table in TABLES),
    "CREATE TABLE tillroll_later (a int)",
    "INSERT INTO tillroll_migrations VALUES (999, '0999_later.sql', 'x')",
]


def by_sqlite(url: str) -> None:
    with closing(apsw.Connection(url)) as connection:
        for statement in STEP:
            connection.execute(statement)


def by_psycopg(url: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in STEP:
            connection.execute(statement.encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[str], None]]:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url"), by_psycopg
    return str(tmp_path / "credits.db"), by_sqlite


def use(ledger: tillroll.Ledger, turn: str) -> None:
    """Do something that writes each table, by each way of writing it."""
    ledger.apply_prices([Price(operation=turn, per_request=Decimal(1))], author="ann", reason=turn)
    ledger.grant("acme", 100, request_id=f"g-{turn}", metadata={"turn": turn})
    ledger.grant(f"new-{turn}", 100, request_id="g")
    for _ in range(2):
        ledger.consume("acme", turn, request_id=f"c-{turn}")
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume("acme", units=5_000, request_id=f"much-{turn}")
    batch = [{"account": "acme", "units": 1, "request_id": f"{turn}-{n}"} for n in range(40)]
    for _ in range(2):
        assert all(outcome.ok for outcome in ledger.consume_many(batch))
    with ledger.hold("acme", units=5) as hold:
        hold.settle(units=4)
    assert ledger.book_due() == 0
    assert ledger.erase_metadata("acme") == 1
    assert ledger.prune_refusals() == 0
    assert ledger.explain(f"c-{turn}")["replays"] == 1
    assert ledger.verify().ok
    assert ledger.store.check() == []
    assert all(ok for _, _, ok in ledger.store.facts())
    ledger.store.recover()
    ledger.store.adopt(ledger.store.secret)
    with ledger.store.write() as tx:  # as a copy does
        tx.add_repeats([Repeats(account_id("default", "acme"), f"c-{turn}", 1, 1)])
        tx.set_moved("elsewhere")
        tx.set_moved(None)
        tx.put_document("key", "a", turn)
        tx.put_document("key", turn, "{}")
        tx.put_document("key", turn, None)
    with ledger.store.read() as reader:
        assert reader.documents("key") == {"a": turn}


def test_who_was_there_goes_on(place: tuple[str, Callable[[str], None]]):
    url, step = place
    with tillroll.open(url) as ledger:
        use(ledger, "before")
        step(url)
        use(ledger, "after")
        assert ledger.balance("acme").used == 90
        with tillroll.open(url) as another:  # and one that is started once more
            use(another, "again")
