"""Bring the ledger to what is known of a payment: in one transaction, whatever the order.

What a provider told is merged into the payment's note, and the verbs that follow from it are
decided and written with it, or nothing is. So there is no moment at which a fact is known and its
units are not there, and telling it again finds nothing left to do.

- Bought: a grant under the payment's own id, with what one unit cost.
- Demanded back (a refund, a dispute): a void of so many units of that grant. Only what is not used
  can be taken; the rest stands on the entry and on the payment as `shortfall`.
- No longer demanded (a won dispute, a failed refund): first the shortfall is forgiven, then what
  was taken comes back as a grant that lasts as long as the units would have.
"""

from __future__ import annotations

import copy
import time
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tillroll.embedded.ledger import verbs_of
from tillroll.engine import Batch, Engine, answer_in
from tillroll.ledger.book import Book
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.commands import Void, account_id
from tillroll.ledger.core import advance_in
from tillroll.ledger.errors import InvalidInput, TillrollError
from tillroll.ledger.types import NEVER, RESERVED, SECOND, Account, Refusal
from tillroll.ledger.units import to_decimal
from tillroll.payments.facts import Bought, Payment, decimals_of, merge, owed, returned
from tillroll.payments.telling import Source, last_of, of_payment, tell
from tillroll.stores.base import Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tillroll.ledger.book import Answer
    from tillroll.ledger.commands import Request
    from tillroll.ledger.verbs import Verbs
    from tillroll.payments.facts import Fact
    from tillroll.stores.base import NoteKey, Reader, Writer

KIND = "payment"
REFUSED = "_refused"  # after the kind of a note: its copy for whoever asks for no account
ID_MAX = 200  # of a provider's id, so that ours fit into 255 with the provider's name before it
_COST_DECIMALS = 12


def key_of(project: str, provider: str, payment_id: str) -> NoteKey:
    """Return where a payment is noted: by itself, since its account may not be known yet."""
    name = f"{provider}:{payment_id}"
    return account_id(project, f"~payment/{name}"), KIND, name


def settle(
    engine: Engine, project: str, provider: str, payment_id: str, facts: Sequence[Fact]
) -> Payment:
    """Note what a provider told of a payment, and bring the ledger to it.

    Args:
        engine: Whose ledger.
        project: Which of its ledgers.
        provider: The provider's short name, such as "stripe".
        payment_id: The provider's own id of the payment.
        facts: What it told, in any order; what is known already changes nothing.

    Returns:
        All that is known of the payment now; its `refused` says where the ledger could not follow.

    Raises:
        InvalidInput: What was told cannot be right; nothing was written.
        StoreUnavailable: Nothing was written.
        OutcomeUnknown: Tell it again.
    """
    if not 1 <= len(payment_id) <= ID_MAX:
        raise InvalidInput(f"a payment's id has 1 to {ID_MAX} characters")
    work = _Work(engine, project, provider, payment_id)
    began = time.time_ns()
    settled = engine.perform(lambda tx: work.settle(tx, facts))
    if engine.observe is not None and work.requests:
        engine.observe(Batch(work.requests, work.answers, began, time.time_ns(), engine.waiting))
    return settled


def known(reader: Reader, project: str, provider: str, payment_id: str) -> Payment | None:
    """Return what is known of a payment; None where nothing is."""
    note = reader.note(key_of(project, provider, payment_id))
    return None if note is None else decoded(note)


def payments_of(
    reader: Reader, project: str, account: str, after: str = "", limit: int = 100
) -> list[Payment]:
    """Return an account's payments by provider and id; "" for those that nobody is known to own."""
    return [decoded(note) for note in reader.notes_of(project, account, KIND, after, limit)]


def unfollowed(reader: Reader, project: str, after: str = "", limit: int = 100) -> list[Payment]:
    """Return payments that nobody is known to own, and those that the ledger could not follow."""
    return [decoded(note) for note in notes_unfollowed(reader, project, KIND, after, limit)]


def notes_unfollowed(
    reader: Reader, project: str, kind: str, after: str = "", limit: int = 100
) -> list[Note]:
    """Return notes of a kind that are nobody's, or that the ledger could not follow, by name."""
    notes = [
        *reader.notes_of(project, "", kind, after, limit),
        *reader.notes_of(project, "", kind + REFUSED, after, limit),
    ]
    return sorted(notes, key=lambda note: note.name)[:limit]


def list_refused(tx: Writer, note: Note, *, is_refused: bool) -> None:
    """List a note among what the ledger could not follow as long as that is so, whoever owns it."""
    copied = replace(note, kind=note.kind + REFUSED, account="", version=0, due_at=NEVER)
    there = tx.note(copied.key)
    if is_refused:
        tx.put_note(copied if there is None else replace(copied, version=there.version))
    elif there is not None:
        tx.drop_note(there)


def decoded(note: Note) -> Payment:
    """Return the payment that a note holds."""
    return msgspec.json.decode(note.document, type=Payment)


def claimed(tx: Writer, note: Note) -> Note:
    """Return a note that nobody else can write before this transaction ends.

    Read without a lock it may be old by the time that the account is locked, and verbs that follow
    from what is old would take the request ids of those that followed from what is new.
    """
    tx.put_note(note)
    return replace(note, version=note.version + 1)


class _Take(NamedTuple):
    """Units to take of one line; the last of them asks for what is not there as well."""

    line: str
    units: int


class _Work:
    """One settling, tried again from the start where somebody else was faster."""

    def __init__(self, engine: Engine, project: str, provider: str, payment_id: str) -> None:
        self._engine = engine
        self._project = project
        self._new = Payment(provider=provider, id=payment_id)
        self._key = key_of(project, provider, payment_id)
        self._verbs: Verbs = verbs_of(engine, project, ours=True)
        self._scale = engine.store.scale
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def settle(self, tx: Writer, facts: Iterable[Fact]) -> Payment:
        """Merge, book and note; write nothing where nothing is new."""
        self.requests, self.answers = [], []
        note = tx.note(self._key)
        before = self._new if note is None else decoded(note)
        payment = before
        for fact in facts:
            payment = merge(payment, fact)
        if payment == before:
            return before
        owner, kind, name = self._key
        fresh = Note(owner=owner, kind=kind, name=name, project=self._project, document="")
        note = claimed(tx, note or fresh)
        payment = self._booked(tx, payment)
        account = payment.account
        note = replace(note, document=msgspec.json.encode(payment).decode(), account=account)
        tx.put_note(note)
        if payment.refused is not None and payment.bought is not None:
            kept = payment.bought.amount - returned(payment)  # once nothing is, nothing is amiss
            list_refused(tx, note, is_refused=kept > 0)
        at = self._engine.clock()
        seq = last_of(self.requests, self.answers, account)
        source = Source(self._project, f"{kind}\n{name}", note.version, account, at, seq)
        tell(tx, source, of_payment(before, payment, self._scale))
        return payment

    def _booked(self, tx: Writer, payment: Payment) -> Payment:
        """Return the payment with what the ledger answered to what follows from it."""
        bought = payment.bought
        if bought is None:
            return payment
        demanded = owed(payment) - payment.taken - payment.short
        if payment.refused is not None:
            return replace(payment, short=max(payment.short + demanded, 0))
        fresh = not payment.lines
        if fresh:
            self.requests.append(self._purchase(payment, bought))
            payment = replace(payment, lines=(payment.ref,))
        if bought.lasts is not None:
            payment = self._time(tx, payment, bought, demanded, fresh=fresh)
        elif demanded > 0:
            payment = self._take(tx, payment, bought, demanded)
        elif demanded < 0:
            payment = self._give(payment, bought, -demanded)
        if self.requests:
            self.answers = answer_in(tx, self._scale, self.requests, self._engine.clock())
            payment = self._counted(payment)
        return payment

    def _counted(self, payment: Payment) -> Payment:
        """Return the payment with what was moved, as the entries say."""
        is_time = payment.bought is not None and payment.bought.lasts is not None
        for request, answer in zip(self.requests, self.answers, strict=True):
            outcome = answer.outcome
            if isinstance(outcome, TillrollError):
                raise outcome
            if isinstance(outcome, Refusal):
                asked = request.command.units if isinstance(request.command, Void) else None
                short = payment.short + (asked or 0)
                payment = replace(payment, refused=outcome.code, short=short)
            elif is_time:
                continue
            elif outcome.kind == "void":
                payment = replace(
                    payment,
                    taken=payment.taken + outcome.units,
                    short=payment.short + outcome.shortfall,
                    taken_at=outcome.at,
                )
            elif request.request_id == payment.ref:
                payment = replace(payment, until=outcome.opens[0].expires_at)
            else:
                payment = replace(payment, taken=payment.taken - outcome.units)
        return payment

    # ------------------------------------------------------------ the verbs that follow

    def _purchase(self, payment: Payment, bought: Bought) -> Request:
        if not bought.version:
            return self._grant(payment, bought, payment.ref, bought.units, bought.expires_in)
        return self._verbs.buy(
            bought.account,
            bought.product or "",
            quantity=bought.quantity,
            version=bought.version,
            cost_basis=None if bought.lasts else cost_basis(bought, self._scale),
            source=f"{payment.provider} payment {payment.id}",
            request_id=payment.ref,
            reason=f"payment {payment.id}",
            **self._how(payment, bought),
        )

    def _grant(
        self, payment: Payment, bought: Bought, request_id: str, units: int, life: int | None
    ) -> Request:
        again = "" if request_id == payment.ref else " stands again"
        return self._verbs.grant(
            bought.account,
            to_decimal(units, self._scale),
            request_id=request_id,
            wallet=bought.wallet,
            expires_in=None if life is None else timedelta(microseconds=life),
            applies_to=bought.applies_to,
            cost_basis=cost_basis(bought, self._scale),
            source=f"{payment.provider} payment {payment.id}",
            reason=f"payment {payment.id}{again}",
            **self._how(payment, bought),
        )

    def _how(self, payment: Payment, bought: Bought) -> dict[str, Any]:
        told = {"provider": payment.provider, "payment": payment.id, "product": bought.product}
        money = {"amount": bought.amount, "currency": bought.currency}
        return {"actor": f"payments/{payment.provider}", "metadata": told | money}

    def _step(self, payment: Payment) -> tuple[Payment, str]:
        payment = replace(payment, steps=payment.steps + 1)
        return payment, f"{RESERVED}payment/{payment.ref}/{payment.steps}"

    def _take(self, tx: Writer, payment: Payment, bought: Bought, units: int) -> Payment:
        """Ask for units back, of each line what it has, of the last what is missing as well."""
        for line, part in self._takes(tx, payment, bought, units):
            payment, request_id = self._step(payment)
            self.requests.append(
                self._verbs.void(
                    bought.account,
                    line,
                    units=to_decimal(part, self._scale),
                    request_id=request_id,
                    reason=f"payment {payment.id} was refunded or is disputed",
                    **self._how(payment, bought),
                )
            )
        return payment

    def _takes(self, tx: Writer, payment: Payment, bought: Bought, units: int) -> list[_Take]:
        if len(payment.lines) == 1:
            return [_Take(payment.lines[0], units)]
        account = self._account(tx, bought)
        takes = []
        for line in reversed(payment.lines):
            grant = account.grants.get(line)
            part = min(units, grant.remaining if grant is not None else 0)
            if part:
                takes.append(_Take(line, part))
                units -= part
        if units:
            last = takes.pop() if takes else _Take(payment.lines[0], 0)
            takes.append(_Take(last.line, last.units + units))
        return takes

    def _account(self, tx: Writer, bought: Bought) -> Account:
        """Return a copy of the account as it stands now, under its lock."""
        return standing(tx, self._project, bought.account, self._engine.clock())

    def _time(
        self, tx: Writer, payment: Payment, bought: Bought, demanded: int, *, fresh: bool
    ) -> Payment:
        """Take time of a pass back, or give it back: a pass that was prolonged is one span."""
        if not demanded:
            return payment
        forgiven = min(payment.short, max(-demanded, 0))
        payment = replace(payment, short=payment.short - forgiven)
        account = self._account(tx, bought)
        at = max(self._engine.clock(), account.at)
        name = bought.product or ""
        held = account.entitlements.get(name)
        ends_at = at if held is None or held.ends_at is None else held.ends_at
        ends_at += bought.worth if fresh else 0
        moved = min(demanded, ends_at - at) if demanded > 0 else demanded + forgiven
        payment = replace(
            payment, taken=payment.taken + moved, short=payment.short + max(demanded - moved, 0)
        )
        if not moved:
            return payment
        payment, request_id = self._step(payment)
        how: dict[str, Any] = {"request_id": request_id, **self._how(payment, bought)}
        if moved < 0:
            products = tx.prices(self._project).version(bought.version).products
            request = self._verbs.entitle(
                bought.account,
                name,
                kind="time_pass",
                product=name,
                features=products.passes[name].features,
                lasts=timedelta(microseconds=-moved),
                **how,
            )
        elif ends_at - moved <= at:
            request = self._verbs.end_entitlement(bought.account, name, **how)
        else:
            ends = show_instant(ends_at - moved)
            request = self._verbs.change_entitlement(bought.account, name, ends_at=ends, **how)
        self.requests.append(request)
        return payment

    def _give(self, payment: Payment, bought: Bought, units: int) -> Payment:
        """Forgive what was short, and give back what was taken."""
        forgiven = min(payment.short, units)
        payment = replace(payment, short=payment.short - forgiven)
        if units > forgiven:
            payment, request_id = self._step(payment)
            life = None if payment.until is None else max(payment.until - payment.taken_at, SECOND)
            self.requests.append(self._grant(payment, bought, request_id, units - forgiven, life))
            payment = replace(payment, lines=(*payment.lines, request_id))
        return payment


def standing(tx: Writer, project: str, name: str, at: int) -> Account:
    """Return a copy of an account as it stands at that time, under its lock.

    Args:
        tx: The transaction, which reads where is written, and never from a standby or from memory.
        project: Whose account.
        name: The account.
        at: The time; the account's own, where that is later.
    """
    owner = account_id(project, name)
    account = copy.deepcopy(tx.load_locked(project, {owner: name})[owner])
    at = max(at, account.at)
    advance_in(Book(accounts={owner: account}, at=at), owner, at)
    return account


def cost_basis(bought: Bought, scale: int) -> Decimal:
    """Return what one unit was sold for, in the currency's own unit, to twelve decimals."""
    if bought.units <= 0:
        raise InvalidInput("a purchase brings more than 0 units")
    with localcontext() as context:
        context.prec = 60
        paid = Decimal(bought.amount).scaleb(-decimals_of(bought.currency))
        each = paid / to_decimal(bought.units, scale)
        return each.quantize(Decimal(1).scaleb(-_COST_DECIMALS), ROUND_HALF_EVEN).normalize() + 0


__all__ = ["claimed", "cost_basis", "decoded", "key_of", "known", "list_refused"]
__all__ += ["notes_unfollowed", "payments_of", "settle", "standing", "unfollowed"]
