"""Moving a ledger to another store: every history byte for byte, proven equal before it counts.

Entries are copied as they are stored, account by account; each is checked against the hash chain
and folded on the way. What the target has already is not copied again, so a copy that was cut off
goes on where it was. The first pass runs while the source is in use; then the source is marked as
moved, nobody can write to it any more, the rest is copied, and both sides are compared.

The registry comes last, in one transaction, with its version, which tells like an account's seq
whose documents are the newer ones. A target that stands further, or has its own, is refused.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from tillroll.ledger import chain
from tillroll.ledger.book import Book, Sealed
from tillroll.ledger.commands import account_id
from tillroll.ledger.due import next_due
from tillroll.ledger.errors import CopyMismatch, InvalidInput
from tillroll.ledger.fold import apply
from tillroll.ledger.types import NEVER
from tillroll.stores.base import SEQ_MAX, note_row, persist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tillroll.ledger.types import Account
    from tillroll.stores.base import Key, Note, NoteKey, Reader, Remembrance, Repeats, Store, Writer
    from tillroll.stores.outbox import Delivery, DeliveryKey, EventKey, Waiting

Registry = dict[str, dict[str, str]]  # by kind, then by name

ACCOUNTS_PAGE = 200
ENTRIES_PAGE = 1_000


class Copied(Struct, frozen=True):
    """What a copy found equal on both sides.

    Attributes:
        source: Where it came from; marked as moved unless `kept`.
        target: Where it is now.
        copied: Entries written by this run; the rest was there from an earlier one.
        kept: Whether the source stayed in use.
    """

    source: str
    target: str
    projects: int
    accounts: int
    entries: int
    refusals: int
    repeats: int
    price_versions: int
    documents: int
    events: int
    notes: int
    copied: int
    kept: bool

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def tell_nobody(_what: str, _done: int) -> None:
    """Take a report of progress that nobody asked for."""


def copy(
    source: Store,
    target: Store,
    *,
    keep: bool = False,
    progress: Callable[[str, int], None] = tell_nobody,
) -> Copied:
    """Copy a whole ledger, all projects, and have new writes go to the target.

    Args:
        source: What to copy.
        target: An empty store, or one that an earlier copy of the same ledger has begun, or that
            this ledger once came from.
        keep: Leave the source in use: then what is written meanwhile may be missing, and the two
            are compared as they were when each account was copied.
        progress: Told what is being copied, and how many of it so far.

    Raises:
        CopyMismatch: The target has other histories than the source, or the source is damaged;
            what was copied before stays in the target, and the source stays in use, unless an
            earlier copy had marked it as moved.
        StoreCorrupt: The source is so damaged that an account cannot be read; as above.
        InvalidInput: The two have different scales, or are one ledger.
        StoreUnavailable, OutcomeUnknown: Copy again; it goes on where it was.
    """
    if source.scale != target.scale:
        raise InvalidInput(
            f"the scales differ: {source.url} has {source.scale}, {target.url} {target.scale}"
        )
    _check_target(source, target)
    _need_as(source, target)
    copied = _copy_all(source, target, progress)
    with source.read() as reader:
        before = reader.moved_to()
    try:
        if not keep:
            persist(source, lambda tx: tx.set_moved(target.url))
            source.wait_for_writers()
            _check_apart(target)
        _need_as(source, target)
        copied += _copy_all(source, target, progress)
        untouched = _is_untouched(target)
        if not keep:
            _prune_as(source, target)
            _drop_notes_as(source, target, untouched=untouched)
        _erase_as(source, target)
        _copy_notes(source, target, untouched=untouched)
        target.adopt(source.secret)  # before the documents: an earlier copy's are known by it
        _copy_registry(source, target)
        found = _compare(source, target, copied, keep=keep, tell=progress)
    except BaseException:
        if not keep:
            persist(source, lambda tx: tx.set_moved(before))
        raise
    persist(target, lambda tx: tx.set_moved(None))
    return found


def _check_target(source: Store, target: Store) -> None:
    """Find out, before anything is written, that the target holds what the source does not.

    Raises:
        CopyMismatch: It is another ledger, or was in use since an earlier copy.
    """
    with source.read() as left, target.read() as right:
        _check_registry(left, right, target.url, known=source.secret == target.secret)
        for project in right.projects():
            for page in _pages(right, project):
                owners = [(account_id(project, name), name) for name in page]
                ours, theirs = left.accounts(owners), right.accounts(owners)
                for owner, name in owners:
                    if theirs[owner].seq > ours[owner].seq:
                        raise CopyMismatch(
                            f"account {name!r} has another history in {target.url}: it was in use, "
                            f"or is another ledger; copy to an empty store"
                        )


def _check_apart(target: Store) -> None:
    """Find out, by the mark that was put at the source just now, that the target is another place.

    Raises:
        InvalidInput: It is the source, reached in another way.
    """
    with target.read() as reader:
        if reader.moved_to() == target.url:
            raise InvalidInput(f"source and target are one ledger, {target.url}")


def _registry(reader: Reader) -> Registry:
    return {kind: reader.documents(kind) for kind in reader.kinds()}


def _check_registry(left: Reader, right: Reader, url: str, *, known: bool) -> None:
    """Find out that no document is lost which the target alone has.

    Args:
        left: The source.
        right: The target.
        url: What to call the target.
        known: Whether the two are one ledger already, so that older documents may be replaced.

    Raises:
        CopyMismatch: There is such a document, or may be.
    """
    one, other = left.registry_version(), right.registry_version()
    ours = _registry(left)
    if other > one or (other and ours != _registry(right) and (other == one or not known)):
        raise CopyMismatch(
            f"{url} has documents of its own (version {other} of the registry, here {one}): "
            f"it was in use, or is another ledger; copy to an empty store"
        )


def _need_as(source: Store, target: Store) -> None:
    """Refuse the target to whom the source is refused: it gets what such a one would misread."""
    with source.read() as reader:
        needs = reader.needs()
    if needs > 1:
        persist(target, lambda tx: tx.need(needs))


def _copy_registry(source: Store, target: Store) -> None:
    """Have the target keep the same documents, in one transaction, and count on from there."""

    def act(tx: Writer) -> None:
        with source.read() as reader:
            _check_registry(reader, tx, target.url, known=True)
            version, wanted = reader.registry_version(), _registry(reader)
        known = _registry(tx)
        if (tx.registry_version(), known) == (version, wanted):
            return
        tx.set_registry_version(version)
        for kind in known.keys() | wanted.keys():
            there, here = known.get(kind, {}), wanted.get(kind, {})
            for name in there.keys() - here.keys():
                tx.put_document(kind, name, None)
            for name in here:
                if there.get(name) != here[name]:
                    tx.put_document(kind, name, here[name])

    persist(target, act)


def _copy_all(source: Store, target: Store, tell: Callable[[str, int], None]) -> int:
    """Copy what the target lacks; return how many entries that was."""
    with source.read() as reader:
        projects = reader.projects()
        for project in projects:
            _copy_prices(reader, target, project)
        copied = 0
        for project in projects:
            for page in _pages(reader, project):
                copied += _copy_accounts(reader, target, project, page)
                tell("entries", copied)
        _copy_refusals(reader, target, tell)
        _copy_repeats(reader, target, tell)
        _copy_outbox(reader, target, tell)
    return copied


def _pages(reader: Reader, project: str) -> Iterator[list[str]]:
    last = ""
    while page := reader.names(project, last, ACCOUNTS_PAGE):
        yield page
        last = page[-1]


def _copy_prices(reader: Reader, target: Store, project: str) -> None:
    wanted = reader.prices(project).versions

    def act(tx: Writer) -> None:
        known = tx.prices(project).versions
        if any(wanted.get(number) != version for number, version in known.items()):
            raise CopyMismatch(f"project {project!r} has other prices in {target.url}")
        for number in sorted(wanted.keys() - known.keys()):
            tx.add_price_version(project, wanted[number])

    persist(target, act)


def _copy_accounts(reader: Reader, target: Store, project: str, names: list[str]) -> int:
    """Copy the entries that these accounts have more than in the target; return how many."""
    owners = {account_id(project, name): name for name in names}
    ends = {owner: account.seq for owner, account in reader.accounts(owners.items()).items()}
    copied = 0

    def act(tx: Writer) -> Book:
        accounts = tx.load_locked(project, owners)
        book = Book(accounts={owner: accounts[owner] for owner in owners})
        for owner in owners:
            room = ENTRIES_PAGE - len(book.appended)
            if room > 0:
                _take_entries(reader, book, owner, room, target.url)
        tx.append(project, book)
        return book

    while owners:
        book = persist(target, act)
        copied += len(book.appended)
        for owner in list(owners):
            if book.accounts[owner].seq >= ends[owner]:
                del owners[owner]
    return copied


def _take_entries(reader: Reader, book: Book, owner: bytes, limit: int, url: str) -> None:
    """Put an account's next entries into the book, checked and folded."""
    account = book.accounts[owner]
    if account.seq:
        _same_history(reader, account, owner, url)
    for stored in reader.entries(owner, account.seq, limit):
        if stored.seq != account.seq + 1:
            raise CopyMismatch(f"entry {account.seq + 1} of {account.account!r} is missing")
        if chain.link(account.head, owner, stored.body) != stored.hash:
            raise CopyMismatch(
                f"entry {stored.seq} of {account.account!r} does not match its hash: run "
                f"`tillroll verify` on the source"
            )
        entry = stored.entry
        apply(account, entry)
        account.head = stored.hash
        book.appended.append(Sealed(owner, entry, stored.body, stored.hash, stored.metadata))
    account.next_due_at = next_due(account)


def _same_history(reader: Reader, account: Account, owner: bytes, url: str) -> None:
    there = reader.entries(owner, account.seq - 1, 1)
    if not there or there[0].hash != account.head:
        raise CopyMismatch(
            f"account {account.account!r} has another history in {url}: copy to an empty store"
        )


def _copy_refusals(reader: Reader, target: Store, tell: Callable[[str, int], None]) -> None:
    last: Key | None = None
    done = 0
    while page := reader.refusals(last):
        for project in sorted({row.project for row in page}):
            rows = [row for row in page if row.project == project]
            persist(target, partial(_add_refusals, project=project, rows=rows))
        last = page[-1].key
        done += len(page)
        tell("refusals", done)


def _prune_as(source: Store, target: Store) -> None:
    """Delete the refusals that an earlier copy brought and that the source has pruned since."""
    oldest = NEVER
    last: Key | None = None
    with source.read() as reader:
        while page := reader.refusals(last):
            oldest = min(oldest, *(row.refusal.at for row in page))
            last = page[-1].key
    while persist(target, lambda tx: tx.prune_refusals(oldest)):
        pass


def _erase_as(source: Store, target: Store) -> None:
    """Erase the metadata that an earlier pass brought and that the source has erased since."""
    with source.read() as left, target.read() as right:
        erased = []
        for project in left.projects():
            for page in _pages(left, project):
                owners = [account_id(project, name) for name in page]
                ours, theirs = left.first_metadata(owners), right.first_metadata(owners)
                wanted = {owner: ours.get(owner, SEQ_MAX) for owner in theirs}
                erased += [(o, seq) for o, seq in wanted.items() if theirs[o] < seq]
    for owner, before in erased:
        persist(target, partial(_erase, owner=owner, before=before))


def _erase(tx: Writer, *, owner: bytes, before: int) -> int:
    return tx.erase_metadata(owner, before)


def _add_refusals(tx: Writer, *, project: str, rows: Sequence[Remembrance]) -> None:
    wanted = {row.account_id: row.account for row in rows}
    accounts = tx.load_locked(project, wanted)
    refused = [(row.account_id, row.refusal) for row in rows]
    tx.append(project, Book(accounts={owner: accounts[owner] for owner in wanted}, refused=refused))


def _copy_repeats(reader: Reader, target: Store, tell: Callable[[str, int], None]) -> None:
    last: Key | None = None
    done = 0
    while page := reader.repeats(last):
        persist(target, lambda tx, page=page: tx.add_repeats(page))  # type: ignore[misc]
        last = page[-1].key
        done += len(page)
        tell("repeats", done)


def _copy_outbox(reader: Reader, target: Store, tell: Callable[[str, int], None]) -> None:
    """Copy the events and what became of them; what is sent meanwhile may be sent twice."""
    event: EventKey | None = None
    done = 0
    while events := reader.events(event):
        persist(target, partial(_add_events, events=events))
        event = events[-1].key
        done += len(events)
        tell("events", done)
    delivery: DeliveryKey | None = None
    while deliveries := reader.deliveries(delivery):
        persist(target, partial(_put_deliveries, deliveries=deliveries))
        delivery = deliveries[-1].key


def _add_events(tx: Writer, *, events: Sequence[Waiting]) -> None:
    tx.add_events(events)


def _put_deliveries(tx: Writer, *, deliveries: Sequence[Delivery]) -> None:
    tx.put_deliveries(deliveries)


def _is_untouched(target: Store) -> bool:
    """Return whether the target's notes of no account are as an earlier copy brought them.

    Such a note is deleted once it is known whose it is, and may then be made anew, from version 1
    on. So its version alone does not say whose note is the later one.
    """
    with target.read() as reader:
        retired = reader.moved_to() is not None  # nobody can have written since
        return retired or reader.brought() == _digest(reader)


def _digest(reader: Reader) -> str:
    """Return a digest of all notes of no account."""
    digest = hashlib.sha256()
    last: NoteKey | None = None
    while page := reader.notes(last):
        for note in page:
            if not note.account:
                digest.update(repr(note_row(note)).encode())
        last = page[-1].key
    return digest.hexdigest()


def _copy_notes(source: Store, target: Store, *, untouched: bool) -> None:
    """Have the target keep the same notes; one that was written since an earlier copy is newer."""
    last: NoteKey | None = None
    with source.read() as reader:
        while page := reader.notes(last):
            persist(target, partial(_add_notes, notes=page, untouched=untouched))
            last = page[-1].key
    persist(target, lambda tx: tx.set_brought(_digest(tx)))


def _drop_notes_as(source: Store, target: Store, *, untouched: bool) -> None:
    """Delete the notes that an earlier copy brought and that the source has deleted since.

    That happens to notes of no account alone: another one that only the target has is a mismatch,
    as is one that the target made itself.
    """
    if not untouched:
        return  # what the target has too much is found when the two are compared
    last: NoteKey | None = None
    with source.read() as left, target.read() as right:
        while page := right.notes(last):
            there = {note.key for note in left.notes(last, len(page))}
            gone = [note for note in page if not note.account and note.key not in there]
            gone = [note for note in gone if left.note(note.key) is None]
            if gone:
                persist(target, partial(_drop_notes, notes=gone))
            last = page[-1].key


def _drop_notes(tx: Writer, *, notes: Sequence[Note]) -> None:
    for note in notes:
        tx.drop_note(note)


def _add_notes(tx: Writer, *, notes: Sequence[Note], untouched: bool) -> None:
    for note in notes:
        there = tx.note(note.key)
        if there is None or there == note or (untouched and not there.account):
            continue
        if there.version >= note.version:
            raise CopyMismatch(f"the {note.kind} {note.name!r} was written in the target since")
    tx.copy_notes(notes)


def _compare(
    source: Store, target: Store, copied: int, *, keep: bool, tell: Callable[[str, int], None]
) -> Copied:
    """Return the counts of both sides.

    Raises:
        CopyMismatch: Something differs.
    """
    with source.read() as left, target.read() as right:
        projects = left.projects()
        accounts = entries = versions = 0
        for project in projects:
            versions += len(left.prices(project).versions)
            if right.prices(project).versions != left.prices(project).versions:
                raise CopyMismatch(f"the prices of project {project!r} differ")
            for page in _pages(left, project):
                entries += _compare_accounts(left, right, project, page, keep=keep)
                accounts += len(page)
                tell("compared accounts", accounts)
        refusals = _compare_rows(left, right, "refusals", keep=keep)
        repeats = _compare_rows(left, right, "repeats", keep=keep)
        events = _compare_outbox(left, right, keep=keep)
        notes = _compare_rows(left, right, "notes", keep=keep)
        documents = _compare_registry(left, right, keep=keep)
    return Copied(
        source=source.url,
        target=target.url,
        projects=len(projects),
        accounts=accounts,
        entries=entries,
        refusals=refusals,
        repeats=repeats,
        price_versions=versions,
        documents=documents,
        events=events,
        notes=notes,
        copied=copied,
        kept=keep,
    )


def _compare_accounts(
    left: Reader, right: Reader, project: str, names: list[str], *, keep: bool
) -> int:
    """Compare chain heads, states and balances of accounts; return how many entries they have."""
    owners = [(account_id(project, name), name) for name in names]
    ours, theirs = left.accounts(owners), right.accounts(owners)
    total = 0
    for owner, name in owners:
        one, other = ours[owner], theirs[owner]
        total += other.seq
        if keep and one.seq > other.seq:  # written meanwhile: what was copied is its beginning
            _same_history(left, other, owner, "the target")
        elif (one.seq, one.head, one.wallets) != (other.seq, other.head, other.wallets):
            raise CopyMismatch(f"account {name!r} differs: seq {one.seq} and {other.seq}")
    return total


def _compare_rows(left: Reader, right: Reader, what: str, *, keep: bool) -> int:
    """Compare what stands beside the entries row by row; return how many rows there are."""
    last: Key | NoteKey | None = None
    total = 0
    while True:
        page: Sequence[Remembrance | Repeats | Note] = getattr(right, what)(last)
        if not keep and page != getattr(left, what)(last):
            raise CopyMismatch(f"the {what} after {last} differ")
        if not page:
            return total
        last = page[-1].key
        total += len(page)


def _compare_outbox(left: Reader, right: Reader, *, keep: bool) -> int:
    """Return how many events the target has, after a look whether it has all that wait."""
    total = 0
    last: EventKey | None = None
    while page := left.events(last):
        if not keep and not _has_all(right, page, last):
            raise CopyMismatch(f"the events after {last} differ")
        last = page[-1].key
        total += len(page)
    if not keep and left.backlog() != right.backlog():
        raise CopyMismatch("the deliveries that wait differ")
    return total


def _has_all(right: Reader, page: Sequence[Waiting], last: EventKey | None) -> bool:
    """Return whether the target has these events; it may have more, which were deleted since."""
    found: list[Waiting] = []
    while rows := right.events(last):
        found += rows
        last = rows[-1].key
        if last >= page[-1].key:
            break
    known = {row.key: row for row in found}
    return all(known.get(row.key) == row for row in page)


def _compare_registry(left: Reader, right: Reader, *, keep: bool) -> int:
    """Compare the documents and their version; return how many documents there are."""
    version, found = right.registry_version(), _registry(right)
    same = (version, found) == (left.registry_version(), _registry(left))
    if not same and not (keep and left.registry_version() > version):  # put meanwhile
        raise CopyMismatch(f"the documents differ, of version {version} of the registry")
    return sum(map(len, found.values()))


__all__ = ["Copied", "copy", "tell_nobody"]
