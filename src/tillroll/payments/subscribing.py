"""Bring an account's entitlement to what is known of a subscription, whatever the order.

A subscription's note holds how it stood when it was last told of, and which of its periods were
paid. Units come with a paid period: each is granted once, on the plan that it was paid for, and the
clock renews nothing that was not paid. How the subscription stands beyond that follows from the
newest that is known; what is older changes nothing.

- A dearer plan counts at once, with grants of its own for the rest of the period; a cheaper one
  from the next period on, since this one was paid.
- Past due: features stay, nothing is renewed. Unpaid and paused: neither. Ended: what was granted
  stays until it expires, for it was paid.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from tillroll.embedded.ledger import verbs_of
from tillroll.engine import Batch, Engine, answer_in
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import TillrollError
from tillroll.ledger.types import HOUR, NEVER, RESERVED, Refusal
from tillroll.payments.provider import InvoiceTold, SubscriptionTold
from tillroll.payments.settling import claimed
from tillroll.payments.telling import Source, last_of, of_invoices, tell
from tillroll.stores.base import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tillroll.ledger.book import Answer
    from tillroll.ledger.commands import Request
    from tillroll.ledger.pricing import PriceBook
    from tillroll.ledger.products import Products
    from tillroll.stores.base import NoteKey, Reader, Writer

KIND = "subscription"
INVOICES_MAX = 120  # of one subscription: ten years of months, about 200 bytes each
AGAIN = HOUR  # after which one that the ledger could not follow is tried again
# The clock may have ended it before the provider says so: then nothing is left to be done.
OVER_ALREADY = "entitlement_not_found"
SHIFT = 2 * HOUR  # what a day's saving time may move a period of the account's own calendar


class Applied(Struct, frozen=True, omit_defaults=True):
    """How the entitlement stands: what the last verb about it said.

    Attributes:
        then: The plan that it moves to when the period at hand ends, in `then_version`.
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


def merge(subscription: Subscription, told: SubscriptionTold | InvoiceTold) -> Subscription:
    """Return what is known once this is known, too: newer stands, and paid stays paid."""
    if isinstance(told, SubscriptionTold):
        latest = subscription.latest
        if latest is not None and (latest.at, _END[latest.status == "ended"]) >= (
            told.at,
            _END[told.status == "ended"],
        ):
            return subscription
        return replace(subscription, latest=told)
    before = subscription.invoices.get(told.id)
    if before is not None and (before.paid, before.at) >= (told.paid, told.at):
        return subscription
    invoices = subscription.invoices | {told.id: told}
    if len(invoices) > INVOICES_MAX:
        oldest = min(invoices.values(), key=lambda one: (one.period_end, one.id))
        del invoices[oldest.id]
    return replace(subscription, invoices=invoices)


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
    told: Sequence[SubscriptionTold | InvoiceTold] = (),
) -> Subscription:
    """Note what was told of a subscription, and bring the entitlement to it, in one transaction.

    Raises:
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
        self._project = project
        self._new = Subscription(provider=provider, id=subscription_id)
        self._key = key_of(project, provider, subscription_id)
        self._verbs = verbs_of(engine, project, ours=True)
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def follow(self, tx: Writer, told: Sequence[SubscriptionTold | InvoiceTold]) -> Subscription:
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
        fresh = Note(owner=owner, kind=kind, name=name, project=self._project, document="")
        note = claimed(tx, note or fresh)
        at = self._engine.clock()
        subscription = self._carried_out(tx, replace(subscription, refused=None), at)
        latest = subscription.latest
        tx.put_note(
            replace(
                note,
                document=msgspec.json.encode(subscription).decode(),
                account=(latest and latest.account) or "",
                due_at=NEVER if subscription.refused is None else at + AGAIN,
            )
        )
        seq = last_of(self.answers)
        source = Source(self._project, f"{kind}\n{name}", note.version, "", at, seq)
        self._tell(tx, before, subscription, source)
        return subscription

    def _tell(
        self, tx: Writer, before: Subscription, subscription: Subscription, source: Source
    ) -> None:
        """Tell what was paid and what was not, once it is known whose subscription it is."""
        latest, earlier = subscription.latest, before.latest
        if latest is None or latest.account is None:
            return
        told_before = before.invoices if earlier is not None and earlier.account else {}
        plan = latest.plan if subscription.applied is None else subscription.applied.plan
        told = of_invoices(before.provider, plan, told_before, subscription.invoices)
        tell(tx, source._replace(account=latest.account), told)

    def _carried_out(self, tx: Writer, subscription: Subscription, at: int) -> Subscription:
        """Return the subscription with what the ledger answered to what follows from it."""
        latest = subscription.latest
        if latest is None or latest.account is None or latest.status == "incomplete":
            return subscription
        owner = account_id(self._project, latest.account)
        accounts, _ = tx.load(self._project, {owner: latest.account}, [(owner, self._key[2])])
        shift = 0 if accounts[owner].settings.time_zone == "UTC" else SHIFT
        try:
            planned = self._planned(tx.prices(self._project), subscription, latest, at, shift)
        except _Unknown as problem:
            return replace(subscription, refused=str(problem))
        if not self.requests:
            return planned
        self.answers = answer_in(tx, self._engine.store.scale, self.requests, at)
        for answer in self.answers:
            if isinstance(answer.outcome, TillrollError):
                raise answer.outcome
            if isinstance(answer.outcome, Refusal) and answer.outcome.code != OVER_ALREADY:
                return replace(subscription, refused=answer.outcome.code)
        return planned

    def _planned(
        self,
        prices: PriceBook,
        subscription: Subscription,
        latest: SubscriptionTold,
        at: int,
        shift: int,
    ) -> Subscription:
        """Return how it is to stand, with the verbs that lead there among the requests."""
        paid = sorted(
            (one for one in subscription.invoices.values() if one.paid),
            key=lambda one: (one.period_start, one.id),
        )
        for invoice in paid:
            if invoice.id in subscription.granted:
                continue
            subscription = replace(subscription, granted=(*subscription.granted, invoice.id))
            if invoice.period_end > at:
                plan, version = _plan_of(prices, invoice.price, latest)
                wanted = Applied(
                    plan=plan,
                    version=version,
                    anchor=min(invoice.period_start, at),
                    status="trialing" if latest.status == "trialing" else "active",
                    paid_until=invoice.period_end - shift,
                    trial_ends_at=_trial(latest),
                )
                subscription = self._stand(subscription, latest, wanted)
                subscription = replace(subscription, base=invoice.id, given=(plan,))
        return self._now(prices, subscription, latest, paid[-1] if paid else None, at, shift)

    def _now(
        self,
        prices: PriceBook,
        subscription: Subscription,
        latest: SubscriptionTold,
        last: InvoiceTold | None,
        at: int,
        shift: int,
    ) -> Subscription:
        """Have the entitlement stand as the subscription does, or end it."""
        if latest.status == "ended":
            return self._ended(subscription, latest)
        price = latest.price
        if last is not None and last.price is not None and last.period_start > latest.at:
            price = last.price  # what was paid since says more than how it stood before
        plan, version = _plan_of(prices, price, latest)
        applied = subscription.applied
        start = latest.period_start or latest.at
        until = start if last is None else last.period_end - shift
        if latest.status == "trialing" and latest.trial_ends_at is not None:
            until = max(until, latest.trial_ends_at - shift)
        then: tuple[str | None, int] = (None, 0)
        if applied is None:
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
            paid_until=until,
            trial_ends_at=_trial(latest),
            ends_at=ends_at,
        )
        return self._stand(subscription, latest, wanted)

    def _stand(
        self, subscription: Subscription, latest: SubscriptionTold, wanted: Applied
    ) -> Subscription:
        applied = subscription.applied
        if applied == wanted:
            return subscription
        subscription, how = self._step(subscription)
        anew = applied is None or (applied.plan, applied.anchor) != (wanted.plan, wanted.anchor)
        trial = wanted.trial_ends_at
        self.requests.append(
            self._verbs.subscribe(
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

    def _ended(self, subscription: Subscription, latest: SubscriptionTold) -> Subscription:
        if subscription.applied is None:
            return subscription
        subscription, how = self._step(subscription)
        self.requests.append(
            self._verbs.end_entitlement(latest.account or "", subscription.name, **how)
        )
        return replace(subscription, applied=None)

    def _step(self, subscription: Subscription) -> tuple[Subscription, dict[str, Any]]:
        subscription = replace(subscription, steps=subscription.steps + 1)
        return subscription, {
            "request_id": f"{RESERVED}subscription/{subscription.name}/{subscription.steps}",
            "reason": f"subscription {subscription.id}",
            "actor": f"payments/{subscription.provider}",
        }


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
    "follow",
    "is_in_doubt",
    "known",
    "merge",
    "subscriptions_of",
]
