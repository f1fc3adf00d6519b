"""Every error that tillroll raises, and what each says about the ledger.

    TillrollError
    ├── InvalidInput            malformed; nothing written
    ├── IdempotencyConflict     the id was used for something else; nothing written
    ├── NotFound                nothing of that name; nothing written
    ├── Unauthorized            a service does not know the caller's key; nothing written
    ├── Forbidden               the key may not do that; nothing written
    ├── Refused                 an expected no, one class for each code, in precedence order
    └── StoreError              operational
        ├── StoreUnavailable    nothing written; ask again with the same request_id
        │   ├── StoreBusy, StoreFull, StoreReadOnly, StoreCorrupt, StoreClosed, Overloaded
        │   ├── TooManyRequests     the caller's key has too many requests under way
        │   └── SchemaMismatch
        └── OutcomeUnknown      may or may not be written; the same request_id settles it

`written` on each class is one of "nothing" and "unknown": whoever catches an error never has to
guess. A refusal moves nothing in the account, though it is remembered as the answer.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "REFUSALS",
    "AccountClosed",
    "AccountFrozen",
    "BudgetExceeded",
    "ChargeNotFound",
    "CouponUsed",
    "EntitlementNotFound",
    "Forbidden",
    "GrantNotFound",
    "HoldExpired",
    "HoldFinalized",
    "HoldNotFound",
    "IdempotencyConflict",
    "InsufficientUnits",
    "InvalidInput",
    "NotEntitled",
    "NotFound",
    "OutcomeUnknown",
    "Overloaded",
    "QuoteExpired",
    "RefundExceedsCharge",
    "Refused",
    "SchemaMismatch",
    "SettleExceedsHold",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
    "TillrollError",
    "TooManyRequests",
    "Unauthorized",
    "Unpriced",
]


class TillrollError(Exception):
    """Base of everything that tillroll raises on purpose."""

    code: str = "error"  # the class's own, or the finer one that a service answered with
    written: ClassVar[Literal["nothing", "unknown"]] = "nothing"
    request_id: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the error as plain values for JSON: code, message, written, request_id."""
        return {
            "code": self.code,
            "message": str(self),
            "written": self.written,
            "request_id": self.request_id,
        }


class InvalidInput(TillrollError, ValueError):
    """The request is malformed. Nothing was written and nothing is remembered."""

    code = "invalid_input"


class IdempotencyConflict(TillrollError):
    """The request_id was used before for another request. Nothing was written."""

    code = "idempotency_conflict"


class NotFound(TillrollError, LookupError):
    """Nothing of that name exists here."""

    code = "not_found"


class Unauthorized(TillrollError):
    """The service was given no API key, or one that it does not know. Nothing was written."""

    code = "invalid_api_key"


class Forbidden(TillrollError):
    """The API key is known, but may not do this. Nothing was written."""

    code = "forbidden"


class Refused(TillrollError):
    """An expected no. The account is unchanged; the refusal is remembered under its request_id.

    Attributes:
        code: One of the closed list, see `REFUSALS`.
        needed: Units that were asked for, or None where the refusal is not about units.
        available: Units that could have been spent on this request, or None.
        held: Units reserved by open holds in the same wallet, or None.
        tightest: What stood in the way, such as "credits" or "budget daily", or None.
        ways_out: What would help, each a mapping with at least "kind" and "text".
        details: Everything else the refusal knows, as plain values.
        replayed: True when this is the remembered answer to an earlier, equal request.
    """

    code = "refused"

    def __init__(
        self,
        message: str,
        *,
        needed: Decimal | None = None,
        available: Decimal | None = None,
        held: Decimal | None = None,
        tightest: str | None = None,
        ways_out: Sequence[Mapping[str, str]] = (),
        details: Mapping[str, str] | None = None,
        request_id: str | None = None,
        account: str | None = None,
        seq: int = 0,
        replayed: bool = False,
    ) -> None:
        """Build the refusal from its parts; units are exact decimals."""
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.held = held
        self.tightest = tightest
        self.ways_out = tuple(dict(way) for way in ways_out)
        self.details = dict(details or {})
        self.request_id = request_id
        self.account = account
        self.seq = seq
        self.replayed = replayed

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling, so that a refusal crosses process pools with all it carries."""
        return (_rebuild, (type(self), str(self), self.__dict__.copy()))

    def to_dict(self) -> dict[str, object]:
        """Return the refusal as plain values for JSON; units are decimal strings."""

        def text(units: Decimal | None) -> str | None:
            return None if units is None else format(units, "f")

        return {
            **super().to_dict(),
            "account": self.account,
            "needed": text(self.needed),
            "available": text(self.available),
            "held": text(self.held),
            "tightest": self.tightest,
            "ways_out": list(self.ways_out),
            "details": self.details,
            "seq": self.seq,
            "replayed": self.replayed,
        }


def _rebuild(kind: type[Refused], message: str, state: dict[str, object]) -> Refused:
    refused = kind(message)
    refused.__dict__.update(state)
    return refused


class AccountFrozen(Refused):
    """The account is frozen: nothing new may be taken from it until it is unfrozen."""

    code = "account_frozen"


class AccountClosed(Refused):
    """The account is closed for good."""

    code = "account_closed"


class NotEntitled(Refused):
    """The work needs a feature that no entitlement of the account brings now."""

    code = "not_entitled"


class Unpriced(Refused):
    """The price book has no price for this operation and these meters."""

    code = "unpriced"


class QuoteExpired(Refused):
    """The quote's time is over; ask for a new one."""

    code = "quote_expired"


class HoldNotFound(Refused):
    """The account has no hold of that id."""

    code = "hold_not_found"


class GrantNotFound(Refused):
    """The account has no grant of that id."""

    code = "grant_not_found"


class ChargeNotFound(Refused):
    """The account has no charge of that id."""

    code = "charge_not_found"


class EntitlementNotFound(Refused):
    """The account has no entitlement of that name, or it ended before."""

    code = "entitlement_not_found"


class CouponUsed(Refused):
    """The account redeemed the coupon as often as it may."""

    code = "coupon_used"


class HoldFinalized(Refused):
    """The hold was settled or released before."""

    code = "hold_finalized"


class HoldExpired(Refused):
    """The hold's deadline passed before this; recover by a consume under the same business id."""

    code = "hold_expired"


class SettleExceedsHold(Refused):
    """More was to be settled than is held, and the policy was to refuse that."""

    code = "settle_exceeds_hold"


class RefundExceedsCharge(Refused):
    """More was to be refunded than is left of the charge."""

    code = "refund_exceeds_charge"


class BudgetExceeded(Refused):
    """A budget has not enough room left in its period."""

    code = "budget_exceeded"


class InsufficientUnits(Refused):
    """The account has not enough units that may pay for this."""

    code = "insufficient_units"


# The closed list. Its order is the precedence: where two refusals apply, the upper one is given.
REFUSALS: dict[str, type[Refused]] = {
    kind.code: kind
    for kind in (
        AccountFrozen,
        AccountClosed,
        NotEntitled,
        Unpriced,
        QuoteExpired,
        HoldNotFound,
        GrantNotFound,
        ChargeNotFound,
        EntitlementNotFound,
        CouponUsed,
        HoldFinalized,
        HoldExpired,
        SettleExceedsHold,
        RefundExceedsCharge,
        BudgetExceeded,
        InsufficientUnits,
    )
}


class StoreError(TillrollError):
    """Something operational went wrong in or under the store."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The store could not do it. Nothing was written; ask again with the same request_id."""

    code = "unavailable"


class StoreBusy(StoreUnavailable):
    """Another process kept the store locked for longer than the time-out."""

    code = "store_busy"


class StoreFull(StoreUnavailable):
    """The disk is full. Nothing was written; reads still work."""

    code = "store_full"


class StoreReadOnly(StoreUnavailable):
    """The store may not be written: file or folder permissions, or a read-only file system."""

    code = "store_read_only"


class StoreCorrupt(StoreUnavailable):
    """The file is not a healthy tillroll database; restore it from a backup."""

    code = "store_corrupt"


class StoreClosed(StoreUnavailable):
    """The ledger was closed before the request could be taken."""

    code = "store_closed"


class Overloaded(StoreUnavailable):
    """The queue of waiting requests is full. Nothing was written; wait and ask again."""

    code = "overloaded"


class TooManyRequests(StoreUnavailable):
    """The API key has too many requests under way. Nothing was written; wait and ask again."""

    code = "too_many_requests"


class SchemaMismatch(StoreUnavailable):
    """The database was written by a newer tillroll, or its migrations were altered."""

    code = "schema_mismatch"


class CopyMismatch(StoreError):
    """Two stores that should hold the same ledger do not; the source stays in use."""

    code = "copy_mismatch"


class OutcomeUnknown(StoreError):
    """The database erred at the commit: the request is there whole or not at all.

    Ask again with the same `request_id`: that gives the first answer if it is there, and does the
    work once if it is not.
    """

    code = "outcome_unknown"
    written = "unknown"


class ProviderRefused(TillrollError):
    """The payment provider refused. Nothing was written."""

    code = "provider_refused"


class ProviderUnavailable(TillrollError):
    """The payment provider does not answer. Ask again with the same request_id, if there is one.

    Nothing is done twice.
    """

    code = "provider_unavailable"
    written = "unknown"


class DurabilityWarning(UserWarning):
    """The database is set up so that an acknowledged write may be lost in a crash."""
