"""Money of subscriptions that goes back: what it is of, whose units it takes, and how far."""

import itertools
import sqlite3
from calendar import monthrange
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import tillroll
from tests.payments.conftest import ONE, PRODUCTS, World, clock, usd
from tillroll.ledger.pricing import new_version
from tillroll.ledger.products import Allowance, Plan
from tillroll.payments import returning, settling, subscribing
from tillroll.payments.facts import Disputed, Refunded
from tillroll.payments.provider import InvoiceTold, ReturnTold, SubscriptionTold, Told

DAY = 86_400 * ONE


def at() -> int:
    return int(clock.now.timestamp()) * ONE


def known(world: World) -> subscribing.Subscription:
    with world.ledger.store.read() as reader:
        [found] = [
            subscribing.decoded(note) for note in reader.notes() if note.kind == "subscription"
        ]
    return found


class Plain:
    """A subscription that is told of in our own words; nobody is asked."""

    def __init__(self, world: World, days: int = 30, price: str = "price_basic") -> None:
        self.world = world
        self.begins, self.ends = at(), at() + days * DAY
        self.price = price

    def stands(self, **more: Any) -> SubscriptionTold:
        facts: dict[str, Any] = {"status": "active", "account": "acme", **more}
        span = {"period_start": self.begins, "period_end": self.ends}
        return SubscriptionTold(id="sub_1", at=at(), price=self.price, **span, **facts)

    def paid(self, invoice: str = "in_1", amount: int = 20_00, **more: Any) -> InvoiceTold:
        facts: dict[str, Any] = {"period_start": self.begins, "period_end": self.ends, **more}
        return InvoiceTold(
            id=invoice,
            subscription="sub_1",
            paid=True,
            at=at(),
            price=self.price,
            amount=amount,
            **facts,
        )

    def back(self, *facts: Refunded | Disputed, invoice: str = "in_1") -> ReturnTold:
        return ReturnTold(
            subscription="sub_1", invoice=invoice, payment=f"pi_{invoice}", facts=facts
        )

    def hear(self, *told: Told) -> None:
        self.world.desk.hear(told)


def sell(world: World, **plans: Plan) -> None:
    products = replace(PRODUCTS, plans={**PRODUCTS.plans, **plans})
    version = new_version(2, [], products=products, author="ann", reason="more plans")
    world.ledger._engine.perform(lambda tx: tx.add_price_version("default", version))


def test_what_was_used_is_short_and_forgiven_first(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid())
    world.ledger.consume("acme", units=70)
    plain.hear(plain.back(Disputed("d", 20_00, "open", 1)))
    [share] = known(world).shares.values()
    assert (share.taken, share.short, world.available()) == (30 * ONE, 70 * ONE, 0)
    entry = [receipt.entry for receipt in world.ledger.history("acme")][-1]
    assert (entry.kind, entry.units, entry.shortfall) == ("void", 30 * ONE, 70 * ONE)
    assert (entry.request_id or "").startswith("~subscription/stripe:sub_1/")
    world.wait(days=9)
    plain.hear(plain.back(Disputed("d", 20_00, "won", 2)))
    [share] = known(world).shares.values()
    assert (share.taken, share.short, world.available()) == (0, 0, 30)
    plain.hear(plain.back(Refunded("r", 10_00)))
    assert world.available() == 0, "what was given back is taken first"
    plain.hear(plain.back(Refunded("r", 10_00, "failed")))
    assert world.available() == 30
    world.wait(days=31)
    assert world.available() == 0, "it ends when the period would have, and no sooner"
    assert world.ledger.verify().ok


def test_told_in_any_order_and_twice(world: World):
    plain = Plain(world)
    tellings: list[Told] = [
        plain.stands(),
        plain.paid(),
        plain.back(Refunded("r1", 3_00)),
        plain.back(Refunded("r2", 2_00, "pending")),
        plain.back(Disputed("d", 10_00, "won", 2)),
    ]
    for order in itertools.permutations(tellings):
        other = World("memory://", world.api_base, world.fake)
        with other.ledger:
            other.desk.hear([*order, *order[:2]])
            assert other.available() == 75
            assert other.ledger.verify().ok


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgresql"])
def test_on_every_store(world: World, kind: str, tmp_path: Path, request: pytest.FixtureRequest):
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/till.db"}.get(kind)
    other = World(url or request.getfixturevalue("postgres_url"), world.api_base, world.fake)
    with other.ledger:
        plain = Plain(other, price="price_saver")
        plain.hear(plain.back(Refunded("r", 5_00)), plain.stands(), plain.paid())
        assert other.available() == 75
        world.wait(days=30, hours=1)
        plain.begins, plain.ends = plain.ends, plain.ends + 30 * DAY
        plain.hear(plain.paid("in_2"))
        plain.hear(plain.back(Refunded("q", 10_00)))
        assert other.available() == 110, "of 75 left 60 were carried over, and 50 are taken"
        plain.hear(plain.back(Refunded("q", 10_00, "failed")))
        assert other.available() == 160
        assert other.ledger.verify().ok


def test_wallets_are_kept_apart(world: World):
    allowances = (
        Allowance(Decimal(100), name="words"),
        Allowance(Decimal(3), name="pictures", wallet="images"),
    )
    sell(world, both=Plan(grants=allowances, price=usd("20"), stripe_price="price_both"))
    plain = Plain(world, price="price_both")
    plain.hear(plain.stands(), plain.paid())
    world.ledger.consume("acme", units=2, wallet="images")
    plain.hear(plain.back(Refunded("r", 10_00)))
    assert world.available() == 50
    assert world.ledger.balance("acme", "images").available == 0
    shares = {one.wallet: (one.taken, one.short) for one in known(world).shares.values()}
    assert shares == {"credits": (50 * ONE, 0), "images": (ONE, ONE // 2)}


def test_a_year_whose_money_went_back_brings_no_more_months(world: World):
    year = Plan(
        grants=(Allowance(Decimal(10)),), features={"api": True}, every="year", price=usd("100"),
        stripe_price="price_year",
    )  # fmt: skip
    sell(world, year=year)
    plain = Plain(world, days=365, price="price_year")
    plain.hear(plain.stands(), plain.paid(amount=100_00))
    world.wait(days=33)
    assert world.available() == 10
    plain.hear(plain.back(Refunded("r", 50_00)))
    assert world.available() == 5, "half of the month at hand"
    plain.hear(plain.back(Refunded("q", 50_00)))
    world.wait(days=62)
    assert world.available() == 0
    assert world.ledger.access("acme", feature="api").allowed, "that is the provider's to say"
    plain.hear(plain.back(Refunded("q", 50_00, "failed")))
    world.wait(days=31)
    assert world.available() == 10


def year_of_months(rollover: int = 0) -> Plan:
    month = Allowance(Decimal(10), rollover_max=Decimal(rollover))
    return Plan(grants=(month,), every="year", price=usd("100"), stripe_price="price_year")


@pytest.mark.parametrize("back", [100_00, 50_00])
def test_what_the_clock_granted_is_demanded_back_whenever_it_ended(world: World, back: int):
    left = {}
    for order in itertools.permutations(("ended", "refunded")):
        clock.now = datetime(2026, 1, 1, tzinfo=UTC)
        other = World("memory://", world.api_base, world.fake)
        with other.ledger:
            sell(other, year=year_of_months())
            plain = Plain(other, days=365, price="price_year")
            plain.hear(plain.stands(), plain.paid(amount=100_00))
            clock.now = datetime(2026, 2, 5, tzinfo=UTC)
            other.ledger.consume("acme", units=1)
            for one in order:
                ended, refunded = plain.stands(status="ended"), plain.back(Refunded("r", back))
                plain.hear(ended if one == "ended" else refunded)
            left[order] = other.available()
            assert other.ledger.verify().ok
    assert set(left.values()) == {0 if back == 100_00 else 4}


def test_what_the_clock_carried_over_is_demanded_back(world: World):
    clock.now = datetime(2026, 1, 1, tzinfo=UTC)
    sell(world, year=year_of_months(rollover=100))
    plain = Plain(world, days=365, price="price_year")
    plain.hear(plain.stands(), plain.paid(amount=100_00))
    for month in (2, 3):
        clock.now = datetime(2026, month, 5, tzinfo=UTC)
        world.ledger.grant("acme", 1, wallet="other")
    assert world.available() == 30
    plain.hear(plain.back(Refunded("r", 100_00)))
    assert world.available() == 0
    assert [one.taken for one in known(world).shares.values()] == [10 * ONE] * 3


def test_what_the_clock_granted_elsewhere_is_demanded_back(world: World):
    clock.now = datetime(2026, 1, 1, tzinfo=UTC)
    sell(world, year=year_of_months())
    plain = Plain(world, days=365, price="price_year")
    plain.hear(plain.stands(), plain.paid(amount=100_00))
    clock.now = datetime(2026, 2, 5, tzinfo=UTC)
    world.ledger.grant("acme", 1, wallet="other")
    plain.hear(plain.stands(account="beta"))
    assert world.available() == 10
    plain.hear(plain.back(Refunded("r", 100_00)))
    assert (world.available(), world.available("beta")) == (0, 0)


@pytest.mark.parametrize("used", [0, 70])
@pytest.mark.parametrize(("first", "second", "left"), [(20_00, 55_00, 0), (10_00, 5_00, 4 / 5)])
def test_what_a_change_of_plan_carried_over_is_demanded_back(
    world: World, used: int, first: int, second: int, left: float
):
    allowance = Allowance(Decimal(500), rollover_max=Decimal(60))
    plan = Plan(grants=(allowance,), price=usd("75"), stripe_price="price_more")
    for order in itertools.permutations(range(4)):
        clock.now = datetime(2026, 1, 1, tzinfo=UTC)
        other = World("memory://", world.api_base, world.fake)
        with other.ledger:
            sell(other, more=plan)
            plain = Plain(other, price="price_saver")
            plain.hear(plain.stands(), plain.paid())
            if used:
                other.ledger.consume("acme", units=used)
            other.wait(days=9)
            plain.price, begins = "price_more", at()
            tellings = [
                plain.stands(),
                plain.paid("in_2", 55_00, part=True, period_start=begins),
                plain.back(Refunded("r", first)),
                plain.back(Refunded("q", second), invoice="in_2"),
            ]
            for number in order:
                plain.hear(tellings[number])
            assert other.available() == (500 + min(60, 100 - used)) * left, order
            assert other.ledger.verify().ok


def test_a_refund_of_what_is_disputed_counts_once(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid(), plain.paid("in_2", 60_00, part=True))
    plain.hear(plain.back(Refunded("r", 20_00), Disputed("d", 20_00, "open", 1)))
    assert world.available() == 75, "a quarter of 80 went back, not a half"


def test_shares_that_nothing_was_taken_of_are_dropped_first(world: World):
    daily = Plan(
        grants=(Allowance(Decimal(10), every="day", rollover_max=Decimal(100)),), every="year",
        price=usd("100"), stripe_price="price_daily",
    )  # fmt: skip
    sell(world, daily=daily)
    plain = Plain(world, days=365, price="price_daily")
    plain.hear(plain.stands(), plain.paid(amount=100_00), plain.back(Refunded("r", 50_00)))
    assert world.available() == 5
    [first] = known(world).shares.values()
    for _ in range(returning.SHARES_MAX + 5):
        world.wait(days=1)
        world.ledger.consume("acme", units=10)
        plain.hear(plain.stands())
    shares = known(world).shares
    assert len(shares) == returning.SHARES_MAX
    assert shares[first.grant].taken == 5 * ONE


def test_a_closed_account_is_left_alone(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid())
    world.ledger.close_account("acme")
    plain.hear(plain.back(Refunded("r", 10_00)))
    found = known(world)
    [share] = found.shares.values()
    assert (found.refused, share.taken, share.short) == ("account_closed", 0, 50 * ONE)
    plain.hear(plain.back(Refunded("r", 10_00, "failed")))
    assert [one.short for one in known(world).shares.values()] == [0]


def test_what_raises_is_not_tried_for_ever(world: World):
    """As for a name that no account can have, once there is a plan of that price."""
    plain = Plain(world, price="price_new")
    plain.hear(plain.stands(account="a" * 256))
    assert "price_new" in (known(world).refused or "")
    sell(world, new=Plan(stripe_price="price_new"))
    rounds = 0
    for _ in range(40):
        world.wait(days=1)
        rounds += world.desk.again()
    assert rounds == 30
    assert "price_new" in (known(world).refused or ""), "nothing was written"


def test_a_damaged_account_keeps_no_other_from_being_tried(world: World, tmp_path: Path):
    path = tmp_path / "till.db"
    other = World(f"sqlite:///{path}", world.api_base, world.fake)
    with other.ledger:
        for nth, account in enumerate(("acme", "beta")):
            other.ledger.grant(account, 1)
            other.buy(account)
            plain = Plain(other, price="price_new")
            other.desk.hear([replace(plain.stands(account=account), id=f"sub_{nth}")])
    with closing(sqlite3.connect(path)) as file, file:
        harm = "UPDATE tillroll_accounts SET state = json_set(state, '$.seq', 99)"
        file.execute(f"{harm} WHERE account = 'acme'")
    world.wait(hours=1)
    other = World(f"sqlite:///{path}", world.api_base, world.fake)
    with other.ledger:
        sell(other, new=Plan(features={"studio": True}, stripe_price="price_new"))
        assert (other.desk.pull().kept, other.available("beta")) == (1, 101)
        assert other.desk.again() == 2
        assert other.ledger.access("beta", feature="studio").allowed
        assert other.desk.again() == 0, "it is tried again after an hour"


def test_what_a_closed_account_had_is_over(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid())
    world.ledger.close_account("acme")
    world.wait(days=1)
    plain.hear(plain.stands(status="past_due"))
    assert known(world).refused == "account_closed"
    world.wait(days=1)
    plain.hear(plain.stands(status="ended"))
    assert (known(world).refused, known(world).applied) == (None, None)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgresql"])
def test_what_was_refused_is_listed_whoever_owns_it(
    world: World, kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/till.db"}.get(kind)
    other = World(url or request.getfixturevalue("postgres_url"), world.api_base, world.fake)
    with other.ledger:
        plain = Plain(other)
        other.ledger.grant("acme", 1)
        other.ledger.close_account("acme")
        plain.hear(plain.stands(), plain.paid())
        with other.ledger.store.read() as reader:
            [found] = subscribing.unfollowed(reader, "default")
            assert subscribing.subscriptions_of(reader, "default", "acme") == [found]
            assert subscribing.unfollowed(reader, "default", found.name) == []
        other.wait(days=31)
        plain.hear(plain.stands(status="ended"))
        with other.ledger.store.read() as reader:
            assert subscribing.unfollowed(reader, "default") == []
        plain.hear(plain.stands(status="ended"))
        assert other.ledger.verify().ok


def test_a_closed_account_is_not_tried_for_ever(world: World):
    plain = Plain(world)
    world.ledger.grant("acme", 1)
    world.ledger.close_account("acme")
    plain.hear(plain.stands(), plain.paid())
    rounds = 0
    for _ in range(40):
        world.wait(days=1)
        rounds += world.desk.again()
    assert rounds == 30
    plain.hear(plain.stands())
    world.wait(days=1)
    assert world.desk.again() == 1, "more was told"


def test_months_that_begin_on_the_31st_bring_their_units_once(world: World):
    clock.now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    ends = [datetime(2026, month, day, 12, tzinfo=UTC) for month, day in ((2, 28), (3, 31))]
    plain = Plain(world)
    plain.ends = int(ends[0].timestamp()) * ONE
    plain.hear(plain.stands(), plain.paid())
    world.ledger.consume("acme", units=100)
    clock.now = datetime(2026, 2, 28, 13, tzinfo=UTC)
    plain.begins, plain.ends = plain.ends, int(ends[1].timestamp()) * ONE
    plain.hear(plain.stands(), plain.paid("in_2"))
    world.ledger.consume("acme", units=100)
    clock.now = datetime(2026, 3, 30, 12, tzinfo=UTC)
    assert world.available() == 0, "the month that was paid lasts until the 31st"


def _month(first: datetime, number: int) -> datetime:
    """Return when the n-th month of a subscription begins, as Stripe counts them: in UTC."""
    years, month = divmod(first.month - 1 + number, 12)
    last = monthrange(first.year + years, month + 1)[1]
    return first.replace(year=first.year + years, month=month + 1, day=min(first.day, last))


def _granted(world: World) -> int:
    kinds = [receipt.kind for receipt in world.ledger.history("acme", limit=1_000)]
    return kinds.count("grant_renewed")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("hour", [2, 12, 20])
@pytest.mark.parametrize("day", [28, 29, 30, 31])
def test_each_paid_month_brings_its_units_once(world: World, zone: str, hour: int, day: int):
    first = datetime(2026, 1, day, hour, tzinfo=UTC)
    for heard_of in range(4):
        clock.now = _month(first, heard_of)
        other = World("memory://", world.api_base, world.fake)
        with other.ledger:
            other.ledger.configure("acme", time_zone=zone)
            plain = Plain(other)
            for number in range(heard_of, heard_of + 14):
                begins, ends = _month(first, number), _month(first, number + 1)
                clock.now = begins + timedelta(hours=1)
                plain.begins, plain.ends = (int(one.timestamp()) * ONE for one in (begins, ends))
                plain.hear(plain.stands(), plain.paid(f"in_{number}"))
                assert other.available() == 100
                clock.now = ends - timedelta(hours=3)
                other.ledger.grant("acme", 1, wallet="other")
                assert _granted(other) == number - heard_of + 1, begins
                if zone == "UTC":
                    assert other.available() == 100, "they last as long as what was paid"
                    other.ledger.consume("acme", units=100)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("upgraded", [(10, 12), (30, 14)])
def test_a_changed_plan_brings_nothing_on_the_last_days_of_a_month(
    world: World, zone: str, upgraded: tuple[int, int]
):
    first = datetime(2026, 3, 31, 12, tzinfo=UTC)
    clock.now, changed = first, datetime(2026, 4, *upgraded, tzinfo=UTC)
    world.ledger.configure("acme", time_zone=zone)
    plain = Plain(world)
    plain.ends = int(_month(first, 1).timestamp()) * ONE
    plain.hear(plain.stands(), plain.paid())
    granted = 1
    for number in range(4):
        begins, ends = _month(first, number), _month(first, number + 1)
        plain.begins, plain.ends = (int(one.timestamp()) * ONE for one in (begins, ends))
        if number:
            clock.now = begins + timedelta(hours=1)
            plain.hear(plain.stands(), plain.paid(f"in_{number}", 80_00))
            granted += 1
        if begins <= changed < ends:
            clock.now = changed
            plain.price = "price_pro"
            plain.hear(plain.stands(), plain.paid("in_part", 60_00, part=True))
            granted += 1
        clock.now = ends - timedelta(hours=3)
        world.ledger.grant("acme", 1, wallet="other")
        assert _granted(world) == granted, begins
    assert granted == 5


def test_a_year_that_begins_on_the_29th_of_february_has_twelve_months(world: World):
    clock.now = datetime(2027, 2, 28, 12, tzinfo=UTC)
    sell(world, year=year_of_months())
    plain = Plain(world, price="price_year")
    plain.ends = int(datetime(2028, 2, 29, 12, tzinfo=UTC).timestamp()) * ONE
    clock.now += timedelta(days=1)
    plain.hear(plain.stands(), plain.paid(amount=100_00))
    clock.now = datetime(2028, 2, 29, 11, tzinfo=UTC)
    world.ledger.grant("acme", 1, wallet="other")
    assert _granted(world) == 12
    assert world.available() == 10


# ---------------------------------------------------------------- whose it is


def test_another_account_has_it_from_then_on(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid())
    world.wait(days=1)
    plain.hear(plain.stands(account="beta"))
    assert world.ledger.entitlements("acme") == []
    [held] = world.ledger.entitlements("beta")
    assert (held["product"], world.available(), world.available("beta")) == ("basic", 100, 0)
    assert world.ledger.access("beta", feature="studio").allowed
    plain.hear(plain.back(Refunded("r", 5_00)))
    assert world.available() == 75, "they were granted there"
    world.wait(days=30)
    plain.begins, plain.ends = plain.ends, plain.ends + 30 * DAY
    plain.hear(plain.paid("in_2"), plain.stands(account="beta"))
    assert (world.available(), world.available("beta")) == (0, 100)
    assert world.ledger.verify().ok


def test_one_that_was_noted_before_knows_whose_it_is(world: World):
    plain = Plain(world)
    plain.hear(plain.stands(), plain.paid())
    key = subscribing.key_of("default", "stripe", "sub_1")

    def forget(tx: Any) -> None:
        note = tx.note(key)
        document = note.document.replace(',"account":"acme"}', "}")
        assert document != note.document
        tx.put_note(replace(note, document=document))

    world.ledger._engine.perform(forget)
    world.wait(days=1)
    plain.hear(plain.stands(account="beta"))
    assert world.ledger.entitlements("acme") == []


# ---------------------------------------------------------------- what it is of


def unplaced(world: World) -> list[str]:
    with world.ledger.store.read() as reader:
        return [one.id for one in settling.payments_of(reader, "default", "")]


def test_a_refund_of_another_ledger_is_not_ours(world: World):
    foreign = world.fake.intent(None, 5_00, "usd", {"tillroll_ledger": "another"})
    world.fake.charge(foreign)
    world.fake.refund(foreign["id"], 1_00)
    shop = world.fake.intent(None, 5_00, "usd", {})
    world.fake.charge(shop)
    world.fake.dispute(shop["id"], 5_00)
    world.deliver(world.new_events())
    with world.ledger.store.read() as reader:
        assert reader.notes() == []


def test_a_refund_whose_purchase_is_still_to_be_told_is_ours(world: World):
    payment = world.buy()
    bought = world.new_events()
    world.fake.refund(payment, 1_00)
    world.deliver(world.new_events())
    assert unplaced(world) == [payment]
    world.deliver(bought)
    assert (unplaced(world), world.available()) == ([], 80)


def test_what_was_noted_of_nobody_is_heard_once_it_is_known(world: World):
    made = world.fake.things[world.buy(product="basic")]
    payment = world.fake.payment_of(world.fake.of("invoice")[-1])
    world.deliver(e for e in world.new_events() if e["type"] != "payment_intent.succeeded")
    engine = world.ledger._engine
    settling.settle(engine, "default", "stripe", payment, [Refunded("re_old", 5_00)])
    assert unplaced(world) == [payment]
    world.fake.refund(payment, 5_00)
    world.deliver(world.new_events()[:1])
    assert world.available() == 50
    assert made["id"] == known(world).id
    assert unplaced(world) == []


def test_a_key_without_the_right_to_look_loses_no_refund(world: World):
    world.buy(product="basic")
    payment = world.fake.payment_of(world.fake.of("invoice")[-1])
    world.deliver(world.new_events())
    world.fake.refund(payment, 5_00)
    [event, _] = world.new_events()
    for asked_before in range(3):  # the payment, what it paid, and the invoice
        world.fake.fail = [*[""] * asked_before, "no right"]
        with pytest.raises(tillroll.ProviderRefused, match="permissions"):
            world.deliver([event])
        assert world.available() == 100
    world.deliver([event])
    assert world.available() == 75


def test_a_refund_of_a_payment_that_is_not_there_is_nobodys(world: World):
    world.fake.refund(world.buy(), 1_00)
    [event] = [one for one in world.new_events() if one["type"] == "refund.created"]
    event["data"]["object"]["payment_intent"] = "pi_gone"
    world.deliver([event])
    assert unplaced(world) == []


@pytest.mark.parametrize("failing", ["down", "lost"])
def test_one_that_cannot_be_asked_about_is_sent_again(world: World, failing: str):
    world.buy(product="basic")
    payment = world.fake.payment_of(world.fake.of("invoice")[-1])
    world.deliver(world.new_events())
    world.fake.refund(payment, 5_00)
    [event, _] = world.new_events()
    world.fake.fail = [failing] * 3
    with pytest.raises(tillroll.TillrollError):
        world.deliver([event])
    world.fake.fail = []
    assert world.available() == 100
    world.deliver([event])
    assert world.available() == 75
