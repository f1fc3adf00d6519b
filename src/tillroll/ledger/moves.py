"""Pieces that decisions are made of: moving units between buckets, and building entries.

Nothing here decides; every function is a few lines of arithmetic over lines and postings.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tillroll.ledger.burn import home
from tillroll.ledger.types import (
    OVERDRAFT,
    PART,
    Account,
    Entry,
    Grant,
    Kind,
    Posting,
    Terms,
    Wallet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
from tillroll.ledger.book import Case


def issue(account: Account, terms: Terms) -> tuple[Posting, ...]:
    """Put a grant's units in; an unrestricted grant first pays what the wallet owes."""
    owed = 0 if terms.applies_to else max(-account.wallet(terms.wallet).overdraft, 0)
    repaid = min(owed, terms.units)
    postings = []
    if repaid:
        postings.append(Posting("issued", "available", OVERDRAFT, repaid))
    if terms.units > repaid:
        postings.append(Posting("issued", "available", terms.id, terms.units - repaid))
    return tuple(postings)


def take(lines: dict[str, int], units: int) -> tuple[tuple[Posting, ...], dict[str, int]]:
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


def returns(account: Account, lines: dict[str, int], at: int) -> tuple[Posting, ...]:
    """Give what a hold took back to the exact lines it came from."""
    return tuple(
        [
            Posting("held", home(account.grants.get(line), at), line, units)
            for line, units in lines.items()
            if units
        ]
    )


def paid_lines(story: Iterable[Entry]) -> dict[str, int]:
    """Return what each line paid for a charge and did not get back, in the order drawn."""
    paid: dict[str, int] = {}
    for entry in story:
        for posting in entry.postings:
            if posting.target == "used":
                paid[posting.line] = paid.get(posting.line, 0) + posting.units
            elif posting.source == "used" and posting.line in paid:  # a refund alone paid nothing
                paid[posting.line] -= posting.units
    return paid


def unwind(paid: dict[str, int], units: int) -> Iterator[tuple[str, int]]:
    """Yield what to give back to each line, the last drawn first."""
    for line, left in reversed(paid.items()):
        taken = min(left, units)
        if taken:
            yield line, taken
        units -= taken


def terms_of(story: Iterable[Entry], grant_id: str) -> Terms | None:
    """Return the terms of a grant, from the entry that opened it."""
    for entry in story:
        for terms in entry.opens:
            if terms.id == grant_id:
                return terms
    return None


# Of one grant that was carried over again and again; those before are nobody's any more. About 60
# bytes each in the account's state.
PARTS_MAX = 24
NOBODYS = ""


def parts_of(grant: Grant) -> dict[str, int]:
    """Return how many units of a grant came with which grant, without what was taken of each."""
    return grant.parts or {grant.terms.id: grant.terms.units}


def unused(parts: dict[str, int], left: int) -> dict[str, int]:
    """Return what is left of each part, where so much is left of all: the first is used first."""
    used = sum(parts.values()) - left
    found = {}
    for origin, units in parts.items():
        gone = min(max(used, 0), units)
        used -= gone
        if units > gone:
            found[origin] = units - gone
    return found


def carried(parts: dict[str, int], units: int, fresh: Terms) -> dict[str, int]:
    """Return the parts of a grant that takes over so many units, those that came last."""
    parts = unused(parts, min(units, sum(parts.values())))
    if not parts:
        return {}
    moved = sum(parts.values())
    if len(parts) >= PARTS_MAX:
        old = list(parts)[: len(parts) - PARTS_MAX + 1]
        parts = {NOBODYS: sum(parts.pop(origin) for origin in old), **parts}
    return {**parts, fresh.id: fresh.units - moved}


def is_void(entry: Entry) -> bool:
    """Return whether an entry ended a grant for good; one that took a part of it did not."""
    return entry.kind == "void" and entry.policy != PART


def ending_of(story: list[Entry]) -> Entry | None:
    """Return the entry that ended a hold, None where the id is no hold's.

    A hold that expired and was settled late ended twice; the later ending counts.
    """
    if not story or story[0].kind != "hold":
        return None
    return next((entry for entry in reversed(story) if entry.final), None)


def buckets_after(wallet: Wallet, postings: tuple[Posting, ...]) -> tuple[int, int, int, int, int]:
    """Return issued, available, held, used and expired after these postings.

    Issued is what was ever put in, so it grows as units leave it for another bucket.
    """
    issued, available, held = wallet.issued, wallet.available, wallet.held
    used, expired = wallet.used, wallet.expired
    for posting in postings:
        source, target, units = posting.source, posting.target, posting.units
        if source == "available":
            available -= units
        elif source == "held":
            held -= units
        elif source == "used":
            used -= units
        else:
            assert source == "issued", "nothing leaves what expired"
            issued += units
        if target == "used":
            used += units
        elif target == "available":
            available += units
        elif target == "held":
            held += units
        elif target == "expired":
            expired += units
        else:
            issued -= units
    return issued, available, held, used, expired


def available_before(entry: Entry) -> int:
    """Return the wallet's free units before an entry."""
    moved = 0
    for posting in entry.postings:
        if posting.target == "available":
            moved += posting.units
        if posting.source == "available":
            moved -= posting.units
    return entry.available - moved


def entry_of(
    case: Case,
    kind: Kind,
    wallet: str,
    units: int,
    postings: tuple[Posting, ...],
    *,
    effective_at: int | None = None,
    operation: str | None = None,
    tags: dict[str, str] | None = None,
    **facts: Any,
) -> Entry:
    """Build the entry that a request leads to, with the balances after it.

    What every entry has is given by name, what few have is put in afterwards: beyond fifteen
    names Python builds a dict for the call, which costs more than all the rest.
    """
    account, request = case.account, case.request
    command = request.command
    issued, available, held, used, expired = buckets_after(account.wallet(wallet), postings)
    entry = Entry(
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
        operation=operation,
    )
    if tags or command.tags:
        facts["tags"] = tags or command.tags
    if command.reason:
        facts["reason"] = command.reason
    if request.actor:
        facts["actor"] = request.actor
    if command.metadata_digest:
        facts["metadata_digest"] = command.metadata_digest
    return replace(entry, **facts) if facts else entry


def due_entry(
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
    issued, available, held, used, expired = buckets_after(account.wallet(wallet), postings)
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
