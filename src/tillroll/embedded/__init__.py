"""The ledger in your process. Read `ledger` first: the verbs, `Ledger`, `AsyncLedger`, holds.

`opening` makes them from a URL, `reads` looks without a verb, `answers` turns what the engine
says into receipts and exceptions.
"""

from tillroll.embedded.answers import Outcome, refused
from tillroll.embedded.ledger import (
    AsyncLedger,
    AsyncOpenHold,
    Ledger,
    OpenHold,
    PendingHold,
    Preview,
)
from tillroll.embedded.opening import (
    copy_ledger,
    migrate_store,
    open_async,
    open_engine,
    open_ledger,
    open_store,
)
from tillroll.embedded.reads import Quote

__all__ = [
    "AsyncLedger",
    "AsyncOpenHold",
    "Ledger",
    "OpenHold",
    "Outcome",
    "PendingHold",
    "Preview",
    "Quote",
    "copy_ledger",
    "migrate_store",
    "open_async",
    "open_engine",
    "open_ledger",
    "open_store",
    "refused",
]
