"""What no other table covers: limits of an account, carried residuals, quotes, folding."""

import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest

import tillroll
from tillroll.ledger import calendar, chain, decide, fold, granting, quotes
from tillroll.ledger.commands import account_id
from tillroll.ledger.pricing import Price, Rate
from tillroll.stores.memory import MemoryReader

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """The time, to be moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> tillroll.Ledger:
    ledger = tillroll.open("memory://", clock=clock)
    ledger.grant("acme", 1000, request_id="g")
    return ledger


def price(ledger: tillroll.Ledger, units: str, **terms: Any) -> None:
    item = Price(operation="image", rates={"images": Rate(units=Decimal(units))}, **terms)
    ledger.apply_prices([item], author="ann", reason="a test")


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("grant", {"units": 1}),
        ("adjust", {"units": 1, "reason": "x"}),
        ("hold", {"units": 1}),
        ("set_budget", {"name": "b", "cap": 1}),
        ("set_recurring", {"name": "p", "units": 1, "anchor": "2026-01-01"}),
    ],
)
def test_an_account_holds_so_much_and_no_more(
    ledger: tillroll.Ledger, monkeypatch: pytest.MonkeyPatch, verb: str, args: dict[str, Any]
):
    for module in (decide, granting):
        monkeypatch.setattr(module, "LIVE_MAX", 2)
    calls = [{**args, "name": f"n{nth}"} if "name" in args else args for nth in range(4)]
    made = 0
    for call in calls:
        try:
            getattr(ledger, verb)("acme", **call)
        except tillroll.InvalidInput:
            break
        made += 1
    assert made == (1 if verb in {"grant", "adjust"} else 2)
    assert ledger.verify().ok


def test_residuals_are_carried(ledger: tillroll.Ledger):
    price(ledger, "0.0000004", rounding="carry")
    taken = [ledger.consume("acme", "image", meters={"images": 1}).units for _ in range(5)]
    assert taken == [0, 0, Decimal("0.000001"), 0, Decimal("0.000001")]
    ledger.hold("acme", "image", meters={"images": 1}, request_id="h")
    ledger.settle("acme", "h", meters={"images": 1})
    assert ledger.verify().ok


def test_a_quote_caps_every_part(ledger: tillroll.Ledger):
    price(ledger, "2")
    token = ledger.quote("acme", "image", meters={"images": 5}, lock_for="1h").token
    ledger.hold("acme", "image", meters={"images": 5}, quote=token, request_id="h")
    assert ledger.settle("acme", "h", meters={"images": 4}, final=False).units == 8
    assert ledger.settle("acme", "h", meters={"images": 4}).units == 2


def test_a_quote_is_for_one_account_operation_and_model(ledger: tillroll.Ledger):
    price(ledger, "2")
    token = ledger.quote("acme", "image", meters={"images": 5}, lock_for="1h").token
    for args in (("zoe", "image", None), ("acme", "text", None), ("acme", "image", "large")):
        with pytest.raises(tillroll.InvalidInput, match="another"):
            ledger.consume(*args[:2], model=args[2], meters={"images": 1}, quote=token)


def test_a_sealed_text_that_is_no_quote():
    secret = b"x" * 32
    body = "e30"  # {}, which promises nothing
    with pytest.raises(tillroll.InvalidInput, match="cannot be read"):
        quotes.read(secret, f"trq1.{body}.{quotes._seal(secret, body)}")


def test_who_cannot_check_a_quote_reads_what_it_promises(ledger: tillroll.Ledger):
    price(ledger, "2")
    token = ledger.quote("acme", "image", meters={"images": 5}, lock_for="1h").token
    claims = quotes.read_unsealed(token)
    assert (claims.account, claims.operation, claims.ceiling) == ("acme", "image", 10_000_000)
    with pytest.raises(tillroll.InvalidInput):
        quotes.read_unsealed("no quote")


def test_a_late_settlement_can_be_unpriced(ledger: tillroll.Ledger, clock: Clock):
    ledger.configure("acme", late_settlement=True)
    ledger.hold("acme", "image", units=5, request_id="h")
    clock.now += timedelta(hours=1)
    with pytest.raises(tillroll.Unpriced):
        ledger.settle("acme", "h", meters={"images": 1})
    assert ledger.settle("acme", "h").units == 5


def test_a_scheduled_grant_begins_with_and_without_an_end(ledger: tillroll.Ledger, clock: Clock):
    for name, life in (("a", None), ("b", "1d")):
        ledger.grant(
            "zoe", 5, request_id=name, effective_at=NOW + timedelta(hours=1), expires_in=life
        )
    clock.now += timedelta(hours=2)
    assert ledger.consume("zoe", units=7).grants == [("b", 5), ("a", 2)]


def test_a_recurring_grant_that_has_ended_grants_nothing(ledger: tillroll.Ledger):
    ledger.set_recurring("zoe", "p", 5, anchor="2025-01-01", ends_at="2025-06-01T00:00:00Z")
    assert ledger.balance("zoe").available == 0
    ledger.grant("zoe", 1)
    assert ledger.verify().ok


def test_the_state_is_the_fold_of_the_entries(ledger: tillroll.Ledger):
    ledger.hold("acme", units=5, request_id="h", tags={"member": "ann"})
    ledger.set_budget("acme", "b", 5, period="day")
    folded = fold.fold("acme", [receipt.entry for receipt in ledger.entries("acme")])
    with ledger.store.read() as reader:
        stored = reader.stored_state(account_id("default", "acme"))
    assert stored is not None
    folded.head = stored[1]
    assert chain.encode_state(folded).decode() == stored[2]


def test_meters_written_differently_are_one_request(ledger: tillroll.Ledger):
    price(ledger, "2")
    for images in ("1.50", Decimal("1.5")):
        ledger.consume("acme", "image", meters={"images": images}, request_id="r")
    assert ledger.balance("acme").used == 3


def test_texts_of_any_language(ledger: tillroll.Ledger):
    receipt = ledger.consume("acme", units=1, request_id="訂單-1", reason="für\nAnn")
    assert ledger.explain("訂單-1")["reason"] == receipt.entry.reason == "für\nAnn"


def test_a_refusal_crosses_processes(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.InsufficientUnits) as caught:
        ledger.consume("acme", units=2000, request_id="r")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - just pickled here
    assert (type(copy), copy.to_dict()) == (type(caught.value), caught.value.to_dict())


def test_a_digest_is_of_the_canonical_bytes():
    assert chain.digest({"b": 1, "a": 2}) == sha256(b'{"a":2,"b":1}').digest()


def test_a_refused_id_with_another_body_is_a_conflict_also_anew(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("acme", units=2000, request_id="r")
    with pytest.raises(tillroll.IdempotencyConflict):
        ledger.consume("acme", units=1, request_id="r", retry_refused=True)
    assert ledger.balance("acme").used == 0


def test_explanations_follow_the_state(ledger: tillroll.Ledger, clock: Clock):
    price(ledger, "2")
    ledger.consume("acme", "image", meters={"images": 3}, request_id="c")
    told: Any = ledger.explain("c", account="acme")
    assert told["price"]["version"] == 1
    assert told["charged"] == "6"
    ledger.hold("acme", units=5, request_id="h1")
    ledger.mark_in_doubt("acme", "h1")
    ledger.hold("acme", units=5, request_id="h2")
    assert ledger.explain("h1", account="acme")["outcome"] == "in_doubt"
    clock.now += timedelta(hours=1)
    ledger.consume("acme", units=1)
    assert ledger.explain("h2", account="acme")["outcome"] == "expired"
    ledger.refund("acme", "c")
    assert ledger.explain("c", account="acme")["refunded"] == "6"
    for _ in range(2):
        with pytest.raises(tillroll.HoldNotFound):
            ledger.settle("acme", "none", request_id="no")
    told = ledger.explain("no", account="acme")
    assert (told["code"], told["replays"], told["ways_out"]) == ("hold_not_found", 1, [])


def test_a_hold_of_late_work_is_settled_at_the_price_of_its_time(
    ledger: tillroll.Ledger, clock: Clock
):
    now = calendar.instant(NOW, "now")
    cheap, dear = (
        Price(
            operation="image",
            rates={"images": Rate(units=Decimal(units))},
            valid_from=since,
            valid_to=until,
        )
        for units, since, until in (("1", None, now), ("2", now, None))
    )
    ledger.apply_prices([cheap, dear], author="ann", reason="dearer from now on")
    begun: dict[str, Any] = {"effective_at": NOW - timedelta(days=1), "meters": {"images": 3}}
    assert ledger.hold("acme", "image", request_id="h", **begun).units == 3
    assert ledger.settle("acme", "h", meters={"images": 3}).units == 3
    assert ledger.explain("h")["charged"] == "3"
    assert any("3" in line for line in ledger.explain("h")["price"]["arithmetic"])


# ---------------------------------------------------------------- loading


def test_accounts_are_locked_before_an_id_is_looked_up(
    ledger: tillroll.Ledger, monkeypatch: pytest.MonkeyPatch
):
    """The other way round, an id answered while we wait for the lock would be answered twice."""
    asked: list[str] = []
    for name in ("accounts", "answers", "stories"):
        inner = getattr(MemoryReader, name)

        def spy(self: MemoryReader, *args: Any, name: str = name, inner: Any = inner) -> Any:
            asked.append(name)
            return inner(self, *args)

        monkeypatch.setattr(MemoryReader, name, spy)
    ledger.consume("acme", units=1, request_id="c")
    ledger.refund("acme", "c")
    assert asked[:2] == ["accounts", "answers"]
    assert asked[2:4] == ["accounts", "answers"]
    assert set(asked[4:]) == {"stories"}


@pytest.mark.parametrize("url", ["memory://", "sqlite:///credits.db"])
def test_an_id_answered_with_an_earlier_entry_means_nothing_else(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100)
        ledger.hold("acme", units=10, request_id="h")
        first = ledger.settle("acme", "h", units=10, request_id="s1")
        again = ledger.settle("acme", "h", units=10, request_id="s2")
        assert (again, again.replayed) == (first, True)
        with pytest.raises(tillroll.IdempotencyConflict):
            ledger.consume("acme", units=10, request_id="s2")
        assert ledger.settle("acme", "h", units=10, request_id="s2").replayed
        assert ledger.balance("acme").available == 90
        assert ledger.explain("s2")["request_id"] == "h"
        assert ledger.verify().ok


def test_a_refund_goes_back_the_way_it_was_paid(ledger: tillroll.Ledger):
    """To the line that was drawn last first, as far as the refund goes: overdraft before grants."""
    ledger.grant("acme", 10, request_id="g2", priority=1)
    ledger.set_overdraft("acme", 50)
    ledger.consume("acme", units=1_030, request_id="c")
    assert ledger.balance("acme").available == -20
    assert ledger.refund("acme", "c", units=5).available == -15
    assert ledger.refund("acme", "c", units=18).available == 3  # what was owed, then grants
    assert ledger.refund("acme", "c").available == 1_010
    assert ledger.verify().ok


def test_a_part_is_not_settled_of_what_was_settled_for_good(ledger: tillroll.Ledger):
    ledger.hold("acme", units=10, request_id="h")
    ledger.settle("acme", "h", units=4, request_id="all")
    assert ledger.settle("acme", "h", units=4, request_id="the same again").replayed
    with pytest.raises(tillroll.HoldFinalized):
        ledger.settle("acme", "h", units=4, final=False, request_id="a part")
    assert ledger.balance("acme").used == 4


def test_names_of_our_own_alerts_are_taken(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.InvalidInput, match="must not begin with"):
        ledger.set_alert("acme", "~topup", "balance", 5)


def test_what_is_not_there_is_not_ended(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.HoldNotFound):
        ledger.release("acme", "nothing")
    with pytest.raises(tillroll.EntitlementNotFound):
        ledger.change_entitlement("acme", "nothing", status="paused")


def test_a_hold_that_was_used_whole_gives_nothing_back_to_a_budget(ledger: tillroll.Ledger):
    ledger.set_budget("acme", "b", 100)
    ledger.hold("acme", units=5, request_id="h")
    ledger.settle("acme", "h", units=5)
    assert [budget["left"] for budget in ledger.balance("acme").budgets] == ["95"]
