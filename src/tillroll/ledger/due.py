"""What the clock brings: holds that end, grants that begin, renew, expire soon and expire.

Time is a command. Before anything is decided, `advance` books what fell due, in due order, so that
an answer never depends on when somebody last looked.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from tillroll.ledger import alerts, calendar
from tillroll.ledger.types import (
    NEVER,
    RESERVED,
    WALLET_DEFAULT,
    Account,
    Entitlement,
    Entry,
    Grant,
    Hold,
    Kind,
    Posting,
    Recurring,
    Terms,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
from tillroll.ledger.entitlements import after, due_of, of_entry
from tillroll.ledger.moves import due_entry, issue, returns

_HOLD, _ENTITLEMENT, _RENEWAL, _EXPIRY, _ACTIVATION, _WARNING = range(6)


def due_items(account: Account) -> Iterator[tuple[int, int, str]]:
    """Yield everything that the clock will bring: when, of what sort, and its name.

    At the same instant holds end first (their units return to the grants), then entitlements change
    or end (so that what they bring from now on is what renews), then recurring grants renew (and
    carry over what remains), then grants expire, then scheduled grants begin, and last it is told
    which expire soon.
    """
    for hold in account.holds.values():
        yield hold.deadline, _HOLD, hold.id
    for held in account.entitlements.values():
        if due_of(held) < NEVER:
            yield due_of(held), _ENTITLEMENT, held.name
    for recurring in account.recurring.values():
        if recurring.next_at < NEVER:
            yield recurring.next_at, _RENEWAL, recurring.terms.name
    for grant in account.grants.values():
        if grant.scheduled:
            yield grant.terms.effective_at, _ACTIVATION, grant.terms.id
        elif grant.remaining and grant.terms.expires_at is not None:
            yield grant.terms.expires_at, _EXPIRY, grant.terms.id
            if account.alerts or grant.terms.warn_days:
                yield from _warnings(account, grant)


def _warnings(account: Account, grant: Grant) -> Iterator[tuple[int, int, str]]:
    when = alerts.warning(grant, account.alerts.values())
    if when is not None:
        yield when, _WARNING, grant.terms.id


def next_due(account: Account) -> int:
    """Return when the clock will next change this account, `NEVER` where it will not."""
    return min(due_items(account), default=(NEVER,))[0]


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
    """Yield what the clock may bring after this entry: what is next of it, expiries, warnings."""
    if entry.kind == "entitlement":
        yield from _entitlement_followers(account, of_entry(entry).name)
    if entry.recurring is not None and entry.recurring.name in account.recurring:
        recurring = account.recurring[entry.recurring.name]
        yield recurring.next_at, _RENEWAL, recurring.terms.name
    for posting in entry.postings:
        grant = account.grants.get(posting.line) if posting.target == "available" else None
        if grant is not None and grant.terms.expires_at is not None:
            yield grant.terms.expires_at, _EXPIRY, posting.line
            yield from _warnings(account, grant)
    if entry.kind == "grant_expiring":
        yield from _warnings(account, account.grants[entry.ref or ""])


def _entitlement_followers(account: Account, name: str) -> Iterator[tuple[int, int, str]]:
    """Yield what the clock brings next of an entitlement that it has just changed."""
    yield due_of(account.entitlements[name]), _ENTITLEMENT, name
    for recurring in account.recurring.values():
        if recurring.terms.entitlement == name:
            yield recurring.next_at, _RENEWAL, recurring.terms.name


def _entitlement_falls_due(account: Account, held: Entitlement, when: int, at: int) -> Entry:
    """Carry out what was to become of an entitlement: its end, its next terms, its trial's end."""
    then = after(account, held, when)
    kind: Kind = "entitlement_ended" if then is None else "entitlement"
    if then is None:
        reason = "its time is over"
    else:
        reason = "the trial is over" if then.next_at == held.next_at else "as planned"
    return due_entry(
        account,
        kind,
        at,
        when,
        WALLET_DEFAULT,
        0,
        (),
        ref=held.ref,
        entitlement=then or held,
        reason=reason,
    )


def _fall_due(account: Account, item: tuple[int, int, str], at: int) -> Entry | None:
    """Return the entry that a due item leads to, None where nothing is left to book."""
    when, sort, name = item
    if sort == _HOLD:
        return _hold_falls_due(account, account.holds[name], at)
    if sort == _ENTITLEMENT:
        return _entitlement_falls_due(account, account.entitlements[name], when, at)
    if sort == _RENEWAL:
        recurring = account.recurring.get(name)
        if recurring is None or recurring.next_at != when:
            return None  # the entitlement that it belongs to has changed or ended before
        return _renew(account, recurring, at)
    grant = account.grants.get(name)
    if grant is None:
        return None
    terms = grant.terms
    if sort == _WARNING:
        if alerts.warning(grant, account.alerts.values()) != when:
            return None
        facts = {"ref": name, "deadline": terms.expires_at}
        return due_entry(
            account, "grant_expiring", at, when, terms.wallet, grant.remaining, (), **facts
        )
    if sort == _ACTIVATION:
        return due_entry(
            account,
            "grant_activated",
            at,
            when,
            terms.wallet,
            terms.units,
            issue(account, terms),
            ref=name,
        )
    if not grant.remaining:
        return None
    postings = (Posting("available", "expired", name, grant.remaining),)
    return due_entry(
        account, "grant_expired", at, when, terms.wallet, grant.remaining, postings, ref=name
    )


def _hold_falls_due(account: Account, hold: Hold, at: int) -> Entry:
    """End a hold whose deadline passed: give back, or charge where doubt was to end so."""
    when = hold.deadline
    if hold.in_doubt and hold.at_deadline == "settle":
        postings = tuple(Posting("held", "used", *line) for line in hold.lines.items() if line[1])
        kind: Kind = "settle"
    else:
        postings = returns(account, hold.lines, when)
        kind = "hold_expired"
    units = sum(posting.units for posting in postings)
    return due_entry(
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

    carried = min(rollover_max, max(what is left, rollover_min)); the rest expires. Where the period
    was paid for after it began, what was left is what expired at its very beginning: that comes
    anew. The first grant is no renewal, wherever in its period it begins: there is nothing before
    it to carry over.
    """
    terms = recurring.terms
    when = recurring.next_at
    previous = account.grants.get(recurring.current or "")
    if previous is not None and previous.terms.wallet != terms.wallet:
        previous = None  # it was moved to another wallet: the old one's grant just expires
    left = previous.remaining if previous else 0
    lost = sum(recurring.lost.values()) if recurring.lost_at == when else 0
    most = max(left, lost, terms.rollover_min)
    carried = min(terms.rollover_max, most) if recurring.current else 0
    moved = min(left, carried)
    zone = account.settings.time_zone
    # Later than the next where the account moved east since: no period ends before it begins.
    hand = calendar.current(terms.anchor, terms.every, terms.count, when, zone)
    nth = max(recurring.next, hand)
    opened = Terms(
        id=f"{RESERVED}{terms.name}/{account.seq + 1}",
        units=terms.units + carried,
        category=terms.category,
        wallet=terms.wallet,
        priority=terms.priority,
        effective_at=when,
        expires_at=calendar.occurrence(terms.anchor, terms.every, terms.count, nth + 1, zone),
        applies_to=terms.applies_to,
        recurring=terms.name,
    )
    postings = list(issue(account, opened))
    if previous and moved:
        postings.insert(0, Posting("available", "issued", previous.terms.id, moved))
    if previous and left > moved:
        postings.insert(0, Posting("available", "expired", previous.terms.id, left - moved))
    return due_entry(
        account,
        "grant_renewed",
        at,
        when,
        terms.wallet,
        opened.units,
        tuple(postings),
        ref=opened.id,
        opens=(opened,),
        occurrence=nth,
        recurring=terms,
    )
