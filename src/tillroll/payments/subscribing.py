"""Bring an account's entitlement to what is known of a subscription, whatever the order.

A subscription's note holds how it stood when it was last told of, and which of its periods were
paid. Units come with a paid period: each is granted once, on the plan that it was paid for, and the
clock renews nothing that was not paid. How the subscription stands beyond that follows from the
newest that is known; what is older changes nothing.

- A dearer plan counts at once, with grants of its own for the rest of the period; a cheaper one
  from the next period on, since this one was paid.
- Past due: features stay, nothing is renewed. Unpaid and paused: neither. Ended: what was granted
  stays until it expires, for it was paid.
- Money that goes back takes units of the period that it had paid for, and of no other. How the
  subscription goes on is for the provider to say; a period all of whose money went back brings
  nothing more.
- Another account: features begin there and end here at once. The units of the period that was paid
  stay where they are, or it would bring them twice.
"""

from __future__ import annotations

import time
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from tillroll.embedded.ledger import verbs_of
from tillroll.engine import Batch, Engine, answer_then
from tillroll.ledger import calendar, chain
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.commands import Void, account_id
from tillroll.ledger.errors import InvalidInput, TillrollError
from tillroll.ledger.types import DAY, HOUR, NEVER, RESERVED, Refusal
from tillroll.ledger.units import to_decimal
from tillroll.payments import facts, returning
from tillroll.payments.facts import Payment
from tillroll.payments.provider import InvoiceTold, ReturnTold, SubscriptionTold
from tillroll.payments.returning import SHIFT, Share
from tillroll.payments.settling import claimed, list_refused, notes_unfollowed, standing
from tillroll.payments.telling import Bill, Source, last_of, of_invoices, of_returns, tell
from tillroll.stores.base import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tillroll.ledger.book import Answer, Book
    from tillroll.ledger.commands import Request
    from tillroll.ledger.pricing import PriceBook
    from tillroll.ledger.products import Plan, Products
    from tillroll.ledger.types import Account, Entry
    from tillroll.stores.base import NoteKey, Reader, Writer

KIND = "subscription"
INVOICES_MAX = 120  # of one subscription: ten years of months, about 200 bytes each
RETURNS_MAX = 2 * INVOICES_MAX  # payments of one subscription that were refunded or disputed
REST_MAX = 4 * DAY  # by which months that are counted from the 28th and the 31st differ, and hours
_PERIODS_BACK = 9  # within so many a period has the day that it is counted from: leap years
AGAIN = HOUR  # after which what the ledger could not follow is tried again
LAST = 30 * DAY  # after what was told last: then it is not tried again, until more is told
# The clock may have ended it before the provider says so: then nothing is left to be done.
OVER_ALREADY = "entitlement_not_found"


class Applied(Struct, frozen=True, omit_defaults=True):
    """How the entitlement stands: what the last verb about it said.

    Attributes:
        then: The plan that it moves to when the period at hand ends, in `then_version`.
        account: Whose it is; the one that it was noted for, where that is left out.
    """

    plan: str
    version: int
    anchor: int
    status: str
    paid_until: int
    trial_ends_at: int | None = None
    ends_at: int | None = None
    then: str | None = None
    then_version: int = 0
    account: str | None = None


class Subscription(Struct, frozen=True, omit_defaults=True):
    """What is known of a subscription, and how far the ledger was brought to it.

    Attributes:
        latest: How it stood when it was last told of.
        invoices: Its periods, by the invoice that they were paid or not paid with.
        granted: The invoices whose period was dealt with.
        applied: How the entitlement stands; None where there is none.
        base: The invoice that the entitlement's plan and anchor were reckoned from.
        given: The plans whose units were granted for the period of that invoice.
        steps: How many verbs were carried out; each has its number in its request id.
        refused: Why the ledger could not be brought to what is known.
        returns: Refunds and disputes, by the payment that they are of.
        shares: What paid periods brought, by the grants that brought it.
        elsewhere: The invoice whose units went to another account than the present one.
    """

    provider: str
    id: str
    latest: SubscriptionTold | None = None
    invoices: dict[str, InvoiceTold] = field(default_factory=dict)
    granted: tuple[str, ...] = ()
    applied: Applied | None = None
    base: str = ""
    given: tuple[str, ...] = ()
    steps: int = 0
    refused: str | None = None
    returns: dict[str, Payment] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    elsewhere: str = ""

    @property
    def name(self) -> str:
        """What the entitlement is called, and what the request ids begin with."""
        return f"{self.provider}:{self.id}"


def key_of(project: str, provider: str, subscription_id: str) -> NoteKey:
    """Return where a subscription is noted."""
    name = f"{provider}:{subscription_id}"
    return account_id(project, f"~subscription/{name}"), KIND, name


def decoded(note: Note) -> Subscription:
    """Return the subscription that a note holds."""
    return msgspec.json.decode(note.document, type=Subscription)


def known(reader: Reader, project: str, provider: str, subscription_id: str) -> Subscription | None:
    """Return what is known of a subscription; None where nothing is."""
    note = reader.note(key_of(project, provider, subscription_id))
    return None if note is None else decoded(note)


def subscriptions_of(reader: Reader, project: str, account: str) -> list[Subscription]:
    """Return an account's subscriptions by provider and id."""
    return [decoded(note) for note in reader.notes_of(project, account, KIND)]


def unfollowed(
    reader: Reader, project: str, after: str = "", limit: int = 100
) -> list[Subscription]:
    """Return subscriptions that are nobody's, and those that the ledger could not follow."""
    return [decoded(note) for note in notes_unfollowed(reader, project, KIND, after, limit)]


Told = SubscriptionTold | InvoiceTold | ReturnTold


def merge(subscription: Subscription, told: Told) -> Subscription:
    """Return what is known once this is known, too: newer stands, and paid stays paid.

    Raises:
        InvalidInput: More refunds or disputes than anybody makes, or an amount out of bounds.
    """
    if isinstance(told, ReturnTold):
        return _merge_return(subscription, told)
    if isinstance(told, SubscriptionTold):
        latest = subscription.latest
        if latest is not None and (latest.at, _END[latest.status == "ended"]) >= (
            told.at,
            _END[told.status == "ended"],
        ):
            return subscription
        return replace(subscription, latest=told)
    before = subscription.invoices.get(told.id)
    if before is not None:
        newest = max(before, told, key=lambda one: (one.paid, one.at))
        told = replace(newest, amount=max(before.amount, told.amount))
    if told == before:
        return subscription
    invoices = subscription.invoices | {told.id: told}
    if len(invoices) <= INVOICES_MAX:
        return replace(subscription, invoices=invoices)
    oldest = min(invoices.values(), key=lambda one: (one.period_end, one.id)).id
    del invoices[oldest]
    returns = {name: one for name, one in subscription.returns.items() if one.invoice != oldest}
    shares = {name: one for name, one in subscription.shares.items() if one.invoice != oldest}
    return replace(subscription, invoices=invoices, returns=returns, shares=shares)


def _merge_return(subscription: Subscription, told: ReturnTold) -> Subscription:
    fresh = Payment(provider=subscription.provider, id=told.payment, invoice=told.invoice)
    payment = subscription.returns.get(told.payment, fresh)
    for fact in told.facts:
        payment = facts.merge(payment, fact)
    returns = subscription.returns | {told.payment: payment}
    if len(returns) > RETURNS_MAX:
        raise InvalidInput(f"more than {RETURNS_MAX} payments of subscription {subscription.id!r}")
    return replace(subscription, returns=returns)


_END = {False: 0, True: 1}  # of the same second, the end counts: nothing follows it


def is_in_doubt(subscription: Subscription | None, told: SubscriptionTold) -> bool:
    """Return whether two tellings are of the same second and differ: then it has to be asked."""
    latest = None if subscription is None else subscription.latest
    return latest is not None and latest.at == told.at and latest != told


def follow(
    engine: Engine,
    project: str,
    provider: str,
    subscription_id: str,
    told: Sequence[Told] = (),
) -> Subscription:
    """Note what was told of a subscription, and bring the ledger to it, in one transaction.

    Raises:
        InvalidInput: What was told cannot be right; nothing was written.
        StoreUnavailable: Nothing was written.
        OutcomeUnknown: Tell it again.
    """
    work = _Work(engine, project, provider, subscription_id)
    began = time.time_ns()
    followed = engine.perform(lambda tx: work.follow(tx, told))
    if engine.observe is not None and work.requests:
        engine.observe(Batch(work.requests, work.answers, began, time.time_ns(), engine.waiting))
    return followed


class _Unknown(Exception):
    """The catalog has no plan for what is paid."""


class _Work:
    """One following, tried again from the start where somebody else was faster."""

    def __init__(self, engine: Engine, project: str, provider: str, subscription_id: str) -> None:
        self._engine = engine
        self.project = project
        self._new = Subscription(provider=provider, id=subscription_id)
        self._key = key_of(project, provider, subscription_id)
        self.verbs = verbs_of(engine, project, ours=True)
        self.scale = engine.store.scale
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def follow(self, tx: Writer, told: Sequence[Told]) -> Subscription:
        """Merge, carry out and note; write nothing where nothing is new."""
        self.requests, self.answers = [], []
        note = tx.note(self._key)
        before = self._new if note is None else decoded(note)
        subscription = before
        for one in told:
            subscription = merge(subscription, one)
        if subscription == before and before.refused is None:
            return before
        owner, kind, name = self._key
        fresh = Note(owner=owner, kind=kind, name=name, project=self.project, document="")
        note = claimed(tx, note or fresh)
        at = self._engine.clock()
        subscription = _with_account(replace(subscription, refused=None), note.account)
        subscription = self._carried_out(tx, subscription, at)
        latest = subscription.latest
        note = replace(
            note,
            document=msgspec.json.encode(subscription).decode(),
            account=(latest and latest.account) or "",
            due_at=_due(subscription, told, at),
        )
        tx.put_note(note)
        if subscription.refused is not None or before.refused is not None:
            list_refused(tx, note, is_refused=subscription.refused is not None)
        self._tell(tx, before, subscription, note, at)
        return subscription

    def _tell(
        self, tx: Writer, before: Subscription, subscription: Subscription, note: Note, at: int
    ) -> None:
        """Tell what was paid, what was not and what goes back, once it is known whose it is."""
        latest, earlier = subscription.latest, before.latest
        if latest is None or latest.account is None:
            return
        if earlier is None or earlier.account is None:
            before = self._new  # of which nothing was told
        bill = Bill(
            provider=subscription.provider,
            subscription=subscription.id,
            plan=latest.plan if subscription.applied is None else subscription.applied.plan,
        )
        told = of_invoices(bill, before.invoices, subscription.invoices)
        told += of_returns(bill, before.returns, subscription.returns)
        seq = last_of(self.requests, self.answers, latest.account)
        place = f"{note.kind}\n{note.name}"
        tell(tx, Source(self.project, place, note.version, latest.account, at, seq), told)

    def _carried_out(self, tx: Writer, subscription: Subscription, at: int) -> Subscription:
        """Return the subscription with what the ledger answered to what follows from it."""
        latest = subscription.latest
        if latest is None or latest.account is None or latest.status == "incomplete":
            return subscription
        owner = account_id(self.project, latest.account)
        account = tx.load_locked(self.project, {owner: latest.account})[owner]
        try:
            planned = self._planned(tx.prices(self.project), subscription, latest, at, account)
        except _Unknown as problem:
            self.requests = []
            planned = replace(subscription, refused=str(problem))
        back = _Returning(self, tx, planned, subscription, at)
        if self.requests or subscription.shares or subscription.returns:
            due = (self.project, latest.account)
            self.answers = answer_then(tx, self.scale, due, self.requests, at, back.after)
            self.requests += back.requests
        return back.counted(self.answers)

    def _planned(
        self,
        prices: PriceBook,
        subscription: Subscription,
        latest: SubscriptionTold,
        at: int,
        account: Account,
    ) -> Subscription:
        """Return how it is to stand, with the verbs that lead there among the requests."""
        shift = _shift(account)
        subscription = self._moved(subscription, latest)
        paid = sorted(
            (one for one in subscription.invoices.values() if one.paid and not one.part),
            key=lambda one: (one.period_start, one.id),
        )
        for invoice in paid:
            if invoice.id in subscription.granted:
                continue
            subscription = replace(subscription, granted=(*subscription.granted, invoice.id))
            if invoice.period_end > at:
                plan, version = _plan_of(prices, invoice.price, latest)
                applied = subscription.applied
                runs = applied is not None and applied.plan == plan
                known = applied.anchor if applied is not None and runs else None
                sold = prices.versions[version].products.plans[plan]
                anchor = min(_anchor(sold, invoice, known, account), at)
                wanted = Applied(
                    plan=plan,
                    version=version,
                    anchor=anchor,
                    status="trialing" if latest.status == "trialing" else "active",
                    paid_until=invoice.period_end - shift,
                    trial_ends_at=_trial(latest),
                )
                subscription = self._stand(prices, subscription, latest, wanted, account)
                subscription = replace(subscription, base=invoice.id, given=(plan,))
        return self._now(prices, subscription, latest, paid, at, account)

    def _moved(self, subscription: Subscription, latest: SubscriptionTold) -> Subscription:
        """End what another account has of it: it is begun anew where it belongs now."""
        applied = subscription.applied
        if applied is None or applied.account in (None, latest.account):
            return subscription
        subscription, how = self.step(subscription)
        self.requests.append(
            self.verbs.end_entitlement(applied.account or "", subscription.name, **how)
        )
        return replace(subscription, applied=None, elsewhere=subscription.base, given=())

    def _now(
        self,
        prices: PriceBook,
        subscription: Subscription,
        latest: SubscriptionTold,
        paid: Sequence[InvoiceTold],
        at: int,
        account: Account,
    ) -> Subscription:
        """Have the entitlement stand as the subscription does, or end it."""
        if latest.status == "ended":
            return self._ended(subscription, latest, account)
        shift = _shift(account)
        last = paid[-1] if paid else None
        price = latest.price
        if last is not None and last.price is not None and last.period_start > latest.at:
            price = last.price  # what was paid since says more than how it stood before
        plan, version = _plan_of(prices, price, latest)
        applied = subscription.applied
        then: tuple[str | None, int] = (None, 0)
        if applied is None:
            start = latest.period_start or latest.at
            anchor = min(start if last is None else last.period_start, at)
        elif applied.plan == plan:
            anchor, version = applied.anchor, applied.version
        elif plan not in subscription.given and _is_dearer(prices.products, plan, applied.plan):
            anchor = min(latest.at, at)
            subscription = replace(subscription, given=(*subscription.given, plan))
        else:
            anchor = applied.anchor
            if last is not None and last.period_end > at:  # it was paid, so it stays until then
                then = (plan, version) if latest.ends_at is None else then
                plan, version = applied.plan, applied.version
        ends_at = latest.ends_at if latest.ends_at is not None and latest.ends_at > at else None
        wanted = Applied(
            then=then[0],
            then_version=then[1],
            plan=plan,
            version=version,
            anchor=anchor,
            status=latest.status,
            paid_until=_paid_until(subscription, latest, paid, shift),
            trial_ends_at=_trial(latest),
            ends_at=ends_at,
        )
        return self._stand(prices, subscription, latest, wanted, account)

    def _stand(
        self,
        prices: PriceBook,
        subscription: Subscription,
        latest: SubscriptionTold,
        wanted: Applied,
        account: Account,
    ) -> Subscription:
        applied = subscription.applied
        plan = prices.versions[wanted.version].products.plans[wanted.plan]
        paid_until = _without_rest(wanted, plan, account)
        wanted = replace(wanted, account=latest.account, paid_until=paid_until)
        if applied == wanted:
            return subscription
        subscription, how = self.step(subscription)
        anew = applied is None or (applied.plan, applied.anchor) != (wanted.plan, wanted.anchor)
        trial = wanted.trial_ends_at
        self.requests.append(
            self.verbs.subscribe(
                latest.account or "",
                wanted.then or wanted.plan,
                name=subscription.name,
                when="now" if wanted.then is None else "period_end",
                version=wanted.then_version or wanted.version,
                status=_standing(wanted.status),
                started_at=show_instant(wanted.anchor) if anew else None,
                trial=False,
                trial_ends_at=None if trial is None else show_instant(trial),
                ends_at="never" if wanted.ends_at is None else show_instant(wanted.ends_at),
                paid_until=show_instant(wanted.paid_until),
                source=f"{subscription.provider} subscription {subscription.id}",
                **how,
            )
        )
        return replace(subscription, applied=wanted)

    def _ended(
        self, subscription: Subscription, latest: SubscriptionTold, account: Account
    ) -> Subscription:
        if subscription.applied is None:
            return subscription
        if account.status == "closed":  # for good: what it had brings nothing any more
            return replace(subscription, applied=None)
        subscription, how = self.step(subscription)
        self.requests.append(
            self.verbs.end_entitlement(latest.account or "", subscription.name, **how)
        )
        return replace(subscription, applied=None)

    def step(self, subscription: Subscription) -> tuple[Subscription, dict[str, Any]]:
        """Return what every verb about a subscription says, under a number of its own."""
        subscription = replace(subscription, steps=subscription.steps + 1)
        return subscription, {
            "request_id": f"{RESERVED}subscription/{subscription.name}/{subscription.steps}",
            "reason": f"subscription {subscription.id}",
            "actor": f"payments/{subscription.provider}",
        }


class _Returning:
    """Take back, or give back, what follows from money that goes back or stays.

    Attributes:
        subscription: What is known, with how far the ledger was brought to it.
        requests: What takes and gives, each for one share.
    """

    def __init__(
        self, work: _Work, tx: Writer, planned: Subscription, before: Subscription, at: int
    ) -> None:
        self._work = work
        self._tx = tx
        self._before = before
        self._at = at
        self._for: list[str] = []  # the grant whose share each request is for
        self.subscription = planned
        self.requests: list[Request] = []

    def after(self, book: Book, answers: Sequence[Answer]) -> list[Request]:
        """Return what is to be taken and given, after what else follows was decided."""
        self._look_at(answers)
        self._note(book)
        for share in self.subscription.shares.values():
            self._bring(share, book)
        return self.requests

    def counted(self, answers: Sequence[Answer]) -> Subscription:
        """Return the subscription with what was moved, as the entries say."""
        moved = answers[len(answers) - len(self.requests) :]
        for grant, request, answer in zip(self._for, self.requests, moved, strict=True):
            outcome, share = answer.outcome, self.subscription.shares[grant]
            if isinstance(outcome, TillrollError):
                raise outcome
            if isinstance(outcome, Refusal):
                asked = request.command.units if isinstance(request.command, Void) else None
                self._put(replace(share, refused=True, short=share.short + (asked or 0)))
                self.subscription = replace(self.subscription, refused=outcome.code)
            else:
                self._put(returning.counted(share, outcome))
        return self.subscription

    def _look_at(self, answers: Sequence[Answer]) -> None:
        """Leave everything as it was noted before where the ledger refused to follow."""
        for answer in answers:
            if isinstance(answer.outcome, TillrollError):
                raise answer.outcome
            if isinstance(answer.outcome, Refusal) and answer.outcome.code != OVER_ALREADY:
                steps = self.subscription.steps  # whose ids are used up
                self.subscription = replace(self._before, refused=answer.outcome.code, steps=steps)
                return

    def _note(self, book: Book) -> None:
        """Note what was granted for periods that were paid, in this batch or before."""
        latest = self.subscription.latest
        assert latest is not None
        assert latest.account is not None
        names = [*(request.account for request in self._work.requests), latest.account]
        shares = self.subscription.shares
        for name in dict.fromkeys(names):
            account = self._account(book, name)
            renewed = self._renewed(book, account)
            shares = returning.brought(shares, self.subscription.invoices, account, renewed)
        self.subscription = replace(self.subscription, shares=shares)

    def _renewed(self, book: Book, account: Account) -> list[Entry]:
        """Return what granted an account units that are not known yet."""
        name = self.subscription.name
        owner = account_id(self._work.project, account.account)
        found = [
            sealed.entry
            for sealed in book.appended
            if sealed.account_id == owner and _is_of(sealed.entry, name)
        ]
        known = {*self.subscription.shares, *(entry.opens[0].id for entry in found)}
        missing = returning.unnoted(known, name, account)
        if missing:
            stories = self._tx.stories([(owner, grant) for grant in missing])
            for _, acts in stories.values():
                found += [entry for entry in acts if _is_of(entry, name)]
        return found

    def _account(self, book: Book, name: str) -> Account:
        owner = account_id(self._work.project, name)
        if owner in book.accounts:
            return book.accounts[owner]
        return standing(self._tx, self._work.project, name, self._at)

    def _bring(self, share: Share, book: Book) -> None:
        """Ask for what is demanded of a share and was not taken yet, or give back what is not."""
        known = self.subscription
        wanted = returning.owed(known.invoices, known.returns.values(), share)
        wanted -= share.taken + share.short
        if share.refused:
            self._put(replace(share, short=max(share.short + wanted, 0)))
        elif wanted >= 0 and wanted + share.short:
            account = self._account(book, share.account)
            share, takes = returning.takes(account, share, wanted)
            self._put(share)
            for take in takes:
                self._take(share, take)
        elif wanted < 0:
            forgiven = min(share.short, -wanted)
            self._put(replace(share, short=share.short - forgiven))
            if -wanted > forgiven:
                self._give(share, -wanted - forgiven)

    def _take(self, share: Share, take: returning.Take) -> None:
        void = self._work.verbs.void(
            share.account,
            take.line,
            units=to_decimal(take.units, self._work.scale),
            **self._how(share, "was refunded or is disputed"),
        )
        self._ask(share, _of_origin(void, take.origin))

    def _give(self, share: Share, units: int) -> None:
        life = returning.life_of(share)
        grant = self._work.verbs.grant(
            share.account,
            to_decimal(units, self._work.scale),
            wallet=share.wallet,
            category="plan",
            priority=share.priority,
            applies_to=share.applies_to,
            expires_in=None if life is None else timedelta(microseconds=life),
            source=f"{self.subscription.provider} subscription {self.subscription.id}",
            **self._how(share, "stands again"),
        )
        self._ask(share, grant)

    def _how(self, share: Share, became: str) -> dict[str, Any]:
        """Return id, reason and more of a request that follows from a payment."""
        self.subscription, how = self._work.step(self.subscription)
        returns = self.subscription.returns.values()
        paid = [one.id for one in returns if one.invoice == share.invoice]
        told = {"provider": self.subscription.provider, "subscription": self.subscription.id}
        told |= {"invoice": share.invoice, "payments": ", ".join(paid[:10])}
        return {**how, "reason": f"invoice {share.invoice} {became}", "metadata": told}

    def _ask(self, share: Share, request: Request) -> None:
        self.requests.append(request)
        self._for.append(share.grant)

    def _put(self, share: Share) -> None:
        shares = {**self.subscription.shares, share.grant: share}
        self.subscription = replace(self.subscription, shares=shares)


def _due(subscription: Subscription, told: Sequence[Told], at: int) -> int:
    """Return when a subscription is tried again: where the ledger could not follow, for a time."""
    if subscription.refused is None:
        return NEVER
    return at + AGAIN if told else again_at(subscription, at)


def again_at(subscription: Subscription, at: int) -> int:
    """Return when one is tried again that the ledger could not be brought to just now."""
    latest = subscription.latest
    times = [0 if latest is None else latest.at]
    times += [one.at for one in subscription.invoices.values()]
    times += [one.at for back in subscription.returns.values() for one in back.disputes.values()]
    return next_try(max(times), at)


def next_try(told_at: int, at: int) -> int:
    """Return when to try again what was told then and cannot be followed; NEVER once it is old."""
    return NEVER if at - told_at >= LAST else at + AGAIN


def _is_of(entry: Entry, entitlement: str) -> bool:
    """Return whether an entry granted units that come back for an entitlement."""
    terms = entry.recurring
    return entry.kind == "grant_renewed" and terms is not None and terms.entitlement == entitlement


def _of_origin(request: Request, origin: str) -> Request:
    """Return a void of the units that had come with a grant."""
    assert isinstance(request.command, Void)
    command = replace(request.command, origin=origin)
    return replace(request, command=command, fingerprint=sha256(chain.encode(command)).digest())


def _with_account(subscription: Subscription, account: str) -> Subscription:
    """Return a subscription whose entitlement says whose it is: noted before, it did not."""
    applied = subscription.applied
    if applied is None or applied.account is not None or not account:
        return subscription
    return replace(subscription, applied=replace(applied, account=account))


def _shift(account: Account) -> int:
    """Return how far a period of an account's own calendar may be from the one that was paid."""
    return 0 if account.settings.time_zone == "UTC" else SHIFT


def _anchor(plan: Plan, invoice: InvoiceTold, known: int | None, account: Account) -> int:
    """Return what the periods of a plan are counted from, so that a paid one is one of them.

    The 31st of January is followed by the 28th of February and the 31st of March, as long as all
    are counted from the first. Where that is not known, the end of the period tells: from the 30th
    of April to the 31st of May is a month of those that begin on the 31st. Periods that are none of
    the account's calendar begin when they are paid from.
    """
    zone, shift = account.settings.time_zone, _shift(account)
    start, end = invoice.period_start, invoice.period_end

    def begins(anchor: int, at: int) -> bool:
        local = calendar.local_text(anchor, zone)
        nth = calendar.current(local, plan.every, plan.count, at + shift, zone)
        when = calendar.occurrence(local, plan.every, plan.count, nth, zone)
        return abs(when - at) <= shift

    before = calendar.local_text(end, zone)
    earlier = (
        calendar.occurrence(before, plan.every, plan.count, -back, zone)
        for back in range(2, _PERIODS_BACK)
    )
    choices = (*(() if known is None else (known,)), start, *earlier)
    whole = (one for one in choices if begins(one, start) and begins(one, end))
    other = start if known is None or not begins(known, start) else known
    return next(whole, other)


def _without_rest(wanted: Applied, plan: Plan, account: Account) -> int:
    """Return until when units come: not for the last days of a period that is counted otherwise.

    Where the account's calendar has no such periods as were paid, such as those that begin on the
    31st in UTC and the 30th in New York, the next of its own may begin before the paid one ends:
    that one was not paid for. Of days and weeks there is no such rest.
    """
    spans = {plan.every, *(grant.every for grant in plan.grants)}
    if not spans <= {"month", "year"}:
        return wanted.paid_until
    zone = account.settings.time_zone
    local = calendar.local_text(wanted.anchor, zone)
    nth = calendar.current(local, plan.every, plan.count, wanted.paid_until - 1, zone)
    begins = calendar.occurrence(local, plan.every, plan.count, nth, zone)
    return begins if nth and wanted.paid_until - begins < REST_MAX else wanted.paid_until


def _paid_until(
    subscription: Subscription,
    latest: SubscriptionTold,
    paid: Sequence[InvoiceTold],
    shift: int,
) -> int:
    """Return until when units come: what all the money went back for brings no more of them."""
    returns = subscription.returns.values()
    kept = [
        one.period_end - shift
        for one in paid
        if one.id != subscription.elsewhere
        and not returning.is_returned(subscription.invoices, returns, one.id)
    ]
    start = latest.period_start or latest.at
    if paid and not kept:
        start = min(start, paid[-1].period_start)
    until = kept[-1] if kept else start
    if latest.status == "trialing" and latest.trial_ends_at is not None:
        until = max(until, latest.trial_ends_at - shift)
    return until


def _plan_of(prices: PriceBook, price: str | None, latest: SubscriptionTold) -> tuple[str, int]:
    """Return the plan that a price is of, and the version of the catalog to take it from.

    The plan that was offered is taken as it was then; another one from the newest version that has
    the price.

    Raises:
        _Unknown: No version has it.
    """
    offered = prices.versions.get(latest.version or prices.current)
    named = latest.plan or ""
    if offered is not None and named in offered.products.plans:
        plan = offered.products.plans[named]
        if price is None or price == plan.stripe_price:
            return named, offered.number
    for number in sorted(prices.versions, reverse=True):
        for name, plan in prices.versions[number].products.plans.items():
            if price is not None and plan.stripe_price == price:
                return name, number
    raise _Unknown(f"no plan of the catalog has the price {price!r}")


def _is_dearer(products: Products, plan: str, before: str) -> bool:
    """Return whether a plan costs more than another; one without a price counts as dearer."""
    one, other = products.plans.get(plan), products.plans.get(before)
    if one is None or other is None or one.price is None or other.price is None:
        return True
    return one.price.amount > other.price.amount


def _trial(latest: SubscriptionTold) -> int | None:
    return latest.trial_ends_at if latest.status == "trialing" else None


def _standing(status: str) -> Any:
    """Return a status of the ledger's; what the provider has beyond them is dealt with before."""
    assert status in ("trialing", "active", "past_due", "paused"), status
    return status


__all__ = [
    "Subscription",
    "again_at",
    "follow",
    "is_in_doubt",
    "known",
    "merge",
    "next_try",
    "subscriptions_of",
    "unfollowed",
]
