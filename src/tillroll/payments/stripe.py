"""Stripe as a payment provider: its objects into our words, and our orders into its calls.

Objects are read as plain dicts, by the fields that Stripe publishes for the version of its API that
the `stripe` package is pinned to. Every fact is taken from the object, not from the event around
it, so the same thing told by two events is one. What we ask carries our own key: asked again it is
done once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import stripe
from msgspec.structs import replace

from tillroll.ledger.errors import InvalidInput, ProviderRefused, ProviderUnavailable
from tillroll.ledger.types import DAY, SECOND
from tillroll.payments.facts import Disputed, DisputeState, Failed, Refunded, RefundState
from tillroll.payments.provider import (
    ChargeTold,
    InvoiceTold,
    Order,
    Origin,
    PaymentTold,
    Session,
    SessionTold,
    Sold,
    Standing,
    SubscriptionTold,
    Told,
    Usage,
)
from tillroll.wire.problems import BadSignature

TOLERANCE = 300 * SECOND  # between Stripe's clock and ours: as its own libraries have it
PAGE = 100  # events of one page, the most that Stripe gives
SECONDS = (5.0, 20.0)  # to connect, and to be answered
RETRIES = 2  # of one call, by the stripe package, with the same key
# The names that our metadata has at Stripe.
ACCOUNT, PRODUCT, VERSION = "tillroll_account", "tillroll_product", "tillroll_version"
QUANTITY, UNITS, WALLET = "tillroll_quantity", "tillroll_units", "tillroll_wallet"
ATTEMPT, LEDGER = "tillroll_attempt", "tillroll_ledger"
# What there is to be told of: an endpoint subscribes to these, and the pull asks for them. Stripe
# gives twenty topics at once at the most.
TOPICS = (
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.refunded",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.updated",
    "invoice.paid",
    "invoice.payment_failed",
    "payment_intent.payment_failed",
    "payment_intent.succeeded",
    "refund.created",
    "refund.failed",
    "refund.updated",
)

Thing = Mapping[str, Any]  # an object of Stripe's, as JSON

_REFUNDS: dict[str, RefundState] = {
    "pending": "pending",
    "requires_action": "pending",
    "succeeded": "done",
    "failed": "failed",
    "canceled": "failed",
}
# The money is withheld once a bank has disputed, not while it only inquires.
_DISPUTES: dict[str, DisputeState] = {
    "warning_needs_response": "inquiry",
    "warning_under_review": "inquiry",
    "needs_response": "open",
    "under_review": "open",
    "appeal_needs_response": "open",
    "appeal_under_review": "open",
    "warning_closed": "won",
    "prevented": "won",
    "won": "won",
    "lost": "lost",
}
_STANDINGS: dict[str, Standing] = {
    "incomplete": "incomplete",
    "incomplete_expired": "ended",
    "trialing": "trialing",
    "active": "active",
    "past_due": "past_due",
    "unpaid": "paused",
    "paused": "paused",
    "canceled": "ended",
}
# Declines after which the same card cannot be charged again, however long one waits.
_FINAL = frozenset(
    {
        "authentication_required",
        "expired_card",
        "fraudulent",
        "lost_card",
        "pickup_card",
        "restricted_card",
        "stolen_card",
        "transaction_not_allowed",
    }
)


class Stripe:
    """One Stripe account, in the mode of its key.

    Args:
        secret_key: `sk_test_...`, `sk_live_...` or a restricted key.
        webhook_secrets: `whsec_...` of the endpoint; several while one is replaced by another.
        ledger: The name of the ledger whose payments these are; other ledgers' are not ours.
        success_url: Where a customer comes back to from the checkout.
        cancel_url: Where one who changed his mind comes back to.
        api_base: Where Stripe's API is, if not at its own address.
    """

    name = "stripe"
    hears_conflicts = False

    def __init__(
        self,
        secret_key: str,
        webhook_secrets: tuple[str, ...] = (),
        *,
        ledger: str,
        success_url: str = "",
        cancel_url: str = "",
        api_base: str | None = None,
    ) -> None:
        """Be ready to be asked; nothing is sent yet."""
        more: Any = {} if api_base is None else {"base_addresses": {"api": api_base}}
        self._http = stripe.RequestsClient(timeout=SECONDS)
        self.ledger_mode: Literal["test", "live"] = mode_of(secret_key)
        self._secrets = webhook_secrets
        self._ledger = ledger
        self._success_url = success_url
        self._cancel_url = cancel_url
        self._client = stripe.StripeClient(
            secret_key, max_network_retries=RETRIES, http_client=self._http, **more
        )

    def __repr__(self) -> str:
        """Show which it is, and no secret."""
        return f"<Stripe {self.ledger_mode} for {self._ledger!r}>"

    def close(self) -> None:
        """Close the connections of this thread."""
        self._http.close()  # type: ignore[no-untyped-call]  # the package has no types there

    # ------------------------------------------------------------ what is told

    def read(self, headers: Mapping[str, str], body: bytes, at: int) -> list[Told]:
        """Return what a webhook tells; see `Listener.read`."""
        text = _text(body)
        header = headers.get("stripe-signature", "")
        if not any(self._is_signed(text, header, secret) for secret in self._secrets):
            raise BadSignature("the signature is not Stripe's for this endpoint")
        told_at = _timestamp(header)
        if abs(at - told_at) > TOLERANCE:
            raise BadSignature("the signature was made more than five minutes from now")
        try:
            event = json.loads(text)
        except ValueError as problem:
            raise InvalidInput(f"the event is not JSON: {problem}") from None
        return self._told(event)

    @staticmethod
    def _is_signed(text: str, header: str, secret: str) -> bool:
        try:
            # Its own check of the time would look at a clock of its own.
            stripe.WebhookSignature.verify_header(text, header, secret, tolerance=None)
        except stripe.SignatureVerificationError:
            return False
        return True

    def _told(self, event: Thing) -> list[Told]:
        """Return what an event tells, nothing where it is not about us.

        Raises:
            InvalidInput: It is not of the shape that it has in our version of Stripe's API.
        """
        try:
            return self._of_event(event)
        except (KeyError, TypeError, IndexError, ValueError) as problem:
            raise InvalidInput(
                f"the event lacks {problem}: the endpoint's API version must be "
                f"{stripe.api_version}"
            ) from problem

    def _of_event(self, event: Thing) -> list[Told]:
        thing: Thing = event["data"]["object"]
        live = bool(event["livemode"])
        topic, at = str(event["type"]), int(event["created"]) * SECOND
        if live != (self.ledger_mode == "live"):
            raise InvalidInput("the event is of the other mode than the key")
        if topic not in TOPICS:
            return []
        kind = thing["object"]
        if kind == "checkout.session":
            return list(self._session(thing, failed=topic.endswith("payment_failed")))
        if kind == "payment_intent":
            return list(self._intent(thing))
        if kind == "charge":
            return self._refunds_of(thing)
        if kind == "refund":
            return list(_refund(thing))
        if kind == "dispute":
            return list(_dispute(thing, at))
        if kind == "subscription":
            return [] if self._is_foreign(thing["metadata"]) else [_subscription(thing, at)]
        return list(self._invoice(thing, at, paid=topic == "invoice.paid"))

    def _is_foreign(self, metadata: Thing | None) -> bool:
        """Return whether something is of another ledger, or was never told whose it is."""
        return not metadata or metadata.get(LEDGER) != self._ledger

    def _session(self, session: Thing, *, failed: bool = False) -> Iterator[Told]:
        """A checkout: what became of its page, and the purchase once it is paid or is not."""
        metadata = session["metadata"] or {}
        if self._is_foreign(metadata):
            return
        account, product = metadata[ACCOUNT], metadata[PRODUCT]
        yield SessionTold(
            id=session["id"], account=account, product=product, state=session["status"]
        )
        done = session["status"] == "complete" and session["payment_status"] != "unpaid"
        if session["mode"] == "payment" and (done or failed):
            payment = _id(session["payment_intent"]) or session["id"]
            sold = _sold(metadata, session["amount_total"], session["currency"])
            lost = Failed(account, sold.amount, sold.currency, sold.product)
            yield PaymentTold(id=payment, facts=(sold if done else lost,))

    def _intent(self, intent: Thing) -> Iterator[Told]:
        """A top-up: what became of the attempt, and the purchase once it is paid."""
        metadata = intent["metadata"] or {}
        if self._is_foreign(metadata) or ATTEMPT not in metadata:
            return
        if intent["status"] == "succeeded":
            sold = _sold(metadata, intent["amount_received"], intent["currency"])
            yield PaymentTold(id=intent["id"], facts=(sold,))
        yield _charge(intent)

    def _refunds_of(self, charge: Thing) -> list[Told]:
        """The refunds of a charge: the event does not name them, so they are asked for."""
        payment = _id(charge["payment_intent"])
        if payment is None:
            return []
        with _asking():
            found = self._client.v1.refunds.list({"payment_intent": payment, "limit": PAGE})
            refunds = [refund.to_dict() for refund in found.auto_paging_iter()]
        return [told for refund in refunds for told in _refund(refund)]

    def _invoice(self, invoice: Thing, at: int, *, paid: bool) -> Iterator[InvoiceTold]:
        """Which period of a subscription was paid, or was not: the last that it is about."""
        parent = invoice["parent"] or {}
        details = parent.get("subscription_details") or {}
        subscription = _id(details.get("subscription"))
        if subscription is None or self._is_foreign(details.get("metadata")):
            return
        every: list[Thing] = invoice["lines"]["data"]
        lines = [line for line in every if not _is_proration(line)] or every
        if not lines:
            return
        line = max(lines, key=lambda line: (line["period"]["end"], line["period"]["start"]))
        pricing = line["pricing"] or {}
        details = pricing.get("price_details") or {}
        yield InvoiceTold(
            id=invoice["id"],
            subscription=subscription,
            paid=paid,
            due=invoice["amount_due"],
            currency=invoice["currency"],
            at=at,
            amount=invoice["amount_paid"] if paid else 0,
            part=_is_proration(line),
            price=_id(details.get("price")),
            period_start=line["period"]["start"] * SECOND,
            period_end=line["period"]["end"] * SECOND,
        )

    # ------------------------------------------------------------ what is asked

    def pull(self, since: int, until: int) -> Iterator[tuple[int, list[Told] | InvalidInput]]:
        """Yield what happened, the oldest first; see `Provider.pull`."""
        created = {"gte": since // SECOND, "lte": until // SECOND}
        asked: Any = {"created": created, "types": list(TOPICS), "limit": PAGE}
        with _asking():
            found = self._client.v1.events.list(asked)
            events = [event.to_dict() for event in found.auto_paging_iter()]
        for event in sorted(events, key=lambda event: (event["created"], event["id"])):
            try:
                told: list[Told] | InvalidInput = self._told(event)
            except InvalidInput as problem:  # one event is not to keep the others from being heard
                told = InvalidInput(f"event {event.get('id')}: {problem}")
            yield event["created"] * SECOND, told

    def customer(self, account: str, key: str) -> str:
        """Return Stripe's customer for an account."""
        metadata = {LEDGER: self._ledger, ACCOUNT: account}
        with _asking():
            made = self._client.v1.customers.create(
                {"metadata": metadata}, {"idempotency_key": key}
            )
        return made.id

    def checkout(self, order: Order, key: str) -> Session:
        """Open a page of Stripe's where an order is paid."""
        metadata = self._metadata(order)
        asked: dict[str, Any] = {
            "mode": "subscription" if order.plan else "payment",
            "line_items": [_line(order)],
            "client_reference_id": order.account,
            "metadata": metadata,
            "success_url": self._success_url,
        }
        if self._cancel_url:
            asked["cancel_url"] = self._cancel_url
        if order.customer is not None:
            asked["customer"] = order.customer
        if order.plan:
            asked["subscription_data"] = {"metadata": metadata}
            if order.trial is not None:
                days = max(order.trial // (86_400 * SECOND), 1)
                asked["subscription_data"]["trial_period_days"] = days
        else:
            # The card stays on file, so that the account can be topped up later.
            asked["payment_intent_data"] = {
                "metadata": metadata,
                "setup_future_usage": "off_session",
            }
        with _asking():
            session = self._client.v1.checkout.sessions.create(
                asked,  # type: ignore[arg-type]  # a plain dict of its parameters
                {"idempotency_key": key},
            ).to_dict()
        return Session(
            id=session["id"], url=session["url"], expires_at=session["expires_at"] * SECOND
        )

    def page(self, session_id: str) -> list[Told] | None:
        """Return what there is to tell of a checkout as it stands; see `Provider.page`."""
        try:
            with _asking():
                session = self._client.v1.checkout.sessions.retrieve(session_id).to_dict()
        except ProviderRefused as problem:
            if _is_missing(problem):
                return None
            raise
        return list(self._session(session))

    def charge(self, order: Order, key: str) -> ChargeTold:
        """Charge an order to the card that it names."""
        if None in (order.customer, order.card, order.amount, order.currency):
            raise InvalidInput("a charge needs a customer, a card, an amount and a currency")
        metadata = self._metadata(order) | {ATTEMPT: str(order.attempt)}
        asked: dict[str, Any] = {
            "amount": order.amount,
            "currency": order.currency,
            "customer": order.customer,
            "metadata": metadata,
            "payment_method": order.card,
            "off_session": True,
            "confirm": True,
        }
        told = ChargeTold(
            account=order.account, wallet=order.wallet, attempt=order.attempt, state="pending"
        )
        try:
            with _asking():
                intent = self._client.v1.payment_intents.create(
                    asked,  # type: ignore[arg-type]  # likewise
                    {"idempotency_key": key},
                ).to_dict()
        except stripe.CardError as problem:
            body: Any = problem.json_body or {}
            error = body.get("error", {})
            reason = error.get("decline_code") or error.get("code") or "declined"
            tried = error.get("payment_intent") or {}
            told = replace(told, payment=tried.get("id"))
            return _declined(told, reason, final=reason in _FINAL)
        except ProviderRefused as problem:
            cause = problem.__cause__
            # It was taken off file meanwhile. Had it been charged under this key, that had come.
            if isinstance(cause, stripe.InvalidRequestError) and cause.param == "payment_method":
                return _declined(told, cause.code or "no_such_card", final=False)
            raise
        return _charge(intent)

    def card(self, customer: str) -> str | None:
        """Return what a customer has on file to pay with: the default, or the newest card."""
        with _asking():
            found = self._client.v1.customers.retrieve(customer).to_dict()
            default = (found.get("invoice_settings") or {}).get("default_payment_method")
            if default:
                return _id(default)
            methods = self._client.v1.customers.payment_methods.list(customer, {"limit": 1})
            return methods.data[0].id if methods.data else None

    def attempt(self, order: Order, since: int) -> ChargeTold | None:
        """Return what became of an attempt whose key Stripe may have forgotten."""
        if order.customer is None:
            return None
        with _asking():
            found = self._client.v1.payment_intents.list(
                {
                    "customer": order.customer,
                    "created": {"gte": (since - DAY) // SECOND},
                    "limit": PAGE,
                }
            )
            intents = [intent.to_dict() for intent in found.auto_paging_iter()]
        wanted = {ATTEMPT: str(order.attempt), WALLET: order.wallet, ACCOUNT: order.account}
        for intent in intents:
            metadata = intent["metadata"] or {}
            if wanted.items() <= metadata.items() and not self._is_foreign(metadata):
                return _charge(intent)
        return None

    def origin(self, payment_id: str) -> Origin | None:
        """Return what a payment is for: ours say so, and what paid an invoice of ours is ours.

        Raises:
            ProviderUnavailable: Ask again.
            ProviderRefused: It does not say; the key may lack the right to look.
        """
        try:
            with _asking():
                intent = self._client.v1.payment_intents.retrieve(payment_id).to_dict()
            if not self._is_foreign(intent["metadata"]):
                return Origin()
            with _asking():
                found = self._client.v1.invoice_payments.list(
                    {
                        "payment": {"type": "payment_intent", "payment_intent": payment_id},
                        "limit": 1,
                    }
                ).to_dict()
                names = [_id(one["invoice"]) or "" for one in found["data"]]
                if not names:
                    return None
                invoice = self._client.v1.invoices.retrieve(names[0]).to_dict()
        except ProviderRefused as problem:
            if _is_missing(problem):
                return None
            raise  # such as that the key may not look: then nobody knows what it is for
        told = self._invoice(invoice, 0, paid=invoice["status"] == "paid")
        return next((Origin(invoice=one) for one in told), None)

    def subscription(self, subscription_id: str) -> SubscriptionTold:
        """Return a subscription as it stands now."""
        with _asking():
            found = self._client.v1.subscriptions.retrieve(subscription_id).to_dict()
        return _subscription(found, 0)

    def report(self, usage: Usage) -> None:
        """Send one meter event."""
        with _asking():
            self._client.v1.billing.meter_events.create(
                {
                    "event_name": usage.meter,
                    "identifier": usage.identifier,
                    "timestamp": usage.at // SECOND,
                    "payload": {"stripe_customer_id": usage.customer, "value": str(usage.value)},
                },
                {"idempotency_key": usage.identifier},
            )

    def _metadata(self, order: Order) -> dict[str, str]:
        told = {
            LEDGER: self._ledger,
            ACCOUNT: order.account,
            PRODUCT: order.product or "",
            VERSION: str(order.version),
            QUANTITY: str(order.quantity),
            WALLET: order.wallet,
        }
        if order.units is not None:
            told[UNITS] = order.units
        return told


def mode_of(secret_key: str) -> Literal["test", "live"]:
    """Return the mode that a key is of."""
    return "live" if "_live_" in secret_key else "test"


@contextmanager
def _asking() -> Iterator[None]:
    """Put Stripe's errors into ours; a card that is declined stays what it is."""
    try:
        yield
    except stripe.CardError:
        raise
    except (stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError) as problem:
        raise ProviderUnavailable(f"Stripe does not answer: {_said(problem)}") from problem
    except stripe.StripeError as problem:
        raise ProviderRefused(f"Stripe refused: {_said(problem)}") from problem


def _is_missing(problem: ProviderRefused) -> bool:
    """Return whether Stripe refused since there is no such thing, and for no other reason."""
    cause = problem.__cause__
    return isinstance(cause, stripe.InvalidRequestError) and cause.code == "resource_missing"


def _said(problem: stripe.StripeError) -> str:
    return problem.user_message or type(problem).__name__


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadSignature("the event is not UTF-8") from None


def _timestamp(header: str) -> int:
    parts = [part.split("=", 1) for part in header.split(",") if "=" in part]
    # The first, as the package that verified it took; it was there, or that had not been good.
    return next(int(value) for name, value in parts if name == "t") * SECOND


def _id(thing: Any) -> str | None:
    """Return the id of what Stripe gives as an id, or whole where it was expanded."""
    found: str | None = thing["id"] if isinstance(thing, Mapping) else thing
    return found


def _line(order: Order) -> dict[str, Any]:
    if order.price:
        return {"price": order.price, "quantity": order.quantity}
    data: dict[str, Any] = {
        "currency": order.currency,
        "unit_amount": order.amount,
        "product_data": {"name": order.product},
    }
    return {"price_data": data, "quantity": order.quantity}


def _sold(metadata: Thing, amount: int | None, currency: str | None) -> Sold:
    return Sold(
        account=metadata[ACCOUNT],
        product=metadata[PRODUCT] or None,
        version=int(metadata[VERSION]),
        quantity=int(metadata[QUANTITY]),
        units=metadata.get(UNITS),
        wallet=metadata[WALLET],
        amount=amount or 0,
        currency=currency or "",
    )


def _refund(refund: Thing) -> Iterator[Told]:
    payment = _id(refund["payment_intent"])
    if payment is not None:
        state = _REFUNDS.get(refund["status"] or "", "pending")
        fact = Refunded(refund["id"], refund["amount"], state)
        yield PaymentTold(id=payment, facts=(fact,))


def _dispute(dispute: Thing, at: int) -> Iterator[Told]:
    payment = _id(dispute["payment_intent"])
    if payment is not None:
        state = _DISPUTES.get(dispute["status"], "open")
        fact = Disputed(dispute["id"], dispute["amount"], state, at)
        yield PaymentTold(id=payment, facts=(fact,))


def _charge(intent: Thing) -> ChargeTold:
    """What became of an attempt: an intent that waits for its owner was declined, off session."""
    metadata = intent["metadata"]
    told = ChargeTold(
        account=metadata[ACCOUNT],
        wallet=metadata[WALLET],
        attempt=int(metadata[ATTEMPT]),
        state="succeeded" if intent["status"] == "succeeded" else "pending",
        payment=intent["id"],
    )
    if intent["status"] in ("requires_payment_method", "requires_action", "canceled"):
        error = intent["last_payment_error"] or {}
        reason = error.get("decline_code") or error.get("code") or intent["status"]
        return _declined(told, reason, final=reason in _FINAL)
    return told


def _declined(told: ChargeTold, reason: str, *, final: bool) -> ChargeTold:
    return ChargeTold(
        account=told.account,
        wallet=told.wallet,
        attempt=told.attempt,
        state="declined",
        payment=told.payment,
        reason=reason,
        final=final,
    )


def _subscription(subscription: Thing, at: int) -> SubscriptionTold:
    """A subscription as it stands; its period is that of its first item, which names the plan."""
    metadata = subscription["metadata"] or {}
    items = subscription["items"]["data"]
    item: Thing = items[0] if items else {}
    status = _STANDINGS.get(subscription["status"], "incomplete")
    if subscription["pause_collection"] and status == "active":
        status = "paused"
    ends = subscription["cancel_at"]
    if ends is None and subscription["cancel_at_period_end"]:
        ends = item.get("current_period_end")
    return SubscriptionTold(
        id=subscription["id"],
        at=at,
        status=status,
        account=metadata.get(ACCOUNT),
        price=item["price"]["id"] if item else None,
        plan=metadata.get(PRODUCT),
        version=int(metadata.get(VERSION, 0)),
        period_start=_instant(item.get("current_period_start")),
        period_end=_instant(item.get("current_period_end")),
        trial_ends_at=_instant(subscription["trial_end"]),
        ends_at=_instant(ends),
    )


def _instant(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * SECOND


def _is_proration(line: Thing) -> bool:
    """Return whether a line is about a part of a period: a plan that was changed within it."""
    parent = line["parent"] or {}
    details = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
    return bool(details.get("proration"))


__all__ = ["TOPICS", "Stripe", "mode_of"]
