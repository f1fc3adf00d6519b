"""What carries the verbs of a joined ledger: no queue, no commit, the caller's own transaction.

See docs/guides/join.md and decisions/0010.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from tillroll.engine import act_in, answer_in
from tillroll.ledger.book import Answer
from tillroll.ledger.errors import (
    InvalidInput,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    TillrollError,
)
from tillroll.stores.base import persist
from tillroll.stores.hosts import JoinedStore, host_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from tillroll.ledger.commands import Request
    from tillroll.stores.base import Store, Writer
    from tillroll.stores.bridge import Bridge

T = TypeVar("T")


class Carrier(Protocol):
    """What a ledger needs below it: the `Engine`, or a `Joined`."""

    @property
    def store(self) -> Store:
        """Where the ledgers are kept."""

    @property
    def project(self) -> str:
        """The isolation boundary."""

    @property
    def clock(self) -> Callable[[], int]:
        """Returns microseconds since 1970."""

    @property
    def bridge(self) -> Bridge | None:
        """How to reach the event loop that owns the connection, where one does."""

    def execute(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer these requests, blocking until they are."""

    def submit(
        self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[list[Answer]]:
        """Answer these requests for a caller on `loop`."""

    def perform(self, act: Callable[[Writer], T]) -> T:
        """Do something else within a database transaction."""

    def close(self) -> None:
        """Turn new requests away."""


class Joined:
    """Answers requests within the host's transaction, each batch whole or not at all."""

    def __init__(
        self, store: Store, project: str, clock: Callable[[], int], bridge: Bridge | None
    ) -> None:
        """Answer through this store, whose transactions are parts of the host's."""
        self.store = store
        self.project = project
        self.clock = clock
        self.bridge = bridge
        self._turn = threading.Lock()

    def execute(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer these requests; whether the answers last is decided by the host's commit."""
        try:
            return self._write(requests)
        except StoreCorrupt as problem:
            failure: StoreError = problem  # one account's damage is not its neighbours'
        except StoreError as problem:
            return [Answer(problem)] * len(requests)
        except TillrollError:
            raise
        except Exception as problem:  # noqa: BLE001 - reported to its caller as it is
            failure = StoreUnavailable(f"the request could not be carried out: {problem!r}")
            failure.__cause__ = problem
        if len(requests) == 1:
            return [Answer(failure)]
        return [answer for request in requests for answer in self.execute([request])]

    def _write(self, requests: Sequence[Request]) -> list[Answer]:
        return self._persist(lambda tx: answer_in(tx, self.store.scale, requests, self.clock()))

    def submit(
        self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[list[Answer]]:
        """Answer these requests for a caller on `loop`, one after another."""
        assert self.bridge is not None
        return loop.create_task(self.bridge.away(partial(self.execute, requests)))

    def perform(self, act: Callable[[Writer], T]) -> T:
        """Do something else within the host's transaction."""
        return self._persist(partial(act_in, act=act))

    def _persist(self, act: Callable[[Writer], T]) -> T:
        with self._turn:
            return persist(self.store, act)

    def close(self) -> None:
        """Do nothing: the connection is the host's."""


def joined(carrier: Carrier, connection: object, *, asynchronous: bool) -> Joined:
    """Return what carries a ledger's verbs into the transactions of a host's connection.

    Raises:
        InvalidInput: It cannot be joined; the message says what can.
    """
    store = carrier.store
    if isinstance(store, JoinedStore):
        raise InvalidInput("this ledger is joined already: join from the one that was opened")
    kind = store.url.partition(":")[0]
    if kind == "memory":
        raise InvalidInput("a ledger in memory has no database that another could share")
    host = host_of(connection, asynchronous=asynchronous)
    bridge = None
    if asynchronous:
        from tillroll.stores.bridge import Bridge  # noqa: PLC0415 - asyncio is slow to import

        bridge = Bridge()
    if kind == "sqlite":
        from tillroll.stores.sqlite_joined import JoinedSqlite  # noqa: PLC0415 - as in `opening`

        place: JoinedStore = JoinedSqlite(store, host, bridge)
    else:
        from tillroll.stores.postgres_joined import JoinedPostgres  # noqa: PLC0415 - an extra

        place = JoinedPostgres(store, host, bridge)
    return Joined(place, carrier.project, carrier.clock, bridge)


__all__ = ["Carrier", "Joined", "joined"]
