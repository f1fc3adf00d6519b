"""The public names as a user's type checker sees them. Only pyright runs over this file.

Each public verb gets a line here whose inferred type is written out with `assert_type`.
"""

import sqlite3
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, assert_type

import tillroll

public_names: list[str] = tillroll.__all__


def for_threads(ledger: tillroll.Ledger) -> None:
    assert_type(tillroll.open("sqlite:///credits.db"), tillroll.Ledger)
    assert_type(tillroll.migrate("sqlite:///credits.db", plan=True), tillroll.Migrated)
    receipt = ledger.grant("acme", 1000, category="promo", expires_in="90d", tags={"a": "b"})
    assert_type(receipt, tillroll.Receipt)
    assert_type(receipt.units, Decimal)
    assert_type(receipt.replayed, bool)
    assert_type(ledger.consume("acme", "image.generate", request_id="r1"), tillroll.Receipt)
    assert_type(ledger.consume("acme", units=Decimal("1.5"), metadata={}), tillroll.Receipt)
    assert_type(ledger.void("acme", "g1"), tillroll.Receipt)
    assert_type(ledger.void("acme", "g1", units="2.5"), tillroll.Receipt)
    assert_type(ledger.adjust("acme", "-3", reason="why"), tillroll.Receipt)
    assert_type(ledger.refund("acme", "r1", expired="goodwill"), tillroll.Receipt)
    assert_type(ledger.freeze("acme"), tillroll.Receipt)
    assert_type(ledger.buy("acme", "starter", quantity=2), tillroll.Receipt)
    assert_type(ledger.subscribe("acme", "pro", when="period_end"), tillroll.Receipt)
    assert_type(ledger.entitle("acme", "hd", features={"hd": True}), tillroll.Receipt)
    assert_type(ledger.end_entitlement("acme", "hd"), tillroll.Receipt)
    assert_type(ledger.access("acme", feature="hd"), tillroll.Access)
    assert_type(ledger.entitlements("acme"), list[dict[str, object]])
    assert_type(ledger.set_budget("acme", "daily", 5, period="day"), tillroll.Receipt)
    assert_type(ledger.set_alert("acme", "low", "balance", 5), tillroll.Receipt)
    assert_type(ledger.balance("acme"), tillroll.Balance)
    assert_type(ledger.statement("acme").receipts, tuple[tillroll.Receipt, ...])
    assert_type(ledger.explain("r1"), dict[str, object])
    assert_type(ledger.verify().ok, bool)
    assert_type(ledger.quote("acme", "image.generate").token, str | None)
    assert_type(ledger.preview.refund("acme", "r1"), tillroll.Receipt)
    assert_type(ledger.join(sqlite3.connect("app.db")), tillroll.Ledger)
    for outcome in ledger.consume_many([{"account": "acme", "units": 1}]):
        assert_type(outcome, tillroll.Outcome)
    with ledger.hold("acme", units=5, expires_in=timedelta(minutes=5)) as hold:
        assert_type(hold, tillroll.OpenHold)
        assert_type(hold.settle("2.5"), tillroll.Receipt)


async def for_event_loops(ledger: tillroll.AsyncLedger) -> None:
    assert_type(tillroll.open_async("sqlite:///credits.db"), tillroll.AsyncLedger)
    assert_type(await ledger.grant("acme", 1000), tillroll.Receipt)
    assert_type(await ledger.consume("acme", units=1), tillroll.Receipt)
    assert_type(await ledger.settle("acme", "h1", units=1, above="refuse"), tillroll.Receipt)
    assert_type(await ledger.balance("acme"), tillroll.Balance)
    assert_type(await ledger.explain("r1"), dict[str, object])
    assert_type(await ledger.hold("acme", units=5), tillroll.AsyncOpenHold)
    async with ledger.hold("acme", units=5) as hold:
        assert_type(hold, tillroll.AsyncOpenHold)
        assert_type(await hold.settle(2), tillroll.Receipt)


def over_http(client: tillroll.Client) -> None:
    bounds = tillroll.FailOpen(per_account="50", estimate={"image.generate": 4})
    made = tillroll.Client(
        "http://host:8000", api_key="tr_live_x", journal="a.db", fail_open=bounds
    )
    assert_type(made, tillroll.Client)
    assert_type(client.grant("acme", 1000, expires_in="90d"), tillroll.Receipt)
    assert_type(client.consume("acme", units=Decimal("1.5")).provisional, bool)
    assert_type(client.preview.refund("acme", "r1"), tillroll.Receipt)
    assert_type(client.balance("acme"), tillroll.Balance)
    assert_type(client.statement("acme").receipts, tuple[tillroll.Receipt, ...])
    assert_type(client.usage(by=["day"])[0]["units"], Any)
    assert_type(client.pending()[0].state, Literal["waiting", "refused"])
    assert_type([receipt.seq for receipt in client.entries()], list[int])
    assert_type(client.checkout("acme", "starter", request_id="o1"), str)
    assert_type(client.set_top_up("acme", threshold=1, target="2.5")["state"], Any)
    assert_type(client.list_endpoints(), list[dict[str, Any]])
    assert_type(client.send_again(endpoint="we_1"), int)
    client.set_top_up("acme", threshold=0.5, target=1)  # pyright: ignore[reportArgumentType]
    with client.hold("acme", units=5) as hold:
        assert_type(hold, tillroll.OpenHold)
    client.consume("acme", units=0.1)  # pyright: ignore[reportArgumentType]
    client.settle("acme")  # pyright: ignore[reportCallIssue]


async def over_http_from_event_loops(client: tillroll.AsyncClient) -> None:
    assert_type(await client.consume("acme", units=1), tillroll.Receipt)
    assert_type(await client.quote("acme", "image.generate"), tillroll.Quote)
    assert_type(client.sync, tillroll.Client)
    assert_type(await client.checkout("acme", "starter"), str)
    assert_type(await client.make_endpoint("https://a.example"), dict[str, Any])
    async with client.hold("acme", units=5) as hold:
        assert_type(await hold.settle(2), tillroll.Receipt)


def refused(ledger: tillroll.Ledger) -> Decimal | None:
    try:
        ledger.consume("acme", units=5000)
    except tillroll.InsufficientUnits as refusal:
        assert_type(refusal.ways_out, tuple[dict[str, str], ...])
        return refusal.needed
    return None


# What is wrong must stay wrong: each ignore below is an error if there is nothing to ignore.
def wrong(ledger: tillroll.Ledger) -> None:
    ledger.consume("acme", units=0.1)  # pyright: ignore[reportArgumentType]
    ledger.consume("acme", unit=1)  # pyright: ignore[reportCallIssue]
    ledger.grant("acme", 1, category="free")  # pyright: ignore[reportArgumentType]
    ledger.settle("acme")  # pyright: ignore[reportCallIssue]
