"""Many requests, one batch: look up, bring to the moment, decide, apply, link.

`decide_batch` answers requests in order. For each it finds out whether the id was answered before,
books what fell due (`due.advance`), decides (`decide.decide`), applies (`fold.apply`) and links the
entry to the chain. Read those three next; nothing here knows of stores, clocks or callers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tillroll.ledger import alerts, chain, events
from tillroll.ledger import commands as c
from tillroll.ledger.errors import IdempotencyConflict, InvalidInput
from tillroll.ledger.types import (
    ANSWERED_BEFORE,
    DAY,
    NEVER,
    OVERDRAFT,
    Entry,
    Refusal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
from tillroll.ledger.book import Answer, Book, Case, Rules, Sealed, maker
from tillroll.ledger.decide import WORK_IN_FLIGHT, decide
from tillroll.ledger.due import advance, next_due
from tillroll.ledger.fold import apply
from tillroll.ledger.moves import paid_lines

REFUSAL_LIFE = 90 * DAY
# What these make is known by the id of their request, and they need nothing made before.
_NAMED_BY_REQUEST = (c.Work, c.Grant, c.Buy, c.Redeem)


def decide_batch(book: Book, requests: Sequence[c.Request], at: int, rules: Rules) -> list[Answer]:
    """Answer each request in order, adding to the book what is to be stored."""
    before = len(book.appended)
    book.watch = rules if rules.topics else None
    answers = [_answer(book, request, at, rules) for request in requests]
    for owner in {sealed.account_id for sealed in book.appended[before:]}:
        account = book.accounts[owner]
        if account.next_due_at != NEVER:  # entries only lower it; what ended must raise it again
            account.next_due_at = next_due(account)
    return answers


def missing_stories(book: Book, requests: Sequence[c.Request], at: int) -> set[tuple[bytes, str]]:
    """Return the stories that deciding these requests may ask for and that are not loaded.

    A story leads to others: a refund to the charge, from there to the grants that paid. So a
    store asks again after each load until nothing is missing.
    """
    if all(isinstance(request.command, _NAMED_BY_REQUEST) for request in requests):
        return set()
    wanted: set[tuple[bytes, str]] = set()
    seen: set[tuple[bytes, str]] = set()
    settles: dict[tuple[bytes, str], str] = {}
    for request in requests:
        owner, command = request.account_id, request.command
        if isinstance(command, _NAMED_BY_REQUEST):
            seen.add((owner, request.request_id))
        elif isinstance(command, WORK_IN_FLIGHT):
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


def _refund_trail(book: Book, owner: bytes, charge: str) -> Iterator[str]:
    """Yield the charge, the hold it was settled on, and every grant that may have paid it."""
    yield charge
    story = book.story(owner, charge)
    if story and story[0].kind == "settle" and story[0].ref:
        charge = story[0].ref
        yield charge
        story = book.story(owner, charge)
    for line in paid_lines(story):
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
    owner = request.account_id
    key = (owner, request.request_id)
    account = book.accounts[owner]
    at = max(at, account.at)  # an account's time never runs backwards
    earlier = book.answers.get(key)
    if earlier is not None and not _decides_again(request, earlier):
        return _repeat(book, request, earlier, at)
    if account.next_due_at <= at:
        advance_in(book, owner, at)
    try:
        outcome = decide(Case(account, request, at, rules, book))
    except InvalidInput as problem:
        problem.request_id = request.request_id
        book.dismissed = True
        return Answer(problem)
    if isinstance(outcome, Answer):
        return _point(book, request, outcome, at)
    book.answers[key] = outcome
    if isinstance(outcome, Refusal):
        book.refused.append((owner, outcome))
        return Answer(outcome)
    append(book, owner, outcome, request.metadata)
    if account.next_due_at <= at:
        advance_in(book, owner, at)
    return Answer(outcome)


def _decides_again(request: c.Request, earlier: Entry | Refusal) -> bool:
    """Return whether a known id is to be decided again; another body stays a conflict.

    A refusal is, where the caller asks for it. What was answered with an earlier entry is, since
    deciding it finds that entry again.
    """
    return (
        isinstance(earlier, Refusal)
        and earlier.fingerprint == request.fingerprint
        and (request.retry_refused or earlier.code == ANSWERED_BEFORE)
    )


def _point(book: Book, request: c.Request, answer: Answer, at: int) -> Answer:
    """Remember that this id was answered with an earlier entry, so that it means nothing else."""
    entry = answer.outcome
    assert isinstance(entry, Entry)
    key = (request.account_id, request.request_id)
    if key not in book.answers:
        pointer = Refusal(
            code=ANSWERED_BEFORE,
            message="answered with an earlier entry",
            at=at,
            seq=entry.seq,
            request_id=request.request_id,
            fingerprint=request.fingerprint,
            details={"ref": entry.ref or ""},
        )
        book.answers[key] = pointer
        book.refused.append((request.account_id, pointer))
    return answer


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
    # Before as of before: a grant that has ended since is what this entry may be about.
    was_low = bool(account.alerts) and alerts.is_low(account, entry.wallet, account.at)
    if book.watch is None:
        apply(account, entry)
    else:
        book.events += events.apply_told(book.watch, account_id, account, entry)
    if account.alerts and not was_low and alerts.is_low(account, entry.wallet, entry.at):
        book.low.add((account_id, entry.wallet))
    body = chain.encode(entry)
    account.head = chain.link(account.head, account_id, body)
    book.appended.append(Sealed(account_id, entry, body, account.head, metadata))
    if entry.ref is not None:
        book.stories.setdefault((account_id, entry.ref), []).append(entry)


def advance_in(book: Book, account_id: bytes, at: int) -> None:
    """Book everything that fell due on one account by `at`."""
    for entry in advance(book.accounts[account_id], at):
        append(book, account_id, entry)
