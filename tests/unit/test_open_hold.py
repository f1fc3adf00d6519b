"""An open hold as a context manager, from threads and from event loops."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import tillroll
from tillroll.ledger.pricing import Price, Rate

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Iterator[tillroll.Ledger]:
    with tillroll.open("memory://", clock=clock) as ledger:
        ledger.grant("acme", 100, request_id="order-1")
        yield ledger


def hold(ledger: tillroll.Ledger) -> tillroll.OpenHold:
    return ledger.hold("acme", units=40, request_id="job-1", expires_in="15m")


def left(ledger: tillroll.Ledger) -> tuple[int, int, int]:
    balance = ledger.balance("acme")
    return int(balance.available), int(balance.held), int(balance.used)


# ---------------------------------------------------------------- on a loop, opened by this attempt


async def guarded(error: BaseException | None) -> tuple[str, object]:
    """Open a hold, look at it, guard work that fails so, and tell how the hold ended."""
    async with tillroll.open_async("memory://") as ledger:
        await ledger.grant("acme", 100, request_id="order-1")
        hold = await ledger.hold("acme", units=40, request_id="job-1")
        assert not hold.replayed
        assert await hold.state() == "open"
        if error is None:
            async with hold:
                pass
        else:
            with pytest.raises(type(error)):
                async with hold:
                    raise error
        story = await ledger.explain("job-1")
        assert await hold.state() == story["outcome"]
        return await ledger.hold_state("acme", "job-1"), story["charged"]


def test_an_awaited_hold_guards_work_that_goes_well():
    assert asyncio.run(guarded(None)) == ("settled", "40")


def test_an_awaited_hold_is_released_by_an_exception():
    assert asyncio.run(guarded(ValueError("no image"))) == ("released", "0")


def test_an_awaited_hold_is_in_doubt_after_a_time_out():
    assert asyncio.run(guarded(TimeoutError())) == ("in_doubt", "0")


def test_an_awaited_hold_is_in_doubt_after_cancellation():
    assert asyncio.run(guarded(asyncio.CancelledError())) == ("in_doubt", "0")


# ---------------------------------------------------------------- what a hold is now


def test_a_state_follows_the_hold(ledger: tillroll.Ledger):
    held = hold(ledger)
    assert held.state == ledger.hold_state("acme", "job-1") == "open"
    held.settle(units=5, final=False, request_id="part-1")
    assert held.state == "open"
    held.mark_in_doubt()
    assert held.state == "in_doubt"
    ledger.resolve("acme", "job-1", "not_done")
    assert held.state == "released"


def test_a_state_sees_what_fell_due_before_anybody_books_it(ledger: tillroll.Ledger, clock: Clock):
    held = hold(ledger)
    clock.now += timedelta(minutes=15)
    assert held.state == "expired"
    assert ledger.explain("job-1")["outcome"] == "expired"
    assert [receipt.kind for receipt in ledger.statement("acme").receipts] == ["hold", "grant"]


def test_a_doubt_charged_at_its_deadline_is_settled(ledger: tillroll.Ledger, clock: Clock):
    held = hold(ledger)
    held.mark_in_doubt(deadline_in="1h", at_deadline="settle")
    clock.now += timedelta(hours=1)
    assert held.state == "settled"


@pytest.mark.parametrize("name", ["order-1", "job-1", "unheard-of"])
def test_only_a_hold_has_a_state(ledger: tillroll.Ledger, name: str):
    ledger.consume("acme", units=1, request_id="job-1")
    with pytest.raises(tillroll.NotFound, match=name):
        ledger.hold_state("acme", name)


def test_a_hold_of_another_account_is_not_found(ledger: tillroll.Ledger):
    hold(ledger)
    with pytest.raises(tillroll.NotFound):
        ledger.hold_state("beta", "job-1")


# ---------------------------------------------------------------- a repeat of a hold


def settle(ledger: tillroll.Ledger, _: Clock) -> None:
    ledger.settle("acme", "job-1", units=7)


def release(ledger: tillroll.Ledger, _: Clock) -> None:
    ledger.release("acme", "job-1")


def expire(_: tillroll.Ledger, clock: Clock) -> None:
    clock.now += timedelta(minutes=15)


ENDINGS = pytest.mark.parametrize(
    ("end", "state", "raised"),
    [
        (settle, "settled", tillroll.HoldFinalized),
        (release, "released", tillroll.HoldFinalized),
        (expire, "expired", tillroll.HoldExpired),
    ],
)
Ending = Callable[[tillroll.Ledger, Clock], None]
FAILURES = pytest.mark.parametrize("error", [ValueError("no image"), TimeoutError()], ids=repr)


@ENDINGS
def test_a_repeat_of_an_ended_hold_is_not_entered(
    ledger: tillroll.Ledger,
    clock: Clock,
    end: Ending,
    state: str,
    raised: type[tillroll.Refused],
):
    hold(ledger)
    end(ledger, clock)
    before = left(ledger)
    again = hold(ledger)
    assert (again.replayed, again.state) == (True, state)
    worked = False
    with pytest.raises(raised) as caught, again:
        worked = True
    assert not worked
    assert caught.value.details["state"] == state
    assert (caught.value.account, caught.value.request_id) == ("acme", "job-1")
    assert left(ledger) == before


@ENDINGS
def test_a_repeat_of_an_ended_hold_is_not_entered_on_a_loop(
    ledger: tillroll.Ledger,
    clock: Clock,
    end: Ending,
    state: str,
    raised: type[tillroll.Refused],
):
    hold(ledger)
    end(ledger, clock)
    before = left(ledger)
    worked = False

    async def repeat() -> None:
        nonlocal worked
        many = tillroll.AsyncLedger(ledger._engine)
        again = await many.hold("acme", units=40, request_id="job-1", expires_in="15m")
        assert (again.replayed, await again.state()) == (True, state)
        with pytest.raises(raised):
            async with again:
                worked = True
        with pytest.raises(raised):
            async with many.hold("acme", units=40, request_id="job-1", expires_in="15m"):
                worked = True

    asyncio.run(repeat())
    assert not worked
    assert left(ledger) == before


@FAILURES
def test_a_repeat_that_fails_leaves_the_hold_to_the_first_attempt(
    ledger: tillroll.Ledger, error: Exception
):
    first = hold(ledger)
    with pytest.raises(type(error)) as caught, hold(ledger):
        raise error
    assert "left to it" in caught.value.__notes__[-1]
    assert (first.state, left(ledger)) == ("open", (60, 40, 0))
    first.settle(units=30)
    assert left(ledger) == (70, 0, 30)


@FAILURES
def test_a_repeat_that_fails_on_a_loop_leaves_the_hold_to_the_first_attempt(error: Exception):
    async def both() -> None:
        async with tillroll.open_async("memory://") as ledger:
            await ledger.grant("acme", 100, request_id="order-1")
            first = await ledger.hold("acme", units=40, request_id="job-1")
            with pytest.raises(type(error)) as caught:
                async with ledger.hold("acme", units=40, request_id="job-1"):
                    raise error
            assert "left to it" in caught.value.__notes__[-1]
            assert await first.state() == "open"
            await first.settle(units=30)
            assert (await ledger.balance("acme")).used == 30

    asyncio.run(both())


def test_a_repeat_that_goes_well_does_the_work_of_an_attempt_that_died(ledger: tillroll.Ledger):
    hold(ledger)
    with hold(ledger) as again:
        again.settle(units=30)
    assert left(ledger) == (70, 0, 30)


def test_a_repeat_of_a_hold_in_doubt_may_settle_the_doubt(ledger: tillroll.Ledger):
    with pytest.raises(TimeoutError), hold(ledger):
        raise TimeoutError
    with hold(ledger) as again:
        assert again.state == "in_doubt"
    assert (again.state, left(ledger)) == ("settled", (60, 0, 40))


# ---------------------------------------------------------------- what a failed settle means


def fail_after(act: Callable[[], object]) -> None:
    act()
    raise ValueError("no image")


def test_work_whose_settle_failed_is_in_doubt_and_not_given_away(ledger: tillroll.Ledger):
    with pytest.raises(tillroll.SettleExceedsHold), hold(ledger) as held:
        held.settle(units=50, above="refuse")
    assert (held.state, left(ledger)) == ("in_doubt", (60, 40, 0))
    ledger.resolve("acme", "job-1", "done")
    assert left(ledger) == (60, 0, 40)


def test_work_whose_settle_failed_on_a_loop_is_in_doubt():
    async def work() -> str:
        async with tillroll.open_async("memory://") as ledger:
            await ledger.grant("acme", 100, request_id="order-1")
            with pytest.raises(tillroll.SettleExceedsHold):
                async with ledger.hold("acme", units=40, request_id="job-1") as held:
                    await held.settle(units=50, above="refuse")
            return await held.state()

    assert asyncio.run(work()) == "in_doubt"


def test_what_fails_after_a_part_was_settled_releases_the_rest(ledger: tillroll.Ledger):
    with pytest.raises(ValueError, match="no image"), hold(ledger) as held:
        fail_after(lambda: held.settle(units=5, final=False))
    assert (held.state, left(ledger)) == ("released", (95, 0, 5))


def test_the_works_own_exception_goes_on_where_the_hold_cannot_be_ended(ledger: tillroll.Ledger):
    with pytest.raises(ValueError, match="no image") as caught, hold(ledger):
        fail_after(ledger.close)
    assert "could not be ended: the ledger is closed" in caught.value.__notes__[-1]


def test_a_task_cancelled_before_its_work_leaves_no_hold(tmp_path):
    async def main() -> list[str]:
        async with tillroll.open_async(tmp_path / "credits.db") as ledger:
            await ledger.grant("acme", 100)

            async def work(number: int) -> None:
                async with ledger.hold("acme", units=1, request_id=f"h{number}"):
                    raise AssertionError("the work began")

            tasks = [asyncio.ensure_future(work(number)) for number in range(5)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(500):
                released = (await ledger.statement("acme", kinds="release")).receipts
                if len(released) == len(tasks):
                    break
                await asyncio.sleep(0.01)
            return sorted(receipt.ref or "" for receipt in released)

    assert asyncio.run(main()) == ["h0", "h1", "h2", "h3", "h4"]


def test_the_same_request_written_differently_is_a_repeat():
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 100)
        first = ledger.consume("acme", units=1, request_id="r")
        assert ledger.consume("acme", units="1.0", wallet="credits", request_id="r") == first
        assert ledger.consume("acme", units=1, metadata={}, tags={}, request_id="r") == first


def test_a_settle_by_meters_is_repeated_under_another_id():
    with tillroll.open("memory://") as ledger:
        price = Price("text", rates={"input_tokens": Rate(units=Decimal(1))})
        ledger.apply_prices([price], author="t", reason="test")
        ledger.grant("acme", 100)
        ledger.hold("acme", "text", units=50, request_id="h")
        first = ledger.settle("acme", "h", meters={"input_tokens": 30}, request_id="s1")
        again = ledger.settle("acme", "h", meters={"input_tokens": 30}, request_id="s2")
        assert (again.seq, again.replayed) == (first.seq, True)
        with pytest.raises(tillroll.HoldFinalized):
            ledger.settle("acme", "h", meters={"input_tokens": 31}, request_id="s3")


def test_an_explanation_does_not_move_with_who_reads_it():
    clock = Clock()
    with tillroll.open("memory://", clock=clock) as ledger:
        ledger.grant("acme", 100)
        ledger.hold("acme", units=50, expires_in="10m", request_id="h")
        said = []
        for hours in (2, 5):
            clock.now = NOON + timedelta(hours=hours)
            said.append(ledger.explain("h")["sentences"][1])
        ledger.book_due()
        said.append(ledger.explain("h")["sentences"][1])
        assert len(set(said)) == 1
        assert said[0].startswith("2026-07-01T12:10:00Z: ")
