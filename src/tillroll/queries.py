"""The read side: balances, statements, usage, explanations, verification.

A read opens one consistent view, advances a copy of the account to the moment asked for (what
fell due is seen whether or not anyone has booked it), and writes nothing.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, get_args

from msgspec import Struct, field

from tillroll.ledger import budgets, calendar, chain
from tillroll.ledger.access import Access, access, holdings
from tillroll.ledger.book import Book, Rules, maker
from tillroll.ledger.commands import account_id
from tillroll.ledger.core import advance_in, decide_batch
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import InvalidInput, NotFound
from tillroll.ledger.explain import Facts, explain, outcome_of
from tillroll.ledger.fold import apply
from tillroll.ledger.pricing import PriceBook
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import (
    ANSWERED_BEFORE,
    DAY,
    NEVER,
    OVERDRAFT,
    TOPUP,
    WALLET_DEFAULT,
    Account,
    AlertTerms,
    Entry,
    Kind,
    Refusal,
    Terms,
    Wallet,
    entitlement_ref,
)
from tillroll.ledger.units import show_units, to_decimal
from tillroll.stores.base import SEQ_MAX, Stored, Story, load_book

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from decimal import Decimal

    from tillroll.ledger.book import Answer, Sealed
    from tillroll.ledger.commands import Request
    from tillroll.stores.base import Reader, Store

PAGE_MAX = 1_000
AHEAD_MAX = 400 * DAY  # how far ahead an account is looked at: what recurs is booked on the way
KINDS = get_args(Kind)


class Balance(Struct, frozen=True):
    """The buckets of one wallet at one moment; issued = available + held + used + expired.

    Attributes:
        available: Free units; negative while an overdraft is owed.
        spendable: What could be consumed now by an operation that every grant applies to.
        as_of: The moment the balance is of.
        seq: The last entry it includes.
    """

    account: str
    wallet: str
    available: Decimal
    held: Decimal
    used: Decimal
    expired: Decimal
    issued: Decimal
    overdraft_limit: Decimal
    spendable: Decimal
    status: str
    as_of: str
    seq: int
    grants: tuple[dict[str, Any], ...] = ()
    holds: tuple[dict[str, Any], ...] = ()
    budgets: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON: units as decimal strings."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            name: format(value, "f") if hasattr(value, "as_tuple") else value
            for name, value in shown.items()
        }


class Page(Struct, frozen=True):
    """Part of a statement, newest first, and where to go on.

    Attributes:
        receipts: At most as many as were asked for.
        next: Pass as `before` for the page after this one; None where the history begins.
        due: What fell due by now and nobody has booked yet, newest first: with these on top the
            history adds up to the balance. On the first page only, the first 1,000 at the most.
    """

    receipts: tuple[Receipt, ...]
    next: int | None
    due: tuple[Receipt, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {
            "entries": [r.to_dict() for r in self.receipts],
            "next": self.next,
            "due": [r.to_dict() for r in self.due],
        }


class Proven(Struct, frozen=True):
    """A receipt and what proves it: `hash` is that of `previous`, the account and `body`.

    Attributes:
        body: The entry's canonical bytes, which are JSON.
        hash: The chain's hash after it.
        previous: The chain's hash before it; empty for an account's first entry.
    """

    receipt: Receipt
    body: bytes
    hash: bytes
    previous: bytes

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON: the hashes hexadecimal."""
        return {
            "receipt": self.receipt.to_dict(),
            "proof": {
                "body": self.body.decode(),
                "hash": self.hash.hex(),
                "previous": self.previous.hex(),
            },
        }


class Verification(Struct):
    """What a check of histories found.

    Attributes:
        accounts: How many were refolded.
        entries: How many entries were hashed and applied.
        problems: What is wrong, each with its account and seq; empty where all is well.
    """

    accounts: int = 0
    entries: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether nothing was found."""
        return not self.problems

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {
            "ok": self.ok,
            "accounts": self.accounts,
            "entries": self.entries,
            "problems": self.problems,
        }


def look(reader: Reader, project: str, account: str, at: int) -> Account:
    """Return an account as it stands at `at`, what fell due included; nothing is written."""
    owner = account_id(project, account)
    book = Book(accounts=dict(reader.accounts([(owner, account)])))
    advance_in(book, owner, at)
    return book.accounts[owner]


def preview(store: Store, project: str, request: Request, at: int) -> Answer:
    """Decide a request as it would be decided now; nothing is written."""
    with store.read() as reader:
        book = load_book(reader, project, [request], at)
        rules = Rules(reader.prices(project), store.scale)
        return decide_batch(book, [request], at, rules)[0]


# ---------------------------------------------------------------- balance


def balance(
    store: Store,
    project: str,
    account: str,
    *,
    at: int,
    wallet: str = WALLET_DEFAULT,
    as_of: int | None = None,
    clock: Literal["recorded", "effective"] = "recorded",
) -> Balance:
    """Return the balance of one wallet, now or as of a moment by either clock.

    Args:
        store: Where the ledger is kept.
        project: The isolation boundary.
        account: The balance owner; one without a history has nothing.
        at: Now.
        wallet: The kind of credits.
        as_of: The moment asked for; now if left out.
        clock: "recorded": what the ledger knew at that moment. "effective": what is known today
            of what had happened by then; only buckets, no grants and holds.
    """
    with store.read() as reader:
        if as_of is None:
            state = look(reader, project, account, at)
            return _balance_of(state, wallet, store.scale, max(at, state.at))
        _check_moment(as_of, at)
        owner = account_id(project, account)
        if clock == "recorded":
            history = (stored.entry for stored in _history(reader, owner))
            state = _fold_until(account, owner, history, as_of)
            return _balance_of(state, wallet, store.scale, as_of)
        history = (stored.entry for stored in _history_until(reader, owner, account, at))
        state = _sum_effective(account, history, wallet, as_of)
    return _balance_of(state, wallet, store.scale, as_of)


def overview(store: Store, project: str, account: str, *, at: int) -> dict[str, object]:
    """Return an account as it is at `at`: its settings, every wallet, what comes back.

    Raises:
        NotFound: It has no history.
    """
    with store.read() as reader:
        state = look(reader, project, account, at)
    if not state.seq:
        raise NotFound(f"there is no account {account!r} here")
    wallets = sorted({WALLET_DEFAULT, *state.wallets})
    return {
        "account": account,
        "status": state.status,
        "time_zone": state.settings.time_zone,
        "late_settlement": state.settings.late_settlement,
        "late_usage": calendar.show_span(state.settings.late_usage),
        "early_usage": calendar.show_span(state.settings.early_usage),
        "seq": state.seq,
        "as_of": calendar.show_instant(at),
        "wallets": [_balance_of(state, name, store.scale, at).to_dict() for name in wallets],
        "recurring": [
            {
                "name": recurring.terms.name,
                "units": show_units(recurring.terms.units, store.scale),
                "every": recurring.terms.every,
                "count": recurring.terms.count,
                "anchor": recurring.terms.anchor,
                "wallet": recurring.terms.wallet,
                "next_at": None
                if recurring.next_at == NEVER
                else calendar.show_instant(recurring.next_at),
            }
            for recurring in state.recurring.values()
        ],
        "alerts": [
            _alert(alert.terms, store.scale)
            for alert in state.alerts.values()
            if alert.terms.on != TOPUP
        ],
    }


def _alert(terms: AlertTerms, scale: int) -> dict[str, object]:
    in_units = terms.on == "balance"
    return {
        "name": terms.name,
        "on": terms.on,
        "threshold": show_units(terms.threshold, scale) if in_units else terms.threshold,
        "wallet": terms.wallet,
        "budget": terms.budget,
    }


def access_of(store: Store, request: Request, *, at: int, as_of: int | None) -> Access:
    """Answer whether an account may do what a request asks, now or as things stood at a moment.

    Args:
        store: Where the ledger is kept.
        request: A consume that is not carried out; see `ledger.access`.
        at: Now.
        as_of: A moment of the past: what the ledger knew then, the catalog in force then.
    """
    with store.read() as reader:
        state, when = _as_of(reader, request.project, request.account, at, as_of)
        book = reader.prices(request.project)
    return access(
        state, request, when, Rules(book if as_of is None else _then(book, as_of), store.scale)
    )


def entitlements(
    store: Store, project: str, account: str, *, at: int, as_of: int | None = None
) -> list[dict[str, object]]:
    """Return all that an account may use, now or as of a moment, the oldest first."""
    with store.read() as reader:
        state, when = _as_of(reader, project, account, at, as_of)
    return list(holdings(state, store.scale, when))


class Held(Struct, frozen=True):
    """How many accounts hold a product on the terms of one version of the catalog.

    Attributes:
        section: pack, plan, pass or coupon.
        name: Of the product.
        version: Of the catalog that its terms are of.
        accounts: How many.
    """

    section: str
    name: str
    version: int
    accounts: int


_SECTIONS = {"subscription": "plan", "time_pass": "pass", "usage_pack": "pack"}


def holders(store: Store, project: str, *, at: int) -> list[Held]:
    """Return how many accounts hold each product of the catalog, by the version of its terms."""
    counts: dict[tuple[str, str, int], int] = {}
    with store.read() as reader:
        book = reader.prices(project)
        for name in _names(reader, project):
            state = look(reader, project, name, at)
            for key in {
                _held_as(book, str(one["kind"]), str(one["product"]), int(str(one["version"])))
                for one in holdings(state, store.scale, at)
                if one["kind"] in _SECTIONS and one["version"]
            }:
                counts[key] = counts.get(key, 0) + 1
    return [Held(*key, accounts) for key, accounts in sorted(counts.items())]


def _held_as(book: PriceBook, kind: str, product: str, version: int) -> tuple[str, str, int]:
    """Return the section, name and version of a product; units may be a pack's or a coupon's."""
    if kind == "usage_pack" and product in book.version(version).products.coupons:
        return "coupon", product, version
    return _SECTIONS[kind], product, version


def _as_of(
    reader: Reader, project: str, account: str, at: int, as_of: int | None
) -> tuple[Account, int]:
    """Return an account as it stands now, or stood at a moment, and the moment."""
    if as_of is None:
        state = look(reader, project, account, at)
        return state, max(at, state.at)
    _check_moment(as_of, at)
    owner = account_id(project, account)
    history = (stored.entry for stored in _history(reader, owner))
    return _fold_until(account, owner, history, as_of), as_of


def _check_moment(as_of: int, at: int) -> None:
    """Refuse a moment so far ahead that the clock would take long to get there."""
    if as_of > at + AHEAD_MAX:
        raise InvalidInput("a moment may be at most 400 days ahead")


def _then(book: PriceBook, as_of: int) -> PriceBook:
    """Return the price book with the version in force that was so at a moment."""
    known = [number for number, one in book.versions.items() if one.applied_at <= as_of]
    return PriceBook(book.versions, max(known, default=0))


def check_limit(limit: object) -> None:
    """Make sure that a page may have so many lines.

    Raises:
        InvalidInput: It may not.
    """
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise InvalidInput(f"limit must be a whole number from 1 to {PAGE_MAX}")


def knows(store: Store, project: str, account: str) -> bool:
    """Return whether an account has a history."""
    with store.read() as reader:
        return bool(reader.entries(account_id(project, account), 0, 1))


def history(
    store: Store, project: str, account: str, *, after: int = 0, limit: int = PAGE_MAX
) -> list[Receipt]:
    """Return entries of an account with a seq above `after`, oldest first; 1,000 at the most.

    Raises:
        InvalidInput: `after` or `limit` is out of bounds.
    """
    check_limit(limit)
    if type(after) is not int or not 0 <= after <= SEQ_MAX:
        raise InvalidInput("after must be the seq of an entry, 0 for the first page")
    with store.read() as reader:
        rows = reader.entries(account_id(project, account), after, limit)
    return [Receipt(stored.entry, store.scale, account) for stored in rows]


def proven(store: Store, project: str, account: str, request_id: str) -> Proven:
    """Return the entry that a request made, with what proves it.

    Raises:
        NotFound: The request made none.
    """
    owner = account_id(project, account)
    with store.read() as reader:
        entry = reader.answers([(owner, request_id)]).get((owner, request_id))
        if not isinstance(entry, Entry):
            raise NotFound(f"request {request_id!r} of {account} made no entry")
        rows = reader.entries(owner, max(entry.seq - 2, 0), 2)
    row = next(stored for stored in rows if stored.seq == entry.seq)
    before = b"" if row is rows[0] else rows[0].hash
    return Proven(Receipt(entry, store.scale, account), row.body, row.hash, before)


def _fold_until(account: str, owner: bytes, history: Iterable[Entry], as_of: int) -> Account:
    """Fold what was recorded by `as_of`, and let the clock go on until then."""
    state = Account(account)
    for entry in history:
        if entry.at > as_of:
            break
        apply(state, entry)
    book = Book(accounts={owner: state})
    advance_in(book, owner, as_of)
    return state


def _sum_effective(account: str, history: Iterable[Entry], wallet: str, as_of: int) -> Account:
    """Sum the postings of everything that was effective by `as_of`."""
    state = Account(account)
    buckets = state.wallets[wallet] = Wallet()
    for entry in history:
        if entry.wallet != wallet or entry.effective_at > as_of:
            continue
        state.seq = entry.seq
        for source, target, _, units in (_parts(posting) for posting in entry.postings):
            sign = -1 if source == "issued" else 1
            setattr(buckets, source, getattr(buckets, source) - sign * units)
            sign = -1 if target == "issued" else 1
            setattr(buckets, target, getattr(buckets, target) + sign * units)
    return state


def _parts(posting: Any) -> tuple[str, str, str, int]:
    return posting.source, posting.target, posting.line, posting.units


def _balance_of(state: Account, wallet: str, scale: int, at: int) -> Balance:
    found = state.wallet(wallet)

    def exact(units: int) -> Decimal:
        return to_decimal(units, scale)

    owed = max(found.overdraft + found.overdraft_limit, 0)
    free = sum(g.remaining for g in state.grants.values() if g.terms.wallet == wallet)
    return Balance(
        account=state.account,
        wallet=wallet,
        available=exact(found.available),
        held=exact(found.held),
        used=exact(found.used),
        expired=exact(found.expired),
        issued=exact(found.issued),
        overdraft_limit=exact(found.overdraft_limit),
        spendable=exact(free + owed),
        status=state.status,
        as_of=calendar.show_instant(at),
        seq=state.seq,
        grants=tuple(
            {
                "id": grant.terms.id,
                "remaining": show_units(grant.remaining, scale),
                "on_hold": show_units(grant.pinned, scale),
                "units": show_units(grant.terms.units, scale),
                "category": grant.terms.category,
                "priority": grant.terms.priority,
                "effective_at": calendar.show_instant(grant.terms.effective_at),
                "expires_at": None
                if grant.terms.expires_at is None
                else calendar.show_instant(grant.terms.expires_at),
                "applies_to": list(grant.terms.applies_to),
                "source": grant.terms.source,
                "scheduled": grant.scheduled,
            }
            for grant in state.grants.values()
            if grant.terms.wallet == wallet
        ),
        holds=tuple(
            {
                "id": hold.id,
                "held": show_units(sum(hold.lines.values()), scale),
                "settled": show_units(hold.settled, scale),
                "operation": hold.operation,
                "state": "in_doubt" if hold.in_doubt else "open",
                "opened_at": calendar.show_instant(hold.opened_at),
                "expires_at": calendar.show_instant(hold.deadline),
            }
            for hold in state.holds.values()
            if hold.wallet == wallet
        ),
        budgets=tuple(_budgets(state, wallet, scale, at)),
    )


def _budgets(state: Account, wallet: str, scale: int, at: int) -> Iterator[dict[str, Any]]:
    """Yield every budget of the wallet with what is counted in the window at hand."""
    for budget in state.budgets.values():
        if budget.terms.wallet != wallet:
            continue
        for room in budgets.rooms(state, budget, at):
            yield {
                "name": budget.terms.name,
                "node": room.node,
                "period": budget.terms.period,
                "cap": show_units(room.cap, scale),
                "spent": show_units(room.spent, scale),
                "left": show_units(room.left, scale),
                "resets_at": None
                if room.resets_at >= calendar.INSTANT_MAX
                else calendar.show_instant(room.resets_at),
            }


# ---------------------------------------------------------------- statement and usage


def statement(
    store: Store,
    project: str,
    account: str,
    *,
    limit: int = 100,
    before: int | None = None,
    kinds: Sequence[str] = (),
    since: int | None = None,
    until: int | None = None,
    at: int,
) -> Page:
    """Return entries of an account, newest first.

    Args:
        store: Where the ledger is kept.
        project: The isolation boundary.
        account: The balance owner.
        limit: How many, 1,000 at the most.
        before: Go on below this seq, as `Page.next` says.
        kinds: Only these kinds; empty for all.
        since: Only what was recorded at or after this.
        until: Only what was recorded before this.
        at: Now; what fell due by then is in `Page.due`.
    """
    check_limit(limit)
    if before is not None and type(before) is not int:
        raise InvalidInput("before must be a whole number, as Page.next is")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidInput(f"there is no kind {kind!r}; use {', '.join(KINDS)}")
    owner = account_id(project, account)
    found: list[Receipt] = []
    waiting: tuple[Receipt, ...] = ()
    below = min(before, 2**62) if before is not None else 2**62
    with store.read() as reader:
        if before is None and (until is None or at < until) and (since is None or since <= at):
            due = _due(reader, store.scale, project, account, at)[:PAGE_MAX]
            waiting = tuple(one for one in reversed(due) if not kinds or one.kind in kinds)
        while len(found) < limit:
            rows = reader.entries_before(owner, below, PAGE_MAX if kinds else limit)
            for stored in rows:
                below = stored.seq
                if since is not None and stored.recorded_at < since:
                    return Page(tuple(found), None, waiting)
                if (until is None or stored.recorded_at < until) and (
                    not kinds or stored.kind in kinds
                ):
                    found.append(Receipt(stored.entry, store.scale, account))
                    if len(found) == limit:
                        break
            if not rows or below == 1:
                break
    going_on = below if found and below > 1 and len(found) == limit else None
    return Page(tuple(found), going_on, waiting)


def usage(
    store: Store,
    project: str,
    *,
    account: str | None = None,
    at: int,
    by: Sequence[str] = ("operation",),
    since: int | None = None,
    until: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Return what was used, grouped; refunds are taken off where their charge was counted.

    A charge is counted when its work began: at the `effective_at` of its consume or hold.
    Over all time the rows sum to `used` of the balances.

    Args:
        store: Where the ledger is kept.
        project: The isolation boundary.
        account: One account, or all.
        at: Now; what fell due by then is counted whether or not it was booked.
        by: Any of "account", "operation", "model", "wallet", "day", "month" and "tag:NAME".
            Days and months are those of the account's time zone.
        since: Only work that began at or after this.
        until: Only work that began before this.
        progress: Called with the number of entries read so far.

    Returns:
        Rows sorted by group, each with the group's values, `units`, `refunded` and `count`.
    """
    for name in by:
        if name not in _GROUPS and not name.startswith("tag:"):
            raise InvalidInput(f"usage cannot be grouped by {name!r}; use {', '.join(_GROUPS)}")
    totals: dict[tuple[str, ...], list[int]] = {}
    read = 0
    with store.read() as reader:
        for name in [account] if account is not None else _names(reader, project):
            owner = account_id(project, name)
            zone = reader.accounts([(owner, name)])[owner].settings.time_zone
            begun: dict[str, int] = {}
            for stored in _history_until(reader, owner, name, at):
                read += 1
                if progress is not None and read % PAGE_MAX == 0:
                    progress(read)
                when = _work_began(reader, owner, stored, begun)
                if when is None:
                    continue
                entry = stored.entry
                if (since is not None and when < since) or (until is not None and when >= until):
                    continue
                key = tuple(_group(group, name, entry, when, zone) for group in by)
                row = totals.setdefault(key, [0, 0, 0])
                if entry.kind == "refund":
                    row[1] += entry.units
                else:
                    row[0] += entry.units
                    row[2] += 1
    scale = store.scale
    return [
        {
            **dict(zip(by, key, strict=True)),
            "units": show_units(used - refunded, scale),
            "refunded": show_units(refunded, scale),
            "count": count,
        }
        for key, (used, refunded, count) in sorted(totals.items())
    ]


def _work_began(reader: Reader, owner: bytes, stored: Stored, begun: dict[str, int]) -> int | None:
    """Return when the work of a charge or refund began, None for any other entry.

    `begun` holds the open holds of the account so far; what is asked of an ended one is looked up.
    """
    match stored.kind:
        case "consume":
            return stored.effective_at
        case "hold":
            begun[stored.request_id or ""] = stored.effective_at
        case "release" | "hold_expired":
            begun.pop(stored.ref or "", None)
        case "settle" | "refund":
            root = stored.ref or ""
            when = begun.get(root)
            if when is None:
                made, _ = _around(reader, owner, root)
                assert made is not None, f"entry {stored.seq} acts on {root}, which is not there"
                return made.effective_at
            if stored.kind == "settle" and stored.entry.final:
                del begun[root]
            return when
    return None


_GROUPS = ("account", "operation", "model", "wallet", "day", "month", "tag:NAME")


def _group(group: str, account: str, entry: Entry, when: int, zone: str) -> str:
    match group:
        case "account":
            return account
        case "operation":
            return entry.operation or ""
        case "model":
            return entry.model or ""
        case "wallet":
            return entry.wallet
        case "day":
            return calendar.to_datetime(when).astimezone(calendar.zone(zone)).date().isoformat()
        case "month":
            local = calendar.to_datetime(when).astimezone(calendar.zone(zone))
            return local.strftime("%Y-%m")
        case _:
            return (entry.tags or {}).get(group.removeprefix("tag:"), "")


def _names(reader: Reader, project: str) -> Iterator[str]:
    after = ""
    while names := reader.names(project, after, PAGE_MAX):
        yield from names
        after = names[-1]


def _history(reader: Reader, owner: bytes) -> Iterator[Stored]:
    after = 0
    while rows := reader.entries(owner, after, PAGE_MAX):
        yield from rows
        after = rows[-1].seq


def _history_until(reader: Reader, owner: bytes, account: str, at: int) -> Iterator[Stored]:
    """Yield the entries of an account, oldest first, then those that fell due by `at` since."""
    yield from _history(reader, owner)
    for sealed in _unbooked(reader, owner, account, at):
        entry = sealed.entry
        yield Stored(
            sealed.body,
            sealed.hash,
            sealed.metadata,
            entry.seq,
            entry.request_id,
            entry.ref,
            entry.kind,
            entry.at,
            entry.effective_at,
        )


def _unbooked(reader: Reader, owner: bytes, account: str, at: int) -> list[Sealed]:
    """Return what fell due on an account by `at` and nobody has booked yet."""
    book = Book(accounts=dict(reader.accounts([(owner, account)])))
    if book.accounts[owner].next_due_at <= at:
        advance_in(book, owner, at)
    return book.appended


def _due(reader: Reader, scale: int, project: str, account: str, at: int) -> list[Receipt]:
    """Return what fell due on an account by `at` and nobody has booked yet, oldest first."""
    due = _unbooked(reader, account_id(project, account), account, at)
    return [Receipt(sealed.entry, scale, account, due=True) for sealed in due]


def histories(
    store: Store, project: str, account: str | None = None, *, due_by: int | None = None
) -> Iterator[Receipt]:
    """Yield every entry of one account or of all, account by account, oldest first.

    With `due_by`, each account's are followed by what fell due by then and nobody has booked.
    """
    with store.read() as reader:
        for name in [account] if account is not None else _names(reader, project):
            for stored in _history(reader, account_id(project, name)):
                yield Receipt(stored.entry, store.scale, name)
            if due_by is not None:
                yield from _due(reader, store.scale, project, name, due_by)


# ---------------------------------------------------------------- explain


def hold_state(store: Store, project: str, account: str, hold_id: str, *, at: int) -> str:
    """Return what a hold is at `at`: open, in_doubt, settled, released or expired.

    Raises:
        NotFound: The account has no hold of that id.
    """
    owner = account_id(project, account)
    with store.read() as reader:
        root, acts, _ = _story(reader, owner, hold_id)
        acts = acts + _due_on(reader, owner, account, hold_id, at)
    if root is None or root.kind != "hold":
        raise NotFound(f"{account} has no hold {hold_id!r}")
    return outcome_of(root, acts)


def _due_on(reader: Reader, owner: bytes, account: str, name: str, at: int) -> list[Entry]:
    """Return the entries that fell due on an id by `at` and that nobody has booked yet."""
    due = _unbooked(reader, owner, account, at)
    return [sealed.entry for sealed in due if sealed.entry.ref == name]


def explain_request(
    store: Store, project: str, request_id: str, *, at: int, account: str | None = None
) -> dict[str, object]:
    """Return the whole story of one request id, refusals included.

    Args:
        store: Where the ledger is kept.
        project: The isolation boundary.
        request_id: The id of a charge, hold, grant or refused request; the id of a settle,
            release or refund leads to what it acted on.
        at: Now; what fell due by then is part of the story.
        account: The balance owner; may be left out where the id is known to one account only.

    Raises:
        NotFound: No account knows this id.
        InvalidInput: Several accounts know it; say which is meant.
    """
    with store.read() as reader:
        if account is None:
            owners = reader.find(project, request_id)
            if not owners:
                raise NotFound(f"no account knows request_id {request_id!r}")
            if len(owners) > 1:
                raise InvalidInput(
                    f"{len(owners)} accounts know {request_id!r}: {', '.join(owners[:10])}. "
                    f"Say which is meant"
                )
            account = owners[0]
        owner = account_id(project, account)
        root, acts, refusal = _story(reader, owner, request_id)
        if refusal is not None and refusal.code == ANSWERED_BEFORE:
            root, acts, refusal = _story(reader, owner, refusal.details["ref"])
        if root is not None and root.ref is not None and not acts:
            origin, others, _ = _story(reader, owner, root.ref)
            if origin is not None:
                root, acts = origin, others
        found = root or refusal
        if found is None:  # a name of an entitlement leads to its story, too
            root, acts, _ = _story(reader, owner, entitlement_ref(request_id))
            found = root
        if found is None:
            raise NotFound(f"{account} does not know request_id {request_id!r}")
        key = (owner, found.request_id or request_id)
        name = root.ref if root is not None and root.entitlement is not None else key[1]
        acts = acts + _due_on(reader, owner, account, name or key[1], at)
        times, last_at = _repeats(reader, owner, [found, *acts])
        facts = Facts(
            account=account,
            request_id=key[1],
            root=found,
            acts=acts,
            terms=_terms(reader, owner, [found, *acts]),
            replays=times,
            last_replay_at=last_at,
            prices=reader.prices(project),
            scale=store.scale,
            metadata=_metadata(reader, owner, root),
        )
    return explain(facts)


def _story(
    reader: Reader, owner: bytes, request_id: str
) -> tuple[Entry | None, list[Entry], Refusal | None]:
    root, acts = _around(reader, owner, request_id)
    refusal = None
    if root is None:
        found = reader.answers([(owner, request_id)]).get((owner, request_id))
        refusal = found if isinstance(found, Refusal) else None
        if refusal is None and acts:  # an id of our own, such as a recurring grant's
            root, acts = acts[0], acts[1:]
    return root, acts, refusal


def _repeats(reader: Reader, owner: bytes, story: Sequence[Entry | Refusal]) -> tuple[int, int]:
    """Return how often the requests of this story were repeated, and when last."""
    times = last_at = 0
    for item in story:
        if item.request_id:
            more, when = reader.replays((owner, item.request_id))
            times, last_at = times + more, max(last_at, when)
    return times, last_at


def _around(reader: Reader, owner: bytes, name: str) -> Story:
    """Return the entry made by one id, and the entries that refer to it."""
    return reader.stories([(owner, name)])[owner, name]


def _terms(reader: Reader, owner: bytes, story: Sequence[Entry | Refusal]) -> dict[str, Terms]:
    """Return the terms of every grant that these entries moved units of."""
    lines = {
        posting.line
        for item in story
        if isinstance(item, Entry)
        for posting in item.postings
        if posting.line != OVERDRAFT
    }
    terms: dict[str, Terms] = {}
    for line in lines:
        _, acts = _around(reader, owner, line)
        root, _ = _around(reader, owner, maker(line))
        for entry in ([] if root is None else [root]) + acts:
            terms |= {opened.id: opened for opened in entry.opens if opened.id == line}
    return terms


def _metadata(reader: Reader, owner: bytes, root: Entry | None) -> str | None:
    if root is None:
        return None
    rows = reader.entries(owner, root.seq - 1, 1)
    return rows[0].metadata if rows else None


# ---------------------------------------------------------------- verify


def verify(
    store: Store,
    project: str,
    *,
    account: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Refold histories from their stored bytes and compare them with everything stored.

    Checked for each account: no gap in seq, time never backwards, every hash, the columns that
    repeat the canonical bytes, metadata against its digest, that every entry applies, and that
    the folded state is the stored state to the byte.

    Raises:
        NotFound: The account that was named has no history.
    """
    found = Verification()
    for problem in store.check():
        found.problems.append({"account": None, "seq": None, "problem": problem})
    with store.read() as reader:
        if account is not None and not _is_there(reader, account_id(project, account)):
            raise NotFound(f"there is no account {account!r} here")
        for name in [account] if account is not None else _names(reader, project):
            _verify_account(reader, project, name, found, progress)
    return found


def _is_there(reader: Reader, owner: bytes) -> bool:
    """Return whether anything is stored of an account: its row, or an entry."""
    return reader.stored_state(owner) is not None or bool(reader.entries(owner, 0, 1))


def _verify_account(
    reader: Reader,
    project: str,
    name: str,
    found: Verification,
    progress: Callable[[int], None] | None,
) -> None:
    owner = account_id(project, name)
    state = Account(name)
    found.accounts += 1
    row = reader.stored_state(owner)
    problem = None
    for stored in _history(reader, owner):
        problem = _verify_entry(state, owner, stored)
        if problem is None and row is not None and state.seq == row[0]:
            problem = _verify_state(state, row)
        if problem is not None:
            found.problems.append({"account": name, "seq": stored.seq, "problem": problem})
            return
        found.entries += 1
        if progress is not None and found.entries % PAGE_MAX == 0:
            progress(found.entries)
    if row is None:
        problem = None if state.seq == 0 else "the account has entries but no row"
    elif state.seq < row[0] or (state.seq > row[0] and not reader.states_trail):
        problem = f"the account's row ends at {row[0]}, its entries at {state.seq}"
    if problem is not None:
        found.problems.append({"account": name, "seq": state.seq, "problem": problem})


def _verify_state(state: Account, row: tuple[int, bytes, str]) -> str | None:
    """Compare a refolded account with its row; return what is wrong with the row, if anything."""
    state.next_due_at = next_due(state)
    if row[1] != state.head:
        return "the account's row has another chain head than its entries"
    if row[2].encode() != chain.encode_state(state):
        return "the stored state is not what the entries fold to"
    return None


def _verify_entry(state: Account, owner: bytes, stored: Stored) -> str | None:
    """Apply one stored entry to the state; return what is wrong with it, if anything."""
    if stored.seq != state.seq + 1:
        return f"entries {state.seq + 1} to {stored.seq - 1} are missing"
    if chain.link(state.head, owner, stored.body) != stored.hash:
        return "the hash does not match the entry and the one before"
    try:
        entry = stored.entry
        if not stored.columns_agree(entry):
            return "a column differs from the canonical bytes"
        if stored.metadata is not None:
            digest = sha256(stored.metadata.encode()).digest()
            if digest != entry.metadata_digest:
                return "the metadata does not match its digest"
        apply(state, entry)
    except (AssertionError, KeyError, ValueError) as problem:
        return f"the entry does not fit the history: {problem}"
    state.head = stored.hash
    return None


__all__ = [
    "Balance",
    "Page",
    "Receipt",
    "Verification",
    "balance",
    "explain_request",
    "histories",
    "look",
    "preview",
    "statement",
    "usage",
    "verify",
]
