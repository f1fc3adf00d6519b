"""The prepaid-credit ledger for products that sell AI features.

Every charge happens once, in order, never below zero, and can be explained.

    import tillroll

    ledger = tillroll.open("sqlite:///credits.db")
    ledger.grant("acme", 1000, request_id="order-17")
    ledger.consume("acme", units=20, request_id="job-1")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tillroll.embedded import (
    AsyncLedger,
    AsyncOpenHold,
    Ledger,
    OpenHold,
    Outcome,
    Quote,
    open_async,
)
from tillroll.embedded import copy_ledger as copy
from tillroll.embedded import migrate_store as migrate
from tillroll.embedded import open_ledger as open  # noqa: A004 - reads as tillroll.open
from tillroll.ledger.access import Access
from tillroll.ledger.errors import (
    REFUSALS,
    AccountClosed,
    AccountFrozen,
    BudgetExceeded,
    ChargeNotFound,
    CopyMismatch,
    CouponUsed,
    DurabilityWarning,
    EntitlementNotFound,
    Forbidden,
    GrantNotFound,
    HoldExpired,
    HoldFinalized,
    HoldNotFound,
    IdempotencyConflict,
    InsufficientUnits,
    InvalidInput,
    NotEntitled,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    ProviderRefused,
    ProviderUnavailable,
    QuoteExpired,
    RefundExceedsCharge,
    Refused,
    SchemaMismatch,
    SettleExceedsHold,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    TillrollError,
    TooManyRequests,
    Unauthorized,
    Unpriced,
)
from tillroll.ledger.receipts import Receipt
from tillroll.queries import Balance, Page, Verification
from tillroll.stores.base import Migrated

if TYPE_CHECKING:
    from tillroll.client import AsyncClient, Client, FailOpen, ProvisionalReceipt
    from tillroll.copying import Copied

__version__ = "0.1.0"

__all__ = [
    "REFUSALS",
    "Access",
    "AccountClosed",
    "AccountFrozen",
    "AsyncClient",
    "AsyncLedger",
    "AsyncOpenHold",
    "Balance",
    "BudgetExceeded",
    "ChargeNotFound",
    "Client",
    "Copied",
    "CopyMismatch",
    "CouponUsed",
    "DurabilityWarning",
    "EntitlementNotFound",
    "FailOpen",
    "Forbidden",
    "GrantNotFound",
    "HoldExpired",
    "HoldFinalized",
    "HoldNotFound",
    "IdempotencyConflict",
    "InsufficientUnits",
    "InvalidInput",
    "Ledger",
    "Migrated",
    "NotEntitled",
    "NotFound",
    "OpenHold",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "Page",
    "ProviderRefused",
    "ProviderUnavailable",
    "ProvisionalReceipt",
    "Quote",
    "QuoteExpired",
    "Receipt",
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
    "Verification",
    "copy",
    "migrate",
    "open",
    "open_async",
]

_LATE = {
    **dict.fromkeys(("AsyncClient", "Client", "FailOpen", "ProvisionalReceipt"), "client"),
    "Copied": "copying",
}


def __getattr__(name: str) -> Any:
    """Import what few need when it is first asked for, as the client beside a ledger in-process."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found
