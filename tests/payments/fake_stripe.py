"""A Stripe of our own for tests: stateful, on loopback, spoken to by the real `stripe` package.

It keeps what it is asked to make, remembers idempotency keys with the first answer, lists events,
signs webhooks, and fails when it is told to. A test plays the customer and the bank: it pays a
session, declines a card, refunds, disputes, renews. Only fields that Stripe publishes are in its
objects (`test_shapes` compares them with the classes of the `stripe` package).
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import stripe

Thing = dict[str, Any]
DAY = 86_400


def month_after(at: int) -> int:
    """Return the same day and time of the next month, as Stripe counts."""
    day = datetime.fromtimestamp(at, UTC)
    year, month = divmod(day.year * 12 + day.month, 12)
    return int(day.replace(year=year, month=month + 1).timestamp())


class Declined(Exception):
    """The bank says no."""


class Detached(Exception):
    """The card is not on file any more."""


class FakeStripe:
    """Stripe's side: what it knows, and what the customers and banks do."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.things: dict[str, Thing] = {}
        self.events: list[Thing] = []
        self.answers: dict[str, tuple[str, int, Thing]] = {}
        self.meter_events: dict[str, Thing] = {}
        self.cards: dict[str, str] = {}  # customer -> "ok" or why it is declined
        self.detached: set[str] = set()  # payment methods that were taken off file
        self.asked: list[tuple[str, str]] = []
        self.fail: list[str] = []  # of the next calls: "down", or "lost" after it was done
        self.counter = 0
        self.mutex = threading.RLock()

    # ------------------------------------------------------------ making things

    def new(self, prefix: str, thing: Thing) -> Thing:
        self.counter += 1
        made = {"id": f"{prefix}_{self.counter}", "livemode": False, **thing}
        if prefix in ("sub", "re", "pm"):
            del made["livemode"]
        self.things[made["id"]] = made
        return made

    def tell(self, topic: str, thing: Thing) -> Thing:
        """Make an event that shows a thing as it is now."""
        self.counter += 1
        event = {
            "id": f"evt_{self.counter}",
            "object": "event",
            "api_version": stripe.api_version,
            "created": self.now(),
            "data": {"object": json.loads(json.dumps(thing))},
            "livemode": False,
            "pending_webhooks": 1,
            "request": None,
            "type": topic,
        }
        self.events.append(event)
        return event

    def signed(self, event: Thing, secret: str, at: int | None = None) -> tuple[bytes, str]:
        """Return the body and the header of a webhook, signed as the stripe package would."""
        body = json.dumps(event)
        header = stripe.WebhookSignature.generate_signature_header(
            body, secret, self.now() if at is None else at
        )
        return body.encode(), header

    def of(self, kind: str) -> list[Thing]:
        return [thing for thing in self.things.values() if thing["object"] == kind]

    # ------------------------------------------------------------ what customers and banks do

    def intent(self, customer: str | None, amount: int, currency: str, metadata: Thing) -> Thing:
        return self.new(
            "pi",
            {
                "object": "payment_intent",
                "amount": amount,
                "amount_received": 0,
                "created": self.now(),
                "currency": currency,
                "customer": customer,
                "last_payment_error": None,
                "latest_charge": None,
                "metadata": metadata,
                "status": "requires_payment_method",
            },
        )

    def charge(self, intent: Thing) -> Thing:
        """Have the bank pay an intent."""
        charge = self.new(
            "ch",
            {
                "object": "charge",
                "amount": intent["amount"],
                "amount_refunded": 0,
                "created": self.now(),
                "currency": intent["currency"],
                "customer": intent["customer"],
                "metadata": {},
                "paid": True,
                "payment_intent": intent["id"],
                "refunded": False,
                "status": "succeeded",
            },
        )
        intent |= {
            "status": "succeeded",
            "amount_received": intent["amount"],
            "latest_charge": charge["id"],
        }
        self.tell("payment_intent.succeeded", intent)
        return charge

    def pay(self, session_id: str, *, later: bool = False) -> Thing:
        """Have the customer pay a session; `later` by a bank transfer that is still under way."""
        session = self.things[session_id]
        assert session["status"] == "open", "a page that is over cannot be paid"
        session["status"] = "complete"
        self.cards.setdefault(session["customer"], "ok")
        if session["mode"] == "subscription":
            subscription = self.subscribe(session)
            session |= {"subscription": subscription["id"], "payment_status": "paid"}
            self.tell("checkout.session.completed", session)
            return subscription
        metadata = session["metadata"]
        kept = {k: v for k, v in metadata.items() if k != "tillroll_attempt"}
        intent = self.intent(
            session["customer"], session["amount_total"], session["currency"], kept
        )
        session["payment_intent"] = intent["id"]
        if later:
            self.tell("checkout.session.completed", session)
            return intent
        session["payment_status"] = "paid"
        self.charge(intent)
        self.tell("checkout.session.completed", session)
        return intent

    def arrive(self, session_id: str) -> Thing:
        """Have the bank transfer of a session arrive."""
        session = self.things[session_id]
        session["payment_status"] = "paid"
        self.charge(self.things[session["payment_intent"]])
        return self.tell("checkout.session.async_payment_succeeded", session)

    def bounce(self, session_id: str) -> Thing:
        """Have the bank transfer of a session not arrive."""
        return self.tell("checkout.session.async_payment_failed", self.things[session_id])

    def expire(self, session_id: str) -> Thing:
        session = self.things[session_id]
        session["status"] = "expired"
        return self.tell("checkout.session.expired", session)

    def refund(self, intent_id: str, amount: int, status: str = "succeeded") -> Thing:
        """Refund a part of a payment."""
        [charge] = [c for c in self.of("charge") if c["payment_intent"] == intent_id]
        refund = self.new(
            "re",
            {
                "object": "refund",
                "amount": amount,
                "charge": charge["id"],
                "created": self.now(),
                "currency": charge["currency"],
                "metadata": {},
                "payment_intent": intent_id,
                "reason": None,
                "status": status,
            },
        )
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        self.tell("refund.created", refund)
        self.tell("charge.refunded", charge)
        return refund

    def fail_refund(self, refund: Thing) -> Thing:
        refund["status"] = "failed"
        return self.tell("refund.failed", refund)

    def dispute(self, intent_id: str, amount: int, status: str = "needs_response") -> Thing:
        """Have the bank withhold a payment."""
        [charge] = [c for c in self.of("charge") if c["payment_intent"] == intent_id]
        dispute = self.new(
            "dp",
            {
                "object": "dispute",
                "amount": amount,
                "charge": charge["id"],
                "created": self.now(),
                "currency": charge["currency"],
                "metadata": {},
                "payment_intent": intent_id,
                "reason": "fraudulent",
                "status": status,
            },
        )
        self.tell("charge.dispute.created", dispute)
        return dispute

    def close(self, dispute: Thing, status: str) -> Thing:
        dispute["status"] = status
        return self.tell("charge.dispute.closed", dispute)

    # ------------------------------------------------------------ subscriptions

    def subscribe(self, session: Thing) -> Thing:
        """Begin what a session was about, with its first invoice."""
        asked = session["_asked"]
        data = asked["subscription_data"]
        days = int(data.get("trial_period_days", 0))
        now = self.now()
        ends = now + days * DAY if days else month_after(now)
        subscription = self.new(
            "sub",
            {
                "object": "subscription",
                "billing_cycle_anchor": ends if days else now,
                "cancel_at": None,
                "cancel_at_period_end": False,
                "canceled_at": None,
                "created": now,
                "currency": "usd",
                "customer": session["customer"],
                "ended_at": None,
                "items": {"object": "list", "data": []},
                "latest_invoice": None,
                "livemode": False,
                "metadata": data["metadata"],
                "pause_collection": None,
                "start_date": now,
                "status": "trialing" if days else "active",
                "trial_end": ends if days else None,
                "trial_start": now if days else None,
            },
        )
        item = {
            "id": f"si_{subscription['id']}",
            "object": "subscription_item",
            "created": now,
            "current_period_end": ends,
            "current_period_start": now,
            "metadata": {},
            "price": {"id": asked["line_items"][0]["price"], "object": "price"},
            "quantity": 1,
            "subscription": subscription["id"],
        }
        subscription["items"]["data"].append(item)
        self.tell("customer.subscription.created", subscription)
        self.bill(subscription, 0 if days else 20_00)
        return subscription

    def bill(
        self, subscription: Thing, amount: int, *, paid: bool = True, proration: bool = False
    ) -> Thing:
        """Make the invoice of the period at hand."""
        item = subscription["items"]["data"][0]
        details = {
            "subscription": subscription["id"],
            "subscription_item": item["id"],
            "proration": proration,
            "invoice_item": None,
            "proration_details": None,
        }
        line = {
            "id": f"il_{self.counter}",
            "object": "line_item",
            "amount": amount,
            "currency": "usd",
            "livemode": False,
            "metadata": {},
            "parent": {
                "type": "subscription_item_details",
                "invoice_item_details": None,
                "subscription_item_details": details,
            },
            "period": {
                "start": self.now() if proration else item["current_period_start"],
                "end": item["current_period_end"],
            },
            "pricing": {
                "type": "price_details",
                "price_details": {"price": item["price"]["id"], "product": "prod_1"},
                "unit_amount_decimal": str(amount),
            },
            "quantity": 1,
            "subscription": subscription["id"],
        }
        invoice = self.new(
            "in",
            {
                "object": "invoice",
                "amount_due": amount,
                "amount_paid": 0,
                "billing_reason": "subscription_update" if proration else "subscription_cycle",
                "created": self.now(),
                "currency": "usd",
                "customer": subscription["customer"],
                "lines": {"object": "list", "data": [line], "has_more": False},
                "metadata": {},
                "parent": {
                    "type": "subscription_details",
                    "quote_details": None,
                    "subscription_details": {
                        "metadata": subscription["metadata"],
                        "subscription": subscription["id"],
                        "subscription_proration_date": None,
                    },
                },
                "period_start": item["current_period_start"],
                "period_end": item["current_period_end"],
                "status": "open",
            },
        )
        if paid:
            self.pay_invoice(invoice)
        else:
            self.tell("invoice.payment_failed", invoice)
        return invoice

    def pay_invoice(self, invoice: Thing) -> None:
        """Have the bank pay an invoice; one of nothing is paid without a payment."""
        invoice |= {"status": "paid", "amount_paid": invoice["amount_due"]}
        if invoice["amount_due"]:
            intent = self.intent(invoice["customer"], invoice["amount_due"], "usd", {})
            self.charge(intent)
            self.new(
                "inpay",
                {
                    "object": "invoice_payment",
                    "amount_paid": invoice["amount_due"],
                    "amount_requested": invoice["amount_due"],
                    "created": self.now(),
                    "currency": "usd",
                    "invoice": invoice["id"],
                    "is_default": True,
                    "payment": {"type": "payment_intent", "payment_intent": intent["id"]},
                    "status": "paid",
                },
            )
        self.tell("invoice.paid", invoice)

    def payment_of(self, invoice: Thing) -> str:
        """Return the payment that paid an invoice."""
        [found] = [one for one in self.of("invoice_payment") if one["invoice"] == invoice["id"]]
        return str(found["payment"]["payment_intent"])

    def renew(self, subscription: Thing, *, paid: bool = True) -> Thing:
        """Begin the next period; an unpaid one leaves the subscription past due."""
        item = subscription["items"]["data"][0]
        start = item["current_period_end"]
        item |= {"current_period_start": start, "current_period_end": month_after(start)}
        subscription["status"] = "active" if paid else "past_due"
        self.tell("customer.subscription.updated", subscription)
        return self.bill(subscription, 20_00, paid=paid)

    def settle(self, subscription: Thing, invoice: Thing) -> None:
        """Have the customer pay an invoice that had failed."""
        self.pay_invoice(invoice)
        subscription["status"] = "active"
        self.tell("customer.subscription.updated", subscription)

    def update(self, subscription: Thing, **changes: Any) -> Thing:
        """Change a subscription: its status, its end, or by `price` its plan."""
        price = changes.pop("price", None)
        if price is not None:
            subscription["items"]["data"][0]["price"] = {"id": price, "object": "price"}
        subscription |= changes
        return self.tell("customer.subscription.updated", subscription)

    def cancel(self, subscription: Thing) -> Thing:
        subscription |= {"status": "canceled", "ended_at": self.now(), "canceled_at": self.now()}
        return self.tell("customer.subscription.deleted", subscription)

    # ------------------------------------------------------------ what it is asked

    def call(self, method: str, path: str, asked: Thing, key: str | None) -> tuple[int, Thing]:
        """Answer one call of the API, once for each key."""
        with self.mutex:
            self.asked.append((method, path))
            failing = self.fail.pop(0) if self.fail else None
            if failing == "down":
                return 503, _error("api_error", "try again")
            if failing == "no right":
                return 403, _error("invalid_request_error", "The key lacks the permissions.")
            body = json.dumps([method, path, asked], sort_keys=True)
            if key in self.answers:
                before, status, thing = self.answers[key]
                if before != body:
                    return 400, _error("idempotency_error", "another body under the same key")
            else:
                status, thing = self._answer(method, path, asked)
                if key is not None and status != 400:
                    self.answers[key] = body, status, json.loads(json.dumps(thing))
            if failing == "lost":
                raise ConnectionAbortedError
            return status, thing

    def _answer(self, method: str, path: str, asked: Thing) -> tuple[int, Thing]:
        for pattern, answer in (
            (r"POST /v1/customers", self._new_customer),
            (r"GET /v1/customers/(\w+)", self._get),
            (r"GET /v1/customers/(\w+)/payment_methods", self._methods),
            (r"POST /v1/checkout/sessions", self._new_session),
            (r"GET /v1/checkout/sessions/(\w+)", self._get),
            (r"POST /v1/payment_intents", self._new_intent),
            (r"GET /v1/payment_intents", self._intents),
            (r"GET /v1/payment_intents/(\w+)", self._get),
            (r"GET /v1/invoices/(\w+)", self._get),
            (r"GET /v1/invoice_payments", self._invoice_payments),
            (r"GET /v1/refunds", self._refunds),
            (r"GET /v1/subscriptions/(\w+)", self._get),
            (r"GET /v1/events", self._events),
            (r"POST /v1/billing/meter_events", self._meter_event),
        ):
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                try:
                    done = answer(*found.groups(), asked)  # type: ignore[operator]
                    return 200, done | {"url": path} if done["object"] == "list" else done
                except Declined as no:
                    decline, intent = no.args
                    refused = _error("card_error", "Your card was declined.", decline)
                    refused["error"]["payment_intent"] = intent
                    return 402, refused
                except Detached:
                    refused = _error("invalid_request_error", "No such PaymentMethod")
                    refused["error"] |= {"code": "resource_missing", "param": "payment_method"}
                    return 400, refused
                except KeyError as missing:
                    absent = _error("invalid_request_error", f"No such thing: {missing}")
                    absent["error"]["code"] = "resource_missing"
                    return 404, absent
        return 404, _error("invalid_request_error", f"Unrecognized request URL ({path})")

    def _get(self, name: str, _: Thing) -> Thing:
        return self.things[name]

    def _new_customer(self, asked: Thing) -> Thing:
        return self.new(
            "cus",
            {
                "object": "customer",
                "created": self.now(),
                "invoice_settings": {"default_payment_method": None},
                "metadata": asked.get("metadata", {}),
            },
        )

    def _methods(self, customer: str, _: Thing) -> Thing:
        card = {"id": f"pm_{customer}", "object": "payment_method", "customer": customer}
        return _list([card] if customer in self.cards else [])

    def _new_session(self, asked: Thing) -> Thing:
        line = asked["line_items"][0]
        data = line.get("price_data", {})
        amount = int(data.get("unit_amount", 5_00)) * int(line["quantity"])
        session = self.new(
            "cs",
            {
                "object": "checkout.session",
                "amount_total": amount,
                "client_reference_id": asked["client_reference_id"],
                "created": self.now(),
                "currency": data.get("currency", "usd"),
                "customer": asked.get("customer"),
                "expires_at": self.now() + DAY,
                "metadata": asked["metadata"],
                "mode": asked["mode"],
                "payment_intent": None,
                "payment_status": "unpaid",
                "status": "open",
                "subscription": None,
            },
        )
        session["url"] = f"https://checkout.stripe.test/{session['id']}"
        session["_asked"] = asked
        return session

    def _new_intent(self, asked: Thing) -> Thing:
        assert asked["off_session"] == asked["confirm"] == "true"
        card = self.cards.get(asked["customer"])
        if asked["payment_method"] in self.detached:
            raise Detached
        intent = self.intent(
            asked["customer"], int(asked["amount"]), asked["currency"], asked["metadata"]
        )
        if card == "slow":
            intent["status"] = "processing"
        elif card == "ok":
            self.charge(intent)
        else:
            intent["last_payment_error"] = {"code": "card_declined", "decline_code": card}
            self.tell("payment_intent.payment_failed", intent)
            raise Declined(card, intent)
        return intent

    def _intents(self, asked: Thing) -> Thing:
        since = int(asked["created"]["gte"])
        return _list(
            [
                one
                for one in self.of("payment_intent")
                if one["customer"] == asked["customer"] and one["created"] >= since
            ]
        )

    def _refunds(self, asked: Thing) -> Thing:
        wanted = asked["payment_intent"]
        return _list([one for one in self.of("refund") if one["payment_intent"] == wanted])

    def _invoice_payments(self, asked: Thing) -> Thing:
        assert asked["payment"]["type"] == "payment_intent"
        wanted = asked["payment"]["payment_intent"]
        paid = self.of("invoice_payment")
        return _list([one for one in paid if one["payment"]["payment_intent"] == wanted])

    def _events(self, asked: Thing) -> Thing:
        assert len(asked["types"]) <= 20, "Stripe takes twenty types at the most"
        low, high = int(asked["created"]["gte"]), int(asked["created"]["lte"])
        found = [
            event
            for event in reversed(self.events)
            if low <= event["created"] <= high and event["type"] in asked["types"].values()
        ]
        names = [event["id"] for event in found]
        first = names.index(asked["starting_after"]) + 1 if "starting_after" in asked else 0
        page = found[first : first + int(asked["limit"])]
        return _list(page, more=first + len(page) < len(found))

    def _meter_event(self, asked: Thing) -> Thing:
        name = asked["identifier"]
        assert int(asked["payload"]["value"]) > 0, "whole numbers above zero"
        assert self.now() - 35 * DAY <= int(asked["timestamp"]) <= self.now() + 300
        event = {
            "object": "billing.meter_event",
            "created": self.now(),
            "event_name": asked["event_name"],
            "identifier": name,
            "livemode": False,
            "payload": asked["payload"],
            "timestamp": int(asked["timestamp"]),
        }
        self.meter_events.setdefault(name, event)
        return event


def _list(things: list[Thing], *, more: bool = False) -> Thing:
    return {"object": "list", "data": things, "has_more": more}


def _error(kind: str, message: str, decline: str | None = None) -> Thing:
    error: Thing = {"type": kind, "message": message}
    if decline is not None:
        error |= {"code": "card_declined", "decline_code": decline}
    return {"error": error}


def unflattened(pairs: list[tuple[str, str]]) -> Thing:
    """Return what `a[b][0]=c` says, as nested dicts."""
    whole: Thing = {}
    for name, value in pairs:
        parts = name.replace("]", "").split("[")
        place = whole
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value
    for name in ("line_items",):
        if name in whole:
            whole[name] = list(whole[name].values())
    return whole


@contextmanager
def serving(fake: FakeStripe) -> Iterator[str]:
    """Serve the fake on a free port of loopback; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            size = int(self.headers.get("content-length", 0))
            place = urlsplit(self.path)
            text = self.rfile.read(size).decode() if size else place.query
            assert self.headers["authorization"].startswith("Bearer sk_test_")
            key = self.headers.get("idempotency-key")
            if self.command == "GET":
                key = None
            try:
                status, thing = fake.call(
                    self.command, place.path, unflattened(parse_qsl(text)), key
                )
            except ConnectionAbortedError:
                self.close_connection = True
                return
            shown = {name: value for name, value in thing.items() if not name.startswith("_")}
            body = json.dumps(shown).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("stripe-should-retry", "false")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - as the server calls them

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
