"""The prepaid-credit ledger for products that sell AI features.

Every charge happens once, in order, never below zero, and can be explained.

    import tillroll

    ledger = tillroll.open("sqlite:///credits.db")
    ledger.grant("acme", 1000, request_id="order-17")
    ledger.consume("acme", units=20, request_id="job-1")
"""

from tillroll.embedded import (
    AsyncLedger,
    AsyncOpenHold,
    Ledger,
    OpenHold,
    Outcome,
    Quote,
    open_async,
)
from tillroll.embedded import open_ledger as open  # noqa: A004 - reads as tillroll.open
from tillroll.ledger.errors import *  # noqa: F403 - the whole tree, see its __all__
from tillroll.ledger.errors import __all__ as _errors
from tillroll.queries import Balance, Page, Verification
from tillroll.receipts import Receipt

__version__ = "0.1.0"

__all__ = [
    "AsyncLedger",
    "AsyncOpenHold",
    "Balance",
    "Ledger",
    "OpenHold",
    "Outcome",
    "Page",
    "Quote",
    "Receipt",
    "Verification",
    "open",
    "open_async",
]
__all__ += _errors
