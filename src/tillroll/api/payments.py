"""Payments over HTTP: checkouts, the providers' webhooks, top-ups, overage, and what is known.

A webhook is answered 200 once all that it told is committed; anything else has the provider send it
again, which changes nothing that was done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from tillroll.api.calls import Answer, Call, answered
from tillroll.api.reads import LIMIT_MAX, Limit, Query
from tillroll.ledger.calendar import show_instant, show_span
from tillroll.ledger.errors import InvalidInput, NotFound
from tillroll.ledger.types import WALLET_DEFAULT
from tillroll.ledger.units import show_units
from tillroll.ledger.values import ID_MAX
from tillroll.payments import overage as overages
from tillroll.payments import settling, subscribing, topups
from tillroll.payments.desk import kept_of
from tillroll.payments.returning import paid_for
from tillroll.wire import bodies
from tillroll.wire.problems import PaymentsNotSetUp

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.payments.desk import Desk, Kept
    from tillroll.payments.facts import Payment
    from tillroll.payments.overage import Overage
    from tillroll.payments.returning import Share
    from tillroll.payments.subscribing import Subscription


def _desk(call: Call) -> Desk:
    """Return the desk of the caller's ledger whose provider can be asked.

    Raises:
        PaymentsNotSetUp: There is none.
    """
    for desk in call.paying.desks:
        if desk.ledger == call.tenant.name and hasattr(desk.provider, "checkout"):
            return desk
    mode = call.key.mode
    raise PaymentsNotSetUp(
        f"payments are not set up for project {call.key.project!r} in {mode} mode: set "
        f"stripe_secret_key (sk_{mode}_...), stripe_webhook_secret and stripe_success_url, and "
        "payments_project where it is not 'default'; then start the service again"
    )


async def checkout(call: Call) -> Answer:
    """Open the page where an account pays for a product; the same as long as it is open."""
    asked = call.parse(bodies.Checkout)
    names = [n for n in (asked.account, asked.subject_ref) if isinstance(n, str)]
    products = [n for n in (asked.product, asked.product_code) if isinstance(n, str)]
    if len(names) != 1 or len(products) != 1:
        raise InvalidInput("give account or subject_ref, and product or product_code")
    call.check_open(names[0])
    desk, request_id = _desk(call), call.request_id()
    return await _opened(call, desk, names[0], products[0], request_id)


async def open_checkout(call: Call) -> Answer:
    """Open the page where an account pays for a product; the same as long as it is open."""
    product = call.parse(bodies.OpenCheckout).product
    request_id, desk = call.request_id(), _desk(call)
    return await _opened(call, desk, call.account, product, request_id)


async def _opened(call: Call, desk: Desk, account: str, product: str, request_id: str) -> Answer:
    page = await call.paying.asked.run(desk.page, account, product, request_id)
    return answered({"checkout_url": page.url}, replayed=page.replayed)


async def webhook(call: Call) -> Answer:
    """Take in what a payment provider tells; 200 once all of it is committed."""
    desk = next((one for one in call.paying.desks if one.provider.name == call.params[0]), None)
    if desk is None:
        raise NotFound("there is no such payment provider here")
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in call.headers.items()
    }
    return answered({"received": await call.paying.told.run(desk.receive, headers, call.body)})


# As pages say where to go on: what is kept is named by its provider and its id there.
Place = Annotated[
    str,
    Meta(
        pattern=r"^([^:]+:[\s\S]+)?$",
        max_length=ID_MAX,
        description="The `next` of the page before.",
    ),
]
EventPlace = Annotated[
    str,
    Meta(
        pattern=r"^([^:]+:[0-9a-f]{64})?$",
        max_length=ID_MAX,
        description="The `next_event` of the page before.",
    ),
]


class PaymentsQuery(Query, kw_only=True, forbid_unknown_fields=True):
    """Which payments, by provider and id."""

    limit: Limit = LIMIT_MAX
    after: Place = ""


class UnplacedQuery(PaymentsQuery, kw_only=True, forbid_unknown_fields=True):
    """Which payments, subscriptions and events, each by provider and name."""

    after_subscription: Place = ""
    after_event: EventPlace = ""


async def payments(call: Call) -> Answer:
    """Return an account's payments and subscriptions, with refunds, disputes and shortfalls."""
    asked = call.query(PaymentsQuery)
    return answered(await asyncio.to_thread(_payments, call, asked.after, asked.limit))


async def unplaced_payments(call: Call) -> Answer:
    """Return what was told of payments and subscriptions and cannot be followed, or is nobody's."""
    asked = call.query(UnplacedQuery)
    return answered(await asyncio.to_thread(_unplaced, call, asked))


def _payments(call: Call, after: str, limit: int) -> dict[str, Any]:
    store, ledger, account = call.tenant.engine.store, call.tenant.name, call.account
    with store.read() as reader:
        paid = settling.payments_of(reader, ledger, account, after, limit)
        subscribed = subscribing.subscriptions_of(reader, ledger, account)
    if not paid and not subscribed and not call.tenant.reads.knows(account):
        raise NotFound(f"there is no account {account!r}")
    return {
        "payments": [shown_payment(one, store.scale) for one in paid],
        "subscriptions": [shown_subscription(one, store.scale) for one in subscribed],
        "next": paid[-1].ref if len(paid) == limit else None,
    }


def _unplaced(call: Call, asked: UnplacedQuery) -> dict[str, Any]:
    store, ledger = call.tenant.engine.store, call.tenant.name
    with store.read() as reader:
        paid = settling.unfollowed(reader, ledger, asked.after, asked.limit)
        subscribed = subscribing.unfollowed(reader, ledger, asked.after_subscription, asked.limit)
        kept = kept_of(reader, ledger, asked.after_event, asked.limit)
    return {
        "payments": [shown_payment(one, store.scale) for one in paid],
        "next": paid[-1].ref if len(paid) == asked.limit else None,
        "subscriptions": [shown_subscription(one, store.scale) for one in subscribed],
        "next_subscription": subscribed[-1].name if len(subscribed) == asked.limit else None,
        "events": [shown_kept(*one) for one in kept],
        "next_event": kept[-1][0] if len(kept) == asked.limit else None,
    }


def shown_kept(name: str, kept: Kept, again: bool) -> dict[str, Any]:  # noqa: FBT001 - as listed
    """Return what cannot be followed as plain values for JSON."""
    return {
        "name": name,
        "told_at": show_instant(kept.at),
        "problem": kept.problem,
        "tried_again": again,
    }


def shown_payment(payment: Payment, scale: int) -> dict[str, Any]:
    """Return a payment as plain values for JSON; what a time pass brings is a span, no units."""
    bought = payment.bought
    known = bought or payment.failed
    timed = bought is not None and bought.lasts is not None
    taken, short = (
        show_span(part) if timed else show_units(part, scale)
        for part in (payment.taken, payment.short)
    )
    return {
        "provider": payment.provider,
        "id": payment.id,
        "account": payment.account or None,
        "product": None if known is None else known.product,
        "units": None if bought is None or timed else show_units(bought.units, scale),
        "amount": None if known is None else known.amount,
        "currency": None if known is None else known.currency,
        "failed": bought is None and payment.failed is not None,
        "taken": taken,
        "shortfall": short,
        "refunds": [
            {"id": one.id, "amount": one.amount, "state": one.state}
            for one in payment.refunds.values()
        ],
        "disputes": [
            {"id": one.id, "amount": one.amount, "state": one.state}
            for one in payment.disputes.values()
        ],
        "contradicted": payment.contradicted,
        "refused": payment.refused,
    }


def shown_subscription(subscription: Subscription, scale: int) -> dict[str, Any]:
    """Return a subscription as plain values for JSON."""
    latest, applied = subscription.latest, subscription.applied
    return {
        "provider": subscription.provider,
        "id": subscription.id,
        "account": None if latest is None else latest.account,
        "status": None if latest is None else latest.status,
        "plan": None if applied is None else applied.plan,
        "paid_until": None if applied is None else show_instant(applied.paid_until),
        "invoices_paid": sum(one.paid for one in subscription.invoices.values()),
        "periods": [_shown_share(subscription, one, scale) for one in subscription.shares.values()],
        "refused": subscription.refused,
    }


def _shown_share(subscription: Subscription, share: Share, scale: int) -> dict[str, Any]:
    """Return what a paid period brought as plain values for JSON."""
    paid, back = paid_for(subscription.invoices, subscription.returns.values(), share.invoice)
    return {
        "invoice": share.invoice,
        "grant": share.grant,
        "account": share.account,
        "wallet": share.wallet,
        "units": show_units(share.units, scale),
        "paid": paid,
        "returned": back,
        "currency": subscription.invoices[share.invoice].currency
        if share.invoice in subscription.invoices
        else None,
        "taken": show_units(share.taken, scale),
        "shortfall": show_units(share.short, scale),
    }


# ---------------------------------------------------------------- top-ups


async def top_up(call: Call) -> Answer:
    """Return what tops an account up, and how it stands."""
    call.query(Query)
    store, ledger = call.tenant.engine.store, call.tenant.name

    def look() -> topups.TopUp:
        with store.read() as reader:
            return topups.top_up_of(reader, ledger, call.account, _wallet(call))

    return answered((await asyncio.to_thread(look)).shown(store.scale))


async def set_top_up(call: Call) -> Answer:
    """Have an account topped up when it runs low, within bounds; what was spent still counts."""
    given = bodies.arguments(call.parse(bodies.SetTopUp))
    return await _topped(call, topups.set_top_up, wallet=_wallet(call), **given)


async def pause_top_up(call: Call) -> Answer:
    """Charge nothing more until it is resumed."""
    call.parse(bodies.Nothing)
    return await _topped(call, topups.pause, wallet=_wallet(call))


async def resume_top_up(call: Call) -> Answer:
    """Look at the balance again, whatever it was paused or waited for."""
    call.parse(bodies.Nothing)
    return await _topped(call, topups.resume, wallet=_wallet(call))


async def _topped(call: Call, act: Callable[..., topups.TopUp], **how: Any) -> Answer:
    desk = _desk(call)
    made = await asyncio.to_thread(act, desk, call.account, **how)  # no provider is asked
    return answered(made.shown(desk.engine.store.scale))


# ---------------------------------------------------------------- overage


async def overage(call: Call) -> Answer:
    """Return what is reported of an account's usage beyond its units, and how far that is."""
    call.query(Query)
    store, ledger = call.tenant.engine.store, call.tenant.name

    def look() -> Overage:
        with store.read() as reader:
            return overages.overage_of(reader, ledger, call.account, _wallet(call))

    return answered(shown_overage(await asyncio.to_thread(look), store.scale))


async def set_overage(call: Call) -> Answer:
    """Report what an account uses beyond its units to a meter of the provider's, from now on."""
    meter = call.parse(bodies.SetOverage).meter
    return await _reported(call, overages.set_overage, meter, wallet=_wallet(call))


async def stop_overage(call: Call) -> Answer:
    """Report nothing more of an account."""
    call.parse(bodies.Nothing)
    return await _reported(call, overages.stop_overage, wallet=_wallet(call))


async def resolve_overage(call: Call) -> Answer:
    """Say whether a batch in doubt arrived; then go on."""
    arrived = call.parse(bodies.Arrived).arrived
    return await _reported(call, overages.resolve, wallet=_wallet(call), arrived=arrived)


async def _reported(call: Call, act: Callable[..., Overage], *args: Any, **how: Any) -> Answer:
    desk = _desk(call)
    made = await asyncio.to_thread(act, desk, call.account, *args, **how)  # as above
    return answered(shown_overage(made, desk.engine.store.scale))


def shown_overage(found: Overage, scale: int) -> dict[str, Any]:
    """Return an overage as plain values for JSON."""
    return {
        "account": found.account,
        "wallet": found.wallet,
        "meter": found.meter,
        "state": found.state,
        "sent": found.sent,
        "carry": show_units(found.carry, scale),
        "cursor": found.cursor,
        "pending": None if found.pending is None else found.pending.value,
    }


def _wallet(call: Call) -> str:
    return call.params[1] if len(call.params) > 1 else WALLET_DEFAULT
