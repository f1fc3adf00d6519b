"""`Ledger` for threads and `AsyncLedger` for event loops: the verbs, carried to the engine.

Both carry the verbs of `ledger.verbs` to one `Engine` and turn its answers into receipts or
exceptions; they differ only in how they wait. An opened hold is a context manager that always
ends the hold.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack

from tillroll import queries
from tillroll.embedded.answers import Outcome, exception_of, new_id, receipt_of
from tillroll.embedded.reads import Reads
from tillroll.ledger import quotes
from tillroll.ledger.commands import Request
from tillroll.ledger.errors import HoldExpired, HoldFinalized, InvalidInput, TillrollError
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import Entry
from tillroll.ledger.values import BULK_MAX
from tillroll.ledger.verbs import Verbs, batch_of, item_of, misnamed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal
    from types import TracebackType

    from tillroll.embedded.joined import Carrier
    from tillroll.ledger.book import Answer
    from tillroll.ledger.commands import Above
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import How, Meter, Span

P = ParamSpec("P")
R = TypeVar("R")


def _sync(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[Ledger, P], Receipt]:
    """Make a verb of `Ledger` that blocks until the answer is committed."""

    @functools.wraps(build)
    def verb(self: Ledger, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        return self._ask(build(self._verbs, *args, **kwargs))

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _async(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[AsyncLedger, P], Coroutine[Any, Any, Receipt]]:
    """Make a verb of `AsyncLedger` that awaits the answer."""

    @functools.wraps(build)
    async def verb(self: AsyncLedger, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        request = build(self._verbs, *args, **kwargs)
        answers = await self._engine.submit((request,), self._running_loop())
        return receipt_of(answers[0], request, self.scale)

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _sync_hold(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[Ledger, P], OpenHold]:
    """Make `Ledger.hold`, whose receipt is also a context manager."""

    @functools.wraps(build)
    def verb(self: Ledger, *args: P.args, **kwargs: P.kwargs) -> OpenHold:
        return OpenHold(self, self._ask(build(self._verbs, *args, **kwargs)))

    verb.__annotations__ = {**build.__annotations__, "return": "OpenHold"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _async_hold(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[AsyncLedger, P], PendingHold]:
    """Make `AsyncLedger.hold`, to be awaited or entered with `async with`."""

    @functools.wraps(build)
    def verb(self: AsyncLedger, *args: P.args, **kwargs: P.kwargs) -> PendingHold:
        request = build(self._verbs, *args, **kwargs)
        return PendingHold(self, functools.partial(self._ask, request))

    verb.__annotations__ = {**build.__annotations__, "return": "PendingHold"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _preview(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[Preview, P], Receipt]:
    """Make a verb of `Preview` that decides and writes nothing."""

    @functools.wraps(build)
    def verb(self: Preview, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        return self._ask(build(self._verbs, *args, **kwargs))

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _threaded(
    read: Callable[Concatenate[Reads, P], R],
) -> Callable[Concatenate[AsyncLedger, P], Coroutine[Any, Any, R]]:
    """Make a read of `AsyncLedger` that runs on a thread, so that the loop goes on meanwhile."""

    @functools.wraps(read)
    async def awaited(self: AsyncLedger, *args: P.args, **kwargs: P.kwargs) -> R:
        work = functools.partial(read, self._reads, *args, **kwargs)
        bridge = self._engine.bridge
        if bridge is not None:
            return await bridge.away(work)
        import asyncio  # noqa: PLC0415 - see AsyncLedger

        return await asyncio.to_thread(work)

    return awaited  # type: ignore[return-value]  # functools.wraps hides it


def verbs_of(engine: Carrier, project: str | None = None, *, ours: bool = False) -> Verbs:
    """Return the verbs of one project, the carrier's own if left out; see `Verbs`."""
    read_quote = functools.partial(quotes.read, engine.store.secret)
    return Verbs(project or engine.project, engine.store.scale, new_id, read_quote, ours=ours)


class _Batches:
    """What both ledgers need to carry many items at once."""

    scale: int
    _verbs: Verbs

    def _batch(self, items: Iterable[Mapping[str, object]]) -> list[Request | TillrollError]:
        """Build one request an item; an item that is malformed becomes its error."""
        built: list[Request | TillrollError] = []
        for item in batch_of(items):
            try:
                built.append(self._verbs.consume(**item_of(item)))
            except TillrollError as problem:
                built.append(problem)
            except TypeError as problem:
                built.append(misnamed(problem))
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
                receipt = Receipt(
                    answer.outcome, self.scale, item.account, replayed=answer.replayed
                )
                outcomes.append(Outcome(receipt, None))
            else:
                outcomes.append(Outcome(None, exception_of(answer, item, self.scale)))
        return outcomes


class Preview:
    """The verbs that move units, decided as they would be decided now; nothing is written."""

    def __init__(self, engine: Carrier, verbs: Verbs) -> None:
        """Preview through this engine."""
        self._engine = engine
        self._verbs = verbs

    def _ask(self, request: Request) -> Receipt:
        engine = self._engine
        answer = queries.preview(engine.store, request.project, request, engine.clock())
        return receipt_of(answer, request, engine.store.scale)

    grant = _preview(Verbs.grant)
    void = _preview(Verbs.void)
    adjust = _preview(Verbs.adjust)
    consume = _preview(Verbs.consume)
    hold = _preview(Verbs.hold)
    settle = _preview(Verbs.settle)
    release = _preview(Verbs.release)
    refund = _preview(Verbs.refund)
    buy = _preview(Verbs.buy)
    redeem = _preview(Verbs.redeem)


class Ledger(Reads, _Batches):
    """Prepaid credits, one verb a method; safe to share between threads and across forks.

    Every verb answers with a `Receipt` or raises; every error says whether anything was written.
    Open one with `tillroll.open`.
    """

    def __init__(self, engine: Carrier, project: str | None = None) -> None:
        """Carry verbs to this engine, for one project; for the engine's own if left out."""
        super().__init__(engine, verbs_of(engine, project))

    def __repr__(self) -> str:
        """Show where the ledger is."""
        return f"<Ledger {self.store.url} project={self.project!r}>"

    @property
    def preview(self) -> Preview:
        """The same verbs, decided as they would be now, with nothing written."""
        return Preview(self._engine, self._verbs)

    def _ask(self, request: Request) -> Receipt:
        return receipt_of(self._engine.execute((request,))[0], request, self.scale)

    grant = _sync(Verbs.grant)
    void = _sync(Verbs.void)
    adjust = _sync(Verbs.adjust)
    consume = _sync(Verbs.consume)
    hold = _sync_hold(Verbs.hold)
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
    set_alert = _sync(Verbs.set_alert)
    remove_alert = _sync(Verbs.remove_alert)
    set_recurring = _sync(Verbs.set_recurring)
    stop_recurring = _sync(Verbs.stop_recurring)
    configure = _sync(Verbs.configure)
    buy = _sync(Verbs.buy)
    redeem = _sync(Verbs.redeem)
    subscribe = _sync(Verbs.subscribe)
    entitle = _sync(Verbs.entitle)
    change_entitlement = _sync(Verbs.change_entitlement)
    end_entitlement = _sync(Verbs.end_entitlement)

    def consume_many(self, items: Iterable[Mapping[str, object]]) -> list[Outcome]:
        """Consume many in one database transaction, each item on its own merits.

        Args:
            items: The arguments of `consume` for each, such as
                {"account": "acme", "operation": "image.generate", "request_id": "r1"}; 10,000 at
                the most.

        Returns:
            One outcome an item, in order; one item's error never touches another.

        Raises:
            InvalidInput: Too many items; nothing written.
            StoreClosed, Overloaded: Nothing written.
        """
        built = self._batch(items)
        requests = [item for item in built if isinstance(item, Request)]
        return self._outcomes(built, self._engine.execute(requests) if requests else [])

    def join(self, connection: object) -> Ledger:
        """Return this ledger within your own transactions on `connection`.

        What its verbs do is committed with your rows or rolled back with them, by you; and an
        account that they touch stays locked until then. See the guide.

        Args:
            connection: Of the same database: of psycopg 3 or sqlite3, a session or connection of
                SQLAlchemy, or `django.db.connection`. SQLite must have been opened with
                `library="sqlite3"`.

        Raises:
            InvalidInput: It cannot be joined; the message says what can.
        """
        from tillroll.embedded.joined import joined  # noqa: PLC0415 - only who joins loads it

        return Ledger(joined(self._engine, connection, asynchronous=False), self.project)

    def close(self) -> None:
        """Answer what waits, turn new requests away, close the store. May be called twice."""
        self._engine.close()

    def __enter__(self) -> Self:
        """Use the ledger as a context manager that closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        self.close()


class AsyncLedger(_Batches):
    """The same verbs to be awaited; the event loop never waits for a disk."""

    def __init__(self, engine: Carrier, project: str | None = None) -> None:
        """Carry verbs to this engine, for one project; for the engine's own if left out."""
        import asyncio  # noqa: PLC0415 - half of all import time, and only who awaits needs it

        self._running_loop = asyncio.get_running_loop
        self._engine = engine
        self._verbs = verbs_of(engine, project)
        self._reads = Reads(engine, self._verbs)
        self.project = self._verbs.project
        self.scale = engine.store.scale

    def __repr__(self) -> str:
        """Show where the ledger is."""
        return f"<AsyncLedger {self._engine.store.url} project={self.project!r}>"

    @property
    def is_joined(self) -> bool:
        """Whether the verbs run within a transaction of the caller's own; see `join`."""
        return self._engine.bridge is not None

    @property
    def sync(self) -> Ledger:
        """The same ledger for threads: for iterating entries and accounts, and for previews.

        That of a joined ledger is for other threads than the event loop's.
        """
        return Ledger(self._engine, self.project)

    async def _ask(self, request: Request) -> Receipt:
        answers = await self._engine.submit((request,), self._running_loop())
        return receipt_of(answers[0], request, self.scale)

    balance = _threaded(Reads.balance)
    statement = _threaded(Reads.statement)
    usage = _threaded(Reads.usage)
    explain = _threaded(Reads.explain)
    hold_state = _threaded(Reads.hold_state)
    overview = _threaded(Reads.overview)
    knows = _threaded(Reads.knows)
    access = _threaded(Reads.access)
    entitlements = _threaded(Reads.entitlements)
    holdings = _threaded(Reads.holdings)
    history = _threaded(Reads.history)
    receipt = _threaded(Reads.receipt)
    verify = _threaded(Reads.verify)
    prices = _threaded(Reads.prices)
    apply_prices = _threaded(Reads.apply_prices)
    quote = _threaded(Reads.quote)
    book_due = _threaded(Reads.book_due)
    erase_metadata = _threaded(Reads.erase_metadata)
    prune_refusals = _threaded(Reads.prune_refusals)

    grant = _async(Verbs.grant)
    void = _async(Verbs.void)
    adjust = _async(Verbs.adjust)
    consume = _async(Verbs.consume)
    hold = _async_hold(Verbs.hold)
    extend = _async(Verbs.extend)
    settle = _async(Verbs.settle)
    release = _async(Verbs.release)
    mark_in_doubt = _async(Verbs.mark_in_doubt)
    resolve = _async(Verbs.resolve)
    refund = _async(Verbs.refund)
    freeze = _async(Verbs.freeze)
    unfreeze = _async(Verbs.unfreeze)
    close_account = _async(Verbs.close_account)
    set_overdraft = _async(Verbs.set_overdraft)
    set_budget = _async(Verbs.set_budget)
    remove_budget = _async(Verbs.remove_budget)
    set_alert = _async(Verbs.set_alert)
    remove_alert = _async(Verbs.remove_alert)
    set_recurring = _async(Verbs.set_recurring)
    stop_recurring = _async(Verbs.stop_recurring)
    configure = _async(Verbs.configure)
    buy = _async(Verbs.buy)
    redeem = _async(Verbs.redeem)
    subscribe = _async(Verbs.subscribe)
    entitle = _async(Verbs.entitle)
    change_entitlement = _async(Verbs.change_entitlement)
    end_entitlement = _async(Verbs.end_entitlement)

    async def consume_many(self, items: Iterable[Mapping[str, object]]) -> list[Outcome]:
        """Consume many in one database transaction; see `Ledger.consume_many`."""
        built = self._batch(items)
        requests = [item for item in built if isinstance(item, Request)]
        if not requests:
            return self._outcomes(built, [])
        answers = await self._engine.submit(requests, self._running_loop())
        return self._outcomes(built, answers)

    def join(self, connection: object) -> AsyncLedger:
        """Return this ledger within your own transactions on `connection`; see `Ledger.join`.

        Args:
            connection: Of the same database: an `AsyncConnection` of psycopg 3, a connection of
                aiosqlite, an `AsyncSession` or `AsyncConnection` of SQLAlchemy.

        Raises:
            InvalidInput: It cannot be joined, or no event loop runs here.
        """
        from tillroll.embedded.joined import joined  # noqa: PLC0415 - only who joins loads it

        return AsyncLedger(joined(self._engine, connection, asynchronous=True), self.project)

    async def close(self) -> None:
        """Answer what waits, turn new requests away, close the store. May be called twice."""
        await self._running_loop().run_in_executor(None, self._engine.close)

    async def __aenter__(self) -> Self:
        """Use the ledger as a context manager that closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the ledger."""
        await self.close()


class Holder(Protocol):
    """Who ends holds for threads: a `Ledger`, or a client of one."""

    def settle(self, *args: Any, **kwargs: Any) -> Receipt:
        """Take what was really used."""

    def release(self, *args: Any, **kwargs: Any) -> Receipt:
        """Give all of it back."""

    def extend(self, *args: Any, **kwargs: Any) -> Receipt:
        """Prolong it."""

    def mark_in_doubt(self, *args: Any, **kwargs: Any) -> Receipt:
        """Say that the outcome is unknown."""

    def hold_state(self, account: str, hold_id: str) -> str:
        """Return what the hold is now."""


class AsyncHolder(Protocol):
    """Who ends holds for event loops: an `AsyncLedger`, or a client of one."""

    @property
    def is_joined(self) -> bool:
        """Whether it works within a transaction of the caller's own."""

    async def settle(self, *args: Any, **kwargs: Any) -> Receipt:
        """Take what was really used."""

    async def release(self, *args: Any, **kwargs: Any) -> Receipt:
        """Give all of it back."""

    async def extend(self, *args: Any, **kwargs: Any) -> Receipt:
        """Prolong it."""

    async def mark_in_doubt(self, *args: Any, **kwargs: Any) -> Receipt:
        """Say that the outcome is unknown."""

    async def hold_state(self, account: str, hold_id: str) -> str:
        """Return what the hold is now."""


class _HoldBase:
    """What the two kinds of open hold share: which ending the guarded code deserves."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.ended: Receipt | None = None
        self._doubted = False
        self._claimed = False  # a settle was tried and is not known to have succeeded

    @property
    def id(self) -> str:
        """The id of the hold: the `request_id` that opened it."""
        assert self.receipt.request_id is not None
        return self.receipt.request_id

    @property
    def account(self) -> str:
        """The balance owner."""
        return self.receipt.account

    @property
    def units(self) -> Decimal:
        """How much was held; less than asked for where a floor was given."""
        return self.receipt.units

    @property
    def expires_at(self) -> datetime | None:
        """When the hold ends by itself, as of its opening."""
        return self.receipt.expires_at

    def _refuse_ended(self, state: str) -> None:
        """Raise where a repeated hold has ended: nothing may be done on it any more."""
        if state in ("open", "in_doubt"):
            return
        kind = HoldExpired if state == "expired" else HoldFinalized
        raise kind(
            f"the hold {self.id!r} was {state} before; see explain({self.id!r})",
            details={"state": state},
            request_id=self.id,
            account=self.account,
        )

    def _is_left_alone(self, error: BaseException) -> bool:
        """Return whether a failure must not end the hold: another attempt may be working on it."""
        if self.receipt.replayed:
            error.add_note(
                f"the hold {self.id!r} was opened by an earlier attempt and is left to it; "
                f"it ends by its deadline at the latest"
            )
        return self.receipt.replayed

    def _is_doubtful(self, error: BaseException) -> bool:
        """Return whether the work may have been done: who tried to settle says that it was."""
        return self._claimed or is_timeout(error)

    def _note(self, error: BaseException, problem: TillrollError) -> None:
        """Tell, with the exception that goes on, why the hold could not be ended."""
        if isinstance(problem, HoldExpired | HoldFinalized):
            error.add_note(f"the hold {self.id!r} had ended before: {problem}")
        else:
            error.add_note(
                f"the hold {self.id!r} could not be ended: {problem}; it ends by its deadline at "
                f"the latest"
            )

    def __getattr__(self, name: str) -> object:
        """Answer like the receipt of the hold for everything else."""
        return getattr(self.receipt, name)

    def __repr__(self) -> str:
        """Show the hold and whether it ended."""
        state = self.ended.kind if self.ended else "in_doubt" if self._doubted else "open"
        return f"<{type(self).__name__} {self.id!r} {self.units} {state}>"


def is_timeout(error: BaseException | None) -> bool:
    """Return whether an exception leaves open if the work was done.

    Time-outs of the standard library and of HTTP clients (whose classes are named so), and
    everything that is not an `Exception`: a cancelled task or Ctrl-C stops us, not the provider.
    """
    if error is None or isinstance(error, GeneratorExit):
        return error is not None
    if not isinstance(error, Exception) or isinstance(error, TimeoutError):
        return True
    return any("timeout" in kind.__name__.lower() for kind in type(error).__mro__)


class OpenHold(_HoldBase):
    """A hold that was opened. As a context manager it always ends the hold.

    On leaving: settled in the block, nothing more; left well, all that is held is charged; left
    by an exception, released; left by a time-out, cancelled, or after a settle that failed,
    marked as in doubt. Where that cannot be written, the exception goes on with a note of it.
    """

    def __init__(self, ledger: Holder, receipt: Receipt) -> None:
        """Guard the hold of this receipt."""
        super().__init__(receipt)
        self._ledger = ledger

    def settle(
        self,
        units: Units | None = None,
        *,
        meters: Mapping[str, Meter] | None = None,
        attributes: Mapping[str, str] | None = None,
        final: bool = True,
        above: Above = "available",
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> Receipt:
        """Take what was really used and give the rest back; see `Ledger.settle`."""
        self._claimed = True
        receipt = self._ledger.settle(
            self.account,
            self.id,
            units=units,
            meters=meters,
            attributes=attributes,
            final=final,
            above=above,
            request_id=request_id,
            **how,
        )
        self._claimed = False
        if final:
            self.ended = receipt
        return receipt

    def release(self, *, request_id: str | None = None, **how: Unpack[How]) -> Receipt:
        """Give all of it back; see `Ledger.release`."""
        self.ended = self._ledger.release(self.account, self.id, request_id=request_id, **how)
        return self.ended

    def extend(self, expires_in: Span, **how: Unpack[How]) -> Receipt:
        """Prolong it; see `Ledger.extend`."""
        return self._ledger.extend(self.account, self.id, expires_in=expires_in, **how)

    def mark_in_doubt(self, **kwargs: Any) -> Receipt:
        """Say that the outcome is unknown; see `Ledger.mark_in_doubt`."""
        receipt = self._ledger.mark_in_doubt(self.account, self.id, **kwargs)
        self._doubted = True
        return receipt

    @property
    def state(self) -> str:
        """What the hold is now: open, in_doubt, settled, released or expired."""
        return self._ledger.hold_state(self.account, self.id)

    def __enter__(self) -> Self:
        """Guard the work.

        Raises:
            HoldFinalized, HoldExpired: The hold is a repeat of one that ended: the work was
                answered for before, and must not be done again on it.
        """
        if self.receipt.replayed:
            self._refuse_ended(self.state)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the hold as the work deserves; the exception goes on."""
        if self.ended is not None or self._doubted:
            return
        if error is None:
            self.settle()
            return
        if self._is_left_alone(error):
            return
        try:
            if self._is_doubtful(error):
                self.mark_in_doubt(reason=f"{type(error).__name__} in the guarded code")
            else:
                self.release(reason=f"{type(error).__name__} in the guarded code")
        except TillrollError as problem:
            self._note(error, problem)


class AsyncOpenHold(_HoldBase):
    """A hold that was opened from an event loop; see `OpenHold`."""

    def __init__(self, ledger: AsyncHolder, receipt: Receipt) -> None:
        """Guard the hold of this receipt."""
        super().__init__(receipt)
        self._ledger = ledger

    async def settle(
        self,
        units: Units | None = None,
        *,
        meters: Mapping[str, Meter] | None = None,
        attributes: Mapping[str, str] | None = None,
        final: bool = True,
        above: Above = "available",
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> Receipt:
        """Take what was really used and give the rest back; see `Ledger.settle`."""
        self._claimed = True
        receipt = await self._ledger.settle(
            self.account,
            self.id,
            units=units,
            meters=meters,
            attributes=attributes,
            final=final,
            above=above,
            request_id=request_id,
            **how,
        )
        self._claimed = False
        if final:
            self.ended = receipt
        return receipt

    async def release(self, *, request_id: str | None = None, **how: Unpack[How]) -> Receipt:
        """Give all of it back; see `Ledger.release`."""
        self.ended = await self._ledger.release(self.account, self.id, request_id=request_id, **how)
        return self.ended

    async def extend(self, expires_in: Span, **how: Unpack[How]) -> Receipt:
        """Prolong it; see `Ledger.extend`."""
        return await self._ledger.extend(self.account, self.id, expires_in=expires_in, **how)

    async def mark_in_doubt(self, **kwargs: Any) -> Receipt:
        """Say that the outcome is unknown; see `Ledger.mark_in_doubt`."""
        receipt = await self._ledger.mark_in_doubt(self.account, self.id, **kwargs)
        self._doubted = True
        return receipt

    async def state(self) -> str:
        """Return what the hold is now: open, in_doubt, settled, released or expired."""
        return await self._ledger.hold_state(self.account, self.id)

    async def __aenter__(self) -> Self:
        """Guard the work.

        Raises:
            HoldFinalized, HoldExpired: The hold is a repeat of one that ended.
        """
        if self.receipt.replayed:
            self._refuse_ended(await self.state())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the hold as the work deserves; the exception goes on.

        The ending is shielded: a task that is cancelled twice still ends its hold.
        """
        if self._ledger.is_joined:
            await self.end(error)  # nothing may go on behind the host's back
            return
        import asyncio  # noqa: PLC0415 - see AsyncLedger

        await asyncio.shield(self.end(error))

    async def end(self, error: BaseException | None) -> None:
        """End the hold as the work deserves, if it has not ended yet."""
        if self.ended is not None or self._doubted:
            return
        if error is None:
            await self.settle()
            return
        if self._is_left_alone(error):
            return
        try:
            if self._is_doubtful(error):
                await self.mark_in_doubt(reason=f"{type(error).__name__} in the guarded code")
            else:
                await self.release(reason=f"{type(error).__name__} in the guarded code")
        except TillrollError as problem:
            self._note(error, problem)


class PendingHold:
    """What `AsyncLedger.hold` returns: await it for the hold, or enter it with `async with`."""

    def __init__(
        self, ledger: AsyncHolder, ask: Callable[[], Coroutine[Any, Any, Receipt]]
    ) -> None:
        """Open the hold by `ask` when awaited or entered."""
        self._ledger = ledger
        self._ask = ask
        self._open: AsyncOpenHold | None = None

    def __await__(self) -> Generator[Any, Any, AsyncOpenHold]:
        """Open the hold."""
        return self._begin().__await__()

    async def _begin(self) -> AsyncOpenHold:
        self._open = AsyncOpenHold(self._ledger, await self._ask())
        return self._open

    async def __aenter__(self) -> AsyncOpenHold:
        """Open the hold and guard the work.

        A task that is cancelled here does no work: its hold is released as soon as it is known.
        """
        if self._ledger.is_joined:
            return await (await self._begin()).__aenter__()
        import asyncio  # noqa: PLC0415 - see AsyncLedger

        opening = asyncio.ensure_future(self._begin())
        try:
            hold = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_release_unused)
            raise
        return await hold.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the hold as the work deserves; the exception goes on."""
        assert self._open is not None
        await self._open.__aexit__(kind, error, trace)


_RELEASES: set[asyncio.Future[Receipt]] = set()  # a loop keeps no task alive by itself


def _release_unused(opening: asyncio.Future[AsyncOpenHold]) -> None:
    """Release a hold that was opened for a task that is gone; one of another attempt is left."""
    import asyncio  # noqa: PLC0415 - see AsyncLedger

    if opening.cancelled() or opening.exception() is not None or opening.result().receipt.replayed:
        return
    release = asyncio.ensure_future(opening.result().release(reason="cancelled before the work"))
    _RELEASES.add(release)
    release.add_done_callback(_RELEASES.discard)
