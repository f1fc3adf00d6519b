"""What is answered becomes what a ledger gives: receipts, balances, quotes, errors."""

import json
import pickle
from collections.abc import Iterator
from decimal import Decimal

import pytest

import tillroll
from tillroll.client import answers
from tillroll.ledger import errors
from tillroll.ledger.pricing import Price, Rate


def sent(value: object) -> dict[str, object]:
    """Return what JSON makes of a value."""
    return dict(json.loads(json.dumps(value)))


@pytest.fixture
def ledger() -> Iterator[tillroll.Ledger]:
    with tillroll.open("memory://") as opened:
        yield opened


def a_history(ledger: tillroll.Ledger) -> None:
    """Write an entry of as many kinds as there are."""
    rates = {"images": Rate(units=Decimal("0.333333"))}
    ledger.apply_prices([Price(operation="image", rates=rates)], author="ann", reason="first")
    ledger.grant("acme", "1000.25", expires_in="90d", tags={"a": "b"}, request_id="g")
    ledger.grant("acme", 5, category="promo")
    ledger.consume("acme", "image", meters={"images": 6}, model="m", request_id="c")
    ledger.consume("acme", units="0.000001", metadata={"a": 1}, actor="ann", reason="x\ny")
    ledger.refund("acme", "c", units=1)
    ledger.hold("acme", units=10, request_id="h")
    ledger.extend("acme", "h", expires_in="2h")
    ledger.settle("acme", "h", units=4, final=False)
    ledger.mark_in_doubt("acme", "h")
    ledger.release("acme", "h")
    ledger.adjust("acme", -2, reason="why")
    ledger.set_overdraft("acme", 5)
    ledger.set_budget("acme", "daily", 500, period="day")
    ledger.set_recurring("acme", "plan", 10, anchor="2026-01-31")
    ledger.configure("acme", time_zone="Asia/Kolkata")
    ledger.void("acme", "g")
    ledger.freeze("acme")


def test_receipts_come_back_as_they_were_shown(ledger: tillroll.Ledger):
    a_history(ledger)
    receipts = list(ledger.entries("acme"))
    assert len(receipts) >= 17
    for receipt in receipts:
        back = answers.receipt_of(sent(receipt.to_dict()), ledger.scale)
        assert isinstance(back, tillroll.Receipt)
        assert back.to_dict() == receipt.to_dict()
        for name in ("units", "grants", "expires_at", "recorded_at", "price_version", "issued"):
            assert getattr(back, name) == getattr(receipt, name)
        again = answers.receipt_of(sent(receipt.to_dict()), ledger.scale)
        assert back == again
        assert not back.provisional
        assert answers.decimals_of(sent(receipt.to_dict())) <= 6


def test_pages_balances_and_checks_come_back(ledger: tillroll.Ledger):
    a_history(ledger)
    page = ledger.statement("acme", limit=3)
    back = answers.page_of(sent(page.to_dict()), ledger.scale)
    assert (back.to_dict(), back.next) == (page.to_dict(), page.next)
    balance = ledger.balance("acme")
    assert answers.balance_of(sent(balance.to_dict())) == balance
    found = ledger.verify()
    assert answers.verification_of(sent(found.to_dict())) == found
    nothing = answers.no_balance("nobody", "credits", None)
    empty = ledger.balance("nobody")
    assert {**nothing.to_dict(), "as_of": ""} == {**empty.to_dict(), "as_of": ""}


def test_quotes_come_back(ledger: tillroll.Ledger):
    a_history(ledger)
    quote = ledger.quote("acme", "image", meters={"images": 1}, lock_for="15m")
    assert answers.quote_of(sent(quote.to_dict())) == quote


def refusal() -> errors.Refused:
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 1)
        with pytest.raises(errors.Refused) as raised:
            ledger.consume("acme", units=5, request_id="r")
    return raised.value


def test_refusals_come_back():
    told = refusal()
    shown = told.to_dict()
    back = answers.error_of(402, {**sent(shown), "detail": shown["message"]}, "r")
    assert type(back) is errors.InsufficientUnits
    assert back.to_dict() == shown
    assert vars(pickle.loads(pickle.dumps(back))) == vars(back)  # noqa: S301 - our own


@pytest.mark.parametrize("kind", [k for k in answers.KINDS.values() if k.code != "refused"])
def test_every_error_comes_back_as_its_own_class(kind: type[errors.TillrollError]):
    problem = {"code": kind.code, "detail": "it is so", "written": kind.written}
    back = answers.error_of(400, problem, "r")
    assert type(back) is kind
    assert (str(back), back.code, back.request_id) == ("it is so", kind.code, "r")
    assert type(pickle.loads(pickle.dumps(back))) is kind  # noqa: S301 - our own


def test_what_is_no_problem_document_is_none():
    for body in (b"", b"<html>", b"[]", b'"code"', b'{"code": 7}'):
        assert answers.problem_of(body) == {}
    assert answers.problem_of(b'{"code": "x"}') == {"code": "x"}
