"""Every no over HTTP: RFC 9457 documents with a stable code, and the status of each code.

402 and not 409 or 429 for money: the official clients of AI providers repeat those by themselves,
and 402 they leave alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tillroll.ledger import errors as e
from tillroll.ledger.errors import ProviderRefused, ProviderUnavailable, Refused, TillrollError

MEDIA_TYPE = b"application/problem+json"


class EdgeError(TillrollError):
    """Turned away at the door: no ledger was asked, nothing was written."""

    code = "edge"
    headers: dict[str, str]

    def __init__(self, message: str, **headers: str) -> None:
        """Say what is the matter, and what headers go with it."""
        super().__init__(message)
        self.headers = headers


class MissingBearerToken(EdgeError):
    """The request has no API key."""

    code = "missing_bearer_token"

    def __init__(self, message: str) -> None:
        """Say what is the matter, and how to be known."""
        super().__init__(message)
        self.headers = {"www-authenticate": "Bearer"}


class InvalidApiKey(EdgeError):
    """The API key is not known, has expired or was revoked."""

    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        """Say what is the matter, and that another key is needed."""
        super().__init__(message)
        self.headers = {"www-authenticate": 'Bearer error="invalid_token"'}


class IdempotencyKeyMissing(EdgeError):
    """A write needs the header Idempotency-Key: your id of this one event."""

    code = "idempotency_key_missing"


class MalformedRequest(EdgeError):
    """The request is not HTTP as it is written."""

    code = "malformed_request"


class NoSuchAddress(EdgeError):
    """There is nothing at this address, so nothing was looked for either."""

    code = "no_such_address"


class MethodNotAllowed(EdgeError):
    """The address does not have this method."""

    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        """Say which methods there are, as in "GET, POST"."""
        super().__init__(message)
        self.headers = {"allow": allowed}


class BodyTooLarge(EdgeError):
    """The body is larger than such a request may be."""

    code = "body_too_large"


class HeadersTooLarge(EdgeError):
    """The head of the request is larger than one may be."""

    code = "headers_too_large"


class RequestTimeout(EdgeError):
    """The request did not arrive in time."""

    code = "request_timeout"


class UnsupportedMediaType(EdgeError):
    """The body must be JSON."""

    code = "unsupported_media_type"


class BadSignature(EdgeError):
    """What was received is not signed by the payment provider, or was too long ago."""

    code = "bad_signature"


class PaymentsNotSetUp(EdgeError):
    """The service has no payment provider for this project and mode. Nothing was written."""

    code = "payments_not_set_up"


class InternalError(TillrollError):
    """The service failed in a way that it did not foresee."""

    code = "internal_error"
    written = "unknown"


class Kind(NamedTuple):
    """What is always the same for a code: the status, and what to do."""

    status: int
    advice: str


REFUSALS: dict[str, Kind] = {
    "account_frozen": Kind(403, "Tell the customer. An operator may `unfreeze` the account"),
    "account_closed": Kind(403, "Use another account; closing is for good"),
    "not_entitled": Kind(
        402, "Offer what `ways_out` names: a plan or pass of the catalog that brings the feature"
    ),
    "unpriced": Kind(422, "Add a price to the price book and apply it, or give `units`"),
    "quote_expired": Kind(410, "Ask for a new quote"),
    "hold_not_found": Kind(404, "Check the account and the id: a hold's id is its `request_id`"),
    "grant_not_found": Kind(404, "Check the account and the id: a grant's id is its `request_id`"),
    "charge_not_found": Kind(
        404, "Check the account and the id: a charge's id is that of its consume or hold"
    ),
    "entitlement_not_found": Kind(
        404, "Check the account and the name: `entitlements` lists them. One that ended is gone"
    ),
    "coupon_used": Kind(410, "Nothing: the account has what the coupon gives"),
    "hold_finalized": Kind(
        409, "Nothing: the hold has ended. `details` says how, and by which request"
    ),
    "hold_expired": Kind(
        410, "If the work was done, `consume` for it under an id made from the same event"
    ),
    "settle_exceeds_hold": Kind(
        422, 'Settle less, or with `above="available"`; the hold is still open'
    ),
    "refund_exceeds_charge": Kind(422, "Refund at most `available`, which is left of the charge"),
    "budget_exceeded": Kind(
        402, 'Wait until `details["resets_at"]`, ask for less, or raise the budget'
    ),
    "insufficient_units": Kind(402, "Top up, ask for less, or wait for a hold to end: `ways_out`"),
}
ERRORS: dict[str, Kind] = {
    "invalid_input": Kind(422, "Correct the call. The message names the argument"),
    "idempotency_conflict": Kind(422, "Find out which of two events took the other's id"),
    "not_found": Kind(404, "Check the id"),
    "unavailable": Kind(503, "Ask again with the same request_id"),
    "store_busy": Kind(503, "Ask again; keep other programs from locking the file for long"),
    "copy_mismatch": Kind(409, "Copy to an empty store; where the source is damaged, verify it"),
    "store_full": Kind(503, "Make room on the disk, then ask again"),
    "store_read_only": Kind(503, "Correct the permissions of the file and its folder"),
    "store_corrupt": Kind(503, "Restore the file from a backup, and run `tillroll doctor`"),
    "store_closed": Kind(503, "Open the ledger again"),
    "overloaded": Kind(503, "Wait a moment, then ask again"),
    "schema_mismatch": Kind(503, "Upgrade tillroll, or run `tillroll migrate`: the message says"),
    "outcome_unknown": Kind(503, "Ask again with the same request_id, which settles it"),
}
EDGE: dict[str, Kind] = {
    "missing_bearer_token": Kind(401, "Send `Authorization: Bearer` and an API key"),
    "invalid_api_key": Kind(401, "Check the key; `tillroll keys` makes a new one"),
    "forbidden": Kind(403, "Use a key that has the scope, or that the account is open to"),
    "idempotency_key_missing": Kind(400, "Send your id of the event, the same at every retry"),
    "malformed_request": Kind(400, "Send HTTP/1.1; a proxy or a library may have mangled it"),
    "bad_signature": Kind(
        400, "Check the webhook's secret and this machine's clock; send it again"
    ),
    "provider_refused": Kind(502, "Read the provider's own message; correct the set-up"),
    "provider_unavailable": Kind(503, "Ask again with the same request_id"),
    "payments_not_set_up": Kind(
        404, "Set `stripe_secret_key` and what goes with it, as the guide of Stripe says"
    ),
    "no_such_address": Kind(404, "Check the base URL: it ends before `/v1`"),
    "method_not_allowed": Kind(405, "See `Allow`"),
    "request_timeout": Kind(408, "Send it again, faster"),
    "body_too_large": Kind(413, "Send less at once"),
    "unsupported_media_type": Kind(415, "Send `Content-Type: application/json`"),
    "too_many_requests": Kind(429, "Wait as `Retry-After` says, then ask again"),
    "headers_too_large": Kind(431, "Send fewer or shorter headers"),
    "internal_error": Kind(500, "Ask again with the same request_id; tell us what was in the logs"),
}
KINDS = {**REFUSALS, **ERRORS, **EDGE}
_OPERATIONAL: tuple[type[TillrollError], ...] = (
    *(e.InvalidInput, e.IdempotencyConflict, e.NotFound, e.StoreUnavailable, e.StoreBusy),
    *(e.StoreFull, e.StoreReadOnly, e.StoreCorrupt, e.StoreClosed, e.Overloaded),
    *(e.SchemaMismatch, e.CopyMismatch, e.OutcomeUnknown, e.Forbidden, e.TooManyRequests),
    *(ProviderRefused, ProviderUnavailable, InternalError),
    *EdgeError.__subclasses__(),
)
_CLASSES: dict[str, type[TillrollError]] = {
    **e.REFUSALS,
    **{kind.code: kind for kind in _OPERATIONAL},
}
RETRY_SECONDS = "1"


def title_of(code: str) -> str:
    """Return what a code means, in a sentence."""
    return (_CLASSES[code].__doc__ or "").split("\n")[0].split(". ")[0].rstrip(".")


def status_of(problem: TillrollError) -> int:
    """Return the HTTP status of an error or a refusal."""
    return KINDS[problem.code].status if problem.code in KINDS else 503


def document(
    problem: TillrollError, path: str = "", topup_url: str | None = None
) -> dict[str, Any]:
    """Return the problem document of an error or a refusal.

    Args:
        problem: What was raised or answered.
        path: What was asked for.
        topup_url: Where the account's owner may buy units, given where units are missing.
    """
    status = status_of(problem)
    shown = problem.to_dict()
    shown = {
        "type": f"/problems/{problem.code}",
        "title": title_of(problem.code) if problem.code in _CLASSES else problem.code,
        "status": status,
        "detail": shown.pop("message"),
        "instance": path,
        **shown,
    }
    if isinstance(problem, Refused):
        ends = [way["until"] for way in problem.ways_out if "until" in way]
        shown["retry_at"] = min(ends, default=None)
        shown["topup_url"] = topup_url if status == 402 else None  # noqa: PLR2004 - about money
    return shown


def headers_of(problem: TillrollError) -> dict[str, str]:
    """Return the headers that go with a problem."""
    if isinstance(problem, EdgeError) and problem.headers:
        return dict(problem.headers)
    if status_of(problem) in (429, 503):
        return {"retry-after": RETRY_SECONDS}
    if isinstance(problem, Refused) and problem.replayed:
        return {"idempotent-replayed": "true"}
    return {}


def explain(code: str) -> str | None:
    """Return the page of a code as plain text; None where there is no such code."""
    kind = KINDS.get(code)
    if kind is None:
        return None
    return f"{code} (HTTP {kind.status})\n\n{title_of(code)}.\n\nWhat to do: {kind.advice}.\n"
