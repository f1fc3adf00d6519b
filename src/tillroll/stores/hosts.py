"""Whose transaction is joined: from what a caller holds to the connection of its driver.

A plain connection is what it is. SQLAlchemy and Django hold one, and are asked for it each time:
after their commit it may be another, and a transaction that they do not know of is one that they
do not commit. They are told by their names and methods; none of them is ever imported.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tillroll.ledger.errors import InvalidInput, StoreUnavailable, TillrollError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tillroll.stores.base import Reader, Store, Writer
    from tillroll.stores.bridge import Bridge

ALONE = "no transaction is under way, so each statement would be committed by itself"
BEGIN = f"{ALONE}: begin one, and use the joined ledger within it; nothing was written"


class Host:
    """A plain connection of a driver, and whatever holds one.

    Attributes:
        given: What the caller gave.
        plain: Whether that is the driver's connection itself.
        asynchronous: Whether it has to be awaited.
    """

    plain = True

    def __init__(self, given: Any) -> None:
        """Reach the connection through what the caller gave."""
        self.given = given
        self.asynchronous = inspect.iscoroutinefunction(getattr(given, "commit", None))

    def connection(self) -> Any:
        """Return the driver's connection, the host's transaction under way if it can tell."""
        return self.given

    async def awaited(self) -> Any:
        """Return the driver's connection from within its event loop."""
        return self.given


class _Sqlalchemy(Host):
    """A session, or a connection; what it does not know to be begun, it would not commit."""

    plain = False

    def connection(self) -> Any:
        given = self.given
        connection = given.connection() if hasattr(given, "get_bind") else given
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.driver_connection

    async def awaited(self) -> Any:
        given = self.given
        connection = await given.connection() if hasattr(given, "get_bind") else given
        if not connection.in_transaction():
            await connection.begin()
        return (await connection.get_raw_connection()).driver_connection


class _Django(Host):
    """`django.db.connection`, or one of `connections`."""

    plain = False

    def connection(self) -> Any:
        given = self.given
        given.ensure_connection()
        if given.get_autocommit() and not given.in_atomic_block:
            raise InvalidInput(f"{ALONE}: join within transaction.atomic(); nothing was written")
        if given.needs_rollback:
            raise StoreUnavailable(
                "an error before has doomed this atomic block: leave it; nothing was written"
            )
        return given.connection


def host_of(given: object, *, asynchronous: bool) -> Host:
    """Return how to reach the driver's connection behind what a caller joins.

    Raises:
        InvalidInput: It is not a connection, or one for the other kind of ledger.
    """
    if any(kind.__module__.split(".")[0] == "sqlalchemy" for kind in type(given).__mro__):
        host: Host = _Sqlalchemy(given)
    elif hasattr(given, "in_atomic_block"):
        host = _Django(given)
    else:
        host = Host(given)
    if not callable(getattr(given, "commit", None)):
        raise InvalidInput(f"{_kind(given)} is no connection that can be joined")
    if host.asynchronous and not asynchronous:
        raise InvalidInput(
            f"{_kind(given)} has to be awaited: join it from an AsyncLedger (tillroll.open_async)"
        )
    if asynchronous and not host.asynchronous:
        raise InvalidInput(
            f"{_kind(given)} blocks: join it from a Ledger (tillroll.open, or `.sync` of this one)"
        )
    return host


def wrong_driver(found: object, wanted: str) -> InvalidInput:
    """Return the error that says which kind of connection leads to this ledger."""
    return InvalidInput(f"{_kind(found)} does not lead to this ledger: join {wanted}")


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class JoinedStore:
    """A ledger's store, seen from within a host's transaction; the base of each driver's.

    Nothing is remembered from one use to the next: a rollback, which nobody tells us of, would
    make it wrong. What is about the store as a whole is left to the store.
    """

    def __init__(self, origin: Store, host: Host, bridge: Bridge | None) -> None:
        """Join the transactions of this host to the ledger in `origin`."""
        self.url = origin.url
        self.scale = origin.scale
        self.secret = origin.secret
        self._origin = origin
        self._host = host
        self._bridge = bridge

    def write(self) -> AbstractContextManager[Writer]:
        """Write within the host's transaction: all or, on an exception, nothing."""
        raise NotImplementedError

    def read(self) -> AbstractContextManager[Reader]:
        """Read what the host's transaction sees."""
        raise NotImplementedError

    def read_primary(self) -> AbstractContextManager[Reader]:
        """Read what the host's transaction sees."""
        return self.read()

    def _reach(self) -> Any:
        """Return the driver's connection; what the host says against it is said in our words."""
        try:
            if self._bridge is None:
                return self._host.connection()
            return self._bridge.run(self._host.awaited)
        except TillrollError:
            raise
        except Exception as problem:
            raise StoreUnavailable(
                f"the host gave no connection ({type(problem).__name__}: {problem}); "
                f"nothing was written"
            ) from problem

    def check(self) -> list[str]:
        """Return what the database itself finds wrong with what is committed."""
        return self._origin.check()

    def facts(self) -> list[tuple[str, str, bool]]:
        """Return what `doctor` wants to know of the ledger's own store."""
        return self._origin.facts()

    def wait_for_writers(self) -> None:
        """Wait for whoever writes to the ledger's own store."""
        self._origin.wait_for_writers()

    def adopt(self, secret: bytes) -> None:
        """Leave it to the ledger's own store."""
        self._origin.adopt(secret)

    def recover(self) -> None:
        """Do nothing: no commit is ours."""

    def before_fork(self) -> None:
        """Do nothing: the connection is the host's."""

    def fork_done(self) -> None:
        """Do nothing: the connection is the host's."""

    def after_fork(self) -> None:
        """Do nothing: the connection is the host's."""

    def close(self) -> None:
        """Do nothing: the connection is the host's."""
