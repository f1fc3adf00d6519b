"""Fold entries into accounts: `apply` is the only function that changes an account.

Units move first, as the entry's postings say, then what the entry opens and closes. An entry that
does not fit is a defect of ours, so it fails an assertion, never a user's request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tillroll.ledger import alerts, budgets, calendar
from tillroll.ledger.budgets import Spend
from tillroll.ledger.burn import sort_grants
from tillroll.ledger.types import (
    NEVER,
    OVERDRAFT,
    Account,
    Alert,
    Budget,
    Entry,
    Grant,
    Hold,
    Posting,
    Recurring,
    RecurringTerms,
    Terms,
    Wallet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
from tillroll.ledger.due import next_due
from tillroll.ledger.entitlements import due_of, grants_of, of_entry
from tillroll.ledger.moves import buckets_after, carried, is_void, parts_of, unused


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
    if entry.coupon is not None:
        account.redeemed[entry.coupon] = account.redeemed.get(entry.coupon, 0) + 1
    if entry.price is not None and entry.price.residual is not None:
        account.residuals[entry.price.rule] = entry.price.residual
    if account.alerts:
        alerts.count(account, entry)
    account.seq = entry.seq
    account.at = entry.at


def _open(account: Account, terms: Terms, entry: Entry) -> None:
    scheduled = entry.kind == "grant" and terms.effective_at > entry.at
    account.grants[terms.id] = Grant(terms, scheduled=scheduled)
    due = terms.effective_at if scheduled else terms.expires_at
    if terms.warn_days or account.alerts:
        due = terms.effective_at  # before any warning; what it truly is comes out at the end
    if due is not None and due < account.next_due_at:
        account.next_due_at = due


def _fill(wallet: Wallet, entry: Entry) -> None:
    """Set the wallet's buckets to what the entry states, which its postings must lead to."""
    issued, available, held = entry.issued, entry.available, entry.held
    used, expired = entry.used, entry.expired
    assert (issued, available, held, used, expired) == buckets_after(wallet, entry.postings), (
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


def hold_of(entry: Entry) -> Hold:
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
        effective_at=None if entry.effective_at == entry.at else entry.effective_at,
        operation=entry.operation,
        model=entry.model,
        attributes=entry.attributes,
        tags=entry.tags,
        price_version=entry.price.version if entry.price else 0,
        ceiling=entry.ceiling,
    )


def _apply_hold(account: Account, entry: Entry) -> None:
    hold = hold_of(entry)
    account.holds[hold.id] = hold
    account.next_due_at = min(account.next_due_at, hold.deadline)
    _apply_consume(account, entry)


def _apply_hold_part(account: Account, entry: Entry) -> None:
    """Apply what takes from a hold or ends it: settle, release, and the deadline."""
    hold = account.holds.get(entry.ref or "")
    if account.budgets:
        counted = sum(
            posting.units if posting.source == "available" else -posting.units
            for posting in entry.postings
            if posting.source == "available" or posting.target != "used"
        )
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
    if not is_void(entry):
        if entry.origin is not None and entry.units:
            parts = parts_of(grant)
            grant.parts = parts | {entry.origin: parts[entry.origin] - entry.units}
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
        account.entitlements.clear()
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
    recurring = _on(terms, old)
    if old is not None and (old.terms.anchor, old.terms.every, old.terms.count) == (
        terms.anchor,
        terms.every,
        terms.count,
    ):
        recurring.next, recurring.until = old.next, old.until  # the one at hand was granted before
    else:
        recurring.next = calendar.current(terms.anchor, terms.every, terms.count, entry.at, zone)
    _schedule(account, recurring)
    account.recurring[terms.name] = recurring


def _apply_renewed(account: Account, entry: Entry) -> None:
    assert entry.recurring is not None
    recurring = account.recurring[entry.recurring.name]
    _carry(account, recurring, entry)
    recurring.next = entry.occurrence + 1
    recurring.current = entry.opens[0].id
    recurring.until = entry.opens[0].expires_at or 0
    recurring.lost, recurring.lost_at = {}, 0
    _schedule(account, recurring)
    # One of an entitlement may only be held back: it goes when that ends.
    if recurring.next_at >= NEVER and recurring.terms.entitlement is None:
        del account.recurring[entry.recurring.name]
    _bury(account, entry.opens[0].id)


def _carry(account: Account, recurring: Recurring, entry: Entry) -> None:
    """Have the grant that a renewal opens know with which grants its carried units had come."""
    opened = entry.opens[0]
    left = sum(posting.units for posting in entry.postings if posting.line == recurring.current)
    previous = account.grants.get(recurring.current or "")
    parts = unused(parts_of(previous), left) if previous and left else {}
    if recurring.lost_at == entry.effective_at:
        parts = recurring.lost
    account.grants[opened.id].parts = carried(parts, opened.units - recurring.terms.units, opened)


def _apply_expired(account: Account, entry: Entry) -> None:
    """Remember what a grant that comes back lost: its renewal may only be told of later."""
    grant = account.grants[entry.ref or ""]
    recurring = account.recurring.get(grant.terms.recurring or "")
    if recurring is not None and recurring.current == grant.terms.id:
        recurring.lost = unused(parts_of(grant), entry.units)
        recurring.lost_at = entry.effective_at


def _on(terms: RecurringTerms, old: Recurring | None) -> Recurring:
    """Return a recurring grant on these terms, in place of what there was."""
    if old is None:
        return Recurring(terms)
    if old.terms.wallet != terms.wallet:  # what is left in another wallet is not carried over
        return Recurring(terms, current=old.current)
    return Recurring(terms, current=old.current, lost=old.lost, lost_at=old.lost_at)


def _schedule(account: Account, recurring: Recurring) -> None:
    """Set when the next occurrence falls due: as the period before ends; never after the end."""
    terms = recurring.terms
    zone = account.settings.time_zone
    when = recurring.until or calendar.occurrence(
        terms.anchor, terms.every, terms.count, recurring.next, zone
    )
    ends_at = NEVER if terms.ends_at is None else terms.ends_at
    recurring.next_at = when if when < min(ends_at, calendar.INSTANT_MAX) else NEVER
    account.next_due_at = min(account.next_due_at, recurring.next_at)


def _apply_alert(account: Account, entry: Entry) -> None:
    """Set an alert; one of another threshold keeps what it counted."""
    terms = entry.alert
    assert terms is not None
    old = account.alerts.pop(terms.name, None)
    if not terms.removed:
        alike = old is not None and replace(old.terms, threshold=terms.threshold) == terms
        account.alerts[terms.name] = Alert(terms, old.used if old and alike else {})
    account.next_due_at = min(account.next_due_at, next_due(account))


def _apply_expiring(account: Account, entry: Entry) -> None:
    account.grants[entry.ref or ""].told = entry.effective_at


def _apply_entitlement(account: Account, entry: Entry) -> None:
    """Have an entitlement stand as the entry says, and run its recurring grants.

    Of another product the period at hand is granted whatever was granted before, in place of what
    is left of that. Of periods past, which were held back or came before, none comes later.
    """
    held = of_entry(entry)
    if held.status == "trialing" and held.version and held.product and entry.request_id:
        account.tried.setdefault(held.product, entry.at)
    before = account.entitlements.get(held.name)
    same_product = before is not None and before.product == held.product
    account.entitlements[held.name] = held
    account.next_due_at = min(account.next_due_at, due_of(held))
    zone = account.settings.time_zone
    wanted = {terms.name: terms for terms in grants_of(held)}
    for name in _grants_run_by(account, held.name) - wanted.keys():
        del account.recurring[name]
    for name, terms in wanted.items():
        old = account.recurring.get(name)
        shape = terms.anchor, terms.every, terms.count
        recurring = _on(terms, old)
        recurring.next = calendar.current(*shape, entry.effective_at, zone)
        if (
            old is not None
            and (same_product or old.until == entry.effective_at)
            and (old.terms.anchor, old.terms.every, old.terms.count) == shape
            and recurring.next <= old.next
        ):
            recurring.next, recurring.until = old.next, old.until
        _schedule(account, recurring)
        account.recurring[name] = recurring


def _apply_entitlement_ended(account: Account, entry: Entry) -> None:
    held = of_entry(entry)
    del account.entitlements[held.name]
    for name in _grants_run_by(account, held.name):
        del account.recurring[name]


def _grants_run_by(account: Account, entitlement: str) -> set[str]:
    return {
        recurring.terms.name
        for recurring in account.recurring.values()
        if recurring.terms.entitlement == entitlement
    }


def _apply_settings(account: Account, entry: Entry) -> None:
    """Change how the account is treated; periods that run now keep their end in another zone."""
    assert entry.settings is not None
    zone = account.settings.time_zone
    account.settings = entry.settings
    if entry.settings.time_zone != zone:
        budgets.move(account, entry.at, zone)
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
    "grant_expired": _apply_expired,
    "grant_renewed": _apply_renewed,
    "refund": _apply_refund,
    "freeze": _apply_status,
    "unfreeze": _apply_status,
    "close": _apply_status,
    "overdraft": _apply_overdraft,
    "budget": _apply_budget,
    "recurring": _apply_recurring,
    "settings": _apply_settings,
    "alert": _apply_alert,
    "grant_expiring": _apply_expiring,
    "entitlement": _apply_entitlement,
    "entitlement_ended": _apply_entitlement_ended,
}
