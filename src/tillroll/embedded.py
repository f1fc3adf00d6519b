"""The ledger in your process: `Ledger` for threads, `AsyncLedger` for event loops.

Both carry the verbs of `ledger.verbs` to one `Engine` and turn its answers into receipts or
exceptions. What is read comes from `queries`.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import time
import weakref
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from tillroll import queries, quotes
from tillroll.engine import BULK_MAX, WAITING_MAX, Engine, now
from tillroll.ledger import calendar
from tillroll.ledger.commands import Request
from tillroll.ledger.core import Answer
from tillroll.ledger.errors import (
    REFUSALS,
    HoldExpired,
    HoldFinalized,
    InvalidInput,
    Refused,
    TillrollError,
)
from tillroll.ledger.types import Entry, Refusal
from tillroll.ledger.units import Units, to_decimal
from tillroll.ledger.verbs import Meter, Verbs
from tillroll.queries import Receipt
from tillroll.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from tillroll.stores.base import Store

P = ParamSpec("P")
R = TypeVar("R")

# Time-outs of the guarded code: what asyncio, sockets, httpx and urllib3 raise derives from these,
# or is named so.
_TIMEOUT_NAMES = ("Timeout", "TimeoutException", "APITimeoutError", "ReadTimeout")


def new_id() -> str:
    """Return a UUIDv7: unique, and ordered by time so that the index of ids grows at its end."""
    millis = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    high = (millis & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (tail >> 64) & 0x0FFF
    text = f"{high:016x}{(tail & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def open_store(url: str | os.PathLike[str], *, scale: int | None = None) -> Store:
    """Return the store of a URL: `sqlite:///file.db`, `memory://`, or a path to a SQLite file.

    Raises:
        InvalidInput: No such kind of store.
        StoreUnavailable: The store cannot be used; nothing was written.
    """
    text = os.fspath(url)
    if isinstance(url, str) and text == "memory://":
        return MemoryStore(scale=scale)
    if isinstance(url, str) and text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    elif isinstance(url, str) and "://" in text:
        raise InvalidInput(
            f"no store for {text.split('://')[0]!r}: use sqlite:///file.db or memory://"
        )
    if text in ("", ":memory:"):
        raise InvalidInput("name a file, such as sqlite:///credits.db, or use memory://")
    from tillroll.stores.sqlite import SqliteStore  # noqa: PLC0415 - only who uses it loads it

    return SqliteStore(text, scale=scale)


def _answer(ledger: _Base, answer: Answer, request: Request) -> Receipt:
    """Return the receipt of an answer, or raise what it says instead."""
    outcome = answer.outcome
    if isinstance(outcome, Entry):
        return Receipt(outcome, ledger.scale, request.account, replayed=answer.replayed)
    raise _exception(ledger, answer, request)


def _exception(ledger: _Base, answer: Answer, request: Request) -> TillrollError:
    outcome = answer.outcome
    if isinstance(outcome, Refusal):
        return refused(outcome, request.account, ledger.scale, replayed=answer.replayed)
    assert isinstance(outcome, TillrollError)
    if outcome.request_id != request.request_id:
        # One error may answer a whole batch; each caller gets its own with its own id.
        cause, outcome = outcome, type(outcome)(*outcome.args)
        outcome.__cause__ = cause
        outcome.request_id = request.request_id
    return outcome


def refused(refusal: Refusal, account: str, scale: int, *, replayed: bool) -> Refused:
    """Return the exception of a refusal, with exact decimals."""

    def exact(units: int | None) -> object:
        return None if units is None else to_decimal(units, scale)

    return REFUSALS[refusal.code](
        refusal.message,
        needed=exact(refusal.needed),  # type: ignore[arg-type]  # Decimal or None
        available=exact(refusal.available),  # type: ignore[arg-type]
        held=exact(refusal.held),  # type: ignore[arg-type]
        tightest=refusal.tightest,
        ways_out=refusal.ways_out,
        details=refusal.details,
        request_id=refusal.request_id,
        account=account,
        seq=refusal.seq,
        replayed=replayed,
    )


class Outcome:
    """What became of one item of `consume_many`.

    Attributes:
        receipt: The receipt, None where there is none.
        error: The exception that the single call would have raised, None where it went well.
        status: "created", "replayed", "refused", "conflict", "invalid", "failed" or "unknown".
    """

    __slots__ = ("error", "receipt", "status")

    def __init__(self, receipt: Receipt | None, error: TillrollError | None) -> None:
        """Hold a receipt or an error."""
        self.receipt = receipt
        self.error = error
        self.status = _status(receipt, error)

    @property
    def ok(self) -> bool:
        """Return whether there is a receipt."""
        return self.receipt is not None

    def __repr__(self) -> str:
        """Show the status and what stands behind it."""
        return f"<Outcome {self.status} {self.receipt or self.error!r}>"


def _status(receipt: Receipt | None, error: TillrollError | None) -> str:
    if receipt is not None:
        return "replayed" if receipt.replayed else "created"
    if isinstance(error, Refused):
        return "refused"
    assert error is not None
    known = {"idempotency_conflict": "conflict", "invalid_input": "invalid"}
    return known.get(error.code, "unknown" if error.written == "unknown" else "failed")


class _Base:
    """What the two ledgers share: one engine, one way to build requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.project = engine.project
        self.scale = engine.store.scale
        self._verbs = Verbs(
            engine.project,
            engine.store.scale,
            new_id,
            functools.partial(quotes.read, engine.store.secret),
        )

    @property
    def store(self) -> Store:
        """The store behind this ledger."""
        return self._engine.store

    def _batch(self, items: Iterable[Mapping[str, object]]) -> list[Request | TillrollError]:
        """Build one request an item; an item that is malformed becomes its error."""
        built: list[Request | TillrollError] = []
        for item in items:
            try:
                built.append(self._verbs.consume(**item))  # type: ignore[arg-type]  # checked there
            except TillrollError as problem:
                built.append(problem)
            except TypeError as problem:
                built.append(InvalidInput(str(problem).replace("Verbs.", "")))
            if len(built) > BULK_MAX:
                raise InvalidInput(f"a batch may have {BULK_MAX} items at the most")
        return built

    def _outcomes(
        self, built: list[Request | TillrollError], answers: Sequence[Answer]
    ) -> list[Outcome]:
        """Put answers and errors back in the order of the items."""
        rest = iter(answers)
        outcomes = []
        for item in built:
            if not isinstance(item, Request):
                outcomes.append(Outcome(None, item))
                continue
            answer = next(rest)
            if isinstance(answer.outcome, Entry):
                outcomes.append(Outcome(_answer(self, answer, item), None))
            else:
                outcomes.append(Outcome(None, _exception(self, answer, item)))
        return outcomes


def _sync(build: Callable[Concatenate[Verbs, P], Request]) -> Callable[Concatenate[Ledger, P], Receipt]:
    """Make a verb of `Ledger` that blocks until the answer is committed."""

    @functools.wraps(build)
    def verb(self: Ledger, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        request = build(self._verbs, *args, **kwargs)
        return _answer(self, self._engine.execute((request,))[0], request)

    verb.__annotations__ = {**build.__annotations__, "return": Receipt}
    return verb


def _async(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[AsyncLedger, P], Awaitable[Receipt]]:
    """Make a verb of `AsyncLedger` that awaits the answer."""

    @functools.wraps(build)
    async def verb(self: AsyncLedger, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        request = build(self._verbs, *args, **kwargs)
        answers = await self._engine.submit((request,), asyncio.get_running_loop())
        return _answer(self, answers[0], request)

    verb.__annotations__ = {**build.__annotations__, "return": Receipt}
    return verb


class Ledger(_Base):
    """Prepaid credits, one verb a method; safe to share between threads.

    Every verb answers with a `Receipt` or raises; every error says whether anything was written.
    """

    grant = _sync(Verbs.grant)
    void = _sync(Verbs.void)
    adjust = _sync(Verbs.adjust)
    consume = _sync(Verbs.consume)
    extend = _sync(Verbs.extend)
    settle = _sync(Verbs.settle)
    release = _sync(Verbs.release)
    mark_in_doubt = _sync(Verbs.mark_in_doubt)
    resolve = _sync(Verbs.resolve)
    refund = _sync(Verbs.refund)
    freeze = _sync(Verbs.freeze)
    unfreeze = _sync(Verbs.unfreeze)
    close_account = _sync(Verbs.close_account)
    set_overdraft = _sync(Verbs.set_overdraft)
    set_budget = _sync(Verbs.set_budget)
    remove_budget = _sync(Verbs.remove_budget)
    set_recurring = _sync(Verbs.set_recurring)
    stop_recurring = _sync(Verbs.stop_recurring)
    configure = _sync(Verbs.configure)
