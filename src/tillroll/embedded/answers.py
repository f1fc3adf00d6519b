"""What the engine's answers become: receipts, exceptions, outcomes of a batch."""

from __future__ import annotations

import os
import time
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

from tillroll.ledger.errors import REFUSALS, Refused, TillrollError
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import Entry, Refusal
from tillroll.ledger.units import to_decimal

if TYPE_CHECKING:
    from tillroll.ledger.book import Answer
    from tillroll.ledger.commands import Request


def new_id() -> str:
    """Return a UUIDv7: unique, and ordered by time so that the index of ids grows at its end."""
    head = _time_of(time.time_ns() // 1_000_000)
    try:
        tail = _TAILS.popleft()
    except IndexError:
        made = os.urandom(_TAIL_BYTES * _TAILS_MADE).hex()
        _TAILS.extend([made[n : n + _TAIL] for n in range(0, len(made), _TAIL)])
        tail = os.urandom(_TAIL_BYTES).hex()
    return f"{head}{tail[:3]}-{_VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}"


@lru_cache(maxsize=1)
def _time_of(millis: int) -> str:
    """Return how the ids of one millisecond begin: their time and their version."""
    digits = f"{millis:012x}"
    return f"{digits[:8]}-{digits[8:]}-7"


# Random parts made ahead by one call: each call to the system lets go of Python's lock, and taking
# it back from a busy thread costs more than the id. A forked child must not use its parent's.
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # two of the four bits are fixed
_TAIL_BYTES = 10
_TAIL = 2 * _TAIL_BYTES  # hexadecimal digits
_TAILS_MADE = 256
_TAILS: deque[str] = deque()
os.register_at_fork(after_in_child=_TAILS.clear)


def receipt_of(answer: Answer, request: Request, scale: int) -> Receipt:
    """Return the receipt of an answer, or raise what it says instead."""
    outcome = answer.outcome
    if isinstance(outcome, Entry):
        return Receipt(outcome, scale, request.account, replayed=answer.replayed)
    raise exception_of(answer, request, scale)


def exception_of(answer: Answer, request: Request, scale: int) -> TillrollError:
    """Return the exception that an answer without a receipt is raised as."""
    outcome = answer.outcome
    if isinstance(outcome, Refusal):
        return refused(outcome, request.account, scale, replayed=answer.replayed)
    assert isinstance(outcome, TillrollError)
    if outcome.request_id != request.request_id:
        # One error may answer a whole batch; each caller gets its own with its own id.
        cause, outcome = outcome, type(outcome)(*outcome.args)
        outcome.__cause__ = cause
        outcome.request_id = request.request_id
    return outcome


def refused(refusal: Refusal, account: str, scale: int, *, replayed: bool) -> Refused:
    """Return the exception of a refusal, with exact decimals."""

    def exact(units: int | None) -> object:
        return None if units is None else to_decimal(units, scale)

    return REFUSALS[refusal.code](
        refusal.message,
        needed=exact(refusal.needed),  # type: ignore[arg-type]  # Decimal or None
        available=exact(refusal.available),  # type: ignore[arg-type]
        held=exact(refusal.held),  # type: ignore[arg-type]
        tightest=refusal.tightest,
        ways_out=refusal.ways_out,
        details=refusal.details,
        request_id=refusal.request_id,
        account=account,
        seq=refusal.seq,
        replayed=replayed,
    )


class Outcome:
    """What became of one item of `consume_many`.

    Attributes:
        receipt: The receipt, None where there is none.
        error: The exception that the single call would have raised, None where it went well.
        status: "created", "replayed", "refused", "conflict", "invalid", "failed" or "unknown".
    """

    __slots__ = ("error", "receipt", "status")

    def __init__(self, receipt: Receipt | None, error: TillrollError | None) -> None:
        """Hold a receipt or an error."""
        self.receipt = receipt
        self.error = error
        self.status = _status(receipt, error)

    @property
    def ok(self) -> bool:
        """Return whether there is a receipt."""
        return self.receipt is not None

    def __repr__(self) -> str:
        """Show the status and what stands behind it."""
        return f"<Outcome {self.status} {self.receipt or self.error!r}>"


def _status(receipt: Receipt | None, error: TillrollError | None) -> str:
    if receipt is not None:
        return "replayed" if receipt.replayed else "created"
    if isinstance(error, Refused):
        return "refused"
    assert error is not None
    known = {"idempotency_conflict": "conflict", "invalid_input": "invalid"}
    return known.get(error.code, "unknown" if error.written == "unknown" else "failed")
