"""Malformed input: a typed error, nothing written, the account unchanged."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tillroll

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNITS: list[Any] = [
    1.0,
    float("nan"),
    float("inf"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("1e40"),
    Decimal("1e-40"),
    10**40,
    0,
    -1,
    "0",
    "-1",
    "",
    " ",
    "1e3",
    "1,5",
    "\u0661",
    "0x1",
    "1_000",
    "NaN",
    "0.0000001",
    Decimal("0.0000001"),
    2**53,
    "9007199254.740992",
    True,
    False,
    b"1",
    [],
    {},
    ...,
    "1" * 31,
    Decimal("1." + "1" * 70),
]
TEXTS: list[Any] = [
    "",
    "x" * 256,
    "a\x00",
    "a\nb",
    "\x7f",
    "a\x85",
    "\ud800",
    "a\udfff",
    "\u2028",
    7,
    b"x",
]


@pytest.fixture(scope="module")
def ledger() -> tillroll.Ledger:
    ledger = tillroll.open("memory://", clock=lambda: NOW)
    ledger.grant("acme", 10, request_id="g")
    ledger.hold("acme", units=2, request_id="h")
    ledger.consume("acme", units=1, request_id="c")
    return ledger


def check_rejected(ledger: tillroll.Ledger, verb: str, *args: Any, **kwargs: Any) -> str:
    before = ledger.balance("acme").to_dict()
    with pytest.raises(tillroll.InvalidInput) as caught:
        getattr(ledger, verb)(*args, **kwargs)
    assert caught.value.written == "nothing"
    assert ledger.balance("acme").to_dict() == before
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("units", UNITS, ids=repr)
def test_units(ledger: tillroll.Ledger, units: object):
    for verb in ("grant", "consume", "hold"):
        args = ("acme", units) if verb == "grant" else ("acme",)
        check_rejected(ledger, verb, *args, **({} if verb == "grant" else {"units": units}))
    check_rejected(ledger, "settle", "acme", "h", units=units)
    check_rejected(ledger, "refund", "acme", "c", units=units)


@pytest.mark.parametrize("limit", [-1, "-0.5", 1.5, 2**53, None], ids=repr)
def test_limits(ledger: tillroll.Ledger, limit: Any):
    check_rejected(ledger, "set_overdraft", "acme", limit)
    check_rejected(ledger, "set_budget", "acme", "b", limit)
    if limit is not None:
        check_rejected(ledger, "hold", "acme", units=1, floor=limit)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_texts(ledger: tillroll.Ledger, text: Any):
    check_rejected(ledger, "consume", text, units=1)
    check_rejected(ledger, "consume", "acme", units=1, request_id=text)
    check_rejected(ledger, "consume", "acme", text, units=1)
    check_rejected(ledger, "settle", "acme", text)
    check_rejected(ledger, "refund", "acme", text)
    check_rejected(ledger, "void", "acme", text)
    check_rejected(ledger, "consume", "acme", units=1, tags={"member": text})
    check_rejected(ledger, "consume", "acme", units=1, tags={text: "ann"})
    check_rejected(ledger, "consume", "acme", units=1, actor=text)
    check_rejected(ledger, "set_budget", "acme", text, 5)
    check_rejected(ledger, "configure", "acme", time_zone=text)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("consume", {}),
    ("consume", {"operation": "x", "wallet": "credits"}),
    ("consume", {"units": 1, "wallet": "Credits!"}),
    ("consume", {"units": 1, "wallet": ""}),
    ("consume", {"units": 1, "quote": "trq1.x.y"}),
    ("consume", {"operation": "x", "quote": "trq1.x.y"}),
    ("consume", {"operation": "x", "quote": 7}),
    ("consume", {"units": 1, "request_id": "~mine"}),
    ("consume", {"units": 1, "metadata": {"x": "y" * 10_000_000}}),
    ("consume", {"units": 1, "metadata": {"x": object()}}),
    ("consume", {"units": 1, "metadata": {"x": "\ud800"}}),
    ("consume", {"units": 1, "metadata": {"x": [{"y": float("nan")}]}}),
    ("consume", {"units": 1, "metadata": {"x": float("-inf")}}),
    ("consume", {"units": 1, "metadata": [1]}),
    ("consume", {"units": 1, "reason": "x" * 1001}),
    ("consume", {"units": 1, "retry_refused": 1}),
    ("consume", {"units": 1, "surprise": 1}),
    ("consume", {"units": 1, "tags": {str(n): "x" for n in range(33)}}),
    ("consume", {"units": 1, "tags": ["member"]}),
    ("consume", {"units": 1, "tags": "member=ann"}),
    ("consume", {"units": 1, "tags": {1: "ann", "b": "x"}}),
    ("consume", {"operation": "x", "meters": ["images"]}),
    ("consume", {"operation": "x", "meters": {1: 1, "b": 1}}),
    ("consume", {"units": 1, "effective_at": NOW - timedelta(days=36)}),
    ("consume", {"units": 1, "effective_at": NOW + timedelta(minutes=6)}),
    ("consume", {"units": 1, "effective_at": datetime(2026, 1, 1)}),  # noqa: DTZ001
    ("consume", {"units": 1, "effective_at": "yesterday"}),
    ("consume", {"units": 1, "effective_at": 7}),
    ("consume", {"operation": "x", "meters": {"images": 1.5}}),
    ("consume", {"operation": "x", "meters": {"images": -1}}),
    ("consume", {"operation": "x", "meters": {"": 1}}),
    ("hold", {"units": 1, "floor": 2}),
    ("hold", {"units": 1, "expires_in": "25h"}),
    ("hold", {"units": 1, "expires_in": "0s"}),
    ("hold", {"units": 1, "expires_in": timedelta(seconds=-1)}),
    ("hold", {"units": 1, "expires_in": "soon"}),
    ("hold", {"units": 1, "expires_in": ""}),
    ("hold", {"units": 1, "expires_in": 60}),
    ("extend", {"hold_id": "h", "expires_in": None}),
    ("extend", {"hold_id": "h", "expires_in": "25h"}),
    ("settle", {"hold_id": "h", "units": 1, "meters": {"images": 1}}),
    ("settle", {"hold_id": "h", "final": 1}),
    ("settle", {"hold_id": "h", "above": "everything"}),
    ("mark_in_doubt", {"hold_id": "h", "deadline_in": "31d"}),
    ("mark_in_doubt", {"hold_id": "h", "at_deadline": "explode"}),
    ("resolve", {"hold_id": "h", "outcome": "perhaps"}),
    ("resolve", {"hold_id": "h", "outcome": "not_done", "units": 1}),
    ("refund", {"charge": "c", "expired": "extend"}),
    ("refund", {"charge": "c", "extend_by": "1d"}),
    ("refund", {"charge": "c", "expired": "burn"}),
    ("grant", {"units": 1, "category": "gift"}),
    ("grant", {"units": 1, "priority": 1.5}),
    ("grant", {"units": 1, "priority": 1001}),
    ("grant", {"units": 1, "expires_at": NOW}),
    ("grant", {"units": 1, "expires_at": "2025-12-30"}),
    ("grant", {"units": 1, "expires_at": "2026-13-01"}),
    ("grant", {"units": 1, "expires_at": "2026-07-31", "expires_in": "1d"}),
    ("grant", {"units": 1, "expires_at": date.max}),
    ("grant", {"units": 1, "expires_at": "9999-12-31T23:59:59-14:00"}),
    ("grant", {"units": 1, "effective_at": "9999-12-31T23:59:59-14:00"}),
    ("grant", {"units": 1, "effective_at": "0001-01-01T00:00:00+14:00"}),
    ("grant", {"units": 1, "effective_at": "9999-12-01T00:00:00Z", "expires_in": "52w"}),
    ("balance", {"as_of": "9999-12-31T23:59:59-14:00"}),
    ("balance", {"as_of": "0001-01-01T00:00:00+14:00", "clock": "effective"}),
    ("grant", {"units": 1, "applies_to": [""]}),
    ("grant", {"units": 1, "cost_basis": 0.1}),
    ("grant", {"units": "9007199254"}),
    ("adjust", {"units": 0, "reason": "x"}),
    ("adjust", {"units": 1, "reason": "  "}),
    ("adjust", {"units": "9007199254", "reason": "too much together"}),
    ("set_budget", {"name": "b", "cap": 1, "period": "year"}),
    ("set_budget", {"name": "b", "cap": 1, "period": "rolling"}),
    ("set_budget", {"name": "b", "cap": 1, "window": "5h"}),
    ("set_recurring", {"name": "p", "units": 1, "anchor": "soon"}),
    ("set_recurring", {"name": "p", "units": 1, "anchor": 7}),
    ("set_recurring", {"name": "p", "units": 1, "anchor": NOW}),
    ("set_recurring", {"name": "p", "units": 1, "anchor": "2026-01-01", "count": 0}),
    ("set_recurring", {"name": "p", "units": 1, "anchor": "2026-01-01", "rollover_min": 1}),
    ("set_recurring", {"name": "x" * 129, "units": 1, "anchor": "2026-01-01"}),
    ("stop_recurring", {"name": "nothing"}),
    ("configure", {"time_zone": "Mars/Olympus"}),
    ("configure", {"late_settlement": "yes"}),
    ("configure", {"late_usage": "401d"}),
    ("configure", {"late_usage": 35}),
    ("configure", {"early_usage": "25h"}),
]


@pytest.mark.parametrize(("verb", "args"), BAD, ids=[f"{v}-{n}" for n, (v, _) in enumerate(BAD)])
def test_arguments(ledger: tillroll.Ledger, verb: str, args: dict[str, Any]):
    message = check_rejected(ledger, verb, "acme", **args)
    assert len(message) < 300


@pytest.mark.parametrize("text", ["\ud800", "a\udcff", 7, b"x"], ids=repr)
def test_reads(ledger: tillroll.Ledger, text: Any):
    for read in ("balance", "statement", "usage", "explain", "verify", "entries"):
        check_rejected(ledger, read, text)
    check_rejected(ledger, "explain", "c", account=text)
    check_rejected(ledger, "hold_state", text, "h")
    check_rejected(ledger, "hold_state", "acme", text)
    check_rejected(ledger, "erase_metadata", text)


def test_pages(ledger: tillroll.Ledger):
    for before in ("5", 1.5, True):
        check_rejected(ledger, "statement", "acme", before=before)
    assert ledger.statement("acme", before=10**30) == ledger.statement("acme")


@pytest.mark.parametrize("scale", [True, "6", 6.0, -1, 13], ids=repr)
@pytest.mark.parametrize("store", ["memory://", "file"])
def test_scales(tmp_path: Path, store: str, scale: Any):
    url = store if store == "memory://" else f"sqlite:///{tmp_path}/ledger.db"
    with pytest.raises(tillroll.InvalidInput, match="scale"):
        tillroll.open(url, scale=scale)


def test_nothing_malformed_is_remembered(ledger: tillroll.Ledger):
    check_rejected(ledger, "hold", "acme", units=1, expires_in="25h", request_id="again")
    assert not ledger.hold("acme", units=1, request_id="again").receipt.replayed


def test_marked_up_texts_are_the_texts_they_hold(ledger: tillroll.Ledger):
    class Mark(str):
        __slots__ = ()

    class Kind(StrEnum):
        PAID = "paid"

    class Wallet(str, Enum):  # noqa: UP042 - the older way shows its name, not its text
        GPU = "gpu"

    receipt = ledger.grant(
        Mark("marked"),
        5,
        wallet=Wallet.GPU,
        category=Kind.PAID,
        source=Mark("shop"),
        request_id=Mark("m"),
        tags={Mark("a"): Mark("b")},
    )
    assert (receipt.wallet, receipt.request_id) == ("gpu", "m")
    assert ledger.grant(
        "marked", 5, wallet="gpu", source="shop", request_id="m", tags={"a": "b"}
    ).replayed


@pytest.mark.parametrize(
    ("item", "status"),
    [
        ({"account": "acme", "units": 1.5}, "invalid"),
        ({"units": 1}, "invalid"),
        ({"account": "acme", "units": 1, "surprise": 2}, "invalid"),
        ({"account": "acme", "operation": "unknown"}, "refused"),
    ],
)
def test_batch_items(ledger: tillroll.Ledger, item: dict[str, Any], status: str):
    assert [outcome.status for outcome in ledger.consume_many([item])] == [status]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (5, "an item must be a mapping, such as {'account': 'acme', 'units': 5}, not int"),
        ("acme", "not str"),
        ({"account": "acme", "unit": 1}, "unknown argument 'unit'"),
        ({"units": 1}, "consume() missing 1 required positional argument: 'account'"),
        ({"account": "acme", 1: 2}, "keywords must be strings"),
    ],
)
def test_what_an_item_lacks_is_said_in_a_callers_words(
    ledger: tillroll.Ledger, item: Any, says: str
):
    good = {"account": "acme", "units": 1}
    wrong, right = ledger.consume_many([item, good])
    assert (wrong.status, right.ok) == ("invalid", True)
    assert says in str(wrong.error)
    for name in ("tillroll.", "Verbs", "ledger"):
        assert name not in str(wrong.error)


@pytest.mark.parametrize("items", [5, None, "acme", {"account": "acme", "units": 1}])
def test_a_batch_is_a_list(ledger: tillroll.Ledger, items: Any):
    with pytest.raises(tillroll.InvalidInput, match="items must be a list of mappings"):
        ledger.consume_many(items)


@pytest.mark.parametrize("units", [0, "0.0"])
def test_a_settle_of_nothing_is_told_to_release(ledger: tillroll.Ledger, units: Any):
    with pytest.raises(tillroll.InvalidInput, match="release the hold"):
        ledger.settle("acme", "h", units=units)
    assert ledger.hold_state("acme", "h") == "open"


def test_metadata_may_hold_what_json_can(ledger: tillroll.Ledger):
    held = {"nothing": None, "parts": [1.5, "x", {"deep": [None, True]}]}
    ledger.grant("acme", 5, metadata=held, request_id="held")
    assert ledger.explain("held")["metadata"] == held


@pytest.mark.parametrize("limit", [0, -1, 1_001, 2**70, "5", None, True])
def test_a_page_has_bounds(limit: object):
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 10)
        looks = [partial(ledger.history, "acme"), partial(ledger.statement, "acme")]
        for look in [*looks, ledger.book_due]:
            with pytest.raises(tillroll.InvalidInput, match="limit must be"):
                look(limit=limit)  # type: ignore[operator]


@pytest.mark.parametrize("after", [-1, 2**70, "x", None, [], True])
def test_a_history_goes_on_above_a_seq(after: object):
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 10)
        with pytest.raises(tillroll.InvalidInput, match="after must be"):
            ledger.history("acme", after=after)  # type: ignore[arg-type]


def test_settings_that_say_nothing_are_refused_and_write_nothing(ledger: tillroll.Ledger):
    check_rejected(ledger, "configure", "acme")
    check_rejected(ledger, "configure", "acme", time_zone=None, late_settlement=None)
    assert ledger.configure("acme", late_settlement=False).kind == "settings"


@pytest.mark.parametrize("name", ["localtime", "posixrules", "Factory", "right/UTC", "posix/UTC"])
def test_a_machines_own_time_zone_is_none(name: str):
    with tillroll.open("memory://") as ledger:
        with pytest.raises(tillroll.InvalidInput, match="unknown time zone"):
            ledger.configure("acme", time_zone=name)
        assert not ledger.knows("acme")


def test_one_operation_is_no_list_of_letters():
    with tillroll.open("memory://") as ledger:
        with pytest.raises(tillroll.InvalidInput, match="applies_to must be a list"):
            ledger.grant("acme", 10, applies_to="image.*")
        with pytest.raises(tillroll.InvalidInput, match="applies_to must be a list"):
            ledger.set_recurring("acme", "m", 10, anchor="2026-01-01", applies_to="image.*")
        assert not ledger.knows("acme")
