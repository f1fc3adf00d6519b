"""The rules: decide what a request leads to, and fold entries into accounts.

`decide(case)` answers one request with an `Entry` to append or a `Refusal`; `apply(account,
entry)` is the only function that changes an account; `advance` books what fell due by the clock;
`decide_batch` runs many requests in order. Nothing here knows of stores, clocks or callers.

The checks of each verb stand in the order of the refusals' precedence (errors.REFUSALS).
"""

from __future__ import annotations

import heapq
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from tillroll.ledger import budgets, calendar, chain
from tillroll.ledger import commands as c
from tillroll.ledger.budgets import Spend
from tillroll.ledger.burn import draw, home, is_over, sort_grants, spendable
from tillroll.ledger.errors import IdempotencyConflict, InvalidInput, TillrollError
from tillroll.ledger.pricing import PriceBook, Priced, Unpriced, price_hold, price_request
from tillroll.ledger.types import (
    DAY,
    HOUR,
    MINUTE,
    NEVER,
    OVERDRAFT,
    RESERVED,
    WALLET_DEFAULT,
    Account,
    Budget,
    Entry,
    Grant,
    Hold,
    Kind,
    Meters,
    Posting,
    PricedBy,
    Recurring,
    RecurringTerms,
    Refusal,
    Terms,
    Wallet,
)
from tillroll.ledger.units import UNITS_MAX, show_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from decimal import Decimal

HOLD_LIFE = 15 * MINUTE
HOLD_LIFE_MAX = 24 * HOUR
DOUBT_LIFE = 24 * HOUR
DOUBT_LIFE_MAX = 30 * DAY
LATE_MAX = 35 * DAY
EARLY_MAX = 5 * MINUTE
REFUSAL_LIFE = 90 * DAY
# One state document holds all of these (decisions/0007): about 100 bytes each, 1 MB at the most.
LIVE_MAX = 10_000


class Rules(Struct, frozen=True):
    """What decisions need beside the account: the prices and the scale of the units."""

    prices: PriceBook
    scale: int = 6


class Sealed(NamedTuple):
    """An entry with its canonical bytes and its place in the account's chain."""

    account_id: bytes
    entry: Entry
    body: bytes
    hash: bytes
    metadata: str | None


class Answer(NamedTuple):
    """What became of one request."""

    outcome: Entry | Refusal | TillrollError
    replayed: bool = False


class Book(Struct):
    """All state that one batch may touch.

    Attributes:
        accounts: By account_id, every account of the batch; new ones are empty.
        answers: By (account_id, request_id): what was answered before, and in this batch.
        stories: By (account_id, id): the entries that acted on that id, oldest first.
        appended: What this batch adds to the histories, in order.
        refused: What this batch adds to the remembered refusals.
        replayed: The requests that were repeats.
    """

    accounts: dict[bytes, Account] = field(default_factory=dict)
    answers: dict[tuple[bytes, str], Entry | Refusal] = field(default_factory=dict)
    stories: dict[tuple[bytes, str], list[Entry]] = field(default_factory=dict)
    appended: list[Sealed] = field(default_factory=list)
    refused: list[tuple[bytes, Refusal]] = field(default_factory=list)
    replayed: list[tuple[bytes, str, int]] = field(default_factory=list)

    def story(self, account_id: bytes, name: str) -> list[Entry]:
        """Return the entry that made this id and those that acted on it, oldest first."""
        root = self.answers.get((account_id, maker(name)))
        acts = self.stories.get((account_id, name), [])
        return [root, *acts] if isinstance(root, Entry) else acts


class Case(NamedTuple):
    """One request before the account it concerns, at one moment."""

    account: Account
    request: c.Request
    at: int
    rules: Rules
    book: Book

    def story(self, name: str) -> list[Entry]:
        """Return what is known of an id of this account, oldest first."""
        return self.book.story(self.request.account_id, name)


# ---------------------------------------------------------------- many requests, one batch


def decide_batch(book: Book, requests: Sequence[c.Request], at: int, rules: Rules) -> list[Answer]:
    """Answer each request in order, adding to the book what is to be stored."""
    answers = [_answer(book, request, at, rules) for request in requests]
    for owner in {sealed.account_id for sealed in book.appended}:
        account = book.accounts[owner]
        if account.next_due_at != NEVER:  # entries only lower it; what ended must raise it again
            account.next_due_at = next_due(account)
    return answers


def missing_stories(book: Book, requests: Sequence[c.Request], at: int) -> set[tuple[bytes, str]]:
    """Return the stories that deciding these requests may ask for and that are not loaded.

    A story leads to others: a refund to the charge, from there to the grants that paid. So a
    store asks again after each load until nothing is missing.
    """
    wanted: set[tuple[bytes, str]] = set()
    seen: set[tuple[bytes, str]] = set()
    settles: dict[tuple[bytes, str], str] = {}
    for request in requests:
        owner, command = request.account_id, request.command
        if isinstance(command, c.Consume | c.Hold | c.Grant):
            seen.add((owner, request.request_id))
        elif isinstance(command, _WORK_IN_FLIGHT):
            hold = book.accounts[owner].holds.get(command.hold_id)
            if hold is None or hold.deadline <= at or (owner, command.hold_id) in seen:
                wanted.add((owner, command.hold_id))
            seen.add((owner, command.hold_id))
            if isinstance(command, c.Settle):
                settles[owner, request.request_id] = command.hold_id
        elif isinstance(command, c.Void):
            wanted |= {(owner, command.grant_id), (owner, maker(command.grant_id))}
        elif isinstance(command, c.Refund):
            # A settle of this very batch is not stored yet: what it acts on is asked for by name.
            charges = {command.charge, settles.get((owner, command.charge), command.charge)}
            for charge in charges:
                wanted.update((owner, name) for name in _refund_trail(book, owner, charge))
    return wanted - book.stories.keys()


def maker(grant_id: str) -> str:
    """Return the request that made a grant: its own id, but for those that a refund numbered."""
    head, mark, nth = grant_id.rpartition("#")
    return head[1:] if mark and head.startswith(RESERVED) and nth.isdecimal() else grant_id


def _refund_trail(book: Book, owner: bytes, charge: str) -> Iterator[str]:
    """Yield the charge, the hold it was settled on, and every grant that may have paid it."""
    yield charge
    story = book.story(owner, charge)
    if story and story[0].kind == "settle" and story[0].ref:
        charge = story[0].ref
        yield charge
        story = book.story(owner, charge)
    for line in _paid(story):
        if line != OVERDRAFT:
            yield line
            yield maker(line)
    account = book.accounts[owner]
    if not story or charge in account.holds:
        # What pays may be decided in this very batch, by any grant that is live now.
        for line in account.grants:
            yield line
            yield maker(line)


def _answer(book: Book, request: c.Request, at: int, rules: Rules) -> Answer:
    key = (request.account_id, request.request_id)
    account = book.accounts[request.account_id]
    at = max(at, account.at)  # an account's time never runs backwards
    earlier = book.answers.get(key)
    if earlier is not None and not _decides_anew(request, earlier):
        return _repeat(book, request, earlier, at)
    if account.next_due_at <= at:
        advance_in(book, request.account_id, at)
    try:
        outcome = decide(Case(account, request, at, rules, book))
    except InvalidInput as problem:
        problem.request_id = request.request_id
        return Answer(problem)
    if isinstance(outcome, Answer):
        return outcome
    book.answers[key] = outcome
    if isinstance(outcome, Refusal):
        book.refused.append((request.account_id, outcome))
        return Answer(outcome)
    append(book, request.account_id, outcome, request.metadata)
    if account.next_due_at <= at:
        advance_in(book, request.account_id, at)
    return Answer(outcome)


def _decides_anew(request: c.Request, earlier: Entry | Refusal) -> bool:
    """Return whether a known id is to be decided again; another body stays a conflict."""
    return (
        request.retry_refused
        and isinstance(earlier, Refusal)
        and earlier.fingerprint == request.fingerprint
    )


def _repeat(book: Book, request: c.Request, earlier: Entry | Refusal, at: int) -> Answer:
    """Answer a request whose id is known: the first answer, or a conflict."""
    if earlier.fingerprint != request.fingerprint:
        conflict = IdempotencyConflict(
            f"request_id {request.request_id!r} was used before for a different request; "
            f"nothing was written. Use a new id for a new request"
        )
        conflict.request_id = request.request_id
        return Answer(conflict)
    book.replayed.append((request.account_id, request.request_id, at))
    return Answer(earlier, replayed=True)


def append(book: Book, account_id: bytes, entry: Entry, metadata: str | None = None) -> None:
    """Apply an entry, link it to the chain and put it among what is to be stored."""
    account = book.accounts[account_id]
    apply(account, entry)
    body = chain.encode(entry)
    account.head = chain.link(account.head, account_id, body)
    book.appended.append(Sealed(account_id, entry, body, account.head, metadata))
    if entry.ref is not None:
        book.stories.setdefault((account_id, entry.ref), []).append(entry)


def advance_in(book: Book, account_id: bytes, at: int) -> None:
    """Book everything that fell due on one account by `at`."""
    for entry in advance(book.accounts[account_id], at):
        append(book, account_id, entry)


# ---------------------------------------------------------------- time


_HOLD, _RENEWAL, _EXPIRY, _ACTIVATION = range(4)


def due_items(account: Account) -> Iterator[tuple[int, int, str]]:
    """Yield everything that the clock will bring: when, of what sort, and its name.

    At the same instant holds end first (their units return to the grants), then recurring grants
    renew (and carry over what remains), then grants expire, then scheduled grants begin.
    """
    for hold in account.holds.values():
        yield hold.deadline, _HOLD, hold.id
    for recurring in account.recurring.values():
        if recurring.next_at < NEVER:
            yield recurring.next_at, _RENEWAL, recurring.terms.name
    for grant in account.grants.values():
        if grant.scheduled:
            yield grant.terms.effective_at, _ACTIVATION, grant.terms.id
        elif grant.remaining and grant.terms.expires_at is not None:
            yield grant.terms.expires_at, _EXPIRY, grant.terms.id


def next_due(account: Account) -> int:
    """Return when the clock will next change this account, `NEVER` where it will not."""
    return min((item[0] for item in due_items(account)), default=NEVER)


def advance(account: Account, at: int) -> Iterator[Entry]:
    """Yield an entry for everything that fell due by `at`, in due order.

    Each entry must be applied before the next is asked for. It is recorded at `at` and effective
    when it fell due, so a late look and an early one book the same history.
    """
    due = [item for item in due_items(account) if item[0] <= at]
    heapq.heapify(due)
    while due:
        when, sort, name = heapq.heappop(due)
        entry = _fall_due(account, (when, sort, name), at)
        if entry is None:
            continue
        yield entry
        for item in _followers(account, entry):
            if item[0] <= at:
                heapq.heappush(due, item)
    account.next_due_at = next_due(account)


def _followers(account: Account, entry: Entry) -> Iterator[tuple[int, int, str]]:
    """Yield what the clock may bring after this entry: the next renewal, and expiries."""
    if entry.recurring is not None and entry.recurring.name in account.recurring:
        recurring = account.recurring[entry.recurring.name]
        yield recurring.next_at, _RENEWAL, recurring.terms.name
    for posting in entry.postings:
        grant = account.grants.get(posting.line) if posting.target == "available" else None
        if grant is not None and grant.terms.expires_at is not None:
            yield grant.terms.expires_at, _EXPIRY, posting.line


def _fall_due(account: Account, item: tuple[int, int, str], at: int) -> Entry | None:
    """Return the entry that a due item leads to, None where nothing is left to book."""
    when, sort, name = item
    if sort == _HOLD:
        return _hold_falls_due(account, account.holds[name], at)
    if sort == _RENEWAL:
        return _renew(account, account.recurring[name], at)
    grant = account.grants.get(name)
    if grant is None:
        return None
    terms = grant.terms
    if sort == _ACTIVATION:
        return _due(
            account,
            "grant_activated",
            at,
            when,
            terms.wallet,
            terms.units,
            _issue(account, terms),
            ref=name,
        )
    if not grant.remaining:
        return None
    postings = (Posting("available", "expired", name, grant.remaining),)
    return _due(
        account, "grant_expired", at, when, terms.wallet, grant.remaining, postings, ref=name
    )


def _hold_falls_due(account: Account, hold: Hold, at: int) -> Entry:
    """End a hold whose deadline passed: give back, or charge where doubt was to end so."""
    when = hold.deadline
    if hold.in_doubt and hold.at_deadline == "settle":
        postings = tuple(Posting("held", "used", *line) for line in hold.lines.items() if line[1])
        kind: Kind = "settle"
    else:
        postings = _returns(account, hold.lines, when)
        kind = "hold_expired"
    units = sum(posting.units for posting in postings)
    return _due(
        account,
        kind,
        at,
        when,
        hold.wallet,
        units,
        postings,
        ref=hold.id,
        final=True,
        operation=hold.operation,
        model=hold.model,
        tags=hold.tags,
        reason="in doubt until its deadline" if hold.in_doubt else "deadline passed",
    )


def _renew(account: Account, recurring: Recurring, at: int) -> Entry:
    """Grant the next period's units, carrying over what the rollover allows.

    carried = min(rollover_max, max(what is left, rollover_min)); the rest expires. The first grant
    is no renewal, wherever in its period it begins: there is nothing before it to carry over.
    """
    terms = recurring.terms
    when = recurring.next_at
    previous = account.grants.get(recurring.current or "")
    if previous is not None and previous.terms.wallet != terms.wallet:
        previous = None  # it was moved to another wallet: the old one's grant just expires
    left = previous.remaining if previous else 0
    carried = min(terms.rollover_max, max(left, terms.rollover_min)) if recurring.current else 0
    moved = min(left, carried)
    zone = account.settings.time_zone
    opened = Terms(
        id=f"{RESERVED}{terms.name}/{account.seq + 1}",
        units=terms.units + carried,
        category=terms.category,
        wallet=terms.wallet,
        priority=terms.priority,
        effective_at=when,
        expires_at=calendar.occurrence(
            terms.anchor, terms.every, terms.count, recurring.next + 1, zone
        ),
        applies_to=terms.applies_to,
        recurring=terms.name,
    )
    postings = list(_issue(account, opened))
    if previous and moved:
        postings.insert(0, Posting("available", "issued", previous.terms.id, moved))
    if previous and left > moved:
        postings.insert(0, Posting("available", "expired", previous.terms.id, left - moved))
    return _due(
        account,
        "grant_renewed",
        at,
        when,
        terms.wallet,
        opened.units,
        tuple(postings),
        ref=opened.id,
        opens=(opened,),
        occurrence=recurring.next,
        recurring=terms,
    )


# ---------------------------------------------------------------- one request


def decide(case: Case) -> Entry | Refusal | Answer:
    """Answer one request on an account that was advanced to `case.at`; change nothing.

    Returns:
        The entry to append, a refusal, or a ready answer where the request asks for what was
        done before (a settle or release repeated under another id).

    Raises:
        InvalidInput: The request can never be right; nothing is remembered.
    """
    command = case.request.command
    refusal = _refuse_by_status(case)
    if refusal is not None:
        return refusal
    match command:
        case c.Consume():
            return _consume(case, command)
        case c.Hold():
            return _hold(case, command)
        case c.Settle():
            return _settle(case, command)
        case c.Release():
            return _release(case, command)
        case c.Extend():
            return _extend(case, command)
        case c.InDoubt():
            return _in_doubt(case, command)
        case c.Grant():
            return _grant(case, command)
        case c.Void():
            return _void(case, command)
        case c.Refund():
            return _refund(case, command)
        case c.Adjust():
            return _adjust(case, command)
        case _:
            return _govern(case, command)


_WORK_IN_FLIGHT = (c.Settle, c.Release, c.InDoubt, c.Extend)


def _refuse_by_status(case: Case) -> Refusal | None:
    """Refuse what a frozen or closed account may not do; work in flight may always end."""
    status = case.account.status
    command = case.request.command
    if status == "open" or isinstance(command, _WORK_IN_FLIGHT):
        return None
    if status == "closed":
        return _refuse(case, "account_closed", "the account is closed")
    if isinstance(command, c.Consume | c.Hold):
        return _refuse(
            case,
            "account_frozen",
            "the account is frozen",
            ways_out=({"kind": "unfreeze", "text": "an operator may unfreeze the account"},),
        )
    return None


class _Amount(NamedTuple):
    units: int
    wallet: str
    price: PricedBy | None


def _price(case: Case, work: c.Work) -> _Amount | Refusal:
    """Return what the work costs: the units given, or the price book's for its meters."""
    if work.units is not None:
        return _Amount(work.units, work.wallet or WALLET_DEFAULT, None)
    quote = work.quote
    if quote is not None and case.at >= quote.expires_at:
        return _refuse(
            case,
            "quote_expired",
            f"the quote ended at {calendar.show_instant(quote.expires_at)}",
            ways_out=({"kind": "quote", "text": "ask for a new quote"},),
        )
    return _price_meters(
        case,
        operation=work.operation or "",
        model=work.model,
        meters=work.meters,
        attributes=work.attributes,
        version=quote.version if quote else None,
        ceiling=quote.ceiling if quote else None,
        at=work.effective_at or case.at,
    )


def _price_meters(
    case: Case,
    *,
    operation: str,
    model: str | None,
    meters: Meters | None,
    attributes: dict[str, str] | None,
    version: int | None,
    ceiling: int | None,
    at: int,
) -> _Amount | Refusal:
    account = case.account
    asked: dict[str, Any] = {
        "model": model,
        "attributes": attributes,
        "account_ref": account.account,
        "at": at,
        "version": version,
        "scale": case.rules.scale,
    }
    book = case.rules.prices
    if isinstance(case.request.command, c.Hold):
        priced = price_hold(book, operation, meters or {}, **asked)
    else:
        priced = price_request(book, operation, meters or {}, **asked)
        carried = account.residuals.get(priced.rule) if isinstance(priced, Priced) else None
        if carried:
            priced = price_request(book, operation, meters or {}, residual=carried, **asked)
    if isinstance(priced, Unpriced):
        return _refuse(
            case,
            "unpriced",
            priced.reason,
            details={"known": ", ".join(priced.known)},
            ways_out=({"kind": "price", "text": "add a price to tillroll.toml and apply it"},),
        )
    units = priced.units if ceiling is None else min(priced.units, ceiling)
    residual: Decimal | None = priced.residual_after
    if isinstance(case.request.command, c.Hold) or not (
        residual or priced.rule in account.residuals
    ):
        residual = None  # a residual is carried by charges, and only where a price says so
    by = PricedBy(priced.version, priced.rule, priced.exact, residual)
    return _Amount(units, priced.wallet, by)


def _consume(case: Case, command: c.Consume) -> Entry | Refusal:
    account = case.account
    effective_at = _effective(case, command.effective_at)
    amount = _price(case, command)
    if isinstance(amount, Refusal):
        return amount
    units, wallet, price = amount
    if account.budgets:
        spend = Spend(wallet, command.operation, command.model, command.tags)
        tight = budgets.tightest(account, spend, case.at)
        if tight is not None and tight.left < units:
            return _over_budget(case, tight, units, wallet)
    lines, missing = draw(account, wallet, command.operation, units, case.at)
    if missing:
        return _insufficient(case, units, wallet, command.operation)
    return _entry(
        case,
        "consume",
        wallet,
        units,
        tuple([Posting("available", "used", line, n) for line, n in lines]),
        effective_at=effective_at,
        operation=command.operation,
        model=command.model,
        meters=command.meters,
        attributes=command.attributes,
        price=price,
    )


def _hold(case: Case, command: c.Hold) -> Entry | Refusal:
    account = case.account
    effective_at = _effective(case, command.effective_at)
    life = command.expires_in or HOLD_LIFE
    if life > HOLD_LIFE_MAX:
        raise InvalidInput("a hold may last 24 hours at the most; extend it while the work runs")
    if len(account.holds) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} open holds at the most")
    amount = _price(case, command)
    if isinstance(amount, Refusal):
        return amount
    units, wallet, price = amount
    floor = units if command.floor is None else command.floor
    if account.budgets:
        spend = Spend(wallet, command.operation, command.model, command.tags)
        tight = budgets.tightest(account, spend, case.at)
        if tight is not None and tight.left < units:
            if tight.left < floor or tight.left == 0:
                return _over_budget(case, tight, floor, wallet)
            units = tight.left
    lines, missing = draw(account, wallet, command.operation, units, case.at)
    if missing:
        units -= missing
        if units < floor or units == 0:
            return _insufficient(case, floor, wallet, command.operation)
    return _entry(
        case,
        "hold",
        wallet,
        units,
        tuple([Posting("available", "held", line, n) for line, n in lines]),
        effective_at=effective_at,
        operation=command.operation,
        model=command.model,
        meters=command.meters,
        attributes=command.attributes,
        price=price,
        deadline=case.at + life,
        ceiling=command.quote.ceiling if command.quote else None,
    )


def _settle(case: Case, command: c.Settle) -> Entry | Refusal | Answer:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return _settle_ended(case, command)
    held = sum(hold.lines.values())
    amount = _settle_amount(case, command, hold, held)
    if isinstance(amount, Refusal):
        return amount
    units, _, price = amount
    extra = units - held
    if extra > 0 and command.above == "refuse":
        return _refuse(
            case,
            "settle_exceeds_hold",
            "more than is held",
            needed=units,
            available=held,
            held=held,
            tightest="hold",
            ways_out=({"kind": "policy", "text": "settle with above='available'"},),
        )
    postings, rest = _take(hold.lines, min(units, held))
    if command.final:
        postings += _returns(case.account, rest, case.at)
    shortfall = 0
    if extra > 0:
        lines, shortfall = draw(
            case.account,
            hold.wallet,
            hold.operation,
            extra,
            case.at,
            overdraft=command.above == "overdraft",
        )
        postings += tuple(Posting("available", "used", line, n) for line, n in lines)
    return _entry(
        case,
        "settle",
        hold.wallet,
        units - shortfall,
        postings,
        ref=hold.id,
        final=command.final,
        shortfall=shortfall,
        policy=command.above,
        operation=hold.operation,
        model=hold.model,
        tags=hold.tags,
        meters=command.meters,
        attributes=command.attributes,
        price=price,
    )


def _settle_amount(case: Case, command: c.Settle, hold: Hold, held: int) -> _Amount | Refusal:
    """Return what to settle: the units, the price of the meters, or all that is held."""
    if command.units is not None:
        amount: _Amount | Refusal = _Amount(command.units, hold.wallet, None)
    elif command.meters is None and command.attributes is None:
        amount = _Amount(held, hold.wallet, None)
    else:
        amount = _price_meters(
            case,
            operation=hold.operation or "",
            model=hold.model,
            meters=command.meters,
            attributes=command.attributes or hold.attributes,
            version=hold.price_version or None,
            ceiling=None,
            at=hold.opened_at,
        )
    if isinstance(amount, Refusal) or hold.ceiling is None:
        return amount
    return amount._replace(units=min(amount.units, max(hold.ceiling - hold.settled, 0)))


def _settle_ended(case: Case, command: c.Settle) -> Entry | Refusal | Answer:
    """Answer a settle whose hold is not open: a repeat, a late settlement, or a refusal."""
    story = case.story(command.hold_id)
    ending = _ending(story)
    if ending is None:
        return _no_hold(case, command.hold_id)
    if ending.kind == "settle" and _same_settle(ending, command):
        case.book.replayed.append((case.request.account_id, ending.request_id or "", case.at))
        return Answer(ending, replayed=True)
    if ending.kind != "hold_expired":
        return _finalized(case, ending)
    if not case.account.settings.late_settlement:
        return _hold_expired(case, ending)
    opening = story[0]
    amount = _late_amount(case, command, story)
    if isinstance(amount, Refusal):
        return amount
    lines, shortfall = draw(
        case.account,
        opening.wallet,
        opening.operation,
        amount.units,
        case.at,
        overdraft=command.above == "overdraft",
    )
    return _entry(
        case,
        "settle",
        opening.wallet,
        amount.units - shortfall,
        tuple(Posting("available", "used", line, n) for line, n in lines),
        ref=command.hold_id,
        final=True,
        late=True,
        shortfall=shortfall,
        policy=command.above,
        operation=opening.operation,
        model=opening.model,
        tags=opening.tags,
        meters=command.meters,
        attributes=command.attributes,
        price=amount.price,
        charged_at=opening.at,
        charged_seq=opening.seq,
    )


def _late_amount(case: Case, command: c.Settle, story: list[Entry]) -> _Amount | Refusal:
    """Return what to settle late, as if the hold were still open with its parts settled."""
    hold = _hold_of(story[0])
    hold.settled = sum(entry.units for entry in story[1:] if entry.kind == "settle")
    return _settle_amount(case, command, hold, max(hold.units - hold.settled, 0))


def _same_settle(ending: Entry, command: c.Settle) -> bool:
    """Return whether a settle asks again for what the final settle of this hold did."""
    if not command.final:
        return False
    if command.units is not None:
        return command.units == ending.units + ending.shortfall
    if command.meters is None and command.attributes is None:
        # All that was held: then no meters were given, nothing came back and nothing fell short.
        whole = all(posting.target == "used" for posting in ending.postings)
        return whole and not ending.shortfall and ending.meters is None
    return command.meters == ending.meters and command.attributes == ending.attributes


def _release(case: Case, command: c.Release) -> Entry | Refusal | Answer:
    hold = case.account.holds.get(command.hold_id)
    if hold is not None:
        units = sum(hold.lines.values())
        return _entry(
            case,
            "release",
            hold.wallet,
            units,
            _returns(case.account, hold.lines, case.at),
            ref=hold.id,
            final=True,
            operation=hold.operation,
            model=hold.model,
            tags=hold.tags,
        )
    ending = _ending(case.story(command.hold_id))
    if ending is None:
        return _no_hold(case, command.hold_id)
    if ending.kind == "release":
        case.book.replayed.append((case.request.account_id, ending.request_id or "", case.at))
        return Answer(ending, replayed=True)
    if ending.kind == "hold_expired":
        return _hold_expired(case, ending)
    return _finalized(case, ending)


def _extend(case: Case, command: c.Extend) -> Entry | Refusal:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return _not_open(case, command.hold_id)
    if command.expires_in > HOLD_LIFE_MAX:
        raise InvalidInput("a hold may be extended by 24 hours from now at the most")
    return _entry(
        case,
        "extend",
        hold.wallet,
        0,
        (),
        ref=hold.id,
        deadline=max(hold.deadline, case.at + command.expires_in),
    )


def _in_doubt(case: Case, command: c.InDoubt) -> Entry | Refusal:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return _not_open(case, command.hold_id)
    life = command.deadline_in or DOUBT_LIFE
    if life > DOUBT_LIFE_MAX:
        raise InvalidInput("a hold may stay in doubt for 30 days at the most")
    return _entry(
        case,
        "in_doubt",
        hold.wallet,
        sum(hold.lines.values()),
        (),
        ref=hold.id,
        deadline=case.at + life,
        at_deadline=command.at_deadline,
        operation=hold.operation,
    )


def _grant(case: Case, command: c.Grant) -> Entry:
    zone = case.account.settings.time_zone
    effective_at = case.at if command.effective_at is None else command.effective_at
    expires_at = command.expires_at
    if command.expires_on is not None:
        expires_at = calendar.end_of_day(command.expires_on, zone)
    elif command.expires_in is not None:
        expires_at = effective_at + command.expires_in
    if expires_at is not None and expires_at <= max(case.at, effective_at):
        raise InvalidInput("the grant would be over before it begins")
    terms = Terms(
        id=case.request.request_id,
        units=command.units,
        category=command.category,
        wallet=command.wallet,
        priority=command.priority,
        effective_at=effective_at,
        expires_at=expires_at,
        applies_to=command.applies_to,
        cost_basis=command.cost_basis,
        source=command.source,
    )
    _check_room(case, command.wallet, command.units)
    postings = _issue(case.account, terms) if effective_at <= case.at else ()
    return _entry(
        case,
        "grant",
        terms.wallet,
        terms.units,
        postings,
        opens=(terms,),
        effective_at=max(effective_at, case.at) if not postings else effective_at,
    )


def _check_room(case: Case, wallet: str, units: int) -> None:
    """Refuse what would carry the wallet beyond what every reader can hold exactly."""
    if case.account.wallet(wallet).issued + units > UNITS_MAX:
        raise InvalidInput("the wallet would hold 2^53 of the smallest unit or more")
    if len(case.account.grants) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} live grants at the most")


def _void(case: Case, command: c.Void) -> Entry | Refusal | Answer:
    story = case.story(command.grant_id)
    grant = case.account.grants.get(command.grant_id)
    terms = grant.terms if grant else _terms_of(story, command.grant_id)
    if terms is None:
        return _refuse(case, "grant_not_found", f"the account has no grant {command.grant_id!r}")
    for entry in story:
        if entry.kind == "void":
            return Answer(entry, replayed=True)
    units = grant.remaining if grant else 0
    postings = (Posting("available", "issued", terms.id, units),) if units else ()
    return _entry(case, "void", terms.wallet, units, postings, ref=terms.id)


def _refund(case: Case, command: c.Refund) -> Entry | Refusal:
    story = case.story(command.charge)
    if story and story[0].kind == "settle" and story[0].ref:
        story = case.story(story[0].ref)
    charges = [entry for entry in story if entry.kind in ("consume", "settle")]
    if not charges:
        return _refuse(case, "charge_not_found", f"no charge {command.charge!r} on this account")
    paid = _paid(story)
    left = sum(paid.values())
    units = left if command.units is None else command.units
    if units > left or left == 0:
        return _refuse(
            case,
            "refund_exceeds_charge",
            "more than is left of the charge",
            needed=units,
            available=left,
            tightest="charge",
        )
    first = charges[0]
    root = story[0].request_id or command.charge
    postings: list[Posting] = []
    opens: list[Terms] = []
    for line, n in _unwind(paid, units):
        _give_back(case, command, line, n, postings, opens)
    return _entry(
        case,
        "refund",
        first.wallet,
        units,
        tuple(postings),
        ref=root,
        opens=tuple(opens),
        policy=command.expired,
        operation=first.operation,
        model=first.model,
        tags=first.tags,
        charged_at=story[0].at,
        charged_seq=story[0].seq,
    )


def _give_back(
    case: Case,
    command: c.Refund,
    line: str,
    units: int,
    postings: list[Posting],
    opens: list[Terms],
) -> None:
    """Return units to the line that paid them, or where the policy sends them instead."""
    grant = case.account.grants.get(line)
    if line == OVERDRAFT:
        postings.append(Posting("used", "available", line, units))
        return
    story = case.story(line)
    terms = grant.terms if grant else _terms_of(story, line)
    assert terms is not None, f"charge was paid by {line}, which no entry granted"
    voided = any(entry.kind == "void" for entry in story) or (grant is not None and grant.voided)
    if voided:
        postings.append(Posting("used", "issued", line, units))
    elif not is_over(terms, case.at):
        if grant is None:
            opens.append(terms)
        postings.append(Posting("used", "available", line, units))
    elif command.expired == "expire":
        postings.append(Posting("used", "expired", line, units))
    else:
        nth = sum(1 for posting in postings if posting.source == "issued")
        opened = _replacement(case, command, terms, units, nth)
        opens.append(opened)
        postings.append(Posting("used", "issued", line, units))
        postings.append(Posting("issued", "available", opened.id, units))


def _replacement(case: Case, command: c.Refund, terms: Terms, units: int, nth: int) -> Terms:
    """Return the grant that takes the place of one that expired before its refund."""
    expires_at = None if command.extend_by is None else case.at + command.extend_by
    return replace(
        terms,
        id=case.request.request_id if nth == 0 else f"{RESERVED}{case.request.request_id}#{nth}",
        units=units,
        category="promo" if command.expired == "goodwill" else terms.category,
        effective_at=case.at,
        expires_at=expires_at,
        source=f"refund of {command.charge}",
        recurring=None,
    )


def _adjust(case: Case, command: c.Adjust) -> Entry | Refusal:
    if command.units > 0:
        _check_room(case, command.wallet, command.units)
        terms = Terms(
            id=case.request.request_id,
            units=command.units,
            category="adjustment",
            wallet=command.wallet,
            effective_at=case.at,
        )
        postings = _issue(case.account, terms)
        return _entry(case, "adjust", command.wallet, command.units, postings, opens=(terms,))
    units = -command.units
    chosen: list[tuple[str, int]] = []
    missing = units
    for grant in case.account.grants.values():
        if grant.terms.wallet == command.wallet and grant.remaining and missing:
            taken = min(grant.remaining, missing)
            chosen.append((grant.terms.id, taken))
            missing -= taken
    if missing:
        return _insufficient(case, units, command.wallet, None, free=units - missing)
    postings = tuple(Posting("available", "issued", line, n) for line, n in chosen)
    return _entry(case, "adjust", command.wallet, command.units, postings)


def _govern(case: Case, command: c.Command) -> Entry:
    """Answer the commands that move nothing: what may happen from now on."""
    account = case.account
    match command:
        case c.SetStatus(to=to):
            return _entry(case, to, WALLET_DEFAULT, 0, ())
        case c.SetOverdraft():
            return _entry(case, "overdraft", command.wallet, 0, (), limit=command.limit)
        case c.SetBudget(terms=terms):
            if terms.cap is not None and len(account.budgets) >= LIVE_MAX:
                raise InvalidInput(f"an account may have {LIVE_MAX} budgets at the most")
            return _entry(case, "budget", terms.wallet, 0, (), budget=terms)
        case c.SetRecurring(terms=recurring):
            return _set_recurring(case, recurring)
        case c.Configure():
            settings = account.settings
            if command.time_zone is not None:
                calendar.zone(command.time_zone)
                settings = replace(settings, time_zone=command.time_zone)
            if command.late_settlement is not None:
                settings = replace(settings, late_settlement=command.late_settlement)
            return _entry(case, "settings", WALLET_DEFAULT, 0, (), settings=settings)
        case _:  # pragma: no cover - a verb without a rule is a defect, which no caller can reach
            raise AssertionError(f"no rule for {type(command).__name__}")


def _set_recurring(case: Case, terms: RecurringTerms) -> Entry:
    """Start, change or stop a recurring grant; a new one begins with the period at hand."""
    existing = case.account.recurring.get(terms.name)
    if terms.stopped:
        if existing is None:
            raise InvalidInput(f"the account has no recurring grant {terms.name!r}")
        terms = replace(existing.terms, stopped=True)
    if existing is None and len(case.account.recurring) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} recurring grants at the most")
    return _entry(case, "recurring", terms.wallet, 0, (), recurring=terms)


# ---------------------------------------------------------------- pieces of decisions


def _effective(case: Case, effective_at: int | None) -> int:
    """Return when the work was done, within what may still be booked."""
    if effective_at is None:
        return case.at
    if effective_at < case.at - LATE_MAX:
        raise InvalidInput("effective_at is more than 35 days back; book an adjustment instead")
    if effective_at > case.at + EARLY_MAX:
        raise InvalidInput("effective_at is more than 5 minutes ahead")
    return effective_at


def _issue(account: Account, terms: Terms) -> tuple[Posting, ...]:
    """Put a grant's units in; an unrestricted grant first pays what the wallet owes."""
    owed = 0 if terms.applies_to else max(-account.wallet(terms.wallet).overdraft, 0)
    repaid = min(owed, terms.units)
    postings = []
    if repaid:
        postings.append(Posting("issued", "available", OVERDRAFT, repaid))
    if terms.units > repaid:
        postings.append(Posting("issued", "available", terms.id, terms.units - repaid))
    return tuple(postings)


def _take(lines: dict[str, int], units: int) -> tuple[tuple[Posting, ...], dict[str, int]]:
    """Charge `units` of what a hold took, in the order it took them; return the rest."""
    postings = []
    rest = {}
    for line, held in lines.items():
        taken = min(held, units)
        units -= taken
        if taken:
            postings.append(Posting("held", "used", line, taken))
        if held > taken:
            rest[line] = held - taken
    return tuple(postings), rest


def _returns(account: Account, lines: dict[str, int], at: int) -> tuple[Posting, ...]:
    """Give what a hold took back to the exact lines it came from."""
    return tuple(
        Posting("held", home(account.grants.get(line), at), line, units)
        for line, units in lines.items()
        if units
    )


def _paid(story: Iterable[Entry]) -> dict[str, int]:
    """Return what each line paid for a charge and did not get back, in the order drawn."""
    paid: dict[str, int] = {}
    for entry in story:
        for posting in entry.postings:
            if posting.target == "used":
                paid[posting.line] = paid.get(posting.line, 0) + posting.units
            elif posting.source == "used":
                paid[posting.line] -= posting.units
    return paid


def _unwind(paid: dict[str, int], units: int) -> Iterator[tuple[str, int]]:
    """Yield what to give back to each line, the last drawn first."""
    for line, left in reversed(paid.items()):
        taken = min(left, units)
        if taken:
            yield line, taken
        units -= taken


def _terms_of(story: Iterable[Entry], grant_id: str) -> Terms | None:
    for entry in story:
        for terms in entry.opens:
            if terms.id == grant_id:
                return terms
    return None


def _ending(story: list[Entry]) -> Entry | None:
    """Return the entry that ended a hold, None where the id is no hold's.

    A hold that expired and was settled late ended twice; the later ending counts.
    """
    if not story or story[0].kind != "hold":
        return None
    return next((entry for entry in reversed(story) if entry.final), None)


def _entry(
    case: Case,
    kind: Kind,
    wallet: str,
    units: int,
    postings: tuple[Posting, ...],
    *,
    effective_at: int | None = None,
    tags: dict[str, str] | None = None,
    **facts: Any,
) -> Entry:
    """Build the entry that a request leads to, with the balances after it."""
    account, request = case.account, case.request
    command = request.command
    issued, available, held, used, expired = _after(account.wallet(wallet), postings)
    return Entry(
        seq=account.seq + 1,
        kind=kind,
        at=case.at,
        effective_at=case.at if effective_at is None else effective_at,
        request_id=request.request_id,
        fingerprint=request.fingerprint,
        wallet=sys.intern(wallet),
        units=units,
        postings=postings,
        issued=issued,
        available=available,
        held=held,
        used=used,
        expired=expired,
        tags=command.tags if tags is None else tags,
        reason=command.reason,
        actor=request.actor,
        metadata_digest=command.metadata_digest,
        **facts,
    )


def _due(
    account: Account,
    kind: Kind,
    at: int,
    when: int,
    wallet: str,
    units: int,
    postings: tuple[Posting, ...],
    **facts: Any,
) -> Entry:
    """Build an entry that the clock leads to: no request, effective when it fell due."""
    issued, available, held, used, expired = _after(account.wallet(wallet), postings)
    return Entry(
        seq=account.seq + 1,
        kind=kind,
        at=max(at, account.at),
        effective_at=when,
        wallet=sys.intern(wallet),
        units=units,
        postings=postings,
        issued=issued,
        available=available,
        held=held,
        used=used,
        expired=expired,
        **facts,
    )


def _after(wallet: Wallet, postings: tuple[Posting, ...]) -> tuple[int, int, int, int, int]:
    """Return issued, available, held, used and expired after these postings.

    Issued is what was ever put in, so it grows as units leave it for another bucket.
    """
    moved = {"issued": 0, "available": 0, "held": 0, "used": 0, "expired": 0}
    for posting in postings:
        moved[posting.source] -= posting.units
        moved[posting.target] += posting.units
    return (
        wallet.issued - moved["issued"],
        wallet.available + moved["available"],
        wallet.held + moved["held"],
        wallet.used + moved["used"],
        wallet.expired + moved["expired"],
    )


# ---------------------------------------------------------------- refusals


def _refuse(case: Case, code: str, message: str, **facts: object) -> Refusal:
    return Refusal(
        code=code,
        message=message,
        at=case.at,
        seq=case.account.seq,
        request_id=case.request.request_id,
        fingerprint=case.request.fingerprint,
        **facts,  # type: ignore[arg-type]  # the callers name Refusal's own fields
    )


def _no_hold(case: Case, hold_id: str) -> Refusal:
    return _refuse(case, "hold_not_found", f"the account has no hold {hold_id!r}")


def _not_open(case: Case, hold_id: str) -> Refusal:
    ending = _ending(case.story(hold_id))
    if ending is None:
        return _no_hold(case, hold_id)
    if ending.kind == "hold_expired":
        return _hold_expired(case, ending)
    return _finalized(case, ending)


def _finalized(case: Case, ending: Entry) -> Refusal:
    state = "settled" if ending.kind == "settle" else "released"
    return _refuse(
        case,
        "hold_finalized",
        f"the hold was {state} before",
        details={"state": state, "by_seq": str(ending.seq), "by": ending.request_id or "clock"},
    )


def _hold_expired(case: Case, ending: Entry) -> Refusal:
    when = calendar.show_instant(ending.effective_at)
    return _refuse(
        case,
        "hold_expired",
        f"the hold expired at {when} and its units went back",
        details={"state": "expired", "by_seq": str(ending.seq), "expired_at": when},
        ways_out=(
            {
                "kind": "consume",
                "text": "if the work was done, consume under an id made from the hold's",
            },
        ),
    )


def _over_budget(case: Case, tight: budgets.Room, units: int, wallet: str) -> Refusal:
    scale = case.rules.scale
    resets = (
        "" if tight.resets_at >= calendar.INSTANT_MAX else calendar.show_instant(tight.resets_at)
    )
    ways = [{"kind": "raise", "text": f"an operator may raise the budget {tight.budget!r}"}]
    if resets:
        ways.insert(0, {"kind": "wait", "text": f"the budget resets at {resets}", "until": resets})
    if tight.left:
        text = show_units(tight.left, scale)
        ways.insert(0, {"kind": "less", "text": f"{text} would fit", "units": text})
    return _refuse(
        case,
        "budget_exceeded",
        f"budget {tight.budget!r} has {show_units(tight.left, scale)} of "
        f"{show_units(tight.cap, scale)} left, {show_units(units, scale)} needed",
        needed=units,
        available=tight.left,
        held=case.account.wallet(wallet).held,
        tightest=f"budget {tight.budget}",
        details={
            "budget": tight.budget,
            "node": tight.node,
            "cap": show_units(tight.cap, scale),
            "spent": show_units(tight.spent, scale),
            "resets_at": resets,
        },
        ways_out=tuple(ways),
    )


def _insufficient(
    case: Case, units: int, wallet: str, operation: str | None, *, free: int | None = None
) -> Refusal:
    account = case.account
    scale = case.rules.scale
    if free is None:
        free = spendable(account, wallet, operation, case.at)
    missing = show_units(units - free, scale)
    ways = [{"kind": "top_up", "text": f"grant {missing} more", "units": missing}]
    if free > 0:
        less = show_units(free, scale)
        ways.append({"kind": "less", "text": f"{less} would fit", "units": less})
    ends = min((h.deadline for h in account.holds.values() if h.wallet == wallet), default=None)
    if ends is not None:
        until = calendar.show_instant(ends)
        ways.append(
            {"kind": "wait", "text": f"a hold ends by {until} at the latest", "until": until}
        )
    begins = [g.terms for g in account.grants.values() if g.scheduled and g.terms.wallet == wallet]
    if begins:
        until = calendar.show_instant(min(terms.effective_at for terms in begins))
        ways.append({"kind": "wait", "text": f"a grant begins at {until}", "until": until})
    return _refuse(
        case,
        "insufficient_units",
        f"{show_units(units, scale)} {wallet} needed, {show_units(max(free, 0), scale)} available",
        needed=units,
        available=free,
        held=account.wallet(wallet).held,
        tightest=wallet,
        ways_out=tuple(ways),
    )


# ---------------------------------------------------------------- fold


def fold(account: str, entries: Iterable[Entry]) -> Account:
    """Return the account that these entries, oldest first, lead to. The chain head is left out."""
    state = Account(account)
    for entry in entries:
        apply(state, entry)
    state.next_due_at = next_due(state)
    return state


def apply(account: Account, entry: Entry) -> None:
    """Change the account by one entry: units first, then what the entry opens and closes.

    The caller owns the account. An entry that does not fit is a defect, never a user's error.
    """
    assert entry.seq == account.seq + 1, f"entry {entry.seq} after {account.seq}"
    assert entry.at >= account.at, f"entry {entry.seq} runs backwards in time"
    wallet = account.wallets.get(entry.wallet)
    if wallet is None:
        wallet = account.wallets[entry.wallet] = Wallet()
    if entry.opens:
        for terms in entry.opens:
            _open(account, terms, entry)
        sort_grants(account)
    _fill(wallet, entry)
    for posting in entry.postings:
        _move(account, wallet, posting)
    _APPLY.get(entry.kind, _nothing_else)(account, entry)
    for posting in entry.postings:
        _bury(account, posting.line)
    for terms in entry.opens:
        _bury(account, terms.id)
    if entry.price is not None and entry.price.residual is not None:
        account.residuals[entry.price.rule] = entry.price.residual
    account.seq = entry.seq
    account.at = entry.at


def _open(account: Account, terms: Terms, entry: Entry) -> None:
    scheduled = entry.kind == "grant" and terms.effective_at > entry.at
    account.grants[terms.id] = Grant(terms, scheduled=scheduled)
    due = terms.effective_at if scheduled else terms.expires_at
    if due is not None and due < account.next_due_at:
        account.next_due_at = due


def _fill(wallet: Wallet, entry: Entry) -> None:
    """Set the wallet's buckets to what the entry states, which its postings must lead to."""
    issued, available, held = entry.issued, entry.available, entry.held
    used, expired = entry.used, entry.expired
    assert (issued, available, held, used, expired) == _after(wallet, entry.postings), (
        f"entry {entry.seq} states other balances than its postings lead to"
    )
    assert held >= 0, "held below zero"
    assert issued == available + held + used + expired, "the buckets do not add up"
    wallet.issued = issued
    wallet.available = available
    wallet.held = held
    wallet.used = used
    wallet.expired = expired


def _move(account: Account, wallet: Wallet, posting: Posting) -> None:
    """Move units on the line that the posting names."""
    source, target, line, units = posting.source, posting.target, posting.line, posting.units
    assert units > 0, "a posting moves a positive amount"
    assert source != target, "a posting moves between two buckets"
    grant = account.grants.get(line)
    if grant is not None:
        if source == "available":
            grant.remaining -= units
            assert grant.remaining >= 0, f"grant {line} below zero"
        elif source == "held":
            grant.pinned -= units
            assert grant.pinned >= 0, f"grant {line} pinned below zero"
        if target == "available":
            grant.remaining += units
        elif target == "held":
            grant.pinned += units
    elif line == OVERDRAFT:
        if source == "available":
            wallet.overdraft -= units
            assert wallet.overdraft + wallet.overdraft_limit >= 0, "overdrawn beyond the limit"
        elif target == "available":
            wallet.overdraft += units
    else:
        # Units that were used long ago go straight to issued or expired: the grant is not live.
        assert source == "used", f"posting on {line}, which is not live"
        assert target in ("issued", "expired"), f"posting to {line}, which is not live"


def _bury(account: Account, line: str) -> None:
    """Drop a grant that nothing can move any more; its story stays in the entries."""
    grant = account.grants.get(line)
    if grant is not None and not (grant.remaining or grant.pinned or grant.scheduled):
        del account.grants[line]


def _nothing_else(account: Account, entry: Entry) -> None:
    """Apply an entry that is all postings."""


def _spend_of(entry: Entry) -> Spend:
    return Spend(entry.wallet, entry.operation, entry.model, entry.tags)


def _apply_consume(account: Account, entry: Entry) -> None:
    if account.budgets:
        budgets.count(account, _spend_of(entry), entry.at, entry.units, entry.seq)


def _hold_of(entry: Entry) -> Hold:
    """Return the hold that an entry of kind "hold" opens."""
    assert entry.request_id is not None
    assert entry.deadline is not None
    return Hold(
        id=entry.request_id,
        seq=entry.seq,
        wallet=entry.wallet,
        lines={posting.line: posting.units for posting in entry.postings},
        deadline=entry.deadline,
        opened_at=entry.at,
        units=entry.units,
        operation=entry.operation,
        model=entry.model,
        attributes=entry.attributes,
        tags=entry.tags,
        price_version=entry.price.version if entry.price else 0,
        ceiling=entry.ceiling,
    )


def _apply_hold(account: Account, entry: Entry) -> None:
    hold = _hold_of(entry)
    account.holds[hold.id] = hold
    account.next_due_at = min(account.next_due_at, hold.deadline)
    _apply_consume(account, entry)


def _apply_hold_part(account: Account, entry: Entry) -> None:
    """Apply what takes from a hold or ends it: settle, release, and the deadline."""
    hold = account.holds.get(entry.ref or "")
    counted = sum(
        posting.units if posting.source == "available" else -posting.units
        for posting in entry.postings
        if posting.source == "available" or posting.target != "used"
    )
    if account.budgets:
        opened_at = hold.opened_at if hold else entry.charged_at or entry.at
        opened = hold.seq if hold else entry.charged_seq
        budgets.count(account, _spend_of(entry), opened_at, counted, opened)
    if hold is None:
        assert entry.late, f"entry {entry.seq} acts on a hold that is not open"
        return
    for posting in entry.postings:
        if posting.source == "held":
            hold.lines[posting.line] -= posting.units
            assert hold.lines[posting.line] >= 0, f"hold {hold.id} below zero"
            if hold.lines[posting.line] == 0:
                del hold.lines[posting.line]
    if entry.kind == "settle":
        hold.settled += entry.units
    if entry.final:
        assert not hold.lines, f"hold {hold.id} ended with units left in it"
        del account.holds[hold.id]


def _apply_deadline(account: Account, entry: Entry) -> None:
    hold = account.holds[entry.ref or ""]
    assert entry.deadline is not None
    hold.deadline = entry.deadline
    account.next_due_at = min(account.next_due_at, hold.deadline)
    if entry.kind == "in_doubt":
        hold.in_doubt = True
        hold.at_deadline = "settle" if entry.at_deadline == "settle" else "release"


def _apply_void(account: Account, entry: Entry) -> None:
    grant = account.grants.get(entry.ref or "")
    if grant is None:
        return
    grant.voided = True
    grant.scheduled = False
    _bury(account, grant.terms.id)


def _apply_activated(account: Account, entry: Entry) -> None:
    grant = account.grants[entry.ref or ""]
    grant.scheduled = False
    expires_at = grant.terms.expires_at
    if expires_at is not None:
        account.next_due_at = min(account.next_due_at, expires_at)
    _bury(account, grant.terms.id)


def _apply_refund(account: Account, entry: Entry) -> None:
    if account.budgets and entry.charged_at is not None:
        where = entry.charged_at, -entry.units, entry.charged_seq
        budgets.count(account, _spend_of(entry), *where)


def _apply_status(account: Account, entry: Entry) -> None:
    if entry.kind == "freeze":
        account.status = "frozen"
    elif entry.kind == "close":
        account.status = "closed"
        account.recurring.clear()
    else:
        account.status = "open"


def _apply_overdraft(account: Account, entry: Entry) -> None:
    account.wallets[entry.wallet].overdraft_limit = entry.limit or 0


def _apply_budget(account: Account, entry: Entry) -> None:
    """Set a budget; one of the same shape keeps what it counted, so a cap can be raised."""
    terms = entry.budget
    assert terms is not None
    if terms.cap is None:
        account.budgets.pop(terms.name, None)
        return
    old = account.budgets.get(terms.name)
    if old is not None and replace(old.terms, cap=terms.cap) == terms:
        old.terms = terms
    else:
        account.budgets[terms.name] = Budget(terms, since=entry.seq)


def _apply_recurring(account: Account, entry: Entry) -> None:
    terms = entry.recurring
    assert terms is not None
    old = account.recurring.get(terms.name)
    if terms.stopped:
        account.recurring.pop(terms.name, None)
        return
    zone = account.settings.time_zone
    recurring = Recurring(terms, current=old.current if old else None)
    if old is not None and (old.terms.anchor, old.terms.every, old.terms.count) == (
        terms.anchor,
        terms.every,
        terms.count,
    ):
        recurring.next = old.next  # the period at hand was granted before
    else:
        recurring.next = calendar.current(terms.anchor, terms.every, terms.count, entry.at, zone)
    _schedule(account, recurring)
    account.recurring[terms.name] = recurring


def _apply_renewed(account: Account, entry: Entry) -> None:
    assert entry.recurring is not None
    recurring = account.recurring[entry.recurring.name]
    recurring.next = entry.occurrence + 1
    recurring.current = entry.opens[0].id
    _schedule(account, recurring)
    if recurring.next_at >= NEVER:
        del account.recurring[entry.recurring.name]
    _bury(account, entry.opens[0].id)


def _schedule(account: Account, recurring: Recurring) -> None:
    """Set when the next occurrence falls due; never after the end."""
    terms = recurring.terms
    zone = account.settings.time_zone
    when = calendar.occurrence(terms.anchor, terms.every, terms.count, recurring.next, zone)
    ends_at = NEVER if terms.ends_at is None else terms.ends_at
    recurring.next_at = when if when < min(ends_at, calendar.INSTANT_MAX) else NEVER
    account.next_due_at = min(account.next_due_at, recurring.next_at)


def _apply_settings(account: Account, entry: Entry) -> None:
    assert entry.settings is not None
    account.settings = entry.settings
    for recurring in account.recurring.values():
        _schedule(account, recurring)


_APPLY = {
    "consume": _apply_consume,
    "hold": _apply_hold,
    "settle": _apply_hold_part,
    "release": _apply_hold_part,
    "hold_expired": _apply_hold_part,
    "extend": _apply_deadline,
    "in_doubt": _apply_deadline,
    "void": _apply_void,
    "grant_activated": _apply_activated,
    "grant_renewed": _apply_renewed,
    "refund": _apply_refund,
    "freeze": _apply_status,
    "unfreeze": _apply_status,
    "close": _apply_status,
    "overdraft": _apply_overdraft,
    "budget": _apply_budget,
    "recurring": _apply_recurring,
    "settings": _apply_settings,
}
