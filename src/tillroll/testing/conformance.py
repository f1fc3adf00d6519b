"""The promises as checks that anybody can run against their own installation.

    from tillroll.testing import conformance

    report = conformance.run(lambda clock: tillroll.open("sqlite:///check.db", clock=clock))
    print(report)

The factory opens a ledger whose time is what `clock` says. Each check opens one, uses account
names that nobody else has, and closes it; so it may run against a store that is in use, and on
every driver alike. Plain functions with asserts: no test framework is needed.
"""

from __future__ import annotations

import inspect
import json
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from tillroll.embedded import Ledger
from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_in
from tillroll.ledger import errors
from tillroll.ledger.book import Event
from tillroll.ledger.commands import account_id
from tillroll.ledger.events import id_of
from tillroll.ledger.pricing import Price, Rate
from tillroll.ledger.products import (
    Allowance,
    Coupon,
    FeatureTerms,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY, NEVER, TOPUP
from tillroll.ledger.webhooks import ENDPOINT, Endpoint
from tillroll.queries import Balance
from tillroll.stores.base import Note, Writer
from tillroll.stores.outbox import Delivery, State, Waiting

T = TypeVar("T")
Clock = Callable[[], datetime]
Factory = Callable[[Clock], Ledger]
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class Bench:
    """What one check works with: a ledger, its clock, and an account of its own."""

    def __init__(self, factory: Factory) -> None:
        """Open a ledger at noon of 31 January 2026."""
        self.now = START
        self.factory = factory
        self.ledger = factory(lambda: self.now)
        self.account = f"check-{uuid.uuid4().hex}"
        self.deliveries: set[Delivery] = set()  # made by the check; nobody is to send them

    def reopen(self) -> None:
        """Close the ledger and open it again."""
        self.ledger.close()
        self.ledger = self.factory(lambda: self.now)

    def wait(self, **span: float) -> None:
        """Let time pass, as in `wait(days=1)`."""
        self.now += timedelta(**span)

    def grant(self, units: object, name: str | None = None, **terms: Any) -> None:
        """Put units in; a grant is known by its name."""
        self.ledger.grant(self.account, units, request_id=name, **terms)  # type: ignore[arg-type]

    def balance(self, wallet: str = "credits") -> Balance:
        """Return the account's balance."""
        return self.ledger.balance(self.account, wallet)

    def buckets(self) -> tuple[Any, ...]:
        """Return available, held, used and expired."""
        found = self.balance()
        assert found.issued == found.available + found.held + found.used + found.expired
        return found.available, found.held, found.used, found.expired

    def refused(self, code: str, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Return the refusal with this code that a verb must raise; nothing may have moved."""
        before = self.buckets()
        refusal = self.raised(errors.Refused, verb, *args, **kwargs)
        found = getattr(refusal, "code", None)
        assert found == code, f"refused as {found}, not as {code}: {refusal}"
        assert self.buckets() == before, "a refusal moved units"
        return refusal

    def invalid(self, verb: str, *args: Any, **kwargs: Any) -> None:
        """Check that a verb finds its arguments malformed, and writes nothing."""
        before = self.balance().to_dict()
        problem = self.raised(errors.InvalidInput, verb, *args, **kwargs)
        assert problem.written == "nothing"
        assert self.balance().to_dict() == before, "malformed input changed the account"

    def conflict(self, verb: str, *args: Any, **kwargs: Any) -> None:
        """Check that a verb finds its id used for something else, and writes nothing."""
        before = self.balance().to_dict()
        problem = self.raised(errors.IdempotencyConflict, verb, *args, **kwargs)
        assert problem.written == "nothing"
        assert self.balance().to_dict() == before, "a conflict changed the account"

    def raised(
        self, kind: type[errors.TillrollError], verb: str, *args: Any, **kwargs: Any
    ) -> errors.TillrollError:
        """Return the error of this kind that a verb must raise."""
        try:
            receipt = getattr(self.ledger, verb)(self.account, *args, **kwargs)
        except kind as problem:
            return problem
        raise AssertionError(f"{verb}({args}, {kwargs}) was answered with {receipt!r}")

    def perform(self, act: Callable[[Writer], T], ledger: Ledger | None = None) -> T:
        """Do something in a transaction, in turn with the ledger's own."""
        return (ledger or self.ledger)._engine.perform(act)  # noqa: SLF001 - no verb is about it

    def at_once(self, count: int, act: Callable[[int], object]) -> list[object]:
        """Do something in so many threads that start together; return answers or exceptions."""
        gate = threading.Barrier(count)
        answers: list[object] = [None] * count

        def work(nth: int) -> None:
            gate.wait()
            try:
                answers[nth] = act(nth)
            except errors.TillrollError as problem:
                answers[nth] = problem

        threads = [threading.Thread(target=work, args=(nth,)) for nth in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


class Result(NamedTuple):
    """What became of one check."""

    name: str
    promise: str
    ok: bool
    message: str
    seconds: float


class Report(NamedTuple):
    """What became of all checks."""

    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Return whether every check passed."""
        return all(result.ok for result in self.results)

    @property
    def failures(self) -> list[Result]:
        """The checks that failed."""
        return [result for result in self.results if not result.ok]

    def __str__(self) -> str:
        """Show one line a check, and what went wrong with those that failed."""
        lines = []
        for result in self.results:
            lines.append(f"{'ok  ' if result.ok else 'FAIL'}  {result.promise}")
            lines += [f"      {line}" for line in result.message.splitlines()]
        passed = len(self.results) - len(self.failures)
        return "\n".join([*lines, f"{passed} of {len(self.results)} checks passed"])


Check = Callable[[Bench], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Add a function to the suite; its docstring is what it promises."""
    CHECKS.append(function)
    return function


def run(factory: Factory, *, only: str = "") -> Report:
    """Run the checks whose name contains `only`, each on a ledger of its own.

    Args:
        factory: Opens a ledger that asks the given clock for the time.
        only: Part of the names of the checks wanted; all if left out.
    """
    return Report(tuple(_run(item, factory) for item in CHECKS if only in item.__name__))


def _run(item: Check, factory: Factory) -> Result:
    promise = inspect.getdoc(item) or item.__name__
    began = time.perf_counter()
    message = ""
    try:
        bench = Bench(factory)
        try:
            item(bench)
            _forget_deliveries(bench)
        finally:
            bench.ledger.close()
    except Exception as problem:  # noqa: BLE001 - whatever went wrong belongs in the report
        message = "".join(traceback.format_exception_only(problem)).strip()
        message += f"\n{traceback.extract_tb(problem.__traceback__)[-1]}"
    seconds = time.perf_counter() - began
    return Result(item.__name__, promise, not message, message, seconds)


# ---------------------------------------------------------------- once


@check
def a_repeat_charges_once(b: Bench) -> None:
    """A repeated request changes nothing and is given the first answer, marked as replayed."""
    b.grant(100)
    first = b.ledger.consume(b.account, units=30, request_id="r")
    second = b.ledger.consume(b.account, units=30, request_id="r")
    assert (first.replayed, second.replayed) == (False, True)
    assert second.entry == first.entry
    assert b.buckets() == (70, 0, 30, 0)


@check
def an_id_made_for_a_request_is_never_used_twice(bench: Bench) -> None:
    """An id that was made for one request and exists nevertheless writes nothing again."""
    bench.grant(2)
    ledger = bench.ledger
    request = ledger._verbs.consume(bench.account, units=1)  # noqa: SLF001 - no caller can do this
    assert request.is_new
    first, again = (ledger._engine.execute([request])[0] for _ in range(2))  # noqa: SLF001
    assert not isinstance(first.outcome, errors.TillrollError), first.outcome
    assert isinstance(again.outcome, errors.StoreError), again.outcome
    assert bench.ledger.balance(bench.account).available == 1
    told = bench.ledger.consume(bench.account, units=1, request_id=request.request_id)
    assert told.replayed
    assert bench.ledger.balance(bench.account).available == 1


@check
def a_hundred_at_once_charge_once(b: Bench) -> None:
    """A hundred simultaneous repeats of one request charge once and all get the same answer."""
    b.grant(100)
    answers = b.at_once(100, lambda _: b.ledger.consume(b.account, units=30, request_id="r"))
    entries = {getattr(answer, "entry", None) for answer in map(_hashable, answers)}
    assert len(entries) == 1, answers
    assert sum(not getattr(answer, "replayed", True) for answer in answers) == 1
    assert b.buckets() == (70, 0, 30, 0)


@check
def a_repeat_survives_a_restart(b: Bench) -> None:
    """A request repeated after the ledger was closed and opened again is still a repeat."""
    if b.ledger.store.url.startswith("memory:"):
        return
    b.grant(100)
    first = b.ledger.consume(b.account, units=30, request_id="r")
    b.reopen()
    assert b.ledger.consume(b.account, units=30, request_id="r").entry == first.entry


@check
def another_body_is_a_conflict(b: Bench) -> None:
    """The same id with another body is refused and changes nothing."""
    b.grant(100)
    b.ledger.consume(b.account, units=30, request_id="r")
    b.conflict("consume", units=31, request_id="r")
    b.conflict("consume", units=30, tags={"member": "ann"}, request_id="r")


@check
def another_verb_is_a_conflict(b: Bench) -> None:
    """An id that was used by one verb cannot be used by another."""
    b.grant(100, "r")
    b.conflict("consume", units=100, request_id="r")


@check
def ids_are_per_account(b: Bench) -> None:
    """The same id on two accounts is two requests."""
    b.grant(100, "r")
    b.ledger.grant(f"{b.account}-2", 50, request_id="r")
    assert b.ledger.balance(f"{b.account}-2").available == 50  # noqa: PLR2004 - just granted


@check
def one_amount_written_differently_is_one_request(b: Bench) -> None:
    """2, "2.0" and Decimal(2) are the same amount, and so the same request."""
    b.grant(100)
    for units in (2, "2.0", Decimal(2)):
        b.ledger.consume(b.account, units=units, request_id="r")
    assert b.buckets() == (98, 0, 2, 0)


@check
def a_refusal_is_remembered(b: Bench) -> None:
    """A refused request stays refused, so that a late duplicate can never charge."""
    b.grant(10)
    first = b.refused("insufficient_units", "consume", units=20, request_id="r")
    b.grant(100)
    second = b.refused("insufficient_units", "consume", units=20, request_id="r")
    assert (first.replayed, second.replayed) == (False, True)
    assert (second.seq, second.needed, second.available) == (first.seq, 20, 10)


@check
def a_refusal_can_be_decided_anew(b: Bench) -> None:
    """A refused id is decided again when the caller says so, and then stays decided."""
    b.grant(10)
    b.refused("insufficient_units", "consume", units=20, request_id="r")
    b.grant(100)
    b.ledger.consume(b.account, units=20, request_id="r", retry_refused=True)
    assert b.ledger.consume(b.account, units=20, request_id="r").replayed
    assert b.buckets() == (90, 0, 20, 0)


@check
def deciding_anew_takes_no_other_body(b: Bench) -> None:
    """A refused id with another body is a conflict, also when it is to be decided anew."""
    b.grant(10)
    b.refused("insufficient_units", "consume", units=20, request_id="r")
    b.conflict("consume", units=5, request_id="r", retry_refused=True)


@check
def refusals_are_kept_ninety_days(b: Bench) -> None:
    """A refusal is forgotten after 90 days; an entry never is."""
    b.grant(10)
    b.refused("insufficient_units", "consume", units=20, request_id="r")
    b.ledger.consume(b.account, units=10, request_id="e")
    b.wait(days=89)
    assert b.refused("insufficient_units", "consume", units=20, request_id="r").replayed
    b.wait(days=2)
    assert not b.refused("insufficient_units", "consume", units=20, request_id="r").replayed
    assert b.ledger.consume(b.account, units=10, request_id="e").replayed


# ---------------------------------------------------------------- never below zero


@check
def twenty_holds_grant_exactly_six(b: Bench) -> None:
    """20 simultaneous holds of 75 on 500 grant exactly 6."""
    b.grant(500)
    answers = b.at_once(20, lambda _: b.ledger.hold(b.account, units=75))
    refusals = [answer for answer in answers if isinstance(answer, errors.InsufficientUnits)]
    assert len(refusals) == 20 - 500 // 75, answers
    assert b.buckets() == (50, 450, 0, 0)
    assert all(refusal.available < refusal.needed for refusal in refusals)  # type: ignore[operator]


@check
def the_last_unit_is_sold_once(b: Bench) -> None:
    """Of ten simultaneous consumes of the last unit one succeeds."""
    b.grant(1)
    answers = b.at_once(10, lambda _: b.ledger.consume(b.account, units=1))
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert b.buckets() == (0, 0, 1, 0)


@check
def a_refusal_says_what_is_missing(b: Bench) -> None:
    """Too little is refused with what was needed, available and held, and with ways out."""
    b.grant(10)
    b.ledger.hold(b.account, units=4)
    refusal = b.refused("insufficient_units", "consume", units=7)
    assert (refusal.needed, refusal.available, refusal.held) == (7, 6, 4)
    assert {"top_up", "less", "wait"} <= {way["kind"] for way in refusal.ways_out}


@check
def the_overdraft_is_burnt_last(b: Bench) -> None:
    """An overdraft is used when the grants are used up, and never beyond its limit."""
    b.grant(10)
    b.ledger.set_overdraft(b.account, 5)
    taken = b.ledger.consume(b.account, units=12)
    assert [units for _, units in taken.grants] == [10, 2]
    assert taken.available == -2  # noqa: PLR2004 - 10 - 12
    b.refused("insufficient_units", "consume", units=4)
    b.ledger.consume(b.account, units=3)
    assert b.buckets() == (-5, 0, 15, 0)


@check
def a_grant_repays_the_overdraft_first(b: Bench) -> None:
    """A grant without restrictions repays what is owed; a restricted one does not."""
    b.ledger.set_overdraft(b.account, 10)
    b.ledger.consume(b.account, units=8)
    b.grant(5, applies_to=["image.*"])
    assert b.balance().spendable == 7  # noqa: PLR2004 - 5 granted and 2 of the overdraft
    b.grant(20, "top-up")
    left = {grant["id"]: grant["remaining"] for grant in b.balance().grants}
    assert left["top-up"] == "12"
    assert b.buckets() == (17, 0, 8, 0)


@check
def what_comes_back_to_a_repaid_overdraft_is_free(b: Bench) -> None:
    """What a grant repaid for a hold that is released then can be settled and corrected."""
    b.ledger.set_overdraft(b.account, 10)
    b.ledger.hold(b.account, units=10, request_id="owing")
    b.grant(10)
    b.ledger.release(b.account, "owing")
    b.ledger.set_overdraft(b.account, 0)
    assert b.buckets() == (10, 0, 0, 0)
    b.ledger.hold(b.account, units=1, request_id="h")
    settled: Any = b.ledger.settle(b.account, "h", units=5)
    assert (settled.units, settled.shortfall) == (5, 0)
    b.ledger.adjust(b.account, -5, reason="a correction")
    assert b.buckets() == (0, 0, 5, 0)


@check
def a_refusal_names_a_grant_that_is_enough(b: Bench) -> None:
    """Where more is owed than may be, the way out counts what a grant repays first."""
    b.ledger.set_overdraft(b.account, 10)
    b.ledger.consume(b.account, units=8)
    b.ledger.set_overdraft(b.account, 0)
    refusal: Any = b.refused("insufficient_units", "consume", units=1)
    b.grant(refusal.ways_out[0]["units"])
    b.ledger.consume(b.account, units=1)
    assert b.buckets() == (0, 0, 9, 0)


@check
def lowering_the_overdraft_takes_nothing_back(b: Bench) -> None:
    """A limit below what is owed refuses further draws and leaves the rest as it is."""
    b.ledger.set_overdraft(b.account, 10)
    b.ledger.consume(b.account, units=8)
    b.ledger.set_overdraft(b.account, 0)
    b.refused("insufficient_units", "consume", units=1)
    assert b.buckets() == (-8, 0, 8, 0)


# ---------------------------------------------------------------- grants and burn order


@check
def priority_comes_first(b: Bench) -> None:
    """The grant with the lower priority number pays first."""
    b.grant(10, "late", priority=5, expires_in="1d")
    b.grant(10, "early", priority=1)
    assert b.ledger.consume(b.account, units=1).grants[0][0] == "early"


@check
def the_soonest_expiry_comes_next(b: Bench) -> None:
    """Of equal priority the grant that expires first pays first; one without expiry last."""
    b.grant(10, "a-never")
    b.grant(10, "b-later", expires_in="90d")
    b.grant(10, "c-soon", expires_in="1d")
    taken = b.ledger.consume(b.account, units=21)
    assert [line for line, _ in taken.grants] == ["c-soon", "b-later", "a-never"]


@check
def promo_comes_before_paid(b: Bench) -> None:
    """Of the same expiry the promotional grant pays before the others."""
    b.grant(10, "a-paid")
    b.grant(10, "b-promo", category="promo")
    assert b.ledger.consume(b.account, units=1).grants[0][0] == "b-promo"


@check
def the_oldest_comes_before_the_id(b: Bench) -> None:
    """Otherwise the grant that began first pays, and of the same instant the lower id."""
    b.grant(10, "b")
    b.grant(10, "a")
    b.wait(hours=1)
    b.grant(10, "0")
    taken = b.ledger.consume(b.account, units=30)
    assert [line for line, _ in taken.grants] == ["a", "b", "0"]


@check
def the_burn_order_survives_a_restart(b: Bench) -> None:
    """An account read back from its store burns in the same order."""
    if b.ledger.store.url.startswith("memory:"):
        return
    b.grant(10, "a-late", expires_in="90d")
    b.grant(10, "b-soon", expires_in="1d")
    b.ledger.hold(b.account, units=15, request_id="h")
    b.reopen()
    settled: Any = b.ledger.settle(b.account, "h", units=12)
    assert [line for line, _ in settled.grants][:2] == ["b-soon", "a-late"]


@check
def a_grant_pays_only_for_its_operations(b: Bench) -> None:
    """A grant for `image.*` pays for image.generate, for no other operation and for none."""
    b.grant(10, applies_to=["image.*"])
    b.refused("insufficient_units", "consume", units=1)
    b.refused("insufficient_units", "consume", "text.write", units=1)
    b.refused("insufficient_units", "consume", "imagery", units=1)
    b.ledger.consume(b.account, "image.generate", units=10)


@check
def a_grant_expires_by_the_clock(b: Bench) -> None:
    """What is left of a grant is gone at its end, with nobody booking it."""
    b.grant(10, expires_in="1d")
    b.ledger.consume(b.account, units=4)
    b.wait(days=1)
    assert b.buckets() == (0, 0, 4, 6)
    b.refused("insufficient_units", "consume", units=1)


@check
def an_expiry_date_is_good_through_that_day(b: Bench) -> None:
    """A grant that expires on a date lasts through that day where its owner lives."""
    b.ledger.configure(b.account, time_zone="America/New_York")
    b.grant(10, expires_at=date(2026, 1, 31))
    b.now = datetime(2026, 2, 1, 4, 59, 59, tzinfo=UTC)
    assert b.buckets() == (10, 0, 0, 0)
    b.now = datetime(2026, 2, 1, 5, 0, tzinfo=UTC)
    assert b.buckets() == (0, 0, 0, 10)


@check
def a_future_grant_waits(b: Bench) -> None:
    """A grant that begins later cannot be used before, and counts as issued when it begins."""
    b.grant(10, "g", effective_at=b.now + timedelta(days=1))
    assert b.balance().issued == 0
    refusal = b.refused("insufficient_units", "consume", units=1)
    assert "wait" in {way["kind"] for way in refusal.ways_out}
    b.wait(days=1)
    assert b.buckets() == (10, 0, 0, 0)
    b.ledger.consume(b.account, units=10)


@check
def wallets_are_apart(b: Bench) -> None:
    """Units of one wallet never pay for another."""
    b.grant(10, wallet="gpu-seconds")
    b.refused("insufficient_units", "consume", units=1)
    b.ledger.consume(b.account, units=4, wallet="gpu-seconds")
    assert b.balance("gpu-seconds").available == 6  # noqa: PLR2004 - 10 - 4


@check
def a_void_cancels_what_is_left(b: Bench) -> None:
    """A voided grant gives up what is left of it; a hold's part stays until the hold ends."""
    b.grant(10, "g")
    b.ledger.consume(b.account, units=2)
    b.ledger.hold(b.account, units=3, request_id="h")
    assert b.ledger.void(b.account, "g").units == 5  # noqa: PLR2004 - 10 - 2 - 3
    assert b.buckets() == (0, 3, 2, 0)
    assert b.ledger.void(b.account, "g").replayed
    b.ledger.settle(b.account, "h", units=1)
    assert b.buckets() == (0, 0, 3, 0)
    b.refused("grant_not_found", "void", "nothing")


@check
def a_void_of_a_part_leaves_the_grant_in_force(b: Bench) -> None:
    """A part is taken as far as it is there; the rest is a shortfall, and the grant goes on."""
    b.grant(10, "g")
    b.ledger.consume(b.account, units=4, request_id="c")
    first = b.ledger.void(b.account, "g", units=5, request_id="v1")
    assert [first.units, first.shortfall] == [5, 0]
    second = b.ledger.void(b.account, "g", units=3, request_id="v2")
    assert [second.units, second.shortfall] == [1, 2]
    assert b.ledger.void(b.account, "g", units=3, request_id="v2").replayed
    assert b.buckets() == (0, 0, 4, 0)
    b.ledger.refund(b.account, "c")
    assert b.buckets() == (4, 0, 0, 0), "what came back to the grant is good"
    assert b.ledger.void(b.account, "g").units == 4  # noqa: PLR2004 - what was refunded
    none = b.ledger.void(b.account, "g", units=2)
    assert [none.units, none.shortfall] == [0, 2]
    b.invalid("void", "g", units=0)
    b.grant(5, "later", effective_at=b.now + timedelta(days=1))
    b.invalid("void", "later", units=2)


@check
def an_adjustment_needs_a_reason(b: Bench) -> None:
    """An operator corrects up or down, with a reason, never below zero."""
    b.ledger.adjust(b.account, 10, reason="goodwill of the support")
    b.ledger.adjust(b.account, -4, reason="a mistake")
    assert b.buckets() == (6, 0, 0, 0)
    refusal = b.refused("insufficient_units", "adjust", -7, reason="too much")
    assert (refusal.needed, refusal.available) == (7, 6)
    b.invalid("adjust", 5, reason=" ")


# ---------------------------------------------------------------- holds


@check
def a_hold_reserves(b: Bench) -> None:
    """A hold takes units at once: they are neither free nor spent."""
    b.grant(10)
    b.ledger.hold(b.account, units=6)
    assert b.buckets() == (4, 6, 0, 0)
    b.refused("insufficient_units", "hold", units=5)


@check
def a_settle_returns_the_rest(b: Bench) -> None:
    """A settle takes what was used and gives the rest back to the exact grants."""
    b.grant(5, "a", expires_in="1d")
    b.grant(5, "b")
    b.ledger.hold(b.account, units=8, request_id="h")
    b.ledger.settle(b.account, "h", units=2)
    left = {grant["id"]: grant["remaining"] for grant in b.balance().grants}
    assert left == {"a": "3", "b": "5"}
    assert b.buckets() == (8, 0, 2, 0)


@check
def a_hold_is_settled_in_parts(b: Bench) -> None:
    """A hold may be settled in parts; the last one ends it."""
    b.grant(10)
    b.ledger.hold(b.account, units=9, request_id="h")
    b.ledger.settle(b.account, "h", units=2, final=False)
    b.ledger.settle(b.account, "h", units=3, final=False)
    assert b.buckets() == (1, 4, 5, 0)
    b.ledger.settle(b.account, "h", units=1)
    assert b.buckets() == (4, 0, 6, 0)


@check
def above_the_hold_takes_what_is_free(b: Bench) -> None:
    """More than is held takes what is free and records the rest as shortfall."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    settled: Any = b.ledger.settle(b.account, "h", units=13)
    assert (settled.units, settled.shortfall) == (10, 3)
    assert b.buckets() == (0, 0, 10, 0)


@check
def above_the_hold_can_be_refused(b: Bench) -> None:
    """More than is held is refused where the caller wants that; the hold stays open."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    b.refused("settle_exceeds_hold", "settle", "h", units=7, above="refuse")
    b.ledger.settle(b.account, "h", units=6, above="refuse")


@check
def above_the_hold_can_be_owed(b: Bench) -> None:
    """More than is held may draw on the overdraft where the caller wants that, and only there."""
    b.grant(10)
    b.ledger.set_overdraft(b.account, 5)
    b.ledger.hold(b.account, units=10, request_id="h1")
    settled: Any = b.ledger.settle(b.account, "h1", units=12, above="overdraft")
    assert (settled.units, settled.shortfall, settled.available) == (12, 0, -2)


@check
def a_release_gives_all_back(b: Bench) -> None:
    """A release gives all of a hold back; repeated under any id it changes nothing."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    b.ledger.release(b.account, "h", request_id="r1")
    assert b.ledger.release(b.account, "h", request_id="r2").replayed
    assert b.buckets() == (10, 0, 0, 0)
    b.refused("hold_finalized", "settle", "h", units=1)


@check
def a_settle_is_idempotent_on_the_hold(b: Bench) -> None:
    """The same settle under another id is a repeat; another amount is refused."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    b.ledger.settle(b.account, "h", units=4, request_id="s1")
    assert b.ledger.settle(b.account, "h", units=4, request_id="s2").replayed
    b.refused("hold_finalized", "settle", "h", units=5)
    b.refused("hold_finalized", "settle", "h")
    b.refused("hold_finalized", "release", "h")
    assert b.buckets() == (6, 0, 4, 0)


@check
def of_sixteen_settles_one_wins(b: Bench) -> None:
    """Of sixteen simultaneous settles of one hold one is carried out."""
    b.grant(100)
    b.ledger.hold(b.account, units=50, request_id="h")
    answers = b.at_once(16, lambda n: b.ledger.settle(b.account, "h", units=n + 1))
    done = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(done) == 1, answers
    used = getattr(done[0], "units", None)
    assert b.balance().used == used
    assert b.balance().held == 0


@check
def a_floor_takes_what_is_there(b: Bench) -> None:
    """A hold with a floor takes what is there, down to the floor and no further."""
    b.grant(10)
    assert b.ledger.hold(b.account, units=15, floor=10).units == 10  # noqa: PLR2004 - all of it
    b.refused("insufficient_units", "hold", units=5, floor=1)
    b.invalid("hold", units=5, floor=6)


@check
def a_hold_ends_by_its_deadline(b: Bench) -> None:
    """A hold ends by the clock, with no sweeper: its units are free at its deadline."""
    b.grant(10)
    b.ledger.hold(b.account, units=10, request_id="h")
    b.wait(minutes=15, microseconds=-1)
    assert b.buckets() == (0, 10, 0, 0)
    b.wait(microseconds=1)
    assert b.buckets() == (10, 0, 0, 0)
    refusal = b.refused("hold_expired", "settle", "h", units=5)
    assert [way["kind"] for way in refusal.ways_out] == ["consume"]
    b.ledger.consume(b.account, units=10)


@check
def booking_what_is_due_changes_no_answer(b: Bench) -> None:
    """The same balance and the same answers whether or not what fell due was booked."""
    b.grant(10, expires_in="1h")
    b.ledger.hold(b.account, units=4, request_id="h")
    b.wait(hours=2)
    before = b.buckets()
    while b.ledger.book_due():
        pass
    assert b.buckets() == before == (0, 0, 0, 10)
    b.refused("hold_expired", "settle", "h", units=4)


@check
def an_extended_hold_lives_longer(b: Bench) -> None:
    """A hold can be prolonged up to 24 hours from now; its deadline never moves closer."""
    b.grant(10)
    b.ledger.hold(b.account, units=10, request_id="h")
    b.ledger.extend(b.account, "h", expires_in="2h")
    b.ledger.extend(b.account, "h", expires_in="1m")
    b.wait(minutes=119)
    assert b.balance().held == 10  # noqa: PLR2004 - all of it
    b.wait(minutes=1)
    assert b.balance().held == 0
    b.refused("hold_expired", "extend", "h", expires_in="1h")
    b.invalid("hold", units=1, expires_in="25h")


@check
def a_hold_outlives_its_grant(b: Bench) -> None:
    """What a hold took of a grant can be settled after the grant's end; the rest expires."""
    b.grant(10, expires_in="5m")
    b.ledger.hold(b.account, units=8, request_id="h")
    b.wait(minutes=10)
    assert b.buckets() == (0, 8, 0, 2)
    b.ledger.settle(b.account, "h", units=5)
    assert b.buckets() == (0, 0, 5, 5)


@check
def doubt_is_a_state(b: Bench) -> None:
    """A hold in doubt is visible, neither charged nor free, until it is resolved."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    b.ledger.mark_in_doubt(b.account, "h", deadline_in="2h")
    b.wait(minutes=90)
    assert b.buckets() == (4, 6, 0, 0)
    assert b.balance().holds[0]["state"] == "in_doubt"
    b.ledger.resolve(b.account, "h", "done", units=5)
    assert b.buckets() == (5, 0, 5, 0)


@check
def doubt_ends_by_its_deadline(b: Bench) -> None:
    """Doubt ends as was said: released unless it was to be settled."""
    b.grant(10)
    for name, then in (("h1", "release"), ("h2", "settle")):
        b.ledger.hold(b.account, units=3, request_id=name)
        b.ledger.mark_in_doubt(b.account, name, at_deadline=then)  # type: ignore[arg-type]
    b.wait(hours=24)
    assert b.buckets() == (7, 0, 3, 0)
    b.refused("hold_expired", "release", "h1")
    b.refused("hold_finalized", "release", "h2")


@check
def late_settlement_is_a_setting(b: Bench) -> None:
    """Where the account accepts it, an expired hold is settled from what is free then."""
    b.ledger.configure(b.account, late_settlement=True)
    b.grant(10)
    b.ledger.hold(b.account, units=8, request_id="h")
    b.wait(hours=1)
    b.ledger.consume(b.account, units=5)
    settled: Any = b.ledger.settle(b.account, "h", units=7)
    assert (settled.units, settled.shortfall) == (5, 2)
    assert settled.entry.late
    assert b.buckets() == (0, 0, 10, 0)


@check
def a_late_settlement_can_be_refused(b: Bench) -> None:
    """To refuse what is above the hold is the policy of a late settle, too: all or nothing."""
    b.ledger.configure(b.account, late_settlement=True)
    b.grant(10)
    b.ledger.hold(b.account, units=8, request_id="h")
    b.wait(hours=1)
    late: Any = {"hold_id": "h", "above": "refuse"}
    b.refused("settle_exceeds_hold", "settle", units=9, **late)
    b.ledger.consume(b.account, units=5)
    b.refused("insufficient_units", "settle", units=7, **late)
    assert b.buckets() == (5, 0, 5, 0)
    b.ledger.settle(b.account, units=5, **late)
    assert b.buckets() == (0, 0, 10, 0)


@check
def a_late_settlement_does_not_charge_twice(b: Bench) -> None:
    """What was settled in parts before the deadline is not charged again afterwards."""
    b.ledger.configure(b.account, late_settlement=True)
    b.grant(100)
    b.ledger.hold(b.account, units=10, request_id="h")
    b.ledger.settle(b.account, "h", units=6, final=False)
    b.wait(hours=1)
    b.ledger.settle(b.account, "h")
    assert b.buckets() == (90, 0, 10, 0)


@check
def a_hold_guards_the_work(b: Bench) -> None:
    """As a context manager a hold settles, releases, or is in doubt, as the work deserves."""
    b.grant(10)
    with b.ledger.hold(b.account, units=2):
        pass
    for error, held in ((ValueError(), 0), (TimeoutError(), 3)):
        try:
            with b.ledger.hold(b.account, units=3):
                raise error
        except type(error):
            assert b.balance().held == held
    assert b.balance().used == 2  # noqa: PLR2004 - the first of the three


# ---------------------------------------------------------------- refunds


@check
def a_refund_returns_to_who_paid(b: Bench) -> None:
    """A refund goes back to the very grants that paid, the last one first."""
    b.grant(5, "a", expires_in="30d")
    b.grant(5, "b")
    b.ledger.consume(b.account, units=8, request_id="c")
    b.ledger.refund(b.account, "c", units=4)
    left = {grant["id"]: grant["remaining"] for grant in b.balance().grants}
    assert left == {"a": "1", "b": "5"}


@check
def refunds_never_exceed_the_charge(b: Bench) -> None:
    """Refunds are bounded by the charge, all of them together."""
    b.grant(10)
    b.ledger.consume(b.account, units=8, request_id="c")
    b.ledger.refund(b.account, "c", units=5)
    refusal = b.refused("refund_exceeds_charge", "refund", "c", units=4)
    assert (refusal.needed, refusal.available) == (4, 3)
    b.ledger.refund(b.account, "c")
    b.refused("refund_exceeds_charge", "refund", "c")
    b.refused("charge_not_found", "refund", "nothing")
    assert b.buckets() == (10, 0, 0, 0)


@check
def a_hold_is_refunded_by_any_of_its_names(b: Bench) -> None:
    """A settled hold is refunded by its own id or by its settle's, and bounded all the same."""
    b.grant(10)
    b.ledger.hold(b.account, units=8, request_id="h")
    b.refused("charge_not_found", "refund", "h")
    b.ledger.settle(b.account, "h", units=8, request_id="s")
    b.ledger.refund(b.account, "h", units=5)
    b.refused("refund_exceeds_charge", "refund", "s", units=4)
    b.ledger.refund(b.account, "s", units=3)
    assert b.buckets() == (10, 0, 0, 0)


@check
def a_refund_to_an_expired_grant_follows_the_policy(b: Bench) -> None:
    """Where the grant that paid is over, a refund expires, or gives a new grant instead."""
    b.grant(9, expires_in="1d")
    b.ledger.consume(b.account, units=9, request_id="c")
    b.wait(days=2)
    b.ledger.refund(b.account, "c", units=1)
    assert b.buckets() == (0, 0, 8, 1)
    b.ledger.refund(b.account, "c", units=2, expired="extend", extend_by="5d")
    b.ledger.refund(b.account, "c", units=3, expired="goodwill")
    assert b.buckets() == (5, 0, 3, 1)
    assert [grant["category"] for grant in b.balance().grants] == ["paid", "promo"]
    b.wait(days=5)
    assert b.buckets() == (3, 0, 3, 3)


@check
def a_refund_to_a_voided_grant_is_cancelled_too(b: Bench) -> None:
    """What a voided grant gets back is no longer issued."""
    b.grant(9, "g")
    b.ledger.consume(b.account, units=4, request_id="c")
    b.ledger.void(b.account, "g")
    b.ledger.refund(b.account, "c")
    assert b.buckets() == (0, 0, 0, 0)
    assert b.balance().issued == 0


# ---------------------------------------------------------------- budgets, recurring, status


@check
def a_budget_caps_a_period(b: Bench) -> None:
    """A daily budget refuses what does not fit, says when it resets, and then does."""
    b.grant(100)
    b.ledger.set_budget(b.account, "daily", 10, period="day")
    b.ledger.consume(b.account, units=8)
    refusal = b.refused("budget_exceeded", "consume", units=3)
    assert (refusal.needed, refusal.available, refusal.tightest) == (3, 2, "budget daily")
    assert refusal.details["resets_at"] == "2026-02-01T00:00:00Z"
    b.now = datetime(2026, 2, 1, tzinfo=UTC)
    b.ledger.consume(b.account, units=10)


@check
def a_budget_can_cap_each_member(b: Bench) -> None:
    """With `*` a budget caps each value apart."""
    b.grant(100)
    b.ledger.set_budget(b.account, "each", 10, match={"member": "*"})
    b.ledger.consume(b.account, units=10, tags={"member": "ann"})
    b.ledger.consume(b.account, units=10, tags={"member": "bob"})
    b.refused("budget_exceeded", "consume", units=1, tags={"member": "ann"})
    b.ledger.consume(b.account, units=50)


@check
def a_rolling_budget_holds_over_every_window(b: Bench) -> None:
    """A rolling budget is never exceeded over any span of its length."""
    b.grant(1000)
    b.ledger.set_budget(b.account, "rolling", 10, period="rolling", window="5h")
    b.ledger.consume(b.account, units=10)
    b.wait(hours=5, microseconds=-1)
    b.refused("budget_exceeded", "consume", units=1)
    b.wait(minutes=5, seconds=1)
    b.ledger.consume(b.account, units=10)


@check
def what_comes_back_makes_room_again(b: Bench) -> None:
    """Released and refunded units are taken off the budget that counted them."""
    b.grant(100)
    b.ledger.set_budget(b.account, "daily", 10, period="day")
    b.ledger.hold(b.account, units=10, request_id="h")
    b.refused("budget_exceeded", "consume", units=1)
    b.ledger.settle(b.account, "h", units=4)
    b.ledger.consume(b.account, units=6, request_id="c")
    b.ledger.refund(b.account, "c", units=5)
    b.ledger.consume(b.account, units=5)
    b.refused("budget_exceeded", "consume", units=1)


@check
def a_budget_counts_from_when_it_was_set(b: Bench) -> None:
    """What was held before a budget was set makes no room in it when it comes back."""
    b.grant(100)
    b.ledger.hold(b.account, units=10, request_id="h")
    b.ledger.set_budget(b.account, "daily", 20, period="day")
    b.ledger.consume(b.account, units=15)
    b.ledger.release(b.account, "h")
    b.refused("budget_exceeded", "consume", units=6)


@check
def a_raised_budget_keeps_its_count(b: Bench) -> None:
    """A cap can be raised or removed; what was counted stays counted."""
    b.grant(100)
    b.ledger.set_budget(b.account, "b", 10)
    b.ledger.consume(b.account, units=10)
    b.ledger.set_budget(b.account, "b", 12)
    b.refused("budget_exceeded", "consume", units=3)
    b.ledger.remove_budget(b.account, "b")
    b.ledger.consume(b.account, units=3)


@check
def recurring_grants_follow_their_anchor(b: Bench) -> None:
    """A monthly grant of the 31st comes on the 28th of February and on the 31st of March."""
    b.ledger.set_recurring(b.account, "plan", 100, anchor=date(2026, 1, 31))
    days = [datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC)]
    b.ledger.consume(b.account, units=40)
    for day in days:
        b.now = day - timedelta(microseconds=1)
        before = b.balance().issued
        b.now = day
        assert b.balance().issued == before + 100
        assert b.balance().available == 100  # noqa: PLR2004 - the month's own


@check
def recurring_grants_roll_over(b: Bench) -> None:
    """At a renewal what is left is carried over within its bounds; the rest expires."""
    b.ledger.set_recurring(
        b.account,
        "plan",
        100,
        anchor=date(2026, 1, 31),
        every="day",
        rollover_min=5,
        rollover_max=20,
    )
    assert b.balance().available == 100  # noqa: PLR2004 - the first is no renewal
    b.wait(days=1)
    assert b.buckets() == (120, 0, 0, 80)
    b.ledger.consume(b.account, units=119)
    b.wait(days=1)
    assert b.buckets() == (105, 0, 119, 80)
    b.ledger.stop_recurring(b.account, "plan")
    b.wait(days=1)
    assert b.buckets() == (0, 0, 119, 185)


@check
def a_frozen_account_takes_nothing_new(b: Bench) -> None:
    """On a frozen account nothing new is taken; work in flight ends, grants are added."""
    b.grant(10)
    b.ledger.hold(b.account, units=4, request_id="h")
    b.ledger.freeze(b.account)
    b.refused("account_frozen", "consume", units=1)
    b.refused("account_frozen", "hold", units=100)
    b.ledger.settle(b.account, "h", units=4)
    b.grant(5)
    b.ledger.unfreeze(b.account)
    b.ledger.consume(b.account, units=11)


@check
def a_closed_account_stays_closed(b: Bench) -> None:
    """On a closed account only work in flight may end."""
    b.grant(10)
    b.ledger.hold(b.account, units=4, request_id="h")
    b.ledger.close_account(b.account)
    b.refused("account_closed", "consume", units=1)
    b.refused("account_closed", "grant", 5)
    b.refused("account_closed", "unfreeze")
    b.ledger.settle(b.account, "h", units=4)
    assert b.balance().used == 4  # noqa: PLR2004 - just settled


# ---------------------------------------------------------------- prices and quotes


@check
def prices_are_applied_and_pinned(b: Bench) -> None:
    """An operation is charged by the price book, a hold by the version that it was opened on."""
    b.grant(1000)
    operation = f"op-{uuid.uuid4().hex}"
    _apply(b, operation, "2.5")
    assert b.ledger.consume(b.account, operation, meters={"images": 3}).units == Decimal("7.5")
    b.ledger.hold(b.account, operation, meters={"images": 10}, request_id="h")
    _apply(b, operation, "100")
    assert b.ledger.settle(b.account, "h", meters={"images": 4}).units == 10  # noqa: PLR2004 - old
    b.refused("unpriced", "consume", f"{operation}-unknown", meters={"images": 1})


@check
def a_locked_quote_is_kept(b: Bench) -> None:
    """A locked quote's price holds until it ends, whatever prices do."""
    b.grant(1000)
    operation = f"op-{uuid.uuid4().hex}"
    _apply(b, operation, "2")
    quote = b.ledger.quote(b.account, operation, meters={"images": 10}, lock_for="10m")
    _apply(b, operation, "50")
    taken = b.ledger.consume(b.account, operation, meters={"images": 10}, quote=quote.token)
    assert taken.units == quote.units == 20  # noqa: PLR2004 - ten at 2
    b.wait(minutes=10)
    b.refused("quote_expired", "consume", operation, meters={"images": 1}, quote=quote.token)


def _apply(b: Bench, operation: str, units: str) -> None:
    price = Price(operation=operation, rates={"images": Rate(units=Decimal(units))})
    kept = b.ledger.prices()
    others = kept.version(kept.current).prices if kept.current else ()
    prices = [*(other for other in others if other.operation != operation), price]
    b.ledger.apply_prices(prices, author="conformance", reason="a check")


# ---------------------------------------------------------------- what is sold, what may be used


@check
def a_plan_brings_its_units_and_features(b: Bench) -> None:
    """A subscription brings the features of its plan at once, and its units each period."""
    names = _sell(b)
    b.refused("not_entitled", "consume", units=1, feature=names["feature"])
    b.ledger.subscribe(b.account, names["pro"], request_id="sub")
    assert b.balance().available == 100  # noqa: PLR2004 - the plan's
    b.ledger.consume(b.account, units=30, feature=names["feature"])
    with b.ledger.hold(b.account, units=30, feature=names["feature"]):
        pass
    b.now = datetime(2026, 2, 28, 12, 0, tzinfo=UTC)  # of the 31st, in February
    assert b.buckets() == (110, 0, 60, 30), "40 were left, of which 10 are carried over"
    assert b.ledger.access(b.account, feature=names["feature"]).allowed
    assert b.ledger.verify(b.account).ok


@check
def a_plan_edit_touches_nothing_that_runs(b: Bench) -> None:
    """A new version of a plan changes no subscription until it is moved, and never paid units."""
    names = _sell(b)
    b.grant(500, "paid")
    b.ledger.subscribe(b.account, names["pro"], request_id="sub")
    _sell(b, names, units=7, brings=False)
    assert b.ledger.access(b.account, feature=names["feature"]).allowed
    b.wait(days=31)
    assert b.balance().available == 610, "the terms that it was given"  # noqa: PLR2004
    b.ledger.subscribe(b.account, names["pro"], request_id="moved")
    b.refused("not_entitled", "consume", units=1, feature=names["feature"])
    assert b.balance().available == 610, "units change with the next period"  # noqa: PLR2004
    b.wait(days=31)
    assert b.balance().available == 517, "500 paid, 7, and 10 carried over"  # noqa: PLR2004


@check
def moving_to_another_plan_replaces_what_it_issued(b: Bench) -> None:
    """Another plan begins a period of its own; at the period's end it takes over by itself."""
    names = _sell(b)
    b.grant(500, "paid")
    b.ledger.subscribe(b.account, names["pro"])
    b.ledger.subscribe(b.account, names["max"])
    assert b.balance().available == 1500, "1000 new, 500 paid, nothing old"  # noqa: PLR2004
    b.ledger.subscribe(b.account, names["pro"], when="period_end")
    b.wait(days=27)
    assert b.balance().available == 1500  # noqa: PLR2004 - not yet
    b.wait(days=1)
    assert b.balance().available == 610, "100, 10 carried over, 500 paid"  # noqa: PLR2004
    kinds = [one.kind for one in b.ledger.statement(b.account, limit=3).receipts]
    assert set(kinds) <= {"entitlement", "grant_renewed"}, kinds


@check
def an_entitlement_ends_by_the_clock(b: Bench) -> None:
    """An entitlement ends at its time, whoever looks; what it granted stays until it expires."""
    names = _sell(b)
    b.ledger.subscribe(
        b.account, names["pro"], ends_at=b.now + timedelta(days=10), request_id="sub"
    )
    b.wait(days=10, microseconds=-1)
    assert b.ledger.access(b.account, feature=names["feature"]).allowed
    b.wait(microseconds=1)
    said = b.ledger.access(b.account, feature=names["feature"])
    assert (said.allowed, said.reason) == (False, "not_entitled")
    assert {way["product"] for way in said.ways_out} >= {names["max"], names["pass"]}
    assert b.balance().available == 100  # noqa: PLR2004 - until it expires
    b.refused("entitlement_not_found", "end_entitlement", "subscription")
    story = b.ledger.explain("sub", account=b.account)
    assert story["timeline"][-1]["kind"] == "entitlement_ended"  # type: ignore[index]  # a list


@check
def what_is_not_paid_is_not_renewed(b: Bench) -> None:
    """While past due a plan may be used but is not renewed; paused it may not be used either."""
    names = _sell(b)
    b.ledger.subscribe(b.account, names["pro"], request_id="sub")
    b.ledger.change_entitlement(b.account, "subscription", status="past_due")
    b.wait(days=40)
    assert b.balance().available == 0
    assert b.ledger.access(b.account, feature=names["feature"]).allowed
    b.ledger.change_entitlement(b.account, "subscription", status="paused")
    b.refused("not_entitled", "consume", units=1, feature=names["feature"])
    b.wait(days=60)
    b.ledger.change_entitlement(b.account, "subscription", status="active")
    assert b.balance().available == 100, "the period at hand, none of those past"  # noqa: PLR2004


@check
def a_late_payment_carries_over_as_one_in_time(b: Bench) -> None:
    """A period that is paid for after it began carries over what was left when it began."""
    day = [{"units": 100, "every": "day", "rollover_max": 10}]
    ends = b.now + timedelta(days=1)
    b.ledger.entitle(b.account, "pro", grants=day, every="day", paid_until=ends)
    b.ledger.consume(b.account, units=95)
    b.wait(days=1, hours=3)
    assert b.balance().available == 0, "it is not paid for yet"
    ends += timedelta(days=1)
    b.ledger.change_entitlement(b.account, "pro", paid_until=ends, request_id="late")
    assert b.balance().available == 105, "five of the day before"  # noqa: PLR2004
    b.wait(days=2)
    b.ledger.change_entitlement(b.account, "pro", paid_until="never")
    assert b.balance().available == 100, "what was not paid for carries nothing"  # noqa: PLR2004


@check
def a_pass_bought_again_lasts_longer(b: Bench) -> None:
    """A time pass that is bought again while it runs ends later; a repeat prolongs nothing."""
    names = _sell(b)
    for _ in range(2):
        b.ledger.buy(b.account, names["pass"], request_id="one")
    b.wait(hours=12)
    b.ledger.buy(b.account, names["pass"], request_id="two")
    b.wait(hours=35, minutes=59)
    assert b.ledger.access(b.account, feature=names["feature"]).allowed
    b.wait(minutes=1)
    assert not b.ledger.access(b.account, feature=names["feature"]).allowed


@check
def packs_and_coupons_are_grants(b: Bench) -> None:
    """A pack is a grant that names its product; a coupon is redeemed as often as it may be."""
    names = _sell(b)
    bought = b.ledger.buy(b.account, names["pack"], quantity=2, request_id="order")
    assert bought.units == 1000  # noqa: PLR2004 - two of 500
    assert bought.product == names["pack"]
    b.ledger.redeem(b.account, names["coupon"], request_id="first")
    assert b.ledger.redeem(b.account, names["coupon"], request_id="first").replayed
    b.refused("coupon_used", "redeem", names["coupon"], request_id="second")
    kinds = [one["kind"] for one in b.ledger.entitlements(b.account)]
    assert kinds == ["usage_pack", "usage_pack"]
    b.ledger.void(b.account, "order")
    assert b.balance().available == 5, "the coupon's"  # noqa: PLR2004


@check
def access_can_be_asked_of_the_past(b: Bench) -> None:
    """What an account might do at a moment is answered from its history."""
    names = _sell(b)
    b.ledger.entitle(b.account, names["feature"], request_id="given")
    b.wait(days=1)
    b.ledger.end_entitlement(b.account, names["feature"], request_id="taken")
    b.wait(days=1)
    asked = [b.now - timedelta(hours=hours) for hours in (50, 30, 1)]
    said = [b.ledger.access(b.account, feature=names["feature"], at=at).allowed for at in asked]
    assert said == [False, True, False]
    listed = [len(b.ledger.entitlements(b.account, at=at)) for at in asked]
    assert listed == [0, 1, 0]


@check
def of_many_checks_and_charges_none_slips_through(b: Bench) -> None:
    """Work that names a feature is checked and charged in one step: none after the end."""
    feature = _sell(b)["feature"]
    b.grant(1000)
    b.ledger.entitle(b.account, feature)

    def act(nth: int) -> object:
        if nth == 4:  # noqa: PLR2004 - one of the eight
            return b.ledger.end_entitlement(b.account, feature, request_id="end")
        return b.ledger.consume(b.account, units=1, feature=feature, request_id=f"c{nth}")

    b.at_once(8, act)
    kinds = [one.kind for one in b.ledger.history(b.account)]
    assert "consume" not in kinds[kinds.index("entitlement_ended") :], kinds


def _sell(
    b: Bench, names: dict[str, str] | None = None, *, units: int = 100, brings: bool = True
) -> dict[str, str]:
    """Sell plans, a pack, a pass and a coupon of names that nobody else has; return the names."""
    if names is None:
        end = uuid.uuid4().hex[:12]
        sold = ("feature", "pro", "max", "pass", "pack", "coupon")
        names = {name: f"{name}-{end}" for name in sold}
    kept = b.ledger.prices()
    rules = kept.version(kept.current).prices if kept.current else ()
    others = kept.products
    brought = {names["feature"]: True} if brings else {}
    carried = Allowance(Decimal(units), rollover_max=Decimal(10))
    products = Products(
        packs={**others.packs, names["pack"]: Pack(Decimal(500))},
        plans={
            **others.plans,
            names["pro"]: Plan(grants=(carried,), features=brought),
            names["max"]: Plan(
                grants=(Allowance(Decimal(1000)),), features={names["feature"]: True}
            ),
        },
        passes={**others.passes, names["pass"]: Pass(DAY, {names["feature"]: True})},
        features={**others.features, names["feature"]: FeatureTerms()},
        coupons={**others.coupons, names["coupon"]: Coupon(Decimal(5))},
        alerts=others.alerts,
    )
    b.ledger.apply_prices(rules, author="conformance", reason="a check", products=products)
    return names


# ---------------------------------------------------------------- explained, and it adds up


@check
def every_charge_is_explained(b: Bench) -> None:
    """A charge is explained: who paid, balances, repeats absorbed, refunds since."""
    b.grant(10, "g")
    b.ledger.consume(b.account, units=6, request_id="c", actor="ann", reason="a picture")
    b.ledger.consume(b.account, units=6, request_id="c", actor="ann", reason="a picture")
    b.ledger.refund(b.account, "c", units=1)
    told = b.ledger.explain("c", account=b.account)
    wanted = {
        "charged": "5",
        "refunded": "1",
        "replays": 1,
        "actor": "ann",
        "reason": "a picture",
        "available_before": "10",
    }
    assert {name: told[name] for name in wanted} == wanted
    paid_by: Any = told["paid_by"]
    assert [line["grant"] for line in paid_by] == ["g"]
    assert told["sentences"]


@check
def every_hold_is_explained(b: Bench) -> None:
    """The story of a hold is told from its opening to its end."""
    b.grant(10)
    b.ledger.hold(b.account, units=6, request_id="h")
    b.ledger.extend(b.account, "h", expires_in="1h")
    b.ledger.settle(b.account, "h", units=2, request_id="s")
    told: Any = b.ledger.explain("h", account=b.account)
    assert [line["kind"] for line in told["timeline"]] == ["hold", "extend", "settle"]
    assert told["charged"] == "2"


@check
def every_refusal_is_explained(b: Bench) -> None:
    """A refusal is explained: who asked, what was needed, what there was, what would help."""
    b.grant(10)
    asked: Any = {"operation": "image", "actor": "ann", "reason": "a picture"}
    b.refused("insufficient_units", "consume", units=11, request_id="r", **asked)
    told = b.ledger.explain("r", account=b.account)
    assert {name: told[name] for name in asked} == asked
    assert (told["outcome"], told["needed"], told["available"]) == ("refused", "11", "10")
    assert told["ways_out"]


@check
def nobody_knows_an_unknown_id(b: Bench) -> None:
    """An id that nobody used is not found."""

    def ask(nothing: str) -> bool:
        try:
            b.ledger.explain(nothing, account=b.account)
        except errors.NotFound:
            return False
        return True

    assert not ask("nothing")
    b.grant(10, "something")
    assert ask("something")


@check
def the_history_refolds(b: Bench) -> None:
    """The balance is the fold of the entries, and every hash and column agrees."""
    b.grant(50, "g", expires_in="1h")
    b.ledger.hold(b.account, units=10, request_id="h", metadata={"job": 7})
    b.ledger.settle(b.account, "h", units=4)
    b.wait(hours=1)
    found = b.ledger.verify(b.account)
    assert found.ok, found.problems
    assert found.entries == b.ledger.statement(b.account).receipts[0].seq


@check
def usage_adds_up(b: Bench) -> None:
    """Usage sums to what is used, and each charge, part and refund falls on one day."""
    b.ledger.configure(b.account, late_settlement=True)
    b.grant(100)
    yesterday = b.now - timedelta(days=1)
    b.ledger.consume(b.account, units=8, request_id="c", effective_at=yesterday)
    b.ledger.refund(b.account, "c", units=3)
    for name in ("parts", "doubt", "late"):
        b.ledger.hold(b.account, units=10, request_id=name)
    b.ledger.settle(b.account, "parts", units=2, final=False)
    b.ledger.mark_in_doubt(b.account, "doubt", deadline_in="26h", at_deadline="settle")
    b.ledger.extend(b.account, "parts", expires_in="24h")
    b.wait(hours=23)
    b.ledger.settle(b.account, "parts", units=4, request_id="last part")
    b.ledger.settle(b.account, "late", units=7)
    b.wait(hours=1)
    b.ledger.refund(b.account, "last part", units=5)
    b.wait(hours=2)  # the doubt is charged, though nobody has booked it
    rows = b.ledger.usage(b.account, by=["day"])
    assert [row["units"] for row in rows] == ["5", "18"]
    assert b.balance().used == 23  # noqa: PLR2004 - 5 and 18
    assert b.ledger.balance(b.account, as_of=b.now, clock="effective").used == 23  # noqa: PLR2004


@check
def a_statement_has_every_entry_once(b: Bench) -> None:
    """A statement, page by page, has every entry once, in order, without gaps."""
    b.grant(100)
    for _ in range(7):
        b.ledger.consume(b.account, units=1)
    seqs: list[int] = []
    before = None
    while True:
        page = b.ledger.statement(b.account, limit=3, before=before)
        seqs += [receipt.seq for receipt in page.receipts]
        before = page.next
        if before is None:
            break
    assert seqs == list(range(8, 0, -1))


@check
def time_never_runs_backwards(b: Bench) -> None:
    """When the clock steps back, an account's entries still stand in order of time."""
    b.grant(10)
    b.wait(days=-2)
    receipt = b.ledger.consume(b.account, units=1)
    assert receipt.recorded_at == START
    assert b.ledger.verify(b.account).ok


@check
def the_past_can_be_asked(b: Bench) -> None:
    """A balance can be asked as of a moment, by what was known then or by what is known now."""
    b.grant(10)
    b.wait(days=2)
    b.ledger.consume(b.account, units=4, effective_at=START + timedelta(days=1))
    then = b.now - timedelta(hours=1)
    assert b.ledger.balance(b.account, as_of=then).available == 10  # noqa: PLR2004 - then
    found = b.ledger.balance(b.account, as_of=then, clock="effective")
    assert found.available == 6  # noqa: PLR2004 - 10 - 4, as is known by now
    b.invalid("consume", units=1, effective_at=b.now - timedelta(days=36))
    b.invalid("consume", units=1, effective_at=b.now + timedelta(minutes=6))


@check
def how_late_usage_may_be_told_is_a_setting(b: Bench) -> None:
    """An account may be told of usage longer ago, or further ahead, than others."""
    b.grant(10)
    late, early = b.now - timedelta(days=90), b.now + timedelta(hours=1)
    b.ledger.configure(b.account, late_usage="90d")
    assert b.ledger.consume(b.account, units=1, effective_at=late).effective_at == late
    b.invalid("consume", units=1, effective_at=late - timedelta(seconds=1))
    b.invalid("consume", units=1, effective_at=early)
    b.ledger.configure(b.account, early_usage="1h")
    assert b.ledger.consume(b.account, units=1, effective_at=early).effective_at == early
    b.ledger.hold(b.account, units=1, effective_at=late)
    b.invalid("configure", late_usage="401d")
    b.invalid("configure", early_usage="25h")


@check
def metadata_can_be_erased(b: Bench) -> None:
    """Metadata can be erased; the history still verifies."""
    b.grant(10, "g", metadata={"email": "ann@example.org"})
    assert b.ledger.explain("g", account=b.account)["metadata"]
    assert b.ledger.erase_metadata(b.account) == 1
    assert not b.ledger.explain("g", account=b.account)["metadata"]
    assert b.ledger.verify(b.account).ok


@check
def a_preview_writes_nothing(b: Bench) -> None:
    """A preview answers as the verb would, and nothing is written."""
    b.grant(10)
    before = b.balance().to_dict()
    assert b.ledger.preview.consume(b.account, units=4).available == 6  # noqa: PLR2004 - 10 - 4
    assert b.balance().to_dict() == before


@check
def a_batch_answers_each_item(b: Bench) -> None:
    """In a batch each item has its own answer; one item's error touches no other."""
    b.grant(10)
    items: list[dict[str, object]] = [
        {"account": b.account, "units": 4, "request_id": "1"},
        {"account": b.account, "units": 1.5, "request_id": "2"},
        {"account": b.account, "units": 4, "request_id": "1"},
        {"account": b.account, "units": 7, "request_id": "3"},
        {"account": b.account, "units": 6, "request_id": "1"},
    ]
    found = [outcome.status for outcome in b.ledger.consume_many(items)]
    assert found == ["created", "invalid", "replayed", "refused", "conflict"]
    assert b.buckets() == (6, 0, 4, 0)


@check
def malformed_input_writes_nothing(b: Bench) -> None:
    """Floats, NaN, zero, too many decimals, too much, and bad ids are refused before the queue."""
    b.grant(10)
    for units in (1.5, float("nan"), 0, -1, "0.0000000000001", 2**53, "NaN", True, None, b"1"):
        b.invalid("consume", units=units)
    for request_id in ("", "x" * 256, "a\x00b", "~mine", 7):
        b.invalid("consume", units=1, request_id=request_id)
    b.invalid("consume", units=1, metadata={"big": "x" * 5000})
    b.invalid("consume")


# ---------------------------------------------------------------- documents beside the ledgers


@check
def documents_are_kept_by_kind_and_name(b: Bench) -> None:
    """A document is put, replaced and removed by its kind and name; others stay as they are."""
    names = ["b", "a", "B", "é", "\U0001f600", "\ufffd", "", 'o\'dd \\ %s "name"']
    for name in names:
        b.perform(partial(_put, kind=b.account, name=name, document=f"of {name}"))
    b.perform(partial(_put, kind=f"{b.account}-2", name="a", document="{}"))
    b.perform(partial(_put, kind=b.account, name="a", document="another"))
    b.perform(partial(_put, kind=b.account, name="b", document=None))
    b.perform(partial(_put, kind=b.account, name="nobody", document=None))
    names.remove("b")
    with b.ledger.store.read() as reader:
        found = reader.documents(b.account)
        assert list(found) == sorted(names)
        assert found == {name: f"of {name}" for name in names} | {"a": "another"}
        assert reader.document(b.account, "a") == "another"
        assert reader.document(b.account, "b") is None
        assert reader.documents(f"{b.account}-2") == {"a": "{}"}
        assert reader.documents(f"{b.account}-3") == {}
        kinds = reader.kinds()
        assert kinds == sorted(set(kinds))
        assert {b.account, f"{b.account}-2"} <= set(kinds)


@check
def a_document_survives_a_restart(b: Bench) -> None:
    """Documents and their version are there after the ledger was closed and opened again."""
    if b.ledger.store.url.startswith("memory:"):
        return
    counted = b.perform(partial(_put, kind=b.account, name="a", document="x" * 20_000))
    b.reopen()
    with b.ledger.store.read() as reader:
        assert reader.document(b.account, "a") == "x" * 20_000
        assert reader.registry_version() >= counted


@check
def the_registry_counts_transactions(b: Bench) -> None:
    """The version grows by one for each transaction that puts documents, however many."""

    def act(tx: Writer) -> None:
        before = tx.registry_version()
        _put(tx, kind=b.account, name="a", document="1")
        assert tx.registry_version() == before + 1
        _put(tx, kind=b.account, name="b", document="1")
        _put(tx, kind=b.account, name="a", document="2")
        _put(tx, kind=b.account, name="b", document=None)
        assert tx.registry_version() == before + 1
        assert tx.documents(b.account) == {"a": "2"}, "a writer sees what it has put"
        assert tx.document(b.account, "b") is None
        assert b.account in tx.kinds()

    for _ in range(2):
        b.perform(act)
    b.perform(lambda tx: tx.documents(b.account))
    b.grant(1)
    with b.ledger.store.read() as reader:
        assert reader.documents(b.account) == {"a": "2"}


@check
def a_document_rolled_back_leaves_no_trace(b: Bench) -> None:
    """What a transaction put that did not commit is not there, nor counted in the version."""
    before = b.perform(partial(_put, kind=b.account, name="a", document="1"))

    def act(tx: Writer) -> None:
        _put(tx, kind=b.account, name="a", document=None)
        _put(tx, kind=b.account, name="b", document="2")
        raise errors.InvalidInput("a change of mind")

    try:
        b.perform(act)
    except errors.InvalidInput:
        pass
    else:
        raise AssertionError("the transaction has committed")
    with b.ledger.store.read() as reader:
        assert reader.documents(b.account) == {"a": "1"}
    assert b.perform(partial(_put, kind=b.account, name="a", document="2")) == before + 1


@check
def two_writers_give_no_number_twice(b: Bench) -> None:
    """Of writers at once, also of another opening of the ledger, each has a version of its own."""
    writers = [b.ledger]
    if not b.ledger.store.url.startswith("memory:"):
        writers.append(b.factory(lambda: b.now))

    def write(nth: int) -> list[int]:
        ledger = writers[nth % len(writers)]
        names = [f"{nth}-{turn}" for turn in range(5)]
        acts = [partial(_put, kind=b.account, name=name, document="{}") for name in names]
        return [b.perform(act, ledger) for act in acts]

    try:
        answers: Any = b.at_once(8, write)
    finally:
        for ledger in writers[1:]:
            ledger.close()
    assert all(isinstance(answer, list) for answer in answers), answers
    versions = [version for answer in answers for version in answer]
    assert len(set(versions)) == len(versions) == 40, sorted(versions)  # noqa: PLR2004 - 8 times 5
    assert all(answer == sorted(answer) for answer in answers)
    with b.ledger.store.read() as reader:
        assert len(reader.documents(b.account)) == len(versions)
        assert reader.registry_version() >= max(versions)


# ---------------------------------------------------------------- events, deliveries, jobs

_OLD = 1_000_000  # a second after the beginning of 1970: what these checks write is older
_LATE = 2**60  # newer than all that is there


@check
def events_are_written_with_their_entries(b: Bench) -> None:
    """An entry that somebody wants to hear of is told once; refusals and repeats are not."""
    with _listening(b, "grant.*", "usage.consumed", "hold.expired"):
        b.grant(10, "g", expires_in="1d")
        b.ledger.consume(b.account, units=3, request_id="c")
        b.ledger.consume(b.account, units=3, request_id="c")
        b.refused("insufficient_units", "consume", b.account, units=100)
        b.ledger.hold(b.account, units=2, request_id="h")
        b.wait(days=2)
        while b.ledger.book_due():
            pass
        found = _told(b)
    topics = [event.topic for event in found]
    assert topics == ["grant.created", "usage.consumed", "hold.expired", "grant.expired"], topics
    assert [event.seq for event in found] == [1, 2, 4, 5]
    payload = json.loads(found[1].payload)
    assert payload["id"] == id_of(found[1].account_id, 2, 0)
    assert (payload["account"], payload["seq"]) == (b.account, 2)
    assert (payload["data"]["units"], payload["data"]["available"]) == ("3", "7")
    b.grant(1)
    assert len(_told(b)) == len(found), "nobody listens any more"


@check
def an_alert_is_told_once_a_crossing(b: Bench) -> None:
    """A threshold is told when it is crossed, not while it stays so, and again after recovery."""
    with _listening(b, "alert.*"):
        b.grant(10)
        b.ledger.set_alert(b.account, "low", "balance", 5)
        for units in (4, 2, 1):  # 6, 4, 3
            b.ledger.consume(b.account, units=units)
        b.grant(10)  # 13
        b.ledger.consume(b.account, units=9)  # 4
        b.ledger.remove_alert(b.account, "low")
        b.ledger.consume(b.account, units=1)
        found = [(event.topic, json.loads(event.payload)["data"]["value"]) for event in _told(b)]
    assert found == [("alert.balance", "4"), ("alert.recovered", "13"), ("alert.balance", "4")]


@check
def a_grant_that_expires_soon_is_told_by_the_clock(b: Bench) -> None:
    """A warning falls due by itself, once, and is in the history."""
    with _listening(b, "alert.expiring"):
        b.ledger.set_alert(b.account, "soon", "expiring", 3)
        b.grant(10, "g", expires_in="10d")
        b.grant(10, "short", expires_in="2d")
        b.wait(days=8)
        while b.ledger.book_due():
            pass
        b.ledger.consume(b.account, units=1)
        found = _told(b)
    kinds = [receipt.kind for receipt in b.ledger.history(b.account)]
    assert kinds.count("grant_expiring") == 1
    data = json.loads(found[0].payload)["data"]
    assert len(found) == 1
    assert (data["grant_id"], data["threshold"], data["units"]) == ("g", "3", "10")


@check
def a_delivery_is_taken_by_one(b: Bench) -> None:
    """Of two that take a delivery one gets it, and only he may say what came of it."""
    delivery = _delivery(b, 1)
    b.perform(lambda tx: tx.spread([], [delivery, delivery]))
    taken = b.perform(lambda tx: tx.claim([delivery], 2_000))
    assert [(one.key, one.next_at) for one in taken] == [(delivery.key, 2_000)]
    assert b.perform(lambda tx: tx.claim([delivery], 2_000)) == []
    late = delivery._replace(state="dead")
    assert b.perform(lambda tx: tx.record([late])) == 0
    done = taken[0]._replace(state="delivered", attempts=1, log='[{"status":200}]')
    assert b.perform(lambda tx: tx.record([done])) == 1
    assert _deliveries(b) == [done]
    with b.ledger.store.read() as reader:
        assert done not in reader.due_deliveries(10**15)
    assert b.perform(lambda tx: tx.claim([done], 3_000)) == [], "it is not pending any more"


@check
def of_many_that_take_one_gets_it(b: Bench) -> None:
    """Each of many deliveries is taken once, whoever else takes at the same time."""
    several = [_delivery(b, n) for n in range(1, 21)]
    b.perform(lambda tx: tx.spread([], several))
    answers: Any = b.at_once(8, lambda _: b.perform(lambda tx: tx.claim(several, 2_000)))
    assert all(isinstance(answer, list) for answer in answers), answers
    keys = [one.key for answer in answers for one in answer]
    assert sorted(keys) == sorted(one.key for one in several)


@check
def the_dead_can_be_sent_again(b: Bench) -> None:
    """What is dead is pending again when asked for: of an endpoint, so many, or a single one."""
    project = b.ledger.project
    several = [_delivery(b, n, state="dead", which=n % 2) for n in range(1, 5)]
    several.append(_delivery(b, 5, state="delivered"))
    even, odd = several[1].endpoint, several[0].endpoint
    b.perform(lambda tx: tx.put_deliveries(several))
    assert b.perform(lambda tx: tx.requeue("nobody's", 7, odd)) == (0, False)
    assert b.perform(lambda tx: tx.requeue(project, 7, odd, 1)) == (1, True)
    assert b.perform(lambda tx: tx.requeue(project, 7, odd, 1)) == (1, False)
    assert b.perform(lambda tx: tx.requeue_one(project, 8, several[4].key)) == 1
    assert b.perform(lambda tx: tx.requeue_one("nobody's", 8, several[4].key)) == 0
    assert b.perform(lambda tx: tx.requeue(project, 9, even)) == (2, False)
    found = _deliveries(b)
    assert {(one.state, one.attempts, one.lease) for one in found} == {("pending", 0, 1)}, found
    assert sorted(one.next_at for one in found) == [7, 7, 8, 9, 9]
    with b.ledger.store.read() as reader:
        ours = [one for one in reader.due_deliveries(9) if one in found]
        of_odd = reader.due_at([odd, "nobody's"], 8, 2)
        of_both = reader.due_at([even, odd], 8, 9)
    assert [one.next_at for one in ours] == [7, 7, 8, 9, 9], "the longest due first"
    assert [one.next_at for one in of_odd] == [7, 7], "at most so many"
    assert sorted(one.seq for one in of_both) == [1, 3, 5], "what is due at these, by that time"


@check
def deliveries_are_paged_newest_first(b: Bench) -> None:
    """Pages of deliveries have each once, in order, and can be narrowed down."""
    project = b.ledger.project
    several = [_delivery(b, n, which=n % 2, created_at=_LATE + n // 3) for n in range(1, 12)]
    b.perform(lambda tx: tx.put_deliveries(several))
    wanted = sorted(several, key=lambda one: one.place, reverse=True)
    with b.ledger.store.read() as reader:
        found: list[Delivery] = []
        while len(found) < len(wanted):
            before = found[-1].place if found else None
            page = reader.delivery_page(project, before=before, limit=4)
            assert page, found
            found += [one for one in page if one in several]
        assert found == wanted
        name = several[0].endpoint
        odd = reader.delivery_page(project, endpoint=name, state="pending")
        assert odd == [one for one in wanted if one.endpoint == name]
        assert reader.delivery_page(project, endpoint=name, state="dead") == []
        assert reader.delivery_page(project, event=several[0].key[:3]) == several[:1]
        last = min(several, key=lambda one: one.key)
        everything = [last]
        while len([one for one in everything if one in several]) < len(several):
            more = reader.deliveries(everything[-1].key, 3)
            assert more, everything
            everything += more
    assert [one for one in everything if one in several] == sorted(several, key=lambda d: d.key)


@check
def old_events_are_pruned_but_not_what_waits(b: Bench) -> None:
    """Events that do not wait go when they are old, with their deliveries."""
    several = [_event(b, n) for n in range(1, 5)]
    b.perform(lambda tx: tx.add_events([Waiting(one, spread=False) for one in several]))
    deliveries = [
        _delivery(b, 1, state="delivered"),
        _delivery(b, 2, state="dead"),
        _delivery(b, 3),
    ]
    keys = [one.key[:3] for one in deliveries]
    b.perform(lambda tx: tx.spread(keys, deliveries))
    with b.ledger.store.read() as reader:
        assert [one for one in reader.unspread() if one in several] == several[3:]
    assert b.perform(lambda tx: tx.prune_events(several[1].at)) == 1
    assert b.perform(lambda tx: tx.prune_events(_OLD)) == 1
    owner = several[0].account_id
    with b.ledger.store.read() as reader:
        left = [row for row in reader.events((owner, 0, 0)) if row.event in several]
        assert left == [Waiting(several[2], spread=True), Waiting(several[3], spread=False)]
        assert reader.event_at(keys[0]) is None
        backlog = reader.backlog()
    assert _deliveries(b) == deliveries[2:]
    assert backlog.waiting >= len(left)
    assert backlog.oldest_at is not None
    assert backlog.next_at is not None


@check
def a_job_is_one_holders_until_its_lease_ends(b: Bench) -> None:
    """Whoever holds a lease prolongs it; others get it when it is over, and not before."""
    take = partial(_take_lease, b, name=b.account)
    assert take(holder="ann", at=100, ends_at=200)
    assert not take(holder="bob", at=150, ends_at=250)
    assert take(holder="ann", at=150, ends_at=250)
    b.perform(lambda tx: tx.end_lease(b.account, "bob", 160, 160, "no"))
    b.perform(lambda tx: tx.end_lease(b.account, "ann", 160, 260, '{"done":1}'))
    assert not take(holder="bob", at=259, ends_at=300)
    with b.ledger.store.read() as reader:
        [lease] = [one for one in reader.leases() if one.name == b.account]
    assert lease == (b.account, "ann", 260, 160, '{"done":1}')
    assert take(holder="bob", at=260, ends_at=300)
    assert not take(holder="ann", at=261, ends_at=300)


@contextmanager
def _listening(b: Bench, *topics: str) -> Iterator[None]:
    """Have an endpoint of the ledger's project want these types of events."""
    name = f"we_{b.account}"
    project = b.ledger.project
    endpoint = Endpoint(id=name, project=project, url="https://x.test/", events=topics)
    text = msgspec.json.encode(endpoint).decode()
    b.perform(partial(_put, kind=ENDPOINT, name=name, document=text))
    try:
        yield
    finally:
        b.perform(partial(_put, kind=ENDPOINT, name=name, document=None))


def _told(b: Bench) -> list[Event]:
    """Return the events of the bench's account, in order."""
    owner = account_id(b.ledger.project, b.account)
    with b.ledger.store.read() as reader:
        rows = reader.events((owner, 0, 0))
    return [row.event for row in rows if row.event.account_id == owner]


def _event(b: Bench, n: int) -> Event:
    owner = account_id("events", b.account)
    return Event(owner, n, 0, b.ledger.project, "grant.created", "{}", n)


def _deliveries(b: Bench) -> list[Delivery]:
    """Return the deliveries that the check made, as they are now, by their places."""
    names = sorted({one.endpoint for one in b.deliveries})
    with b.ledger.store.read() as reader:
        pages = [reader.delivery_page(b.ledger.project, endpoint=name) for name in names]
    return sorted([one for page in pages for one in page], key=lambda one: one.key)


def _forget_deliveries(b: Bench) -> None:
    """Delete the deliveries that a check made, which nobody is to send."""
    if b.deliveries:
        done = [one._replace(state="delivered") for one in b.deliveries]
        events = {one.seq: Waiting(_event(b, one.seq), spread=True) for one in done}
        b.perform(lambda tx: tx.add_events(list(events.values())))
        b.perform(lambda tx: tx.put_deliveries(done))
        b.perform(lambda tx: tx.prune_events(_OLD))


def _delivery(
    b: Bench, n: int, *, state: State = "pending", which: int = 1, created_at: int = 0
) -> Delivery:
    """Return a delivery of an event of the bench's own to an endpoint that nobody has."""
    place = (account_id("events", b.account), n, 0, f"{b.account}-{which}")
    project = b.ledger.project
    made = Delivery(*place, project, "grant.created", state, 0, 5, created_at, 0, "[]")
    b.deliveries.add(made)
    return made


def _take_lease(b: Bench, *, name: str, holder: str, at: int, ends_at: int) -> bool:
    return b.perform(lambda tx: tx.take_lease(name, holder, at, ends_at))


# ---------------------------------------------------------------- notes about payments


def _note(b: Bench, name: str, **facts: Any) -> Note:
    given: dict[str, Any] = {"document": "{}", "kind": b.account, **facts}
    owner = account_id(b.ledger.project, f"~{b.account}{name}")
    return Note(owner=owner, name=name, project=b.ledger.project, **given)


@check
def a_note_is_written_by_who_saw_its_last_version(b: Bench) -> None:
    """Who wrote a note counts its version up; who has not seen the last must read it again."""
    first = _note(b, "é'\"", document="one", account=b.account, due_at=5)
    b.perform(lambda tx: tx.put_note(first))
    with b.ledger.store.read() as reader:
        found = reader.note(first.key)
    assert found == replace(first, version=1)
    b.perform(lambda tx: tx.put_note(replace(found, document="two", due_at=NEVER)))
    for stale in (first, found, replace(found, version=7)):
        try:
            b.perform(lambda tx, stale=stale: tx.put_note(stale))  # type: ignore[misc]
        except errors.StoreBusy:
            continue
        raise AssertionError(f"version {stale.version} was written over version 2")
    with b.ledger.store.read() as reader:
        assert reader.note(first.key) == replace(first, document="two", version=2, due_at=NEVER)
        assert reader.note((first.owner, first.kind, "nothing")) is None


@check
def a_note_is_deleted_by_who_saw_its_last_version(b: Bench) -> None:
    """A note that was written since is not deleted, one that was deleted is new again."""
    first = _note(b, "gone", document="one", account=b.account)
    b.perform(lambda tx: tx.put_note(first))
    b.perform(lambda tx: tx.put_note(replace(first, version=1)))
    for stale in (first, replace(first, version=1), _note(b, "nothing", document="")):
        try:
            b.perform(lambda tx, stale=stale: tx.drop_note(stale))  # type: ignore[misc]
        except errors.StoreBusy:
            continue
        raise AssertionError(f"version {stale.version} was deleted in place of version 2")
    b.perform(lambda tx: tx.drop_note(replace(first, version=2)))
    with b.ledger.store.read() as reader:
        assert reader.note(first.key) is None
    b.perform(lambda tx: tx.put_note(first))
    with b.ledger.store.read() as reader:
        assert reader.note(first.key) == replace(first, version=1)


@check
def notes_are_found_by_account_and_by_what_is_due(b: Bench) -> None:
    """Notes are listed by account, by due time and all in the order of their keys."""
    names = ["b", "a", "c"]
    for nth, name in enumerate(names):
        account = b.account if name != "c" else ""
        note = _note(b, name, account=account, due_at=10 - nth)
        b.perform(lambda tx, note=note: tx.put_note(note))  # type: ignore[misc]
    project = b.ledger.project

    def act(tx: Writer) -> None:
        assert [n.name for n in tx.notes_of(project, b.account, b.account)] == ["a", "b"]
        assert [n.name for n in tx.notes_of(project, b.account, b.account, "a")] == ["b"]
        assert [n.name for n in tx.notes_due(project, b.account, 9)] == ["c", "a"]
        assert [n.name for n in tx.notes_due(project, b.account, 10, 1)] == ["c"]
        assert tx.notes_due(project, "nothing", 99) == []
        ours = [n for n in tx.notes() if n.kind == b.account]
        assert ours == sorted(ours, key=lambda n: n.key)
        last = ours[1].key
        assert ours[2] in tx.notes(last)
        assert ours[1] not in tx.notes(last)

    b.perform(act)


@check
def a_note_rolled_back_leaves_no_trace(b: Bench) -> None:
    """What a transaction wrote that did not commit is not there."""

    def act(tx: Writer) -> None:
        tx.put_note(_note(b, "a"))
        assert tx.note(_note(b, "a").key) is not None, "a writer sees what it has put"
        raise errors.InvalidInput("a change of mind")

    try:
        b.perform(act)
    except errors.InvalidInput:
        pass
    else:
        raise AssertionError("the transaction has committed")
    with b.ledger.store.read() as reader:
        assert reader.note(_note(b, "a").key) is None


@check
def a_balance_that_falls_low_makes_its_note_due(b: Bench) -> None:
    """What is to top an account up looks at once, and whoever wrote meanwhile looks again."""
    engine = b.ledger._engine  # noqa: SLF001 - where an account is topped up has no verb
    verbs = verbs_of(engine, b.ledger.project, ours=True)
    watch = verbs.set_alert(b.account, "~topup", TOPUP, 20)  # type: ignore[arg-type]  # ours alone
    b.grant(100, "g")
    b.perform(lambda tx: answer_in(tx, engine.store.scale, [watch], engine.clock()))
    owner = account_id(b.ledger.project, b.account)
    at = engine.clock()
    note = replace(_note(b, "credits", due_at=at + DAY), owner=owner, kind=TOPUP)
    b.perform(lambda tx: tx.put_note(note))

    def stands() -> tuple[int, int]:
        with b.ledger.store.read() as reader:
            found = reader.note(note.key)
        assert found is not None
        return found.version, found.due_at - at

    b.ledger.consume(b.account, units=79)
    assert stands() == (1, DAY), "not low yet"
    b.ledger.consume(b.account, units=1)
    assert stands() == (2, 0), "due with the very charge"
    b.ledger.consume(b.account, units=1)
    assert stands() == (2, 0), "once a crossing"
    b.grant(100, "more")
    seen = replace(note, version=2, due_at=NEVER)
    b.perform(lambda tx: tx.put_note(seen))
    b.ledger.consume(b.account, units=110)
    assert stands() == (3, NEVER - at), "what waits for somebody is left alone"


@check
def of_writers_at_once_each_has_seen_the_last_note(b: Bench) -> None:
    """A note that many count up at once ends at their number: no writer overwrites another."""
    writers = [b.ledger]
    if not b.ledger.store.url.startswith("memory:"):
        writers.append(b.factory(lambda: b.now))
    new = _note(b, "count", document="0")

    def count(tx: Writer) -> None:
        found = tx.note(new.key) or new
        tx.put_note(replace(found, document=str(int(found.document) + 1)))

    def write(nth: int) -> int:
        done = 0
        while done < 5:  # noqa: PLR2004 - each of them counts five times
            try:
                b.perform(count, writers[nth % len(writers)])
            except errors.StoreBusy:
                continue
            done += 1
        return done

    try:
        answers = b.at_once(4, write)
    finally:
        for ledger in writers[1:]:
            ledger.close()
    assert answers == [5] * 4, answers
    with b.ledger.store.read() as reader:
        found = reader.note(new.key)
    assert found is not None
    assert (found.document, found.version) == ("20", 20)


def _put(tx: Writer, *, kind: str, name: str, document: str | None) -> int:
    """Put a document; return the version that it makes."""
    tx.put_document(kind, name, document)
    return tx.registry_version()


def _hashable(answer: object) -> object:
    """Return an answer whose entry can stand in a set."""
    entry = getattr(answer, "entry", None)
    return _Seen(repr(entry)) if entry is not None else answer


class _Seen(NamedTuple):
    entry: str
