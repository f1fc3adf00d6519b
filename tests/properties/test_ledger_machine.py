"""Histories that Hypothesis makes up, on two stores at once, each answer predicted by the auditor.

A failing history is shrunk to the shortest one that still fails. `make test` runs a fixed set of
histories; `make soak` (`-m soak`) runs many more, random ones.
"""

import os
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tillroll
from tests.conftest import appending
from tests.servers.cluster import Cluster
from tillroll.ledger.commands import account_id
from tillroll.ledger.pricing import Price, Rate
from tillroll.ledger.products import (
    UNLIMITED,
    Allowance,
    Coupon,
    FeatureTerms,
    Pack,
    Pass,
    Plan,
    Products,
)
from tillroll.ledger.types import DAY
from tillroll.testing.auditor import Auditor, Call, compare, entry_pairs
from tillroll.testing.model import Account

START = datetime(2026, 1, 30, 23, 0, tzinfo=UTC)
LIMIT_MAX = 30
PER_IMAGE = Decimal("2.5")
ACCOUNTS = ("acme", "zoe")
WALLETS = ("credits", "gpu")
OPERATIONS = ("image.generate", "image.edit", "text.write")
TAGS = ({}, {"member": "ann"}, {"member": "bob"})

accounts = st.sampled_from(ACCOUNTS[:1] * 3 + ACCOUNTS[1:])
wallets = st.sampled_from(WALLETS[:1] * 4 + WALLETS[1:])
amounts = st.one_of(
    st.integers(1, 40), st.sampled_from([Decimal("0.5"), "7.25", Decimal("0.000001")])
)
operations = st.sampled_from(OPERATIONS)
steps = st.sampled_from(
    [
        timedelta(microseconds=1),
        timedelta(seconds=30),
        timedelta(minutes=15),
        timedelta(hours=2),
        timedelta(days=1),
        timedelta(days=8),
        timedelta(days=31),
    ]
)
features = st.sampled_from(["hd", "seats", "4k"])
rights = st.sampled_from(["subscription", "subscription", "second", "day", "hd"])
standings = st.sampled_from([None, None, "active", "trialing", "past_due", "paused"])
moments = st.sampled_from([None, None, None, timedelta(days=1), timedelta(days=40), "never"])
spans = st.sampled_from(["1s", "15m", "1h", "1d", "9d", "40d"])

PRODUCTS = Products(
    packs={
        "starter": Pack(Decimal(20), expires=9 * DAY),
        "gpus": Pack(Decimal("1.5"), wallet="gpu"),
    },
    plans={
        "free": Plan(features={"hd": True}, grants=(Allowance(Decimal(3)),)),
        "pro": Plan(
            grants=(
                Allowance(Decimal(30), rollover_max=Decimal(5)),
                Allowance(Decimal(2), name="daily", every="day", count=9, wallet="gpu"),
            ),
            features={"hd": True, "seats": 5},
            trial=8 * DAY,
        ),
        "year": Plan(
            grants=(
                Allowance(
                    Decimal(9), every="week", rollover_min=Decimal(1), rollover_max=Decimal(9)
                ),
            ),
            features={"seats": UNLIMITED, "4k": False},
            every="year",
        ),
    },
    passes={"day": Pass(DAY, {"4k": True}), "week": Pass(7 * DAY, {"hd": True})},
    features={"hd": FeatureTerms(), "4k": FeatureTerms(), "seats": FeatureTerms("limit", 0)},
    coupons={"welcome": Coupon(Decimal(5), expires=DAY), "twice": Coupon(Decimal(1), most=2)},
)


def price(operation: str, model: str | None, meters: dict[str, int]) -> Decimal | None:
    """Price what the book of the tests prices."""
    if operation != "image.generate" or not set(meters) <= {"images"}:
        return None
    return PER_IMAGE * meters.get("images", 0)


class LedgerMachine(RuleBasedStateMachine):
    """Two stores, one clock, one auditor."""

    steps_back = True
    swept = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = START
        urls = ("memory://", self.second_store())
        self.ledgers = [tillroll.open(url, clock=lambda: self.now) for url in urls]
        prices = [Price(operation="image.generate", rates={"images": Rate(units=PER_IMAGE)})]
        for ledger in self.ledgers:
            ledger.apply_prices(prices, author="ops", reason="first prices", products=PRODUCTS)
        self.auditor = Auditor(price, products=PRODUCTS)
        self.made = []
        self.holds = ["nothing"]
        self.charges = ["nothing"]
        self.grants = ["nothing"]

    def second_store(self) -> str:
        return str(Path(self.folder.name) / "a.db")

    def teardown(self):
        for ledger in self.ledgers:
            found = ledger.verify()
            assert found.ok, found.problems
            for name in ledger.accounts():
                self.compare_history(ledger, name)
            ledger.close()
        self.folder.cleanup()

    def compare_history(self, ledger: tillroll.Ledger, name: str):
        account = self.auditor.at(name, self.now) if self.swept else self.auditor.account(name)
        receipts = list(ledger.entries(name))
        if not self.swept:  # the one that is swept may be ahead of the one that is not
            assert len(account.written) == len(receipts)
        for wanted, got in zip(account.written, receipts, strict=False):
            pairs = entry_pairs(wanted, got)
            if self.swept:
                del pairs["recorded_at"]
            assert all(one == other for one, other in pairs.values()), pairs

    def ask(self, verb: str, account: str, **args: Any):
        """Make a call on both ledgers and compare the answers with each other and the auditor."""
        args.setdefault("request_id", f"{verb}-{len(self.made)}")
        call = Call(verb, account, {name: v for name, v in args.items() if v is not None})
        self.made.append(call)
        return self.make(call)

    def make(self, call: Call):
        expected = self.auditor.expect(call, self.now)
        answers = []
        for ledger in self.ledgers:
            try:
                answers.append(getattr(ledger, call.verb)(call.account, **call.args))
            except tillroll.TillrollError as problem:
                answers.append(problem)
            found = compare(expected, answers[-1])
            assert not found, (call, found)
        shown = [answer.to_dict() for answer in answers]
        if not self.swept:
            assert shown[0] == shown[1]
        return answers[0] if expected.code is None else None

    # ------------------------------------------------------------ time

    @initialize(zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]))
    def begin(self, zone: str):
        for account in ACCOUNTS:
            self.ask("configure", account, time_zone=zone)
            self.grants.append(self.ask("grant", account, units=50).request_id)

    @rule(step=steps)
    def time_passes(self, step: timedelta):
        self.now += step
        self.sweep()

    @precondition(lambda self: self.steps_back)
    @rule(step=st.sampled_from([timedelta(seconds=1), timedelta(hours=1), timedelta(days=2)]))
    def clock_steps_back(self, step: timedelta):
        self.now -= step

    def sweep(self):
        """Have the second ledger book what is due, which the first one never does."""
        if self.swept:
            self.ledgers[1].book_due()

    # ------------------------------------------------------------ units in

    @rule(
        account=accounts,
        units=amounts,
        wallet=wallets,
        priority=st.sampled_from([0, 0, -1, 5]),
        category=st.sampled_from(["paid", "promo", "plan"]),
        expires=st.one_of(st.none(), spans),
        begins=st.one_of(st.none(), steps, steps.map(lambda step: -step)),
        applies_to=st.sampled_from([(), (), ("image.*",), ("text.write",)]),
    )
    def grant(
        self,
        *,
        account: str,
        units: object,
        wallet: str,
        priority: int,
        category: str,
        expires: str | None,
        begins: timedelta | None,
        applies_to: tuple[str, ...],
    ):
        made = self.ask(
            "grant",
            account,
            units=units,
            wallet=wallet,
            priority=priority,
            category=category,
            expires_in=expires,
            effective_at=begins and self.now + begins,
            applies_to=list(applies_to),
        )
        if made:
            self.grants.append(made.request_id)

    @rule(account=accounts, days=st.integers(-1, 3))
    def grant_until_a_day(self, account: str, days: int):
        day = date(self.now.year, self.now.month, self.now.day) + timedelta(days=days)
        self.ask("grant", account, units=5, expires_at=day)

    @rule(data=st.data(), account=accounts)
    def void(self, data: st.DataObject, account: str):
        self.ask("void", account, grant_id=data.draw(st.sampled_from(self.grants)))

    @rule(data=st.data(), account=accounts, units=st.integers(1, 30))
    def void_part(self, data: st.DataObject, account: str, units: int):
        self.ask("void", account, grant_id=data.draw(st.sampled_from(self.grants)), units=units)

    @rule(account=accounts, units=st.integers(-30, 10).filter(bool), wallet=wallets)
    def adjust(self, account: str, units: object, wallet: str):
        self.ask("adjust", account, units=units, wallet=wallet, reason="a test")

    @rule(account=accounts, limit=st.integers(0, LIMIT_MAX), wallet=wallets)
    def set_overdraft(self, account: str, limit: int, wallet: str):
        self.ask("set_overdraft", account, limit=limit, wallet=wallet)

    # ------------------------------------------------------------ units out

    @rule(
        account=accounts,
        operation=st.one_of(st.none(), operations),
        units=amounts,
        wallet=wallets,
        tags=st.sampled_from(TAGS),
        late=st.sampled_from([None, None, timedelta(days=3), timedelta(days=36)]),
    )
    def consume(
        self,
        *,
        account: str,
        operation: str | None,
        units: object,
        wallet: str,
        tags: dict[str, str],
        late: Any,
    ):
        made = self.ask(
            "consume",
            account,
            operation=operation,
            units=units,
            wallet=wallet,
            tags=tags,
            effective_at=late and self.now - late,
        )
        if made:
            self.charges.append(made.request_id)

    @rule(account=accounts, operation=operations, images=st.integers(0, 9))
    def consume_priced(self, account: str, operation: str | None, images: int):
        made = self.ask("consume", account, operation=operation, meters={"images": images})
        if made:
            self.charges.append(made.request_id)

    @rule(
        account=accounts,
        operation=st.one_of(st.none(), operations),
        units=amounts,
        wallet=wallets,
        floor=st.sampled_from([None, None, 0, "0.000001"]),
        life=st.one_of(st.none(), spans),
        tags=st.sampled_from(TAGS),
    )
    def hold(
        self,
        *,
        account: str,
        operation: str | None,
        units: object,
        wallet: str,
        floor: object,
        life: str | None,
        tags: dict[str, str],
    ):
        made = self.ask(
            "hold",
            account,
            operation=operation,
            units=units,
            floor=floor,
            wallet=wallet,
            expires_in=life,
            tags=tags,
        )
        if made:
            self.holds.append(made.request_id)

    @rule(account=accounts, images=st.integers(0, 5))
    def hold_priced(self, account: str, images: int):
        made = self.ask("hold", account, operation="image.generate", meters={"images": images})
        if made:
            self.holds.append(made.request_id)

    @rule(
        data=st.data(),
        account=accounts,
        figures=st.one_of(
            st.none(),
            amounts.map(lambda n: {"units": n}),
            st.integers(0, 9).map(lambda n: {"meters": {"images": n}}),
        ),
        final=st.booleans(),
        above=st.sampled_from(["available", "refuse", "overdraft"]),
    )
    def settle(
        self,
        *,
        data: st.DataObject,
        account: str,
        figures: dict[str, Any] | None,
        final: bool,
        above: str,
    ):
        hold_id = data.draw(st.sampled_from(self.holds))
        made = self.ask(
            "settle", account, hold_id=hold_id, final=final, above=above, **(figures or {})
        )
        if made:
            self.charges += [hold_id, made.request_id]

    @rule(data=st.data(), account=accounts)
    def release(self, data: st.DataObject, account: str):
        self.ask("release", account, hold_id=data.draw(st.sampled_from(self.holds)))

    @rule(data=st.data(), account=accounts, span=spans)
    def extend(self, data: st.DataObject, account: str, span: str | None):
        hold_id = data.draw(st.sampled_from(self.holds))
        self.ask("extend", account, hold_id=hold_id, expires_in=span)

    @rule(
        data=st.data(),
        account=accounts,
        span=st.one_of(st.none(), spans),
        then=st.sampled_from(["release", "settle"]),
    )
    def mark_in_doubt(self, data: st.DataObject, account: str, span: str | None, then: str):
        hold_id = data.draw(st.sampled_from(self.holds))
        self.ask("mark_in_doubt", account, hold_id=hold_id, deadline_in=span, at_deadline=then)
        self.charges.append(hold_id)

    @rule(data=st.data(), account=accounts, outcome=st.sampled_from(["done", "not_done"]))
    def resolve(self, data: st.DataObject, account: str, outcome: str):
        hold_id = data.draw(st.sampled_from(self.holds))
        self.ask("resolve", account, hold_id=hold_id, outcome=outcome)

    @rule(
        data=st.data(),
        account=accounts,
        units=st.one_of(st.none(), amounts),
        policy=st.sampled_from(
            [("expire", None), ("extend", "9d"), ("goodwill", None), ("goodwill", "1d")]
        ),
    )
    def refund(
        self, data: st.DataObject, account: str, units: object, policy: tuple[str, str | None]
    ):
        charge = data.draw(st.sampled_from(self.charges))
        made = self.ask(
            "refund", account, charge=charge, units=units, expired=policy[0], extend_by=policy[1]
        )
        if made:
            self.grants.append(made.request_id)

    # ------------------------------------------------------------ what may happen

    @rule(
        account=accounts,
        cap=st.integers(0, 60),
        wallet=wallets,
        period=st.sampled_from(["day", "week", "month", "total", "rolling"]),
        match=st.sampled_from([{}, {"member": "*"}, {"operation": "image.edit"}]),
        name=st.sampled_from(["b1", "b2"]),
    )
    def set_budget(
        self, *, account: str, cap: int, wallet: str, period: str, match: dict[str, str], name: str
    ):
        self.ask(
            "set_budget",
            account,
            name=name,
            cap=cap,
            wallet=wallet,
            period=period,
            match=match,
            window="5h" if period == "rolling" else None,
        )

    @rule(account=accounts, name=st.sampled_from(["b1", "b2"]))
    def remove_budget(self, account: str, name: str):
        self.ask("remove_budget", account, name=name)

    @rule(
        account=accounts,
        units=amounts,
        every=st.sampled_from([("day", 9), ("week", 2), ("month", 1), ("month", 3), ("year", 1)]),
        rollover=st.sampled_from([(0, 0), (0, 5), (3, 20)]),
        days=st.sampled_from([-400, -31, 0, 3]),
        wallet=wallets,
        ends=st.sampled_from([None, None, timedelta(days=40)]),
    )
    def set_recurring(
        self,
        *,
        account: str,
        units: object,
        every: tuple[str, int],
        rollover: tuple[int, int],
        days: int,
        wallet: str,
        ends: timedelta | None,
    ):
        anchor = (START + timedelta(days=days)).date() if days else "2026-01-31T09:30:00"
        self.ask(
            "set_recurring",
            account,
            name="plan",
            units=units,
            every=every[0],
            count=every[1],
            rollover_min=rollover[0],
            rollover_max=rollover[1],
            anchor=anchor,
            wallet=wallet,
            ends_at=ends and self.now + ends,
        )

    @rule(account=accounts)
    def stop_recurring(self, account: str):
        self.ask("stop_recurring", account, name="plan")

    @rule(account=accounts, verb=st.sampled_from(["freeze", "unfreeze", "unfreeze"]))
    def freeze(self, account: str, verb: str):
        self.ask(verb, account)

    @rule()
    def close(self):
        self.ask("close_account", ACCOUNTS[1])

    @rule(account=accounts, late=st.booleans())
    def configure(self, account: str, late: Any):
        self.ask("configure", account, late_settlement=late)

    # ------------------------------------------------------------ what is sold

    @rule(
        account=accounts,
        product=st.sampled_from(["starter", "gpus", "day", "week", "nothing"]),
        quantity=st.sampled_from([1, 1, 3]),
    )
    def buy(self, account: str, product: str, quantity: int):
        made = self.ask("buy", account, product=product, quantity=quantity)
        if made and made.kind == "grant":
            self.grants.append(made.request_id)

    @rule(account=accounts, coupon=st.sampled_from(["welcome", "twice"]))
    def redeem(self, account: str, coupon: str):
        made = self.ask("redeem", account, coupon=coupon)
        if made:
            self.grants.append(made.request_id)

    @rule(
        account=accounts,
        plan=st.sampled_from(["free", "pro", "year"]),
        name=rights,
        when=st.sampled_from(["now", "now", "period_end"]),
        trial=st.booleans(),
        status=standings,
        started=st.sampled_from([None, None, timedelta(days=20)]),
        ends=moments,
        paid=moments,
    )
    def subscribe(
        self,
        *,
        account: str,
        plan: str,
        name: str,
        when: str,
        trial: bool,
        status: str | None,
        started: timedelta | None,
        ends: Any,
        paid: Any,
    ):
        self.ask(
            "subscribe",
            account,
            plan=plan,
            name=name,
            when=when,
            trial=trial,
            status=status,
            started_at=started and self.now - started,
            ends_at=self.moment(ends),
            paid_until=self.moment(paid),
        )

    def moment(self, span: Any) -> Any:
        return self.now + span if isinstance(span, timedelta) else span

    @rule(
        account=accounts,
        name=rights,
        brings=st.sampled_from(
            [
                {"features": {"hd": True}},
                {"features": {"seats": 2, "4k": True}},
                {"grants": [{"units": 4, "every": "week", "rollover_max": 2}]},
            ]
        ),
        lasts=st.sampled_from([None, None, "9d"]),
        tried=st.sampled_from([None, None, timedelta(days=2)]),
        product=st.sampled_from([None, "deal"]),
    )
    def entitle(
        self,
        *,
        account: str,
        name: str,
        brings: dict[str, Any],
        lasts: str | None,
        tried: timedelta | None,
        product: str | None,
    ):
        self.ask(
            "entitle",
            account,
            name=name,
            lasts=lasts,
            product=product,
            trial_ends_at=tried and self.now + tried,
            **brings,
        )

    @rule(account=accounts, name=rights, status=standings, ends=moments, paid=moments)
    def change_entitlement(self, account: str, name: str, status: Any, ends: Any, paid: Any):
        if status is None and ends is None and paid is None:
            paid = "never"
        self.ask(
            "change_entitlement",
            account,
            name=name,
            status=status,
            ends_at=self.moment(ends),
            paid_until=self.moment(paid),
        )

    @rule(account=accounts, name=rights, when=st.sampled_from(["now", "period_end"]))
    def end_entitlement(self, account: str, name: str, when: str):
        self.ask("end_entitlement", account, name=name, when=when)

    @rule(account=accounts, feature=features, hold=st.booleans())
    def work_with_a_feature(self, account: str, feature: str, *, hold: bool):
        verb = "hold" if hold else "consume"
        made = self.ask(verb, account, units=1, feature=feature)
        if made:
            (self.holds if hold else self.charges).append(made.request_id)

    @invariant()
    def access_agrees(self):
        for name in ACCOUNTS:
            account = self.auditor.at(name, self.now)
            for feature in ("hd", "seats", "4k"):
                value = account.brings(feature)
                usable = value not in (None, False, 0) and account.status == "open"
                for ledger in self.ledgers:
                    assert ledger.access(name, feature=feature).allowed == usable

    # ------------------------------------------------------------ repeats and reads

    @rule(data=st.data(), anew=st.booleans())
    def repeat(self, *, data: st.DataObject, anew: bool):
        call = data.draw(st.sampled_from(self.made))
        self.make(call._replace(args={**call.args, "retry_refused": anew}))

    @rule(data=st.data(), account=accounts, anew=st.booleans())
    def reuse_an_id(self, *, data: st.DataObject, account: str, anew: bool):
        taken = data.draw(st.sampled_from(self.made)).args["request_id"]
        self.ask("consume", account, units="0.5", request_id=taken, retry_refused=anew)

    @invariant()
    def balances_agree(self):
        for name in ACCOUNTS:
            account = self.auditor.at(name, self.now)
            for wallet in WALLETS:
                self.check_balance(account, wallet)

    def check_balance(self, account: Account, wallet: str):
        wanted = account.buckets(wallet)
        for ledger in self.ledgers:
            found = ledger.balance(account.name, wallet)
            assert {bucket: getattr(found, bucket) for bucket in wanted} == wanted
            assert wanted["issued"] == sum(wanted.values()) - wanted["issued"]
            assert found.held >= 0
            assert found.available >= -LIMIT_MAX
            assert all(Decimal(grant["remaining"]) >= 0 for grant in found.grants)

    @invariant()
    def heads_agree(self):
        if self.swept:
            return
        heads = []
        for ledger in self.ledgers:
            with ledger.store.read() as reader:
                owners = [(account_id("default", name), name) for name in ACCOUNTS]
                heads.append(reader.accounts(owners))
        assert heads[0] == heads[1]


class SweptMachine(LedgerMachine):
    """The first ledger is never swept, the second after every step of the clock."""

    steps_back = False
    swept = True


def on_postgresql(
    machine: type[LedgerMachine], postgres: Cluster, *, append: bool = False
) -> type[LedgerMachine]:
    """Return the machine with PostgreSQL as its second store, a new database each time."""

    class OnPostgresql(machine):  # type: ignore[misc,valid-type]
        def second_store(self) -> str:
            self.name = postgres.create_database()
            url = postgres.url(self.name)
            return appending(url) if append else url

        def teardown(self):
            super().teardown()
            postgres.drop_database(self.name)

    return OnPostgresql


def profile(examples: int, steps: int, *, fixed: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=fixed,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=True,
    )


@pytest.mark.parametrize("machine", [LedgerMachine, SweptMachine])
def test_histories(machine: type[LedgerMachine]):
    run_state_machine_as_test(machine, settings=profile(60, 40, fixed=True))


@pytest.mark.parametrize("machine", [LedgerMachine, SweptMachine])
def test_histories_on_postgresql(machine: type[LedgerMachine], postgres: Cluster):
    run_state_machine_as_test(
        on_postgresql(machine, postgres), settings=profile(15, 40, fixed=True)
    )


def test_histories_on_postgresql_appending(postgres: Cluster):
    machine = on_postgresql(LedgerMachine, postgres, append=True)
    run_state_machine_as_test(machine, settings=profile(15, 40, fixed=True))


@pytest.mark.soak
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("machine", [LedgerMachine, SweptMachine])
def test_many_histories_on_postgresql(
    machine: type[LedgerMachine], postgres: Cluster, *, append: bool
):
    examples = int(os.environ.get("TILLROLL_EXAMPLES", "300"))
    chosen = on_postgresql(machine, postgres, append=append)
    run_state_machine_as_test(chosen, settings=profile(examples, 60, fixed=False))


@pytest.mark.soak
@pytest.mark.parametrize("machine", [LedgerMachine, SweptMachine])
def test_many_histories(machine: type[LedgerMachine]):
    examples = int(os.environ.get("TILLROLL_EXAMPLES", "2000"))
    run_state_machine_as_test(machine, settings=profile(examples, 60, fixed=False))
