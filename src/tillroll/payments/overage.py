"""Postpaid overage: what an account used beyond its units, reported to the provider's meters.

An account that may owe (an overdraft) is billed for it afterwards: the units that were charged to
the overdraft are added up, and reported in whole numbers. A batch is noted with its identifier
before it is sent and struck off afterwards; whoever dies in between sends the same batch again
under the same identifier, which counts once. What is less than one whole unit is carried on.

What was reported is owed to the provider's invoice and no longer here: a grant of as many units
repays the overdraft with the entry that strikes the batch off, or the next units bought would pay
for it once more.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_in
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import InvalidInput, NotFound, ProviderRefused, TillrollError
from tillroll.ledger.types import HOUR, MINUTE, NEVER, OVERDRAFT, RESERVED, WALLET_DEFAULT
from tillroll.payments.desk import KEY_LIFE, Desk, check_standing, new_note, put
from tillroll.payments.provider import Usage

if TYPE_CHECKING:
    from tillroll.ledger.types import Entry
    from tillroll.stores.base import Note, NoteKey, Reader, Writer

KIND = "overage"
EVERY = 5 * MINUTE  # how often an account's usage is reported
ENTRIES_PAGE = 1_000  # of one batch
ROUND_MAX = 500  # accounts of one round
SKEW = HOUR  # between two clocks; a batch that seems to be from later than that is of unknown age


class Batch(Struct, frozen=True):
    """Usage that is being reported: up to which entry, how much, under which identifier."""

    identifier: str
    value: int
    to: int
    carry: int
    at: int
    noted_at: int


class Overage(Struct, frozen=True, omit_defaults=True):
    """What is reported of an account, and how far that is.

    Attributes:
        meter: The event name of the provider's meter.
        cursor: The seq of the last entry that was reported.
        carry: What was used and is not reported yet, in the smallest unit; less than a whole one,
            and below zero where more came back than was used.
        sent: How many whole units were reported.
        pending: The batch that is under way.
        state: "in_doubt" where nobody can tell whether the batch arrived: it was sent so long ago
            that the provider may have forgotten its identifier. `resolve` says.
    """

    account: str
    meter: str
    wallet: str = WALLET_DEFAULT
    cursor: int = 0
    carry: int = 0
    sent: int = 0
    pending: Batch | None = None
    state: Literal["running", "in_doubt", "stopped"] = "running"


def set_overage(desk: Desk, account: str, meter: str, *, wallet: str = WALLET_DEFAULT) -> Overage:
    """Report what an account uses beyond its units from now on; again, under another meter.

    Args:
        desk: Whose account, and who is told.
        account: The balance owner, who may owe: see `set_overdraft`.
        meter: The event name of the provider's meter.
        wallet: The kind of credits.

    Raises:
        InvalidInput: A batch is under way; ask again when it has arrived.
        NotFound: There is no such account; nothing was written.
        AccountClosed: Nothing was written.
    """
    if not 1 <= len(meter) <= 100:  # noqa: PLR2004 - as long as Stripe's names
        raise InvalidInput("meter has 1 to 100 characters")

    def act(tx: Writer) -> Overage:
        key = _key(desk, account, wallet)
        owner = key[0]
        found = tx.load_locked(desk.ledger, {owner: account})[owner]
        check_standing(found)
        note = tx.note(key)
        if note is None:
            made = Overage(account=account, meter=meter, wallet=wallet, cursor=found.seq)
        else:
            known = decoded(note)
            if known.pending is not None and meter != known.meter:
                raise InvalidInput("usage is being reported; try again when it has arrived")
            made = replace(known, meter=meter, state="running")
        at = desk.engine.clock()
        put(tx, note or new_note(desk.ledger, key, account), made, at)
        return made

    return desk.engine.perform(act)


def stop_overage(desk: Desk, account: str, wallet: str = WALLET_DEFAULT) -> Overage:
    """Report nothing more; started again, it goes on from where it stopped."""

    def act(tx: Writer) -> Overage:
        key = _key(desk, account, wallet)
        stopped = replace(overage_of(tx, desk.ledger, account, wallet), state="stopped")
        note = tx.note(key)
        assert note is not None
        put(tx, note, stopped)
        return stopped

    return desk.engine.perform(act)


def resolve(desk: Desk, account: str, *, arrived: bool, wallet: str = WALLET_DEFAULT) -> Overage:
    """Say whether a batch in doubt arrived, as the provider's own pages show; then go on."""

    def act(tx: Writer) -> Overage:
        known = overage_of(tx, desk.ledger, account, wallet)
        if known.state != "in_doubt" or known.pending is None:
            raise InvalidInput("nothing is in doubt here")
        if arrived:
            done = _done(known, known.pending)
            _repay(tx, desk, known, known.pending)
        else:
            done = replace(known, pending=None)
        note = tx.note(_key(desk, account, wallet))
        assert note is not None
        done = replace(done, state="running")
        put(tx, note, done, desk.engine.clock())
        return done

    return desk.engine.perform(act)


def overage_of(reader: Reader, ledger: str, account: str, wallet: str = WALLET_DEFAULT) -> Overage:
    """Return what is reported of an account, and how far that is.

    Raises:
        NotFound: Nothing is.
    """
    note = reader.note((account_id(ledger, account), KIND, wallet))
    if note is None:
        raise NotFound(f"no usage of account {account!r} and {wallet!r} is reported")
    return decoded(note)


def decoded(note: Note) -> Overage:
    """Return the overage that a note holds."""
    return msgspec.json.decode(note.document, type=Overage)


def round_of(desk: Desk) -> int:
    """Report what is due; return how many batches arrived.

    Raises:
        ProviderUnavailable: What was noted stays; the next round sends the same again.
    """
    with desk.engine.store.read_primary() as reader:
        due = reader.notes_due(desk.ledger, KIND, desk.engine.clock(), ROUND_MAX)
    arrived = 0
    refused: ProviderRefused | None = None
    for note in due:
        noted = desk.engine.perform(partial(_noted, desk=desk, seen=note))
        if noted is not None:
            try:
                _report(desk, noted)
            except ProviderRefused as problem:  # one account's trouble is not the others'
                refused = problem
            else:
                arrived += 1
    if refused is not None:
        raise refused
    return arrived


def _noted(tx: Writer, *, desk: Desk, seen: Note) -> Overage | None:
    """Note the next batch, or return the one that is under way; None where there is none."""
    note = tx.note(seen.key)
    assert note is not None, "a note is never removed"
    overage = decoded(note)
    at = desk.engine.clock()
    if note.due_at > at or overage.state != "running":
        return None
    if overage.pending is None:
        overage = _gathered(tx, desk, overage, at)
    elif not -SKEW <= at - overage.pending.noted_at <= KEY_LIFE:
        overage = replace(overage, state="in_doubt")
    due_at = NEVER if overage.state == "in_doubt" else at + EVERY
    put(tx, note, overage, due_at)
    return overage if overage.pending is not None and overage.state == "running" else None


def _gathered(tx: Writer, desk: Desk, overage: Overage, at: int) -> Overage:
    """Return the overage with what the next entries add: a batch, or a greater carry."""
    owner = account_id(desk.ledger, overage.account)
    page = tx.entries(owner, overage.cursor, ENTRIES_PAGE)
    if not page:
        return overage
    used = overage.carry
    for stored in page:
        used += used_beyond(stored.entry, overage.wallet)
    to = page[-1].seq
    one = 10**desk.engine.store.scale
    value = max(used // one, 0)
    if value == 0:
        return replace(overage, cursor=to, carry=used)
    batch = Batch(
        identifier=desk.key("overage", overage.account, overage.wallet, overage.cursor, to),
        value=value,
        to=to,
        carry=used - value * one,
        at=page[-1].entry.at,
        noted_at=at,
    )
    return replace(overage, pending=batch)


def used_beyond(entry: Entry, wallet: str) -> int:
    """Return what an entry charged to the overdraft; below zero what it gave back."""
    if entry.wallet != wallet:
        return 0
    beyond = 0
    for posting in entry.postings:
        if posting.line == OVERDRAFT:
            beyond += posting.units * ((posting.target == "used") - (posting.source == "used"))
    return beyond


def _report(desk: Desk, overage: Overage) -> None:
    """Send the batch that is noted, then strike it off."""
    batch = overage.pending
    assert batch is not None
    customer = desk.customer(overage.account)
    desk.asked.report(
        Usage(
            meter=overage.meter,
            customer=customer,
            value=batch.value,
            identifier=batch.identifier,
            at=batch.at,
        )
    )

    def act(tx: Writer) -> None:
        note = tx.note(_key(desk, overage.account, overage.wallet))
        assert note is not None
        known = decoded(note)
        if known.pending == batch:
            put(tx, note, _done(known, batch), note.due_at)
            _repay(tx, desk, known, batch)

    desk.engine.perform(act)


def _repay(tx: Writer, desk: Desk, overage: Overage, batch: Batch) -> None:
    """Have the account owe no longer what the provider bills; a closed one is left as it is."""
    grant = verbs_of(desk.engine, desk.ledger, ours=True).grant(
        overage.account,
        batch.value,
        wallet=overage.wallet,
        source="billed afterwards",
        request_id=f"{RESERVED}overage/{batch.identifier}",
        reason=f"{batch.value} reported to {overage.meter}",
        actor=f"payments/{desk.provider.name}",
    )
    [answer] = answer_in(tx, desk.engine.store.scale, [grant], desk.engine.clock())
    if isinstance(answer.outcome, TillrollError):
        raise answer.outcome


def _done(overage: Overage, batch: Batch) -> Overage:
    return replace(
        overage,
        cursor=batch.to,
        carry=batch.carry,
        sent=overage.sent + batch.value,
        pending=None,
    )


def _key(desk: Desk, account: str, wallet: str) -> NoteKey:
    return account_id(desk.ledger, account), KIND, wallet


__all__ = [
    "Overage",
    "overage_of",
    "resolve",
    "round_of",
    "set_overage",
    "stop_overage",
    "used_beyond",
]
