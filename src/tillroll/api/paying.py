"""The desks of a service, and the threads that ask payment providers on.

A provider that hangs holds a thread for as long as its client waits. Those threads are none that
reads, keys or `/readyz` wait for, and there is a bound to them: whoever comes when all are taken is
told so at once. What providers tell has threads of its own, so that a payment still arrives while
nobody can check out.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tillroll.ledger.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tillroll.payments.desk import Desk

P = ParamSpec("P")
T = TypeVar("T")

# Checkouts at once. Where the provider answers within half a second, that is some 60 a second.
ASKED_MAX = 32
TOLD_MAX = 64  # webhooks of providers at once: each is a thread that writes


class Threads:
    """So many threads at the most, and nobody waits for one."""

    def __init__(self, most: int, what: str) -> None:
        """Have this many threads, to do this, once they are needed."""
        self.most = most
        self._what = what
        self._free = BoundedSemaphore(most)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="tillroll-pay")

    async def run(self, act: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
        """Do something on one of the threads; it goes on where the caller hangs up.

        Raises:
            Overloaded: All of them are taken. Nothing was asked or written.
        """
        if not self._free.acquire(blocking=False):
            raise Overloaded(
                f"{self.most} {self._what} are under way, as many as may be, since the payment "
                "provider is slow; nothing was asked or written: ask again"
            )
        try:
            done = self._pool.submit(act, *args, **how)
        except BaseException:
            self._free.release()
            raise
        # Also called where it is cancelled before it began.
        done.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Wait for what is under way; that is bounded by the providers' own time-outs."""
        self._pool.shutdown(wait=True)


class Paying:
    """The desks of a service.

    Attributes:
        desks: Where ledgers meet their payment providers.
        asked: The threads that ask providers.
        told: The threads that take in what providers tell.
    """

    def __init__(self, desks: Sequence[Desk]) -> None:
        """Have these desks; no thread is there before it is needed."""
        self.desks = desks
        self.asked = Threads(ASKED_MAX, "requests to payment providers")
        self.told = Threads(TOLD_MAX, "webhooks of payment providers")

    def close(self) -> None:
        """Wait for what is under way."""
        self.asked.close()
        self.told.close()


__all__ = ["Paying", "Threads"]
