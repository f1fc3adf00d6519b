"""The ledger in your process: `Ledger` for threads, `AsyncLedger` for event loops.

Both carry the verbs of `ledger.verbs` to one `Engine` and turn its answers into receipts or
exceptions. What is read comes from `queries`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, Unpack

from msgspec import Struct

from tillroll import queries
from tillroll.engine import BULK_MAX, WAITING_MAX, Engine, now
from tillroll.ledger import calendar, quotes
from tillroll.ledger.commands import Above, QuoteClaims, Request, account_id
from tillroll.ledger.commands import Hold as HoldCommand
from tillroll.ledger.core import REFUSAL_LIFE, Answer, Book, advance_in
from tillroll.ledger.errors import (
    REFUSALS,
    HoldExpired,
    HoldFinalized,
    InvalidInput,
    Refused,
    TillrollError,
)
from tillroll.ledger.errors import Unpriced as UnpricedError
from tillroll.ledger.pricing import Unpriced, explain_hold, new_version, price_hold
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import Entry, Refusal
from tillroll.ledger.units import Units, to_decimal
from tillroll.ledger.verbs import How, Meter, Span, Verbs
from tillroll.stores.memory import MemoryStore

if TYPE_CHECKING:
    import asyncio
    from collections.abc import (
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from datetime import datetime
    from decimal import Decimal
    from types import TracebackType

    from tillroll.ledger.pricing import Price, PriceBook, PriceVersion
    from tillroll.queries import Balance, Page, Verification
    from tillroll.stores.base import Store, Writer

P = ParamSpec("P")


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of the caller. asyncio takes half of all import time, so it comes late."""
    import asyncio  # noqa: PLC0415 - whoever calls this has loaded it

    return asyncio.get_running_loop()


def new_id() -> str:
    """Return a UUIDv7: unique, and ordered by time so that the index of ids grows at its end."""
    millis = time.time_ns() // 1_000_000
    tail = os.urandom(10).hex()
    variant = "89ab"[int(tail[3], 16) & 3]
    return f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7{tail[:3]}-{variant}{tail[4:7]}-{tail[7:19]}"


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


class Quote(Struct, frozen=True):
    """What an operation would cost.

    Attributes:
        units: The amount, or the most it can be.
        exact: The amount before rounding.
        arithmetic: How it came about, a line a step.
        available: What the account could spend on it.
        token: The signed quote, None where the price was not locked.
        expires_at: When the locked price ends.
    """

    account: str
    operation: str
    wallet: str
    units: Decimal
    exact: Decimal
    price_version: int
    rule: str
    arithmetic: tuple[str, ...]
    available: Decimal
    token: str | None
    expires_at: str | None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {
            name: format(value, "f") if hasattr(value, "as_tuple") else value
            for name, value in ((n, getattr(self, n)) for n in self.__struct_fields__)
        }


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

    # ------------------------------------------------------------ reads

    @property
    def preview(self) -> Preview:
        """The same verbs, decided as they would be now, with nothing written."""
        return Preview(self)

    def _now(self) -> int:
        return self._engine.clock()

    def balance(
        self,
        account: str,
        wallet: str = "credits",
        *,
        as_of: datetime | str | None = None,
        clock: Literal["recorded", "effective"] = "recorded",
    ) -> Balance:
        """Return the balance of one wallet, with live grants, open holds and budgets.

        Args:
            account: The balance owner; one without a history has nothing.
            wallet: The kind of credits.
            as_of: A moment of the past; now if left out.
            clock: "recorded" for what the ledger knew then, "effective" for what is known today
                of what had happened by then.
        """
        return queries.balance(
            self.store,
            self.project,
            account,
            at=self._now(),
            wallet=wallet,
            as_of=None if as_of is None else calendar.instant(as_of, "as_of"),
            clock=clock,
        )

    def statement(
        self,
        account: str,
        *,
        limit: int = 100,
        before: int | None = None,
        kinds: Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> Page:
        """Return entries of an account, newest first, a page at a time.

        Args:
            account: The balance owner.
            limit: How many, 1 to 1,000.
            before: Go on below this seq; `Page.next` says which.
            kinds: Only these kinds, such as ["consume", "settle"].
            since: Only what was recorded at or after this.
            until: Only what was recorded before this.
        """
        return queries.statement(
            self.store,
            self.project,
            account,
            limit=limit,
            before=before,
            kinds=kinds,
            since=None if since is None else calendar.instant(since, "since"),
            until=None if until is None else calendar.instant(until, "until"),
        )

    def usage(
        self,
        account: str | None = None,
        *,
        by: Sequence[str] = ("operation",),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return what was used, grouped; refunds are taken off.

        Args:
            account: One account, or all.
            by: The groups, in order: account, operation, model, wallet, day, month, tag:NAME.
            since: Only what was effective at or after this.
            until: Only what was effective before this.
            progress: Called with the number of entries read so far.
        """
        return queries.usage(
            self.store,
            self.project,
            account=account,
            by=by,
            since=None if since is None else calendar.instant(since, "since"),
            until=None if until is None else calendar.instant(until, "until"),
            progress=progress,
        )

    def explain(self, request_id: str, *, account: str | None = None) -> dict[str, object]:
        """Return the whole story of one request: who, what, when, how priced, who paid, since.

        Args:
            request_id: The id of a charge, hold, grant or refused request.
            account: The balance owner; may be left out where one account only knows the id.

        Raises:
            NotFound: No account knows the id.
            InvalidInput: Several accounts know it.
        """
        return queries.explain_request(self.store, self.project, request_id, account=account)

    def verify(
        self, account: str | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Verification:
        """Refold one account or all from the stored bytes and compare with all that is stored.

        Args:
            account: One account, or all.
            progress: Called with the number of entries checked so far.
        """
        return queries.verify(self.store, self.project, account=account, progress=progress)

    def entries(self, account: str | None = None) -> Iterator[Receipt]:
        """Yield every entry, account by account, oldest first; for exports."""
        return queries.histories(self.store, self.project, account)

    def accounts(self) -> Iterator[str]:
        """Yield the names of all accounts that have a history."""
        after = ""
        while True:
            with self.store.read() as reader:
                names = reader.names(self.project, after)
            if not names:
                return
            yield from names
            after = names[-1]

    # ------------------------------------------------------------ prices

    def prices(self) -> PriceBook:
        """Return every price version; the newest is in force."""
        with self.store.read() as reader:
            return reader.prices(self.project)

    def apply_prices(
        self,
        prices: Sequence[Price],
        *,
        author: str,
        reason: str,
        overrides: Mapping[str, Sequence[Price]] | None = None,
    ) -> PriceVersion:
        """Write a new, immutable price version and have it in force.

        Args:
            prices: The rules; `tillroll.catalog.load` reads them from a file.
            author: Who applies them.
            reason: Why.
            overrides: Rules for single accounts, tried first.

        Returns:
            The new version, or the one in force where nothing differs from it.

        Raises:
            InvalidInput: A rule makes no sense, or two rules claim the same requests.
        """
        if not author.strip() or not reason.strip():
            raise InvalidInput("a price version needs an author and a reason")
        applied_at = self._now()

        def act(tx: Writer) -> PriceVersion:
            book = tx.prices(self.project)
            version = new_version(
                book.current + 1,
                prices,
                overrides=overrides,
                author=author,
                reason=reason,
                applied_at=applied_at,
            )
            if book.current and book.version(book.current).digest == version.digest:
                return book.version(book.current)
            tx.add_price_version(self.project, version)
            return version

        return self._engine.perform(act)

    def quote(
        self,
        account: str,
        operation: str,
        *,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        lock_for: Span | None = None,
    ) -> Quote:
        """Return what an operation would cost, the arithmetic, and, if asked, a locked price.

        Args:
            account: The balance owner; its overrides count.
            operation: What would be done.
            meters: The most it can measure.
            model: The model, where prices differ by model.
            attributes: What prices may depend on.
            lock_for: Give a signed quote good for so long, such as "15m": a hold or consume
                opened on it never costs more than its ceiling, whatever prices do.

        Raises:
            Unpriced: The price book has no price for it.
        """
        request = self._verbs.hold(
            account, operation, meters=meters, model=model, attributes=attributes
        )
        at = self._now()
        book = self.prices()
        command = request.command
        assert isinstance(command, HoldCommand)
        asked: dict[str, Any] = {
            "model": model,
            "attributes": command.attributes,
            "account_ref": account,
            "at": at,
            "scale": self.scale,
        }
        priced = price_hold(book, operation, command.meters or {}, **asked)
        if isinstance(priced, Unpriced):
            raise UnpricedError(
                priced.reason, account=account, details={"known": ", ".join(priced.known)}
            )
        locked = None
        if lock_for is not None:
            claims = QuoteClaims(
                account=account,
                operation=operation,
                version=priced.version,
                ceiling=priced.units,
                wallet=priced.wallet,
                expires_at=at + calendar.span(lock_for, "lock_for"),
                model=model,
                id=new_id(),
            )
            locked = quotes.sign(self.store.secret, claims)
        return Quote(
            account=account,
            operation=operation,
            wallet=priced.wallet,
            units=to_decimal(priced.units, self.scale),
            exact=priced.exact,
            price_version=priced.version,
            rule=priced.rule,
            arithmetic=tuple(explain_hold(book, operation, command.meters or {}, **asked)),
            available=self.balance(account, priced.wallet).spendable,
            token=locked,
            expires_at=None
            if lock_for is None
            else calendar.show_instant(at + calendar.span(lock_for, "lock_for")),
        )

    # ------------------------------------------------------------ upkeep

    def book_due(self, limit: int = 1_000) -> int:
        """Book what fell due on accounts that nobody touched; return how many accounts.

        Correctness never needs it: every decision and every read sees what is due by itself.
        """
        at = self._now()

        def act(tx: Writer) -> int:
            names = tx.due(self.project, at, limit)
            owners = [(account_id(self.project, name), name) for name in names]
            book = Book(accounts=dict(tx.accounts(owners)))
            for owner, _ in owners:
                advance_in(book, owner, max(at, book.accounts[owner].at))
            tx.append(self.project, book)
            return len(names)

        return self._engine.perform(act)

    def erase_metadata(self, account: str) -> int:
        """Erase the metadata of every entry of an account; the chain still verifies."""
        owner = account_id(self.project, account)
        return self._engine.perform(lambda tx: tx.erase_metadata(owner))

    def prune_refusals(self) -> int:
        """Delete refusals that are too old to be remembered; return how many."""
        before = self._now() - REFUSAL_LIFE
        return self._engine.perform(lambda tx: tx.prune_refusals(before))

    # ------------------------------------------------------------ batches

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
        answers = await self._engine.submit((request,), _running_loop())
        return _answer(self, answers[0], request)

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
        return PendingHold(self, build(self._verbs, *args, **kwargs))

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


class Preview:
    """The verbs that move units, decided as they would be decided now; nothing is written."""

    def __init__(self, ledger: _Base) -> None:
        """Preview on this ledger."""
        self._ledger = ledger
        self._verbs = ledger._verbs  # noqa: SLF001 - the ledger's other face

    def _ask(self, request: Request) -> Receipt:
        engine = self._ledger._engine  # noqa: SLF001 - the ledger's other face
        answer = queries.preview(engine.store, engine.project, request, engine.clock())
        return _answer(self._ledger, answer, request)

    grant = _preview(Verbs.grant)
    void = _preview(Verbs.void)
    adjust = _preview(Verbs.adjust)
    consume = _preview(Verbs.consume)
    hold = _preview(Verbs.hold)
    settle = _preview(Verbs.settle)
    release = _preview(Verbs.release)
    refund = _preview(Verbs.refund)


class Ledger(_Base):
    """Prepaid credits, one verb a method; safe to share between threads and across forks.

    Every verb answers with a `Receipt` or raises; every error says whether anything was written.
    Open one with `tillroll.open`.
    """

    def _ask(self, request: Request) -> Receipt:
        return _answer(self, self._engine.execute((request,))[0], request)

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
    set_recurring = _sync(Verbs.set_recurring)
    stop_recurring = _sync(Verbs.stop_recurring)
    configure = _sync(Verbs.configure)

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

    def close(self) -> None:
        """Answer what waits, turn new requests away, close the store. May be called twice."""
        self._engine.close()

    def __enter__(self) -> Self:
        """Use the ledger as a context manager that closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        self.close()


class AsyncLedger(_Base):
    """The same verbs to be awaited; the event loop never waits for a disk."""

    async def _ask(self, request: Request) -> Receipt:
        answers = await self._engine.submit((request,), _running_loop())
        return _answer(self, answers[0], request)

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
    set_recurring = _async(Verbs.set_recurring)
    stop_recurring = _async(Verbs.stop_recurring)
    configure = _async(Verbs.configure)

    async def consume_many(self, items: Iterable[Mapping[str, object]]) -> list[Outcome]:
        """Consume many in one database transaction; see `Ledger.consume_many`."""
        built = self._batch(items)
        requests = [item for item in built if isinstance(item, Request)]
        if not requests:
            return self._outcomes(built, [])
        answers = await self._engine.submit(requests, _running_loop())
        return self._outcomes(built, answers)

    async def close(self) -> None:
        """Answer what waits, turn new requests away, close the store. May be called twice."""
        await _running_loop().run_in_executor(None, self._engine.close)

    async def __aenter__(self) -> Self:
        """Use the ledger as a context manager that closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the ledger."""
        await self.close()


class _HoldBase:
    """What the two kinds of open hold share: which ending the guarded code deserves."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.ended: Receipt | None = None
        self._doubted = False

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
    by an exception, released; left by a time-out or cancelled, marked as in doubt.
    """

    def __init__(self, ledger: Ledger, receipt: Receipt) -> None:
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

    def __enter__(self) -> Self:
        """Guard the work."""
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
        try:
            if is_timeout(error):
                self.mark_in_doubt(reason=f"{type(error).__name__} in the guarded code")
            else:
                self.release(reason=f"{type(error).__name__} in the guarded code")
        except (HoldExpired, HoldFinalized) as ended:
            error.add_note(f"the hold {self.id!r} had ended before: {ended}")


class AsyncOpenHold(_HoldBase):
    """A hold that was opened from an event loop; see `OpenHold`."""

    def __init__(self, ledger: AsyncLedger, receipt: Receipt) -> None:
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

    async def __aenter__(self) -> Self:
        """Guard the work."""
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
        import asyncio  # noqa: PLC0415 - see _running_loop

        await asyncio.shield(self.end(error))

    async def end(self, error: BaseException | None) -> None:
        """End the hold as the work deserves, if it has not ended yet."""
        if self.ended is not None or self._doubted:
            return
        if error is None:
            await self.settle()
            return
        try:
            if is_timeout(error):
                await self.mark_in_doubt(reason=f"{type(error).__name__} in the guarded code")
            else:
                await self.release(reason=f"{type(error).__name__} in the guarded code")
        except (HoldExpired, HoldFinalized) as ended:
            error.add_note(f"the hold {self.id!r} had ended before: {ended}")


class PendingHold:
    """What `AsyncLedger.hold` returns: await it for the hold, or enter it with `async with`."""

    def __init__(self, ledger: AsyncLedger, request: Request) -> None:
        """Open this hold when awaited or entered."""
        self._ledger = ledger
        self._request = request
        self._open: AsyncOpenHold | None = None

    def __await__(self) -> Generator[Any, Any, AsyncOpenHold]:
        """Open the hold."""
        return self._begin().__await__()

    async def _begin(self) -> AsyncOpenHold:
        receipt = await self._ledger._ask(self._request)  # noqa: SLF001 - its own verb
        self._open = AsyncOpenHold(self._ledger, receipt)
        return self._open

    async def __aenter__(self) -> AsyncOpenHold:
        """Open the hold and guard the work."""
        return await self._begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the hold as the work deserves; the exception goes on."""
        assert self._open is not None
        await self._open.__aexit__(kind, error, trace)


def open_ledger(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
) -> Ledger:
    """Open a ledger, creating its store where there is none.

    Args:
        url: `sqlite:///credits.db` (a file beside you), `sqlite:////var/lib/credits.db`
            (absolute), a path, or `memory://`.
        project: The isolation boundary; accounts of two projects never meet.
        scale: Decimals of the units, fixed when the store is made; 6 if left out.
        clock: Returns the time as an aware datetime; the system's clock if left out.
        waiting_max: How many requests may wait before new ones are turned away.

    Raises:
        StoreUnavailable: The store cannot be used; nothing was written.
        SchemaMismatch: It was written by a newer tillroll.
        InvalidInput: No such kind of store, or another scale than the store has.
    """
    return Ledger(_engine(url, project, scale, clock, waiting_max))


def open_async(
    url: str | os.PathLike[str],
    *,
    project: str = "default",
    scale: int | None = None,
    clock: Callable[[], datetime] | None = None,
    waiting_max: int = WAITING_MAX,
) -> AsyncLedger:
    """Open a ledger for an event loop; see `open`."""
    return AsyncLedger(_engine(url, project, scale, clock, waiting_max))


def _engine(
    url: str | os.PathLike[str],
    project: str,
    scale: int | None,
    clock: Callable[[], datetime] | None,
    waiting_max: int,
) -> Engine:
    ticks = now if clock is None else functools.partial(_ticks, clock)
    engine = Engine(
        open_store(url, scale=scale), project=project, clock=ticks, waiting_max=waiting_max
    )
    _OPEN.add(engine)
    return engine


def _ticks(clock: Callable[[], datetime]) -> int:
    return calendar.instant(clock(), "clock")


# Ledgers left open are closed in order when the interpreter ends, so that waiting callers are
# answered and the file is left checkpointed.
_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_OPEN):
        with contextlib.suppress(TillrollError):
            engine.close()
