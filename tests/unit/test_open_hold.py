"""An open hold as a context manager, from threads and from event loops."""

import asyncio

import pytest

import tillroll


async def guarded(error: BaseException | None) -> dict[str, object]:
    """Open a hold, look at it, guard work that fails so, and tell how the hold ended."""
    async with tillroll.open_async("memory://") as ledger:
        await ledger.grant("acme", 100, request_id="order-1")
        hold = await ledger.hold("acme", units=40, request_id="job-1")
        assert not hold.replayed
        if error is None:
            async with hold:
                pass
        else:
            with pytest.raises(type(error)):
                async with hold:
                    raise error
        return ledger.explain("job-1")


def test_an_awaited_hold_guards_work_that_goes_well():
    story = asyncio.run(guarded(None))
    assert (story["outcome"], story["charged"]) == ("settled", "40")


def test_an_awaited_hold_is_released_by_an_exception():
    story = asyncio.run(guarded(ValueError("no image")))
    assert (story["outcome"], story["charged"]) == ("released", "0")


def test_an_awaited_hold_is_in_doubt_after_a_time_out():
    story = asyncio.run(guarded(TimeoutError()))
    assert (story["outcome"], story["charged"]) == ("in_doubt", "0")


def test_an_awaited_hold_is_in_doubt_after_cancellation():
    story = asyncio.run(guarded(asyncio.CancelledError()))
    assert story["outcome"] == "in_doubt"
