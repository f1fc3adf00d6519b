"""Looking over HTTP: balances, histories, usage, explanations, prices, quotes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

import tillroll
from tillroll.api.calls import Answer, Call, answered
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.errors import InvalidInput, NotFound
from tillroll.ledger.pricing import Price
from tillroll.ledger.products import Products
from tillroll.wire import bodies
from tillroll.wire.bodies import Id, When

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tillroll.embedded import Ledger
    from tillroll.ledger.pricing import PriceVersion
    from tillroll.ledger.receipts import Receipt
    from tillroll.queries import Balance, Page

T = TypeVar("T")

LIMIT_MAX = 1_000
SEQ_MAX = 2**53 - 1
Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="How many at most.")]


class Query(Struct, kw_only=True, forbid_unknown_fields=True):
    """Nothing may be asked beside the address."""


class BalanceQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which wallet, and as of when."""

    wallet: Id = "credits"
    as_of: When | None = None
    clock: Literal["recorded", "effective"] = "recorded"


class WalletQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which wallet."""

    wallet: Id = "credits"


class EntitlementsQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """As of when."""

    at: When | None = None


class StatementQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which entries, newest first."""

    limit: Limit = 100
    before: Annotated[int, Meta(ge=1, le=SEQ_MAX)] | None = None
    kinds: Annotated[str, Meta(description="Such as consume,settle.")] = ""
    since: When | None = None
    until: When | None = None


class EntriesQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which entries, oldest first."""

    limit: Limit = LIMIT_MAX
    after: Annotated[int, Meta(ge=0, le=SEQ_MAX)] = 0


class AccountsQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which names, in order."""

    limit: Limit = LIMIT_MAX
    after: str = ""


class UsageQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Grouped how, and from when to when."""

    by: Annotated[
        str, Meta(description="Of account, operation, model, wallet, day, month, tag:NAME.")
    ] = "operation"
    since: When | None = None
    until: When | None = None


class ExplainQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Whose request, where several accounts know the id."""

    account: Id | None = None


async def _of_account(call: Call, read: Callable[[Ledger], T]) -> T:
    """Return what a read gives, on a thread; what does not exist is not shown as empty.

    Raises:
        NotFound: The account of the address has no history.
    """

    def look() -> T:
        if not call.tenant.reads.knows(call.account):
            raise NotFound(f"there is no account {call.account!r} here")
        return read(call.tenant.reads)

    return await asyncio.to_thread(look)


async def accounts(call: Call) -> Answer:
    """Return the names of the accounts that have a history."""
    asked = call.query(AccountsQuery)

    def names() -> list[str]:
        with call.tenant.reads.store.read() as reader:
            return reader.names(call.tenant.name, asked.after, asked.limit)

    found = await asyncio.to_thread(names)
    last = found[-1] if len(found) == asked.limit else None
    return answered({"accounts": found, "next": last})


async def account(call: Call) -> Answer:
    """Return an account as it is now, with every wallet."""
    call.query(Query)
    return answered(await _of_account(call, lambda reads: reads.overview(call.account)))


async def balance(call: Call) -> Answer:
    """Return the balance of one wallet, now or as of another time."""
    asked = call.query(BalanceQuery)

    def read(reads: Ledger) -> Balance:
        return reads.balance(call.account, asked.wallet, as_of=asked.as_of, clock=asked.clock)

    return answered((await _of_account(call, read)).to_dict())


async def statement(call: Call) -> Answer:
    """Return a page of an account's history, newest first."""
    asked = call.query(StatementQuery)

    def read(reads: Ledger) -> Page:
        return reads.statement(
            call.account,
            limit=asked.limit,
            before=asked.before,
            kinds=_split(asked.kinds),
            since=asked.since,
            until=asked.until,
        )

    return answered((await _of_account(call, read)).to_dict())


async def entries(call: Call) -> Answer:
    """Return a page of an account's history, oldest first, for exports."""
    asked = call.query(EntriesQuery)

    def read(reads: Ledger) -> dict[str, Any]:
        page = reads.history(call.account, after=asked.after, limit=asked.limit)
        seen = page[-1].seq if page else asked.after
        due: list[Receipt] = []
        is_last = len(page) < asked.limit
        if is_last:
            waiting = reads.statement(call.account, limit=1).due
            due = [receipt for receipt in reversed(waiting) if receipt.seq > seen]
            is_last = not due or due[0].seq == seen + 1  # or something was booked in between
        return {
            "entries": [receipt.to_dict() for receipt in page],
            "next": None if is_last else seen,
            "due": [receipt.to_dict() for receipt in due] if is_last else [],
        }

    return answered(await _of_account(call, read))


async def hold(call: Call) -> Answer:
    """Return what a hold is now."""
    call.query(Query)
    name, hold_id = call.params
    state = await call.tenant.ledger.hold_state(name, hold_id)
    return answered({"account": name, "hold_id": hold_id, "state": state})


async def usage(call: Call) -> Answer:
    """Return what was used, grouped; of one account, or of all."""
    asked = call.query(UsageQuery)
    how: dict[str, Any] = {"by": _split(asked.by), "since": asked.since, "until": asked.until}
    if call.params:
        rows = await _of_account(call, lambda reads: reads.usage(call.account, **how))
    else:
        rows = await call.tenant.ledger.usage(**how)
    return answered({"rows": rows})


async def explain(call: Call) -> Answer:
    """Return the whole story of one request."""
    name: str | None = call.account
    if len(call.params) > 1:
        call.query(Query)
    else:
        name = call.query(ExplainQuery).account
    request_id = call.params[-1]
    call.check_open(name)
    return answered(await call.tenant.ledger.explain(request_id, account=name))


async def receipt(call: Call) -> Answer:
    """Return the entry of one request, and what proves it."""
    call.query(Query)
    proven = await _of_account(call, lambda reads: reads.receipt(*call.params))
    return answered(proven.to_dict())


async def verify(call: Call) -> Answer:
    """Refold one account, or all, and compare with all that is stored."""
    call.query(Query)
    if call.params:
        found = await _of_account(call, lambda reads: reads.verify(call.account))
    else:
        found = await call.tenant.ledger.verify()
    return answered(found.to_dict())


async def erase(call: Call) -> Answer:
    """Erase the metadata of every entry of an account; the chain still verifies."""
    call.query(Query)
    erased = await _of_account(call, lambda reads: reads.erase_metadata(call.account))
    return answered({"erased": erased})


async def quote(call: Call) -> Answer:
    """Return what an operation would cost, the arithmetic, and, if asked, a locked price."""
    given = bodies.arguments(call.parse(bodies.QuoteFor))
    found = await call.tenant.ledger.quote(call.account, **given)
    return answered(found.to_dict())


async def access(call: Call) -> Answer:
    """Return whether an account may do something, why, until when, and what would help."""
    given = bodies.arguments(call.parse(bodies.AccessTo))
    found = await call.tenant.ledger.access(call.account, **given)
    return answered(found.to_dict())


async def entitlements(call: Call) -> Answer:
    """Return all that an account may use, now or as of another time."""
    asked = call.query(EntitlementsQuery)
    found = await call.tenant.ledger.entitlements(call.account, at=asked.at)
    return answered({"account": call.account, "entitlements": found})


async def holdings(call: Call) -> Answer:
    """Return how many accounts hold each product, by the version of the catalog; reads them all."""
    call.query(Query)
    found = await call.tenant.ledger.holdings()
    return answered({"holdings": [msgspec.to_builtins(one) for one in found]})


async def prices(call: Call) -> Answer:
    """Return every version of the price book."""
    call.query(Query)
    book = await call.tenant.ledger.prices()
    return answered(
        {"current": book.current, "versions": [version_of(v) for v in book.versions.values()]}
    )


async def apply_prices(call: Call) -> Answer:
    """Write a new, immutable version of the price book and have it in force."""
    given = call.parse(bodies.NewPrices)
    overrides = {} if isinstance(given.overrides, msgspec.UnsetType) else given.overrides
    version = await call.tenant.ledger.apply_prices(
        _rules(given.prices),
        overrides={name: _rules(rules) for name, rules in overrides.items()},
        products=_products(given.products),
        author=given.author,
        reason=given.reason,
    )
    return answered(version_of(version))


def _rules(rules: Sequence[dict[str, Any]]) -> list[Price]:
    try:
        return msgspec.convert(rules, list[Price])
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"prices: {problem}") from None


def _products(given: dict[str, Any] | msgspec.UnsetType) -> Products | None:
    if isinstance(given, msgspec.UnsetType):
        return None
    try:
        return msgspec.convert(given, Products)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"products: {problem}") from None


def version_of(version: PriceVersion) -> dict[str, object]:
    """Return a price version as plain values; one without products says nothing of them."""
    shown: dict[str, object] = msgspec.to_builtins(version)
    if not version.products:
        del shown["products"]
    shown["version"] = shown.pop("number")
    shown["applied_at"] = show_instant(version.applied_at)
    return shown


async def whoami(call: Call) -> Answer:
    """Return whose key this is and what it may do."""
    call.query(Query)
    key = call.key
    return answered(
        {
            "key_id": key.id,
            "project": key.project,
            "mode": key.mode,
            "scopes": key.scopes,
            "accounts": key.accounts,
            "scale": call.tenant.ledger.scale,
            "version": tillroll.__version__,
        }
    )


def _split(names: str) -> list[str]:
    return [name for name in names.split(",") if name]
