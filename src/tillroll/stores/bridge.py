"""From a worker thread to the event loop that owns a connection, and back.

The drivers' statements are written once, for threads. Where the host's connection has to be
awaited they run on a worker thread, which has the loop do each exchange with the database.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any, TypeVar

from tillroll.ledger.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Bridge:
    """One piece of work at a time, on a thread, on behalf of the tasks of one loop."""

    def __init__(self) -> None:
        """Belong to the loop that runs here.

        Raises:
            InvalidInput: No loop runs here.
        """
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidInput("join from within the event loop of the connection") from None
        self._turn = asyncio.Lock()
        self._line = asyncio.Lock()
        self._exchange: concurrent.futures.Future[Any] | None = None
        self._cancelled = False

    async def away(self, work: Callable[[], T]) -> T:
        """Do the work on a thread, when its turn has come.

        A task that is cancelled gives up what the work waits for, but goes on only when the work
        has ended: nothing of it may reach the database after the host's rollback.
        """
        async with self._turn:
            self._cancelled = False
            doing = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(doing)
            except asyncio.CancelledError:
                self._cancelled = True
                if self._exchange is not None:
                    self._exchange.cancel()
                while not doing.done():
                    try:
                        await asyncio.wait([doing])
                    except asyncio.CancelledError:
                        continue  # it is raised below, once the work has ended
                if not doing.cancelled():
                    doing.exception()  # looked at: the caller is told of the cancelling instead
                raise

    def run(
        self, start: Callable[..., Coroutine[Any, Any, T]], *args: object, last: bool = False
    ) -> T:
        """Have the loop run this, and wait for it; for a thread that `away` has started.

        Args:
            start: Makes the coroutine.
            args: What `start` is called with.
            last: It cleans up, and so runs for a task that was cancelled, too.
        """
        self._refuse_loop()
        exchange = asyncio.run_coroutine_threadsafe(self._alone(start, *args), self._loop)
        if not last:
            self._exchange = exchange
            if self._cancelled:
                exchange.cancel()
        try:
            return exchange.result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        finally:
            self._exchange = None

    async def _alone(self, start: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        async with self._line:  # what was cancelled first reads what the server still says to it
            return await start(*args)

    def _refuse_loop(self) -> None:
        """Refuse to wait for the very loop that runs here."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return
        if here is self._loop:
            raise InvalidInput(
                "this would wait for the event loop that it runs on: await the AsyncLedger"
            )
