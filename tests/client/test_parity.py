"""One script of verbs, once on a ledger and once through a client: equal receipts and errors."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest

import tillroll
from tillroll.ledger.pricing import Price, Rate
from tillroll.ledger.products import (
    UNLIMITED,
    AlertTerms,
    Allowance,
    Coupon,
    FeatureTerms,
    Money,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY
from tillroll.testing.served import Served

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PRICES = [
    Price(operation="image", rates={"images": Rate(units=Decimal("0.3333"))}),
    Price(operation="chat", rates={"tokens": Rate(units=Decimal(2), per=1_000)}, wallet="tokens"),
]
PACK = Pack(Decimal(500), Money(Decimal("9.99"), "USD"), expires=30 * DAY)
PRODUCTS = Products(
    packs={"starter": PACK},
    plans={
        "pro": Plan(
            grants=(Allowance(Decimal(1_000), rollover_max=Decimal("2.5")),),
            features={"hd": True, "seats": 5},
            trial=7 * DAY,
        ),
        "max": Plan(features={"hd": True, "seats": UNLIMITED, "4k": True}),
    },
    passes={"day": Pass(DAY, {"hd": True, "model": "5"})},
    features={
        "hd": FeatureTerms(),
        "4k": FeatureTerms(),
        "seats": FeatureTerms("limit", 1),
        "model": FeatureTerms("config"),
    },
    coupons={"welcome": Coupon(Decimal(50), expires=DAY)},
    alerts={"low": AlertTerms(below=Decimal("1.5")), "soon": AlertTerms(expiring=(30, 7, 1))},
)


def at_noon() -> datetime:
    return NOON


@pytest.fixture
def running() -> Iterator[Served]:
    with Served(clock=at_noon) as service:
        yield service


def shown(value: Any) -> Any:
    """Return what can be compared of an answer: all but who the service says has acted."""
    if hasattr(value, "receipt") and not isinstance(value, tillroll.Outcome):
        value = value.receipt
    if isinstance(value, tillroll.Outcome):
        return value.status, shown(value.receipt), shown(value.error)
    if isinstance(value, tillroll.TillrollError):
        return type(value), value.to_dict()
    if hasattr(value, "to_dict"):
        return {
            name: shown(one) if isinstance(one, list | dict) else one
            for name, one in value.to_dict().items()
            if name not in ("actor", "token")
        }
    if isinstance(value, dict):
        return {n: shown(v) for n, v in value.items() if n not in ("actor", "token")}
    return [shown(one) for one in value] if isinstance(value, list | tuple) else value


Step = tuple[str, tuple[Any, ...], dict[str, Any]]


def step(verb: str, *args: Any, **kwargs: Any) -> Step:
    return verb, args, kwargs


SCRIPT: list[Step] = [
    step("balance", "nobody", as_of=NOON),
    step("statement", "nobody"),
    step("usage", "nobody"),
    step("verify", "nobody"),
    step("overview", "nobody"),
    step("consume_many", [5, "acme", None, {"account": "acme", 1: 2}]),
    step("consume_many", 5),
    step("consume_many", {"account": "acme", "units": 5}),
    step("settle", "nobody", "h", units=0, request_id="s0"),
    step("erase_metadata", "nobody"),
    step("apply_prices", PRICES, author="ann", reason="first"),
    step("apply_prices", PRICES, author="bob", reason="the same again"),
    step("apply_prices", PRICES, author=" ", reason="x"),
    step("prices"),
    step("grant", "a/b", "100.25", expires_in="90d", tags={"a": "ä"}, request_id="g"),
    step("grant", "a/b", "100.25", expires_in="90d", tags={"a": "ä"}, request_id="g"),
    step("grant", "a/b", 1, request_id="g"),
    step("grant", "a/b", 5, category="promo", expires_at=date(2026, 7, 31), request_id="p"),
    step("grant", "a/b", 500, wallet="tokens", cost_basis="0.01", source="inv", request_id="t"),
    step("consume", "a/b", "image", meters={"images": 3}, request_id="c é"),
    step("consume", "a/b", "image", meters={"images": 3}, request_id="c é"),
    step("consume", "a/b", "image", meters={"images": 4}, request_id="c é"),
    step("consume", "a/b", "chat", meters={"tokens": 1_234}, model="m", request_id="chat"),
    step("consume", "a/b", "video", request_id="none"),
    step("consume", "a/b", units=10_000, request_id="poor"),
    step("consume", "a/b", units=10_000, request_id="poor"),
    step("consume", "a/b", units=10_000, request_id="poor", retry_refused=True),
    step("consume", "a/b", units="0.0000001", request_id="x"),
    step("consume", "a/b", units=1.5, request_id="x"),
    step("consume", "a/b", units=1, wallet="no wallet!", request_id="x"),
    step("consume", "a/b", units=1, colour="blue", request_id="x"),
    step("consume", "a/b", units=Decimal("0.5"), metadata={"f": 0.1, "n": [1, None]}, reason="r"),
    step("consume", "a/b", units=1, effective_at=NOON - timedelta(days=3), request_id="late"),
    step("consume", "a/b", units=1, effective_at=NOON - timedelta(days=300), request_id="later"),
    step("refund", "a/b", "late", request_id="refund"),
    step("refund", "a/b", "late", request_id="refund-2"),
    step("refund", "a/b", "nothing", request_id="refund-3"),
    step("hold", "a/b", "image", meters={"images": 9}, request_id="h", expires_in="20m"),
    step("hold_state", "a/b", "h"),
    step("hold_state", "a/b", "no such hold"),
    step("hold_state", "nobody", "h"),
    step("extend", "a/b", "h", expires_in=timedelta(hours=1), request_id="e"),
    step("settle", "a/b", "h", meters={"images": 2}, final=False, request_id="s1"),
    step("settle", "a/b", "h", units=50, above="refuse", request_id="s2"),
    step("settle", "a/b", "h", meters={"images": 1}, request_id="s3"),
    step("settle", "a/b", "h", meters={"images": 1}, request_id="s4"),
    step("release", "a/b", "h", request_id="s5"),
    step("hold", "a/b", units=5, floor=1, request_id="d"),
    step("mark_in_doubt", "a/b", "d", deadline_in="2h", at_deadline="settle", request_id="d1"),
    step("resolve", "a/b", "d", "done", units=2, request_id="d2"),
    step("resolve", "a/b", "d", "perhaps"),
    step("adjust", "a/b", "-3.5", reason="a\ncorrection", request_id="adj"),
    step("set_overdraft", "a/b", 5, request_id="o"),
    step("set_budget", "a/b", "day", 50, period="day", match={"m": "*"}, request_id="b"),
    step("consume", "a/b", units=51, tags={"m": "ann"}, request_id="over"),
    step("remove_budget", "a/b", "day", request_id="b2"),
    step("set_recurring", "a/b", "plan", 10, anchor=date(2026, 1, 1), request_id="rec"),
    step("stop_recurring", "a/b", "plan", request_id="rec2"),
    step("configure", "a/b", time_zone="Asia/Kolkata", late_settlement=True, request_id="cfg"),
    step("configure", "a/b", time_zone="Mars/Olympus"),
    step("configure", "a/b", late_usage="90d", early_usage="1h", request_id="cfg2"),
    step("configure", "a/b", late_usage="401d", request_id="cfg3"),
    step("void", "a/b", "p", request_id="v"),
    step("quote", "a/b", "image", meters={"images": 5}, lock_for="15m"),
    step("quote", "a/b", "video"),
    step("preview.consume", "a/b", units=3),
    step("preview.consume", "a/b", units=30_000),
    step("preview.refund", "a/b", "chat"),
    step("consume_many", [
        {"account": "a/b", "units": 1, "request_id": "m1"},
        {"account": "a/b", "units": 1, "request_id": "m1"},
        {"account": "a/b", "units": 2, "request_id": "m1"},
        {"account": "other", "units": 2, "request_id": "m2"},
        {"account": "a/b", "units": 0.5, "request_id": "m3"},
        {"account": "a/b", "unit": 1, "request_id": "m4"},
    ]),
    step("consume_many", []),
    step("access", "a/b", feature="hd"),
    step("buy", "a/b", "starter", request_id="early"),
    step("apply_prices", PRICES, author="ann", reason="a catalog", products=PRODUCTS),
    step("apply_prices", PRICES, author="ann", reason="products stay"),
    step("apply_prices", PRICES, author="ann", reason="bad", products=Products(packs={"X": PACK})),
    step("prices"),
    step("buy", "a/b", "starter", quantity=2, source="pay", tags={"t": "1"}, request_id="buy1"),
    step("buy", "a/b", "starter", quantity=2, source="pay", tags={"t": "1"}, request_id="buy1"),
    step("buy", "a/b", "day", request_id="buy2"),
    step("buy", "a/b", "day", version=2, cost_basis="0.5", request_id="buy3"),
    step("buy", "a/b", "nothing", request_id="buy4"),
    step("buy", "a/b", "No Name", request_id="buy5"),
    step("buy", "a/b", "starter", quantity=0, request_id="buy5"),
    step("redeem", "a/b", "welcome", request_id="red1"),
    step("redeem", "a/b", "welcome", request_id="red2"),
    step("redeem", "a/b", "nothing", request_id="red3"),
    step("consume", "a/b", units=1, feature="hd", request_id="with"),
    step("consume", "a/b", units=1, feature="4k", request_id="without"),
    step("hold", "a/b", units=1, feature="4k", request_id="without-2"),
    step("subscribe", "a/b", "pro", request_id="sub1"),
    step("subscribe", "a/b", "pro", name="second", trial=False, paid_until="never",
         started_at=NOON - timedelta(days=40), ends_at=NOON + timedelta(days=9), request_id="sub2"),
    step("subscribe", "a/b", "max", when="period_end", request_id="sub3"),
    step("subscribe", "a/b", "max", when="tomorrow", request_id="sub4"),
    step("subscribe", "a/b", "none", request_id="sub5"),
    step("entitle", "a/b", "beta", request_id="ent1"),
    step("entitle", "a/b", "deal", kind="subscription", features={"seats": 9, "m": "large"},
         grants=[{"units": "2.5", "every": "week", "applies_to": ["image.*"]}],
         trial_ends_at=NOON + timedelta(days=3), product="special", request_id="ent2"),
    step("entitle", "a/b", "deal", grants=[{"unit": 1}], request_id="ent3"),
    step("entitle", "a/b", "deal", features={"seats": -1}, request_id="ent4"),
    step("entitle", "a/b", "hour", features={"hd": True}, lasts="1h", request_id="ent5"),
    step("change_entitlement", "a/b", "subscription", status="past_due", request_id="ch1"),
    step("change_entitlement", "a/b", "nobody's", status="paused", request_id="ch2"),
    step("change_entitlement", "a/b", "deal", request_id="ch3"),
    step("end_entitlement", "a/b", "deal", when="period_end", request_id="end1"),
    step("end_entitlement", "a/b", "beta", request_id="end2"),
    step("end_entitlement", "a/b", "beta", request_id="end3"),
    step("stop_recurring", "a/b", "deal/credits", request_id="own"),
    step("preview.buy", "a/b", "starter", request_id="look"),
    step("preview.redeem", "a/b", "welcome", request_id="look"),
    step("access", "a/b"),
    step("access", "nobody"),
    step("access", "a/b", feature="hd"),
    step("access", "a/b", feature="4k"),
    step("access", "a/b", "image", meters={"images": 3}, feature="seats", tags={"m": "ann"}),
    step("access", "a/b", units=1_000_000, at=NOON),
    step("access", "a/b", meters={"images": 3}),
    step("access", "a/b", feature="hd", at=NOON - timedelta(days=1)),
    step("entitlements", "a/b"),
    step("entitlements", "nobody"),
    step("entitlements", "a/b", at=NOON),
    step("holdings"),
    step("explain", "subscription", account="a/b"),
    step("explain", "sub3"),
    step("freeze", "a/b", request_id="f"),
    step("consume", "a/b", units=1, request_id="frozen"),
    step("unfreeze", "a/b", request_id="uf"),
    step("grant", "..", 1, request_id="dots"),
    step("balance", ".."),
    step("balance", "a/b"),
    step("balance", "a/b", "tokens"),
    step("balance", "a/b", as_of=NOON - timedelta(days=1)),
    step("balance", "a/b", as_of="2026-01-31T12:00:00Z", clock="effective"),
    step("balance", "a/b", as_of="yesterday"),
    step("balance", 7),
    step("statement", "a/b"),
    step("statement", "a/b", limit=3, before=10, kinds=["consume", "grant"]),
    step("statement", "a/b", since=NOON, until=NOON + timedelta(days=1), limit=2),
    step("statement", "a/b", limit=0),
    step("statement", "a/b", kinds="gift"),
    step("statement", "a/b", before=0),
    step("statement", "a/b", before=2**63),
    step("usage", by=["operation", "day"]),
    step("usage", "a/b", by=["tag:m", "wallet"]),
    step("usage", by=["colour"]),
    step("explain", "late", account="a/b"),
    step("explain", "poor"),
    step("explain", "no such id"),
    step("verify"),
    step("verify", "a/b"),
    step("erase_metadata", "a/b"),
    step("overview", "a/b"),
    step("knows", "a/b"),
    step("knows", "nobody"),
    step("history", "a/b", after=3, limit=4),
    step("receipt", "a/b", "g"),
    step("receipt", "a/b", "poor"),
    step("accounts"),
    step("entries", "a/b"),
    step("access", "a/b", feature="hd"),
    step("close_account", "a/b", request_id="end"),
    step("entitlements", "a/b"),
    step("consume", "a/b", units=1, request_id="ended"),
]  # fmt: skip
MADE_UP = ("request_id", "written")  # ids that nobody gave differ, and are not compared


def act(on: Any, one: Step) -> Any:
    verb, args, kwargs = one
    owner, _, name = verb.rpartition(".")
    try:
        answer = getattr(getattr(on, owner) if owner else on, name)(*args, **kwargs)
        return list(answer) if inspect.isgenerator(answer) else answer
    except tillroll.TillrollError as problem:
        return problem


def comparable(answer: Any, one: Step) -> Any:
    found = shown(answer)
    given = one[2].get("request_id")
    return _without_made_up(found) if given is None else found


def _without_made_up(found: Any) -> Any:
    if isinstance(found, dict):
        return {n: _without_made_up(v) for n, v in found.items() if n not in MADE_UP}
    if isinstance(found, list | tuple):
        return [_without_made_up(one) for one in found]
    return found


def test_a_script_has_equal_answers(running: Served):
    with tillroll.open("memory://", clock=at_noon) as ledger, running.client() as client:
        for one in SCRIPT:
            want = comparable(act(ledger, one), one)
            assert comparable(act(client, one), one) == want, one
        assert client.scale == ledger.scale
        assert client.project == ledger.project


def test_a_script_has_equal_answers_when_awaited(running: Served):
    skipped = ("preview.", "accounts", "entries")

    async def script() -> list[Any]:
        transport = httpx2.ASGITransport(running.service)
        client = tillroll.AsyncClient("http://s", api_key=running.api_key, transport=transport)
        found = []
        async with client:
            for one in SCRIPT:
                verb, args, kwargs = one
                if verb.startswith(skipped):
                    continue
                try:
                    found.append(await getattr(client, verb)(*args, **kwargs))
                except tillroll.TillrollError as problem:
                    found.append(problem)
        return found

    script_run = [one for one in SCRIPT if not one[0].startswith(skipped)]
    with tillroll.open("memory://", clock=at_noon) as ledger:
        for one, answer in zip(script_run, asyncio.run(script()), strict=True):
            assert comparable(answer, one) == comparable(act(ledger, one), one), one


# ---------------------------------------------------------------- holds, with their `with`


def settled_in_the_block(on: Any) -> None:
    with on.hold("acme", units=5, request_id="h1") as hold:
        hold.settle(2)


def left_well(on: Any) -> None:
    with on.hold("acme", units=5, request_id="h2"):
        pass


def left_by_an_error(on: Any) -> None:
    with pytest.raises(ZeroDivisionError), on.hold("acme", units=5, request_id="h3"):
        1 / 0  # noqa: B018 - that is the error


def left_by_a_time_out(on: Any) -> None:
    with pytest.raises(TimeoutError), on.hold("acme", units=5, request_id="h4"):
        raise TimeoutError


def opened_twice(on: Any) -> None:
    with on.hold("acme", units=5, request_id="h5") as hold:
        hold.extend("1h")
        assert hold.state == "open"
    with pytest.raises(tillroll.HoldFinalized), on.hold("acme", units=5, request_id="h5"):
        raise AssertionError("the work was done twice")


@pytest.mark.parametrize(
    "story", [settled_in_the_block, left_well, left_by_an_error, left_by_a_time_out, opened_twice]
)
def test_a_hold_ends_as_the_work_deserves(story: Callable[[Any], None], running: Served):
    with tillroll.open("memory://", clock=at_noon) as ledger, running.client() as client:
        for on in (ledger, client):
            on.grant("acme", 100, request_id="g")
            story(on)
        assert shown(client.statement("acme"))["entries"]
        want, found = shown(ledger.balance("acme")), shown(client.balance("acme"))
        assert found == want
        kinds = [receipt.kind for receipt in ledger.statement("acme").receipts]
        assert [receipt.kind for receipt in client.statement("acme").receipts] == kinds


def test_an_awaited_hold_ends_as_the_work_deserves(running: Served):
    async def stories() -> list[str]:
        transport = httpx2.ASGITransport(running.service)
        client = tillroll.AsyncClient("http://s", api_key=running.api_key, transport=transport)
        async with client:
            with pytest.raises(tillroll.InsufficientUnits):
                async with client.hold("acme", units=5):
                    raise AssertionError("there is nothing to hold")
            with pytest.raises(tillroll.InvalidInput):
                client.hold("acme", units=0.5)  # type: ignore[arg-type]  # at once, not awaited
            await client.grant("acme", 100)
            async with client.hold("acme", units=5, request_id="h1") as hold:
                await hold.settle(2)
            async with client.hold("acme", units=5, request_id="h2"):
                pass
            with pytest.raises(ZeroDivisionError):
                async with client.hold("acme", units=5, request_id="h3"):
                    1 / 0  # noqa: B018 - that is the error
            opened = await client.hold("acme", units=5, request_id="h4")
            assert isinstance(opened, tillroll.AsyncOpenHold)
            assert await opened.state() == "open"
            return [await client.hold_state("acme", name) for name in ("h1", "h2", "h3", "h4")]

    assert asyncio.run(stories()) == ["settled", "settled", "released", "open"]
    assert running.ledger.balance("acme").used == 7
