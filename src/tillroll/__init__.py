"""The prepaid-credit ledger for products that sell AI features.

Every charge happens once, in order, never below zero, and can be explained.

    import tillroll

    ledger = tillroll.open("sqlite:///credits.db")
    ledger.grant("acme", 1000, request_id="order-17")
    ledger.consume("acme", units=20, request_id="job-1")
"""

from tillroll.copying import Copied
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
from tillroll.ledger.errors import (
    REFUSALS,
    AccountClosed,
    AccountFrozen,
    BudgetExceeded,
    ChargeNotFound,
    CopyMismatch,
    DurabilityWarning,
    Forbidden,
    GrantNotFound,
    HoldExpired,
    HoldFinalized,
    HoldNotFound,
    IdempotencyConflict,
    InsufficientUnits,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    Overloaded,
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

__version__ = "0.1.0"

__all__ = [
    "REFUSALS",
    "AccountClosed",
    "AccountFrozen",
    "AsyncLedger",
    "AsyncOpenHold",
    "Balance",
    "BudgetExceeded",
    "ChargeNotFound",
    "Copied",
    "CopyMismatch",
    "DurabilityWarning",
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
    "NotFound",
    "OpenHold",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "Page",
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
