"""Who follows which account: woken by the batch that changes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tillroll.ledger.errors import Overloaded

if TYPE_CHECKING:
    from tillroll.engine import Batch

FOLLOWERS_MAX = 1_000


class Followers:
    """Who follows which account in this process."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._by_account: dict[bytes, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self.stopping = False

    def notice(self, batch: Batch) -> None:
        """Wake who follows an account of this batch; called by the thread that wrote it."""
        if not self._by_account:
            return
        assert self._loop is not None
        for owner in {request.account_id for request in batch.requests} & self._by_account.keys():
            for event in tuple(self._by_account.get(owner, ())):
                self._loop.call_soon_threadsafe(event.set)

    def join(self, owner: bytes) -> asyncio.Event:
        """Return an event that is set when an account may have changed.

        Raises:
            Overloaded: As many as may be are following already.
        """
        if self._count >= FOLLOWERS_MAX or self.stopping:
            raise Overloaded("as many streams as may be are open; ask for the balance instead")
        self._loop = asyncio.get_running_loop()
        self._count += 1
        event = asyncio.Event()
        self._by_account.setdefault(owner, set()).add(event)
        return event

    def leave(self, owner: bytes, event: asyncio.Event) -> None:
        """Follow no longer."""
        self._count -= 1
        followers = self._by_account[owner]
        followers.discard(event)
        if not followers:
            del self._by_account[owner]

    def stop(self) -> None:
        """End every stream, so that the service can end."""
        self.stopping = True
        for followers in self._by_account.values():
            for event in followers:
                event.set()
