"""Every route of the API, one line each: what it is called, who may, what goes in and out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tillroll.api import administration as keys
from tillroll.api import licenzy, payments, reads, stream, webhooks, writes
from tillroll.api.calls import BODY_MAX, KIB, Route
from tillroll.ledger.verbs import Verbs
from tillroll.wire import answers as a
from tillroll.wire import bodies as b

BATCH_BODY_MAX = 16 * 1024 * KIB
PRICES_BODY_MAX = 1024 * KIB
WEBHOOK_BODY_MAX = 512 * KIB  # an event with its object; Stripe's are a tenth of this

# The refusals that a kind of request may meet, in their order of precedence.
STATUS = ("account_frozen", "account_closed")
WORK = (
    *STATUS,
    "not_entitled",
    "unpriced",
    "quote_expired",
    "budget_exceeded",
    "insufficient_units",
)
IN_FLIGHT = ("hold_not_found", "hold_finalized", "hold_expired")
SETTLING = (*STATUS, "unpriced", *IN_FLIGHT, "settle_exceeds_hold", "insufficient_units")
ENDING = ("account_closed", "entitlement_not_found")
PROVIDER = ("provider_refused", "provider_unavailable", "payments_not_set_up")


ACCOUNT = "/v1/accounts/{account}"
HOLD = ACCOUNT + "/holds/{hold_id}"
BUDGET = ACCOUNT + "/budgets/{name}"
ALERT = ACCOUNT + "/alerts/{name}"
RECURRING = ACCOUNT + "/recurring/{name}"
ENTITLEMENT = ACCOUNT + "/entitlements/{name}"
KEY = "/v1/keys/{key_id}"
ENDPOINT = "/v1/webhooks/{endpoint_id}"
CHECKOUTS = ACCOUNT + "/checkouts"
TOPUP = ACCOUNT + "/top-ups/{wallet}"
OVERAGE = ACCOUNT + "/overage/{wallet}"

# Where the name of the handler is not the name of the operation.
_NAMES = {
    "/v1/explain/{request_id}": "find_explanation",
    HOLD: "get_hold",
    CHECKOUTS: "checkout",
}

# verb, method, path, body, scope, what may be refused, whether it can be previewed
_WRITES: tuple[tuple[str, str, str, type[msgspec.Struct], str, tuple[str, ...], bool], ...] = (
    ("consume", "POST", ACCOUNT + "/consume", b.Consume, "consume", WORK, True),
    ("hold", "POST", ACCOUNT + "/holds", b.Hold, "consume", WORK, True),
    ("extend", "POST", HOLD + "/extend", b.Extend, "consume", IN_FLIGHT, False),
    ("settle", "POST", HOLD + "/settle", b.Settle, "consume", SETTLING, True),
    ("release", "POST", HOLD + "/release", b.Write, "consume", IN_FLIGHT, True),
    ("mark_in_doubt", "POST", HOLD + "/in-doubt", b.InDoubt, "consume", IN_FLIGHT, False),
    ("resolve", "POST", HOLD + "/resolve", b.Resolve, "consume", SETTLING, False),
    ("grant", "POST", ACCOUNT + "/grants", b.Grant, "grant", ("account_closed",), True),
    (
        *("void", "POST", ACCOUNT + "/grants/{grant_id}/void", b.Void, "grant"),
        *(("account_closed", "grant_not_found"), True),
    ),
    (
        *("refund", "POST", ACCOUNT + "/refunds", b.Refund, "grant"),
        *(("account_closed", "charge_not_found", "refund_exceeds_charge"), True),
    ),
    (
        *("adjust", "POST", ACCOUNT + "/adjustments", b.Adjust, "admin"),
        *(("account_closed", "insufficient_units"), True),
    ),
    ("buy", "POST", ACCOUNT + "/purchases", b.Buy, "grant", STATUS[1:], True),
    (
        *("redeem", "POST", ACCOUNT + "/redemptions", b.Redeem, "grant"),
        *(("account_closed", "coupon_used"), True),
    ),
    ("subscribe", "POST", ACCOUNT + "/subscriptions", b.Subscribe, "grant", STATUS[1:], False),
    ("entitle", "PUT", ENTITLEMENT, b.Entitle, "grant", STATUS[1:], False),
    ("change_entitlement", "PATCH", ENTITLEMENT, b.Standing, "grant", ENDING, False),
    ("end_entitlement", "DELETE", ENTITLEMENT, b.EndEntitlement, "grant", ENDING, False),
    ("freeze", "POST", ACCOUNT + "/freeze", b.Write, "admin", ("account_closed",), False),
    ("unfreeze", "POST", ACCOUNT + "/unfreeze", b.Write, "admin", ("account_closed",), False),
    ("close_account", "POST", ACCOUNT + "/close", b.Write, "admin", ("account_closed",), False),
    ("set_overdraft", "PUT", ACCOUNT + "/overdraft", b.Overdraft, "admin", STATUS[1:], False),
    ("set_budget", "PUT", BUDGET, b.Budget, "admin", STATUS[1:], False),
    ("remove_budget", "DELETE", BUDGET, b.Write, "admin", STATUS[1:], False),
    ("set_alert", "PUT", ALERT, b.Alert, "admin", STATUS[1:], False),
    ("remove_alert", "DELETE", ALERT, b.Write, "admin", STATUS[1:], False),
    ("set_recurring", "PUT", RECURRING, b.Recurring, "admin", STATUS[1:], False),
    ("stop_recurring", "DELETE", RECURRING, b.Write, "admin", STATUS[1:], False),
    ("configure", "PATCH", ACCOUNT + "/settings", b.Settings, "admin", STATUS[1:], False),
)


def routes() -> list[Route]:
    """Return every route behind a key."""
    return [
        *(*_writes(), *_reads(), *_administration(), *_webhooks()),
        *(*_payments(), *_licenzy()),
    ]


def _writes() -> Iterator[Route]:
    for verb, method, path, shape, scope, refusals, previewed in _WRITES:
        build = getattr(Verbs, verb)
        summary = _first(build)
        shared: dict[str, Any] = {
            "body": shape,
            "scopes": frozenset({scope}),
            "refusals": refusals,
            "answer": a.Receipt,
            "group": "Writes",
        }
        yield Route(
            method=method,
            path=path,
            handler=writes.writing(build, shape),
            name=verb,
            summary=summary,
            keyed=True,
            **shared,
        )
        if previewed:
            yield Route(
                method="POST",
                path=path.replace(ACCOUNT, ACCOUNT + "/preview"),
                handler=writes.previewing(verb, shape),
                name=f"preview_{verb}",
                summary=f"Decide as now, write nothing: {summary[0].lower()}{summary[1:]}",
                **shared,
            )
    yield Route(
        method="POST",
        path="/v1/batch",
        handler=writes.batch,
        answer=a.Outcomes,
        name="batch",
        summary=_first(writes.batch),
        group="Writes",
        body=b.Batch,
        scopes=frozenset({"consume"}),
        body_max=BATCH_BODY_MAX,
    )


def _reads() -> Iterator[Route]:
    r = reads
    read = frozenset({"read"})
    for path, handler, query, answer, whole in (
        ("/v1/accounts", r.accounts, r.AccountsQuery, a.Accounts, True),
        (ACCOUNT, r.account, r.Query, a.Account, False),
        (ACCOUNT + "/balance", r.balance, r.BalanceQuery, a.Balance, False),
        (ACCOUNT + "/balance/stream", stream.follow, r.WalletQuery, a.Balance, False),
        (ACCOUNT + "/statement", r.statement, r.StatementQuery, a.Page, False),
        (ACCOUNT + "/entries", r.entries, r.EntriesQuery, a.Page, False),
        (ACCOUNT + "/usage", r.usage, r.UsageQuery, a.Usage, False),
        ("/v1/usage", r.usage, r.UsageQuery, a.Usage, True),
        (ACCOUNT + "/explain/{request_id}", r.explain, r.Query, a.Explained, False),
        ("/v1/explain/{request_id}", r.explain, r.ExplainQuery, a.Explained, False),
        (ACCOUNT + "/receipts/{request_id}", r.receipt, r.Query, a.Proven, False),
        (ACCOUNT + "/verify", r.verify, r.Query, a.Verification, False),
        ("/v1/verify", r.verify, r.Query, a.Verification, True),
        (HOLD, r.hold, r.Query, a.HoldState, False),
        ("/v1/prices", r.prices, r.Query, a.Prices, False),
        (ACCOUNT + "/entitlements", r.entitlements, r.EntitlementsQuery, a.Entitlements, False),
        ("/v1/holdings", r.holdings, r.Query, a.Holdings, True),
    ):
        name = handler.__name__ + ("_of_all" if handler in (r.usage, r.verify) and whole else "")
        yield Route(
            method="GET",
            path=path,
            handler=handler,
            answer=answer,
            name=_NAMES.get(path, name),
            summary=_first(handler),
            group="Reads",
            query=query,
            scopes=read,
            whole_project=whole,
        )
    yield Route(
        method="POST",
        path=ACCOUNT + "/quotes",
        handler=reads.quote,
        answer=a.Quote,
        name="quote",
        summary=_first(reads.quote),
        group="Reads",
        body=b.QuoteFor,
        scopes=frozenset({"read", "consume"}),
        refusals=("unpriced",),
    )
    yield Route(
        method="POST",
        path=ACCOUNT + "/access",
        handler=reads.access,
        answer=a.Access,
        name="access",
        summary=_first(reads.access),
        group="Reads",
        body=b.AccessTo,
        scopes=frozenset({"read", "consume"}),
    )
    yield Route(
        method="GET",
        path="/v1/whoami",
        handler=reads.whoami,
        answer=a.Whoami,
        name="whoami",
        summary=_first(reads.whoami),
        group="Reads",
        query=reads.Query,
    )


def _administration() -> Iterator[Route]:
    for method, path, handler, shape, answer, keyed in (
        ("DELETE", ACCOUNT + "/metadata", reads.erase, None, a.Erased, False),
        ("POST", "/v1/prices", reads.apply_prices, b.NewPrices, a.PriceVersion, False),
        ("GET", "/v1/keys", keys.list_keys, None, a.Keys, False),
        ("POST", "/v1/keys", keys.make_key, b.NewKey, a.Key, True),
        ("GET", KEY, keys.get_key, None, a.Key, False),
        ("DELETE", KEY, keys.revoke_key, None, a.Key, False),
        ("POST", KEY + "/rotate", keys.rotate_key, b.Rotate, a.Key, True),
    ):
        yield Route(
            method=method,
            path=path,
            handler=handler,
            answer=answer,
            name=handler.__name__,
            summary=_first(handler),
            group="Administration",
            body=shape,
            query=reads.Query if shape is None else None,
            scopes=frozenset({"admin"}),
            keyed=keyed,
            whole_project=not path.startswith(ACCOUNT),
            body_max=PRICES_BODY_MAX if path == "/v1/prices" else BODY_MAX,
        )


def _webhooks() -> Iterator[Route]:
    w = webhooks
    for method, path, handler, shape, answer in (
        ("GET", "/v1/webhooks", w.list_endpoints, None, a.Endpoints),
        ("POST", "/v1/webhooks", w.make_endpoint, b.NewEndpoint, a.Endpoint),
        ("GET", ENDPOINT, w.get_endpoint, None, a.Endpoint),
        ("PATCH", ENDPOINT, w.change_endpoint, b.ChangedEndpoint, a.Endpoint),
        ("DELETE", ENDPOINT, w.remove_endpoint, None, a.Endpoint),
        ("POST", ENDPOINT + "/rotate", w.rotate_endpoint, b.Rotate, a.Endpoint),
        ("GET", "/v1/deliveries", w.list_deliveries, None, a.Deliveries),
        ("POST", "/v1/deliveries/send-again", w.send_again, b.SendAgain, a.Queued),
        ("GET", "/v1/events/{event_id}", w.get_event, None, a.ToldEvent),
    ):
        listing = handler is w.list_deliveries
        yield Route(
            method=method,
            path=path,
            handler=handler,
            answer=answer,
            name=handler.__name__,
            summary=_first(handler),
            group="Webhooks",
            body=shape,
            query=w.DeliveriesQuery if listing else reads.Query if shape is None else None,
            scopes=frozenset({"admin"}),
            keyed=handler is w.make_endpoint,
            whole_project=True,
        )


def _payments() -> Iterator[Route]:
    p = payments
    admin = frozenset({"admin"})
    queries = {p.payments: p.PaymentsQuery, p.unplaced_payments: p.UnplacedQuery}
    for method, path, handler, shape, answer, scopes in (
        (
            *("POST", CHECKOUTS, p.open_checkout, b.OpenCheckout, a.CheckoutSession),
            frozenset({"consume", "grant"}),
        ),
        ("GET", ACCOUNT + "/payments", p.payments, None, a.Payments, frozenset({"read"})),
        ("GET", "/v1/payments", p.unplaced_payments, None, a.UnplacedPayments, frozenset({"read"})),
        ("GET", TOPUP, p.top_up, None, a.TopUp, frozenset({"read"})),
        ("PUT", TOPUP, p.set_top_up, b.SetTopUp, a.TopUp, admin),
        ("POST", TOPUP + "/pause", p.pause_top_up, b.Nothing, a.TopUp, admin),
        ("POST", TOPUP + "/resume", p.resume_top_up, b.Nothing, a.TopUp, admin),
        ("GET", OVERAGE, p.overage, None, a.Overage, frozenset({"read"})),
        ("PUT", OVERAGE, p.set_overage, b.SetOverage, a.Overage, admin),
        ("POST", OVERAGE + "/stop", p.stop_overage, b.Nothing, a.Overage, admin),
        ("POST", OVERAGE + "/resolve", p.resolve_overage, b.Arrived, a.Overage, admin),
    ):
        closed = STATUS[1:] if method == "PUT" else ()
        yield Route(
            method=method,
            path=path,
            handler=handler,
            answer=answer,
            name=_NAMES.get(path, handler.__name__),
            summary=_first(handler),
            group="Payments",
            body=shape,
            keyed=path == CHECKOUTS,
            query=queries.get(handler, reads.Query) if shape is None else None,
            scopes=scopes,
            refusals=() if shape is None else (*closed, *PROVIDER),
            whole_project=path == "/v1/payments",
        )
    yield Route(
        method="POST",
        path="/v1/payments/{provider}/webhook",
        handler=p.webhook,
        answer=a.Received,
        name="payment_webhook",
        summary=_first(p.webhook),
        group="Payments",
        body=b.PaymentWebhook,
        refusals=("bad_signature", "provider_refused", "provider_unavailable"),
        body_max=WEBHOOK_BODY_MAX,
        signed=True,
    )


def _licenzy() -> Iterator[Route]:
    either = frozenset({"read", "consume"})
    for method, path, handler, shape, answer, scopes in (
        (
            *("POST", "/v1/usage/consume", licenzy.consume, b.LicenzyConsume),
            *(a.LicenzyConsumed, frozenset({"consume"})),
        ),
        (
            *("POST", "/v1/access/check", licenzy.check, b.LicenzySubject),
            *(a.LicenzyAllowed, either),
        ),
        (
            *("POST", "/v1/checkout/session", payments.checkout, b.Checkout),
            *(a.CheckoutSession, frozenset({"consume", "grant"})),
        ),
        ("GET", "/v1/customer/access/{ref}", licenzy.access, None, a.LicenzyAccess, either),
        ("GET", "/v1/entitlements/{ref}", licenzy.entitlements, None, a.LicenzyEntitled, either),
    ):
        yield Route(
            method=method,
            path=path,
            handler=handler,
            answer=answer,
            name=f"licenzy_{handler.__name__}",
            summary=_first(handler),
            group="Licenzy-compatible",
            body=shape,
            query=reads.Query if shape is None else None,
            scopes=scopes,
            keyed=handler in (licenzy.consume, payments.checkout),
            refusals=PROVIDER if handler is payments.checkout else (),
            licenzy=True,
        )


def _first(documented: object) -> str:
    """Return the first sentence of what something does."""
    return (documented.__doc__ or "").split("\n")[0].rstrip(".")
