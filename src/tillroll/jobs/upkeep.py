"""Upkeep beside the calls: what fell due is booked, so that nothing waits for a next request.

No decision and no balance needs it: each brings its account to the moment by itself. Several
processes may do it at once, each under the account's lock.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from tillroll.embedded import Ledger
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import TillrollError
from tillroll.ledger.types import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.engine import Engine

LOOKED_AT_MAX = 1_000  # accounts of a project, those first that something falls due on first


class Looked(NamedTuple):
    """What a round of upkeep found.

    Attributes:
        booked: How many accounts something was booked on.
        in_doubt: How many holds nobody knows the outcome of, on the accounts looked at.
        oldest_due_seconds: For how long the account that waits longest has been due.
    """

    booked: int
    in_doubt: int
    oldest_due_seconds: float


class Upkeep:
    """Books what fell due, round after round, and says when it last did.

    Attributes:
        beat_at: When the last round ended well, by `time.monotonic`; None before the first.
        failed: How many rounds failed since one went well.
    """

    def __init__(
        self, engine: Engine, seconds: float, tell: Callable[[Looked | TillrollError], None]
    ) -> None:
        """Keep up this engine's ledgers, a round every so many seconds."""
        self._engine = engine
        self._seconds = seconds
        self._tell = tell
        self.beat_at: float | None = None
        self.failed = 0

    def is_alive(self) -> bool:
        """Return whether rounds are being done; the first may still be under way."""
        if self.beat_at is None:
            return self.failed == 0
        return time.monotonic() - self.beat_at < 3 * self._seconds + 10

    async def run(self) -> None:
        """Do rounds until cancelled; one that fails is told and tried again."""
        while True:
            try:
                looked = await asyncio.to_thread(self.round)
            except TillrollError as problem:
                self.failed += 1
                self._tell(problem)
            else:
                self.beat_at, self.failed = time.monotonic(), 0
                self._tell(looked)
            await asyncio.sleep(self._seconds)

    def round(self) -> Looked:
        """Book what fell due in every project, and measure what is there."""
        store = self._engine.store
        with store.read() as reader:
            projects = reader.projects()
        booked = in_doubt = 0
        oldest = 0.0
        for project in projects:
            at = self._engine.clock()
            with store.read() as reader:
                names = reader.due(project, NEVER - 1, LOOKED_AT_MAX)
                accounts = reader.accounts([(account_id(project, name), name) for name in names])
            for account in accounts.values():
                oldest = max(oldest, (at - account.next_due_at) / 1e6)
                in_doubt += sum(hold.in_doubt for hold in account.holds.values())
            booked += Ledger(self._engine, project).book_due()
        return Looked(booked, in_doubt, oldest)
